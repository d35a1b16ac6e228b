"""Claiming a run folder, and files that are whole or not there."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from gsm8k_core.files import write_json
from gsm8k_core.training.runs import code_hash, create, default_folder, read_manifest, reopen, run_of_model
from gsm8k_core.types import StorageError


def test_a_new_run_has_a_manifest_with_its_versions(tmp_path: Path) -> None:
    run = create(tmp_path / "run", {"config": {"seed": 3}})
    manifest = read_manifest(run.folder)
    assert manifest is not None
    assert (manifest["status"], manifest["config"]) == ("running", {"seed": 3})
    assert "torch" in manifest["versions"]


def test_other_code_in_any_part_that_makes_an_answer_has_another_hash(tmp_path: Path) -> None:
    found = set()
    for part in ("", "gsm8k_core/a.py", "backends/torch/b.py", "verbs/evaluate.py"):
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        if part:
            (tmp_path / part).write_text("x = 1\n")
        found.add(code_hash(tmp_path))
    assert len(found) == 4


def test_a_taken_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    run = create(tmp_path / "run", {})
    before = (run.folder / "run.json").read_bytes()
    with pytest.raises(StorageError, match=r"already holds a run \(running, pid \d+\).*--output-dir .*run-2"):
        create(tmp_path / "run", {})
    assert (run.folder / "run.json").read_bytes() == before


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(StorageError, match="is a file; give a new folder"):
        create(tmp_path / "run", {})
    assert (tmp_path / "run").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="give another --output-dir"):
        create(tmp_path / "file" / "run", {})


@pytest.mark.parametrize("place", ["runs.tempfile.TemporaryFile", "hold._name"])
def test_a_run_that_cannot_be_written_is_copied_and_the_copy_resumed(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another --output-dir is no way out for one that goes on."""
    create(tmp_path / "run", {}).release()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(f"gsm8k_core.training.{place}", refuse)
    why = r"cannot be written \(Permission denied\)"
    with pytest.raises(StorageError, match=rf"{why}; make it writable, or copy the run and resume the copy$"):
        reopen(tmp_path / "run")
    with pytest.raises(StorageError, match=rf"{why}; give another --output-dir$"):
        create(tmp_path / "other", {})


def test_two_runs_in_the_same_second_get_two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    now = datetime.datetime(2026, 11, 22, 9, 5, 1)
    create(default_folder("m", now), {})
    assert default_folder("m", now) == Path("runs/20261122-090501-m-2")


def test_a_model_folder_knows_its_run(tmp_path: Path) -> None:
    run = create(tmp_path / "run", {})
    assert run_of_model(run.folder / "model") == run.folder
    assert run_of_model(run.folder / "checkpoints" / "update-000002") == run.folder
    assert run_of_model(run.folder / "checkpoints" / "update-000002" / "model") == run.folder
    assert run_of_model(run.folder / "checkpoints" / "update-000002" / "model" / "deeper") is None
    assert run_of_model(tmp_path) is None


def test_the_default_folder_tells_when_and_which_model() -> None:
    now = datetime.datetime(2026, 11, 22, 9, 5, 1)
    assert default_folder("Qwen/Qwen2.5-0.5B-Instruct", now) == Path("runs/20261122-090501-Qwen2.5-0.5B-Instruct")
    assert default_folder("../a b/", now) == Path("runs/20261122-090501-a-b")
    assert default_folder("../mode\u0300le_模型", now) == Path("runs/20261122-090501-mod\u00e8le-模型")
    assert default_folder("..", now) == Path("runs/20261122-090501-model")
    assert default_folder("x" * 250, now).name == f"20261122-090501-{'x' * 60}"  # a system takes 255 bytes


@pytest.mark.parametrize("content", [b"", b"[]", b'{"status": "run', b"\xff", b"[" * 200_000])
def test_a_damaged_manifest_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    assert read_manifest(tmp_path) is None


def test_a_number_that_json_does_not_have_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
