"""Transformer blocks that draw their own dropout, and that may be computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx


@contextmanager
def wrapped_blocks(model: Any, seed: Callable[[], int] | None, checkpoint: bool) -> Iterator[None]:
    """While inside, each block seeds itself from `seed()` and its place, and with `checkpoint` keeps no activations.

    A block that is computed again has to draw the same dropout, and a stream that all blocks share would not.
    """
    if seed is None and not checkpoint:
        yield
        return
    kinds = [type(layer) for layer in model.layers]
    try:
        for place, (layer, kind) in enumerate(zip(model.layers, kinds, strict=True)):
            layer.__class__ = _wrapper(kind, place, seed, checkpoint)  # mlx-lm changes the class of all models instead
        yield
    finally:
        for layer, kind in zip(model.layers, kinds, strict=True):
            layer.__class__ = kind


def _wrapper(kind: type, place: int, seed: Callable[[], int] | None, checkpoint: bool) -> type:
    def plain(layer: Any, *arguments: Any, **named: Any) -> Any:
        if seed is not None and layer.training:
            mx.random.seed(seed() + place)
        return kind.__call__(layer, *arguments, **named)  # type: ignore[operator]

    def again(layer: Any, *arguments: Any, **named: Any) -> Any:
        if not layer.training:
            return plain(layer, *arguments, **named)

        def inner(parameters: Any, *inner_arguments: Any, **inner_named: Any) -> Any:
            layer.update(parameters)
            return plain(layer, *inner_arguments, **inner_named)

        return mx.checkpoint(inner)(layer.trainable_parameters(), *arguments, **named)

    return type(kind.__name__, (kind,), {"__call__": again if checkpoint else plain})
