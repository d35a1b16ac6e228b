"""kill -9 at any time and at write points of a save: resumed to the last bit, no finished checkpoint lost.

A bounded sample; `make faults` runs 200 kills and every write point.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults import kill_driver
from tests.waiting import CEILING

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


def drive(backend: str, *flags: str) -> dict[str, Any]:
    """The driver's result. A process of its own: forking is safe before a framework has begun to compute."""
    done = subprocess.run(
        [sys.executable, kill_driver.__file__, "--backend", backend, *flags],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=CEILING,
        check=False,
    )
    assert done.stdout, done.stderr
    assert done.returncode == 0, done.stdout
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_a_killed_run_goes_on_to_the_last_bit_and_loses_no_checkpoint(backend_name: str) -> None:
    result = drive(backend_name, "--kills", "2", "--in-save", "1", "--every", "30")
    assert result["in time"]["wrong"] == result["in a save"]["wrong"] == []
    assert result["in time"]["kills"] >= 2
    assert result["in time"]["phases"]["save"] >= 1
    assert result["in a save"]["write points"] >= 2


def test_another_weight_or_a_lost_checkpoint_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the driver's own comparison fails where something is wrong."""
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "model/model.safetensors").write_bytes(b"one")
    event = {"event": "update", "update": 1, "loss": 1.0, "grad_norm": 1.0, "rate": 1.0}
    (run / "metrics.jsonl").write_text(json.dumps(event) + "\n")
    (run / "run.json").write_text(json.dumps({"status": "done", "outcome": {}, "resumed_after": 2}))
    whole = kill_driver.result_of(run)
    bench = kill_driver.Bench(tmp_path, "torch", kill_driver.Board())
    monkeypatch.setattr(kill_driver.Bench, "finish", lambda self, arguments: (0, ""))
    assert kill_driver.faults_of(bench, run, 2, whole) == []
    (lost,) = kill_driver.faults_of(bench, run, 4, whole)
    assert lost.startswith("lost: update 4 was saved, the run went on from 2")
    (run / "model/model.safetensors").write_bytes(b"two")
    (run / "metrics.jsonl").write_text(json.dumps({**event, "loss": 1.0000001}) + "\n")
    assert kill_driver.faults_of(bench, run, 2, whole) == ["updates", "model/model.safetensors"]
