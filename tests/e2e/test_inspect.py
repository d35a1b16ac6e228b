"""`inspect` through the command line: it reports, loads no model, and says what train would do."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests import tiny
from tests.e2e.conftest import Run


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    tiny.tokenizer_files(folder)
    return folder


def test_json_holds_the_figures(run: Run, tokenizer_folder: Path, data: Path) -> None:
    done = run("inspect", "--model", tokenizer_folder, "--data", data, "--json")
    result = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert (result["rows"], result["longer_than_max_length"], result["without_supervised_token"]) == (60, 0, 0)
    assert result["max_length"] == 512
    assert list(result["tokens"]) == ["mean", "p50", "p95", "max"]
    assert result["train_would_refuse"] is None


def test_what_the_model_does_not_read_is_said_before_it_is_trained(run: Run, data: Path, tmp_path: Path) -> None:
    """And compare's own words for what it would refuse."""
    model = tiny.make(tmp_path / "short", "llama", max_position_embeddings=24)
    later = "eval and compare: --max-new-tokens 512 is too many: this model reads 24; give fewer"
    for verb, dev in (("inspect", "train: --eval-max-new-tokens 320"), ("train", "--eval-max-new-tokens 320")):
        more = ("--dry-run",) if verb == "train" else ()
        done = run(verb, "--model", model, "--data", data, "--json", *more)
        assert done.returncode == 0, done.stderr
        said = " ".join(done.stderr.split())
        assert re.search(r"context [0-9]+ of [0-9]+ rows are longer than this model reads, which is 24 tokens", said)
        assert f"context {dev} is too many: this model reads 24; give fewer" in said
        assert f"context {later}" in said
        found = json.loads(done.stdout)
        assert (found if verb == "inspect" else found["rows"])["beyond_context"] > 0


def test_it_reports_even_when_everything_would_be_lost(run: Run, tokenizer_folder: Path, data: Path) -> None:
    done = run("inspect", "--model", tokenizer_folder, "--data", data, "--max-length", "16", "--show", "1")
    assert done.returncode == 0
    assert "60 rows (100 %) are longer" in done.stdout
    assert "and refuse: every row is longer than --max-length 16" in " ".join(done.stdout.split())
    assert "longer than 16, train leaves it out" in done.stdout


def test_the_verdict_is_about_the_rows_that_train_takes(run: Run, tokenizer_folder: Path, tmp_path: Path) -> None:
    """Train takes 1,500 of these rows, all short; most of the 3,200 are long."""
    lines = []
    for n in range(3200):
        words = " apples" * (0 if n < 1600 else 200)
        lines.append(json.dumps({"question": f"how many {n}{words} ?", "answer": f"{n}\n#### {n}"}) + "\n")
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    done = run("inspect", "--model", tokenizer_folder, "--data", "rows.jsonl", "--max-length", 64, "--json")
    result = json.loads(done.stdout)
    assert (result["rows"], result["longer_than_max_length"]) == (3200, 1600)
    assert (result["train_rows"], result["train_would_refuse"]) == (1500, None)
    assert "would take 1,500 rows" in done.stderr
    less = run("inspect", "--model", tokenizer_folder, "--data", "rows.jsonl", "--max-samples", 5, "--json")
    assert (json.loads(less.stdout)["rows"], json.loads(less.stdout)["train_rows"]) == (5, 5)


def test_nothing_is_said_of_train_where_test_is_looked_at(run: Run, tokenizer_folder: Path, data: Path) -> None:
    done = run("inspect", "--model", tokenizer_folder, "--data", data, "--split", "test", "--max-length", 16)
    assert "train    " not in done.stdout
    assert "leaves it out" not in done.stdout
    assert "longer than 16" in done.stdout


def test_rows_read_without_colours_in_80_columns(run: Run, tokenizer_folder: Path, data: Path) -> None:
    done = run("inspect", "--model", tokenizer_folder, "--data", data, "--show", "2")
    assert done.stdout.count("[masked]<start>") == done.stdout.count("[trained]he has") == 2
    assert "\x1b" not in done.stdout
    paths = (str(tokenizer_folder), str(data))  # a path is never broken, however long it is
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if not any(path in line for path in paths))


def test_the_split_the_first_rows_and_the_marks_can_be_chosen(run: Run, tokenizer_folder: Path, data: Path) -> None:
    def rows_and_tokens(*more: str) -> tuple[int, float]:
        done = run("inspect", "--model", tokenizer_folder, "--data", data, "--show", "0", "--json", *more)
        assert "[masked]" not in done.stderr
        result = json.loads(done.stdout)
        return result["rows"], result["tokens"]["mean"]

    kept = rows_and_tokens("--split", "test")
    stripped = rows_and_tokens("--split", "test", "--annotations", "strip")
    assert kept[0] == stripped[0] == 8
    assert stripped[1] == kept[1] - 1  # the mark is one word of this tokenizer
    assert rows_and_tokens("--max-samples", "5")[0] == 5


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--model", "{data}", "--data", "{data}"), 4, "no tokenizer.json"),
        (("--model", "./nowhere", "--data", "{data}"), 4, "nowhere"),
        (("--model", "{model}", "--data", "missing.jsonl"), 4, "missing.jsonl"),
        (("--model", "{model}", "--max-length", "1"), 2, "--max-length"),
        (("--model", "{model}", "--show", "-1"), 2, "--show"),
    ],
)
def test_bad_input_is_one_clear_line(
    run: Run, tokenizer_folder: Path, data: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = run("inspect", *(argument.format(model=tokenizer_folder, data=data) for argument in arguments))
    assert done.returncode == code
    assert says in done.stderr
    assert done.stderr.count("error:") == done.stderr.count("\n") == 1


def test_of_very_many_rows_a_part_is_looked_at(
    run: Run, tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"query": f"Tom has {n} apples .", "response": f"{n}\n#### {n}\nThe answer is: {n}"} for n in range(90)]
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("verbs.inspect.MOST_TOKENISED", 40)
    monkeypatch.setattr("gsm8k_core.problems.corpus.SAMPLE_ROWS", 10)
    done = run("inspect", "--model", tokenizer_folder, "--data", path, "--show", 3, "--json")
    assert done.returncode == 0, done.stderr
    assert "rows     90; 12 of them are looked at here" in done.stderr
    found = json.loads(done.stdout)
    assert (found["rows"], found["looked_at"], found["shape"]["train"]["shape"]) == (90, 12, "query/response")
    assert 80 < found["train_rows"] < 90
    assert f"would take {found['train_rows']} rows" in done.stderr
