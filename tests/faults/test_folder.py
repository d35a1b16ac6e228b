"""A run's folder that is removed, moved or replaced while the run goes on: exit 7, and nothing is made in its place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gsm8k_core.training import runs
from gsm8k_core.training.pilot import RunPilot
from gsm8k_core.types import StorageError
from tests.e2e.conftest import Run
from tests.faults.conftest import SHORT, one_error
from verbs.train.segment import Segment

Strike = Callable[[Path], None]


def remove(folder: Path) -> None:
    shutil.rmtree(folder)


def move(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))


def replace(folder: Path) -> None:
    """Somebody's new folder of the same name, and perhaps of the same number."""
    shutil.rmtree(folder)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "notes").write_text("mine")


def take_lock(folder: Path) -> None:
    (folder / ".lock").unlink()


def take_metrics(folder: Path) -> None:
    (folder / "metrics.jsonl").unlink()


# When it happens: before the first checkpoint, before best/, before the end's model/.
MOMENTS: dict[str, tuple[type, str, int]] = {
    "an update": (RunPilot, "after", 1),
    "a checkpoint": (Segment, "_save", 1),
    "best": (Segment, "_keep_best", 1),
    "the model": (Segment, "save_model", 1),
}


def at(moment: str, folder: Path, strike: Strike, patch: pytest.MonkeyPatch) -> None:
    """Has it happen just before the moment comes."""
    owner, name, number = MOMENTS[moment]
    original, seen = getattr(owner, name), 0

    def struck(*given: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == number:
            strike(folder)
        return original(*given)

    patch.setattr(owner, name, struck)


@pytest.fixture
def train(run: Run, model: Path, data: Path, tmp_path: Path) -> Callable[[str], Any]:
    measured = ("--eval-steps", "1", "--eval-problems", "2", "--eval-max-new-tokens", "4", "--guard-problems", "0")
    return lambda backend: run(
        *("train", "--model", model, "--data", data, "--backend", backend),
        *(*SHORT, *measured, "--output-dir", tmp_path / "out"),
    )


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_removed_run_ends_with_7_and_is_not_made_again(
    moment: str, train: Any, tmp_path: Path, backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(moment, tmp_path / "out", remove, monkeypatch)
    done = train(backend_name)
    line = one_error(done)
    assert (done.returncode, f"{tmp_path / 'out'} was removed while the run went on" in line) == (7, True), line
    assert "nothing is left of its weights; start it again, with a new --output-dir" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_moved_run_ends_with_7_names_its_weights_and_goes_on_there(
    moment: str, train: Any, run: Run, tmp_path: Path, backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "moved"
    at(moment, tmp_path / "out", move, monkeypatch)
    done = train(backend_name)
    line = one_error(done)
    assert (done.returncode, f"{tmp_path / 'out'} was moved to {moved} while" in line) == (7, True), line
    assert line.endswith(f"go on with: python cli.py train --resume {moved}")
    there = sorted((moved / "checkpoints").glob("update-*"))
    weights = f"after update 1 are in {there[-1]};" if there else f"there is no checkpoint, but {moved / 'best'};"
    assert weights in line or (moment in ("an update", "best") and "it holds no weights yet;" in line), line
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    again = run("train", "--resume", moved)
    assert again.returncode == 0, again.stderr
    events = [json.loads(text) for text in (moved / "metrics.jsonl").read_text().splitlines()]
    assert [event["update"] for event in events if event["event"] == "update"] == [1, 2]


def test_a_folder_in_its_place_is_somebody_elses(
    train: Any, tmp_path: Path, backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at("a checkpoint", tmp_path / "out", replace, monkeypatch)
    done = train(backend_name)
    assert (done.returncode, "was removed while the run went on" in one_error(done)) == (7, True)
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["checkpoints", "notes"]


@pytest.mark.parametrize(("strike", "moment"), [(take_lock, "the model"), (take_metrics, "an update")])
def test_a_file_that_holds_the_run_together_is_missed(
    strike: Strike, moment: str, train: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(moment, tmp_path / "out", strike, monkeypatch)
    done = train("torch")
    assert done.returncode == 7
    assert one_error(done).endswith(f" with: python cli.py train --resume {tmp_path / 'out'}")
    monkeypatch.undo()
    assert run("train", "--resume", tmp_path / "out").returncode == 0


def test_another_folder_of_the_same_name_is_not_the_one_that_was_claimed(tmp_path: Path) -> None:
    held = runs.create(tmp_path / "run", {})
    held.record(status="running")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    (tmp_path / "run").rename(tmp_path / "moved")
    (tmp_path / "copy").rename(tmp_path / "run")
    before = (tmp_path / "run/run.json").read_bytes()
    with pytest.raises(StorageError, match=f"was moved to {tmp_path / 'moved'} while the run went on"):
        held.record(status="done")
    assert (tmp_path / "run/run.json").read_bytes() == before
