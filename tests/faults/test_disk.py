"""A disk that is full, or cannot be written: exit code 7, one line with the folder's name, and nothing lost."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gsm8k_core.tracking.terminal import MetricsFile, Terminal
from gsm8k_core.training import runs
from gsm8k_core.training.checkpoints import newest
from gsm8k_core.training.memory import Room
from gsm8k_core.training.runs import read_manifest
from gsm8k_core.types import StepEvent, StorageError
from tests.e2e.conftest import Run
from tests.faults.conftest import LINUX, SHORT, Disk, enlarge, one_error, remount_read_only
from verbs.train.room import check_room
from verbs.train.segment import Segment

pytestmark = LINUX
ENOUGH = 4000  # kB; the run below leaves about 500


def train(run: Run, model: Path, data: Path, backend: str, folder: Path) -> Any:
    return run("train", "--model", model, "--data", data, "--backend", backend, *SHORT, "--output-dir", folder)


def whole_checkpoints(folder: Path) -> list[int]:
    """The newest complete checkpoint, read to the last bit."""
    said: list[str] = []
    found = newest(folder / "checkpoints", said.append)
    assert said == []
    if found is not None:
        found.state()
    return [found.update] if found else []


@pytest.mark.parametrize("kilobytes", [64, 300, 420])
def test_a_disk_without_room_for_the_model_and_a_checkpoint_is_refused_before_training(
    kilobytes: int, backend_name: str, small_disk: Disk, run: Run, model: Path, data: Path, monkeypatch: Any
) -> None:
    disk = small_disk(kilobytes)
    for opened in ("verbs.train.verb.open_model", "backends.open"):
        monkeypatch.setattr(opened, lambda *given: pytest.fail("it was loaded"))
    done = train(run, model, data, backend_name, disk / "out")
    line = one_error(done)
    assert (done.returncode, f"{disk} has " in line, "the model with one checkpoint takes 4" in line) == (7, True, True)
    assert line.endswith(", or give another --output-dir")
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize(
    ("goes_on", "instead"), [(False, "give another --output-dir"), (True, "move runs/one to another disk")]
)
def test_what_helps_where_there_is_no_room(goes_on: bool, instead: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("verbs.train.room.room_of", lambda job: Room(1, 3, 4, 9, 2, Path("runs")))
    job: Any = SimpleNamespace(run=SimpleNamespace(folder=Path("runs/one")) if goes_on else None)
    with pytest.raises(StorageError, match=f"^runs has 2 bytes free, .* takes 4 bytes; free 2 bytes, or {instead}$"):
        check_room(job, Terminal(json_only=False))


def test_little_room_is_said_and_a_dry_run_refuses(small_disk: Disk, run: Run, model: Path, data: Path) -> None:
    disk = small_disk(700)
    done = train(run, model, data, "torch", disk / "out")
    assert (done.returncode, "disk     about 1.08 MB (108 kB the model, 323 kB a checkpoint); " in done.stdout) == (
        0,
        True,
    )
    assert "there may be no room for every checkpoint; --save-total-limit 1, or another --output-dir" in done.stdout
    dry = run(
        *(
            "train",
            "--model",
            model,
            "--data",
            data,
            "--backend",
            "torch",
            *SHORT,
            "--dry-run",
            "--output-dir",
            disk / "b",
        )
    )
    assert (dry.returncode, f"{disk} has " in one_error(dry)) == (7, True)


class Ballast:
    """Fills a disk to the last byte, and empties it again."""

    def __init__(self, disk: Path) -> None:
        self.file = disk / "ballast"

    def fill(self) -> None:
        with self.file.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))

    def empty(self) -> None:
        self.file.unlink()


FULL_AT = {
    "metrics.jsonl": (MetricsFile, "__call__", 2),  # before the event of the first update
    "best/": (Segment, "_keep_best", 1),
    "a checkpoint": (Segment, "_save", 1),
    "the model": (Segment, "save_model", 1),
}


@pytest.mark.parametrize("moment", FULL_AT)
def test_a_disk_that_somebody_fills_ends_the_run_with_7_and_what_to_free(
    moment: str, backend_name: str, small_disk: Disk, run: Run, model: Path, data: Path, monkeypatch: Any
) -> None:
    disk = small_disk(ENOUGH)
    ballast, (owner, name, number) = Ballast(disk), FULL_AT[moment]
    original, seen = getattr(owner, name), 0

    def filled(*given: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == number:
            ballast.fill()
        return original(*given)

    monkeypatch.setattr(owner, name, filled)
    measured = ("--eval-steps", "1", "--eval-problems", "2", "--eval-max-new-tokens", "4", "--guard-problems", "0")
    asked = ("train", "--model", model, "--data", data, "--backend", backend_name, *SHORT, *measured)
    done = run(*asked, "--output-dir", disk / "out")
    line = one_error(done)
    assert done.returncode == 7, line
    before = whole_checkpoints(disk / "out")
    kept = f"kept: {disk / 'out/checkpoints/update-000001'};" if before else "there is no checkpoint yet;"
    assert kept in line
    assert re.search(rf"; {disk / 'out'} has \d\S* (bytes|kB) free, and the model with a checkpoint takes 4", line)
    assert ".new" not in line
    assert line.endswith(
        f"free the difference, or move {disk / 'out'} to another disk, then go on with: "
        f"python cli.py train --resume {disk / 'out'}"
    )
    monkeypatch.undo()
    ballast.empty()
    again = run("train", "--resume", disk / "out")
    assert again.returncode == 0, again.stderr
    assert (disk / "out/model/model.safetensors").is_file()
    finished = json.loads((disk / "out/run.json").read_text())
    assert (finished["status"], finished["resumed_after"]) == ("done", before[-1] if before else 0)


def test_where_the_model_cannot_be_written_and_a_checkpoint_can_nothing_is_trained_again(
    backend_name: str, run: Run, model: Path, data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    assert train(run, model, data, backend_name, tmp_path / "whole").returncode == 0
    replace = runs.Run.replace

    def refuse(claimed: Any, target: Path, write: Any) -> None:
        raise StorageError(f"{target} was not written: the disk is full; free some space or give another folder")

    monkeypatch.setattr(runs.Run, "replace", refuse)
    done = train(run, model, data, backend_name, tmp_path / "out")
    line = one_error(done)
    assert (done.returncode, f"kept: {tmp_path / 'out/checkpoints/update-000002'};" in line) == (7, True), line
    monkeypatch.setattr(runs.Run, "replace", replace)
    again = run("train", "--resume", tmp_path / "out")
    assert again.returncode == 0, again.stderr
    finished = json.loads((tmp_path / "out/run.json").read_text())
    assert (finished["status"], finished["resumed_after"], finished["outcome"]["updates"]) == ("done", 2, 2)
    ours, theirs = ((tmp_path / name / "model/model.safetensors").read_bytes() for name in ("out", "whole"))
    assert ours == theirs


def test_the_oldest_checkpoint_makes_room_before_the_next_one_is_written(
    small_disk: Disk, run: Run, model: Path, data: Path
) -> None:
    """With a limit of two, a disk for two is enough: a third one beside them for a moment is not needed."""
    disk = small_disk(900)
    more = ("--max-samples", "16", "--save-total-limit", "2")
    done = run(
        *("train", "--model", model, "--data", data, "--backend", "torch", *SHORT, *more, "--output-dir", disk / "out")
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (disk / "out/checkpoints").iterdir()) == ["update-000002", "update-000003"]


# Others write there, too: from a disk on which only run.json fits, to one that is too small for the model alone.
@pytest.mark.parametrize("kilobytes", [4, 16, 64, 160, 300, 360, 420])
def test_a_disk_that_runs_full_ends_the_run_with_7_and_it_goes_on_when_there_is_room(
    kilobytes: int, backend_name: str, small_disk: Disk, run: Run, model: Path, data: Path, monkeypatch: Any
) -> None:
    disk = small_disk(kilobytes)
    monkeypatch.setattr("verbs.train.verb.check_room", lambda *given: None)  # there was room when it looked
    done = train(run, model, data, backend_name, disk / "out")
    line = one_error(done)
    assert done.returncode == 7, line
    assert str(disk) in line
    assert "the disk is full" in line or "No space left" in line, line
    before = whole_checkpoints(disk / "out")
    manifest = read_manifest(disk / "out")
    enlarge(disk, ENOUGH)
    if manifest is None:  # it ended before there was a run: the folder is free
        assert train(run, model, data, backend_name, disk / "out").returncode == 0
        return
    again = run("train", "--resume", disk / "out")
    assert again.returncode == 0, again.stderr
    finished = json.loads((disk / "out/run.json").read_text())
    assert (finished["status"], finished["resumed_after"]) == ("done", before[-1] if before else 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_an_event_that_does_not_fit_is_a_storage_error_and_closing_is_none() -> None:
    metrics = MetricsFile(Path("/dev/full"))
    with pytest.raises(StorageError, match="/dev/full cannot be written"):
        metrics(StepEvent("update", {"update": 1}))
    metrics.close()  # the line is still in the buffer: a plain OSError here would end the run with 1, not 7


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_loaded(
    backend_name: str, small_disk: Disk, run: Run, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk(64)
    remount_read_only(disk)  # root may write anywhere else, whatever the rights say
    for opened in ("backends.open", "verbs.train.start.load_data", "verbs.train.start.resolve_model"):
        monkeypatch.setattr(opened, lambda *given: pytest.fail("it was loaded"))
    done = train(run, model, data, backend_name, disk / "out")
    assert f"{disk / 'out'} cannot be written (Read-only file system)" in one_error(done)
    assert done.returncode == 7


def test_an_evaluation_on_a_full_disk_ends_with_7_and_goes_on_later(
    small_disk: Disk, run: Run, model: Path, data: Path
) -> None:
    disk = small_disk(12)
    asked = (
        "eval",
        "--model",
        model,
        "--data",
        data,
        "--backend",
        "torch",
        "--device",
        "cpu",
        "--max-new-tokens",
        "8",
        "--output-dir",
        disk,
    )
    done = run(*asked)
    line = one_error(done)
    assert (done.returncode, str(disk) in line) == (7, True), line
    enlarge(disk, 4000)
    assert run(*asked, "--json").returncode == 0
    (records,) = disk.rglob("records.jsonl")
    assert len(records.read_text().splitlines()) == 40
