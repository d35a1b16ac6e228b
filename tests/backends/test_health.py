"""A collapsed model and an end token that is not learned, on real weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import backends
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.parity.tiny import END_ID
from gsm8k_core.problems.batching import pad
from gsm8k_core.training.health import ENOUGH_UPDATES, LEAST_END, PROBE_ROWS, Probe
from gsm8k_core.types import Batch, CollapsedError, Example, Update
from tests import tiny
from tests.backends.conftest import FakePilot

ENOUGH = ENOUGH_UPDATES + 10


def one_token(folder: Path, token: int) -> Path:
    """A model with finite weights that writes `token` whatever it reads: its head looks at one feature alone."""
    tiny.make(folder, tie_word_embeddings=False)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][:, 0] = 100.0
    tensors["lm_head.weight"] = np.zeros_like(tensors["model.embed_tokens.weight"])
    tensors["lm_head.weight"][token, 0] = 1.0
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


def probe_of(rows: list[Example]) -> Probe:
    return Probe(rows[:PROBE_ROWS], (END_ID,), lambda tokens: " ".join(map(str, tokens)))


def open_it(name: str, folder: Path) -> Any:
    return backends.open(name, folder, "cpu", "float32")


def test_a_model_that_writes_token_0_alone_has_collapsed(
    backend_name: str, tmp_path: Path, examples: list[Example]
) -> None:
    with pytest.raises(CollapsedError, match=r"every answer is token 0 and nothing else.*Qwen"):
        probe_of(examples)(25, open_it(backend_name, one_token(tmp_path / "zero", 0)))


def test_one_that_writes_another_token_alone_is_warned_of(
    backend_name: str, tmp_path: Path, examples: list[Example]
) -> None:
    event = probe_of(examples)(25, open_it(backend_name, one_token(tmp_path / "seven", 7)))
    (warning,) = event.values["warnings"]  # type: ignore[misc]
    assert "100% of an answer is one token in a row" in warning


def test_logits_that_are_not_finite_end_the_run(backend_name: str, tmp_path: Path, examples: list[Example]) -> None:
    folder = tiny.make(tmp_path / "nan")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][:] = np.nan
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    with pytest.raises(CollapsedError, match="update 25: probe: the model's logits are not finite") as caught:
        probe_of(examples)(25, open_it(backend_name, folder))
    assert "!!!!" in str(caught.value)


def taught(backend_name: str, folder: Path, rows: list[Example], end_counts: float) -> Any:
    """The model after ENOUGH updates on the rows; the end token's target counts `end_counts` times."""

    def weighted(batch: Batch) -> Batch:
        return replace(batch, weights=np.where(batch.labels == END_ID, end_counts, 1.0).astype(np.float32))

    backend, batch = open_it(backend_name, folder), weighted(pad(rows))
    updates = [Update(number + 1, 0, batch.rows, (batch,)) for number in range(ENOUGH)]
    backend.train(updates, TrainConfig(), FakePilot(rate=5e-3))
    return backend


@pytest.mark.parametrize(("end_counts", "learned"), [(1.0, True), (0.0, False)])
def test_an_end_token_that_is_not_learned_is_said(
    backend_name: str, qwen2: Path, examples: list[Example], end_counts: float, learned: bool
) -> None:
    rows = examples[:PROBE_ROWS]
    event = probe_of(rows)(ENOUGH, taught(backend_name, qwen2, rows, end_counts))
    found = event.values["end_probability"]
    assert isinstance(found, float)
    assert (found > 0.9) if learned else (found < LEAST_END / 3)  # measured: 0.9997 and 0.0032, on both backends
    said = [warning for warning in event.values["warnings"] if "it is not learned" in warning]  # type: ignore[attr-defined]
    assert len(said) == (0 if learned else 1)
