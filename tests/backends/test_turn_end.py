"""A base model's closing token starts as the end of a document, alike on both backends."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import backends
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.problems.batching import make_updates
from tests import tiny
from tests.backends.conftest import FakePilot
from tests.core.models.test_turn_end import CLOSING, DOCUMENT, base_model


@pytest.mark.parametrize(("tied", "dtype"), [(True, "float32"), (False, "float32"), (False, "bfloat16")])
def test_both_rows_are_started_and_saved(tied: bool, dtype: str, tmp_path: Path) -> None:
    """Of embedding and head, also where a backend writes what it never trained from the folder again."""
    folder = base_model(tmp_path / "base", 0.24, tie_word_embeddings=tied)
    updates = list(make_updates(tiny.make_rows()[:4], batch_size=4, update_size=4, num_epochs=1, seed=0))
    rendering, saved = ModelFolder(folder).rendering, {}
    stored = load_file(str(folder / "model.safetensors"))
    for name in backends.PROVIDERS:
        backend = backends.open(name, folder, "cpu", dtype, rendering)
        before = backend.odds((5, 6, 7))
        backend.start_token(CLOSING, DOCUMENT)
        after = backend.odds((5, 6, 7))
        assert abs(before[CLOSING] - before[DOCUMENT]) > 0.01
        assert after[CLOSING] == after[DOCUMENT]
        backend.train(updates, TrainConfig(trainable="blocks", batch_size=4), FakePilot())
        backend.save(tmp_path / name)
        saved[name] = load_file(str(tmp_path / name / "model.safetensors"))
        matrices = [each for each in saved[name] if each.endswith(("embed_tokens.weight", "lm_head.weight"))]
        assert len(matrices) == (1 if tied else 2)
        for matrix in matrices:
            assert np.array_equal(saved[name][matrix][CLOSING], stored[matrix][DOCUMENT])
            others = [row for row in range(len(stored[matrix])) if row != CLOSING]
            assert np.array_equal(saved[name][matrix][others], stored[matrix][others])
        kept = json.loads((tmp_path / name / "generation_config.json").read_text())
        assert kept["eos_token_id"] == [CLOSING, DOCUMENT]


def test_an_answer_ends_at_the_closing_token_as_well(backend_name: str, tmp_path: Path) -> None:
    from gsm8k_core.types import Sampling

    folder = base_model(tmp_path / "base")
    rendering = ModelFolder(folder).rendering
    for given, ends in ((rendering, {CLOSING, DOCUMENT}), (None, {DOCUMENT})):
        backend = backends.open(backend_name, folder, "cpu", "float32", given)
        forced = Sampling(4, 1, force=lambda written: (CLOSING,) if len(written) == 1 else ())
        ((_, answer),) = backend.generate([(5, 6, 7)], forced)
        assert (answer.end_token == CLOSING) == (CLOSING in ends)
