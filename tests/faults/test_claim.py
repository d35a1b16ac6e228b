"""What a kill leaves in a run's folder: of a first claim, a free folder or a run; of a save, nothing for long."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gsm8k_core.files import new_folder, write_json
from gsm8k_core.models import store
from gsm8k_core.training import runs
from gsm8k_core.training.hold import Hold
from gsm8k_core.types import StorageError, UsageError
from tests.e2e.conftest import Run
from tests.fake_checkpoints import FakeLive, found, save
from tests.faults.conftest import one_error
from tests.faults.kill_driver import arm

ROOT = Path(__file__).resolve().parents[2]
FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

KILL_EVERY = int(os.environ.get("KILL_EVERY", "6"))  # of the file calls of saves; `make faults` kills at every one


def dies(work: Callable[[], object], at: int, folder: Path) -> bool:
    """Whether a process that does the work dies before the `at`th thing that it does to the folder."""
    pid = os.fork()
    if pid == 0:
        try:
            arm(at, folder)
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


@FORKS
def test_a_kill_at_any_point_of_the_first_claim_leaves_a_free_folder_or_a_run(tmp_path: Path) -> None:
    ways = {"free": 0, "a run": 0}
    for at in range(1, 1000):
        folder = tmp_path / str(at)
        if not dies(lambda folder=folder: runs.create(folder, {"config": {}}), at, folder):  # type: ignore[misc]
            break
        try:
            runs.reopen(folder).release()
            ways["a run"] += 1
        except UsageError:
            runs.create(folder, {"config": {}}).release()
            ways["free"] += 1
        assert sorted(os.listdir(folder)) == [".lock", "logs", "run.json"]
    assert ways["free"] > 5
    assert ways["a run"] > 0


UNREADABLE = [b"", b"\0" * 100, b"[]", b'{"status": "run', b"[" * 200_000]


@pytest.mark.parametrize("content", UNREADABLE)
def test_a_manifest_that_cannot_be_read_and_nothing_else_is_free(content: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "logs").mkdir(parents=True)
    (folder / "run.json").write_bytes(content)
    (folder / ".run.json.123-0123abcd.tmp").write_bytes(b"half")
    runs.create(folder, {}).release()
    assert sorted(os.listdir(folder)) == [".lock", "logs", "run.json"]


@pytest.mark.parametrize("beside", ["checkpoints/update-000001/checkpoint.json", "logs/eval-1/records.jsonl", "notes"])
def test_what_lies_beside_it_stays_and_the_advice_is_no_circle(beside: str, tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "out"
    (folder / beside).parent.mkdir(parents=True)
    (folder / beside).write_text("mine")
    (folder / "run.json").write_bytes(b"")
    done = run("train", "--output-dir", folder)
    line = one_error(done)
    assert (done.returncode, "holds a run whose run.json cannot be read; give a new folder" in line) == (7, True), line
    assert "--resume" not in line
    assert (folder / beside).read_text() == "mine"


def test_a_folder_that_is_just_being_claimed_is_not_free(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_bytes(b"")
    hold = Hold(tmp_path / "run")
    with pytest.raises(StorageError, match=f"is in use by another process \\(pid {os.getpid()}\\); wait for it"):
        runs.check_free(tmp_path / "run")
    hold.release()
    runs.check_free(tmp_path / "run")


HOLDS = """
import sys
from pathlib import Path
from gsm8k_core.training.hold import Hold
hold = Hold(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_the_process_that_is_named_is_the_one_that_holds_the_run(tmp_path: Path) -> None:
    """The manifest's is dead, and its number another process's: this one's."""
    runs.create(tmp_path / "run", {}).release()
    assert (runs.read_manifest(tmp_path / "run") or {})["pid"] == os.getpid()
    command = [sys.executable, "-c", HOLDS, str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(
            StorageError, match=f"another process .pid {process.pid}.; wait for it, or end it with kill"
        ):
            runs.reopen(tmp_path / "run")
        process.communicate()


def test_nobody_is_named_where_nobody_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's process, or one on another machine that shares the disk."""
    runs.create(tmp_path / "run", {}).release()
    hold = Hold(tmp_path / "run")
    monkeypatch.setattr("psutil.process_iter", lambda: iter(()))
    with pytest.raises(StorageError, match=r"\(pid unknown: .*wait for it, or see lsof") as caught:
        runs.reopen(tmp_path / "run")
    assert "kill" not in str(caught.value)
    hold.release()


def test_a_run_that_another_claimed_first_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.create(tmp_path / "run", {}).release()
    before = (tmp_path / "run/run.json").read_bytes()
    monkeypatch.setattr(runs, "check_free", lambda folder: None)  # it looked before the other one came
    with pytest.raises(StorageError, match="already holds a run"):
        runs.create(tmp_path / "run", {})
    assert (tmp_path / "run/run.json").read_bytes() == before
    assert (tmp_path / "run/logs").is_dir()


# --- what a kill leaves of a save -----------------------------------------------------------------------------------


def write_all(folder: Path) -> None:
    """What a run writes after its start, twice: it has to make room for the second ones."""
    run, live = runs.reopen(folder), FakeLive(1)
    for update in (1, 2):
        save(run.checkpoints, update, live)
        for target in (run.model, run.mlx_adapter):
            run.replace(target, live.save)
        run.record(update=update)


def named(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@FORKS
def test_what_a_kill_leaves_is_gone_as_soon_as_the_run_is_held_again(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    runs.create(begun, {}).release()
    whole = shutil.copytree(begun, tmp_path / "whole")
    write_all(whole)
    left = 0
    for at in range(1, 5000, KILL_EVERY):
        folder = shutil.copytree(begun, tmp_path / "run")
        if not dies(lambda folder=folder: write_all(folder), at, folder):  # type: ignore[misc]
            break
        left += any(path.endswith((".tmp", ".new")) for path in named(folder))
        runs.reopen(folder).release()
        assert named(folder) <= named(whole), at
        shutil.rmtree(folder)
    assert left > 20 // KILL_EVERY


def test_strangers_and_links_stay(tmp_path: Path) -> None:
    runs.create(tmp_path / "run", {}).release()
    save(tmp_path / "run/checkpoints", 3)
    before = named(tmp_path / "run")
    ours = [
        ".model.new.1-0123abcd.tmp",
        ".best.1-0123abcd.tmp",
        "checkpoints/.update-000004.1-0123abcd.tmp",
        "best.new",
    ]
    theirs = [".notes.1-0123abcd.tmp", ".model.tmp", "checkpoints/.other.1-0123abcd.tmp", "mine.new"]
    for name in (*ours, *theirs):
        (tmp_path / "run" / name).mkdir()
    elsewhere = save(tmp_path / "elsewhere", 5)
    (tmp_path / "run/.model.7-0123abcd.tmp").symlink_to(elsewhere)
    runs.reopen(tmp_path / "run").release()
    assert named(tmp_path / "run") == before | {*theirs, ".model.7-0123abcd.tmp"}
    assert found(tmp_path / "elsewhere").update == 5


@FORKS
def test_a_cache_that_is_whole_is_swept_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes wrote the same, and one was killed: its part is of no use to anybody."""
    monkeypatch.setattr(store, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(store.ModelFolder, "check", lambda *given: None)

    def write(folder: Path) -> None:
        with new_folder(folder) as inside:
            write_json(inside / "config.json", {})

    folder = store.made_once("kind", "name", write)
    left = folder.with_name(".name.1-0123abcd.tmp")
    left.mkdir()
    assert store.made_once("kind", "name", write) == folder
    assert left.is_dir()  # it may be at work
    os.utime(left, (0, 0))
    assert store.made_once("kind", "name", write) == folder
    assert not left.exists()
