"""Adapters, merged: a folder that holds only what fine-tuning added becomes a whole model folder, once, in the cache.

PEFT (LoRA and DoRA): adapter_config.json with `base_model_name_or_path`, adapter_model.safetensors.
mlx-lm (LoRA and DoRA): adapter_config.json with `model` and `lora_parameters`, adapters.safetensors.

Shapes: W (out, in), A (r, in), B (out, r); the merged weight is W + scale x B A (Hu et al. 2021), and for DoRA
m x (W + scale x B A) / |W + scale x B A| by output row (Liu et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gsm8k_core import hub
from gsm8k_core.cache import made_once, short_hash
from gsm8k_core.folders import file_hash, read_json
from gsm8k_core.model_folder import weight_files, write_model_folder
from gsm8k_core.quantized import read_tensors
from gsm8k_core.types import DataError

if TYPE_CHECKING:
    from gsm8k_core.types import FloatArray

CONFIG = "adapter_config.json"
PEFT_WEIGHTS, MLX_WEIGHTS = "adapter_model.safetensors", "adapters.safetensors"
PEFT_PREFIX = "base_model.model."
BASE = "base"  # the folder in a run that keeps the quantised base of its adapters


@dataclass(frozen=True, slots=True)
class Delta:
    """What an adapter does to one weight."""

    a_RI: FloatArray  # (r, in)
    b_OR: FloatArray  # (out, r)
    scale: float
    magnitude_O: FloatArray | None  # (out,); None for plain LoRA


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and not a whole model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def base_of(folder: Path) -> str:
    """The reference of the model that an adapter belongs to. Raises DataError when it names none.

    Runs are moved and copied: a path that is gone means the base beside the adapter, and a run's own base is never
    another run's that has its old place now.
    """
    config = read_json(folder / CONFIG)
    name = config.get("base_model_name_or_path") or config.get("model")
    if not isinstance(name, str):
        raise DataError(f"{folder / CONFIG} names no base model; add base_model_name_or_path to it")
    # RUN/base may also have been given as a path that looks like a Hub id.
    was_kept = Path(name).name == BASE
    kept = _kept_base(folder.absolute()) if was_kept or hub.looks_like_path(name) else None
    if kept and ((was_kept and (kept.parent / "run.json").is_file()) or not hub.local_path(name)):
        return str(kept)
    return name


def _kept_base(adapter: Path) -> Path | None:
    """RUN/base for RUN/model and for RUN/checkpoints/update-N/model, or None."""
    parents = adapter.parents
    runs = [parents[0], *(parents[2:3] if parents[1:2] and parents[1].name == "checkpoints" else [])]
    return next((run / BASE for run in runs if (run / BASE / "config.json").is_file()), None)


def merged_folder(base: Path, adapter: Path, identity: str) -> Path:
    """The whole model, from the cache or made now; `identity` is the base's hash.

    Raises DataError for an adapter that does not fit its base.
    """
    deltas = read_deltas(adapter)
    hashes = [identity, file_hash(adapter / CONFIG), file_hash(_weights(adapter))]
    return made_once(
        "merged",
        short_hash("".join(hashes)),
        lambda target: write_model_folder(base, target, lambda folder: _write(base, deltas, folder)),
    )


def _weights(adapter: Path) -> Path:
    for name in (PEFT_WEIGHTS, MLX_WEIGHTS):
        if (adapter / name).is_file():
            return adapter / name
    raise DataError(f"{adapter} has neither {PEFT_WEIGHTS} nor {MLX_WEIGHTS}; save the adapter again as safetensors")


def read_deltas(adapter: Path) -> dict[str, Delta]:
    """Weight name in the base -> its delta."""
    config, path = read_json(adapter / CONFIG), _weights(adapter)
    tensors = read_tensors(path)
    found = _from_peft(config, tensors) if path.name == PEFT_WEIGHTS else _from_mlx(config, tensors)
    if not found:
        raise DataError(f"{path} holds no LoRA weights; other kinds of adapter are not read here")
    return found


def _from_peft(config: Mapping[str, Any], tensors: Mapping[str, FloatArray]) -> dict[str, Delta]:
    if config.get("rank_pattern") or config.get("alpha_pattern") or config.get("modules_to_save"):
        raise DataError(
            "adapters with rank_pattern, alpha_pattern or modules_to_save are not read here; merge it with peft"
        )
    deltas, used = {}, set()
    for name, a_RI in tensors.items():
        if not name.endswith(".lora_A.weight"):
            continue
        stem = name.removesuffix(".lora_A.weight")
        rank = math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]
        magnitude = tensors.get(f"{stem}.lora_magnitude_vector.weight", tensors.get(f"{stem}.lora_magnitude_vector"))
        weight = f"{stem.removeprefix(PEFT_PREFIX)}.weight"
        deltas[weight] = Delta(a_RI, tensors[f"{stem}.lora_B.weight"], config["lora_alpha"] / rank, magnitude)
        used |= {key for key in tensors if key.startswith(f"{stem}.lora_")}
    _refuse_rest(set(tensors) - used)
    return deltas


def _from_mlx(config: Mapping[str, Any], tensors: Mapping[str, FloatArray]) -> dict[str, Delta]:
    scale = float((config.get("lora_parameters") or {}).get("scale", 20.0))
    deltas, used = {}, set()
    for name, a_IR in tensors.items():
        if name.endswith(".lora_a"):
            stem = name.removesuffix(".lora_a")
            magnitude = tensors.get(f"{stem}.m")
            deltas[f"{stem}.weight"] = Delta(a_IR.T, tensors[f"{stem}.lora_b"].T, scale, magnitude)
            used |= {name, f"{stem}.lora_b", f"{stem}.m"}
    _refuse_rest(set(tensors) - used)
    return deltas


def _refuse_rest(names: set[str]) -> None:
    if names:
        raise DataError(
            f"the adapter also holds {min(names)}, which is not read here; merge it with the tool that made it"
        )


def merge(weight_OI: FloatArray, delta: Delta) -> FloatArray:
    """The merged weight, (out, in) float32."""
    merged = weight_OI.astype(np.float32) + np.float32(delta.scale) * (delta.b_OR @ delta.a_RI)
    if delta.magnitude_O is None:
        return merged
    whole: FloatArray = delta.magnitude_O.reshape(-1, 1) * merged / np.linalg.norm(merged, axis=1, keepdims=True)
    return whole


def _write(base: Path, deltas: Mapping[str, Delta], folder: Path) -> None:
    from safetensors.numpy import save_file  # here, not above: only an adapter needs it

    tensors: dict[str, FloatArray] = {}
    for path in weight_files(base):
        tensors |= read_tensors(path)
    for name, delta in deltas.items():
        if name not in tensors or tensors[name].shape != (len(delta.b_OR), delta.a_RI.shape[1]):
            raise DataError(f"the adapter changes {name}, which its base lacks in that shape; name the right base")
        tensors[name] = np.ascontiguousarray(merge(tensors[name], delta))
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
