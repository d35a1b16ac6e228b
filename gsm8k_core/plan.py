"""The plan of a run: how many updates it has, what the clock and failures changed about that, and the rate of each.

A pure function of update numbers: whoever has the events replays the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from gsm8k_core.config import TrainConfig


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
