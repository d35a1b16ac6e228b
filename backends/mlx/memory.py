"""What training takes in MLX, what its device has, and how much of a Mac's unified memory MLX may take.

All sizes in bytes. Elsewhere there is no such limit to set: Linux has no working set, and CUDA its own memory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from backends.mlx.device import MICRO_BATCH, choose_device, has_gpu
from backends.mlx.loss import CHUNK_BYTES, FROZEN_CHUNK_BYTES
from gsm8k_core.models.hub import human_size
from gsm8k_core.problems.batching import choose_tokens
from gsm8k_core.training.memory import Costs, DeviceMemory, model_of, predict, system_memory
from gsm8k_core.types import Choice

if TYPE_CHECKING:
    from gsm8k_core.config.train import TrainConfig

# MLX's own peak, measured on the CPU, and the process beside it; on a GPU the same, which was not measured.
COSTS = Costs(
    process=600_000_000,
    chunk=CHUNK_BYTES,
    frozen_chunk=FROZEN_CHUNK_BYTES,
    activations=1.12,
    adapted=1.12,
    scores=1.0,
    again=7.5,
    working_copy=True,
)

# How MLX, Metal and CUDA's libraries say that memory ran out. ("memory" alone is in an illegal access, too.)
NO_MEMORY = (
    "malloc",
    "allocate",
    "out of memory",
    "insufficient memory",
    "alloc_failed",
    "allocation_failed",
    "cublasltcreate(&storage.handle) failed with code: 3",  # CUBLAS_STATUS_ALLOC_FAILED
)

PEAK_MARGIN = 1.2  # what is wired, over the predicted peak: wired memory is lost to everything else on the machine
CACHE_SHARE = 4  # a fourth of the working set, at most, for freed arrays of shapes that may come again
_WORKING_SET = "max_recommended_working_set_size"  # mx.device_info's, on Metal
_CARD, _FREE_OF_CARD = "total_memory", "free_memory"  # and on CUDA


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
        why += f", but no more than the working set of {set_size}: try a smaller --micro-batch-tokens"
    found = Limits(wired, working_set // CACHE_SHARE, working_set)
    return found, {
        "wired": Choice(human_size(wired), why),
        "cache": Choice(human_size(found.cache), f"a fourth of the working set of {set_size}"),
        "memory": Choice(set_size, "the working set: more would be swapped"),
    }


def device_memory(asked: str) -> DeviceMemory:
    """Of the device that `--device asked` means."""
    device = choose_device(asked, has_gpu()).name
    info = mx.device_info(mx.gpu) if device == "gpu" else {}
    if working_set := int(info.get(_WORKING_SET) or 0):
        # All of it, whatever is free now: macOS makes room for who asks, by what other programs do not use.
        return DeviceMemory(device, working_set, working_set, COSTS, MICRO_BATCH[device], "Metal's working set")
    if total := int(info.get(_CARD) or 0):
        free, said = int(info[_FREE_OF_CARD]), "free on the GPU"
        return DeviceMemory(device, free, total, COSTS, MICRO_BATCH["cuda"], said, caps_alone=True)
    free, total, reason = system_memory()
    limit = total if sys.platform == "darwin" else free  # a Mac makes room for who asks
    return DeviceMemory(device, free, limit, COSTS, MICRO_BATCH[device], reason)


def forget_peak() -> None:
    """A new peak begins: `peak` is never less than what a failed try took, else."""
    mx.reset_peak_memory()


def peak(device: str) -> int:
    """Bytes at the peak, MLX's own since it was forgotten last, and what the process holds beside them."""
    return int(mx.get_peak_memory()) + COSTS.process


def own_peak(body: Mapping[str, Any], config: TrainConfig, dtype: str, device: str) -> int:
    """The predicted peak of MLX's own memory, with the padded tokens in a micro-batch that `config` names.

    0 for a model whose sizes have other names.
    """
    model = model_of(body, config)
    if model is None:
        return 0
    tokens = choose_tokens(config.micro_batch_tokens, config.batch_size, config.max_length, MICRO_BATCH[device])
    return predict(model, config, dtype, COSTS, int(tokens.name), config.max_length).total - COSTS.process


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
