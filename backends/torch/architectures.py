"""Which models our cache and our loss compute as transformers' own classes do.

TYPES are tried in the tests against a plain forward and a plain greedy search. Any other type is tried when it is
opened, on a few tokens, and refused where it would be decoded otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gsm8k_core.models.rope import refuse_beyond, rope_of
from gsm8k_core.types import PreflightError

FULL, SLIDING, CONVOLUTION = "full_attention", "sliding_attention", "conv"
TYPES = (
    "gemma",
    "gemma2",
    "gemma3_text",
    "granite",
    "lfm2",
    "llama",
    "mistral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
)


def layer_kinds(config: Any) -> frozenset[str]:
    """Of a transformers config: those whose class has `layer_types`; others keep such a key and never read it."""
    return frozenset((config.layer_types if _reads(config, "layer_types") else None) or ())


def window_of_layers(config: Any) -> int | None:
    """The window of the layers that have one, or None."""
    kinds = layer_kinds(config)
    if not _reads(config, "sliding_window") or (kinds and SLIDING not in kinds):
        return None
    found: int | None = config.sliding_window
    return found


def _reads(config: Any, key: str) -> bool:
    """Whether the class of a config has the key: whatever else stands in config.json becomes an attribute, too."""
    return key in type(config).__dataclass_fields__


def check_layers(config: Any) -> None:
    """Raises PreflightError for layers whose state our cache does not hold, and for those that see what is to come."""
    if getattr(config, "use_bidirectional_attention", None):
        raise PreflightError(
            f"model type {config.model_type} has use_bidirectional_attention: a token would see those behind it, and "
            "none could be written; try another --model"
        )
    if strange := sorted(layer_kinds(config) - {FULL, SLIDING, CONVOLUTION}):
        raise PreflightError(
            f"model type {config.model_type} has layers of {', '.join(strange)}, and full and sliding attention and "
            "short convolutions can be decoded here; try another --model"
        )


def refuse_long_rows(config: Mapping[str, Any], longest: int) -> None:
    """Raises PreflightError where rows of `longest` tokens would not be computed alike in every batch."""
    nested = config.get("rope_parameters") or {}
    if not any(isinstance(value, Mapping) for value in nested.values()):
        refuse_beyond(rope_of(config), longest)
