"""What a probe asks, costs and says, and when the pilot asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gsm8k_core.config.train import TrainConfig
from gsm8k_core.training.health import PROBE_ROWS, PROBE_TOKENS, Probe, telling
from gsm8k_core.training.pilot import Hooks, Past, RunPilot
from gsm8k_core.training.plan import PlanEvent
from gsm8k_core.types import (
    Batch,
    CollapsedError,
    Completion,
    DivergedError,
    Example,
    Sampling,
    StepEvent,
    UpdateStats,
)

HEALTHY = [*range(5, 37), *range(5, 37)]

END = 2
ROWS = [Example(f"train-{n}", (*range(10, 20 + n), END, 5), 6) for n in range(PROBE_ROWS)]  # a newline behind the end


class Model:
    """Writes what it is told; the end token of row n has log-probability -n, all else -50."""

    def __init__(self, written: Sequence[int], fails: bool = False) -> None:
        self.written, self.fails, self.asked = tuple(written), fails, list[Any]()

    def generate(self, prompts: Any, sampling: Sampling, on_token: Any) -> Iterator[tuple[int, Completion]]:
        self.asked.append((list(prompts), sampling))
        if self.fails:
            raise DivergedError("the model's logits are not finite")
        for index in reversed(range(len(prompts))):
            yield index, Completion(self.written[: sampling.max_new_tokens], "length")

    def score(self, batch: Batch) -> Any:
        log_p = np.full((1, batch.tokens.shape[1] - 1), -50.0, np.float32)
        place = batch.tokens[0].tolist().index(END)
        log_p[0, place - 1] = -(place - 10)
        return log_p


def look(model: Model, update: int = 25) -> Any:
    times = iter([10.0, 12.5])
    return Probe(ROWS, (END,), lambda tokens: "18", lambda: next(times))(update, model)


def test_the_probe_asks_a_few_prompts_for_a_few_tokens() -> None:
    model = Model(HEALTHY)
    event = look(model)
    ((prompts, sampling),) = model.asked
    assert prompts == [row.tokens[:6] for row in ROWS]
    assert sampling == Sampling(PROBE_TOKENS, PROBE_ROWS)
    assert (event.name, event.values["update"], event.values["seconds"]) == ("probe", 25, 2.5)
    assert event.values["warnings"] == []
    assert event.values["end_probability"] == pytest.approx(np.exp([0.0, -1.0, -2.0, -3.0]).mean())


def test_the_probe_warns_and_says_which_answer_shows_it() -> None:
    values = look(Model([7] * 64)).values
    (warning,) = values["warnings"]
    assert "one token in a row" in warning
    assert values["telling"] in range(PROBE_ROWS)
    assert values["texts"] == ["18"] * PROBE_ROWS
    assert "telling" not in look(Model(HEALTHY)).values


def test_a_warning_about_the_gold_answers_end_shows_no_answer() -> None:
    class Endless(Model):
        def score(self, batch: Batch) -> Any:
            return np.full((1, batch.tokens.shape[1] - 1), -50.0, np.float32)

    values = look(Endless(HEALTHY), 50).values
    assert "the end token has a probability" in values["warnings"][0]
    assert "telling" not in values


@pytest.mark.parametrize(
    ("bad", "place"),
    [([*[0] * 20, *range(3, 40)], 2), ([*range(3, 20), *[9] * 20], 1), ([3, 4, 5] * 20, 3)],
)
def test_the_answer_that_tells_most(bad: list[int], place: int) -> None:
    answers = [HEALTHY, HEALTHY[:40], HEALTHY[:50], HEALTHY[:60]]
    answers[place] = bad
    assert telling([Completion(tuple(tokens), "length") for tokens in answers]) == place


@pytest.mark.parametrize(
    ("model", "says", "damaged"),
    [(Model([0] * 64), "every answer is token 0", True), (Model([], True), "logits", False)],
)
def test_the_probe_ends_a_run_that_is_lost(model: Model, says: str, damaged: bool) -> None:
    with pytest.raises(CollapsedError, match=says) as caught:
        look(model, 50)
    assert (caught.value.update, caught.value.damaged) == (50, damaged)
    assert str(caught.value).startswith("update 50: probe: ")
    assert caught.value.exit_code == 5


# --- when the pilot asks ------------------------------------------------------------------------------------


class Steered:
    """A run of ten updates of one second each; a probe takes `cost` seconds."""

    def __init__(
        self,
        done: int = 0,
        cost: float = 0.0,
        lost_at: int = 99,
        until: float = 1e9,
        token: float = 0.5,  # the deadline is asked once in so many seconds
        **settings: Any,
    ) -> None:
        self.token = token
        self.now, self.done, self.cost, self.lost_at = float(done), done, cost, lost_at
        self.told: list[tuple[str, object]] = []
        self.seconds: list[object] = []  # of each update
        self.probed: list[int] = []
        hooks: Hooks[str] = Hooks(
            emit=self._emit,
            elapsed=lambda: self.now,
            interrupted=lambda: self.now >= until,
            save=self._save,
            keep_best=lambda update, live, result: self._save(update, live),
            probe=self._probe,
        )
        self.pilot = RunPilot(TrainConfig(**settings), hooks, Past([PlanEvent(0, 10)], [1.0] * done))

    def _emit(self, event: StepEvent) -> None:
        self.told.append((event.name, event.values["update"]))
        if event.name == "update":
            self.seconds.append(event.values["seconds"])

    def _save(self, update: int, live: str) -> Path:
        return Path(str(update))

    def _probe(self, update: int, live: str, deadline: Callable[[], bool]) -> StepEvent | None:
        assert live == "weights"
        self.probed.append(update)
        left = self.cost
        while left > 0:
            if deadline():
                return None
            self.now += min(self.token, left)
            left -= self.token
        if update >= self.lost_at:
            raise CollapsedError("lost", update=update)
        return StepEvent("probe", {"update": update})

    def run(self) -> Steered:
        for number in range(self.done + 1, 11):
            self.now += 1.0
            if self.pilot.after(UpdateStats(number, 1.0, 10, 16, 2.0, 0.1), "weights").stop:
                break
        return self


def test_the_probe_comes_when_it_is_due_and_after_the_last_update() -> None:
    assert Steered(probe_steps=4).run().probed == [4, 8, 10]
    assert Steered(probe_steps=5).run().probed == [5, 10]
    assert Steered(probe_steps=0).run().probed == []
    assert ("probe", 4) in Steered(probe_steps=4).run().told


def test_a_run_that_goes_on_is_probed_at_the_same_updates() -> None:
    assert Steered(done=5, probe_steps=4).run().probed == [8, 10]


def test_a_checkpoint_is_looked_at_before_it_is_written() -> None:
    told = Steered(probe_steps=4, save_steps=4).run().told
    assert told.index(("probe", 4)) < told.index(("save", 4))
    lost = Steered(probe_steps=4, save_steps=2, lost_at=4)
    with pytest.raises(CollapsedError):
        lost.run()
    assert [update for name, update in lost.told if name == "save"] == [2]


def test_the_probes_seconds_are_no_updates() -> None:
    assert Steered(probe_steps=2, cost=5.0).run().seconds == [1.0] * 10


def test_a_probe_leaves_the_time_that_the_end_needs() -> None:
    made = Steered(probe_steps=2, cost=3.0, max_time="11", batch_size=1, gradient_accumulation_steps=4).run()
    assert made.probed == [2, 4]  # at 6 and 8, 12 and 14 seconds are gone with them
    assert made.now <= 12


def test_a_first_probe_that_is_slow_ends_when_its_time_does() -> None:
    made = Steered(probe_steps=2, cost=68.0, max_time="30").run()
    assert made.now <= 30 + 1
    assert [name for name, update in made.told if update == 2] == ["update", "probe_skipped"]
    assert made.probed == [2]  # another would take as long


def test_a_first_probe_is_not_begun_where_as_many_rows_of_an_update_have_no_time() -> None:
    few: dict[str, Any] = {"probe_steps": 2, "cost": 0.5, "max_time": "2.7", "batch_size": 1}
    assert Steered(**few, gradient_accumulation_steps=16).run().probed == [2]
    assert Steered(**few, gradient_accumulation_steps=1).run().probed == []


def test_a_probe_asks_its_deadline_before_each_row_that_is_scored() -> None:
    asked: list[int] = []

    def late() -> bool:
        asked.append(1)
        return len(asked) > 2

    assert Probe(ROWS, (END,), lambda tokens: "18")(25, Model(HEALTHY), late) is None
    assert len(asked) == 3


def test_no_probe_after_a_signal() -> None:
    assert Steered(probe_steps=2, until=4.0).run().probed == [2]
