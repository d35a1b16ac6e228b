"""Records: what was drawn is believed, and nothing else; what no run writes is refused in one line."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gsm8k_core.rollouts import record
from gsm8k_core.rollouts.record import (
    Appender,
    Rollout,
    as_line,
    judged,
    last_seconds,
    read_key,
    read_records,
    read_selected,
)
from gsm8k_core.rollouts.selection import as_lines
from gsm8k_core.scoring.verify import Mode
from gsm8k_core.types import Completion, DataError, StorageError
from tests.core.rollouts.script import END, NO_STEP, OTHER, RIGHT, WRONG, WRONG_STEP, decode, encode, problem

PROBLEM = problem("train-3")
PROBLEMS = {"train-3": PROBLEM}


def rollout(text: str, sample: int = 0, finish: Any = "stop", forced: tuple[int, ...] = ()) -> Rollout:
    completion = Completion(encode(text), finish, END if finish == "stop" else None, forced)
    return judged(PROBLEM, sample, completion, decode, 2.5)


@pytest.mark.parametrize(
    ("text", "finish", "steps", "gold", "wrong_step"),
    [
        (RIGHT, "stop", True, True, False),
        (OTHER, "stop", True, True, False),
        (WRONG, "stop", False, False, False),
        (WRONG_STEP, "stop", False, True, True),
        (NO_STEP, "stop", False, True, False),
        (RIGHT, "length", False, False, False),
        (f"<think> {RIGHT}", "stop", False, False, False),  # a thought that never ended
        (f"<think> #### 7 </think> {RIGHT}", "stop", True, True, False),
    ],
)
def test_an_answer_is_judged_by_its_steps_or_by_its_number(
    text: str, finish: str, steps: bool, gold: bool, wrong_step: bool
) -> None:
    found = rollout(text, finish=finish)
    assert (found.verified("steps"), found.verified("gold"), found.wrong_step) == (steps, gold, wrong_step)
    assert bool(found.refusal("steps")) == (not steps)
    assert bool(found.refusal("gold")) == (not gold)


def test_an_answer_without_equations_has_its_words_as_chain() -> None:
    assert rollout(NO_STEP).chain == ("Five. #### 5",)
    assert rollout(RIGHT).chain == ("2+3",)


def write(path: Path, *rollouts: Rollout) -> Path:
    appender = Appender(path, [], lambda: "steps")
    for each in rollouts:
        appender(each)
    appender.close()
    return path


def read(path: Path, done: bool = False) -> list[Rollout]:
    return read_records(path, PROBLEMS, decode, 200, done)


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    wanted = [rollout(RIGHT, 0, forced=(8, 9)), rollout(WRONG, 1), rollout(OTHER, 2, "length")]
    path = write(tmp_path / "records.jsonl", *wanted)
    assert read(path) == wanted
    assert last_seconds(path) == 2.5
    assert read(tmp_path / "none.jsonl") == []
    assert last_seconds(tmp_path / "none.jsonl") == 0


def test_a_line_says_the_verdict_of_the_rule_that_the_run_goes_by(tmp_path: Path) -> None:
    path, mode = tmp_path / "records.jsonl", list[Mode](["steps"])

    def by() -> Mode:
        return mode[0]

    def said() -> list[tuple[bool, str]]:
        return [(row["verified"], row["reason"]) for row in map(json.loads, path.read_text().splitlines())]

    with closing(Appender(path, [], by)) as appender:
        appender(rollout(NO_STEP))
        mode[0] = "gold"
        appender(rollout(WRONG_STEP, 1))
        appender(rollout(WRONG, 2))
    assert said() == [(False, "no readable step"), (True, ""), (False, "wrong number: 6, not 5")]
    Appender(path, read(path), by).close()
    assert said() == [(True, ""), (True, ""), (False, "wrong number: 6, not 5")]


def test_a_line_that_says_otherwise_than_its_tokens_is_judged_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "records.jsonl", rollout(WRONG))
    row = json.loads(path.read_text()) | {"verified": True, "reason": "", "completion": RIGHT, "gold": "6"}
    path.write_text(json.dumps(row) + "\n")
    assert read(path) == [rollout(WRONG)]
    assert not read(path)[0].verified("gold")


def test_of_a_round_that_is_done_the_verdict_of_its_line_stands(tmp_path: Path) -> None:
    """An older version judged otherwise, and what it kept was trained on."""
    path = write(tmp_path / "records.jsonl", rollout(RIGHT))
    row = json.loads(path.read_text())
    path.write_text(json.dumps(row | {"verified": False, "reason": "as then", "gold_right": False, "chain": ["5=5"]}))
    with path.open("a") as file:
        file.write("\n")
    (found,) = read(path, done=True)
    assert (found.verified("steps"), found.verified("gold"), found.refusal("gold")) == (False, False, "as then")
    assert (found.chain, found.wrong_step, found.text) == (("2+3",), False, RIGHT)  # as the human ones' are read now
    assert read(path) == [rollout(RIGHT)]
    path.write_text(json.dumps({name: value for name, value in row.items() if name != "gold_right"}) + "\n")
    assert read(path, done=True) == [rollout(RIGHT)]  # it says none
    path.write_text(json.dumps(row | {"gold_right": "yes"}) + "\n")
    with pytest.raises(DataError, match=r"records\.jsonl:1: gold_right must be .*; bring the file back"):
        read(path, done=True)


def test_what_a_round_that_is_done_kept_is_read_back_in_the_order_in_which_it_was_taken(tmp_path: Path) -> None:
    """Whatever their chains are today; what could not have been kept is refused, and a file that is gone."""
    path, unended = tmp_path / "selected.jsonl", rollout(RIGHT, 3, "length")
    answers = [rollout(RIGHT, 0), rollout(RIGHT, 1), rollout(WRONG, 2), unended]
    path.write_bytes(as_lines({"train-3": [answers[1], answers[0]]}))
    assert read_selected(path, answers) == {"train-3": [answers[1], answers[0]]}
    path.write_bytes(b"")
    assert read_selected(path, answers) == {}
    for wrong in ([answers[0], answers[0]], [unended], [rollout(RIGHT, 9)]):
        path.write_bytes(as_lines({"train-3": wrong}))
        with pytest.raises(
            DataError, match=r"selected\.jsonl:[12]: 'train-3', sample [039] cannot be kept.*; bring the"
        ):
            read_selected(path, answers)
    path.write_text("[")
    with pytest.raises(DataError, match=r"selected\.jsonl:1: damaged record; bring the file back"):
        read_selected(path, answers)
    path.unlink()
    with pytest.raises(DataError, match=r"selected\.jsonl is gone; bring the file back, or start a new run"):
        read_selected(path, answers)


def test_a_torn_last_line_is_left_out_and_cut_off(tmp_path: Path) -> None:
    path = write(tmp_path / "records.jsonl", rollout(RIGHT))
    with path.open("ab") as file:
        file.write(as_line(rollout(OTHER, 1), "steps")[:40])
    assert read(path) == [rollout(RIGHT)]
    assert last_seconds(path) == 2.5
    Appender(path, read(path), lambda: "steps").close()
    assert path.read_bytes() == as_line(rollout(RIGHT), "steps")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"id": "train-4"}, "'train-4' is no problem of this run"),
    ({"token_ids": [5, 200]}, "token 200, and the model knows only 200"),
    ({"end_token": 999}, "token 999"),
    ({"token_ids": [-1]}, "must be greater than or equal to 0"),
    ({"forced": [99]}, "forced places"),
    ({"forced": [1, 1]}, "forced places"),
    ({"sample": "0"}, "sample must be a whole number"),
    ({"seconds": -1.0}, "seconds"),
    ({"finish_reason": "magic"}, "finish_reason"),
    ({"end_token": None}, "finish_reason is stop, and there is no end token"),
]


@pytest.mark.parametrize(("change", "said"), BAD)
def test_a_line_that_no_run_writes_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = write(tmp_path / "records.jsonl", rollout(RIGHT))
    path.write_text(json.dumps(json.loads(path.read_text()) | change) + "\n")
    for done, advice in ((False, record.AGAIN), (True, record.BACK)):
        with pytest.raises(DataError, match=said) as caught:
            read(path, done)
        assert f"{path}:1" in str(caught.value)
        assert str(caught.value).endswith(advice)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["verified", "gold_right"])
def test_no_answer_of_a_round_that_is_done_is_right_without_an_end(tmp_path: Path, name: str) -> None:
    """It would teach none. A line that is judged anew is refused by its tokens."""
    path = write(tmp_path / "records.jsonl", rollout(RIGHT, finish="length"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: True}) + "\n")
    with pytest.raises(
        DataError, match=r":1: verified or gold_right, and finish_reason is length; bring the file back"
    ):
        read(path, done=True)
    assert not read(path)[0].verified("gold")


@pytest.mark.parametrize("line", ["[]", "{", "[" * 100_000, "\x00", "null"])
def test_a_line_that_is_no_record_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(DataError, match=r"records\.jsonl:1"):
        read(path)


def test_the_same_answer_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "records.jsonl", rollout(RIGHT), rollout(WRONG))
    with pytest.raises(DataError, match="there twice"):
        read(path)


@pytest.mark.parametrize("content", ["[]", "{", '{"weights": 3}', "{}"])
def test_a_damaged_key_is_refused_with_advice_about_its_round(tmp_path: Path, content: str) -> None:
    (tmp_path / "key.json").write_text(content)
    with pytest.raises(DataError, match=r"key\.json.*; bring it back$"):
        read_key(tmp_path / "key.json", "bring it back")
    assert read_key(tmp_path / "none.json", "") is None


def test_a_file_that_the_system_does_not_give_is_a_matter_of_its_rights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, most: int) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    path = write(tmp_path / "records.jsonl", rollout(RIGHT))
    monkeypatch.setattr(record, "read_plain", refuse)
    for reads in (read, last_seconds, record.content_of):
        with pytest.raises(StorageError, match=r"records\.jsonl cannot be read \(Permission denied\); check .* rights"):
            reads(path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a file that is always full")
def test_a_full_disk_is_said_with_its_file_at_the_end_too(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    appender = Appender(path, [], lambda: "steps")
    appender._file.close()
    appender._file = os.fdopen(os.open("/dev/full", os.O_WRONLY), "ab")
    for call in (lambda: appender(rollout(RIGHT)), appender.close):  # what could not be written is tried once more
        with pytest.raises(StorageError, match=r"records\.jsonl cannot be written \(No space left on device\)"):
            call()
