"""A round with a scripted model: waves, blocks, the clock, and a kill at every line of its records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gsm8k_core.rollouts import round as round_of
from gsm8k_core.rollouts.record import Rollout, read_records
from gsm8k_core.rollouts.round import Round
from gsm8k_core.rollouts.wave import Ask
from tests.core.rollouts.script import OTHER, RIGHT, WRONG, answering, decode, problem

PROBLEMS = {name: problem(name) for name in (f"train-{number}" for number in range(20))}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round_of, "BLOCK", 6)
    monkeypatch.setattr(round_of, "FIRST_ANSWERS", 4)


def script(ask: Ask) -> str:
    """Problem N is right from sample N % 4 on, in other words each second time; those over 16 never are."""
    number = int(ask.id.removeprefix("train-"))
    if number > 16 or ask.sample < number % 4:
        return WRONG
    return RIGHT if ask.sample % 2 else OTHER


def make(path: Path, late: Callable[[], bool] = lambda: False, log: list[list[Ask]] | None = None) -> Round:
    return Round(
        1,
        PROBLEMS,
        path,
        answering(script, log),
        decode,
        samples=4,
        keep=2,
        seed=0,
        mode=lambda: "steps",
        elapsed=lambda: 1.5,
        late=late,
    )


def read(path: Path) -> list[Rollout]:
    return read_records(path, PROBLEMS, decode, vocabulary=200)


def test_each_wave_asks_whom_it_should(tmp_path: Path) -> None:
    log: list[list[Ask]] = []
    sampled = make(tmp_path / "records.jsonl", log=log)
    found = list(sampled.sample([], []))
    assert [len(block) for block in log[:4]] == [4, 6, 6, 4]  # wave 1: a first block, then whole ones
    by_wave = {number: [ask.id for block in log for ask in block if ask.sample == number] for number in range(4)}
    assert sorted(by_wave[0]) == sorted(PROBLEMS)
    chains: dict[str, set[str]] = {name: set() for name in PROBLEMS}
    for wave in range(1, 4):
        for name in PROBLEMS:
            text = script(Ask(name, wave - 1))
            if text != WRONG:
                chains[name].add(text)
        assert sorted(by_wave[wave]) == sorted(name for name in PROBLEMS if len(chains[name]) < 2), wave
    assert [block.wave for block in found] == sorted(block.wave for block in found)
    assert all(block.whole for block in found)
    assert [each.ask for each in read(sampled.path)] == [each.ask for each in sampled.answers]


def test_the_hardest_problems_come_last(tmp_path: Path) -> None:
    log: list[list[Ask]] = []
    sampled = make(tmp_path / "records.jsonl", log=log)
    list(sampled.sample([], []))
    second = [ask.id for block in log for ask in block if ask.sample == 1]
    right = [script(Ask(name, 0)) != WRONG for name in second]
    assert right == sorted(right, reverse=True)
    assert True in right
    assert False in right


def test_a_kill_at_any_line_comes_to_the_same_records(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole.jsonl")
    list(whole.sample([], []))
    content = (tmp_path / "whole.jsonl").read_bytes()
    lines = content.splitlines(keepends=True)
    for count in range(len(lines) + 1):
        path = tmp_path / "killed.jsonl"
        path.write_bytes(b"".join(lines[:count]) + b'{"id": "trai')
        again = make(path)
        list(again.sample(read(path), []))
        assert path.read_bytes() == content, count
        assert [each.ask for each in again.answers] == [each.ask for each in whole.answers]


def test_a_block_cut_by_a_kill_is_asked_for_again_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    list(make(path).sample([], []))
    kept = path.read_bytes().splitlines(keepends=True)[:12]
    path.write_bytes(b"".join(kept))  # 4 + 6 answers in whole blocks, and two of the next one
    log: list[list[Ask]] = []
    list(make(path, log=log).sample(read(path), []))
    assert len(log[0]) == 6
    assert log[0][0].sample == 0


def test_the_clock_ends_a_round_and_what_has_ended_by_then_is_there(tmp_path: Path) -> None:
    asked = [0]

    def late() -> bool:
        asked[0] += 1
        return asked[0] > 120  # tokens

    sampled = make(tmp_path / "records.jsonl", late)
    found = list(sampled.sample([], []))
    assert [block.whole for block in found] == [True, False]
    assert 4 < len(sampled.answers) < 10
    assert len(read(sampled.path)) == len(sampled.answers)
    assert Round.in_whole_blocks(len(sampled.answers)) == 4


def test_a_round_that_is_late_from_the_start_asks_nothing(tmp_path: Path) -> None:
    log: list[list[Ask]] = []
    sampled = make(tmp_path / "records.jsonl", lambda: True, log)
    assert [block.answers for block in sampled.sample([], [])] == [()]
    assert log == []


def test_answers_of_earlier_rounds_count_as_chains(tmp_path: Path) -> None:
    first = make(tmp_path / "first.jsonl")
    list(first.sample([], []))
    log: list[list[Ask]] = []
    second = Round(
        2,
        PROBLEMS,
        tmp_path / "second.jsonl",
        answering(lambda ask: WRONG, log),
        decode,
        samples=4,
        keep=2,
        seed=0,
        mode=lambda: "steps",
        elapsed=lambda: 2.0,
        late=lambda: False,
    )
    list(second.sample([], first.answers))
    asked = {number: {ask.id for block in log for ask in block if ask.sample == number} for number in (4, 5)}
    chains = {
        name: {each.chain for each in first.answers if each.problem.id == name and each.verified("steps")}
        for name in PROBLEMS
    }
    assert asked[4] == set(PROBLEMS)
    assert asked[5] == {name for name in PROBLEMS if len(chains[name]) < 2}


@pytest.mark.parametrize(("count", "whole"), [(0, 0), (3, 0), (4, 4), (9, 4), (10, 10), (15, 10), (16, 16)])
def test_whole_blocks_are_counted(count: int, whole: int) -> None:
    assert Round.in_whole_blocks(count) == whole
