"""A model folder as MLX's model, checked against what the folder says; in float32."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map
from mlx_lm.utils import load_model
from safetensors import safe_open

from backends.mlx.architectures import Architecture, architecture_of, finish_of, mlx_arguments, ropes_of
from backends.mlx.body import complete
from gsm8k_core.files import read_json
from gsm8k_core.models.folder import EMBEDDING, HEAD, LOADED_FILES, ModelFolder, rope_theta
from gsm8k_core.types import DataError, GSM8KError, PreflightError

# Names that a Hugging Face folder may hold and the model does not need: a tied head, and saved RoPE tables.
_SPARE = ("lm_head.weight", "rotary_emb.inv_freq")


def _weight_names(folder: Path) -> set[str]:
    names: set[str] = set()
    for path in folder.glob("model*.safetensors"):
        with safe_open(str(path), framework="numpy") as file:
            names |= set(file.keys())
    return names


def load(folder: Path) -> Any:
    """The model in float32, as transformers would compute it; with what follows its head, as `finish`."""
    try:
        model, spare = _built(folder)
    except (MemoryError, GSM8KError):
        raise
    except Exception as error:  # mlx-lm raises many kinds, and all of them mean this folder
        raise DataError(f"mlx-lm cannot load {folder}: {error}; try --backend torch") from error
    cast(model, mx.float32)
    _check_names(model, folder, spare)
    return model


def _built(folder: Path) -> tuple[Any, tuple[str, ...]]:
    """The model, nothing of it read, and the ends of names in the folder that it has no use for."""
    config = read_json(folder / "config.json")
    kind = architecture_of(config, str(folder / "config.json"))
    tied = ModelFolder(folder).tied_head
    _refuse_other_head(config, kind, folder)
    _check_base(config, folder)
    classes = _Classes(kind, mlx_arguments(config, kind, tied), _SPARE if tied else _SPARE[1:])
    model, _ = load_model(folder, lazy=True, get_model_classes=classes)
    complete(model, config)
    model.finish = finish_of(config, kind)
    return model, classes.spare


class _Classes:
    """mlx-lm's class for a type, and its arguments: ours, not those of config.json."""

    def __init__(self, kind: Architecture, arguments: Mapping[str, Any], spare: tuple[str, ...]) -> None:
        self.spare = spare
        self._module = importlib.import_module(f"mlx_lm.models.{kind.module}")
        self._arguments = arguments

    def __call__(self, config: Mapping[str, Any]) -> tuple[Any, Any]:
        return self._build, self

    def from_dict(self, params: Mapping[str, Any]) -> Any:
        return self._module.ModelArgs.from_dict(self._arguments)

    def _build(self, arguments: Any) -> Any:
        model = self._module.Model(arguments)
        theirs = getattr(model, "sanitize", dict)

        def sanitize(weights: Mapping[str, mx.array]) -> Any:
            return theirs({name: value for name, value in weights.items() if not name.endswith(self.spare)})

        model.sanitize = sanitize
        return model


def _refuse_other_head(config: Mapping[str, Any], kind: Architecture, folder: Path) -> None:
    """Where a head is stored that is not the embedding, transformers takes it, and does not tie them."""
    said = config.get("tie_word_embeddings")
    if (said or not kind.has_head) and _another_head(folder):
        raise PreflightError(
            f"{folder} stores an lm_head that is not its embedding, though tie_word_embeddings is "
            f"{'true' if said else 'not false'}, and mlx-lm takes the embedding; try --backend torch"
            f"{', or set tie_word_embeddings to false' if kind.has_head else ''}"
        )


def _check_base(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse a config.json of which transformers would take another RoPE base than it says first."""
    asked, bases = rope_theta(config), [rope.base for rope in ropes_of(config)]
    if asked is not None and asked not in bases:
        raise DataError(f"{folder} has RoPE base {asked:g}, but transformers takes {bases[-1]:g}; keep one of the two")


def _another_head(folder: Path) -> bool:
    """Whether a head is stored beside the embedding, with other weights."""
    found: dict[str, mx.array] = {}
    for path in sorted(folder.glob(LOADED_FILES)):
        arrays = mx.load(str(path))  # lazily: only what is compared is read
        found |= {name: array for name, array in arrays.items() if name in (HEAD, f"model.{EMBEDDING}")}
    return len(found) == 2 and not mx.array_equal(*found.values()).item()


def cast(model: Any, dtype: mx.Dtype) -> None:
    """Every floating-point parameter in `dtype`; packed 4-bit weights stay as they are."""
    model.update(tree_map(partial(to_dtype, dtype), model.parameters()))
    mx.eval(model.parameters())


def to_dtype(dtype: mx.Dtype, array: mx.array) -> mx.array:
    """The array in `dtype`, where it holds floating-point numbers."""
    return array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) else array


def _check_names(model: nn.Module, folder: Path, spare: tuple[str, ...]) -> None:
    """Refuse a model whose parameters are not those of the folder."""
    names = {name for name, _ in tree_flatten(model.parameters())}
    stored = _weight_names(folder)
    strange = (names - stored) | {name for name in stored - names if not name.endswith(spare)}
    if strange:
        raise DataError(f"{folder}: mlx-lm names parameters differently ({min(strange)}, ...); try --backend torch")


def in_order_of_files(arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The same, each as it is stored, or back: the weight of a convolution alone lies the other way round in MLX."""
    return {name: array.transpose(0, 2, 1) if array.ndim == 3 else array for name, array in arrays.items()}
