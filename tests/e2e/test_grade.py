"""`grade`: anyone's completions, every rule, the first row that cannot be used named by file and line."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gsm8k_core.scoring.answers import RULES
from tests.e2e.conftest import ROOT, Run

ROWS = [
    {"completion": "9*2=18\n#### 18", "gold": 18},  # every rule
    {"completion": "The answer is **18**. Hope this helps...", "gold": "18"},  # robust
    {"completion": "#### $18", "gold": 18.0},  # flexible, robust
    {"completion": "I think 17", "gold": "9 * 2 = 18\n#### 18", "id": 7},  # none
    {"completion": "so #### 1,234", "answer": "#### 1,234"},  # every rule; the gold under its other name
    {"completion": "\ud800 nothing", "gold": 3},  # none
]
CORRECT = {"openai": 2, "strict": 2, "flexible": 3, "robust": 4}


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_rule_is_counted_and_told_from_the_others(run: Run, tmp_path: Path) -> None:
    done = run("grade", write(tmp_path / "c.jsonl", ROWS), "--json")
    result = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert result["n"] == 6
    assert list(result["rules"]) == list(result["disagreements"]) == list(RULES)
    assert {name: result["rules"][name]["correct"] for name in CORRECT} == CORRECT
    assert result["rules"]["flexible"]["accuracy"] == 0.5
    assert result["rules"]["openai"]["nothing_read"] == 4
    assert result["disagreements"]["robust"] == result["disagreements"]["robust"] | {"strict": 2, "flexible": 1}
    assert result["disagreements"]["strict"]["robust"] == 0


def test_the_tables_fit_in_80_columns(run: Run, tmp_path: Path) -> None:
    done = run("grade", write(tmp_path / "c.jsonl", ROWS))
    assert "50.0 % (18.8 to 81.2)" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 80


def test_records_hold_what_each_rule_read(run: Run, tmp_path: Path) -> None:
    source = write(tmp_path / "c.jsonl", ROWS)
    assert run("grade", source, "--records", "out.jsonl").returncode == 0
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [record["completion"] for record in records] == [row["completion"] for row in ROWS]
    assert records[1]["rules"]["flexible"] == {"extracted": "...", "correct": False}
    assert records[1]["rules"]["robust"] == {"extracted": "18", "correct": True}
    assert (records[3]["row"], records[3]["id"]) == (f"{source}:4", 7)
    assert json.loads(run("grade", "out.jsonl", "--json").stdout)["rules"]["robust"]["correct"] == 4  # reads its own


def test_an_older_version_is_judged_by_its_name(run: Run, tmp_path: Path) -> None:
    rows = [{"completion": "#### $18k", "gold": 18000}, {"completion": "#### 1/4", "gold": 4}]
    source = write(tmp_path / "c.jsonl", rows)
    done = run("grade", source, "--rules", "robust v1,robust", "--json")
    rules = json.loads(done.stdout)["rules"]
    assert {name: (rule["correct"], rule["version"]) for name, rule in rules.items()} == {
        "robust-v1": (1, 1),
        "robust": (1, 2),
    }
    assert list(json.loads(done.stdout)["disagreements"]) == ["robust-v1", "robust"]
    assert "robust v2" in run("grade", source).stdout
    refused = run("grade", source, "--rules", "robust-v7")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--rules: no rule 'robust-v7'; did you mean robust-v" in refused.stderr


def test_records_are_never_written_over(run: Run, tmp_path: Path) -> None:
    source = write(tmp_path / "c.jsonl", ROWS)
    before = source.read_bytes()
    done = run("grade", source, "--records", source)
    assert done.returncode == 7
    assert "exists already" in done.stderr
    assert source.read_bytes() == before


def test_records_are_whole_or_not_there(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    done = run("grade", write(tmp_path / "c.jsonl", ROWS), "--records", "out.jsonl")
    assert done.returncode == 7
    assert "No space left" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["c.jsonl"]


def test_a_utf8_mark_crlf_and_blank_lines_do_no_harm(run: Run, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(b'\xef\xbb\xbf{"completion": "#### 5", "gold": 5}\r\n\r\n')
    assert json.loads(run("grade", "c.jsonl", "--json").stdout)["rules"]["strict"]["correct"] == 1


def test_fields_that_are_not_used_may_hold_anything(run: Run, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"completion": "#### 5", "gold": 5, "logprob": -Infinity, "x": 1, "x": 2}')
    done = run("grade", "c.jsonl", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rules"]["strict"]["correct"] == 1


def test_a_dash_is_stdin(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"completion": "#### 5", "gold": 5}\n{}\n')))
    assert "stdin:2: no 'completion'" in run("grade", "-").stderr
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"completion": "#### 5", "gold": 5}\n')))
    assert json.loads(run("grade", "-", "--json").stdout)["n"] == 1


def test_a_missing_folder_is_refused_before_anything_is_graded(run: Run, tmp_path: Path) -> None:
    done = run("grade", write(tmp_path / "c.jsonl", ROWS), "--records", "gone/out.jsonl")
    assert done.returncode == 7
    assert "there is no folder gone" in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("gold", ["18", "18.0", "1.8e1", '"18"', '" 18 "', '"#### 18"', '"18.0"', '"$18"'])
def test_a_gold_can_be_written_in_several_ways(run: Run, tmp_path: Path, gold: str) -> None:
    (tmp_path / "c.jsonl").write_text(f'{{"completion": "#### 18", "gold": {gold}}}')
    rules = json.loads(run("grade", "c.jsonl", "--json").stdout)["rules"]
    assert [rules[name]["correct"] for name in CORRECT] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"completion": "a"}', "no 'gold'"),
        (b'{"gold": 1}', "no 'completion'"),
        (b'{"completion": 3, "gold": 1}', "'completion' is a number"),
        (b'{"completion": "a", "gold": true}', "'gold' is true or false"),
        (b'{"completion": "a", "gold": null}', "'gold' is null"),
        (b'{"completion": "a", "gold": [1]}', "'gold' is a list"),
        (b'{"completion": "a", "gold": "many"}', "no plain number"),
        (b'{"completion": "a", "gold": "1 #### 1 #### 2"}', "2 '####'"),
        (b'{"completion": "a", "gold": 1e400}', "1e400, a number of more than 40 digits"),
        (b'{"completion": "a", "gold": 1e99999999999999999999}', "more than 40 digits"),
        (b'{"completion": "a", "gold": ' + b"9" * 5000 + b"}", "more than 40 digits"),
        (b'{"completion": "a", "gold": NaN}', "NaN is not JSON"),
        (b'{"completion": "a", "completion": "b", "gold": 1}', "a key stands twice"),
        (b"[1]", "a list, not an object"),
        (b'{"completion": "a", ', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"completion": "\xff", "gold": 1}', "not UTF-8 (byte 17"),
        (b'{"completion": "\0", "gold": 1}', "a NUL byte"),
        (b'{"completion": "' + b"a" * 1_000_000 + b'", "gold": 1}', "longer than 1000000 bytes"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(run: Run, tmp_path: Path, line: bytes, says: str) -> None:
    (tmp_path / "c.jsonl").write_bytes(b'{"completion": "#### 1", "gold": 1}\n' + line + b"\n")
    done = run("grade", "c.jsonl", "--records", "out.jsonl")
    assert done.returncode == 4
    assert f"error: c.jsonl:2: {says}" in done.stderr or ("c.jsonl:2: " in done.stderr and says in done.stderr)
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [((), 2, "grade needs a file"), (("gone.jsonl",), 4, "gone.jsonl"), (("empty.jsonl",), 4, "no completions")],
)
def test_a_file_is_needed(run: Run, tmp_path: Path, arguments: tuple[str, ...], code: int, says: str) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    done = run("grade", *arguments)
    assert done.returncode == code
    assert says in done.stderr


def test_it_imports_no_framework(tmp_path: Path) -> None:
    source = write(tmp_path / "c.jsonl", ROWS)
    code = (
        f"import sys, cli\nassert cli.main(['grade', {str(source)!r}]) == 0\n"
        "print([name for name in ('torch', 'mlx', 'mlx_lm', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
