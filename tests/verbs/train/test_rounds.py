"""What the rounds decide about their time, with a clock that the test turns."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gsm8k_core.config.train import TrainConfig
from gsm8k_core.rollouts.progress import Progress, Timed
from gsm8k_core.rollouts.record import RECORDS, SELECTED, Appender, judged
from gsm8k_core.rollouts.selection import as_lines
from gsm8k_core.training import checkpoints
from gsm8k_core.training.runs import Run
from gsm8k_core.types import Choice, Completion, DataError, DeviceLostError, OutOfMemoryError, UsageError
from tests.core.rollouts.script import END, NO_STEP, RIGHT, decode, encode, problem
from verbs.link import Link
from verbs.train import rounds as train_rounds
from verbs.train import start
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
    nothing: dict[str, Any] = dict.fromkeys(("after", "reserve", "opening", "update", "pace"), 0.0)
    nothing |= {"progress": Progress(), "answers": {}, "kept": {}}
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
        ({"update": 8.0}, 550),  # one of the updates, which the end is earlier by
    ],
)
def test_a_longer_sampling_leaves_time_for_all_that_follows(
    more: dict[str, float], end: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rounds, "_mixed", lambda self: [None] * 20)
    progress = Progress().with_decision("rounds", Choice("1", ""))
    model = SimpleNamespace(micro_batch_tokens=64)
    rounds = made(TrainConfig(max_time="800"), progress=progress, model=model, **{"pace": 1.0, **more})
    assert rounds._sampling_end(1, Timed("sample-1", 0.0, 500.0, 800.0)) == pytest.approx(end)


def test_the_phases_before_it_leave_the_last_training_its_opening_one_update_and_the_save() -> None:
    assert made(TrainConfig(max_time="100"), after=10.0, reserve=5.0, opening=4.0, update=8.0)._end == 70.0


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


def answer(gold_right: bool, chain: tuple[str, ...] = ()) -> Any:
    return SimpleNamespace(verdict=SimpleNamespace(gold_right=gold_right, chain=chain))


def test_a_round_is_not_planned_by_answers_that_were_not_there() -> None:
    said: list[str] = []
    rounds = made(
        TrainConfig(max_time="16"),
        run=SimpleNamespace(record=lambda rft: None),
        context=SimpleNamespace(elapsed=lambda: 10.0, terminal=SimpleNamespace(say=said.append)),
        sampler=SimpleNamespace(problems=[None] * 100),
    )
    rounds._decide_rounds([], Timed("sample-1", 9.0, 9.0, 16.0))
    assert said == ["rounds   1: no answer had time to end"]


def test_what_a_flag_says_is_decided_before_the_first_answer_is_written() -> None:
    off = Choice("off", "")
    rounds = made(
        TrainConfig(recipe="rft", verify="gold", warm_start="off"),
        run=SimpleNamespace(record=lambda rft: None),
        context=SimpleNamespace(elapsed=lambda: 1.0, terminal=SimpleNamespace(say=lambda line: None), link=Link()),
        sampler=SimpleNamespace(choose_calculator=lambda: off, choose_together=lambda model: Choice("64", "")),
        model=None,
    )
    rounds._decide_what_is_asked_for()
    assert rounds.progress.mode == "gold"
    assert (rounds.progress.decided("warm"), rounds.progress.decided("rounds")) == ("off", None)


def test_how_answers_are_verified_is_decided_when_enough_are_right_or_the_first_wave_has_ended() -> None:
    context = SimpleNamespace(elapsed=lambda: 1.0, terminal=SimpleNamespace(say=lambda line: None))

    def decided(answers: list[Any], ended: bool = False, **settings: Any) -> str | None:
        run = SimpleNamespace(record=lambda rft: None)
        rounds = made(TrainConfig(**settings), run=run, context=context)
        rounds._decide_verify(answers, ended)
        return rounds.progress.decided("verify")

    few, enough = [answer(False)] * 60 + [answer(True)] * 4, [answer(False)] * 180 + [answer(True)] * 5
    assert decided(few) is None  # of a first block: what no step can be read in may come to be seen
    assert decided(enough) == "gold"
    assert decided([*enough, *[answer(True, ("2+3",))] * 9]) == "steps"
    assert decided(few, ended=True) == "steps"
    assert decided(few, verify="gold") == "gold"


@pytest.mark.parametrize(
    ("warm", "updates", "answers", "right", "decided", "goes_on"),
    [
        ("on", 3, 64, 1, "no", False),
        ("on", 3, 64, 2, "yes", True),
        ("on", 3, 0, 0, "open", False),  # nothing was heard: neither that it pays nor that it cannot
        ("on", 3, 63, 0, "open", False),
        ("on", 3, 63, 9, "open", True),
        ("on", 0, 64, 0, "open", False),  # the base, and no warm model
        ("off", None, 64, 0, None, True),
        ("off", None, 5, 0, "open", False),
    ],
)
def test_whether_sampling_pays_is_left_open_where_the_time_was_too_short_to_know(
    warm: str, updates: int | None, answers: int, right: int, decided: str | None, goes_on: bool
) -> None:
    progress = Progress().with_decision("warm", Choice(warm, ""))
    progress = progress if updates is None else progress.with_done("warm", updates)
    heard = [
        SimpleNamespace(verified=lambda mode, at=at: at < right, completion=SimpleNamespace(tokens=[1, 2]))
        for at in range(answers)
    ]
    rounds = made(
        TrainConfig(max_time="16"),
        progress=progress,
        answers={1: heard},
        run=SimpleNamespace(record=lambda rft: None),
        context=SimpleNamespace(elapsed=lambda: 1.0, terminal=SimpleNamespace(say=lambda line: None)),
        sampler=SimpleNamespace(num_first=64),
    )
    assert rounds._pays() == goes_on
    assert rounds.progress.decided("pays") == decided
    assert rounds.progress.left_open == (16.0 if decided == "open" else None)


def test_what_was_written_before_it_was_decided_by_what_answers_are_verified_says_so_when_the_round_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("_kept", {}), ("_human_chains", {}), ("_tell", None)):
        monkeypatch.setattr(Rounds, name, lambda *unused, value=value: value)
    answers = [
        judged(problem(f"train-{at}"), 0, Completion(encode(NO_STEP), "stop", END), decode, 1.0) for at in range(5)
    ]
    Appender(tmp_path / RECORDS, answers, lambda: "steps").close()
    rounds = made(
        TrainConfig(recipe="rft"),
        answers={1: answers},
        run=SimpleNamespace(record=lambda **values: None, manifest={}),
        context=SimpleNamespace(elapsed=lambda: 1.0, terminal=SimpleNamespace(say=lambda line: None)),
        sampler=SimpleNamespace(problems=[None] * 5),
    )
    rounds._close(1, tmp_path, Timed("sample-1", 0.0, 9.0, 9.0))
    assert rounds.progress.mode == "gold"
    said = [json.loads(line) for line in (tmp_path / RECORDS).read_text().splitlines()]
    assert [(row["verified"], row["reason"]) for row in said] == [(True, "")] * 5


def test_a_round_that_is_done_is_read_as_it_was_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an older version: what it kept stays the rows, whatever is verified today, and of which chain."""
    folder = tmp_path / "rollouts" / "round-1"
    folder.mkdir(parents=True)
    answers = [judged(problem("train-0"), at, Completion(encode(RIGHT), "stop", END), decode, 1.0) for at in range(3)]
    Appender(folder / RECORDS, answers, lambda: "steps").close()
    rows = [json.loads(line) | {"verified": False} for line in (folder / RECORDS).read_text().splitlines()]
    (folder / RECORDS).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / SELECTED).write_bytes(as_lines({"train-0": answers[:0:-1]}))
    monkeypatch.setattr(Sampler, "check_key", lambda *unused: None)
    rendering = SimpleNamespace(text=decode)
    source = SimpleNamespace(model=SimpleNamespace(vocabulary=200, rendering=rendering))
    job: Any = SimpleNamespace(rows=SimpleNamespace(asked=[(problem("train-0"), ())]), source=source)
    sampler = Sampler(job, SimpleNamespace(), lambda: 0.0, lambda: False, lambda: "steps")  # type: ignore[arg-type]
    progress, run = Progress(done=("sample-1",)), Run(tmp_path, {"rollouts": [{"round": 1, "answered": 3}]})
    rounds = made(TrainConfig(recipe="rft", keep=1), progress=progress, run=run, sampler=sampler)
    rounds._sample(1)
    assert [each.verified("steps") for each in rounds.answers[1]] == [False] * 3
    assert [each.verified("steps") for each in sampler.read(folder / RECORDS)] == [True] * 3
    assert [each.sample for each in rounds._kept()["train-0"]] == [2, 1]
    rounds.answers[2] = [answers[0]]  # of a round that is not done
    assert [each.sample for each in rounds._kept()["train-0"]] == [0]


def test_own_answers_alone_are_not_replaced_by_human_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rounds, "_mixed", lambda self: [])
    run = SimpleNamespace(folder="runs/x")
    known: dict[str, Any] = {"run": run, "answers": {1: [None] * 9}}
    with pytest.raises(DataError, match=r"none of 9 answers could be kept.*--mix both, or --warm-start on"):
        made(TrainConfig(recipe="rft", mix="own"), **known)._rows()
    assert made(TrainConfig(recipe="rft"), **known)._rows() == []
    known["progress"] = Progress(left_open=540.0).with_decision("pays", Choice("open", "no time"))
    with pytest.raises(DataError, match=r"; --resume it with --max-time 18m or more, or start a new run with --mix bo"):
        made(TrainConfig(recipe="rft", mix="own"), **known)._rows()


def test_what_a_short_time_left_open_is_taken_up_without_what_the_run_made_of_it(tmp_path: Path) -> None:
    """And with all that a person laid beside it. model/ stays, and no score is of the training that begins."""
    gone = ("rollouts/round-1", "rollouts/round-12", "checkpoints/update-000003", "checkpoints/update-000003-2", "best")
    stays = ("rollouts/round-1.mine", "rollouts/round-01", "rollouts/base", "checkpoints/update-000003.mine", "model")
    for name in (*gone, *stays):
        (tmp_path / name).mkdir(parents=True)
    said: list[str] = []
    known = {"best": {"update": 2}, "model_save": "a", "adjustments": [{"what": "rate"}, {"what": "dtype"}]}
    rounds = made(
        TrainConfig(max_time="18m"),
        progress=Progress(left_open=540.0, done=("sample-1",)).with_decision("pays", Choice("open", "no time")),
        run=Run(tmp_path, known),
        context=SimpleNamespace(elapsed=lambda: 1.0, terminal=SimpleNamespace(say=said.append)),
    )
    rounds._take_up()
    left = {name: rounds.run.manifest[name] for name in ("best", "model_save", "adjustments")}
    assert left == {"best": None, "model_save": None, "adjustments": [{"what": "dtype"}]}
    assert [name for name in (*gone, *stays) if (tmp_path / name).exists()] == list(stays)
    assert (rounds.progress.done, rounds.progress.clearing, len(said)) == ((), False, 1)
    assert "best/); model/ stays" in said[0]
    rounds._take_up()
    assert len(said) == 1


def test_a_kill_while_it_is_taken_up_leaves_a_run_that_goes_on_with_any_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each thing that is written or removed: all of it is as it was, or what is left of it goes next time."""
    gone = ("rollouts/round-1", "rollouts/round-2", "checkpoints/update-000003", "best")
    open_ = Progress(left_open=540.0, done=("sample-1",)).with_decision("pays", Choice("open", "no time"))
    context = SimpleNamespace(elapsed=lambda: 1.0, terminal=SimpleNamespace(say=lambda line: None))
    left, found = [0], list[tuple[tuple[str, ...], bool]]()

    def killed(works: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == -1:
                raise KeyboardInterrupt
            return works(*given, **named)

        return call

    for module, name in (
        (train_rounds, "remove_folder"),
        (checkpoints, "remove_folder"),
        (train_rounds, "cut_metrics"),
    ):
        monkeypatch.setattr(module, name, killed(getattr(module, name)))
    monkeypatch.setattr(Run, "record", killed(Run.record))
    for point in range(9):
        run = Run(tmp_path / str(point), {"rft": open_.as_json(), "rollouts": [{"round": 1}]})
        for name in gone:
            (run.folder / name).mkdir(parents=True)
        (run.folder / "run.json").write_text(json.dumps(run.manifest))
        left[0] = point
        with suppress(KeyboardInterrupt):
            made(TrainConfig(max_time="18m"), progress=open_, run=run, context=context)._take_up()
        left[0] = 99
        run = Run(run.folder, json.loads((run.folder / "run.json").read_text()))
        progress = Progress.from_json(run.manifest["rft"])
        again = made(TrainConfig(max_time="10m"), progress=progress, run=run, context=context)
        again._take_up()
        there = [name for name in gone if (run.folder / name).exists()]
        assert len(run.manifest["rollouts"]) == len(again.progress.done) == len(there) / len(gone)
        found.append((again.progress.done, progress.clearing))
    assert found == [(("sample-1",), False), *[((), True)] * 6, *[((), False)] * 2]


def test_a_training_between_others_is_done_where_its_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(max_time="734.123")
    facts = {"config": config.model_dump(mode="json")}
    checkpoint = SimpleNamespace(update=3, elapsed=733.9, folder=tmp_path, facts=facts, events=[{"total": 8}])
    monkeypatch.setattr(start, "newest", lambda folder, say: checkpoint)
    monkeypatch.setattr(start, "_check_own", lambda *unused: None)
    run: Any = SimpleNamespace(folder=tmp_path, checkpoints=tmp_path, metrics=tmp_path / "metrics.jsonl")
    context: Any = SimpleNamespace(terminal=SimpleNamespace(say=lambda line: None), link=Link())
    with pytest.raises(UsageError, match="give it more"):
        start.newest_of(run, config, {}, True, context)
    assert start.newest_of(run, config, {}, True, context, between=True) is checkpoint


def test_a_training_that_begins_beside_a_persons_copy_is_not_said_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "update-000003.mine").mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text('{"event": "update", "update": 3}\n')
    said: list[str] = []
    context: Any = SimpleNamespace(terminal=SimpleNamespace(say=said.append), link=Link())
    run = Run(tmp_path, {})
    assert start.newest_of_phase(run, TrainConfig(), {}, True, context, between=False) is None
    assert (said, run.metrics.read_text()) == ([], "")
    start.newest_of(run, TrainConfig(), {}, True, context)  # the control: a run that was said to go on
    assert len(said) == 1


class Asked:
    """A sampler whose device fails once, and can answer then."""

    def __init__(self, error: Exception) -> None:
        self.errors, self.together = [error], 64

    def blocks(self, *unused: Any) -> Iterator[Any]:
        if self.errors:
            raise self.errors.pop()
        return iter(())

    def halve(self, why: str) -> int:
        self.together //= 2
        return self.together


@pytest.mark.parametrize(
    ("error", "parent", "raises", "together"),
    [
        (OutOfMemoryError("full"), True, False, 32),
        (DeviceLostError("lost"), True, True, 64),  # the next child halves them
        (DeviceLostError("lost"), False, True, 32),  # for who resumes
    ],
)
def test_a_lost_device_asks_for_no_more_answers_in_its_process(
    monkeypatch: pytest.MonkeyPatch, error: Exception, parent: bool, raises: bool, together: int
) -> None:
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(Rounds, "_record", lambda self, progress: setattr(self, "progress", progress))
    link = Link(socket=theirs if parent else None)
    context: Any = SimpleNamespace(terminal=SimpleNamespace(say=lambda line: None), link=link)
    sampler = Asked(error)
    with ours, theirs:
        rounds = made(TrainConfig(recipe="rft"), sampler=sampler, context=context, model=SimpleNamespace(backend=None))
        with pytest.raises(DeviceLostError) if raises else nullcontext():
            rounds._answer(1, Path("records.jsonl"), Timed("sample-1", 0.0, 9.0, 9.0))
    assert (sampler.together, rounds.progress.together or 64) == (together, together)
