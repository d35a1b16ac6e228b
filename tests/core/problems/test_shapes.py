"""Data sets in the shapes that others have: what is read of a row, how its answer ends, which rows are refused."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gsm8k_core.problems import splits
from gsm8k_core.problems.data import MissingSplitError, is_at_hand, load_data
from gsm8k_core.problems.gold import ended
from gsm8k_core.problems.lines import POINTER
from gsm8k_core.problems.reading import MOST_KEPT, RowOptions
from gsm8k_core.problems.shapes import Columns
from gsm8k_core.types import DataError, UsageError
from tests import fake_hub

ASKED = "Ann has 3 pens and buys 4. How many?"
SOLVED = "3 + 4 = 7 pens."
ENDED = f"{SOLVED}\n#### 7"
USER, ANSWERED = {"role": "user", "content": ASKED}, {"role": "assistant", "content": ENDED}
ROW = {"question": ASKED, "answer": ENDED}
META = {"query": ASKED, "response": f"{ENDED}\nThe answer is: 7", "type": "GSM_AnsAug", "original_question": "old?"}


def quiet(_: str) -> None:
    pass


def load(reference: object, reading: RowOptions | None = None, splits: tuple[str, ...] = ("train",)) -> Any:
    return load_data(str(reference), "main", 0, quiet, splits, reading or RowOptions(skip_bad_rows=False))


def write(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


SHAPES: dict[str, tuple[dict[str, Any], str]] = {
    "question/answer": (ROW, "question/answer"),
    "metamath": (META, "query/response"),
    "metamath without ####": ({"query": ASKED, "response": f"{SOLVED}\nThe answer is: 7"}, "query/response"),
    "prompt/completion": ({"prompt": ASKED, "completion": ENDED}, "prompt/completion"),
    "of turns": ({"prompt": [USER], "completion": [ANSWERED]}, "prompt/completion"),
    "numina, with its chat": (
        {"source": "x", "problem": ASKED, "solution": ENDED, "messages": [USER]},
        "problem/solution",
    ),
    "alpaca": ({"instruction": ASKED, "input": "", "output": ENDED}, "instruction/output"),
    "messages": ({"messages": [USER, ANSWERED]}, "messages"),
    "system": ({"messages": [{"role": "system", "content": "Be brief."}, USER, ANSWERED]}, "messages"),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": ENDED}]},
        "conversations",
    ),
    "parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": ASKED[:9]}, {"type": "text", "text": ASKED[9:]}]},
                {"role": "assistant", "content": [{"type": "text", "text": ENDED}]},
            ]
        },
        "messages",
    ),
    "capitals": ({"Question": ASKED, "Answer": ENDED}, "Question/Answer"),
    "a pair of others": ({"id": 1, "prompt": ASKED, "response": ENDED}, "prompt/response"),
}


@pytest.mark.parametrize("case", SHAPES)
def test_a_shape_is_found_and_said(case: str, tmp_path: Path) -> None:
    row, name = SHAPES[case]
    data = load(write(tmp_path / "a.jsonl", row, row))
    assert [(p.id, p.question, p.answer, p.gold) for p in data.train] == [
        ("train-0", ASKED, ENDED, "7"),
        ("train-1", ASKED, ENDED, "7"),
    ]
    (line,) = data.lines()
    assert line.startswith(f"shape    {name}, 2 rows, the gold ")
    assert ("the system turn of 2 is left out" in line) == (case == "system")
    assert data.as_json()["found"]["train"]["shape"] == name


def test_an_input_stands_below_its_instruction(tmp_path: Path) -> None:
    row = {"instruction": "How many?", "input": "Ann has 7 pens.", "output": "#### 7"}
    assert load(write(tmp_path / "a.jsonl", row)).train[0].question == "How many?\n\nAnn has 7 pens."


# What the trained row ends with. An evaluation asks for `#### N`, and a model writes what it was shown.
ENDINGS = {
    "3 + 4 = 7.\n#### 7\nThe answer is: 7": "3 + 4 = 7.\n#### 7",
    "#### 1,200\n\nThe answer is 1200.": "#### 1,200",
    "3 + 4 = 7.\nThe answer is: 7": "3 + 4 = 7.\n#### 7",
    "So 3 + 4 = 7. The answer is 7.": "So 3 + 4 = 7. The answer is 7.\n#### 7",
    "One.\n**Final answer:** $7$": "One.\n#### 7",
    r"So $\boxed{3}$, or better $\boxed{7}$.": r"So $\boxed{3}$, or better $\boxed{7}$." + "\n#### 7",
    r"\boxed{10{,}000\text{ cm}^2}": r"\boxed{10{,}000\text{ cm}^2}" + "\n#### 10,000",
    r"\boxed{\$1,234.50}": r"\boxed{\$1,234.50}" + "\n#### 1,234.50",
    r"\boxed{25\%}": r"\boxed{25\%}" + "\n#### 25",
    "x\nThe answer is $\\boxed{-3}$.": "x\n#### -3",
    "plain #### 7 \n": "plain #### 7 \n",  # it ends so already: not a letter is changed
}


@pytest.mark.parametrize("answer", ENDINGS)
def test_an_answer_ends_with_its_number_after_four_marks(answer: str) -> None:
    found, number, _ = ended(answer)
    assert found == ENDINGS[answer]
    assert found.rstrip().endswith(f"#### {number}")
    assert ended(found)[0] == found


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("She has 7 pens.", "no '####'"),
        ("7", "no '####'"),
        (r"\boxed{\frac{1}{2}}", "no plain number"),
        (r"\boxed{B}", "no plain number"),
        ("The answer is: 7 or 8", "no plain number"),
        ("#### None", "no plain number"),
        ("#### 7\nThe answer is: 8", "two numbers, '7' and '8'"),
        ("so \\boxed{7}\nThe answer is: 8", "two numbers, '8' and '7'"),
        ("#### 1\n#### 2", "2 '####'"),
    ],
)
def test_no_number_is_no_gold(answer: str, why: str) -> None:
    with pytest.raises(DataError, match=why):
        ended(answer)


def test_a_chat_is_one_question_and_its_answer(tmp_path: Path) -> None:
    wrong: dict[str, tuple[object, str]] = {
        "several": ([USER, ANSWERED, USER, ANSWERED], "has the turns user, assistant, user, assistant; a row is one"),
        "open": ([USER], "has the turns user; "),
        "backwards": ([ANSWERED, USER], "has the turns assistant, user"),
        "tool": ([USER, {"role": "tool", "content": "x"}], "turn 2 of 'messages' is of 'tool'"),
        "image": ([{"role": "user", "content": [{"type": "image"}]}, ANSWERED], "turn 1 of 'messages' has no text"),
        "blank": ([{"role": "user", "content": " "}, ANSWERED], "the question in 'messages' is empty"),
        "empty": ([], "'messages' is an empty list"),
        "text": ("hello", "'messages' is a text, not a list of turns"),
        "no content": ([{"role": "user"}, ANSWERED], "turn 1 of 'messages' has no text: its content is null"),
        "numbers": ([1], "turn 1 of 'messages' is a number, not an object"),
    }
    for name, (turns, why) in wrong.items():
        path = write(tmp_path / f"{name}.jsonl", {"messages": [USER, ANSWERED]}, {"messages": turns})
        with pytest.raises(DataError) as caught:
            load(path)
        assert str(caught.value).startswith(f"{path}:2: "), name
        assert why in str(caught.value), name


def test_bad_rows_are_refused_by_line_and_with_the_flag_counted_and_named(tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "answer": "#### None"}, {**ROW, "question": " "}, {**ROW, "answer": None}, {}, ROW]
    path = write(tmp_path / "a.jsonl", *rows)
    with pytest.raises(DataError, match=r"a\.jsonl:2: the final answer is no plain number: 'None'.*--skip-bad-rows"):
        load(path)
    with pytest.raises(DataError) as caught:
        load(path, RowOptions())  # of a verb without the flag
    assert "--skip-bad-rows" not in str(caught.value)
    data = load(path, RowOptions(skip_bad_rows=True))
    assert [problem.id for problem in data.train] == ["train-0", "train-5"]
    assert data.lines()[1].startswith(
        f"skipped  4 of 6 rows: {path}:2: the final answer is no plain number: 'None'; {path}:3: 'question' is empty; "
        f"{path}:4: 'answer' is null"
    )
    assert data.as_json()["found"]["train"]["skipped"]["count"] == 4
    with pytest.raises(DataError, match="has no problems that can be used"):
        load(write(tmp_path / "b.jsonl", *rows[1:5] * MOST_KEPT), RowOptions(skip_bad_rows=True))
    (tmp_path / "c.jsonl").write_text(json.dumps(ROW) + "\n{oops\n")  # a damaged file is no bad row
    with pytest.raises(DataError, match=r"c\.jsonl:2: not valid JSON"):
        load(tmp_path / "c.jsonl", RowOptions(skip_bad_rows=True))


def test_columns_are_named_by_a_person(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", META)
    asked = RowOptions(Columns("original_question"))
    assert load(path, asked).train[0].question == "old?"
    assert load(path, RowOptions(Columns(answer="response"))).train[0].question == ASKED
    other = write(tmp_path / "b.jsonl", {"aufgabe": ASKED, "loesung": ENDED})
    assert load(other, RowOptions(Columns("aufgabe", "loesung"))).train[0].gold == "7"
    with pytest.raises(UsageError, match=r"--question-column quary: .*\(it has query, .*\); did you mean query\?"):
        load(path, RowOptions(Columns("quary")))
    with pytest.raises(UsageError, match="are both query; name two"):
        load(path, RowOptions(Columns("query", "query")))
    with pytest.raises(DataError, match=r"\(it has aufgabe, loesung\).*--question-column and --answer-column"):
        load(other)
    with pytest.raises(DataError, match=r":2: no 'query'; give query and response, as the rows before"):
        load(write(tmp_path / "c.jsonl", META, ROW))
    chat = write(tmp_path / "d.jsonl", {"dialog": [USER, ANSWERED]})
    assert load(chat, RowOptions(Columns("dialog"))).train[0].question == ASKED


def in_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    write(path, *rows)


def in_array(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows, indent=1))


def packed(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_bytes(fake_hub._parquet(rows))


FORMATS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "a.jsonl": in_lines,
    "a.json": in_array,
    "b.jsonl": in_array,  # by what is in it, not by its name
    "a.jsonl.gz": packed,
    "a.parquet": parquet,
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_read_and_a_bad_row_placed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsm8k_core.problems.lines.CHUNK_BYTES", 50)  # an element lies over several parts
    path, bad = tmp_path / name, {**META, "response": "none"}
    FORMATS[name](path, [META, {**META, "query": "é \u2028 { [ ] } ?"}])
    assert [problem.question for problem in load(path).train] == [ASKED, "é \u2028 { [ ] } ?"]
    FORMATS[name](path, [META, bad])
    place = {"a.json": ":8: ", "b.jsonl": ":8: ", "a.parquet": ": row 1: "}.get(name, ":2: ")
    with pytest.raises(DataError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}{place}")


def test_messages_in_parquet(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", [{"messages": [USER, ANSWERED]}])
    assert load(tmp_path / "a.parquet").train[0].answer == ENDED


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[", "the array has no end"),
        (b'[{"question": "q", "answer": "#### 1"}', "the array has no end"),
        (b'[{"question": "q", "answer": "#### 1"}, {"question"', ":1: not valid JSON"),
        (b'[{"question": "q", "answer": "#### 1"} {"question": "q"}]', "a comma is missing"),
        (b"[1]", ":1: a number, not an object"),
        (b"[]", "has no problems"),
        (b'[{"question": "\xff"}]', "not UTF-8"),
        (b'[{"question": "\0"}]', "a NUL byte"),
        (gzip.compress(b"x" * 99)[:-20], "cannot be read"),
        (POINTER + b"\noid sha256:0\nsize 9\n", "run `git lfs pull`"),
    ],
)
def test_a_damaged_file_is_one_line(content: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=why) as caught:
        load(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def test_a_format_that_is_not_read_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer\nq,#### 1\n")
    with pytest.raises(DataError, match=r"a\.csv: csv is not read; give JSONL, a JSON array or parquet"):
        load(tmp_path / "a.csv")


def test_a_packed_file_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed(tmp_path / "a.jsonl.gz", [ROW] * 1000)
    monkeypatch.setattr("gsm8k_core.problems.lines.MAX_LINES_BYTES", 50_000)
    with pytest.raises(DataError, match="unpacks to more than"):
        load(tmp_path / "a.jsonl.gz")


MAIN, PARTS = "main/train-00000-of-00001.parquet", [f"data/train-0000{n}-of-00002.parquet" for n in (0, 1)]
SOCRATIC, ORIGINAL = MAIN.replace("main", "socratic"), splits.ORIGINAL
LAYOUTS: dict[str, tuple[list[str], str, list[str], list[str]]] = {
    "beside each other": (["train.jsonl", "test.jsonl", "README.md"], "main", ["train.jsonl"], ["test.jsonl"]),
    "of other formats": (["train.jsonl.gz", "test.json"], "main", ["train.jsonl.gz"], ["test.json"]),
    "gsm8k": ([MAIN, SOCRATIC, "README.md"], "socratic", [SOCRATIC], []),
    "its own before a folder's": (["train.jsonl", "test.jsonl", "data/train.jsonl", "main/train.jsonl"], "main",
                                  ["train.jsonl"], ["test.jsonl"]),
    "in parts": ([*PARTS[::-1], "data/test.parquet"], "main", PARTS, ["data/test.parquet"]),
    "converted": (["default/train/0.parquet", "default/test/0.parquet"], "main", ["default/train/0.parquet"],
                  ["default/test/0.parquet"]),
    "grade-school-math": ([f"{ORIGINAL}train.jsonl", f"{ORIGINAL}train_socratic.jsonl"], "socratic",
                          [f"{ORIGINAL}train_socratic.jsonl"], []),
    "one file": (["MetaMathQA-395K.json", "README.md", ".gitattributes", "dataset_infos.json"], "main",
                 ["MetaMathQA-395K.json"], []),
    "several configurations": (["algebra/train.parquet", "geometry/train.parquet"], "main", [], []),
    "a test alone": (["my-test.json"], "main", [], []),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_which_file_holds_which_split(layout: str) -> None:
    names, config, train, test = LAYOUTS[layout]
    assert splits.data_files(names, config, ("train", "test")) == {"train": train, "test": test}


def test_a_clone_and_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "main").mkdir()
    parquet(tmp_path / "main" / "train-00000-of-00001.parquet", [ROW])
    assert len(load(tmp_path).train) == 1
    with pytest.raises(MissingSplitError, match=r"has no test.jsonl \(it has main/train-"):
        load(tmp_path, splits=("test",))
    with pytest.raises(MissingSplitError, match=r"check --data-config \(there is main\)"):
        load_data(str(tmp_path), "socratic", 0, quiet, ("train",))


def test_the_hub_has_other_shapes_and_a_revision(hub: Any) -> None:
    pinned = "f" * 40
    hub.repositories = {("dataset", "meta-math/MetaMathQA"): {"MetaMathQA-395K.json": json.dumps([META] * 3).encode()}}
    data = load("meta-math/MetaMathQA")
    assert (len(data.train), data.train[0].answer) == (3, ENDED)
    assert (data.revision, data.as_json()["revision"]) == (fake_hub.REVISION, fake_hub.REVISION)
    with pytest.raises(MissingSplitError, match=r"has no file of main/test \(it has MetaMathQA-395K.json\)"):
        load("meta-math/MetaMathQA", splits=("test",))
    hub.requests.clear()
    assert load(f"meta-math/MetaMathQA@{fake_hub.REVISION}").revision == fake_hub.REVISION
    assert load("meta-math/MetaMathQA", RowOptions(revision=fake_hub.REVISION)).revision == fake_hub.REVISION
    assert hub.requests == []  # it is cached
    with pytest.raises(DataError):  # another one is asked for by its name, and never taken from the cache
        load("meta-math/MetaMathQA", RowOptions(revision=pinned))
    assert f"GET api/datasets/meta-math/MetaMathQA/revision/{pinned}" in hub.requests
    assert not is_at_hand("meta-math/MetaMathQA", "main", "test")
    hub.stop()
    with pytest.raises(MissingSplitError, match="has no test in the Hub's cache"):
        load("meta-math/MetaMathQA", splits=("test",))
