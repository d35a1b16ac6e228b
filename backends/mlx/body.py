"""The bodies of Gemma, Gemma 2 and Gemma 3: mlx-lm's layers, put together as transformers does.

mlx-lm leaves out Gemma 2's window, rounds the factor of Gemma 3's embedding to bfloat16, takes another activation for
Gemma, and knows one pattern of Gemma 3's layers. A body is made another by its class: its weights stay where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models import gemma2, gemma3_text
from mlx_lm.models.base import create_attention_mask
from mlx_lm.models.rope_utils import initialize_rope

from backends.mlx.architectures import SLIDING, gemma3_ropes, layer_kinds, scaling_of, window_size


@dataclass(frozen=True, slots=True)
class Layers:
    """Which layers see a window, and its size. (A list would be a part of an mlx module's parameters.)"""

    kinds: tuple[str, ...]
    window: int

    def masks(self, h: mx.array, cache: Sequence[Any], as_array: bool) -> dict[str, Any]:
        """One for each kind of layer."""
        return {
            kind: create_attention_mask(
                h,
                cache[self.kinds.index(kind)],
                window_size=self.window if kind == SLIDING else None,
                return_array=as_array,
            )
            for kind in set(self.kinds)
        }


class Gemma2Body(gemma2.GemmaModel):  # type: ignore[misc]
    """With its window. Its attention adds a mask to scores of (B, key heads, queries of each, T, S)."""

    mask_heads = 1
    plan: Layers

    def __call__(self, inputs: mx.array, cache: Sequence[Any] | None = None) -> mx.array:
        h = self.embed_tokens(inputs) * self.args.hidden_size**0.5
        given = cache or [None] * len(self.layers)
        masks = {kind: _for_groups(mask) for kind, mask in self.plan.masks(h, given, True).items()}
        for layer, kind, keys in zip(self.layers, self.plan.kinds, given, strict=True):
            h = layer(h, masks[kind], keys)
        return self.norm(h)


def _for_groups(mask: mx.array | None) -> mx.array | None:
    """(B, 1, 1, S) as (B, 1, 1, 1, S)."""
    return mask if mask is None or mask.ndim < 4 else mask[:, None]


class Gemma3Body(gemma3_text.Gemma3Model):  # type: ignore[misc]
    """With any order of its layers, and the factor of its embedding in the dtype of that."""

    plan: Layers

    def __call__(
        self, inputs: mx.array, cache: Sequence[Any] | None = None, input_embeddings: mx.array | None = None
    ) -> mx.array:
        h = self.embed_tokens(inputs) if input_embeddings is None else input_embeddings
        h = h * mx.array(self.args.hidden_size**0.5, h.dtype)
        given = cache or [None] * len(self.layers)
        masks = self.plan.masks(h, given, False)
        for layer, kind, keys in zip(self.layers, self.plan.kinds, given, strict=True):
            h = layer(h, masks[kind], keys)
        return self.norm(h)


def complete(model: Any, config: Any) -> None:
    """Make the body of a model that was just built the one that transformers computes."""
    kind = config["model_type"]
    if kind == "gemma":
        for layer in model.layers:
            layer.mlp.__class__ = gemma2.MLP  # gelu by tanh
    if kind in _BODIES:
        body = model.model
        body.__class__ = _BODIES[kind]
        body.plan = Layers(tuple(layer_kinds(config)), window_size(config))
    if kind == "gemma3_text":
        near, far = gemma3_ropes(config)
        for layer, sees in zip(model.layers, model.model.plan.kinds, strict=True):
            rope = near if sees == SLIDING else far
            attention = layer.self_attn
            attention.is_sliding = sees == SLIDING
            attention.rope = initialize_rope(
                attention.head_dim, rope.base, False, scaling_of(rope), config.get("max_position_embeddings")
            )


_BODIES = {"gemma2": Gemma2Body, "gemma3_text": Gemma3Body}
