"""A checkpoint is whole or not there, whatever fails while it is written; a damaged one is named and passed over."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from gsm8k_core.training.checkpoints import _read_record, prune
from gsm8k_core.types import DataError, DivergedError, StorageError
from tests.fake_checkpoints import FakeLive, cut_short, find, flip, found, rewrite, same_state, save
from tests.waiting import CEILING

ROOT = Path(__file__).parents[3]

# --- damage ---------------------------------------------------------------------------------------------------------


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def move_and_link(path: Path) -> None:
    path.rename(path.parent.parent / "moved")
    path.symlink_to("../moved")


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut short": (cut_short, r"is cut short \(\d+ of \d+ bytes\)"),
    "emptied": (lambda path: path.write_bytes(b""), r"is cut short \(0 of \d+ bytes\)"),
    "bit-flipped": (flip, "is damaged"),
    "longer": (grow, "has grown"),
    "missing": (Path.unlink, "is missing"),
    "a link": (move_and_link, "is a link, and links are not followed here"),
    "a folder": (make_folder, "is not a file"),
}
FILES = ["moments.safetensors", "model/config.json", "model/model-2.safetensors"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_file_is_named_and_the_one_before_is_used(case: str, file: str, tmp_path: Path) -> None:
    save(tmp_path / "c", 10)
    path = save(tmp_path / "c", 20) / file
    damage, words = DAMAGE[case]
    damage(path)
    checkpoint, said = find(tmp_path / "c")
    assert checkpoint is not None
    assert checkpoint.update == 10
    assert same_state(checkpoint.state(), FakeLive(10).now)
    (line,) = said
    assert line.startswith(f"checkpoint update-000020 is passed over: {path} ")
    assert re.search(words, line)
    assert "\n" not in line


RECORDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "is missing"),
    "cut short": (cut_short, ""),
    "half": (lambda path: os.truncate(path, 100), "is not valid JSON"),
    "empty": (lambda path: path.write_bytes(b""), "is not valid JSON"),
    "garbage": (lambda path: path.write_bytes(bytes(range(256))), "is not valid JSON"),
    "deep": (lambda path: path.write_bytes(b"[" * 100_000), "is not valid JSON"),
    "rather deep": (lambda path: path.write_bytes(b'{"schema": 1, "facts": ' + b"[" * 900 + b"]" * 900 + b"}"), ""),
    "a list": (lambda path: path.write_bytes(b"[]"), "holds no JSON object"),
    "an empty object": (lambda path: path.write_bytes(b"{}"), "has schema None; this version reads 1"),
    "newer": (lambda path: rewrite(path.parent, schema=2), "has schema 2; this version reads 1"),
    "a link": (move_and_link, "is a link"),
    "a folder": (make_folder, "is not a file"),
    "another number": (lambda path: path.write_text(path.read_text().replace("0.25", "0.75")), "is damaged"),
    "not finite": (lambda path: path.write_text(path.read_text().replace("0.25", "NaN")), "is not valid JSON"),
    "a wrong type": (lambda path: rewrite(path.parent, losses=["1"]), r"\(losses.0: Input should be a valid number\)"),
    "a word too many": (lambda path: rewrite(path.parent, more=1), r"\(more: Extra inputs are not permitted\)"),
    "no moments": (lambda path: rewrite(path.parent, files={}), "names no moments.safetensors"),
}


@pytest.mark.parametrize("case", RECORDS)
def test_a_damaged_record_is_named_and_the_one_before_is_used(case: str, tmp_path: Path) -> None:
    save(tmp_path / "c", 10)
    path = save(tmp_path / "c", 20) / "checkpoint.json"
    damage, words = RECORDS[case]
    if case == "cut short":  # its last character is a line end: cut off, nothing is lost
        cut_short(path)
    damage(path)
    checkpoint, said = find(tmp_path / "c")
    assert checkpoint is not None
    assert checkpoint.update == 10
    (line,) = said
    assert line.startswith(f"checkpoint update-000020 is passed over: {path} ")
    assert re.search(words, line)


def test_no_flipped_bit_of_the_record_goes_unnoticed(tmp_path: Path) -> None:
    folder = save(tmp_path, 10, events=[{"update": 3, "total": 9}], facts={"rate": 1e-5})
    before = _read_record(folder)
    whole = (folder / "checkpoint.json").read_bytes()
    noticed = 0
    for bit in range(0, 8 * len(whole), 7):  # every byte, and each of its places in turn
        flip(folder / "checkpoint.json", bit)
        try:
            assert _read_record(folder) == before  # `e` and `E` in a number mean the same
        except DataError:
            noticed += 1
        (folder / "checkpoint.json").write_bytes(whole)
    assert noticed > len(whole)


def test_two_damaged_ones_and_a_good_one(tmp_path: Path) -> None:
    for update in (10, 20, 30):
        save(tmp_path, update)
    flip(tmp_path / "update-000030/moments.safetensors")
    cut_short(tmp_path / "update-000020/model/model-1.safetensors")
    checkpoint, said = find(tmp_path)
    assert checkpoint is not None
    assert checkpoint.update == 10
    assert [line.split()[1] for line in said] == ["update-000030", "update-000020"]
    assert sorted(os.listdir(tmp_path)) == ["update-000010", "update-000020", "update-000030"]


def test_where_all_are_damaged_there_is_none(tmp_path: Path) -> None:
    flip(save(tmp_path, 10) / "moments.safetensors")
    checkpoint, said = find(tmp_path)
    assert (checkpoint, len(said)) == (None, 1)


def test_a_file_that_is_not_its_own_is_never_read(tmp_path: Path) -> None:
    folder = save(tmp_path, 10)
    (folder / ".DS_Store").write_text("mine")
    save_file({"norm": np.zeros(6, np.float32)}, str(folder / "model" / "model-3.safetensors"))
    assert same_state(found(tmp_path).state(), FakeLive(10).now)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "model/../../x", "model//x", "./x", "", "..\\x", "C:x", "model\\x", "a\0b"]
)
def test_a_name_that_leads_out_of_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "c", 10)
    (tmp_path / "c" / "x").write_text("")
    files = json.loads((folder / "checkpoint.json").read_text())["files"]
    rewrite(folder, files={name: {"sha256": "", "size": 0}, **files})
    checkpoint, said = find(tmp_path / "c")
    assert checkpoint is None
    assert f"checkpoint.json names {name!r}, which is no file of this folder" in said[0]


def test_a_linked_model_folder_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "c", 10)
    (folder / "model").rename(tmp_path / "model")
    (folder / "model").symlink_to(tmp_path / "model")
    checkpoint, said = find(tmp_path / "c")
    assert checkpoint is None
    assert f"{folder / 'model'} is a link" in said[0]


# --- failures while writing -----------------------------------------------------------------------------------------

POINTS = [(os, "fsync"), (os, "rename"), (os, "replace"), (os, "mkdir"), (io, "open")]


def counted(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> list[str]:
    """Makes call number `at` of all that touches the disk raise; returns the list of the calls."""
    calls: list[str] = []

    def wrap(really: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            calls.append(name)
            if len(calls) == at:
                raise error
            return really(*args, **named)

        return call

    for module, name in POINTS:
        monkeypatch.setattr(module, name, wrap(getattr(module, name), name))
    return calls


def fail_everywhere(folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> list[BaseException]:
    """Saves with a failure at point 1, 2, 3... until it gets through; a whole one must be there each time."""
    raised: list[BaseException] = []
    save(folder, 10)
    for at in itertools.count(1):
        with monkeypatch.context() as patch:
            calls = counted(patch, at, error)
            try:
                save(folder, 20)
            except BaseException as problem:
                raised.append(problem)
        checkpoint = found(folder)
        done = [number for number, call in enumerate(calls, start=1) if call == "rename" and number != at]
        assert checkpoint.update == (20 if len(done) == 2 else 10), at  # renamed: model/, then all of it
        assert same_state(checkpoint.state(), FakeLive(checkpoint.update).now)
        assert not list(folder.glob(".*")), at
        if len(calls) < at:
            break
        shutil.rmtree(folder / "update-000020", ignore_errors=True)
    assert set(calls) == {name for _, name in POINTS}
    return raised


def test_a_full_disk_at_any_point_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raised = fail_everywhere(tmp_path, monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    assert len(raised) > 20
    assert {type(error) for error in raised} == {StorageError}
    for said in map(str, raised):
        assert f"{tmp_path}/update-000020" in said
        assert ".tmp" not in said
        assert "the disk is full" in said or "cannot be read" in said


def test_an_interrupt_at_any_point_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raised = fail_everywhere(tmp_path, monkeypatch, KeyboardInterrupt())
    assert len(raised) > 20
    assert {type(error) for error in raised} == {KeyboardInterrupt}


@pytest.mark.parametrize("error", [DivergedError("not finite"), ZeroDivisionError("a bug")])
def test_an_error_of_the_backend_is_its_own(error: Exception, tmp_path: Path) -> None:
    class Fails(FakeLive):
        def save(self, directory: Path) -> None:
            raise error

    with pytest.raises(type(error), match=str(error)):
        save(tmp_path, 10, Fails())
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("values", [{"losses": [float("nan")]}, {"facts": {"path": Path("a")}}])
def test_what_json_does_not_have_is_not_written(values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises((ValueError, TypeError)):
        save(tmp_path, 10, **values)
    assert os.listdir(tmp_path) == []


# A child is killed at point n of everything that touches the disk, for every n until it gets through.
KILLER = """
import os, shutil, signal, sys
from pathlib import Path
import numpy, safetensors.numpy, gsm8k_core.training.checkpoints as checkpoints
from tests import fake_checkpoints as t

folder, what = Path(sys.argv[1]), sys.argv[2]
AUDITED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.scandir"}

def arm(at):
    seen = 0
    def point(*_):
        nonlocal seen
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(lambda event, args: event in AUDITED and point())
    fsync, write = os.fsync, safetensors.numpy.save_file
    def sync(handle):
        fsync(handle)
        point()
    def save_file(tensors, path):
        Path(path).write_bytes(b"half of it")
        point()
        os.remove(path)
        write(tensors, path)
        point()
    os.fsync, safetensors.numpy.save_file, t.save_file = sync, save_file, save_file

for at in range(1, 10_000):
    if what == "prune" and not (folder / "update-000010").exists():
        t.save(folder, 10)
    child = os.fork()
    if child == 0:
        arm(at)
        t.save(folder, 30) if what == "save" else checkpoints.prune(folder, 1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    checkpoint = t.found(folder)
    assert checkpoint.update == 20 or what == "save", at
    assert t.same_state(checkpoint.state(), t.FakeLive(checkpoint.update).now), at
    if status == 0:
        print(at)
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, (at, status)
    if checkpoint.update == 30:  # killed after the rename
        shutil.rmtree(checkpoint.folder)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("what", ["save", "prune"])
def test_a_kill_at_any_point_leaves_a_whole_one(what: str, tmp_path: Path) -> None:
    for update in (10, 20):
        save(tmp_path, update)
    command = [sys.executable, "-c", KILLER, str(tmp_path), what]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=CEILING)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > (60 if what == "save" else 20)  # it was killed so often, less once
    if what == "save":
        assert list(tmp_path.glob(".update-000030.*.tmp"))
        assert prune(tmp_path, 2) == [tmp_path / "update-000010"]
    kept = "update-000030" if what == "save" else "update-000020"
    assert found(tmp_path).folder.name == kept
    assert not list(tmp_path.glob(".*"))


LIMITED = """
import resource, signal, sys
from pathlib import Path
from gsm8k_core.types import StorageError
from tests import fake_checkpoints as t
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    t.save(Path(sys.argv[1]), 20)
except StorageError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")
def test_what_safetensors_cannot_write_is_one_clear_line(tmp_path: Path) -> None:
    """A limit on file sizes: the moments are the largest file here."""
    folder = save(tmp_path, 10)
    limit = (folder / "moments.safetensors").stat().st_size - 8
    assert limit > max(path.stat().st_size for path in (folder / "model").iterdir())
    command = [sys.executable, "-c", LIMITED, str(tmp_path), str(limit)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=CEILING)
    assert done.stdout.startswith(f"{tmp_path}/update-000020 was not written: File too large; "), done.stderr
    assert done.stdout.count("\n") == 1
    assert found(tmp_path).update == 10
    assert os.listdir(tmp_path) == ["update-000010"]
