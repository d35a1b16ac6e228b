"""The parity ladder: is what the candidate computes the same as the reference's?

Each rung gives an error and, as its own proof that it would notice, the control's: the same figure with one thing
made wrong. With the tiny models on a CPU in float32 a rung passes when its error is within a frozen tolerance and the
control is ten times outside it. With any other model or device the figures depend on that, and a rung passes when
its error is under a tenth of its control's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from gsm8k_core.parity import rungs
from gsm8k_core.parity.bench import MIXED, NATS, OF_RMS, STEPS, UPDATES, Bench, Measurement
from gsm8k_core.parity.policy import policy
from gsm8k_core.types import DivergedError

MARGIN = 10


@dataclass(frozen=True, slots=True)
class Rung:
    """One comparison, with one or more variants."""

    number: int
    name: str
    measure: Callable[[Bench], Iterator[Measurement]]
    tolerances: dict[str, float]  # unit -> the largest error, for the tiny models on a CPU in float32


# At most ten times what was measured on Linux x86-64 with torch 2.13 and mlx 0.32, the larger of both tiny models:
# each figure stands beside its tolerance.
RUNGS = (
    Rung(0, "batches", rungs.identical_batches, {UPDATES: 0.0}),
    Rung(1, "scores", rungs.scores, {NATS: 3e-5}),  # 3.8e-6
    Rung(2, "loss", rungs.losses, {NATS: 5e-6}),  # 5.0e-7
    Rung(3, "gradients", rungs.gradients, {OF_RMS: 2e-5}),  # 2.3e-6
    Rung(4, "one step", rungs.one_step, {STEPS: 1e-3, OF_RMS: 4e-5}),  # 1.9e-4, 4.3e-6
    Rung(5, "curve", rungs.curve, {NATS: 6e-5, STEPS: 1.5e-4}),  # 1.3e-5, 6.4e-5
    # No text parts. Twice the tolerance of scores, since a token changes only where both that compete have moved.
    Rung(6, "texts", rungs.greedy, {NATS: 6e-5}),
    Rung(7, "adapters", rungs.adapters, {NATS: 3e-5}),  # 6.2e-6
    Rung(8, "resume", rungs.resumed, {MIXED: 0.0}),
    Rung(9, "handover", rungs.moved, {NATS: 3e-5}),  # 3.4e-6
    Rung(10, "vocabulary", rungs.vocabulary, {OF_RMS: 1e-5}),  # 1.5e-6
    Rung(11, "policy", policy, {OF_RMS: 1e-5}),  # 2.2e-6
)
ALL = frozenset(rung.number for rung in RUNGS)
OF_A_MODEL = frozenset({0, 1, 2, 3, 6})  # those that fit where the model's training does


@dataclass(frozen=True, slots=True)
class Reading:
    """What one variant of a rung gave."""

    number: int
    name: str
    variant: str
    error: float
    control: float
    unit: str
    tolerance: float | None  # None: a tenth of the control
    seconds: float
    note: str = ""

    @property
    def passed(self) -> bool:
        """Never where a figure is NaN."""
        if self.tolerance is None:
            return self.error < self.control / MARGIN
        return self.error <= self.tolerance and self.control > MARGIN * self.tolerance

    def as_json(self) -> dict[str, object]:
        """A figure that is not finite is null."""
        figures = {name: value if math.isfinite(value) else None for name, value in self._figures().items()}
        names = {"number": self.number, "name": self.name, "variant": self.variant}
        rest = {"tolerance": self.tolerance, "unit": self.unit, "note": self.note, "passed": self.passed}
        return {**names, **figures, **rest}

    def _figures(self) -> dict[str, float]:
        return {"error": self.error, "control": self.control, "seconds": round(self.seconds, 2)}


def climb(bench: Bench, frozen: bool, numbers: Collection[int] = ALL) -> Iterator[Reading]:
    """The rungs, one after another, each reading as it is taken.

    With `frozen` the tolerances are RUNGS's, for the tiny models on a CPU in float32.
    """
    for rung in RUNGS:
        if rung.number not in numbers:
            continue
        start = time.monotonic()
        try:
            for found in rung.measure(bench):
                now = time.monotonic()
                yield _reading(rung, found, frozen, now - start)
                start = now
        except DivergedError as error:  # what a broken device gives; the other rungs say more about it
            nan = Measurement("", next(iter(rung.tolerances)), math.nan, math.nan, str(error))
            yield _reading(rung, nan, frozen, time.monotonic() - start)


def _reading(rung: Rung, found: Measurement, frozen: bool, seconds: float) -> Reading:
    tolerance = rung.tolerances[found.unit] if frozen or found.alone else None
    return Reading(
        rung.number, rung.name, found.variant, found.error, found.control, found.unit, tolerance, seconds, found.note
    )
