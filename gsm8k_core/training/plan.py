"""The plan of a run: how many updates it has, the rate of each, and what the clock and failures change about that.

All of it is pure: update numbers and records in, a rate or a decision out. Whoever has the records replays the run.

A PlanEvent is a change of the plan, kept in the checkpoints. An Adjustment is what a run changed about itself when
something failed, kept in its manifest: it outlives the checkpoint that the run went back to. What may follow a failure:

    in float16      what is not finite, with weights that are, may be no more than a number that float16 has no room
                    for: the weights are kept, and go on in float32, at the same rate. So do the base's, where its
                    answers show it before the first update
    not finite      the step was not applied, so the weights are those of the update before it: they are kept, and go
                    on at half the rate. Where the same update fails at once again, the weights themselves were the
                    trouble, and the same retry begins at the checkpoint before them. One retry a run.
    out of memory   half the padded tokens in a micro-batch, until each holds one row; the rows of an update stay what
                    they are
    collapsed       nothing: the weights are numbers, and no lower rate mends them. So it is with logits of a probe that
                    are not finite, but for float16, which may have no room for them
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any, Literal, TypeAlias

from gsm8k_core.config.train import GRPO_WARMUP, TrainConfig
from gsm8k_core.types import Choice, CollapsedError, DivergedError, GSM8KError, OutOfMemoryError

RATE_FACTOR = 0.5
NOTHING = Fraction(0)
ADJUSTMENTS = "adjustments"  # the manifest's key
Adjusted: TypeAlias = Literal["rate", "micro_batch_tokens", "dtype"]
NARROW, WIDE = "float16", "float32"  # the only compute dtype that has no room for large numbers, and what follows it


def rate_at(update: int, total: int, config: TrainConfig, since: int = 0, risen: Fraction = NOTHING) -> float:
    """The learning rate of update `update` of `total` (both from 1).

    It rises in equal steps to the peak over the first `warmup_ratio` of the updates, then falls in a line that
    would reach zero one update after the last, or stays. Where the plan was changed after update `since`, `risen` of
    the way to the peak was done by then, and the steps of this plan go on from there.
    """
    warmup = _warmup(total, config)
    steps = risen * warmup + (update - since)  # a Fraction: the same steps give the same rate, however often it changed
    full = _fallen(update, total, warmup, config)
    if steps > warmup:
        return full
    rising = config.learning_rate * float(steps) / warmup
    return rising if update <= warmup else min(rising, full)


def _warmup(total: int, config: TrainConfig) -> int:
    if config.recipe == "grpo":
        return GRPO_WARMUP
    return math.ceil(config.warmup_ratio * total)


def _fallen(update: int, total: int, warmup: int, config: TrainConfig) -> float:
    """The rate by its fall alone; before that begins, the peak."""
    if config.schedule == "constant" or update <= warmup:
        return config.learning_rate
    return config.learning_rate * max(total - update + 1, 0) / (total - warmup + 1 if warmup else total)


def planned_rate(update: int, events: Sequence[PlanEvent], config: TrainConfig) -> float:
    """The learning rate of `update` in a run whose plan, with its changes, is `events`: of those numbers alone.

    The warm-up goes on where a change finds it, in the steps of the new plan. It is never begun again, and never cut:
    a plan of thousands of updates that the clock makes one of sixty has still a rise to the peak before it.
    """
    plan, risen = events[0], NOTHING
    for event in events[1:]:
        if event.update >= update:
            break
        warmup = _warmup(plan.total, config)
        risen = min(risen + Fraction(event.update - plan.update, warmup), Fraction(1)) if warmup else Fraction(1)
        plan = event
    return plan.rate_factor * rate_at(update, plan.total, config, plan.update, risen)


@dataclass(frozen=True, slots=True)
class PlanEvent:
    """From the update after `update` on, the run has `total` updates, and its rate is multiplied by `rate_factor`."""

    update: int
    total: int
    rate_factor: float = 1.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PlanEvent:
        return cls(values["update"], values["total"], values.get("rate_factor", 1.0))


def with_event(events: Sequence[PlanEvent], update: int, **values: Any) -> list[PlanEvent]:
    """The events with one more after `update`, from which on `values` hold, in those that lie ahead as well.

    Some may: a change of the rate whose checkpoint was damaged since, so that the run goes on from an older one.
    """
    before = [event for event in events if event.update <= update]
    ahead = [replace(event, **values) for event in events[len(before) :]]
    return [*before, replace(before[-1], update=update, **values), *ahead]


@dataclass(frozen=True, slots=True)
class Adjustment:
    """One thing that a run changed about itself: from the update after `update` on."""

    what: Adjusted
    update: int
    value: float | str  # of the rate: what it is multiplied by; of the dtype: its name; else padded tokens
    why: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def adjustments_of(manifest: Mapping[str, Any]) -> list[Adjustment]:
    """Those of a run, oldest first."""
    return [Adjustment(**values) for values in manifest.get(ADJUSTMENTS, ())]


def replay(events: Sequence[PlanEvent], adjustments: Sequence[Adjustment]) -> list[PlanEvent]:
    """The plan of a checkpoint, with the last change of the rate where the checkpoint was written before it."""
    rates = _of_the_rate(adjustments)
    if not rates or any(event.rate_factor == rates[-1].value for event in events):
        return list(events)
    return with_event(events, rates[-1].update, rate_factor=rates[-1].value)


def dtype_of(adjustments: Sequence[Adjustment]) -> Choice | None:
    """The compute dtype that a run found out by itself; None where it changed none."""
    found = [one for one in adjustments if one.what == "dtype"]
    return Choice(str(found[-1].value), f"{NARROW} had no room after update {found[-1].update}") if found else None


def _of_the_rate(adjustments: Sequence[Adjustment]) -> list[Adjustment]:
    return [one for one in adjustments if one.what == "rate"]


@dataclass(frozen=True, slots=True)
class Change:
    """What a run is to change after a failure, and how it goes on: from its newest whole checkpoint."""

    what: Adjusted
    value: float | str  # as an Adjustment's
    why: str
    save: bool = False  # a checkpoint of the weights first: they are newer than what the segment began with
    before: int | None = None  # checkpoints of this update and later ones are not gone on from: they led to the failure

    def at(self, update: int) -> Adjustment:
        """The record of it, where the run goes on after `update`."""
        return Adjustment(self.what, update, self.value, self.why)


def after_failure(
    error: GSM8KError,
    *,
    adjustments: Sequence[Adjustment],
    begun: int,
    done: int,
    tokens: int,
    widest: int,
    update_size: int,
    dtype: str,
) -> Change | None:
    """What to change after `error` came in the update after `done`; None when nothing is left to try.

    `adjustments` are those of the run so far, `begun` the updates that were done when this segment began. `tokens` are
    the padded tokens at most in a micro-batch, `widest` those of the longest row; an update has `update_size` rows, and
    is computed in `dtype`.
    """
    if isinstance(error, OutOfMemoryError):
        fewer = fewer_tokens(tokens, widest, update_size)
        return None if fewer is None else Change("micro_batch_tokens", fewer, str(error), save=done > begun)
    if (change := wider(error, dtype, save=done > begun)) is not None:
        return change
    if isinstance(error, CollapsedError) or not isinstance(error, DivergedError):
        return None
    halved = [one.update for one in _of_the_rate(adjustments)]
    if not halved:
        return Change("rate", RATE_FACTOR, str(error), save=done > begun)
    if halved == [done] and begun == done > 0:  # the retry failed at once, and there may be an older checkpoint
        return Change("rate", RATE_FACTOR, f"its weights were the trouble: {error}", before=done)
    return None


def wider(error: GSM8KError, dtype: str, save: bool = False) -> Change | None:
    """To go on in float32, where `error` may be no more than a number that float16 has no room for."""
    if dtype != NARROW or not isinstance(error, DivergedError) or error.damaged:
        return None
    return Change("dtype", WIDE, str(error), save)


def fewer_tokens(tokens: int, widest: int, update_size: int) -> int | None:
    """Half the padded tokens of a micro-batch, or None where each micro-batch is one row already.

    `widest` is the padded width of the longest row: a micro-batch of it alone is the smallest peak there is. An update
    of `update_size` rows never filled more than that many of it, so that is what is halved.
    """
    filled = min(tokens, widest * update_size)
    return max(filled // 2, widest) if filled > widest else None


def as_choice(tokens: int, why: str) -> Choice:
    """The padded tokens of a micro-batch that had no room."""
    return Choice(str(tokens), f"padded tokens at most in a micro-batch; {why}")
