"""The token that a base model's template closes a turn with: where training starts its row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gsm8k_core.models.folder import EMBEDDING, ModelFolder, read_rows
from gsm8k_core.models.turn_end import STARTED, turn_end_of
from tests import tiny

CLOSING, DOCUMENT = 1, 0  # <end>, which the template writes, and <pad>, which the files name


def base_model(folder: Path, scale: float = 1.0, like: float = 0.0, **config: object) -> Path:
    """A tiny base; the closing token's row is `like` the document end's, and so many times as long."""
    tiny.make(folder, "llama", eos_token_id=DOCUMENT, pad_token_id=DOCUMENT, **config)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": DOCUMENT, "pad_token_id": DOCUMENT}))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": "<pad>"}))
    weights = load_file(str(folder / "model.safetensors"))
    rows = weights[f"model.{EMBEDDING}"]
    rows[CLOSING] = scale * (like * rows[DOCUMENT] + (1 - like) * rows[CLOSING])
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


def test_some_rows_are_read_of_a_matrix(tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "m", "llama")
    whole = load_file(str(folder / "model.safetensors"))[f"model.{EMBEDDING}"]
    assert np.array_equal(read_rows(ModelFolder(folder), EMBEDDING, (5, 0)) or [], whole[[5, 0]])
    assert read_rows(ModelFolder(folder), "no such.weight", (0,)) is None


@pytest.mark.parametrize(
    ("scale", "like", "near_random"),
    [
        (0.24, 0.0, True),  # as in Qwen2.5-0.5B: 0.38 of 1.6
        (1.0, 0.0, False),  # of a learned row's length
        (0.24, 1.0, False),  # short, and the document end's already
    ],
)
def test_a_row_that_was_never_learned_is_told_by_norm_and_cosine(
    scale: float, like: float, near_random: bool, tmp_path: Path
) -> None:
    found = turn_end_of(ModelFolder(base_model(tmp_path / "base", scale, like)))
    assert found is not None
    assert (found.token, found.document_end, found.words) == (CLOSING, DOCUMENT, ("<end>", "<pad>"))
    assert found.is_near_random == near_random
    assert found.norms[0] / found.norms[1] == pytest.approx(scale, rel=0.35)
    assert (found.choice(adapter=False).name == STARTED) == near_random
    assert found.choice(adapter=True).name == "as it is"
    assert "norm" in found.choice(adapter=True).reason


def test_a_usual_model_has_no_such_token(tmp_path: Path) -> None:
    assert turn_end_of(ModelFolder(tiny.make(tmp_path / "m", "llama"))) is None
