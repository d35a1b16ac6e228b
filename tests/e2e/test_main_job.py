"""train -> eval -> compare through the command line, on both backends, with a tiny model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import backends
from tests.e2e.conftest import ROOT, Run
from tests.waiting import CEILING, SOONEST, wait_for

CPU = ("--device", "cpu", "--dtype", "float32")
SHORT = ("--batch-size", 4, "--gradient-accumulation-steps", 2, "--num-epochs", 1, "--learning-rate", 1e-2)


def events(run_folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]


def test_the_whole_job(backend_name: str, run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    other = {"mlx": "torch", "torch": "mlx"}[backend_name]
    if not backends.installed(other):
        pytest.skip(f"backend {other} is not installed here")
    trained = run(
        "train",
        "--model",
        model,
        "--data",
        data,
        "--backend",
        backend_name,
        "--dtype",
        "float32",
        "--output-dir",
        "out",
        "--save-steps",
        3,
        "--json",
        *SHORT,
    )
    assert trained.returncode == 0, trained.stderr
    result = json.loads(trained.stdout)
    manifest = json.loads((tmp_path / "out/run.json").read_text())
    updates = [event for event in events(tmp_path / "out") if event["event"] == "update"]
    assert manifest["status"] == "done"
    assert manifest["choices"]["backend"] == {"name": backend_name, "reason": f"--backend {backend_name}"}
    if backend_name == "mlx":
        assert re.search(r"; [1-9][0-9]* shapes traced$", manifest["choices"]["compile"]["reason"])
    assert len(updates) == manifest["plan"]["updates"] == result["updates"]
    assert updates[-1]["loss"] < updates[0]["loss"]
    assert {"update", "loss", "num_targets", "grad_norm", "rate", "seconds"} <= set(updates[0])
    assert (tmp_path / "out/checkpoints/update-000003/model/model.safetensors").exists()

    scored = run("eval", "--model", "out", "--backend", other, "--max-new-tokens", 24, "--json")
    assert scored.returncode == 0, scored.stderr
    assert "problems 8 test problems of " in scored.stderr
    assert "the run's own data; it trained on the train split, and not on these" in scored.stderr
    summary = json.loads(scored.stdout)
    records = [json.loads(line) for line in Path(tmp_path / summary["records"]).read_text().splitlines()]
    assert summary["n"] == len(records) == 8
    assert (summary["backend"], summary["data"]) == (other, str(data))
    assert {"id", "question", "gold", "completion", "rules", "tokens", "finish_reason"} <= set(records[0])

    compared = run("compare", "--trained-model", "out", "--backend", other, "--max-new-tokens", 24, "--json")
    assert compared.returncode == 0, compared.stderr
    written = json.loads((tmp_path / "out/model_comparison.json").read_text())
    assert {"model", "hash", "n", "rules"} <= set(written["base"])
    assert set(written["trained"]["rules"]["flexible"]) == {"correct", "accuracy", "interval", "version"}
    assert {"won", "lost", "p"} <= set(written["paired"])
    assert written["base"]["reused"] == 0
    assert written["trained"]["reused"] == 8
    assert json.loads(compared.stdout)["paired"] == written["paired"]


def test_the_same_seed_is_the_same_run_on_both(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    found = []
    for name in ("mlx", "torch"):
        arguments = ("--model", model, "--data", data, *CPU, "--output-dir", name, *SHORT)
        done = run("train", "--backend", name, *arguments)
        assert done.returncode == 0, done.stderr
        found.append([event for event in events(tmp_path / name) if event["event"] == "update"])
    assert [event["num_targets"] for event in found[0]] == [event["num_targets"] for event in found[1]]
    assert [event["loss"] for event in found[0]] == pytest.approx([event["loss"] for event in found[1]], abs=1e-4)
    other = run(
        "train",
        "--backend",
        "torch",
        "--model",
        model,
        "--data",
        data,
        *CPU,
        "--seed",
        1,
        "--output-dir",
        "seed-1",
        *SHORT,
    )
    assert other.returncode == 0, other.stderr
    control = [event["loss"] for event in events(tmp_path / "seed-1") if event["event"] == "update"]
    assert control[0] != pytest.approx(found[1][0]["loss"], abs=1e-3)


def test_a_closed_terminal_saves_the_model_and_exits_75(model: Path, data: Path, tmp_path: Path) -> None:
    """SIGHUP, and nobody reads what it says. SIGINT's test is test_supervisor's, SIGTERM's are test_streams's."""
    command = [
        sys.executable,
        str(ROOT / "cli.py"),
        "train",
        "--model",
        str(model),
        "--data",
        str(data),
        "--backend",
        SOONEST,
        "--dtype",
        "float32",
        "--num-epochs",
        "1000",
        "--output-dir",
        "out",
    ]
    # The reader of its output goes away, as a closed terminal does.
    gone, held = os.pipe()
    os.close(gone)
    settings = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=settings, stdout=held, stderr=held)
    os.close(held)
    metrics = tmp_path / "out/metrics.jsonl"
    try:
        wait_for(lambda: metrics.exists() and "update" in metrics.read_text(), process)
        process.send_signal(signal.SIGHUP)
        assert process.wait(CEILING) == 75
    finally:
        process.kill()  # of the parent; the child sees that it is gone
    assert json.loads((tmp_path / "out/run.json").read_text())["outcome"]["reason"] == "interrupted"
    assert (tmp_path / "out/model/model.safetensors").exists()


def test_the_first_and_last_line_name_the_demo_model(run: Run, tmp_path: Path) -> None:
    quick = ("--max-samples", 1, "--num-epochs", 1, "--guard-problems", 0, "--probe-steps", 0, "--method", "lora")
    done = run("train", "--backend", "torch", *quick, "--output-dir", "out")  # an adapter is saved, and not 0.5 GB
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("DEMO MODEL")
    assert lines[-1].startswith("DEMO MODEL")
    manifest = json.loads((tmp_path / "out/run.json").read_text())
    assert manifest["config"]["profile"] == "demo"
    assert manifest["model"]["name"] == "embedded"
    assert "not cached" in manifest["reasons"]["model"]["reason"]
