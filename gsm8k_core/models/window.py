"""The sliding window of a model's attention: how far back a token sees, as transformers reads it from config.json.

A row that is no longer than the window is computed alike with it and without; only of a longer one must a backend know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gsm8k_core.types import PreflightError

KEY, SWITCH = "sliding_window", "use_sliding_window"
DEFAULT = 4096  # of transformers' classes, where config.json has no such key
HAVE_DEFAULT = ("mistral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe")
SWITCHED = ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3")  # off unless `use_sliding_window` is true
LAST_LAYERS = ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe")  # from `max_window_layers` on
EVERY_LAYER = ("mistral", "mixtral", "phi3", "starcoder2")  # whatever `layer_types` says
WITHOUT = ("llama",)  # transformers' class does not read the key either


@dataclass(frozen=True, slots=True)
class Window:
    """So many tokens a token sees, itself included, in some layer; and the keys of config.json that say so."""

    size: int
    keys: str  # "sliding_window 4096"


def window_of(config: Mapping[str, Any]) -> Window | None:
    """The window of a config.json; None where a token sees all before it. A type unknown here has it by the key."""
    kind = config.get("model_type")
    size = config.get(KEY, DEFAULT if kind in HAVE_DEFAULT else None)
    if not isinstance(size, int) or size < 1 or kind in WITHOUT:
        return None
    layers = config.get("layer_types")
    named = kind == "smollm3" and isinstance(layers, list)  # whose masks go by the layers, whatever the switch says
    if kind in SWITCHED and not config.get(SWITCH) and not named:
        return None
    if isinstance(layers, list):
        if kind not in EVERY_LAYER and "sliding_attention" not in layers:
            return None
    elif kind in LAST_LAYERS and config.get("max_window_layers", 28) >= config.get("num_hidden_layers", 0):
        return None
    return Window(size, f"{KEY} {size}{f' with {SWITCH}' if kind in SWITCHED else ''}")


def refuse_longer(window: Window | None, longest: int, backend: str) -> None:
    """Raises PreflightError where a backend that ignores the window would read `longest` tokens, more than it holds."""
    if window is not None and longest > window.size:
        raise PreflightError(
            f"config.json has {window.keys}, which {backend} does not compute, and up to {longest:,} tokens would be "
            "read; try --backend torch"
        )
