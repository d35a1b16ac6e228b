"""What the rounds decide about their time, with a clock that the test turns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from gsm8k_core.config.train import TrainConfig
from gsm8k_core.rollouts.progress import Progress, Timed
from gsm8k_core.types import Choice
from verbs.train.rounds import Rounds
from verbs.train.sampler import Sampler


@dataclass
class Rows:
    examples: list[Any] = field(default_factory=list)


@dataclass
class Job:
    """Of verbs/train/start.py, what the clock asks: a row has 10 padded tokens, and one epoch is trained."""

    config: TrainConfig
    rows: Rows = field(default_factory=Rows)
    seconds: float = 0.0

    def tokens(self, max_tokens: int) -> Iterator[int]:
        return iter([10] * len(self.rows.examples))


def made(config: TrainConfig, **known: Any) -> Rounds:
    """Rounds without a model and without a folder."""
    rounds = object.__new__(Rounds)
    nothing = {"after": 0.0, "reserve": 0.0, "opening": 0.0, "pace": 0.0, "progress": Progress(), "answers": {}}
    for name, value in ({"job": Job(config)} | nothing | known).items():
        setattr(rounds, name, value)
    return rounds


@pytest.mark.parametrize(
    ("more", "end"),
    [
        ({}, 800 - 1.25 * 200),  # 20 rows of 10 tokens, a second each
        ({"reserve": 30.0}, 520),
        ({"opening": 20.0}, 525),
        ({"after": 10.0}, 530),  # the end is earlier by it, and the guard after a quarter takes as long
        ({"pace": 0.1}, 650),  # the half of the rest that is not touched
        ({"opening": 300.0}, 500),
    ],
)
def test_a_longer_sampling_leaves_time_for_all_that_follows(
    more: dict[str, float], end: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rounds, "_rows", lambda self: [None] * 20)
    progress = Progress().with_decision("rounds", Choice("1", ""))
    model = SimpleNamespace(micro_batch_tokens=64)
    rounds = made(TrainConfig(max_time="800"), progress=progress, model=model, **{"pace": 1.0, **more})
    assert rounds._sampling_end(1, Timed("sample-1", 0.0, 500.0, 800.0)) == pytest.approx(end)


def test_another_end_is_asked_for_once_and_when_the_planned_one_has_come() -> None:
    now, asked = [0.0], []

    def later() -> float:
        asked.append(now[0])
        return 7.0

    job: Any = SimpleNamespace(rows=SimpleNamespace(asked=[]))
    sampler = Sampler(job, SimpleNamespace(), lambda: now[0], lambda: False, lambda: "steps", until=5.0, later=later)  # type: ignore[arg-type]
    late = []
    for moment in (1.0, 4.9, 5.0, 6.9, 7.0, 9.0):
        now[0] = moment
        late.append(sampler._late())
    assert late == [False, False, False, False, True, True]
    assert asked == [5.0]


def test_the_number_of_rounds_and_the_end_of_the_first_are_written_together() -> None:
    written: list[dict[str, Any]] = []
    said: list[str] = []
    rounds = made(
        TrainConfig(max_time="1000"),
        progress=Progress(phase=Timed("sample-1", 0.0, 500.0, 1000.0)).with_decision("warm", Choice("off", "")),
        run=SimpleNamespace(record=lambda rft: written.append(rft)),
        context=SimpleNamespace(elapsed=lambda: 10.0, terminal=SimpleNamespace(say=said.append)),
        sampler=SimpleNamespace(problems=[None] * 100),
    )
    answers: list[Any] = [SimpleNamespace(seconds=10.0)] * 64
    assert rounds.progress.phase is not None
    timed = rounds._decide_rounds(answers, rounds.progress.phase)
    assert [each["decisions"]["rounds"]["name"] for each in written] == ["2"]
    assert written[0]["phase"]["end"] == timed.end == 250.0
    assert len(said) == 1
