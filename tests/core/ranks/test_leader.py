"""The model on all ranks: answers in pieces, scores by rows, another model on a rank, whose words a failure gets."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.parity import tiny
from gsm8k_core.parity.bench import settings
from gsm8k_core.problems.batching import pad
from gsm8k_core.problems.prompts import decode, encode
from gsm8k_core.ranks import follower, leader, messages, pieces
from gsm8k_core.ranks.leader import Leader, Ranks
from gsm8k_core.ranks.wire import Frame, Wire
from gsm8k_core.scoring.answers import AnswerLine
from gsm8k_core.scoring.calculator import Calculator
from gsm8k_core.training.finite import ALONE_FINITE
from gsm8k_core.types import (
    Batch,
    Choice,
    Completion,
    DataError,
    DeviceLostError,
    DivergedError,
    Orders,
    Outcome,
    OutOfMemoryError,
    PreflightError,
    RankLostError,
    Sampling,
    Update,
    UpdateStats,
)
from tests.core.ranks.test_meeting import Threads
from tests.waiting import CEILING, ends, wait_for

PROMPTS = [[place, place + 1] for place in range(12)]
LONG = Sampling(48, 2)
BATCH = pad(tiny.make_rows(5))


@dataclass
class Asked:
    """What the echoes of both ranks were asked, and what they are to do."""

    answers: list[tuple[int, int]] = field(default_factory=list)  # (rank, key)
    rows: list[tuple[int, str, int]] = field(default_factory=list)  # (rank, which score, rows)
    drawn: list[Sampling] = field(default_factory=list)  # rank 1's
    hold: threading.Event = field(default_factory=threading.Event)  # rank 0's answers wait for it
    pause: threading.Event = field(default_factory=threading.Event)  # and rank 1, behind each token, for this one
    error: Exception | None = None  # what ends rank 1's answers
    closed: list[tuple[int, int]] = field(default_factory=list)  # (rank, which model)


class Echo:
    """A backend that answers a prompt with itself and its key, and scores a row by its tokens."""

    name, capabilities, micro_batch_tokens, group = "echo", None, None, None
    odds = save = state = rehearse = peak_memory = None

    def __init__(self, rank: int, asked: Asked, number: int = 1) -> None:
        self.choices = {"dtype": Choice("float32", "")}
        self._rank, self._asked, self._number = rank, asked, number

    def generate(self, prompts: Any, sampling: Any, on_token: Any, keys: Any) -> Iterator[tuple[int, Completion]]:
        if self._rank == 1:
            self._asked.drawn.append(sampling)
        for index, (prompt, key) in enumerate(zip(prompts, keys, strict=True)):
            if self._rank == 0:
                self._asked.hold.wait(CEILING)
            elif self._asked.error is not None:
                raise self._asked.error
            self._asked.answers.append((self._rank, key))
            on_token(index, prompt[0])
            if self._rank == 1:
                self._asked.pause.wait(CEILING)
            yield index, Completion((*prompt, key), "stop", 1, (1,))

    def score(self, batch: Batch) -> Any:
        return self._scored("score", batch)

    def score_first(self, batch: Batch) -> Any:
        return self._scored("first", batch)

    def _scored(self, which: str, batch: Batch) -> Any:
        self._asked.rows.append((self._rank, which, len(batch.tokens)))
        return batch.tokens[:, 1:].astype(np.float32) + self._number

    def train(self, updates: Any, config: Any, pilot: Any, resume: Any = None) -> Outcome:
        done = 0
        for update in updates:
            done = update.number
            pilot.after(UpdateStats(done, 0.0, 1, 1, 0.0, 0.0), self)
        return Outcome("done", done)

    def close(self) -> None:
        self._asked.closed.append((self._rank, self._number))


@dataclass
class Pair:
    """Rank 0's Ranks; what the ranks were asked; how rank 1's part ended."""

    ranks: Ranks
    asked: Asked
    ended: list[Any]

    def open(self, folder: Path) -> Leader:
        """Another model."""
        number = self.ranks.opened + 1
        load: Any = lambda: Echo(0, self.asked, number)  # noqa: E731
        found: Leader = self.ranks.open("echo", folder, "cpu", "float32", None, load)
        return found


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    monkeypatch.setattr(follower, "TELL", 0.0)
    asked, ended = Asked(), list[Any]()
    asked.pause.set()
    group = Threads(0, 2, None, None, None)  # type: ignore[arg-type]
    ours, theirs = socket.socketpair()
    lines = [Wire(ours, "rank 1", "there", print), Wire(theirs, "rank 0", "here", print)]
    for line in lines:
        line.watch()
    models = iter(range(1, 99))

    def follow() -> None:
        try:
            ended.append(follower.follow(lines[1], group, lambda *given: Echo(1, asked, next(models))))
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=follow)
    thread.start()
    yield Pair(Ranks(group, lines[:1], "torchrun"), asked, ended)
    asked.hold.set()
    lines[0].close()
    thread.join()
    lines[1].close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("model") / "tiny", "llama")


def from_both(pair: Pair, both: Leader, on_token: Any = leader.ignore_token, **more: Any) -> dict[int, Completion]:
    """All answers; neither rank gives a second one before the other has given its first."""
    done: dict[int, Completion] = {}
    pair.asked.pause.clear()
    thread = threading.Thread(target=lambda: done.update(both.generate(PROMPTS, LONG, on_token, **more)))
    thread.start()
    for rank, wait in ((1, pair.asked.hold), (0, pair.asked.pause)):
        wait_for(lambda rank=rank: any(by == rank for by, _ in pair.asked.answers))
        wait.set()
    thread.join()
    return done


KEYS = [100 + place for place in range(len(PROMPTS))]


def test_answers_come_from_both_and_each_prompt_is_asked_once(pair: Pair, model: Path) -> None:
    heard: list[tuple[int, int]] = []
    done = from_both(pair, pair.open(model), lambda *token: heard.append(token), keys=KEYS)
    assert done == {
        place: Completion((*prompt, key), "stop", 1, (1,))  # whole: what was forced is said, too
        for place, (prompt, key) in enumerate(zip(PROMPTS, KEYS, strict=True))
    }
    assert sorted(key for _, key in pair.asked.answers) == KEYS
    assert {rank for rank, _ in pair.asked.answers} == {0, 1}
    assert sorted(heard) == [(place, prompt[0]) for place, prompt in enumerate(PROMPTS)]  # each token, from both


def test_what_another_rank_writes_is_heard_before_an_answer_ends(pair: Pair, model: Path) -> None:
    """So a signal, or the end of the time, ends a rollout while rank 0 itself has nothing to do."""

    class Late(BaseException): ...

    def check(index: int, token: int) -> None:
        if (0, index) not in pair.asked.answers:
            pair.asked.pause.set()
            raise Late

    both = pair.open(model)
    pair.asked.hold.set()
    pair.asked.pause.clear()
    with pytest.raises(Late):
        ends(lambda: list(both.generate(PROMPTS, LONG, check)))
    assert len(dict(both.generate(PROMPTS, LONG))) == len(PROMPTS)


@pytest.mark.parametrize(
    ("total", "ranks", "together", "sizes"),
    [
        (128, 2, 64, [64, 64]),  # each rank one: two would take twice as many steps
        (128, 4, 64, [32] * 4),
        (128, 3, 64, [43, 43, 42]),
        (7, 2, 64, [4, 3]),
        (1319, 2, 64, [330, 248, 186, 139, 104, 78, 64, 64, 64, 42]),
        (2, 3, 8, [1, 1]),
    ],
)
def test_a_piece_is_no_smaller_than_what_is_decoded_together(
    total: int, ranks: int, together: int, sizes: list[int]
) -> None:
    work = pieces.Work([[1]] * total, range(total), {"batch_size": together}, ranks, 1, 1)
    taken = list(iter(work.take, None))
    assert [len(places) for places in taken if places] == sizes
    assert [place for places in taken for place in places or ()] == list(range(total))


def test_who_no_longer_wants_answers_waits_for_none(pair: Pair, model: Path) -> None:
    both = pair.open(model)
    pair.asked.hold.set()
    with closing(both.generate(PROMPTS, LONG)) as answers:  # type: ignore[type-var]
        next(answers)
    assert len(dict(both.generate(PROMPTS, LONG))) == len(PROMPTS)  # and the next ones are those that were asked


def test_another_model_is_asked_after_one_that_was_cancelled(pair: Pair, model: Path) -> None:
    pair.asked.hold.set()
    for _ in range(2):
        both = pair.open(model)
        assert len(dict(both.generate(PROMPTS, LONG))) == len(PROMPTS)
        with closing(both.generate(PROMPTS, LONG)) as answers:  # type: ignore[type-var]
            next(answers)
        both.close()


def test_answers_that_are_timed_and_functions_of_no_name_stay_on_rank_0(pair: Pair, model: Path) -> None:
    both = pair.open(model)
    pair.asked.hold.set()
    for alone in (Sampling(leader.TIMED_TOKENS, 2), replace(LONG, complete=lambda tokens: False)):
        list(both.generate(PROMPTS, alone, keys=range(len(PROMPTS))))
    assert {rank for rank, _ in pair.asked.answers} == {0}


def test_the_calculator_and_the_end_at_an_answers_line_are_made_on_each_rank(pair: Pair, model: Path) -> None:
    """Of the tokenizer in the model's folder: no line carries a function."""
    tokenizer = ModelFolder(model).tokenizer
    asked = replace(LONG, force=Calculator.of(tokenizer), complete=AnswerLine(partial(decode, tokenizer)))
    both = pair.open(model)
    pair.asked.hold.set()
    list(both.generate(PROMPTS, asked))
    wait_for(lambda: pair.asked.drawn)
    theirs = pair.asked.drawn[0]
    assert theirs.force is not None
    with pytest.raises(DataError, match="this tokenizer cannot write '5>>' behind"):  # it has a blank between words
        theirs.force(encode(tokenizer, ["<< 2 + 3 ="])[0])
    assert type(theirs.complete) is AnswerLine
    assert not theirs.complete(encode(tokenizer, ["#### 5"])[0])
    assert replace(theirs, force=None, complete=None) == LONG


def test_rows_are_scored_on_both_and_come_in_order(pair: Pair, model: Path) -> None:
    both = pair.open(model)
    expected = BATCH.tokens[:, 1:].astype(np.float32) + 1
    assert np.array_equal(both.score(BATCH), expected)
    assert np.array_equal(both.score_first(BATCH), expected)
    assert sorted(pair.asked.rows) == [(0, "first", 2), (0, "score", 2), (1, "first", 3), (1, "score", 3)]
    one = pad(tiny.make_rows(1))
    both.score(one)
    assert pair.asked.rows[-1] == (0, "score", 1)


def test_two_models_are_open_and_each_is_asked_by_itself(pair: Pair, model: Path) -> None:
    """The first weights beside those that are trained."""
    first, second = pair.open(model), pair.open(model)
    assert np.array_equal(second.score(BATCH), first.score(BATCH) + 1)
    second.close()
    assert len(first.score(BATCH)) == 5
    assert sorted(pair.asked.closed) == [(0, 2), (1, 2)]


class Unmoved:
    def rate(self, update: int) -> float:
        return 0.0

    def after(self, stats: UpdateStats, live: Any) -> Orders:
        return Orders()


def test_before_every_update_the_weights_may_be_asked(pair: Pair, model: Path) -> None:
    both, made = pair.open(model), list[int]()
    pair.asked.hold.set()

    def updates() -> Iterator[Update]:
        for number in (1, 2, 3):
            made.append(len(dict(both.generate(PROMPTS, LONG))) + len(both.score(BATCH)))
            yield Update(number, 0, BATCH.rows, (BATCH,))
        made.append(len(dict(both.generate(PROMPTS, LONG))))

    assert both.train(updates(), settings("full", micro_batch_tokens="64"), Unmoved()) == Outcome("done", 3)
    assert made == [17, 17, 17, 12]
    assert {rank for rank, _, _ in pair.asked.rows} == {0, 1}
    assert len(dict(both.generate(PROMPTS, LONG))) == len(PROMPTS)


def test_memory_that_runs_out_there_ends_this_ranks_piece_at_once_and_all_go_on(pair: Pair, model: Path) -> None:
    both = pair.open(model)
    pair.asked.error = OutOfMemoryError("no memory for the answers")

    def handed_out() -> bool:
        return bool(pair.asked.drawn) and not any("hand_out" in each.name for each in threading.enumerate())

    thread = threading.Thread(target=lambda: (wait_for(handed_out), pair.asked.hold.set()))
    thread.start()
    with pytest.raises(OutOfMemoryError, match="rank 1: no memory for the answers"):
        next(both.generate(PROMPTS, LONG))  # the piece at hand has begun, and none of its answers ends
    thread.join()
    pair.asked.error = None
    assert len(dict(both.generate(PROMPTS, LONG))) == len(PROMPTS)
    assert not pair.ended


def test_a_lost_device_there_is_no_memory_to_be_halved(pair: Pair, model: Path) -> None:
    """That rank has ended: to ask it again would be to wait without an end."""
    both, error = pair.open(model), DeviceLostError("a kernel took too long")
    pair.asked.error = error
    pair.asked.hold.set()
    for _ in range(2):
        with pytest.raises(RankLostError, match="rank 1: a kernel took too long") as found:
            ends(lambda: list(both.generate(PROMPTS, LONG)))
        assert found.value.exit_code == OutOfMemoryError.exit_code
    assert pair.ended == [OutOfMemoryError.exit_code]


def test_another_model_on_a_rank_is_refused(pair: Pair, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        hash = "0123456789abcdef"

        def __init__(self, folder: Path) -> None: ...

    monkeypatch.setattr(follower, "ModelFolder", Other)
    with pytest.raises(PreflightError, match=r"rank 1.* has another model in .*0123456789ab"):
        pair.open(model)


def test_a_folder_that_a_rank_has_not_is_refused(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"there is no model in .*nothing here") as error:
        pair.open(tmp_path / "nothing here")
    assert error.value.exit_code == PreflightError.exit_code  # type: ignore[attr-defined]


def test_a_failed_update_is_told_in_the_words_of_the_rank_whose_rows_they_are() -> None:
    own = DivergedError("loss nan", update=3, tensor=ALONE_FINITE, rows=["mine"])
    told = {"tensor": "the gradient of w", "rows": ["theirs"], "damaged": False}
    best = leader._best(own, [Frame("done", {"error": None}), Frame("done", {"error": told})])
    assert (best.update, best.tensor, best.rows) == (3, "the gradient of w", ("theirs",))
    assert leader._best(own, [Frame("done", {"error": None})]) is own


def test_what_does_not_belong_into_a_training_is_an_error_and_is_not_left_out() -> None:
    line: Any = SimpleNamespace(receive=iter([Frame("open", {}), Frame("stop")]).__next__)
    with pytest.raises(RuntimeError, match="told to open in the middle of a training"):
        next(follower._Told(line, lambda message: False).updates())


def test_an_answer_is_whole_behind_the_line() -> None:
    whole = Completion((4, 5, 6), "complete", 1, (0, 2))
    assert messages.completion(json.loads(json.dumps(messages.completion_values(whole)))) == whole
