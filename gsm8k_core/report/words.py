"""What the page and the card say alike: the result in numbers and words, and how numbers and foreign text are shown."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gsm8k_core.config.fields import EMBEDDED_MODEL
from gsm8k_core.scoring import stats
from gsm8k_core.types import counted

COMPARISON = "model_comparison.json"  # in a run's folder: what `compare` found
# The keys of the Hub, of W&B and of the big providers, a password in a URL, and what a flag or a variable calls one.
_SECRETS = (
    (re.compile(r"\bhf_\w{8,}|\bsk-[\w-]{16,}|\bwandb_v1_\w+|\bgh[pousr]_\w{16,}|\bAKIA[0-9A-Z]{12,}"), "[secret]"),
    (re.compile(r"(?i)\bbearer\s+\S+"), "[secret]"),
    (re.compile(r"//[^/@\s]+@"), "//[secret]@"),
    (
        # A word is read from its start alone: from each of its letters, a long one would take quadratic time.
        re.compile(r"(?i)(?<![\w-])([\w-]*(?:api[_-]?key|token|secret|password))([= ])(?!-)(?=\S*[A-Za-z])\S{8,}"),
        r"\1\2[secret]",
    ),
)
_NOT_PLAIN = re.compile(r"[^\x20-\x7e\n\t]")
_NAMES = {"\0": "NUL", "\a": "BEL", "\b": "BS", "\r": "CR", "\x1b": "ESC", "\x7f": "DEL"}


@dataclass(frozen=True, slots=True)
class Facts:
    """How a result was made. Everything is shown as text; secrets are taken out."""

    command: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)  # "device": "cpu"
    versions: Mapping[str, str] = field(default_factory=dict)  # package -> version
    hashes: Mapping[str, str] = field(default_factory=dict)  # "base model" -> sha256
    reproduce: Sequence[str] = ()  # shell lines, in order
    rounds: Sequence[Mapping[str, Any]] = ()  # of the run's own answers: rollouts.tally.Tally.as_json()
    own: str = ""  # what became of these: own_answers()


_OF_A_RUN = {"model", "best", "mlx-adapter"}  # folders that say nothing without the one above them
_CHECKPOINT = re.compile(r"update-\d+")
SHORT_NAMES = {EMBEDDED_MODEL: "SmolLM2-135M"}
LONGEST_NAME = 40


def short_model(name: str) -> str:
    """SmolLM2-135M, Qwen2.5-0.5B-Instruct, demo, demo/best: a model in a few letters, without where it lies."""
    if name in SHORT_NAMES:
        return SHORT_NAMES[name]
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "checkpoints")]
    if len(parts) > 1 and parts[-1] == "model":
        parts.pop()
    with_run = len(parts) > 1 and (parts[-1] in _OF_A_RUN or _CHECKPOINT.fullmatch(parts[-1]))
    return _clipped("/".join(parts[-2 if with_run else -1 :]) or name)


def short_data(name: str) -> str:
    """gsm8k of `openai/gsm8k (main)`; of a folder or a file its own name."""
    plain = name.removesuffix(" (main)").rstrip("/")
    return _clipped(plain.rpartition("/")[2] or name)


def _clipped(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}\N{HORIZONTAL ELLIPSIS}"


@dataclass(frozen=True, slots=True)
class Headline:
    """Base against trained under the rule of the paired test. Fractions, not percent."""

    rule: str
    n: int
    base: float
    base_interval: tuple[float, float]
    trained: float
    trained_interval: tuple[float, float]
    difference: float
    difference_interval: tuple[float, float]
    won: int
    lost: int
    both: int
    neither: int
    p: float
    how: str = ""  # said behind the verdict: of all models alike
    but: str = ""  # and behind that: of these two
    corrected: float | None = None  # p for as many tests as there are trained models; None where there is one

    @property
    def better(self) -> str:
        """trained, base or neither."""
        if (self.p if self.corrected is None else self.corrected) >= stats.LEVEL:
            return "neither"
        return "trained" if self.won > self.lost else "base"

    @property
    def solved_none(self) -> bool:
        """Neither model solves any problem."""
        return not (self.won or self.lost or self.both)

    @property
    def title(self) -> str:
        if self.better == "neither":
            return f"Not distinguishable at n = {self.n:,}{self.how}{self.but}"
        return f"The {self.better} model is better{self.how}{self.but}"


def headline(comparison: Mapping[str, Any]) -> Headline:
    """The result that model_comparison.json holds."""
    test, n = comparison["paired"], comparison["base"]["n"]
    rule = test["rule"]
    base, trained = comparison["base"]["rules"][rule], comparison["trained"]["rules"][rule]
    return Headline(
        rule,
        n,
        base["accuracy"],
        tuple(base["interval"]),
        trained["accuracy"],
        tuple(trained["interval"]),
        test["difference"],
        tuple(test["interval"]),
        test["won"],
        test["lost"],
        test["both"],
        test["neither"],
        test["p"],
        how(comparison["base"]),
        but(comparison),
        test.get("p_holm"),
    )


def pairs(comparison: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Each trained model beside the base, as the model_comparison.json of that one alone would have it."""
    if "comparisons" not in comparison:
        return [comparison]
    return [{"base": comparison["base"], **each} for each in comparison["comparisons"]]


def names(comparison: Mapping[str, Any]) -> list[str]:
    """What each of several trained models is called: its short name, or the whole one where two would be alike."""
    whole = [str(pair["trained"]["model"]) for pair in pairs(comparison)]
    short = [short_model(name) for name in whole]
    return [one if short.count(one) == 1 and one != "base" else name for one, name in zip(short, whole, strict=True)]


def caveats(comparison: Mapping[str, Any], result: Headline) -> list[str]:
    """What has to stand beside the verdict: how far it goes, and what was left out."""
    base, trained = comparison["base"], comparison["trained"]
    said = []
    if apart := never_shown([("base", base), ("trained", trained)], result.rule):
        said.append(apart)
    if drawn := sample(trained):
        said.append(drawn)
    if result.better == "neither":
        line = stats.cannot_show(result.n, max(1, result.won + result.lost) / result.n)
        said.append(f"{line[0].upper()}{line[1:]}.")
    return said


def sample(summary: Mapping[str, Any]) -> str:
    """That a score is over a part of the problems, those that --max-time left; nothing where it is over all."""
    time = summary.get("time")
    if not time or time["n"] >= time["of"]:
        return ""
    return f"A random sample: {time['n']:,} of {time['of']:,} problems fitted into {time['max_time']}."


def never_shown(models: Sequence[tuple[str, Mapping[str, Any]]], rule: str) -> str:
    """How the models do on generated problems of templates that training never showed; nothing without such."""
    parts = [(label, summary.get("held_out_templates")) for label, summary in models]
    known = [(label, part["rules"][rule]["correct"], part["n"]) for label, part in parts if part]
    if not known or len(known) < len(parts):
        return ""
    n, where = known[0][2], "on templates that training never showed"
    if len(known) == 1:
        return f"{known[0][1]:,} of {n:,} {where}."
    if not any(correct for _, correct, _ in known):
        neither = "neither" if len(known) == 2 else "none of the models"
        return f"0 of {n:,} {where}: {neither} solves any."
    if len(known) == 2:
        return f"{known[1][1]:,} of {n:,} {where}; the base has {known[0][1]:,}."
    counts = ", ".join(f"{label} {correct:,}" for label, correct, _ in known)
    return f"Of {n:,} {where}: {counts}."


def but(comparison: Mapping[str, Any]) -> str:
    """What a verdict may not leave out: that a model learned from the problems that it was tested on."""
    return learned(comparison["trained"]) or learned(comparison["base"], "the base's training data")


def learned(summary: Mapping[str, Any], whose: str = "the training data") -> str:
    """The same of one model's score; nothing where no problem is known to be among what it was trained on."""
    shared, n = (summary.get("overlap") or {}).get("shared"), summary["n"]
    which = "this problem" if n == 1 else f"{shared or 0:,} of these {n:,} problems"
    return f", but {which} {'is' if shared == 1 else 'are'} in {whose}" if shared else ""


def overlap_line(summary: Mapping[str, Any]) -> str:
    """Whether the problems are among what the model was trained on, as a sentence; nothing of an older summary."""
    line = (summary.get("overlap") or {}).get("line", "")
    return f"Test problems in the training data: {line}." if line else ""


def how(summary: Mapping[str, Any]) -> str:
    """What is said wherever a score is told that the model did not reach by itself."""
    return ", with calculator" if summary.get("calculator") else ""


def own_answers(trained: int | None, verify: str | None) -> str:
    """What became of a run's own answers: so many rows of them were `trained` on, verified by `steps` or `gold`.

    None: the run did not come so far.
    """
    sampled = "The model answered train problems itself"
    if trained is None:
        return f"{sampled}."
    if not trained:
        return f"{sampled}, and none of these answers was trained on: it learned from human ones alone."
    right = (
        "number is right; steps were not checked"
        if verify == "gold"
        else ("number and every step that can be read are right")
    )
    return f"The model was trained on answers of its own: sampled on train problems, and kept where the {right}."


def calculator_line(summary: Mapping[str, Any]) -> str:
    """What the calculator did in one model's answers, as a sentence; empty where it was not asked for."""
    found = summary.get("calculator")
    if not found:
        return ""
    if not found["results"]:
        return "The calculator wrote nothing: no answer holds an expression such as <<48/2= that it reads."
    what, of = counted(found["results"], "result"), counted(found["of"], "answer")
    return f"The calculator wrote {what}, in {found['answers']:,} of {of}."


def percent(share: float) -> str:
    """31.5 %, with a space that does not break."""
    return stats.percent(share).replace(" ", "\N{NO-BREAK SPACE}")


def between(interval: Sequence[float]) -> str:
    """27.1 to 36.2."""
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}".replace("-", "\N{MINUS SIGN}")


def bounds(interval: Sequence[float]) -> str:
    """Of a difference: -2.0 to 9.4, with more digits where one would make a 0 of a bound that is none.

    A bound of 0 says that nothing was shown, and the verdict beside it may say that something was.
    """
    return " to ".join(bound(each) for each in interval).replace("-", "\N{MINUS SIGN}")


def bound(share: float, sign: str = "") -> str:
    """One bound of a difference in points."""
    digits = next((digits for digits in range(1, 6) if round(100 * share, digits)), 1)
    return f"{100 * share:{sign}.{digits}f}" if round(100 * share, digits) else f"{0.0:{sign}.1f}"


def points(difference: float) -> str:
    """A difference of two shares in points, with its sign."""
    number = round(100 * difference, 1)
    return f"{number:+.1f}".replace("-", "\N{MINUS SIGN}") if number else "0.0"


def p_value(p: float) -> str:
    """p = 0.012, p < 0.0001."""
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"


def visible(text: str) -> str:
    """Every control, direction and invisible character as something to be seen; line ends and tabs stay."""
    return _NOT_PLAIN.sub(lambda found: _seen(found[0]), text)


def _seen(mark: str) -> str:
    # Zs: spaces of every width, harmless. Not printable: controls, direction and zero-width marks, half surrogates.
    if mark.isprintable() or unicodedata.category(mark) == "Zs":
        return mark
    return f"\u27e8{_NAMES.get(mark, f'U+{ord(mark):04X}')}\u27e9"


def without_secrets(text: str) -> str:
    """A command line or a setting without keys and tokens."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text
