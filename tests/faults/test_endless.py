"""Files without an end, of any size, or with values that unfold: refused in one line, wherever a file is read."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from gsm8k_core.files import MAX_JSON_BYTES, open_plain, read_json, read_plain
from gsm8k_core.types import DataError
from tests.e2e.conftest import Run
from tests.faults.conftest import one_error
from tests.waiting import ends

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes and devices are POSIX's")


def pipe(path: Path) -> None:
    os.mkfifo(path)  # opened without care, it waits for a writer for ever


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(3_000_000_000)  # takes no room on the disk


ENDLESS = {"a pipe": pipe, "a device": device, "larger than": huge}
Command = Callable[[Path], tuple[object, ...]]
# What a person types with the file at this place of a folder, and the exit code.
READERS: dict[str, tuple[str, Command, int]] = {
    "the settings": ("c.yaml", lambda folder: ("train", "--config", folder / "c.yaml"), 2),
    "completions": ("x.jsonl", lambda folder: ("grade", folder / "x.jsonl"), 4),
    "problems": ("x.jsonl", lambda folder: ("inspect", "--data", folder / "x.jsonl"), 4),
    "questions": ("q.txt", lambda folder: ("generate", "--file", folder / "q.txt"), 4),
    "metrics": ("metrics.jsonl", lambda folder: ("plot", folder / "metrics.jsonl"), 4),
}


@pytest.mark.parametrize("kind", ENDLESS)
@pytest.mark.parametrize("reader", READERS)
def test_a_file_without_an_end_is_refused(reader: str, kind: str, run: Run, model: Path, tmp_path: Path) -> None:
    name, command, code = READERS[reader]
    ENDLESS[kind](tmp_path / name)
    asked = command(tmp_path)
    if asked[0] in ("inspect", "generate"):
        asked = (*asked, "--model", model)
    done = []
    ends(lambda: done.append(run(*asked)))
    line = one_error(done[0])
    assert done[0].returncode == code, line
    assert name in line


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_run_whose_record_has_no_end_is_a_damaged_one(kind: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "runs" / "a").mkdir(parents=True)
    ENDLESS[kind](tmp_path / "runs" / "a" / "run.json")
    ENDLESS[kind](tmp_path / "runs" / "a" / "metrics.jsonl")
    (tmp_path / "runs" / "a" / "logs" / "eval-1").mkdir(parents=True)
    ENDLESS[kind](tmp_path / "runs" / "a" / "logs" / "eval-1" / "summary.json")
    done = []
    ends(lambda: done.append(run("runs", "runs")))
    assert (done[0].returncode, "damaged" in done[0].stdout) == (0, True), done[0]
    ends(lambda: done.append(run("train", "--resume", "runs/a")))
    assert (done[1].returncode, "has no run.json that can be read" in one_error(done[1])) == (2, True), done[1]


@pytest.mark.parametrize("name", ["records.jsonl", "key.json", ".lock"])
def test_an_evaluation_writes_into_no_pipe(name: str, run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    asked = ("eval", "--model", model, "--data", data, "--backend", "torch", "--dtype", "float32", "--max-samples", "2")
    asked = (*asked, "--max-new-tokens", "4", "--output-dir", tmp_path / "out")
    assert run(*asked).returncode == 0
    (records,) = (tmp_path / "out").rglob("records.jsonl")
    path = records.with_name(name)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    done = []
    ends(lambda: done.append(run(*asked)))
    if name == "key.json":  # replaced, never opened
        assert done[0].returncode == 0
        assert stat.S_ISREG(path.stat().st_mode)
    else:
        assert (done[0].returncode, f"{path} is a pipe" in one_error(done[0])) == (7, True), done[0]


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100)
    assert read_plain(tmp_path / "a", 100) == b"x" * 100
    small = os.stat_result((stat.S_IFREG, *[0] * 9))
    monkeypatch.setattr(os, "stat", lambda path: small)
    monkeypatch.setattr(os, "fstat", lambda handle: small)
    with pytest.raises(DataError, match="larger than"):
        read_plain(tmp_path / "a", 99)


def test_a_file_that_becomes_a_pipe_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "a")
    monkeypatch.setattr(os, "stat", lambda path: os.stat_result((stat.S_IFREG, *[0] * 9)))
    with pytest.raises(DataError, match="is a pipe, not a plain file"):
        open_plain(tmp_path / "a")


def test_a_json_file_has_a_largest_size(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(DataError, match=r"a\.json is larger than 64 MiB"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("name", ["tokenizer.json", "merges.txt", "chat_template.jinja"])
def test_a_tokenizers_file_of_any_size_is_refused(name: str, run: Run, model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    huge(folder / name)
    done = run("generate", "how many ?", "--model", folder)
    assert (done.returncode, str(folder / name) in one_error(done)) == (4, True), done.stderr


# --- YAML -------------------------------------------------------------------------------------------------------------

BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{this}: &{this} [{','.join([f'*{last}'] * 10)}]\n" for last, this in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BOMB, "there is an alias, *a"),
        ("a: &a 1\nmax_samples: *a", "there is an alias, *a"),
        ("<<: {max_samples: 3, seed: [}", "is not YAML (line 1: "),
        ("max_samples: !!int abc", "is not YAML (line 1: that is not read as int)"),
        ("seed: 1\nmax_samples: !!timestamp abc", "is not YAML (line 2: that is not read as timestamp)"),
        ("max_samples: !!float x", "that is not read as float"),
        ("max_samples: !!bool x", "that is not read as bool"),
        (f"max_samples: {'9' * 5000}", "that is not read as int"),
        (f"max_samples: 0x{'f' * 5000}", "that is not read as int"),
        (f"? {'9' * 5000}\n: 1", "that is not read as int"),
        ("2024-13-45: 1", "there is no setting '2024-13-45'"),
        ("2024-01-01: 1", "there is no setting '2024-01-01'"),
        ("max_samples: 2024-13-45", "max_samples must be a whole number (got '2024-13-45')"),
        ("? [1]\n: 2", "is not YAML (line 1: found unhashable key)"),
        ("model: !!python/object/apply:os.mkdir [x]", "could not determine a constructor"),
        ("model: \0", "is not YAML"),
        (f"model: {{a: {'x' * 50_000}}}", "..."),
    ],
)
def test_yaml_that_unfolds_or_is_odd_is_one_line(text: str, says: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    done = run("train", "--config", tmp_path / "c.yaml")
    line = one_error(done)
    assert done.returncode == 2, line
    assert says in line
    assert len(line) < 1500
