"""LoRA and DoRA in PyTorch: PEFT's layers, with the names and first values of gsm8k_core.models.adapter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from gsm8k_core.models.adapter import BLOCK_NAME, PEFT_PREFIX, LoraSpec, first_values, target_modules

ADAPTER = "default"


def add_adapter(model: Any, spec: LoraSpec) -> dict[str, torch.nn.Parameter]:
    """Give the model its adapter in place, all else frozen; returns its parameters under PEFT's file names."""
    from peft import LoraConfig, inject_adapter_in_model  # here, not above: half a second, and most runs have none

    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and BLOCK_NAME.fullmatch(name)
    }
    chosen = target_modules(spec, sorted(linear))
    first = first_values(spec, {name: _values(linear[name].weight, spec) for name in chosen})
    model.requires_grad_(False)
    # rslora, bias and the rest stay PEFT's defaults, which are "off".
    settings = LoraConfig(
        r=spec.rank, lora_alpha=spec.alpha, lora_dropout=spec.dropout, target_modules=list(chosen), use_dora=spec.dora
    )
    inject_adapter_in_model(settings, model)
    parameters = adapter_parameters(model)
    if set(parameters) != set(first):
        raise RuntimeError("PEFT's adapter layers have other parameters than expected; please report this")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.requires_grad_(True)
            parameter.copy_(torch.from_numpy(first[name]))
    return parameters


def _values(weight: torch.Tensor, spec: LoraSpec) -> Any:
    """A weight as first_values reads it: DoRA's lengths need all of it, and LoRA's values its shape alone."""
    if spec.dora:
        return weight.detach().float().cpu().numpy()
    return np.broadcast_to(np.float32(0), tuple(weight.shape))


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """The model as it was before it had its adapter. PEFT's own switch would freeze the adapter's parameters."""
    from peft.tuners.lora import LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def adapter_parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """The adapter's parameters under the names of PEFT's adapter file."""
    return {
        PEFT_PREFIX
        + name.replace(f".lora_magnitude_vector.{ADAPTER}.weight", ".lora_magnitude_vector").replace(
            f".{ADAPTER}.", "."
        ): parameter
        for name, parameter in model.named_parameters()
        if f".{ADAPTER}." in name
    }


def cast_frozen(model: Any, dtype: torch.dtype) -> None:
    """Keep the adapted layers' own weights in the compute dtype.

    Autocast would cast them to the same bits in every forward: it keeps the casts of trained weights only.
    """
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.get_base_layer().to(dtype)
