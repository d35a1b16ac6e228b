"""`benchmark key-copies`: whether MLX's decoding writes keys and values in place, or copies them each step.

A step writes one position of each row where the last step's are. Where the device has not let go of those, they are
copied instead, and no text shows it: memory at the peak of the steps does. On Metal that hangs on how many command
buffers are on their way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import backends
from benchmarks.config import BenchmarkConfig
from gsm8k_core.models.find import resolve_model
from gsm8k_core.models.hub import human_size
from gsm8k_core.types import EXIT_OK, Sampling
from verbs import Context

ROWS, PROMPT, NEW = 64, 20, 96  # within the positions that are made at once, so that nothing grows
IN_PLACE = 0.3  # of all keys and values: a peak of less beyond them holds no copy


def key_copies(config: BenchmarkConfig, context: Context) -> int:
    """The mode. What was measured is in the one JSON object."""
    folder = resolve_model(config.model, context.terminal.say).folder
    found = measure(backends.open("mlx", folder, config.device, config.dtype))
    every, beyond = (human_size(found[name]) for name in ("keys_and_values", "beyond_at_the_peak"))
    context.terminal.say(f"peak     steps held {beyond} beyond the weights and all keys and values, which are {every}")
    context.terminal.say(f"keys     {verdict(found)}")
    context.terminal.result({**found, "verdict": verdict(found)})
    return EXIT_OK


def verdict(found: Mapping[str, Any]) -> str:
    """What the peak says."""
    return "written in place" if found["beyond_at_the_peak"] < IN_PLACE * found["keys_and_values"] else "copied"


def measure(backend: Any, num_rows: int = ROWS) -> dict[str, Any]:
    """Bytes of all keys and values, and what the steps held at their peak beyond those and the weights."""
    import mlx.core as mx

    from backends.mlx.cache import GROW
    from backends.mlx.generate import generate

    told, before = 0, int(mx.get_active_memory())  # the weights

    def listen(index: int, token: int) -> None:
        nonlocal told
        told += 1
        if told == num_rows * NEW // 4:  # the prompts were read, and their memory was given back
            mx.reset_peak_memory()

    prompts = [[5 + (row + place) % 30 for place in range(PROMPT)] for row in range(num_rows)]
    dict(generate(backend._model, prompts, Sampling(NEW, num_rows), frozenset(), listen))  # no row ends early
    args, size = backend._model.args, 4 if backend.choices["dtype"].name == "float32" else 2
    head_size = getattr(args, "head_dim", None) or args.hidden_size // args.num_attention_heads
    every = 2 * args.num_hidden_layers * num_rows * args.num_key_value_heads * GROW * head_size * size
    return {"keys_and_values": every, "beyond_at_the_peak": int(mx.get_peak_memory()) - before - every}
