"""LoRA and DoRA on MLX: mlx-lm's layers, with the names and first values of gsm8k_core.models.adapter.

And models as folders of mlx-lm's: the 4-bit base of qlora, and what `export --to mlx` makes.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.convert import convert
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRALinear
from mlx_lm.utils import quantize_model
from safetensors.numpy import save_file

from backends.mlx.load import in_order_of_files, load
from gsm8k_core.models.adapter import LoraSpec, first_values, mlx_name, peft_name, target_modules
from gsm8k_core.models.folder import ModelFolder, write_config, write_model_folder
from gsm8k_core.types import DataError


def _linear_layers(model: Any) -> dict[str, Any]:
    """The blocks' linear layers by full name."""
    return {
        f"model.layers.{index}.{name}": module
        for index, layer in enumerate(model.layers)
        for name, module in layer.named_modules()
        if isinstance(module, (nn.Linear, nn.QuantizedLinear))
    }


def _weight(module: Any) -> np.ndarray[Any, Any]:
    weight = module.weight
    if isinstance(module, nn.QuantizedLinear):
        weight = mx.dequantize(weight, module.scales, module.biases, module.group_size, module.bits)
    return np.array(weight.astype(mx.float32))


class RowDropout(nn.Module):
    """Dropout whose mask depends on a row's own key, on the token's place and on the layer.

    So a row gets the same whatever rows it shares a micro-batch with, and on whatever rank.
    """

    def __init__(self, p: float, layer: int) -> None:
        super().__init__()
        self._keep, self._layer = 1 - p, layer * 0x9E3779B1 % 2**32  # keys of two layers have no bit pattern in common
        self._keys: tuple[mx.array] | None = None

    def rows(self, keys_B: mx.array) -> None:
        """The keys of the rows of the micro-batch that comes, (B,) uint32."""
        object.__setattr__(self, "_keys", (keys_B,))  # nn.Module would count it among its parameters

    def __call__(self, x_BTH: mx.array) -> mx.array:
        if not self.training or self._keep == 1:
            return x_BTH
        if self._keys is None:  # a rehearsal, which asks for time and not for numbers
            return x_BTH * mx.random.bernoulli(self._keep, x_BTH.shape) * (1 / self._keep)
        rows, length, width = x_BTH.shape
        keys_BT = mx.broadcast_to((self._keys[0] ^ self._layer)[:, None], (rows, length))
        places_BT = mx.broadcast_to(mx.arange(length, dtype=mx.uint32), (rows, length))
        keys_N2 = mx.stack([keys_BT, places_BT], axis=-1).reshape(-1, 2)
        mask_NH = mx.vmap(lambda key: mx.random.bernoulli(self._keep, (width,), key=key))(keys_N2)
        return x_BTH * mask_NH.reshape(x_BTH.shape) * (1 / self._keep)


def dropouts_of(model: Any) -> list[RowDropout]:
    """Those of an adapter."""
    return [module for module in model.modules() if isinstance(module, RowDropout)]


def add_adapter(model: Any, spec: LoraSpec) -> dict[str, mx.array]:
    """Give the model its adapter, all else frozen; returns its parameters in float32 under MLX's names."""
    linear = _linear_layers(model)
    chosen = target_modules(spec, sorted(linear))
    first = first_values(spec, {name: _weight(linear[name]) for name in chosen})
    kind = DoRALinear if spec.dora else LoRALinear
    model.freeze()
    layers = {name: kind.from_base(linear[name], r=spec.rank, scale=spec.scale) for name in chosen}
    if spec.dropout:
        for number, layer in enumerate(layers.values()):
            layer.dropout = RowDropout(spec.dropout, number)
    model.update_modules(tree_unflatten(list(layers.items())))
    values = to_mlx(first)
    if {name for name, _ in tree_flatten(model.trainable_parameters())} != set(values):
        raise RuntimeError("mlx-lm's adapter layers have other parameters than expected; please report this")
    return values


@contextlib.contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """The model as it was before it had its adapter."""
    adapted = [(name, each) for name, each in model.named_modules() if isinstance(each, (LoRALinear, DoRALinear))]
    model.update_modules(tree_unflatten([(name, each.linear) for name, each in adapted]))
    try:
        yield
    finally:
        model.update_modules(tree_unflatten(adapted))


def to_mlx(values: Any) -> dict[str, mx.array]:
    """PEFT's names and layout -> MLX's."""
    return {mlx_name(name): mx.array(np.ascontiguousarray(value.T)) for name, value in values.items()}


def from_mlx(arrays: dict[str, mx.array]) -> dict[str, np.ndarray[Any, Any]]:
    """MLX's names and layout -> PEFT's."""
    return {peft_name(name): np.ascontiguousarray(np.array(array).T) for name, array in arrays.items()}


def quantize_folder(source: Path, directory: Path, bits: int = 4, group_size: int = 64) -> None:
    """Write `directory` (new) whole or not at all: the same model with scales and biases in float32.

    Layers that `group_size` does not divide stay as they are, as in mlx-lm. Raises DataError when none is left.
    """
    files = ModelFolder(source).check()
    config = {**files.config, "tie_word_embeddings": files.tied_head}
    # On the CPU, whatever the device: so the base, and with it its hash, does not depend on the GPU.
    with mx.stream(mx.cpu), contextlib.redirect_stdout(io.StringIO()):  # mlx-lm prints the bits per weight
        model, config = quantize_model(load(source), config, group_size, bits)
        parameters = in_order_of_files(dict(tree_flatten(model.parameters())))
        arrays = {name: np.array(array, order="C") for name, array in parameters.items()}
    if not any(name.endswith(".scales") for name in arrays):
        raise DataError(f"{source} has no layer whose inputs divide into groups of {group_size}; try --method lora")

    def write(folder: Path) -> None:
        write_config(folder, config, "float32")
        save_file(arrays, str(folder / "model.safetensors"), metadata={"format": "mlx"})

    write_model_folder(source, directory, write)


def convert_folder(source: Path, directory: Path, bits: int | None, dtype: str) -> None:
    """Write `directory` (new) by mlx-lm's own conversion; a quantised layer's scales and biases are in `dtype`.

    mlx-lm reads RoPE's base and the tie of the head from the top level of config.json: `source` has to have them there.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            convert(str(source), str(directory), quantize=bits is not None, q_group_size=64, q_bits=bits, dtype=dtype)
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # of a model type or a shape that it has not
        raise DataError(f"mlx-lm cannot convert {source} ({error}); export --to merged") from error
