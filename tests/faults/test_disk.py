"""A disk that is full, or cannot be written: exit code 7, one line with the folder's name, and nothing lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gsm8k_core.tracking.terminal import MetricsFile
from gsm8k_core.training.checkpoints import newest
from gsm8k_core.training.runs import read_manifest
from gsm8k_core.types import StepEvent, StorageError
from tests.e2e.conftest import Run
from tests.faults.conftest import LINUX, SHORT, Disk, enlarge, one_error, remount_read_only

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


# From a disk on which only run.json fits, to one that is too small for the trained model alone.
@pytest.mark.parametrize("kilobytes", [4, 16, 64, 160, 300, 360, 420])
def test_a_disk_that_runs_full_ends_the_run_with_7_and_it_goes_on_when_there_is_room(
    kilobytes: int, backend_name: str, small_disk: Disk, run: Run, model: Path, data: Path
) -> None:
    disk = small_disk(kilobytes)
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
