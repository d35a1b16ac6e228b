"""Both backends compute the same thing: the whole ladder on both tiny models, and what no rung says.

The tolerances, what was measured for each, and the controls are gsm8k_core's (ladder.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import backends
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.parity import ladder
from gsm8k_core.parity.bench import NATS, Bench, Implementation
from gsm8k_core.parity.ladder import MARGIN, RUNGS, Reading, climb
from gsm8k_core.problems.batching import make_updates, pad
from gsm8k_core.types import Example, Update
from tests import tiny
from tests.backends.conftest import FakePilot

pytestmark = pytest.mark.skipif(
    not all(backends.installed(name) for name in backends.PROVIDERS), reason="parity needs both backends"
)

# Each is the candidate once, so that every control is seen to fail on each.
ROLES = {"qwen2": ("torch", "mlx"), "llama": ("mlx", "torch")}
# What a checkpoint holds and how a run goes on is no matter of the model's kind: rungs 8 and 9 are climbed with one.
FULL_CLIMB = "qwen2"
OF_THE_MODEL = sorted(set(ladder.ALL) - {8, 9})
# Every rung has all of these, or it was not climbed.
VARIANTS = {
    0: {""},
    1: {""},
    2: {""},
    3: {"full", "blocks", "lora", "dora"},
    4: {"weights", "moments"},
    5: {"full, loss", "full, weights", "lora, loss", "lora, weights"},
    6: {"both", "batched, one by one"},
    7: {f"{method}, {way}" for method in ("lora", "dora") for way in ("torch -> mlx", "mlx -> torch")},
    8: {f"{method}, {name}" for method in ("full", "lora", "dora") for name in ("torch", "mlx")},
    9: {f"{method}, {way}" for method in ("full", "lora", "dora") for way in ("torch -> mlx", "mlx -> torch")},
    10: {""},
    11: {""},
}


def tolerance(number: int) -> float:
    return RUNGS[number].tolerances[NATS]


def side(name: str) -> Implementation:
    return Implementation(name, lambda folder: backends.open(name, folder, "cpu", "float32"))


@pytest.fixture(scope="session")
def climbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[Reading]]]:
    """Every reading with each tiny model, taken once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GSM8K_CACHE", str(tmp_path_factory.mktemp("cache")))
        rows, found = tiny.make_rows(), {}
        prompts = [example.tokens[: 5 + index] for index, example in enumerate(rows[:6])]
        for kind, (reference, candidate) in ROLES.items():
            scratch = tmp_path_factory.mktemp(kind)
            model = tiny.make(scratch / "model", kind)
            bench = Bench(side(reference), side(candidate), model, rows, prompts, scratch)
            found[kind] = list(climb(bench, True, ladder.ALL if kind == FULL_CLIMB else OF_THE_MODEL))
        yield found


@pytest.mark.parametrize(
    ("kind", "number"), [(FULL_CLIMB, n) for n in sorted(ladder.ALL)] + [("llama", n) for n in OF_THE_MODEL]
)
def test_the_rung_holds_and_its_control_fails(climbed: dict[str, list[Reading]], kind: str, number: int) -> None:
    readings = [reading for reading in climbed[kind] if reading.number == number]
    assert {reading.variant for reading in readings} == VARIANTS[number]
    for reading in readings:
        assert reading.tolerance is not None
        assert reading.error <= reading.tolerance, reading
        assert reading.control > MARGIN * reading.tolerance, reading


def opened(folder: Path) -> dict[str, Any]:
    return {name: backends.open(name, folder, "cpu", "float32") for name in backends.PROVIDERS}


def updates_of(examples: list[Example]) -> list[Update]:
    return list(make_updates(examples, batch_size=3, update_size=9, num_epochs=3, seed=0))


def train(folder: Path, name: str, updates: list[Update], **settings: Any) -> tuple[Any, FakePilot]:
    backend, pilot = backends.open(name, folder, "cpu", "float32"), FakePilot()
    backend.train(updates, TrainConfig(**settings), pilot)
    return backend, pilot


@pytest.mark.parametrize("missing", ["rope_theta", "rope_parameters"])
def test_a_folder_with_either_rope_key_loads_rightly(
    tiny_model: Path, tmp_path: Path, examples: list[Example], missing: str
) -> None:
    half = tmp_path / "half"
    shutil.copytree(tiny_model, half)
    config = json.loads((half / "config.json").read_text())
    del config[missing]
    (half / "config.json").write_text(json.dumps(config))
    batch = pad(examples[:4])
    right = backends.open("torch", tiny_model, "cpu", "float32").score(batch)
    for backend in opened(half).values():
        assert np.abs(backend.score(batch) - right).max() < tolerance(1)


def test_scores_have_the_shape_and_type_of_the_interface(tiny_model: Path, examples: list[Example]) -> None:
    batch = pad(examples[:4])
    for backend in opened(tiny_model).values():
        scores = backend.score(batch)
        assert scores.shape == (4, batch.tokens.shape[1] - 1)
        assert scores.dtype == np.float32


def test_what_is_reported_of_an_update(tiny_model: Path, examples: list[Example]) -> None:
    """The loss is minus the mean score of the targets, and both report the same gradient norm."""
    update = updates_of(examples)[0]
    norms = []
    for backend in opened(tiny_model).values():
        total = sum(float(-batch.at_targets(backend.score(batch)).sum()) for batch in update.micro_batches)
        pilot = FakePilot()
        backend.train([update], TrainConfig(), pilot)
        reported = pilot.stats[0]
        assert abs(reported.loss - total / update.num_targets) < tolerance(2)
        assert reported.num_targets == sum(row.num_targets for row in examples if row.id in update.rows)
        norms.append(reported.grad_norm)
    assert abs(norms[0] - norms[1]) < 6e-5  # measured: 1e-5 over nine updates


def test_weight_decay_spares_norms_and_biases_on_both(
    tiny_model: Path, examples: list[Example], tmp_path: Path
) -> None:
    from safetensors.numpy import load_file

    saved = {}
    for name in backends.PROVIDERS:
        backend, _ = train(tiny_model, name, updates_of(examples)[:3], weight_decay=90.0)
        backend.save(tmp_path / name)
        saved[name] = load_file(tmp_path / name / "model.safetensors")
    before = load_file(tiny_model / "model.safetensors")
    for tensors in saved.values():
        assert np.abs(tensors["model.norm.weight"] - before["model.norm.weight"]).max() < 0.01  # three steps of 1e-3
        shrunk = np.abs(tensors["model.layers.0.mlp.up_proj.weight"]).mean()
        assert shrunk < 0.9 * np.abs(before["model.layers.0.mlp.up_proj.weight"]).mean()


def test_what_one_saves_the_other_opens(tiny_model: Path, examples: list[Example], tmp_path: Path) -> None:
    batch = pad(examples[:4])
    for name in backends.PROVIDERS:
        backend, _ = train(tiny_model, name, updates_of(examples)[:2])
        backend.save(tmp_path / name)
        for other in opened(tmp_path / name).values():
            assert np.abs(other.score(batch) - backend.score(batch)).max() < tolerance(1)
