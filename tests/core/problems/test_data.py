"""Problems from JSONL, folders, the Hub and the generator; the line is named when a row is wrong."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from gsm8k_core.problems.data import (
    carve_dev,
    content_hash,
    is_single_file,
    load_data,
    read_jsonl,
    require_data,
    strip_annotations,
    training_rows,
)
from gsm8k_core.types import DataError, Problem
from tests.fake_hub import waits

GSM8K = "openai/gsm8k"
ROW = {"question": "1 + 1?", "answer": "1+1=<<1+1=2>>2\n#### 2"}


def quiet(_: str) -> None:
    pass


def load(reference: object, splits: tuple[str, ...] = ("train", "test"), config: str = "main") -> Any:
    return load_data(str(reference), config, 0, quiet, splits)


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refused(reference: object, splits: tuple[str, ...] = ("train", "test")) -> str:
    with waits() as waited, pytest.raises(DataError) as caught:
        load(reference, splits)
    assert len(waited.questions) <= 1  # the Hub is waited for once
    assert "\n" not in str(caught.value)
    return str(caught.value)


def problems(count: int, start: int = 0) -> list[Problem]:
    return [Problem(f"train-{n}", f"How many is {n}?", f"#### {n}", str(n)) for n in range(start, start + count)]


def test_a_file_is_train_where_both_are_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROW, {**ROW, "answer": "#### 1,200", "more": [1]})
    data = load(path)
    assert [(p.id, p.gold) for p in data.train] == [("train-0", "2"), ("train-1", "1200")]
    assert data.train[0].answer == ROW["answer"]
    assert data.test == ()
    assert (data.choice.name, data.choice.reason) == ("file", "one file of this machine")
    assert data.name == str(path)


def test_a_file_is_the_split_that_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROW, ROW)
    train, test = load(path, ("train",)), load(path, ("test",))
    assert [problem.id for problem in train.train] == ["train-0", "train-1"]
    assert [problem.id for problem in test.test] == ["test-0", "test-1"]
    assert (train.test, test.train) == ((), ())
    assert list(test.sha256) == ["test"]


def test_one_file_is_told_from_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", ROW)
    write(tmp_path / "generated", ROW)  # the word wins
    assert is_single_file("a.jsonl")
    assert is_single_file(str(tmp_path / "a.jsonl"))
    for other in (".", str(tmp_path), "b.jsonl", "generated", GSM8K, ""):
        assert not is_single_file(other)


def test_a_folder_needs_only_the_split_that_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "test.jsonl", ROW)
    assert [problem.id for problem in load(tmp_path, ("test",)).test] == ["test-0"]
    message = refused(tmp_path)
    assert "has no train.jsonl (it has test.jsonl)" in message


def test_a_split_that_is_no_file_is_said_to_be_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").mkdir()
    assert refused(tmp_path).startswith(f"{tmp_path / 'train.jsonl'} is a folder; put a JSONL file there")
    (tmp_path / "train.jsonl").rmdir()
    (tmp_path / "train.jsonl").symlink_to(tmp_path / "gone")
    assert "train.jsonl is a link to nothing" in refused(tmp_path)


@pytest.mark.parametrize("reference", ["./nothing.jsonl", "a b", "nobody/nothing"])
def test_require_is_the_error_of_load(reference: str, hub: Any) -> None:
    with pytest.raises(DataError) as caught:
        require_data(reference, "main")
    assert str(caught.value) == refused(reference)


def test_require_downloads_nothing(hub: Any, tmp_path: Path) -> None:
    require_data("generated", "main")
    require_data(str(write(tmp_path / "a.jsonl", ROW)), "main")
    assert hub.requests == []
    require_data(GSM8K, "main")
    assert hub.requests == [f"GET api/datasets/{GSM8K}"]
    load(GSM8K)
    hub.stop()
    require_data(GSM8K, "main")  # cached


@pytest.mark.parametrize(
    "content",
    [
        b'\xef\xbb\xbf{"question": "q", "answer": "#### 1"}\n',
        b'{"question": "q", "answer": "#### 1"}\r\n\r\n',
        b'\n  \n{"question": "q", "answer": "#### 1"}',
    ],
    ids=["utf-8 mark", "crlf", "blank lines"],
)
def test_harmless_forms_are_read(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    (problem,) = read_jsonl(tmp_path / "a.jsonl", "train")
    assert (problem.id, problem.question, problem.gold) == ("train-0", "q", "1")


def test_odd_but_legal_characters_are_kept(tmp_path: Path) -> None:
    question = "a\u2028b \x85 \u00a0 🙂 é"
    (problem,) = read_jsonl(write(tmp_path / "a.jsonl", {**ROW, "question": question}), "train")
    assert problem.question == question


GOOD = b'{"question": "q", "answer": "#### 1"}\n'
BAD: dict[str, tuple[bytes, str]] = {
    "cut": (b'{"question": "q", "ans\n', "not valid JSON"),
    "array": (b"[1]\n", ", not an object"),
    "number": (b"3\n", ", not an object"),
    "deep": (b"[" * 100_000 + b"\n", "not valid JSON"),
    "digits": (b'{"question": "q", "answer": ' + b"9" * 5000 + b"}\n", "'answer' is a number, not a text"),
    "nan": (b'{"question": "q", "answer": NaN}\n', "NaN is not JSON"),
    "key twice": (b'{"question": "q", "question": "r", "answer": "#### 1"}\n', "a key stands twice"),
    "nul": (b'{"question": "q\0", "answer": "#### 1"}\n', "a NUL byte"),
    "escaped nul": (b'{"question": "q\\u0000", "answer": "#### 1"}\n', "NUL or half a surrogate pair"),
    "surrogate": (b'{"question": "q\\ud800", "answer": "#### 1"}\n', "NUL or half a surrogate pair"),
    "latin-1": (b'{"question": "caf\xe9", "answer": "#### 1"}\n', "not UTF-8 (byte 18 of the line)"),
    "utf-16": ('{"question": "q"}\n'.encode("utf-16"), "a NUL byte"),
    "no question": (b'{"answer": "#### 1"}\n', "no 'question'"),
    "no answer": (b'{"question": "q"}\n', "no 'answer'"),
    "null": (b'{"question": null, "answer": "#### 1"}\n', "'question' is null, not a text"),
    "answer a number": (b'{"question": "q", "answer": 1}\n', "'answer' is a number, not a text"),
    "question a list": (b'{"question": ["q"], "answer": "#### 1"}\n', "'question' is a list, not a text"),
    "blank question": (b'{"question": " ", "answer": "#### 1"}\n', "'question' is empty"),
    "no gold": (b'{"question": "q", "answer": "one"}\n', ""),
    "two golds": (b'{"question": "q", "answer": "#### 1\\n#### 2"}\n', ""),
    "gold a word": (b'{"question": "q", "answer": "#### many"}\n', ""),
    "gold 1e400": (b'{"question": "q", "answer": "#### 1e400"}\n', ""),
    "gold of 5,000 digits": (b'{"question": "q", "answer": "#### ' + b"9" * 5000 + b'"}\n', ""),
    "arabic digits": ('{"question": "q", "answer": "#### ١٢"}\n'.encode(), ""),
    "long line": (b'{"question": "' + b"q" * 1_000_001 + b'"}\n', "longer than 1000000 bytes"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named_by_file_and_line(case: str, tmp_path: Path) -> None:
    content, message = BAD[case]
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + b"\n" + content + GOOD)
    found = refused(path)
    assert f"{path}:3: " in found
    assert message in found
    assert len(found) < 500


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_an_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    assert "has no problems" in refused(tmp_path / "a.jsonl")


@pytest.mark.parametrize("reference", ["./nothing.jsonl", "nothing.jsonl", "/nothing", "a/b/c", "", "\0", "~nobody/x"])
def test_a_path_that_is_not_there(reference: str, hub: Any) -> None:
    assert "is not a file or folder here" in refused(reference)
    assert hub.requests == []


def test_hub_cold_then_cached_without_network(hub: Any) -> None:
    said: list[str] = []
    cold = load_data(GSM8K, "main", 0, said.append, ("train",))
    assert cold.choice.name == "hub"
    assert (len(cold.train), len(cold.test)) == (13, 0)
    assert cold.train[3].id == "train-3"
    assert cold.train[3].gold == "5"
    assert len(said) == 1
    assert GSM8K in said[0]
    hub.stop()
    cached = load(GSM8K)  # test came along: an evaluation after the training needs no network
    assert cached.choice.name == "cache"
    assert (len(cached.train), len(cached.test)) == (13, 7)
    assert cached.sha256["train"] == cold.sha256["train"]


def test_hub_cut_download_is_an_error_then_goes_on(hub: Any) -> None:
    hub.cut = 0
    assert "not downloaded whole" in refused(GSM8K)
    hub.cut = None
    assert len(load(GSM8K).train) == 13


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("status", 401, "refused it (401"),
        ("status", 500, "error (500)"),
        ("silent", True, "did not answer in 1 s"),
    ],
)
def test_hub_unavailable_is_one_line(
    attribute: str, value: float, reason: str, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if attribute == "silent":
        hub.silence(monkeypatch)
    setattr(hub, attribute, value)
    message = refused(GSM8K)
    assert reason in message
    assert "--data generated" in message


def test_hub_offline_and_unknown(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no such dataset (404)" in refused("nobody/nothing")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in refused(GSM8K)


def test_hub_without_the_configuration(hub: Any) -> None:
    with pytest.raises(DataError, match=r"has no file of socratic/train .*; check --data-config \(there is main\)"):
        load(GSM8K, config="socratic")


def test_hub_bad_rows_are_named(hub: Any) -> None:
    from tests import fake_hub

    rows = [{"question": "q", "answer": "#### 1"}, {"question": "q", "answer": "none"}]
    files = {name: fake_hub._parquet(rows) for name in fake_hub.tiny_gsm8k()}
    hub.repositories = {fake_hub.REAL_DATA: files}
    assert "parquet: row 1: " in refused(GSM8K)


def test_hub_damaged_parquet(hub: Any) -> None:
    from tests import fake_hub

    hub.repositories = {fake_hub.REAL_DATA: dict.fromkeys(fake_hub.tiny_gsm8k(), b"PAR1 not really")}
    assert "cannot be read" in refused(GSM8K)


def test_the_hash_is_of_the_content(tmp_path: Path) -> None:
    first = load(write(tmp_path / "a.jsonl", ROW, {**ROW, "question": "é?"}))
    plain = json.dumps(ROW) + "\r\n\n" + json.dumps({**ROW, "question": "é?"}, ensure_ascii=False)
    (tmp_path / "b.jsonl").write_text(plain, encoding="utf-8")
    assert load(tmp_path / "b.jsonl").sha256 == first.sha256
    assert content_hash(problems(2)) != content_hash(problems(2)[::-1])
    assert content_hash(problems(2)) != content_hash(problems(3))


def test_generated_follows_the_seed() -> None:
    first = load_data("generated", "main", 1, quiet)
    assert first.choice.name == "generated"
    assert first.sha256 == load_data("generated", "main", 1, quiet).sha256
    assert first.sha256["train"] != load_data("generated", "main", 2, quiet).sha256["train"]
    assert load_data("generated", "main", 1, quiet, ("test",)).train == ()


def test_dev_is_a_share_and_the_rest_is_train() -> None:
    rows = problems(2000)
    train, dev = carve_dev(rows)
    assert sorted([*train, *dev], key=lambda p: int(p.gold)) == rows
    assert 50 < len(dev) < 110
    assert len(carve_dev(problems(9000))[1]) == 200


def test_dev_does_not_depend_on_order_or_on_other_rows() -> None:
    rows = problems(2000)
    dev = set(carve_dev(rows)[1])
    shuffled = random.Random(1).sample(rows, len(rows))
    assert set(carve_dev(shuffled)[1]) == dev
    assert set(carve_dev(rows[:500])[1]) == dev & set(rows[:500])


def test_the_same_question_is_never_on_both_sides() -> None:
    rows = [Problem(f"{copy}-{p.id}", p.question, p.answer, p.gold) for copy in "ab" for p in problems(4000)]
    train, dev = carve_dev(rows)
    assert dev
    assert not {p.question for p in train} & {p.question for p in dev}


def test_few_rows_are_all_train() -> None:
    rows = problems(19)
    assert carve_dev(rows) == (tuple(rows), ())
    (chosen, *_) = carve_dev(problems(2000))[1]
    assert carve_dev([chosen] * 40) == ((chosen,) * 40, ())  # dev would have taken every row


def test_annotations_are_removed_and_nothing_else() -> None:
    assert strip_annotations("48/2 = <<48/2=24>>24 clips\n#### 24") == "48/2 = 24 clips\n#### 24"
    assert strip_annotations("2 << 3 and 5 >> 4") == "2 << 3 and 5 >> 4"


@pytest.mark.skipif("GSM8K_DATA" not in os.environ, reason="GSM8K_DATA names no folder with the real GSM8K")
def test_the_real_gsm8k_loads_whole() -> None:
    data = load(os.environ["GSM8K_DATA"])
    assert (len(data.train), len(data.test)) == (7473, 1319)
    assert all(float(problem.gold).is_integer() for problem in (*data.train, *data.test))
    assert not any("<<" in strip_annotations(problem.answer) for problem in data.train)
    assert len(carve_dev(data.train)[1]) == 200


def test_train_takes_the_first_rows_after_the_dev_split() -> None:
    problems = [Problem(f"train-{n}", f"q {n}", f"<<1+{n}={1 + n}>>\n#### {n}", str(n)) for n in range(400)]
    train, dev = carve_dev(problems)
    assert dev
    assert training_rows(problems, -1, "keep") == (train, dev)
    assert training_rows(problems, 5, "keep") == (train[:5], dev)
    assert [problem.answer for problem in training_rows(problems, 1, "strip")[0]] == [f"\n#### {train[0].gold}"]
