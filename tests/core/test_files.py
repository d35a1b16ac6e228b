"""JSON files are replaced in one step or not at all, and syncing works on every system."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from gsm8k_core import files
from gsm8k_core.config.yaml_file import read_yaml
from gsm8k_core.files import CHUNK_BYTES, new_folder, read_json, same_files, sync, write_json
from gsm8k_core.models.tensors import check_safetensors
from gsm8k_core.problems.lines import read_objects
from gsm8k_core.problems.reading import RowOptions, read_problems
from gsm8k_core.types import GSM8KError, StorageError
from verbs.serve import _key_of_file


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    value = {"question": "naïve café — 北京 🙂", "n": 1.5, "none": None}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert "北京" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert os.listdir(tmp_path) == ["a.json"]


def test_half_a_surrogate_pair_is_escaped(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "caf\udce9 é"})  # as os.fsdecode gives it for a Latin-1 file name
    assert (tmp_path / "a.json").read_text(encoding="utf-8").strip() == '{\n  "name": "caf\\udce9 é"\n}'
    assert read_json(tmp_path / "a.json") == {"name": "caf\udce9 é"}


def test_folders_are_the_same_where_every_byte_of_every_file_is(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    assert not same_files(one, one)  # it is not there
    for folder in (one, other):
        folder.mkdir()
        (folder / "a").write_bytes(b"x" * CHUNK_BYTES)
    assert same_files(one, other)
    for content in (b"x" * CHUNK_BYTES + b"y", b"x" * (CHUNK_BYTES - 1), b"x" * (CHUNK_BYTES - 1) + b"y"):
        (other / "a").write_bytes(content)
        assert not same_files(one, other)
    (other / "a").write_bytes(b"x" * CHUNK_BYTES)
    (other / "b").mkdir()
    assert not same_files(one, other)
    (one / "b").mkdir()
    assert not same_files(one, other)  # a folder in it is not looked into


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_what_json_does_not_have_leaves_the_old_file(value: object, tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "a.json", {"new": value})
    assert read_json(tmp_path / "a.json") == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_json(tmp_path / "a.json", {"old": 1})
    monkeypatch.setattr(os, where, full)
    with pytest.raises(StorageError, match=r"a\.json was not written: the disk is full"):
        write_json(tmp_path / "a.json", {"new": 2})
    monkeypatch.undo()
    assert read_json(tmp_path / "a.json") == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_kill_before_the_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    write_json(tmp_path / "a.json", {"old": 1})
    monkeypatch.setattr(os, "replace", kill)
    with pytest.raises(KeyboardInterrupt):
        write_json(tmp_path / "a.json", {"new": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    ("name", "reason"), [("missing/a.json", "No such file or directory"), ("taken", "Is a directory")]
)
def test_a_place_that_cannot_be_written_is_named(name: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(StorageError, match=f"{tmp_path / name} was not written: {reason}"):
        write_json(tmp_path / name, {})
    assert os.listdir(tmp_path) == ["taken"]


def test_inside_a_new_folder_the_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError) as caught, new_folder(tmp_path / "model") as folder:
        write_json(folder / "config.json", {})
    assert str(caught.value).startswith(f"{tmp_path / 'model'} was not written: the disk is full")
    assert ".tmp" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_file_is_synced_as_windows_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There, fsync refuses a handle that is open for reading only, and os.open refuses a folder."""
    flags: dict[str, int] = {}
    really = os.open

    def note(path: Path, flag: int) -> int:
        flags[path.name] = flag
        return really(path, flag)

    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(os, "open", note)
    monkeypatch.setattr(files, "WINDOWS", True)
    sync(tmp_path / "file")
    sync(tmp_path / "folder")
    assert flags == {"file": os.O_RDWR}
    monkeypatch.setattr(files, "WINDOWS", False)
    sync(tmp_path / "folder")
    assert flags == {"file": os.O_RDWR, "folder": os.O_RDONLY}


@pytest.mark.skipif(os.name == "nt", reason="rights of POSIX")
@pytest.mark.parametrize(("umask", "rights"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_what_safetensors_writes_has_the_rights_that_the_umask_leaves(tmp_path: Path, umask: int, rights: int) -> None:
    before = os.umask(umask)
    try:
        with new_folder(tmp_path / "model") as folder:
            save_file({"w": np.zeros(3, np.float32)}, folder / "model.safetensors")
            assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o600  # its own way
            (folder / "more").mkdir()
            save_file({"w": np.zeros(3, np.float32)}, folder / "more/moments.safetensors")
            write_json(folder / "config.json", {})
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert {path.name: path.stat().st_mode & 0o777 for path in files} == dict.fromkeys(
        ["model.safetensors", "moments.safetensors", "config.json"], rights
    )


READERS: dict[str, Callable[[Path], Any]] = {
    "a.json": read_json,
    "a.yaml": read_yaml,
    "a.key": _key_of_file,
    "a.safetensors": check_safetensors,
    "a.jsonl": lambda path: list(read_objects(path, "give a row a line")),
    "a.parquet": lambda path: read_problems([path], "train", RowOptions()),
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_the_system_denies_is_a_matter_of_its_rights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not of what is in it."""

    def denied(opens: Callable[..., Any]) -> Callable[..., Any]:
        def open_(path: object, *more: Any, **options: Any) -> Any:
            if str(path) == str(tmp_path / name):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return opens(path, *more, **options)

        return open_

    (tmp_path / name).write_bytes(b"{}")
    for place in (os, io, builtins):
        monkeypatch.setattr(place, "open", denied(place.open))
    with pytest.raises(GSM8KError, match=rf"{name} cannot be read \(Permission denied\); check its rights$"):
        READERS[name](tmp_path / name)
