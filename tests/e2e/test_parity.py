"""`parity` as a person runs it. The figures themselves are tests/backends/test_parity.py's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import backends
from gsm8k_core.parity import ladder
from gsm8k_core.parity.bench import NATS, UPDATES
from gsm8k_core.parity.ladder import Rung
from gsm8k_core.parity.rungs import identical_batches, losses, scores
from gsm8k_core.types import PreflightError
from tests.e2e.conftest import Run

needs_both = pytest.mark.skipif(
    not all(backends.installed(name) for name in backends.PROVIDERS), reason="parity needs both backends"
)
BATCHES = Rung(0, "batches", identical_batches, {UPDATES: 0.0})
SCORES, LOSS = Rung(1, "scores", scores, {NATS: 3e-5}), Rung(2, "loss", losses, {NATS: 5e-6})
CURVE = Rung(5, "curve", identical_batches, {UPDATES: 0.0})  # a stand-in: what matters is which model it gets
UNREACHABLE = Rung(1, "scores", scores, {NATS: 1e-12})


@pytest.fixture(autouse=True)
def aside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the verb sets for the frameworks is taken back, and nothing goes into the user's cache."""
    for name in ("NVIDIA_TF32_OVERRIDE", "MLX_ENABLE_TF32"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("GSM8K_CACHE", str(tmp_path / "cache"))


def climb_only(monkeypatch: pytest.MonkeyPatch, *rungs: Rung) -> None:
    monkeypatch.setattr(ladder, "RUNGS", rungs)


@needs_both
def test_a_table_for_both_tiny_models(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    climb_only(monkeypatch, BATCHES, SCORES)
    done = run("parity", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "against  torch cpu float32, the reference" in lines
    assert "checked  mlx cpu float32" in lines
    assert {"tiny qwen2", "tiny llama"} <= set(lines)
    rows = [line for line in lines if line[:1].isdigit()]
    assert [row.split()[:2] for row in rows] == [["0", "batches"], ["1", "scores"]] * 2
    assert all("pass" in row and len(row) <= 80 for row in rows)
    assert lines[-1] == "all 4 pass"


@needs_both
def test_json_is_one_object(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    climb_only(monkeypatch, BATCHES, SCORES)
    done = run("parity", "--json", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert (values["reference"], values["candidate"], values["passed"]) == (
        "torch cpu float32",
        "mlx cpu float32",
        True,
    )
    assert [(rung["model"], rung["number"], rung["unit"]) for rung in values["rungs"]] == [
        (f"tiny {kind}", number, unit) for kind in ("qwen2", "llama") for number, unit in ((0, UPDATES), (1, NATS))
    ]
    fields = {"number", "name", "variant", "error", "control", "tolerance", "unit", "passed"}
    assert all(fields <= set(rung) for rung in values["rungs"])
    scored = values["rungs"][1]
    assert 0 < scored["error"] < scored["tolerance"] == 3e-5 < scored["control"]


@needs_both
def test_a_failing_rung_says_what_to_do_next(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    climb_only(monkeypatch, UNREACHABLE)
    done = run("parity", "--device", "cpu")
    assert done.returncode == PreflightError.exit_code
    assert "2 of 2 FAIL, of rungs 1" in done.stdout
    assert "python cli.py doctor" in done.stdout.splitlines()[-1]


@needs_both
def test_a_model_of_ones_own_gets_its_rungs_and_the_tiny_ones_the_rest(
    run: Run, monkeypatch: pytest.MonkeyPatch, model: Path, data: Path
) -> None:
    climb_only(monkeypatch, BATCHES, SCORES, LOSS, CURVE)
    done = run("parity", "--json", "--device", "cpu", "--model", model, "--data", data)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["rungs"]
    assert [(rung["model"], rung["number"]) for rung in found] == [
        (model.name, 0),
        (model.name, 1),
        (model.name, 2),
        ("tiny qwen2", 5),
        ("tiny llama", 5),
    ]
    assert [rung["tolerance"] for rung in found[:3]] == [None] * 3  # measured for the tiny models only
    assert "rungs    0, 1, 2, 3, 6 with this model, the others with the tiny models" in done.stderr


def test_without_mlx_and_without_a_gpu_there_is_nothing_to_compare(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gpu(*asked: str) -> None:
        raise PreflightError("--device gpu: torch finds none here")

    monkeypatch.setattr(backends, "installed", lambda name: name == "torch")
    monkeypatch.setattr(backends, "check", no_gpu)
    done = run("parity")
    assert done.returncode == PreflightError.exit_code
    (line,) = done.stderr.splitlines()
    assert "nothing to compare torch on the CPU with" in line
    assert backends.PROVIDERS["mlx"].install in line


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--backend", "torch", "--device", "cpu"), 2, "is the reference itself"),
        (("--data", "generated"), 2, "--data gives the rows for --model"),
        (("--device", "tpu"), 2, "--device"),
        (("--model", "./nowhere", "--data", "generated", "--device", "cpu"), 4, "is not a folder here"),
    ],
)
def test_what_cannot_be_compared_is_refused(run: Run, arguments: tuple[str, ...], code: int, words: str) -> None:
    done = run("parity", *arguments)
    assert done.returncode == code
    assert words in done.stderr.splitlines()[-1]
