"""The run's only decision maker: the rate of each update, and when to evaluate, to save and to stop.

The rate depends on update numbers and the plan only, never on a clock, so that a run can be replayed.

The budget, in words. After an update, the run goes on only when another one, as long as the longest so far, leaves
time for what must follow it: a checkpoint (none after the last update), then the final model. A checkpoint is taken
to need as long as the longest one so far, `save_reserve` before there is one; the final model `reserve`, or as long
as the longest save of a best model if that was more. What was measured in an earlier process is measured again.

An evaluation gets what is left after all of that and one save of a best model, on the way only half of it: what it
will cost is not known beforehand, and it must not eat up the training. One that did not fit is not tried again with
as little time or less. One that a signal ends is not made up for when the run goes on: its weights are gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from gsm8k_core.config import TrainConfig
from gsm8k_core.dev import Deadline, DevResult
from gsm8k_core.types import Orders, StepEvent, UpdateStats

STOP_BUDGET = "budget"
STOP_INTERRUPTED = "interrupted"
SHARE_ON_THE_WAY = 0.5

Live = TypeVar("Live")  # the weights in training: only handed on, so core needs to know nothing of them
Save = Callable[[int, Live], Path]
Evaluate = Callable[[Live, Deadline], DevResult | None]
Probe = Callable[[int, Live], StepEvent]


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


@dataclass(slots=True)
class _Times:
    """Seconds that one kind of work took in this process; `guess` until one was measured."""

    guess: float = 0.0
    num: int = 0
    total: float = 0.0
    longest: float = 0.0
    shortest: float = math.inf

    def add(self, seconds: float) -> None:
        self.num += 1
        self.total += seconds
        self.longest, self.shortest = max(self.longest, seconds), min(self.shortest, seconds)

    @property
    def mean(self) -> float:
        return self.total / self.num if self.num else self.guess

    @property
    def most(self) -> float:
        return self.longest if self.num else self.guess

    @property
    def least(self) -> float:
        return self.shortest if self.num else 0.0


class RunPilot(Generic[Live]):
    """Steers one run, or what is left of it. `elapsed` counts all of the run's seconds, earlier processes included."""

    def __init__(
        self,
        config: TrainConfig,
        events: Sequence[PlanEvent],
        *,
        emit: Callable[[StepEvent], None],
        elapsed: Callable[[], float],
        interrupted: Callable[[], bool],
        save: Save[Live],
        keep_best: Save[Live],
        evaluate: Evaluate[Live] | None,
        reserve: float,
        save_reserve: float,
        losses: Sequence[float] = (),
        best: Mapping[str, Any] | None = None,
        probe: Probe[Live] | None = None,
    ) -> None:
        """`losses` and `best` are those of as_json() in the checkpoint that the run goes on from.

        `probe` gives its event, or raises CollapsedError, which ends the run.
        """
        numbers = [event.update for event in events]
        if not numbers or numbers[0] != 0 or numbers != sorted(numbers):
            raise ValueError(f"a plan begins at update 0 and goes forward, not {numbers}")
        self._config, self._events = config, tuple(events)
        self._emit, self._elapsed, self._interrupted = emit, elapsed, interrupted
        self._save_to, self._keep_best, self._reserve = save, keep_best, reserve
        self._evaluate = evaluate if config.eval_steps else None
        self._probe = probe if config.probe_steps else None
        self._updates, self._devs, self._probes = _Times(), _Times(), _Times()
        self._saves, self._keeps = _Times(guess=save_reserve), _Times(guess=reserve)
        self._too_short = 0.0  # the longest time that was not enough for an evaluation
        self._fits = True  # whether the last one that was due had enough
        self._saved = 0  # the update of the newest checkpoint of this process
        self._before = elapsed()
        self.losses = list(losses)
        self.best = None if best is None else (int(best["update"]), DevResult.from_json(best["result"]))

    @property
    def total(self) -> int:
        """Updates in the whole run, as planned now."""
        return self._events[-1].total

    def rate(self, update: int) -> float:
        event = next(event for event in reversed(self._events) if event.update < update)
        return event.rate_factor * rate_at(update, event.total, self._config)

    def as_json(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that another pilot goes on from here."""
        best = self.best and {"update": self.best[0], "result": self.best[1].as_json()}
        return {"events": [event.as_json() for event in self._events], "losses": list(self.losses), "best": best}

    def after(self, stats: UpdateStats, live: Live) -> Orders:
        """Report the update, evaluate and save when it is due, and end the run before the budget does."""
        now, update = self._elapsed(), stats.update
        self._updates.add(now - self._before)
        self.losses.append(stats.loss)
        self._emit(StepEvent("update", self._values(stats, now - self._before, now)))
        # In this order: nothing that a probe ends is kept, and a checkpoint holds the best of its own update as well.
        if self._probe and (update % self._config.probe_steps == 0 or update == self.total):
            self._look(update, live, self._probe)
        if self._evaluate and (update % self._config.eval_steps == 0 or update == self.total):
            self._measure(update, live, self._evaluate)
        every = self._config.save_steps
        if every and update % every == 0 and update < self.total:
            self._save(update, live)
        stop = self._stop(update)
        if stop and self._saved != update:
            self._save(update, live)
        self._before = self._elapsed()
        return Orders(stop=stop)

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
            "eta": self._eta(stats.update),
            "total": self.total,
        }

    def _eta(self, update: int) -> float:
        """Seconds to the end of training, with the evaluations and checkpoints that are due, this update's too."""
        num_saves = _due(self._config.save_steps, update, self.total - 1)
        seconds = self._updates.mean * (self.total - update) + self._saves.mean * num_saves
        if self._evaluate and self._fits:
            every = self._config.eval_steps
            num_devs = _due(every, update, self.total) + (self.total % every > 0)
            seconds += num_devs * (self._devs.mean + self._keeps.total / max(self._devs.num, 1))
        return seconds

    def _look(self, update: int, live: Live, probe: Probe[Live]) -> None:
        """Ask the probe, unless the run is to end or there is no time for it."""
        before = self._elapsed()
        needed = self._probes.most + self._ending(update)
        if not self._interrupted() and before + needed <= self._config.budget_seconds:
            event = probe(update, live)
            self._probes.add(self._elapsed() - before)
            self._emit(event)

    def _measure(self, update: int, live: Live, evaluate: Evaluate[Live]) -> None:
        room = self._room(update)
        result = self._try(live, evaluate, room)
        if result is not None:
            self._fits = True
            self._emit(StepEvent("dev", {"update": update, **result.values()}))
            if self.best is None or result.better_than(self.best[1]):
                self._keep(update, live, result)
        elif self._interrupted():
            self._emit(StepEvent("dev_skipped", {"update": update, "reason": STOP_INTERRUPTED}))
        else:
            self._fits, self._too_short = False, max(self._too_short, room)
            self._emit(StepEvent("dev_skipped", {"update": update, "reason": STOP_BUDGET}))

    def _try(self, live: Live, evaluate: Evaluate[Live], room: float) -> DevResult | None:
        before = self._elapsed()
        if self._interrupted() or room <= self._too_short or room < self._devs.least:
            return None
        result = evaluate(live, lambda: self._interrupted() or self._elapsed() - before >= room)
        if result is not None:
            self._devs.add(self._elapsed() - before)
        return result

    def _room(self, update: int) -> float:
        """Seconds that an evaluation may take now."""
        # An update's time is left as well: one batch or one token past the deadline takes no longer than that.
        needed = self._updates.most + self._keeps.most + self._ending(update)
        room = self._config.budget_seconds - self._elapsed() - needed
        return room if update >= self.total else SHARE_ON_THE_WAY * room

    def _ending(self, update: int) -> float:
        """Seconds that have to be left where training ends after `update`."""
        return max(self._reserve, self._keeps.longest) + (self._saves.most if update < self.total else 0.0)

    def _keep(self, update: int, live: Live, result: DevResult) -> None:
        before = self._elapsed()
        folder = self._keep_best(update, live)
        self._keeps.add(self._elapsed() - before)
        self.best = (update, result)
        self._emit(StepEvent("best", {"update": update, "accuracy": result.accuracy, "folder": str(folder)}))

    def _save(self, update: int, live: Live) -> None:
        before = self._elapsed()
        folder = self._save_to(update, live)
        seconds = self._elapsed() - before
        self._saves.add(seconds)
        self._saved = update
        self._emit(StepEvent("save", {"update": update, "folder": str(folder), "seconds": seconds}))

    def _stop(self, update: int) -> str | None:
        if update >= self.total:
            return None
        if self._interrupted():
            return STOP_INTERRUPTED
        if self._elapsed() + self._updates.most + self._ending(update + 1) > self._config.budget_seconds:
            return STOP_BUDGET
        return None


def _due(every: int, first: int, last: int) -> int:
    """How many numbers from `first` to `last` are multiples of `every`; none of 0."""
    return max(last // every - (first - 1) // every, 0) if every else 0
