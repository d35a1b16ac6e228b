"""A power cut: what was not synced is gone. At every sync of a run, the state that it guarantees is looked at.

Strict: of a file remains what it held when it was last synced (nothing, if it never was), of a folder the names that it
had when it was last synced. What a disk keeps beyond that is luck. That state changes with a sync only, so the states
after each of them are all there are.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gsm8k_core.training import runs
from gsm8k_core.training.best import read_label
from gsm8k_core.training.checkpoints import newest
from tests.e2e.test_resume import data as data
from tests.e2e.test_resume import losses
from tests.e2e.test_resume import model as model
from tests.e2e.test_resume import train as train
from verbs.train.segment import Segment

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the name of an open file is Linux's")

MEASURED = ("--eval-steps", "2", "--eval-problems", "3", "--eval-max-new-tokens", "8", "--learning-rate", "0.01")
Id = tuple[int, int]  # what the system knows a file or folder by
Tree = dict[str, bytes | None]  # path -> content; None: a folder


class Disk:
    """What is sure to be on the disk under `root`, as this process syncs it."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root, self.states, self.promised = root, [], 0
        self.states: list[tuple[Tree, int]]  # each with the newest checkpoint that was reported by then
        self._files: dict[Id, bytes] = {}
        self._folders: dict[Id, dict[str, tuple[Id, bool]]] = {}
        self._open: dict[Id, int] = {}  # held open, so that no number is given away again
        self._sync, self._save = os.fsync, Segment._save
        self._root = self._known(root)
        patch.setattr(os, "fsync", self._synced)
        patch.setattr(Segment, "_save", self._saving())

    def close(self) -> None:
        for handle in self._open.values():
            os.close(handle)

    def _saving(self) -> Callable[..., Path]:
        def save(segment: Segment, update: int, live: Any) -> Path:
            folder = self._save(segment, update, live)
            self.promised = update
            return folder

        return save

    def _known(self, path: Path) -> Id:
        found = path.lstat()
        name = (found.st_dev, found.st_ino)
        if name not in self._open:
            self._open[name] = os.open(path, os.O_RDONLY)
        return name

    def _synced(self, handle: int) -> None:
        self._sync(handle)
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if path.is_relative_to(self.root) and os.fstat(handle).st_nlink:  # not a sample that nobody can open
            if stat.S_ISDIR(os.fstat(handle).st_mode):
                self._folders[self._known(path)] = {
                    entry.name: (self._known(Path(entry.path)), entry.is_dir()) for entry in os.scandir(path)
                }
            else:
                self._files[self._known(path)] = path.read_bytes()
            self.states.append((dict(self._tree("", self._root)), self.promised))

    def _tree(self, place: str, folder: Id) -> Iterator[tuple[str, bytes | None]]:
        for name, (known, is_folder) in self._folders.get(folder, {}).items():
            yield f"{place}{name}", None if is_folder else self._files.get(known, b"")
            if is_folder:
                yield from self._tree(f"{place}{name}/", known)


def lay_out(tree: Tree, folder: Path) -> Path:
    folder.mkdir()
    for name, content in tree.items():
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)
    return folder


def lost(run: Path, promised: int) -> list[str]:
    """What of a state after a power cut breaks a promise."""
    said: list[str] = []
    checkpoint = newest(run / "checkpoints", said.append)
    at = checkpoint.update if checkpoint else 0
    found = [f"the checkpoint of update {promised}, which was reported: there is {at}"] if at < promised else []
    found += said
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").is_file() else []
    updates = {event.get("update") for event in map(json.loads, lines) if event["event"] == "update"}
    if missing := set(range(1, at + 1)) - updates:
        found.append(f"lines of metrics.jsonl: {sorted(missing)}, which come before the checkpoint")
    if at and runs.read_manifest(run) is None:
        found.append("run.json")
    if (run / "best").is_dir() and ((label := read_label(run / "best")) is None or not label.fits(run / "best")):
        found.append("best/ or its label")
    return found


def broken(disk: Disk, scratch: Path) -> list[str]:
    """Over all states."""
    scratch.mkdir()
    return [
        f"after sync {number}: {line}"
        for number, (tree, promised) in enumerate(disk.states)
        for line in lost(lay_out(tree, scratch / str(number)) / "runs/one", promised)
    ]


@pytest.fixture
def cut(train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Disk]]:
    """`cut(backend)`: a run of six updates with its disk, in a folder that is not there before."""
    disks = []

    def start(backend: str, *flags: str) -> Disk:
        (tmp_path / "disk").mkdir()
        with monkeypatch.context() as patch:
            disks.append(Disk(tmp_path / "disk", patch))
            assert train(tmp_path / "disk/runs/one", "--backend", backend, *MEASURED, *flags).returncode == 0
        return disks[0]

    yield start
    for disk in disks:
        disk.close()


def test_a_power_cut_loses_no_checkpoint_and_no_line_before_it(
    cut: Callable[..., Disk], run: Any, tmp_path: Path, backend_name: str
) -> None:
    disk = cut(backend_name)
    assert broken(disk, tmp_path / "states") == []
    assert {promised for _, promised in disk.states} == {0, 2, 4}
    end = lay_out(disk.states[-1][0], tmp_path / "end") / "runs/one"
    assert json.loads((end / "run.json").read_text())["status"] == "done"
    assert losses(end) == losses(tmp_path / "disk/runs/one")
    # As a machine that comes up again would find it, just after the first checkpoint was reported.
    first = next(tree for tree, promised in disk.states if promised == 2)
    again = lay_out(first, tmp_path / "again") / "runs/one"
    done = run("train", "--resume", again)
    assert (done.returncode, "from update 2" in done.stdout) == (0, True), done.stderr
    assert losses(again) == losses(tmp_path / "disk/runs/one")


@pytest.mark.parametrize(
    ("without", "word"), [("_sync", "metrics.jsonl"), ("make_folder", "the checkpoint of update 2")]
)
def test_a_sync_that_is_missing_is_seen(
    cut: Callable[..., Disk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: str, word: str
) -> None:
    """The control: without the syncs of metrics.jsonl and of the run's folder, or those of a new folder's parents."""
    if without == "_sync":
        monkeypatch.setattr(runs, "_sync", lambda path: None)
    else:
        monkeypatch.setattr(runs, "make_folder", lambda path, parents=False: path.mkdir(parents=parents))
    found = broken(cut("torch"), tmp_path / "states")
    assert any(word in line for line in found), found
