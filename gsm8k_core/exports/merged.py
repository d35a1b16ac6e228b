"""A whole model as a Hugging Face folder that transformers, vLLM and mlx-lm open as the same model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsm8k_core.files import copy_plain
from gsm8k_core.models.folder import EMBEDDING, HEAD, SINGLE_FILE, ModelFolder, weight_files, write_config
from gsm8k_core.models.tensors import read_tensors, write_tensors
from gsm8k_core.models.tokenizer import copied_files

if TYPE_CHECKING:
    import numpy.typing as npt


def write_merged(model: ModelFolder, folder: Path, dtype: str) -> None:
    """Writes the model's files into `folder`, which is there: one file of weights, each rounded to `dtype`.

    config.json says what transformers and mlx-lm assume differently where it is silent: RoPE's base at both places, and
    whether the head is the embedding. Raises NumberTooLarge where float16 does not hold all.
    """
    copy_plain(model.path, folder, (*copied_files(model.path), "generation_config.json"))
    tensors: dict[str, npt.NDArray[Any]] = {}
    for path in weight_files(model.path):
        tensors |= read_tensors(path)
    tied = _settle_head(tensors, model.tied_head)
    write_config(folder, {**model.config, "tie_word_embeddings": tied}, dtype)
    write_tensors(folder / SINGLE_FILE, tensors, dtype)


def _settle_head(tensors: dict[str, npt.NDArray[Any]], tied: bool) -> bool:
    """Drop a head that is the embedding once more; one that is another stays, and is said to."""
    import numpy as np  # here, not above: weights are read first

    head, table = tensors.get(HEAD), next((value for name, value in tensors.items() if name.endswith(EMBEDDING)), None)
    if not tied or head is None or table is None:
        return tied
    if head.shape == table.shape and np.array_equal(head, table):
        del tensors[HEAD]
        return True
    return False
