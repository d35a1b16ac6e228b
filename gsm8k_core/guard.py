"""The guard: is the trained model better than the one it was made of?

Fine-tuning can make a model worse, and a falling loss does not show it. So the base answers a few dev problems before
the first update, and the model in training answers the same ones after a quarter of the planned updates and at the
end. They are compared problem by problem with McNemar's exact test: what is not below stats.LEVEL is called not
distinguishable, never better. Nothing is chosen or deleted by it; it only says what was seen, and what to try.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gsm8k_core.dev import Deadline, DevResult, DevSet, Measured, joined
from gsm8k_core.stats import LEVEL, mcnemar_exact

SHARE = 0.05  # of the time budget, at most, for the base's answers
FEWEST = 8  # problems; fewer can hardly show anything, even if all change
ROUND = 16  # problems in each round after the first
QUARTER = 0.25  # of the planned updates
FEWEST_UPDATES = 8  # planned ones; a quarter of fewer is no time to look

BETTER, WORSE = "better", "worse"


@dataclass(frozen=True, slots=True)
class Guard:
    """What was measured so far. `base` None: nothing is compared, and `reason` says why."""

    base: DevResult | None = None
    quarter: tuple[int, DevResult] | None = None  # after which update, and what
    end: tuple[int, DevResult] | None = None
    reason: str = ""
    passed: bool = False  # the quarter had no time, and is not tried again

    @property
    def num_problems(self) -> int:
        return self.base.num_problems if self.base else 0

    @property
    def seconds(self) -> float:
        """What measuring these problems once takes, by the newest time."""
        newest = self.end or self.quarter
        result = newest[1] if newest else self.base
        return result.seconds if result else 0.0

    def due(self, update: int, total: int, last: bool) -> bool:
        """Whether to measure after this update: at the end, and once when a quarter of the plan is done."""
        if self.base is None:
            return False
        return last or (self._waits(total) and update >= QUARTER * total)

    def _waits(self, total: int) -> bool:
        """Whether the measurement after a quarter is still to come."""
        return self.quarter is None and not self.passed and total >= FEWEST_UPDATES

    def num_due(self, update: int, total: int) -> int:
        """How often it will be measured from this update on."""
        if self.base is None:
            return 0
        return 1 + (self._waits(total) and update < total)

    def seen(self, update: int, result: DevResult, last: bool) -> Guard:
        """With one more measurement, of the first problems of `result`."""
        return replace(self, end=(update, result)) if last else replace(self, quarter=(update, result))

    def against_base(self, result: DevResult) -> dict[str, object]:
        """The numbers of a `guard` event."""
        assert self.base is not None
        shared = min(self.num_problems, len(result.verdicts))  # fewer, where a resumed run asks for fewer
        base, now = self.base.verdicts[:shared], result.verdicts[:shared]
        won = sum(new and not old for old, new in zip(base, now, strict=True))
        lost = sum(old and not new for old, new in zip(base, now, strict=True))
        p = mcnemar_exact(won, lost)
        return {
            "problems": len(base),
            "base_correct": sum(base),
            "correct": sum(now),
            "won": won,
            "lost": lost,
            "p": p,
            "verdict": verdict(won, lost, p, len(base)),
        }

    def as_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        measured = {name: getattr(self, name) for name in ("quarter", "end")}
        return {
            "base": self.base and self.base.as_json(),
            **{name: each and {"update": each[0], "result": each[1].as_json()} for name, each in measured.items()},
            "reason": self.reason,
            "passed": self.passed,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Guard:
        def read(name: str) -> tuple[int, DevResult] | None:
            each = values.get(name)
            return each and (int(each["update"]), DevResult.from_json(each["result"]))

        base = values["base"] and DevResult.from_json(values["base"])
        return cls(base, read("quarter"), read("end"), values.get("reason", ""), values.get("passed", False))

    def outcome(self) -> dict[str, Any]:
        """For run.json: what each measurement showed."""
        if self.base is None:
            return {"verdict": "not measured", "reason": self.reason}
        measured = {name: getattr(self, name) for name in ("quarter", "end")}
        found: dict[str, Any] = {
            name: each and {"update": each[0], **self.against_base(each[1])} for name, each in measured.items()
        }
        base = {"problems": self.num_problems, "correct": sum(self.base.verdicts), "seconds": self.base.seconds}
        return {"base": base, **found, "verdict": found["end"]["verdict"] if self.end else "not measured"}


def verdict(won: int, lost: int, p: float, num_problems: int) -> str:
    """`better`, `worse`, or that so many problems cannot tell."""
    if p >= LEVEL:
        return f"not distinguishable at n = {num_problems}"
    return BETTER if won > lost else WORSE


def measure_base(
    dev: DevSet, live: Measured, num_problems: int, seconds: float, interrupted: Callable[[], bool]
) -> Guard:
    """The base's answers to as many of the first `num_problems` dev problems as fit into `seconds`, FEWEST at least.

    The first FEWEST show how fast it goes; then come rounds of ROUND, each only where it will fit. A round that ran
    out of time all the same is dropped whole: those that ended in time would be the short answers.
    """
    num_problems = min(num_problems, len(dev.problems))
    if num_problems < FEWEST:
        return Guard(reason=f"there are {num_problems} dev problems for it, and fewer than {FEWEST} show nothing")
    began = dev.clock()

    def left() -> float:
        return seconds - (dev.clock() - began)

    late: Deadline = lambda: left() <= 0 or interrupted()  # noqa: E731
    first = dev.part(0, FEWEST).measure(live, late) if left() > 0 else None
    if first is None:
        slow = f"{FEWEST} answers of the base took longer than {seconds:.1f} s, their share of --max-time"
        return Guard(reason="a signal came" if interrupted() else f"{slow}; a longer one helps")
    parts, done = [first], FEWEST
    while done < num_problems:
        each = math.fsum(part.seconds for part in parts) / done
        more = min(ROUND, num_problems - done, int(left() / each) if each > 0 else ROUND)
        result = dev.part(done, done + more).measure(live, late) if more > 0 else None
        if result is None:
            break
        parts, done = [*parts, result], done + more
    return Guard(base=joined(parts))


# --- the words -----------------------------------------------------------------------------------------------------


def base_line(guard: Guard) -> str:
    """One line on the base, or on why nothing is compared."""
    if guard.base is None:
        return (
            f"guard    the base is not measured, so nothing will be compared: {guard.reason} "
            "(--guard-problems 0 turns this off)"
        )
    right = sum(guard.base.verdicts)
    return (
        f"guard    the base answers {right} of {guard.num_problems} dev problems right ({guard.base.seconds:.0f} s); "
        "the trained model will answer the same ones"
    )


def event_line(values: Mapping[str, Any]) -> str:
    """One line on a measurement."""
    when = "at the end" if values["when"] == "end" else f"after update {values['update']}"
    return (
        f"guard    {when}: {values['correct']} of {values['problems']} right, the base {values['base_correct']} "
        f"({values['won']} won, {values['lost']} lost, p = {values['p']:.2g}): {values['verdict']}"
    )


def advice(found: str, *, adapter: bool, rate: float, budget: str) -> str:
    """What a person can try when the trained model was not better."""
    tries = [
        f"more epochs or a longer --max-time than {budget}",
        f"a lower rate (--learning-rate {rate / 3:.1g})",
        *([] if adapter else ["--method lora"]),
        "training on answers in the model's own style: its own right answers as a JSONL file for --data "
        "(rejection sampling), since GSM8K's terse ones often do not help a small instruct model",
    ]
    more = [] if found == WORSE else ["more --guard-problems, to see a smaller difference"]
    return "try      " + "; ".join(tries + more)


def end_line(found: str, base: str, trained: str) -> str:
    """In plain words, for a trained model that was not better."""
    what = (
        "the base model is better than the trained one on these dev problems"
        if found == WORSE
        else "these dev problems do not show that the trained model is better than the base"
    )
    return f"guard    {what}; both are kept: the base {base}, the trained one {trained}"
