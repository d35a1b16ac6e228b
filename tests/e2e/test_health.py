"""A run that is lost ends with exit code 5 and one line, and what was good before it is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gsm8k_core.training.health import PROBE_ROWS
from tests import tiny
from tests.e2e.conftest import Run

WEIGHT = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def brief() -> None:
    """The looks are as long as a person's here."""


def train(run: Run, backend_name: str, model: Path, data: Path, folder: Path, *flags: str) -> Any:
    return run(
        "train",
        "--backend",
        backend_name,
        "--model",
        model,
        "--data",
        data,
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--max-samples",
        "24",
        "--batch-size",
        "2",
        "--gradient-accumulation-steps",
        "2",
        "--num-epochs",
        "1",
        "--save-steps",
        "2",
        "--output-dir",
        folder,
        *flags,
    )


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == name]


def one_line(stderr: str) -> str:
    (line,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture
def only_token_0(tmp_path: Path) -> Path:
    """Finite weights, and a head that looks at one feature alone: whatever is asked, token 0 is written."""
    folder = tiny.make(tmp_path / "zero", tie_word_embeddings=False)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][:, 0] = 100.0
    tensors["lm_head.weight"] = np.zeros_like(tensors["model.embed_tokens.weight"])
    tensors["lm_head.weight"][0, 0] = 1.0
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


def test_a_weight_that_is_not_finite_is_named(run: Run, backend_name: str, data: Path, tmp_path: Path) -> None:
    model = tiny.make(tmp_path / "nan")
    tensors = load_file(model / "model.safetensors")
    tensors[WEIGHT][1, 2] = np.inf
    save_file(tensors, str(model / "model.safetensors"), metadata={"format": "pt"})
    done = train(run, backend_name, model, data, tmp_path / "run")
    assert done.returncode == 5
    assert f"first not finite: the weight {WEIGHT};" in one_line(done.stderr)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "model").exists()


def test_a_model_that_writes_only_token_0_ends_the_run(
    run: Run, backend_name: str, data: Path, only_token_0: Path, tmp_path: Path
) -> None:
    flags = ("--learning-rate", "1e-7", "--probe-steps", "4")
    done = train(run, backend_name, only_token_0, data, tmp_path / "run", *flags)
    assert done.returncode == 5, done.stderr
    assert "update 4: probe: every answer is token 0 and nothing else" in one_line(done.stderr)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["update-000002"]
    assert len(events(tmp_path / "run", "update")) == 4
    control = train(run, backend_name, only_token_0, data, tmp_path / "blind", *flags[:2], "--probe-steps", "0")
    assert control.returncode == 0, control.stderr


def test_a_run_that_goes_on_is_not_ended_by_the_probe(run: Run, backend_name: str, data: Path, tmp_path: Path) -> None:
    done = train(run, backend_name, tiny.make(tmp_path / "tiny"), data, tmp_path / "run", "--probe-steps", "4")
    assert done.returncode == 0, done.stderr
    probes = events(tmp_path / "run", "probe")
    assert [probe["update"] for probe in probes] == [4, 6]
    assert all(0 <= probe["end_probability"] <= 1 for probe in probes)
    assert all(1 <= probe["answers"] <= PROBE_ROWS for probe in probes)  # as many as the dev split has


def test_eval_of_weights_that_are_not_finite_says_what_they_would_write(
    run: Run, backend_name: str, data: Path, tmp_path: Path
) -> None:
    model = tiny.make(tmp_path / "nan")
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][:] = np.nan
    save_file(tensors, str(model / "model.safetensors"), metadata={"format": "pt"})
    done = run("eval", "--backend", backend_name, "--model", model, "--data", data, "--max-samples", "4")
    assert done.returncode == 5
    assert "not finite" in one_line(done.stderr)
    assert "token 0, which is Qwen's !!!!" in one_line(done.stderr)


def test_eval_explains_answers_of_token_0_alone(
    run: Run, backend_name: str, data: Path, only_token_0: Path, tmp_path: Path
) -> None:
    def said(model: Path) -> list[str]:
        done = run("eval", "--backend", backend_name, "--model", model, "--data", data, "--max-samples", "8")
        assert done.returncode == 0, done.stderr
        return [line for line in done.stdout.splitlines() if line.startswith("health ") and "token 0" in line]

    (line,) = said(only_token_0)
    assert "100% of what it writes is token 0" in line
    assert said(tiny.make(tmp_path / "tiny")) == []
