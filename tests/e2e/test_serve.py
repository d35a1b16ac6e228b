"""`serve` as a person starts it: what it refuses, and a process that is asked and then ended by a signal."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx2 as httpx
import pytest

import cli
from tests.e2e.conftest import ROOT, Run
from tests.waiting import CEILING, SOONEST


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--host", "0.0.0.0"), 2, "--host 0.0.0.0 can be reached from other machines, and there is no key"),
        (("--host", "::"), 2, "there is no key; add --api-key-file FILE"),
        (("--host", "no.such.host.invalid"), 2, "is no address of this machine; try --host 127.0.0.1"),
        (("--host", "192.0.2.1", "--api-key", "long-enough"), 2, "--host 192.0.2.1 is no address of this machine"),
        (("--port", "65536"), 2, "--port must be less than or equal to 65535"),
        (("--api-key", "short7!"), 2, "--api-key must hold a key of 8 letters or more"),
        (("--api-key", "sésame-ouvre"), 2, "--api-key must hold a key"),
        (("--api-key-file", "gone.txt"), 2, "--api-key-file gone.txt cannot be read"),
        (("--api-key", "long-enough", "--api-key-file", "key.txt"), 2, "give --api-key or --api-key-file, not both"),
        (("--grace", "soon"), 2, "--grace"),
        (("--model", "runs/gone"), 4, "'runs/gone'"),
        (("--max-context", "9999"), 2, "--max-context 9999 is too many: this model reads 512"),
        (("--max-context", "100"), 2, "--max-new-tokens 512 does not fit into --max-context 100"),
        (("--base-model", "./gone"), 4, "'./gone'"),
    ],
)
def test_bad_input_is_one_clear_line(
    run: Run, model: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    (tmp_path / "key.txt").write_text("another-key\n")
    named = () if "--model" in arguments else ("--model", model)
    port = () if "--port" in arguments else ("--port", "0")
    done = run("serve", *named, *port, *arguments)
    assert done.returncode == code, done.stderr
    (line,) = [row for row in done.stderr.splitlines() if row.startswith("error: ")]
    assert says in line
    assert not any(key in line for key in ("short7!", "sésame-ouvre", "long-enough", "another-key"))


def test_a_taken_port_is_said_before_a_model_is_read(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run("serve", "--model", "./nowhere", "--port", port)
    assert done.returncode == 3
    assert f"port {port} of 127.0.0.1 cannot be had (Address already in use); end what has it, or give" in done.stderr


def test_a_package_that_is_missing_is_named(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def find_spec(name: str, *more: str) -> object:
        return None if name == "uvicorn" else real(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    done = run("serve", "--model", model)
    assert done.returncode == 3
    assert done.stderr == "error: serve needs uvicorn, not installed here; pip install uvicorn\n"


def test_python_takes_no_framework_apart_under_a_step_that_still_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr("os._exit", left.append)
    for verb in ("serve", "chat"):
        monkeypatch.setattr("sys.argv", ["cli.py", verb, "--temperature", "warm"])
        assert cli.main() == 2
    assert left == [2]  # serve alone


def test_a_process_answers_and_ends_cleanly(model: Path, tmp_path: Path) -> None:
    key = "a-key-of-this-test"
    command = [
        sys.executable,
        ROOT / "cli.py",
        "serve",
        "--model",
        model,
        "--port",
        "0",
        "--backend",
        SOONEST,
        "--json",
    ]
    environment = {**os.environ, "GSM8K_API_KEY": key, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        asked = {"model": model.name, "messages": [{"role": "user", "content": "how many ?"}], "max_tokens": 4}
        headers = {"authorization": f"Bearer {key}"}
        with httpx.Client(timeout=CEILING) as client:
            found = client.post(f"{ready['api']}/chat/completions", json=asked, headers=headers).json()
            assert found["choices"][0]["finish_reason"] in ("stop", "length")
            assert client.get(f"{ready['api']}/models").status_code == 401
            process.send_signal(signal.SIGTERM)  # while the client's connection is still open
            said, complained = process.communicate(timeout=CEILING)
    assert (process.returncode, said) == (0, "")
    assert complained.splitlines()[-1] == "ended    1 answer given"
    assert key not in complained
    assert "Traceback" not in complained
