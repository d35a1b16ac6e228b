"""What an adapter is, the same on both backends: its first values, its two kinds of folder, which base it names.

LoRA (Hu et al. 2021) leaves a weight W frozen and adds scale x B A to it, scale = alpha / rank. DoRA (Liu et al. 2024)
learns the length m of each row as well: the weight is m x (W + scale x B A) / |W + scale x B A|, by output row.
Only A, B and m are trained and saved; models/merged.py makes a whole model of them once, in the cache.

PEFT's folder: adapter_config.json with `base_model_name_or_path`, adapter_model.safetensors. Its names are ours, too.
mlx-lm's folder: adapter_config.json with `model` and `lora_parameters`, adapters.safetensors, every matrix transposed.

Shapes: W (out, in), A (r, in), B (out, r), m (out,).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from zlib import crc32

import numpy as np
from pydantic import Field

from gsm8k_core.config.fields import ALL_LINEAR
from gsm8k_core.config.stored import Size, Stored, stored
from gsm8k_core.files import new_folder, read_json, write_json
from gsm8k_core.models import hub
from gsm8k_core.models.folder import INDEX_FILE, RUN_RECORD, SINGLE_FILE, ModelFolder, with_both_rope_keys
from gsm8k_core.types import DataError, UsageError

if TYPE_CHECKING:
    from gsm8k_core.config.train import TrainConfig
    from gsm8k_core.models.rendering import Rendering
    from gsm8k_core.types import FloatArray

CONFIG = "adapter_config.json"
PEFT_WEIGHTS, MLX_WEIGHTS = "adapter_model.safetensors", "adapters.safetensors"
PEFT_PREFIX = "base_model.model."
A, B, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
ENDINGS = {A: ".lora_a", B: ".lora_b", MAGNITUDE: ".m"}  # PEFT's -> mlx-lm's
BLOCK_NAME = re.compile(r"model\.layers\.\d+\.(.+)")
BASE = "base"  # the folder in a run that keeps the quantised base of its adapters
_Factor = Annotated[float, Field(ge=-1e6, le=1e6)]


class _MlxSettings(Stored):
    rank: Size | None = None
    scale: _Factor | None = None


class AdapterSettings(Stored):
    """adapter_config.json, PEFT's or mlx-lm's: what is read of it."""

    peft_type: str | None = None
    base_model_name_or_path: str | None = None
    r: Size | None = None
    lora_alpha: _Factor | None = None
    use_rslora: bool | None = None
    use_dora: bool | None = None
    rank_pattern: dict[str, Size] | None = None
    alpha_pattern: dict[str, _Factor] | None = None
    modules_to_save: list[str] | None = None
    target_modules: Any = None  # PEFT's: a list of names, or one pattern
    trainable_token_indices: Any = None  # PEFT's: a list of tokens, or one for each embedding
    ensure_weight_tying: bool | None = None
    model: str | None = None
    fine_tune_type: str | None = None
    lora_parameters: _MlxSettings | None = None


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


def draws_dropout(config: TrainConfig) -> bool:
    """Whether anything in an update is random."""
    return bool(config.lora_dropout and config.uses_adapter)


def dropout_seed(seed: int, update: int, row: str) -> int:
    """The seed of everything random in one row of an update: 31 bits, independent of whatever ran before.

    By the row's id, and neither by its micro-batch nor by the rank that computes it.
    """
    return int(np.random.SeedSequence([seed, update, crc32(row.encode())]).generate_state(1)[0]) >> 1


# --- its folder, PEFT's and mlx-lm's, written ------------------------------------------------------------------------


def write_adapter(
    directory: Path,
    values: Mapping[str, FloatArray],
    spec: LoraSpec,
    base: str,
    rendering: Rendering | None = None,
) -> None:
    """Write `directory` (new) in PEFT's layout; `base` is the reference of the model underneath.

    With a `rendering`, what the adapter is to be asked with goes along.
    """
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
        if rendering is not None:
            rendering.write_settings(folder)


def write_mlx_adapter(
    directory: Path,
    values: Mapping[str, FloatArray],
    spec: LoraSpec,
    base: str,
    rendering: Rendering | None = None,
) -> None:
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
        if rendering is not None:
            rendering.write_settings(folder)


def mlx_command(base: ModelFolder, name: str, adapter: Path) -> str | None:
    """The Python line that opens an adapter rightly in mlx-lm, where `mlx_lm.load(base, adapter_path=...)` would not.

    mlx-lm takes the RoPE base from the top level of config.json alone, where transformers 5 does not write it, and an
    absent tie_word_embeddings for true: it would compute with another base than was trained, without a word. None
    where nothing is amiss. `name` is the reference of the base.
    """
    config = base.config
    wanted = {**with_both_rope_keys(config), "tie_word_embeddings": base.tied_head}
    read = {"rope_theta": None, "rope_scaling": None, "tie_word_embeddings": True}  # mlx-lm's, where a key is not there
    told = {key: wanted[key] for key in read if key in wanted and wanted[key] != config.get(key, read[key])}
    return f"mlx_lm.load({name!r}, adapter_path={str(adapter)!r}, model_config={told!r})" if told else None


def mlx_name(name: str) -> str:
    """mlx-lm's name for PEFT's; the array under it is the transpose."""
    return _module(name) + next(theirs for ours, theirs in ENDINGS.items() if name.endswith(ours))


def peft_name(name: str) -> str:
    """PEFT's name for mlx-lm's."""
    ours, theirs = next((ours, theirs) for ours, theirs in ENDINGS.items() if name.endswith(theirs))
    return PEFT_PREFIX + name.removesuffix(theirs) + ours


def _module(name: str) -> str:
    stem = next(name.removesuffix(ending) for ending in (A, B, MAGNITUDE) if name.endswith(ending))
    return stem.removeprefix(PEFT_PREFIX)


# --- found and read --------------------------------------------------------------------------------------------------


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and not a whole model; some who train one put their base's config.json in."""
    whole = any((folder / name).is_file() for name in (SINGLE_FILE, INDEX_FILE))
    return (folder / CONFIG).is_file() and not ((folder / "config.json").is_file() and whole)


def base_of(folder: Path) -> str:
    """The reference of the model that an adapter belongs to. Raises DataError when it names none.

    Runs are moved and copied: a path that is gone means the base beside the adapter, and a run's own base is never
    another run's that has its old place now.
    """
    config = settings_of(folder)
    name = config.base_model_name_or_path or config.model
    if name is None:
        raise DataError(f"{folder / CONFIG} names no base model; add base_model_name_or_path to it")
    # RUN/base may also have been given as a path that looks like a Hub id.
    was_kept = Path(name).name == BASE
    kept = _kept_base(folder.absolute()) if was_kept or hub.looks_like_path(name) else None
    if kept and ((was_kept and (kept.parent / RUN_RECORD).is_file()) or not hub.local_path(name)):
        return str(kept)
    if hub.looks_like_path(name) and not hub.local_path(name):
        return _moved_base(folder.absolute()) or name
    return name


def _moved_base(adapter: Path) -> str | None:
    """The base of a run that was gone on with from another place; what it wrote before names the old one."""
    runs = [folder for folder in adapter.parents[:3] if (folder / RUN_RECORD).is_file()]
    recorded = read_json(runs[0] / RUN_RECORD).get("model") if runs else None
    name = recorded.get("name") if isinstance(recorded, dict) else None
    return name if isinstance(name, str) and hub.local_path(name) else None


def recorded_base(adapter: Path) -> str:
    """The --base-model of the run that an adapter belongs to; nothing where there is none."""
    run = next((folder for folder in adapter.absolute().parents[:3] if (folder / RUN_RECORD).is_file()), None)
    if run is None:
        return ""
    config = None
    with suppress(DataError):  # a damaged run.json hinders no one from opening the model beside it
        config = read_json(run / RUN_RECORD).get("config")
    name = config.get("base_model") if isinstance(config, dict) else None
    return name if isinstance(name, str) else ""


def _kept_base(adapter: Path) -> Path | None:
    """RUN/base for RUN/model and for RUN/checkpoints/update-N/model, or None."""
    parents = adapter.parents
    runs = [parents[0], *(parents[2:3] if parents[1:2] and parents[1].name == "checkpoints" else [])]
    return next((run / BASE for run in runs if (run / BASE / "config.json").is_file()), None)


def settings_of(adapter: Path) -> AdapterSettings:
    """What adapter_config.json says."""
    path = adapter / CONFIG
    return stored(AdapterSettings, read_json(path), path, "save the adapter again")


def adapter_weights(adapter: Path) -> Path:
    """The file with the adapter's tensors."""
    for name in (PEFT_WEIGHTS, MLX_WEIGHTS):
        if (adapter / name).is_file():
            return adapter / name
    raise DataError(f"{adapter} has neither {PEFT_WEIGHTS} nor {MLX_WEIGHTS}; save the adapter again as safetensors")
