"""benchmarks/ablation.py: leaving a part out leaves the work as it is, on both backends."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from backends import installed
from verbs import benchmark_jobs

# Nats per target, float32; measured over all parts and both methods: see the assertion's two sides in the test.
SAME = 5e-6


@pytest.fixture
def ablation(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [*sys.path, str(benchmark_jobs.SCRIPTS)])
    import ablation
    import measure

    monkeypatch.setattr(measure, "GEMM_SIZES", {"cpu": 64, "gpu": 64})
    return ablation


def job(ablation: Any, backend: str, method: str, model: Path, data: Path, folder: Path) -> Any:
    asked = argparse.Namespace(
        backend=backend, model=str(model), data=str(data), rows=8, method=method, dtype="float32"
    )
    return ablation.make_job(asked, folder)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_every_part_can_be_left_out(
    ablation: Any, backend: str, method: str, model: Path, data: Path, tmp_path: Path
) -> None:
    if not installed(backend):
        pytest.skip(f"{backend} is not installed here")
    made = job(ablation, backend, method, model, data, tmp_path)
    path = tmp_path / "job.json"
    path.write_text(made.model_dump_json())
    losses = {}
    for part in (ablation.ALL, *ablation.parts_of(made), ablation.NONE):
        ablation.run_without(path, part)
        losses[part] = json.loads(made.out.read_bytes())["losses"]
    assert losses[ablation.ALL][0] > losses[ablation.ALL][-1]
    for part, each in losses.items():
        assert each == pytest.approx(losses[ablation.ALL], abs=SAME), part


def test_parts_reach_what_they_replace(ablation: Any, model: Path, data: Path, tmp_path: Path) -> None:
    """A part that is left out changes what runs: the budget's shapes, for one that a sample shows."""
    made = job(ablation, "torch", "full", model, data, tmp_path)
    made = made.model_copy(update={"config": made.config.model_copy(update={"micro_batch_tokens": "32"})})
    path = tmp_path / "job.json"
    path.write_text(made.model_dump_json())
    shapes = {}
    for part in (ablation.ALL, "budget of padded tokens"):
        ablation.run_without(path, part)
        shapes[part] = json.loads(made.out.read_bytes())["shapes"]
    assert all(rows == 1 for update in shapes[ablation.ALL] for rows, _ in update)
    assert all(rows == made.config.batch_size for update in shapes["budget of padded tokens"] for rows, _ in update)
