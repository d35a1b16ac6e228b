"""The parent of a training process: signals, deaths, and what it says when nothing helps. In processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

import backends
from tests.e2e.conftest import ROOT
from tests.waiting import CEILING, SOONEST, wait_for
from verbs.link import VARIABLE, take_link
from verbs.train.parent import _Told, supervises
from verbs.train.signals import SAME, stopping

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path, model: Path, data: Path) -> Iterator[Start]:
    """`start(*flags)`: the command line in a session of its own, training into out/."""
    begun: list[subprocess.Popen[str]] = []

    def call(*flags: str, program: Sequence[str] = (str(ROOT / "cli.py"),), **more: Any) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            *program,
            "train",
            "--model",
            str(model),
            "--data",
            str(data),
            "--backend",
            SOONEST,  # the parent knows no backend: one shows it
            "--device",
            "cpu",
            "--dtype",
            "float32",
            "--batch-size",
            "2",
            "--gradient-accumulation-steps",
            "2",
            "--save-steps",
            "2",
            "--save-total-limit",
            "3",
            "--guard-problems",
            "0",
            "--output-dir",
            "out",
            *flags,
        ]
        settings = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **more}
        process = subprocess.Popen(command, cwd=tmp_path, env=settings, start_new_session=True, **pipes)
        begun.append(process)
        return process

    yield call
    for process in begun:
        with contextlib.suppress(ProcessLookupError):
            for child in [*psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else ():
                child.kill()
            process.kill()
        process.communicate()


def updates(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    events = [json.loads(line) for line in lines if line.endswith("}")]
    return [event for event in events if event["event"] == "update"]


def manifest(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text()))


def test_a_killed_child_is_followed_by_one_with_half_the_tokens(start: Start, tmp_path: Path) -> None:
    """SIGSEGV is below."""
    number = signal.SIGKILL
    out = tmp_path / "out"
    before = time.time()
    flags = ("--num-epochs", "6", "--micro-batch-tokens", "1024", "--json")
    process = start(*flags)
    began = time.time()
    wait_for(lambda: len(updates(out)) >= 5, process)
    child = manifest(out)["pid"]
    assert child != process.pid
    at = time.time() - began
    os.kill(child, number)
    stdout, stderr = process.communicate(timeout=CEILING)
    assert process.returncode == 0, stderr
    assert f"the training process was killed by {number.name} (most often: no memory was left); going on from" in stderr
    assert json.loads(stdout)["reason"] == "done"  # one object, from the second child
    run = manifest(out)
    assert run["pid"] != child
    (change,) = run["adjustments"]
    assert (change["what"], number.name in change["why"]) == ("micro_batch_tokens", True)
    assert int(run["choices"]["batches"]["name"]) == change["value"] < 1024
    assert [event["update"] for event in updates(out)] == list(range(1, run["outcome"]["updates"] + 1))
    first = next(event for event in updates(out) if event["update"] > change["update"])
    assert first["elapsed"] > at  # the dead child's seconds count
    # Both processes' seconds, each once. More: the start of a process is known to a hundredth of a second.
    assert updates(out)[-1]["elapsed"] <= run["outcome"]["seconds"] < time.time() - before + 0.1


# `cli.py` whose device is lost once, in update 4.
LOSES = """
import sys
sys.path.insert(0, {root!r})
from dataclasses import replace
from pathlib import Path
import cli
from tests.e2e.test_segments import Hungry
from verbs.train.start import Job
class Lost(Hungry):
    @property
    def tokens(self):
        Path("lost").touch()
        raise RuntimeError("CUDA error: the launch timed out and was terminated")
plain = Job.updates
def updates(job, most):
    for update in plain(job, most):
        lost = update.number == 4 and not Path("lost").exists()
        yield replace(update, micro_batches=(Lost(update.micro_batches[0], ""),)) if lost else update
Job.updates = updates
sys.exit(cli.main())
"""


def test_a_child_whose_device_is_lost_is_followed_by_another_process(start: Start, tmp_path: Path) -> None:
    process = start("--num-epochs", "2", program=("-c", LOSES.format(root=str(ROOT))))
    _, stderr = process.communicate(timeout=CEILING)
    assert process.returncode == 0, stderr
    assert "the training process ran out of memory; going on from update-000002 with half the padded tokens" in stderr
    assert stderr.count("a kernel of") == 1  # and says no command: the parent goes on by itself
    assert "go on in a new process" not in stderr
    (change,) = manifest(tmp_path / "out")["adjustments"]
    assert (change["what"], change["update"]) == ("micro_batch_tokens", 2)
    assert [event["update"] for event in updates(tmp_path / "out")][:6] == [1, 2, 3, 4, 5, 6]


def test_a_child_without_its_parent_saves_and_stops(start: Start, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start("--num-epochs", "100000")
    wait_for(lambda: len(updates(out)) >= 3, process)
    child = psutil.Process(manifest(out)["pid"])
    process.kill()
    child.wait(CEILING)
    assert manifest(out)["status"] == "stopped"
    assert manifest(out)["outcome"]["reason"] == "interrupted"
    assert (out / "model/model.safetensors").is_file()


def test_ctrl_c_in_a_terminal_arrives_once(start: Start, tmp_path: Path) -> None:
    """A terminal sends it to the whole group: the run stops in good order, and not as if it came twice."""
    process = start("--num-epochs", "100000")
    wait_for(lambda: len(updates(tmp_path / "out")) >= 2, process)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=CEILING)
    assert (process.returncode, stderr.count("finishing this update")) == (75, 1), stderr


# `cli.py` whose child never comes to the end of its first update.
STUCK = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import cli
if {VARIABLE!r} in os.environ:
    from gsm8k_core.training.pilot import RunPilot
    def rate(self, update):
        while True:
            signal.pause()
    RunPilot.rate = rate
sys.exit(cli.main())
"""


def test_a_second_signal_quits_at_once(start: Start, tmp_path: Path) -> None:
    said = tmp_path / "said"
    with said.open("wb") as file:
        process = start(program=("-c", STUCK), stderr=file)
    metrics = tmp_path / "out/metrics.jsonl"
    wait_for(lambda: metrics.exists() and '"start"' in metrics.read_text(), process)
    process.send_signal(signal.SIGINT)
    wait_for(lambda: b"finishing this update" in said.read_bytes(), process)
    time.sleep(1.2 * SAME)
    process.send_signal(signal.SIGINT)
    assert process.wait(CEILING) == 130, said.read_text()
    assert manifest(tmp_path / "out")["status"] == "stopped"


def test_what_follows_a_signal_within_a_second_is_the_same_request(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A service is stopped like that. Any other signal after it quits."""
    now = [100.0]
    monkeypatch.setattr("verbs.train.signals.time", SimpleNamespace(monotonic=lambda: now[0]))
    with stopping(lambda: True) as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        for number, later in ((signal.SIGHUP, 0.1), (signal.SIGTERM, 0.5), (signal.SIGINT, SAME)):
            now[0] = 100.0 + later
            signal.raise_signal(number)
        assert interrupted()
        assert capfd.readouterr().err.count("finishing this update") == 1
        for number in (signal.SIGHUP, signal.SIGINT):
            now[0] += 0.1
            with pytest.raises(SystemExit) as quits:
                signal.raise_signal(number)
            assert quits.value.code == 130


DIES = """
import os, signal, sys
sys.path.insert(0, {root!r})
import cli
if "{variable}" in os.environ:
    open("starts", "a").write("x")
    os.kill(os.getpid(), signal.{signal})
sys.exit(cli.main())
"""


def dies(tmp_path: Path, by: str) -> subprocess.CompletedProcess[str]:
    code = DIES.format(root=str(ROOT), variable=VARIABLE, signal=by)
    return subprocess.run(
        [sys.executable, "-c", code, "train"], cwd=tmp_path, capture_output=True, text=True, check=False
    )


def test_a_child_that_dies_at_once_is_not_started_for_ever(tmp_path: Path) -> None:
    done = dies(tmp_path, "SIGSEGV")
    assert (done.returncode, (tmp_path / "starts").read_text()) == (6, "xx")
    assert "was killed by SIGSEGV (most often: no memory was left) again and again; close other" in done.stderr
    assert "--gradient-checkpointing" in done.stderr


def test_a_signal_that_is_no_failure_is_passed_on(tmp_path: Path) -> None:
    done = dies(tmp_path, "SIGTERM")
    assert (done.returncode, (tmp_path / "starts").read_text(), done.stderr) == (-signal.SIGTERM, "x", "")


def test_exit_codes_of_the_child_are_the_parents(tmp_path: Path) -> None:
    for flags, code in (("--model ./nowhere", 4), ("--max-time 5x", 2), ("--no-such-flag", 2)):
        command = [sys.executable, str(ROOT / "cli.py"), "train", *flags.split()]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.count("error: ")) == (code, 1), done.stderr


ENDS = """
import atexit, sys
sys.path.insert(0, {root!r})
import cli
atexit.register(print, "taken apart")
sys.argv = ["cli.py", "train", "--no-such-flag"]
sys.exit(cli.main())
"""


@pytest.mark.parametrize("name", [VARIABLE, "RANK"])
def test_a_child_ends_without_taking_its_framework_apart(tmp_path: Path, name: str) -> None:
    """Its parent waits for it, and so does who gave the budget. RANK is the control: no child, and no parent either."""
    command, environment = [sys.executable, "-c", ENDS.format(root=str(ROOT))], os.environ | {name: "{}"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, "train has no flag" in done.stderr) == (2, True), done.stderr
    assert ("taken apart" in done.stdout) == (name != VARIABLE)


def test_a_launcher_a_child_and_a_question_get_no_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MLX_RANK", VARIABLE):
        monkeypatch.delenv(name, raising=False)
    assert supervises(["train"])
    assert supervises(["train", "--resume", "runs/x"])
    assert not supervises(["eval", "--model", "embedded"])
    assert not supervises(["train", "--help"])
    assert not supervises(["train", "--dry-run"])
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("WORLD_SIZE", ""), ("MLX_RANK", "0"), (VARIABLE, "{}")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert not supervises(["train"]), name


def test_what_every_child_downloaded_is_left_out() -> None:
    told = _Told()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for seconds in (20.0, 5.0):
            theirs.sendall(
                json.dumps({"run": "/r", "seconds": 1.0, "flags": [], "downloaded": seconds}).encode() + b"\n"
            )
        told.read(ours)
    assert (told.run, told.downloaded) == (Path("/r"), 25.0)


def test_the_parent_imports_no_framework() -> None:
    code = (
        "import sys, verbs.train.parent\n"
        "heavy = {'torch', 'mlx', 'transformers', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_mac_gets_limits_before_a_framework_starts() -> None:
    here = backends.environment("darwin", {})
    assert here == {
        "PYTORCH_MPS_HIGH_WATERMARK_RATIO": "1.0",
        "PYTORCH_MPS_LOW_WATERMARK_RATIO": "0.8",
        "AGX_RELAX_CDM_CTXSTORE_TIMEOUT": "1",
    }
    assert backends.environment("linux", {}) == {}
    # A high mark of one's own may lie under our low one.
    given = backends.environment("darwin", {"PYTORCH_MPS_HIGH_WATERMARK_RATIO": "0.5"})
    assert given == {"AGX_RELAX_CDM_CTXSTORE_TIMEOUT": "1"}


def test_without_a_parent_nothing_is_told_or_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    link = take_link()
    link.tell(run="here")
    assert not link.parent_is_gone()
    assert (link.before, link.seconds, link.killed_by) == (0.0, None, "")
