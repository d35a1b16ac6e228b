"""strict, flexible and cot give lm-eval's own verdict: its task files, its filters, its exact_match."""

from __future__ import annotations

import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gsm8k_core.problems.generated import generate_problems
from gsm8k_core.scoring import published
from gsm8k_core.scoring.answers import RULES

Pair = tuple[str, str]  # completion, GSM8K answer
Verdicts = list[tuple[str | None, bool]]

REAL = Path(__file__).with_name("real_output.jsonl")
LEAST, LEAST_BOTH, LEAST_DIFFERENT, LEAST_COT = 20_000, 8_000, 2_000, 2_000
TASKS = {
    "strict": ("gsm8k.yaml", "strict-match"),
    "flexible": ("gsm8k.yaml", "flexible-extract"),
    "cot": ("gsm8k-cot.yaml", "strict-match"),
}
ENDINGS = (
    "\n#### {}",
    "\n#### {}.",
    "\n#### ${}",
    "\n####{}",
    "\n#### **{}**",
    "\n#### {}.00",
    "\n#### {}\n\nQuestion: 7?",
    "\nThe answer is {}.",
    "\nThe answer is {}",
    "\nThe answer is ${}.",
    "\nThe answer is {} eggs.\n#### {}",
    "\n#### {} eggs (see step 2)",
    "\n\\boxed{{{}}}",
    "\n**{}**. Hope this helps...",
    "\nThe answer is {}\n",
    " {}",
    "\n#### {}\nThe answer is {}. It took 3 steps.",
    "\n#### ,{}",
)
PIECES = (
    "#### ",
    "####",
    "The answer is ",
    "the answer is ",
    "$",
    "-",
    ".",
    ",",
    " ",
    "\n",
    "0",
    "7",
    "18",
    "1,234",
    "3.50",
    "(",
    "²",
    "٣",
    "\x00",
    "é",
    "Question:",
    "**",
    "...",
    "[invalid]",
)


def answers() -> list[str]:
    """The golds, real ones where GSM8K_DATA names them."""
    if folder := os.environ.get("GSM8K_DATA"):
        rows = [row for split in ("train", "test") for row in (Path(folder) / f"{split}.jsonl").open(encoding="utf-8")]
        return [json.loads(row)["answer"] for row in rows]
    return [problem.answer for problem in generate_problems(num_train=8_000)[0]]


def real_output() -> list[Pair]:
    """What SmolLM2-135M-Instruct answered to the first test problems that it finished, greedy, through torch."""
    rows = (json.loads(row) for row in REAL.read_text(encoding="utf-8").splitlines())
    return [(row["completion"], f"#### {row['gold']}") for row in rows]


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    """Golds, real output, golds' steps with another ending (one in three with a wrong number), random pieces."""
    rng, golds = random.Random(0), answers()
    made = [(answer, answer) for answer in golds] + real_output()
    for answer in golds:
        steps, _, number = answer.partition("\n#### ")
        said = number if rng.random() < 0.67 else str(rng.randrange(2000))
        made.append((steps + rng.choice(ENDINGS).replace("{}", said).replace("{{", "{").replace("}}", "}"), answer))
    made += [("".join(rng.choices(PIECES, k=rng.randrange(1, 12))), rng.choice(golds)) for _ in range(8_000)]
    return made


def theirs(rule: str, pairs: list[Pair]) -> Verdicts:
    """What lm-eval's own filter extracts, None for its fallback, and whether its exact_match is 1."""
    import lm_eval
    from lm_eval.api.instance import Instance
    from lm_eval.api.metrics import exact_match_fn
    from lm_eval.filters import build_filter_ensemble
    from lm_eval.tasks._yaml_loader import load_yaml
    from lm_eval.utils import apply_template

    file, name = TASKS[rule]
    config = load_yaml(Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / file)
    steps = next(entry["filter"] for entry in config["filter_list"] if entry["name"] == name)
    components = [(s["function"], {key: s[key] for key in s if key != "function"}) for s in steps]
    targets = {answer: apply_template(config["doc_to_target"], {"answer": answer}) for answer in {a for _, a in pairs}}
    (metric,) = config["metric_list"]
    options = {key: metric[key] for key in metric if key not in ("metric", "aggregation", "higher_is_better")}
    assert metric["metric"] == "exact_match"
    instances = [Instance("generate_until", {"answer": answer}, ("", {}), 0) for _, answer in pairs]
    for instance, (completion, _) in zip(instances, pairs, strict=True):
        instance.resps = [completion]
    build_filter_ensemble(name, components).apply(instances)
    found: Verdicts = []
    for instance in instances:
        read = instance.filtered_resps[name]
        target = targets[instance.doc["answer"]]
        score = exact_match_fn(predictions=[read], references=[target], **options)["exact_match"]
        found.append((None if read == "[invalid]" else read, bool(score == 1)))
    return found


def ours(rule: str, pairs: list[Pair], extract: Callable[[str], str | None] | None = None) -> Verdicts:
    extract = extract or RULES[rule].extract
    found: Verdicts = []
    for completion, answer in pairs:
        read = extract(completion)
        target = "#### " + answer.rpartition("#### ")[2].strip()
        found.append((read, read is not None and RULES[rule].equal(read, target)))
    return found


@pytest.fixture(scope="module")
def harness(bench: None, pairs: list[Pair]) -> dict[str, Verdicts]:
    return {rule: theirs(rule, pairs) for rule in TASKS}


def test_there_are_enough_strings_of_each_kind(pairs: list[Pair], harness: dict[str, Verdicts]) -> None:
    counts: Counter[str] = Counter(all=len(set(pairs)))
    for strict, flexible, cot in zip(harness["strict"], harness["flexible"], harness["cot"], strict=True):
        counts["both"] += strict[0] is not None and flexible[0] is not None
        counts["different"] += strict[1] != flexible[1]
        counts["cot"] += cot[0] is not None
    print(counts)
    assert len(set(real_output())) >= 240
    assert counts["all"] >= LEAST
    assert counts["both"] >= LEAST_BOTH
    assert counts["different"] >= LEAST_DIFFERENT
    assert counts["cot"] >= LEAST_COT


@pytest.mark.parametrize("rule", TASKS)
def test_every_string_gets_lm_evals_own_verdict(rule: str, pairs: list[Pair], harness: dict[str, Verdicts]) -> None:
    rows = zip(pairs, harness[rule], ours(rule, pairs), strict=True)
    assert [row for row in rows if row[1] != row[2]][:3] == []


def first(pattern: str) -> Callable[[str], str | None]:
    compiled: Any = re.compile(pattern)

    def extract(text: str) -> str | None:
        found = compiled.search(text)
        return found[1] if found else None

    return extract


def last(pattern: str) -> Callable[[str], str | None]:
    compiled = re.compile(pattern)

    def extract(text: str) -> str | None:
        found = compiled.search(text[::-1])
        return found[0][::-1] if found else None

    return extract


CONTROLS = [
    ("strict", first(published.MARKED.pattern.replace(",", "", 1))),
    ("strict", first(published.MARKED.pattern.replace(" ", "", 1))),
    ("flexible", last(published.FLEXIBLE_MIRRORED.pattern.replace("2", "3"))),
    ("flexible", last(published.FLEXIBLE_MIRRORED.pattern.replace("9", "8", 1))),
    ("cot", first(published.COT.pattern.removesuffix("."))),
    ("cot", first(published.COT.pattern.replace("T", "t"))),
]


@pytest.mark.parametrize(("rule", "changed"), CONTROLS)
def test_one_character_less_or_other_is_noticed(
    rule: str, changed: Callable[[str], str | None], pairs: list[Pair], harness: dict[str, Verdicts]
) -> None:
    wrong = [b for a, b in zip(harness[rule], ours(rule, pairs, changed), strict=True) if a[1] != b[1]]
    print(rule, len(wrong))
    assert len(wrong) >= 10
