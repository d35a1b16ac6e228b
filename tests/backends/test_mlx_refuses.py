"""What mlx-lm would leave out of a model without a word: refused where it matters, and equal to torch where not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import backends
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.problems.batching import make_updates, micro_batches
from gsm8k_core.types import Example, PreflightError, Sampling
from tests import tiny
from tests.backends.conftest import FakePilot

pytestmark = pytest.mark.skipif(
    not all(backends.installed(name) for name in backends.PROVIDERS), reason="needs both backends"
)
SCORE_TOLERANCE = 1e-4  # rung 2's, for models of this size; a window changes some score by 0.01 and more
KINDS: dict[str, dict[str, Any]] = {
    "mistral": {},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "phi3": {"tie_word_embeddings": False, "bos_token_id": 2},
}
WITHOUT = {
    "mistral": {"sliding_window": None},
    "qwen2": {"use_sliding_window": False},
    "phi3": {"sliding_window": None},
}


def make(folder: Path, kind: str, **changes: object) -> Path:
    """A tiny random model of the type."""
    return tiny.make(folder, kind, **{**KINDS[kind], **changes})


def scores(name: str, folder: Path, examples: list[Example]) -> np.ndarray[Any, Any]:
    (batch,) = micro_batches(examples[:4], 4)
    return backends.open(name, folder, "cpu", "float32").score(batch)


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_shorter_than_a_row_is_refused_and_a_longer_one_is_not(
    tmp_path: Path, kind: str, examples: list[Example]
) -> None:
    long = make(tmp_path / "long", kind, sliding_window=64)
    short = make(tmp_path / "short", kind, sliding_window=4)
    none = make(tmp_path / "none", kind, **WITHOUT[kind])
    expected = scores("torch", long, examples)
    assert np.abs(scores("mlx", long, examples) - expected).max() < SCORE_TOLERANCE
    assert np.abs(scores("torch", none, examples) - expected).max() < SCORE_TOLERANCE
    assert np.abs(scores("torch", short, examples) - expected).max() > 100 * SCORE_TOLERANCE  # so it matters
    with pytest.raises(PreflightError, match=r"sliding_window 4.*mlx does not compute.*--backend torch"):
        scores("mlx", short, examples)


def test_nothing_reads_past_the_window(tmp_path: Path, examples: list[Example]) -> None:
    backend = backends.open("mlx", make(tmp_path / "m", "mistral", sliding_window=8), "cpu", "float32")
    assert [index for index, _ in backend.generate([[2, 3, 4]], Sampling(5, 1))] == [0]
    with pytest.raises(PreflightError, match="up to 9 tokens"):
        next(iter(backend.generate([[2, 3, 4]], Sampling(6, 1))))
    config = TrainConfig(batch_size=2)
    updates = list(make_updates(examples, max_tokens=999, update_size=2, seed=0, num_epochs=1))
    with pytest.raises(PreflightError, match="sliding_window 8"):
        backend.train(updates, config, FakePilot())
    with pytest.raises(PreflightError, match="sliding_window 8"):
        backend.rehearse(updates[0].micro_batches[0], config)


def test_another_activation_is_refused(tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "m", "llama", hidden_act="gelu")
    with pytest.raises(PreflightError, match=r"hidden_act 'gelu'.*--backend torch"):
        backends.open("mlx", folder, "cpu", "float32")


def test_a_stored_head_that_is_not_the_embedding_is_refused(tmp_path: Path, examples: list[Example]) -> None:
    folder = tiny.make(tmp_path / "m", "llama")
    path, before = folder / "model.safetensors", scores("torch", folder, examples)
    values = load_file(path)
    values["lm_head.weight"] = values["model.embed_tokens.weight"].copy()
    save_file(values, path, metadata={"format": "pt"})
    assert np.abs(scores("mlx", folder, examples) - before).max() < SCORE_TOLERANCE  # the same weights do no harm
    values["lm_head.weight"] = values["lm_head.weight"] + np.float32(0.1) * values["lm_head.weight"][::-1]
    save_file(values, path, metadata={"format": "pt"})
    assert np.abs(scores("torch", folder, examples) - before).max() > 100 * SCORE_TOLERANCE  # torch takes the head
    with pytest.raises(PreflightError, match="stores an lm_head that is not its embedding"):
        scores("mlx", folder, examples)
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    assert np.abs(scores("mlx", folder, examples) - before).max() > 100 * SCORE_TOLERANCE
