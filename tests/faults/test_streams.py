"""stdin, stdout or stderr that are closed: the run goes on, and a signal ends it as always."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.conftest import SHORT
from tests.waiting import CEILING, SOONEST, wait_for

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")


def events(folder: Path) -> list[str]:
    path = folder / "metrics.jsonl"
    return [json.loads(line)["event"] for line in path.read_text().splitlines()] if path.is_file() else []


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-"])
def test_a_signal_ends_a_run_without_streams_with_75(closed: str, model: Path, data: Path, tmp_path: Path) -> None:
    """Descriptor 2 was the socket to the parent, or the lock: the last words went there, and the end was a 1."""
    flags = [*SHORT, "--backend", SOONEST, "--num-epochs", "1000", "--guard-problems", "0", "--max-time", "10h"]
    command = [sys.executable, str(ROOT / "cli.py"), "train", "--model", str(model), "--data", str(data), *flags]
    out = tmp_path / "out"
    with subprocess.Popen(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *command, "--output-dir", str(out)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
    ) as process:
        wait_for(lambda: "update" in events(out), process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(CEILING) == 75
    assert json.loads((out / "run.json").read_text())["status"] == "stopped"
    assert (out / "model/model.safetensors").is_file()
    assert set(events(out)) >= {"start", "update", "save", "end"}  # and no other words among them


WORDS = """
import os, sys
import cli
sys.argv = ["cli.py", "--version"]
print(cli.main(), file=open(sys.orig_argv[-1], "w"))
lock = os.open(os.devnull, os.O_RDONLY)
assert lock > 2, lock
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_gets_the_number_of_a_closed_stream(closed: str, tmp_path: Path) -> None:
    said = tmp_path / "said"
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", WORDS, str(said)],
        cwd=ROOT,
        check=False,
        timeout=CEILING,
    )
    assert (done.returncode, said.read_text()) == (0, "0\n")
