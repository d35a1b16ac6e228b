"""Log-probabilities of whole micro-batches: those of each row alone, with few logits there at a time."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import backends
from gsm8k_core.problems.batching import pad
from gsm8k_core.types import IGNORE_INDEX, Batch, Example
from tests import tiny

CLOSE = 2e-5  # nats. Measured: 2.9e-6 at most, both models and backends


def rows_alone(backend: Any, batch: Batch) -> np.ndarray:
    return np.concatenate(
        [backend.score(Batch(row[None], np.full((1, len(row)), IGNORE_INDEX))) for row in batch.tokens]
    )


def test_a_micro_batch_is_its_rows_and_odds_are_those_of_one_place(
    backend_name: str, tiny_model: Path, examples: list[Example]
) -> None:
    backend, batch = backends.open(backend_name, tiny_model, "cpu", "float32"), pad(examples[:9])
    found = backend.score(batch)
    assert found.shape == (9, batch.tokens.shape[1] - 1)
    assert found.dtype == np.float32
    assert np.abs(found - rows_alone(backend, batch)).max() < CLOSE
    tokens = examples[3].tokens
    for place in (1, len(tokens) - 1):
        odds_V = backend.odds(tokens[:place])
        assert odds_V.dtype == np.float32
        assert np.exp(odds_V.astype(np.float64)).sum() == pytest.approx(1, abs=1e-5)
        assert abs(odds_V[tokens[place]] - found[3, place - 1]) < CLOSE
    # The control: what is predicted one place further on.
    assert np.abs(found[:, 1:] - rows_alone(backend, batch)[:, :-1]).max() > 0.01


def test_logits_are_there_a_few_at_a_time(
    backend_name: str, qwen2: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, batch = backends.open(backend_name, qwen2, "cpu", "float32"), pad(examples[:9])
    right = backend.score(batch)
    module = importlib.import_module(f"backends.{backend_name}.generate")
    sizes: list[int] = []
    if backend_name == "torch":
        monkeypatch.setattr(module, "chunk_rows", lambda vocabulary: 7)
        picked = module._picked
        monkeypatch.setattr(
            module, "_picked", lambda logits, targets: sizes.append(len(logits)) or picked(logits, targets)
        )
    else:
        monkeypatch.setattr(module, "chunk_rows", lambda model: 7)
        head = module.head
        monkeypatch.setattr(module, "head", lambda model, hidden: sizes.append(len(hidden)) or head(model, hidden))
    assert np.abs(backend.score(batch) - right).max() < CLOSE
    assert max(sizes) == 7
    assert sum(sizes) == right.size
    empty = Batch(batch.tokens[:, :1], batch.labels[:, :1])
    assert backend.score(empty).shape == (9, 0)
    # So many rows at once as the device is fast with: of rows too long for two, one.
    widths: list[int] = []
    score_part = module._score
    monkeypatch.setattr(
        module, "_score", lambda model, tokens, *more: widths.append(len(tokens)) or score_part(model, tokens, *more)
    )
    module.score(backend._model, batch.tokens, 2 * batch.tokens.shape[1] + 1)
    assert widths == [2, 2, 2, 2, 1]


def test_half_precision_is_scored_together_too(
    backend_name: str, qwen2: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = pad(examples[:9])
    module = importlib.import_module(f"backends.{backend_name}.generate")
    rows: list[int] = []
    score_part = module._score
    monkeypatch.setattr(
        module, "_score", lambda model, tokens, *more: rows.append(len(tokens)) or score_part(model, tokens, *more)
    )
    half, whole = (backends.open(backend_name, qwen2, "cpu", dtype).score(batch) for dtype in ("bfloat16", "float32"))
    assert rows == [9, 9]
    assert 0 < np.abs(half - whole).max() < 0.2


def test_what_stands_behind_a_head_is_computed_by_the_model_itself(tmp_path: Path, examples: list[Example]) -> None:
    """A soft cap, which torch.models of Gemma's kind put on their logits: no plain product gives it."""
    pytest.importorskip("torch")
    import torch

    folder = tiny.make(tmp_path / "untied", tie_word_embeddings=False)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = 30 * tensors["model.embed_tokens.weight"]
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    backend, batch = backends.open("torch", folder, "cpu", "float32"), pad(examples[:4])
    plain = backend.score(batch)
    forward = type(backend._model).forward

    def capped(self: Any, *arguments: Any, **named: Any) -> Any:
        made = forward(self, *arguments, **named)
        made.logits = torch.tanh(made.logits / 2) * 2
        return made

    backend._model.forward = capped.__get__(backend._model)
    found = backend.score(batch)
    logits_BTV = backend._model(input_ids=torch.from_numpy(batch.tokens).long()).logits[:, :-1].detach().log_softmax(-1)
    targets_BT1 = torch.from_numpy(batch.tokens).long()[:, 1:, None]
    assert np.abs(found - logits_BTV.gather(-1, targets_BT1)[..., 0].numpy()).max() < CLOSE
    assert np.abs(found - plain).max() > 0.1
