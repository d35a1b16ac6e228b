"""How much of a Mac's unified memory MLX may take: a pure function of what `mx.device_info` says.

All sizes in bytes. Elsewhere there is no such limit to set: Linux has no working set, and CUDA its own memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from backends.mlx.loss import CHUNK_BYTES
from gsm8k_core.hub import human_size
from gsm8k_core.types import Choice

PEAK_MARGIN = 1.2  # what is wired, over the predicted peak: wired memory is lost to everything else on the machine
CACHE_SHARE = 4  # a fourth of the working set, at most, for freed arrays of shapes that may come again
_WORKING_SET = "max_recommended_working_set_size"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes for mx.set_wired_limit, mx.set_cache_limit and mx.set_memory_limit."""

    wired: int
    cache: int
    memory: int


def limits(info: Mapping[str, Any], predicted_peak: int) -> tuple[Limits | None, dict[str, Choice]]:
    """The limits on this device, each with its reason; none where the device names no working set."""
    working_set = int(info.get(_WORKING_SET) or 0)
    if working_set <= 0:
        return None, {"memory": Choice("unlimited", "the device names no working set")}
    wanted = int(predicted_peak * PEAK_MARGIN)
    wired = min(wanted, working_set)
    set_size = human_size(working_set)
    why = f"the predicted peak of {human_size(predicted_peak)}, and a fifth more"
    if wanted > working_set:
        why += f", but no more than the working set of {set_size}: try a smaller --batch-size"
    found = Limits(wired, working_set // CACHE_SHARE, working_set)
    return found, {
        "wired": Choice(human_size(wired), why),
        "cache": Choice(human_size(found.cache), f"a fourth of the working set of {set_size}"),
        "memory": Choice(set_size, "the working set: more would be swapped"),
    }


def predicted_peak(
    num_parameters: int, num_trained: int, rows: int, width: int, body: Mapping[str, Any], itemsize: int
) -> int:
    """Bytes at the peak of an update: weights, gradients, moments, and the activations of `rows` x `width` tokens.

    `body` is the model's config.json, `itemsize` that of the compute dtype: 4 or 2. A layer keeps about 12 x hidden and
    4 x intermediate numbers a token, and a float32 for each head and token that it attends to. The head holds three
    arrays of a chunk of logits. Measured on the CPU: tests/backends/test_mlx_memory.py.
    """
    hidden, heads = int(body["hidden_size"]), int(body["num_attention_heads"])
    inner = int(body.get("intermediate_size", 4 * hidden))  # 4 is what is usual where the file is silent
    weights = num_parameters * itemsize + (num_trained * 4 if itemsize < 4 else 0)
    states = num_trained * (4 + 8)
    layer = rows * width * ((12 * hidden + 4 * inner) * itemsize + 4 * heads * width)
    logits = 3 * min(CHUNK_BYTES, 4 * rows * width * int(body["vocab_size"]))
    return weights + states + int(body["num_hidden_layers"]) * layer + logits


@contextmanager
def limited(info: Mapping[str, Any], peak: Callable[[], int], choices: dict[str, Choice]) -> Iterator[None]:
    """While inside, the limits for training hold; what was chosen goes into `choices`.

    On Metal alone. On the CPU a larger cache changed nothing, and CUDA's is as MLX has it.
    """
    found, chosen = limits(info, peak()) if mx.metal.is_available() else (None, {})
    choices.update(chosen)
    if found is None:
        yield
        return
    setters = (mx.set_memory_limit, found.memory), (mx.set_cache_limit, found.cache), (mx.set_wired_limit, found.wired)
    before_them = [(setter, setter(size)) for setter, size in setters]
    try:
        yield
    finally:
        for setter, size in before_them:
            setter(size)
