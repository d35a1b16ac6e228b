"""The base of qlora: a model in mlx-lm's affine quantisation, as a folder that mlx-lm opens."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from backends.mlx.backend import load  # first: it chooses the BLAS before mlx is imported

# isort: split
import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.utils import quantize_model
from safetensors.numpy import save_file

from gsm8k_core.models.folder import ModelFolder, write_config, write_model_folder
from gsm8k_core.types import DataError


def quantize_folder(source: Path, directory: Path, bits: int = 4, group_size: int = 64) -> None:
    """Write `directory` (new) whole or not at all: the same model with scales and biases in float32.

    Layers that `group_size` does not divide stay as they are, as in mlx-lm. Raises DataError when none is left.
    """
    files = ModelFolder(source).check()
    config = {**files.config, "tie_word_embeddings": files.tied_head}
    # On the CPU, whatever the device: so the base, and with it its hash, does not depend on the GPU.
    with mx.stream(mx.cpu), contextlib.redirect_stdout(io.StringIO()):  # mlx-lm prints the bits per weight
        model, config = quantize_model(load(source), config, group_size, bits)
        arrays = {name: np.array(array, order="C") for name, array in tree_flatten(model.parameters())}
    if not any(name.endswith(".scales") for name in arrays):
        raise DataError(f"{source} has no layer whose inputs divide into groups of {group_size}; try --method lora")

    def write(folder: Path) -> None:
        write_config(folder, config, "float32")
        save_file(arrays, str(folder / "model.safetensors"), metadata={"format": "mlx"})

    write_model_folder(source, directory, write)
