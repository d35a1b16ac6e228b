"""What an adapter is, the same on both backends: its names, its first values, its two folder layouts.

A LoRA adapter (Hu et al. 2021) adds scale x B A to a frozen weight W, scale = alpha / rank; a DoRA adapter (Liu et
al. 2024) also learns the length m of each row of W + scale x B A. Names are those of PEFT's adapter file.

Shapes: W (out, in), A (r, in), B (out, r), m (out,).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gsm8k_core.adapters import CONFIG, MLX_WEIGHTS, PEFT_PREFIX, PEFT_WEIGHTS
from gsm8k_core.config import ALL_LINEAR
from gsm8k_core.folders import new_folder, write_json
from gsm8k_core.types import UsageError

if TYPE_CHECKING:
    from gsm8k_core.config import TrainConfig
    from gsm8k_core.types import FloatArray

A, B, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
BLOCK_NAME = re.compile(r"model\.layers\.\d+\.(.+)")


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """An adapter's settings, in PEFT's terms."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]  # last parts of module names; empty: every linear layer of the blocks
    dora: bool
    seed: int

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank


def lora_spec(config: TrainConfig) -> LoraSpec | None:
    """The adapter that a run trains, or None for full fine-tuning."""
    if not config.uses_adapter:
        return None
    targets = () if config.target_modules == ALL_LINEAR else tuple(config.target_modules.split(","))
    dora = config.method == "dora"
    return LoraSpec(config.lora_rank, config.lora_alpha, config.lora_dropout, targets, dora, config.seed)


def target_modules(spec: LoraSpec, linear: Sequence[str]) -> tuple[str, ...]:
    """The modules among `linear` (full names of the blocks' linear layers) that get an adapter, in order.

    Raises UsageError for a target that no module has.
    """
    if not spec.targets:
        return tuple(linear)
    known = sorted({name.rsplit(".", 1)[-1] for name in linear})
    for target in spec.targets:
        if target not in known:
            raise UsageError(
                f"--target-modules {target}: no linear layer of this model is called so "
                f"(there are {', '.join(known)}); try --target-modules {ALL_LINEAR}"
            )
    return tuple(name for name in linear if name.rsplit(".", 1)[-1] in spec.targets)


def first_values(spec: LoraSpec, weights: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """The adapter before its first update, under PEFT's names; `weights` maps each target module to its W.

    A is uniform within 1 / sqrt(in) either way, as in PEFT and mlx-lm; B is zero; m is the length of W's rows. Each
    module has a stream of its own, so that neither order nor the other targets change what it gets.
    """
    values: dict[str, FloatArray] = {}
    for module, weight_OI in weights.items():
        out_features, in_features = weight_OI.shape
        salt = int.from_bytes(hashlib.sha256(module.encode()).digest()[:8], "big")
        bound = 1 / np.sqrt(in_features)
        drawn = np.random.default_rng([spec.seed, salt]).uniform(-bound, bound, (spec.rank, in_features))
        values[f"{PEFT_PREFIX}{module}{A}"] = drawn.astype(np.float32)
        values[f"{PEFT_PREFIX}{module}{B}"] = np.zeros((out_features, spec.rank), np.float32)
        if spec.dora:
            length = np.linalg.norm(weight_OI.astype(np.float64), axis=1)
            values[f"{PEFT_PREFIX}{module}{MAGNITUDE}"] = length.astype(np.float32)
    return values


def dropout_seed(seed: int, update: int, micro_batch: int) -> int:
    """The seed of everything random in one micro-batch: 31 bits, independent of whatever ran before."""
    return int(np.random.SeedSequence([seed, update, micro_batch]).generate_state(1)[0]) >> 1


def write_adapter(directory: Path, values: Mapping[str, FloatArray], spec: LoraSpec, base: str) -> None:
    """Write `directory` (new) in PEFT's layout; `base` is the reference of the model underneath."""
    from safetensors.numpy import save_file  # here, not above: only an adapter needs it

    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "lora_dropout": spec.dropout,
        "use_dora": spec.dora,
        "use_rslora": False,
        "target_modules": sorted({_module(name).rsplit(".", 1)[-1] for name in values}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
    }
    with new_folder(directory) as folder:
        save_file(dict(values), str(folder / PEFT_WEIGHTS), metadata={"format": "pt"})
        write_json(folder / CONFIG, config)


def write_mlx_adapter(directory: Path, values: Mapping[str, FloatArray], spec: LoraSpec, base: str) -> None:
    """Write `directory` (new) as an mlx-lm adapter folder: what `mlx_lm.load(base, adapter_path=...)` opens."""
    from safetensors.numpy import save_file

    arrays = {mlx_name(name): np.ascontiguousarray(value.T) for name, value in values.items()}
    modules = [_module(name) for name in values]
    layers = {int(module.split(".")[2]) for module in modules}
    keys = sorted({found[1] for module in modules if (found := BLOCK_NAME.fullmatch(module))})
    config: dict[str, Any] = {
        "model": base,
        "fine_tune_type": "dora" if spec.dora else "lora",
        "num_layers": max(layers) + 1,
        "lora_parameters": {"rank": spec.rank, "scale": spec.scale, "dropout": spec.dropout, "keys": keys},
    }
    with new_folder(directory) as folder:
        save_file(arrays, str(folder / MLX_WEIGHTS), metadata={"format": "mlx"})
        write_json(folder / CONFIG, config)


def _module(name: str) -> str:
    stem = next(name.removesuffix(ending) for ending in (A, B, MAGNITUDE) if name.endswith(ending))
    return stem.removeprefix(PEFT_PREFIX)


_ENDINGS = {A: ".lora_a", B: ".lora_b", MAGNITUDE: ".m"}  # PEFT's -> mlx-lm's


def mlx_name(name: str) -> str:
    """mlx-lm's name for PEFT's; the array under it is the transpose."""
    return _module(name) + next(theirs for ours, theirs in _ENDINGS.items() if name.endswith(ours))


def peft_name(name: str) -> str:
    """PEFT's name for mlx-lm's."""
    ours, theirs = next((ours, theirs) for ours, theirs in _ENDINGS.items() if name.endswith(theirs))
    return PEFT_PREFIX + name.removesuffix(theirs) + ours
