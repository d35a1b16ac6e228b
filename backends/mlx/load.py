"""A model folder as MLX's model, checked against what the folder says; in float32."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.cache import KVCache, make_prompt_cache
from mlx_lm.utils import load_model
from safetensors import safe_open

from backends.mlx.loss import head, hidden_states
from gsm8k_core.files import read_json
from gsm8k_core.models.folder import EMBEDDING, HEAD, LOADED_FILES, ModelFolder, rope_theta, with_both_rope_keys
from gsm8k_core.types import DataError, PreflightError

_SILU_ONLY = ("llama", "mistral", "qwen2", "qwen3", "phi3", "smollm3")  # model types whose MLP is written so there
# Names that a Hugging Face folder may hold and the model does not need: a tied head, and saved RoPE tables.
_SPARE = ("lm_head.weight", "rotary_emb.inv_freq")


def _weight_names(folder: Path) -> set[str]:
    names: set[str] = set()
    for path in folder.glob("model*.safetensors"):
        with safe_open(str(path), framework="numpy") as file:
            names |= set(file.keys())
    return names


def load(folder: Path) -> Any:
    """The model in float32, with the RoPE base and the head of its folder whichever library wrote it."""
    config = read_json(folder / "config.json")
    _refuse_ignored(config, folder)
    # mlx-lm reads only the top-level rope_theta, and takes an absent tie_word_embeddings for true.
    settings = {**with_both_rope_keys(config), "tie_word_embeddings": ModelFolder(folder).tied_head}
    try:
        model, _ = load_model(folder, lazy=True, model_config=settings)
        plain = all(type(cache) is KVCache for cache in make_prompt_cache(model))
    except MemoryError:
        raise
    except Exception as error:  # mlx-lm raises many kinds, and all of them mean this folder
        raise DataError(f"mlx-lm cannot load {folder}: {error}; try --backend torch") from error
    if not plain or not hasattr(getattr(model, "model", None), "embed_tokens"):
        raise PreflightError(f"model type {config.get('model_type')} is not available on mlx here; try --backend torch")
    cast(model, mx.float32)
    _check_loaded(model, config, folder)
    return model


def _refuse_ignored(config: dict[str, Any], folder: Path) -> None:
    """Refuse what mlx-lm would leave out of the model without a word. (A sliding window is the rows' matter.)"""
    activation = config.get("hidden_act", "silu")
    if config.get("model_type") in _SILU_ONLY and activation not in ("silu", "swish"):
        raise PreflightError(
            f"{folder / 'config.json'} has hidden_act {activation!r}, and mlx-lm computes silu; try --backend torch"
        )
    if config.get("tie_word_embeddings") and _another_head(folder):
        raise PreflightError(
            f"{folder} stores an lm_head that is not its embedding, though tie_word_embeddings is true, and mlx-lm "
            "takes the embedding; try --backend torch, or set tie_word_embeddings to false"
        )


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


def _check_loaded(model: nn.Module, config: dict[str, Any], folder: Path) -> None:
    """Refuse a model whose RoPE base or parameter names differ from the folder's."""
    asked = rope_theta(config)
    loaded = getattr(getattr(model.layers[0].self_attn, "rope", None), "base", None)
    if asked is not None and loaded is not None and float(loaded) != float(asked):
        raise DataError(f"{folder} has RoPE base {asked:g}, but mlx-lm loaded {loaded:g}; please report this")
    names = {name for name, _ in tree_flatten(model.parameters())}
    stored = _weight_names(folder)
    spare = _SPARE if ModelFolder(folder).tied_head else _SPARE[1:]
    strange = (names - stored) | {name for name in stored - names if not name.endswith(spare)}
    if strange:
        raise DataError(f"{folder}: mlx-lm names parameters differently ({min(strange)}, ...); try --backend torch")
    tokens = mx.arange(8)[None]
    theirs, ours = model(tokens), head(model, hidden_states(model, tokens))
    if not mx.allclose(theirs, ours, rtol=1e-4, atol=1e-4, equal_nan=True).item():
        # Some models scale or cap their logits after the head, which the loss here would leave out.
        raise PreflightError(f"model type {config.get('model_type')} is not available on mlx here; try --backend torch")
