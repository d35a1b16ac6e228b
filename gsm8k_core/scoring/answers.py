r"""Named, versioned rules that read the final number out of a completion, and say whether it is the gold one.

    openai     grade-school-math's own: first `#### N`, equal as texts
    strict     lm-evaluation-harness, gsm8k 3.0, strict-match: first `#### N`, its exact_match
    flexible   the same task's flexible-extract: last run of characters like a number, its exact_match
    cot        gsm8k_cot's strict-match: first `The answer is N`, less one character, its exact_match
    qwen-math  Qwen2.5-Math: last `boxed`, else all after "he answer is", else last number; x100 and /100 are right, too
    verl       verl, strict: last `#### N` in the last 300 characters, equal as texts
    inspect    inspect_evals: the last word that is a number, to five significant digits
    robust     ours, version 2: last readable `#### N` or `<answer>N`, else last \boxed{N}, else last "the answer is N",
               else last number; each read whole, equal as numbers

The published ones are in published.py, ours in robust.py; math-verify, which needs a process of its own, in
math_verify.py. A rule's name is the newest version's; an older one is asked for by both: `robust-v1`.
lm-eval also stops generation at "Question:"; that is the caller's part, a rule sees only its text.
Every rule is linear in the completion and raises on no string: a broken model may write anything.

AnswerLine ends an answer after its whole `#### N` line while it is still being written.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from gsm8k_core.problems.gold import checked_number, marked_number, plain_decimal
from gsm8k_core.scoring import published
from gsm8k_core.scoring.robust import robust, robust_equal
from gsm8k_core.scoring.robust_v1 import robust_v1, robust_v1_equal
from gsm8k_core.scoring.thinking import split
from gsm8k_core.types import UsageError


@dataclass(frozen=True, slots=True)
class Rule:
    """One way to read a completion. `equal` takes what was extracted and the target text `#### N`."""

    name: str
    version: int
    extract: Callable[[str], str | None]
    equal: Callable[[str, str], bool]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one rule found in one completion."""

    extracted: str | None
    correct: bool


def grade(completion: str, answer: str) -> dict[str, Verdict]:
    """Every rule's verdict. `answer` is GSM8K's full answer text or a plain number; DataError for neither.

    A number without its text is graded as the plainest one: "18.0", "$18" and 18 are the same gold.
    """
    completion = split(completion).answer
    target = _target(answer)
    return {rule.name: _verdict(rule, completion, target) for rule in RULES.values()}


def judge_by(names: Sequence[str], records: Iterable[dict[str, Any]]) -> None:
    """Leaves each record the verdicts of these rules alone, of RULES or OLDER; those it has not are made."""
    for record in records:
        made, target, text = record["rules"], _target(str(record["gold"])), split(record["completion"]).answer
        record["rules"] = {
            name: made[name] if name in made else asdict(_verdict(OLDER[name], text, target)) for name in names
        }


def asked_rules(text: str) -> tuple[str, ...]:
    """The rules of `all`, or of names with commas between: robust-v1, which is `robust v1` as well."""
    if text.strip().lower() == ALL_RULES:
        return tuple(RULES)
    return tuple(dict.fromkeys(_named(name) for name in text.split(",")))


def shown_rules(text: str) -> tuple[str, ...]:
    """The same, with those that tables and paired tests are made of."""
    asked = asked_rules(text)
    return asked if set(HEADLINE) <= set(asked) else tuple(dict.fromkeys((*HEADLINE, *asked)))


def _named(text: str) -> str:
    name, _, version = re.sub(r"[\s@_:-]+(?=v?[0-9]+$)", "@", text.strip().lower()).partition("@")
    number = int(version.removeprefix("v") or 0)
    for key, rule in [*RULES.items(), *OLDER.items()]:
        if rule.name == name and number in (0, rule.version):
            return key
    near = difflib.get_close_matches(text.strip().lower(), [*RULES, *OLDER], n=1)
    advice = f"did you mean {near[0]}? There are" if near else "there are"
    raise UsageError(f"--rules: no rule {text.strip()!r}; {advice} {', '.join([*RULES, *OLDER])}, or all")


def version_of(name: str) -> int | None:
    """Of a rule by its name in a record; None for math-verify, whose version is its package's."""
    rule = RULES.get(name) or OLDER.get(name)
    return rule.version if rule else None


def labelled(name: str) -> str:
    """robust v2: how a table calls a rule."""
    return f"{name} v{RULES[name].version}" if name in RULES else name


def _target(answer: str) -> str:
    return "#### " + (marked_number(answer) if "####" in answer else plain_decimal(checked_number(answer)))


def _verdict(rule: Rule, completion: str, target: str) -> Verdict:
    extracted = rule.extract(completion)
    return Verdict(extracted, extracted is not None and rule.equal(extracted, target))


# --- all of them ----------------------------------------------------------------------------------------------

_RULES = (
    Rule("openai", 1, published.openai, published.openai_equal),
    Rule("strict", 3, published.strict, published.harness_equal),  # 3: lm-eval's version of the task
    Rule("flexible", 3, published.flexible, published.harness_equal),
    Rule("cot", 3, published.cot, published.harness_equal),
    Rule("qwen-math", 1, published.qwen_math, published.qwen_equal),
    Rule("verl", 1, published.verl, published.openai_equal),
    Rule("inspect", 1, published.inspect, published.inspect_equal),
    Rule("robust", 2, robust, robust_equal),
)
RULES: Mapping[str, Rule] = MappingProxyType({rule.name: rule for rule in _RULES})
OLDER: Mapping[str, Rule] = MappingProxyType({"robust-v1": Rule("robust", 1, robust_v1, robust_v1_equal)})
RULES_HERE = ", ".join(map(labelled, RULES))
ALL_RULES = "all"
HEADLINE = ("strict", "flexible", "robust")  # the rules that tables begin with
HEADLINE_RULE = "flexible"  # the one that decides: of the paired test, the dev accuracy and the guard


# --- while an answer is written -------------------------------------------------------------------------------

TAIL = 64  # tokens; the line that has just ended is among them
# A line break has to follow: without it, the number may go on.
_LINE = re.compile(r"####[^\n]*[0-9][^\n]*\n")


class AnswerLine:
    """Sampling.complete: true once a line with `####` and a digit has ended.

    It is asked after every token, and decodes only where that token breaks a line.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._breaks: dict[int, bool] = {}

    def __call__(self, tokens: Sequence[int]) -> bool:
        last = tokens[-1]
        if last not in self._breaks:
            self._breaks[last] = "\n" in self._decode([last])
        return self._breaks[last] and _LINE.search(self._decode(tokens[-TAIL:])) is not None
