"""`make mac-report` with parts that fail in every way: there is a file, it says what failed, and the next part ran."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import backends
from benchmarks import key_copies, mac_report
from benchmarks.mac_report import Part, parts
from cli import parse
from gsm8k_core import __version__, processes
from gsm8k_core.files import read_json
from tests.e2e.conftest import Run

# A stand-in for cli.py: each first argument is one way to end.
FAKE = """
import json, os, pathlib, signal, subprocess, sys, time
how = sys.argv[1]
if "--results" in sys.argv:
    folder = pathlib.Path(sys.argv[sys.argv.index("--results") + 1])
    folder.mkdir()
    (folder / "train-1.json").write_text('{"round": 1}')
if how == "works": print(json.dumps({"asked": sys.argv[1:]}))
if how == "refuses": print('{"passed": false}'); print("error: rung 4 FAILS \\x1b[31m", file=sys.stderr); sys.exit(3)
if how == "crashes": print("about to", file=sys.stderr, flush=True); os.kill(os.getpid(), signal.SIGSEGV)
if how == "garbage": sys.stdout.buffer.write(b"\\xff\\x00{ no JSON")
if how == "number": print("42")
if how == "nan": print('{"loss": NaN}')
if how == "infinite": print('{"loss": 1e999}')
if how == "deep": print("[" * 100000, end="")
if how == "benchmark" or how == "hangs":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as where a driver holds the process
    print("holding on", file=sys.stderr, flush=True)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    pathlib.Path("pid.part").write_text(str(child.pid))
    os.replace("pid.part", "pid")
    time.sleep(600)
"""
LONG = 300.0  # no part that ends by itself is ended


@pytest.fixture
def report(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "cli.py").write_text(FAKE)
    monkeypatch.setattr(mac_report, "ROOT", tmp_path)
    monkeypatch.setattr(mac_report, "end_in_order", lambda child: processes.end_in_order(child, 0.1))

    def make(**plan: Part) -> tuple[Any, dict[str, Any]]:
        monkeypatch.setattr(mac_report, "parts", lambda devices: plan)
        done = run("benchmark", "mac-report", "--output", "mine.json")
        return done, read_json(Path("mine.json"))

    return make


@pytest.mark.parametrize(
    ("how", "failure", "said"),
    [
        ("refuses", "exit code 3", "error: rung 4 FAILS \N{REPLACEMENT CHARACTER}[31m"),
        ("crashes", "killed by SIGSEGV", "about to"),
        ("garbage", "exit code 0, and no JSON object on stdout", "\N{REPLACEMENT CHARACTER}" * 2 + "{ no JSON"),
        ("number", "exit code 0, and no JSON object on stdout", "42"),
        ("nan", "exit code 0, and no JSON object on stdout", '{"loss": NaN}'),
        ("infinite", "exit code 0, and no JSON object on stdout", '{"loss": 1e999}'),
        ("deep", "exit code 0, and no JSON object on stdout", "[" * mac_report.WORDS),
    ],
)
def test_a_part_that_fails_is_recorded_and_the_next_one_runs(report: Any, how: str, failure: str, said: str) -> None:
    done, found = report(first=Part((how,), LONG), second=Part(("works",), LONG))
    assert done.returncode == 0, done.stderr
    assert found["failed"] == {"first": failure}
    assert found["parts"]["first"]["said"] == said
    assert found["parts"]["first"]["result"] == ({"passed": False} if how == "refuses" else None)
    assert found["parts"]["second"]["failure"] == ""
    assert found["parts"]["second"]["result"] == {"asked": ["works", "--json", "--verbose"]}
    assert f"failed       first: {failure}" in done.stdout


def test_a_part_that_hangs_is_ended_with_all_that_it_started(report: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its grandchild holds its output, and SIGTERM does nothing: what was written by then is kept."""
    note = Path("pid")

    class Hanging(subprocess.Popen[bytes]):
        """Its five seconds are over when it has begun to hang."""

        def wait(self, timeout: float | None = None) -> int:
            if timeout != 5.0:
                return super().wait(timeout)
            while not note.exists() and self.poll() is None:
                time.sleep(0.05)
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(subprocess, "Popen", Hanging)
    done, found = report(hang=Part(("benchmark",), 5.0), next=Part(("works",), LONG))
    assert done.returncode == 0
    assert found["failed"] == {"hang": "no end within 5 s"}
    assert found["parts"]["hang"]["said"] == "holding on"
    assert found["parts"]["hang"]["kept"] == [{"round": 1}]
    assert found["parts"]["next"]["failure"] == ""
    while psutil.pid_exists(pid := int(note.read_text())) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.05)


def test_a_part_that_cannot_be_started(report: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    done, found = report(first=Part(("works",), LONG))
    assert done.returncode == 0
    assert found["failed"]["first"].startswith("could not be run: ")


def test_ctrl_c_keeps_what_ran(report: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = mac_report._run

    def interrupted(arguments: list[str], *more: Any) -> None:
        if arguments[0] == "hangs":
            os.kill(os.getpid(), signal.SIGTERM)
        ran(arguments, *more)

    monkeypatch.setattr(mac_report, "_run", interrupted)
    done, found = report(first=Part(("works",), LONG), second=Part(("hangs",), LONG), third=Part(("works",), 1.0))
    assert done.returncode == 130
    assert list(found["parts"]) == ["first", "second"]
    assert found["failed"] == {"second": "interrupted"}


def test_the_file_says_what_ran_where_and_the_last_line_where_it_goes(report: Any) -> None:
    done, found = report(first=Part(("works",), LONG))
    assert (found["version"], found["schema"], found["failed"]) == (__version__, 2, {})
    assert {"os", "cpu", "memory", "machine", "cores"} <= found["host"].keys()
    assert {"python", "torch"} <= found["versions"].keys()
    assert found["parts"]["first"]["command"] == "works"
    assert done.stdout.splitlines()[-1] == f"send it      to {mac_report.SEND}"
    assert "issue of this project" in mac_report.SEND


def test_a_report_that_cannot_be_written_says_so_before_anything_runs(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mac_report, "_run", lambda *unused: pytest.fail("a part was run"))
    assert run("benchmark", "mac-report", "--output", "there/is/none.json").returncode == 7


@pytest.mark.parametrize(
    ("devices", "parity"),
    [
        ({"metal", "mps"}, ["metal", "mps"]),
        ({"cuda"}, ["cuda"]),
        ({"cuda", "mlx-cuda"}, ["mlx-cuda", "cuda"]),
        ({}, ["here"]),
    ],
)
@pytest.mark.parametrize("copies", [["key-copies"], []], ids=["with mlx", "without mlx"])
def test_every_device_is_checked_and_every_command_is_one(
    monkeypatch: pytest.MonkeyPatch, devices: set[str], parity: list[str], copies: list[str]
) -> None:
    monkeypatch.setattr(backends, "installed", lambda name: name != "mlx" or bool(copies))
    plan = parts(devices)
    assert list(plan) == ["doctor", *(f"parity {device}" for device in parity), *copies, "train", "generate"]
    for part in plan.values():
        parse([*part.arguments, "--json", "--verbose"])
    assert sum(part.seconds for part in plan.values()) <= 13 * 60


@pytest.mark.parametrize(("beyond", "said"), [(29, "written in place"), (30, "copied"), (100, "copied")])
def test_key_copies_says_what_its_peak_means(run: Run, monkeypatch: pytest.MonkeyPatch, beyond: int, said: str) -> None:
    monkeypatch.setattr(backends, "open", lambda *asked: None)
    monkeypatch.setattr(key_copies, "measure", lambda backend: {"keys_and_values": 100, "beyond_at_the_peak": beyond})
    done = run("benchmark", "key-copies", "--model", "embedded", "--json")
    assert (done.returncode, json.loads(done.stdout)["verdict"]) == (0, said), done.stderr
    assert f"keys     {said}" in done.stderr
