"""How much a save writes, and how long that takes."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from gsm8k_core.models.adapter import LoraSpec, first_values
from gsm8k_core.training.memory import SAMPLE_BYTES, adapter_parameters, saved_bytes, shape_of, write_seconds
from gsm8k_core.types import StorageError
from tests import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("disk") / "tiny")


def test_a_whole_model_is_four_bytes_a_parameter(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    assert saved_bytes(model, None) == 4 * sum(array.size for array in weights.values())


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_is_its_own_size_the_lengths_of_dora_included(model: Path, dora: bool) -> None:
    spec = LoraSpec(4, 8.0, 0.0, ("q_proj", "v_proj"), dora, 0)
    weights = {
        name.removesuffix(".weight"): array
        for name, array in load_file(model / "model.safetensors").items()
        if name.endswith(("q_proj.weight", "v_proj.weight"))
    }
    values = first_values(spec, weights)
    assert saved_bytes(model, spec) == sum(np.asarray(array).nbytes for array in values.values()) > 0


@pytest.mark.parametrize("dora", [False, True])
def test_it_is_what_the_memory_formula_counts(model: Path, dora: bool) -> None:
    spec = LoraSpec(4, 8.0, 0.0, (), dora, 0)
    shape = shape_of(json.loads((model / "config.json").read_text()))
    assert saved_bytes(model, spec) == 4 * adapter_parameters(shape, spec)


def test_ten_times_as_much_takes_ten_times_as_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert write_seconds(tmp_path, 0) == 0.0
    assert write_seconds(tmp_path, 1 << 30) > 0
    ticks = itertools.count()  # a clock of its own: every sample takes a second
    monkeypatch.setattr("gsm8k_core.training.memory.time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    assert write_seconds(tmp_path, 10 * SAMPLE_BYTES) == 10 * write_seconds(tmp_path, SAMPLE_BYTES)
    assert write_seconds(tmp_path, SAMPLE_BYTES) == pytest.approx(1.0)
    hashed: list[int] = []
    monkeypatch.setattr(
        "gsm8k_core.training.memory.hashlib", SimpleNamespace(sha256=lambda sample: hashed.append(len(sample)))
    )
    write_seconds(tmp_path, 3 << 20)  # as much as will be written, and no more
    assert hashed == [3 << 20]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="gone"):
        write_seconds(tmp_path / "gone", 1)
