"""The plan of a run: how many updates it has, what the clock and failures changed about that, and the rate of each.

A pure function of update numbers: whoever has the events replays the run.

What a run changed about itself when something failed: kept in its manifest, replayed when it goes on.

Two things can be changed. The rate, after a loss or a gradient that was not finite: half of it, once in a run. And the
padded tokens of a micro-batch, after memory ran out: half of them, as often as there is something to halve; the rows
of an update stay what they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from gsm8k_core.config.train import TrainConfig
from gsm8k_core.types import Choice


def rate_at(update: int, total: int, config: TrainConfig) -> float:
    """The learning rate of update `update` of `total` (both from 1).

    It rises in equal steps to the peak over the first `warmup_ratio` of the updates, then falls in a line that
    would reach zero one update after the last, or stays.
    """
    warmup = math.ceil(config.warmup_ratio * total)
    if update <= warmup:
        return config.learning_rate * update / warmup
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * max(total - update + 1, 0) / (total - warmup + 1 if warmup else total)


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


def changed(events: Sequence[PlanEvent], update: int, **values: Any) -> list[PlanEvent]:
    """The events with one more after `update`, from which on `values` hold, in those that lie ahead as well.

    Some may: a change of the rate whose checkpoint was damaged since, so that the run goes on from an older one.
    """
    before = [event for event in events if event.update <= update]
    ahead = [replace(event, **values) for event in events[len(before) :]]
    return [*before, replace(before[-1], update=update, **values), *ahead]


RATE_FACTOR = 0.5
ADJUSTMENTS = "adjustments"  # the manifest's key


@dataclass(frozen=True, slots=True)
class Adjustment:
    """One change: from the update after `update` on."""

    what: Literal["rate", "micro_batch_tokens"]
    update: int
    value: float  # of the rate: what it is multiplied by; else padded tokens
    why: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def recorded(manifest: Mapping[str, Any]) -> list[Adjustment]:
    """Those of a run, oldest first."""
    return [Adjustment(**values) for values in manifest.get(ADJUSTMENTS, ())]


def halved(adjustments: Iterable[Adjustment]) -> Adjustment | None:
    """The last change of the rate, if there was one."""
    return next((one for one in reversed(list(adjustments)) if one.what == "rate"), None)


def planned(events: Sequence[PlanEvent], adjustments: Sequence[Adjustment]) -> list[PlanEvent]:
    """The plan of a checkpoint, with the last change of the rate where the checkpoint was written before it."""
    change = halved(adjustments)
    if change is None or any(event.rate_factor == change.value for event in events):
        return list(events)
    return changed(events, change.update, rate_factor=change.value)


def smaller(tokens: int, widest: int, update_size: int) -> int | None:
    """Half the padded tokens of a micro-batch, or None where each micro-batch is one row already.

    `widest` is the padded width of the longest row: a micro-batch of it alone is the smallest peak there is. An update
    of `update_size` rows never filled more than that many of it, so that is what is halved.
    """
    filled = min(tokens, widest * update_size)
    return max(filled // 2, widest) if filled > widest else None


def as_choice(tokens: int, why: str) -> Choice:
    """The padded tokens of a micro-batch after memory ran out."""
    return Choice(str(tokens), f"padded tokens at most in a micro-batch; {why}")
