"""A run whose clock moves only when work is done: what the pilot's tests steer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gsm8k_core.config.train import TrainConfig
from gsm8k_core.training.measure import DevResult, Guard
from gsm8k_core.training.pilot import Hooks, Past, RunPilot
from gsm8k_core.training.plan import PlanEvent
from gsm8k_core.training.rollout_pace import RolloutPace
from gsm8k_core.types import StepEvent, UpdateStats

LIVE = object()
TIMES = ("seconds", "elapsed", "eta")


def dev(correct: int = 1, loss: float = 1.0) -> DevResult:
    return DevResult(loss, 100, {"strict": 0, "flexible": correct, "robust": 0}, 10, 5, 0.25)


class Simulation:
    """A run whose work takes the seconds that it is told; as a backend, it does what the pilot orders."""

    def __init__(
        self,
        total: int = 10,
        *,
        update: Callable[[int], float] = lambda number: 1.0,
        save: float = 0.0,
        keep: float = 0.0,
        evaluation: float = 0.0,
        token: float = 0.5,  # the deadline is asked once in so many seconds
        final: float = 0.0,
        save_reserve: float | None = None,  # what the pilot is told; the truth if nothing else
        results: Callable[[int], DevResult] = lambda number: dev(),
        signal_at: float = float("inf"),
        past: dict[str, Any] | None = None,
        plan: tuple[PlanEvent, ...] | None = None,
        offset: float = 0.0,
        tokens: Sequence[int] = (),
        guard: Guard | None = None,
        sleep: Callable[[int], float] = lambda number: 0.0,  # how long the machine sleeps in that update
        rehearsed: float = 0.0,  # what the pilot is told of a padded token; 0: nothing
        probe: float | None = None,  # seconds; None: there is none
        stops: Callable[[Guard], str | None] = lambda guard: None,
        pace: RolloutPace | None = None,
        **settings: Any,
    ) -> None:
        self.now, self.signal_at = offset, signal_at
        self.events: list[StepEvent] = []
        self.checkpoints: dict[int, dict[str, Any]] = {}
        self.kept: list[int] = []
        self.evaluated: list[int] = []
        self.orders: dict[int, str | None] = {}
        self.update_seconds, self.save_seconds, self.keep_seconds = update, save, keep
        self.evaluation, self.token, self.final, self.results = evaluation, token, final, results
        self.sleep, self.slept, self.probe, self.begun = sleep, 0.0, probe or 0.0, True
        past = past or {"events": [PlanEvent(0, total).as_json()], "losses": [], "best": None}
        hooks: Hooks[object] = Hooks(
            emit=self.events.append,
            elapsed=lambda: self.now,
            interrupted=lambda: self.now >= self.signal_at,
            save=self._save,
            keep_best=self._keep,
            slept=lambda: self.slept,
            evaluate=self._evaluate,
            answer=self._evaluate,
            probe=None if probe is None else self._probe,
            stops=stops,
        )
        brought = Past(
            plan or [PlanEvent.from_json(event) for event in past["events"]],
            past["losses"],
            past["best"],
            guard or Guard.from_json(past.get("guard", Guard().as_json())),
            tokens=tokens,
            rehearsed=rehearsed,
            reserve=final,
            save_reserve=save if save_reserve is None else save_reserve,
            pace=pace,
        )
        self.pilot = RunPilot(TrainConfig(**{"save_steps": 0, **settings}), hooks, brought)
        self.done = len(past["losses"])

    def _save(self, update: int, live: object) -> Path:
        assert live is LIVE
        assert update not in self.checkpoints
        self.now += self.save_seconds
        self.checkpoints[update] = json.loads(json.dumps(self.pilot.as_json(), allow_nan=False))
        return Path(f"checkpoints/{update}")

    def _keep(self, update: int, live: object, result: DevResult) -> Path:
        self.now += self.keep_seconds
        self.kept.append(update)
        return Path("best")

    def _evaluate(self, live: object, deadline: Callable[[], bool]) -> DevResult | None:
        self.evaluated.append(self.done)
        left = self.evaluation
        while left > 0:
            if deadline():
                return None
            self.now += min(self.token, left)
            left -= self.token
        return self.results(self.done)

    def _probe(self, update: int, live: object, deadline: Callable[[], bool]) -> StepEvent | None:
        left = self.probe
        while left > 0:
            if deadline():
                return None
            self.now += min(self.token, left)
            left -= self.token
        return StepEvent("probe", {"update": update})

    def run(self) -> Simulation:
        self.begun = self.pilot.begin()
        if not self.begun:
            return self  # a new run leaves nothing, and another one its checkpoint as the model
        for number in range(self.done + 1, self.pilot.asked + 1):
            self.now += self.update_seconds(number) + self.sleep(number)
            self.slept += self.sleep(number)
            self.done = number
            stats = UpdateStats(number, 1 / number, 10, 16, 2.0, self.pilot.rate(number))
            self.orders[number] = self.pilot.after(stats, LIVE).stop
            if self.orders[number]:
                break
        self.now += self.final
        return self

    def names(self, *names: str) -> list[tuple[str, object]]:
        return [(event.name, event.values["update"]) for event in self.events if event.name in names]

    def values(self, name: str, key: str) -> list[Any]:
        return [event.values[key] for event in self.events if event.name == name]

    def without_times(self, after: int) -> list[tuple[str, dict[str, object]]]:
        """The events of later updates; how long all would take is said anew in each process."""
        return [
            (event.name, {key: value for key, value in event.values.items() if key not in TIMES})
            for event in self.events
            if event.values["update"] > after and event.name != "estimate"  # type: ignore[operator]
        ]
