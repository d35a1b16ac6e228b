"""The run's only decision maker: the rate of each update, and when to save and to stop.

The rate depends on update numbers only, never on a clock, so that a run can be replayed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from gsm8k_core.config import TrainConfig
from gsm8k_core.types import Orders, StepEvent, UpdateStats

STOP_BUDGET = "budget"
STOP_INTERRUPTED = "interrupted"


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


class Saver(Protocol):
    """The part of a live model that is used here."""

    def save(self, directory: Path) -> None: ...


class RunPilot:
    """Steers one run. Seconds come from `elapsed`, which counts from the start of the process."""

    def __init__(
        self,
        config: TrainConfig,
        total: int,
        *,
        emit: Callable[[StepEvent], None],
        elapsed: Callable[[], float],
        reserve: float,
        interrupted: Callable[[], bool],
        checkpoints: Path,
    ) -> None:
        self._config, self._total = config, total
        self._emit, self._elapsed, self._interrupted = emit, elapsed, interrupted
        self._reserve, self._checkpoints = reserve, checkpoints
        self._before = elapsed()
        self._longest = 0.0
        self._seconds = 0.0
        self.losses: list[float] = []

    def rate(self, update: int) -> float:
        return rate_at(update, self._total, self._config)

    def after(self, stats: UpdateStats, live: Saver) -> Orders:
        """Report the update, save when it is due, and end the run before the budget does."""
        now = self._elapsed()
        seconds, self._before = now - self._before, now
        self._longest = max(self._longest, seconds)
        self._seconds += seconds
        self.losses.append(stats.loss)
        self._emit(StepEvent("update", self._values(stats, seconds, now)))
        every = self._config.save_steps
        if every and stats.update % every == 0 and stats.update < self._total:
            self._save(stats.update, live)
        return Orders(stop=self._stop(stats.update))

    def _values(self, stats: UpdateStats, seconds: float, now: float) -> dict[str, object]:
        return {
            "update": stats.update,
            "loss": stats.loss,
            "num_targets": stats.num_targets,
            "num_tokens": stats.num_tokens,
            "grad_norm": stats.grad_norm,
            "rate": stats.rate,
            "seconds": seconds,
            "elapsed": now,
            "eta": self._seconds / len(self.losses) * (self._total - stats.update),
            "total": self._total,
        }

    def _save(self, update: int, live: Saver) -> None:
        directory = self._checkpoints / f"update-{update:06d}"
        live.save(directory)
        self._emit(StepEvent("save", {"update": update, "folder": str(directory)}))

    def _stop(self, update: int) -> str | None:
        if update >= self._total:
            return None
        if self._interrupted():
            return STOP_INTERRUPTED
        # Another update as long as the longest so far must still fit before the model is saved.
        if self._elapsed() + self._longest + self._reserve > self._config.budget_seconds:
            return STOP_BUDGET
        return None
