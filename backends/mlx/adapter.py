"""LoRA and DoRA on MLX: mlx-lm's layers, with the names and first values of gsm8k_core.models.adapter."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRALinear

from gsm8k_core.models.adapter import LoraSpec, first_values, mlx_name, peft_name, target_modules


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


def add_adapter(model: Any, spec: LoraSpec) -> dict[str, mx.array]:
    """Give the model its adapter, all else frozen; returns its parameters in float32 under MLX's names."""
    linear = _linear_layers(model)
    chosen = target_modules(spec, sorted(linear))
    first = first_values(spec, {name: _weight(linear[name]) for name in chosen})
    kind = DoRALinear if spec.dora else LoRALinear
    model.freeze()
    model.update_modules(
        tree_unflatten(
            [
                (name, kind.from_base(linear[name], r=spec.rank, dropout=spec.dropout, scale=spec.scale))
                for name in chosen
            ]
        )
    )
    values = to_mlx(first)
    if {name for name, _ in tree_flatten(model.trainable_parameters())} != set(values):
        raise RuntimeError("mlx-lm's adapter layers have other parameters than expected; please report this")
    return values


def to_mlx(values: Any) -> dict[str, mx.array]:
    """PEFT's names and layout -> MLX's."""
    return {mlx_name(name): mx.array(np.ascontiguousarray(value.T)) for name, value in values.items()}


def from_mlx(arrays: dict[str, mx.array]) -> dict[str, np.ndarray[Any, Any]]:
    """MLX's names and layout -> PEFT's."""
    return {peft_name(name): np.ascontiguousarray(np.array(array).T) for name, array in arrays.items()}
