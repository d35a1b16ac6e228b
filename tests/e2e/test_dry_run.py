"""What a run would take: said by --dry-run, planned for by a run, refused where it cannot be had."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_resume import data as data
from tests.e2e.test_resume import losses
from tests.e2e.test_resume import model as model
from tests.e2e.test_resume import train as train

CURVE_TOLERANCE = 6e-5  # rung 5's


def with_memory(patch: pytest.MonkeyPatch, backend: str, free: int) -> None:
    """A machine that has so many bytes."""
    module = importlib.import_module(f"backends.{backend}.memory")
    patch.setattr(module, "system_memory", lambda: (free, free, "free in this test"))


def test_a_dry_run_says_what_it_takes_and_leaves_nothing(train: Any, tmp_path: Path, backend_name: str) -> None:
    before = set(tmp_path.rglob("*"))
    result = train(tmp_path / "run", "--backend", backend_name, "--dry-run")
    assert result.returncode == 0, result.stderr
    for said in ("rows     ", "memory   about ", "memory   one micro-batch took", "time     about ", "disk     about "):
        assert said in result.stdout
    assert "nothing was trained, and no folder was made" in result.stdout
    assert set(tmp_path.rglob("*")) == before


def test_a_dry_runs_figures_are_those_of_the_run(train: Any, tmp_path: Path, backend_name: str) -> None:
    flags = ("--backend", backend_name)
    said = json.loads(train(tmp_path / "run", *flags, "--dry-run", "--json").stdout)
    assert train(tmp_path / "run", *flags).returncode == 0
    events = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    updates = [event for event in events if event["event"] == "update"]
    assert said["time"]["updates"] == len(updates)
    assert said["time"]["tokens"] == sum(event["num_tokens"] for event in updates)
    sizes = [path.stat().st_size for path in (tmp_path / "run/model").glob("*.safetensors")]
    assert said["disk"]["model"] == pytest.approx(sum(sizes), rel=0.05)
    checkpoint = [path.stat().st_size for path in (tmp_path / "run/checkpoints/update-000002").rglob("*.safetensors")]
    assert said["disk"]["checkpoint"] == pytest.approx(sum(checkpoint), rel=0.05)
    manifest = json.loads((tmp_path / "run/run.json").read_text())
    assert manifest["memory"]["predicted"] == said["memory"]["predicted"]
    assert manifest["memory"]["measured"] > 0


def test_little_memory_makes_micro_batches_smaller_and_updates_no_others(
    train: Any, tmp_path: Path, backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--backend", backend_name)
    assert train(tmp_path / "plain", *flags).returncode == 0
    plain = json.loads((tmp_path / "plain/run.json").read_text())
    need = plain["memory"]["predicted"]["total"]
    with_memory(monkeypatch, backend_name, int(need * 1.1))
    result = train(tmp_path / "run", *flags)
    assert result.returncode == 0, result.stderr
    chosen = json.loads((tmp_path / "run/run.json").read_text())["choices"]["batches"]
    assert int(chosen["name"]) < int(plain["choices"]["batches"]["name"])
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "plain"), abs=CURVE_TOLERANCE)


def test_no_memory_for_one_row_is_refused_before_anything_is_made(
    train: Any, tmp_path: Path, backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_memory(monkeypatch, backend_name, 10**6)
    for flags in ((), ("--dry-run",)):
        result = train(tmp_path / "run", "--backend", backend_name, *flags)
        assert result.returncode == 6, result.stderr
        assert "error: training needs about " in result.stderr
        assert "(free in this test); try --method lora, --gradient-checkpointing, or" in result.stderr
        assert not (tmp_path / "run").exists()


def test_a_dry_run_is_no_way_to_go_on(train: Any, tmp_path: Path) -> None:
    result = train(tmp_path / "run", "--dry-run", "--resume", "runs/x")
    assert (result.returncode, "--dry-run is for a new run" in result.stderr) == (2, True)
