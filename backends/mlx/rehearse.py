"""One micro-batch as training computes it, to know its time and its memory before the run begins."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import mlx.core as mx

from backends.mlx.blocks import wrapped_blocks
from backends.mlx.cpu import whole_array_ops
from backends.mlx.train import MicroBatch
from gsm8k_core.types import Batch

if TYPE_CHECKING:
    from gsm8k_core.config.train import TrainConfig


def rehearse(micro_batch: MicroBatch, batch: Batch, config: TrainConfig) -> float:
    """Seconds, forward and backward; the shorter of two times, since the first one is traced."""
    seconds = math.inf
    with wrapped_blocks(micro_batch.model, None, config.gradient_checkpointing), whole_array_ops(micro_batch.model):
        micro_batch.model.train()
        for _ in range(2):
            start = time.perf_counter()
            mx.eval(micro_batch(batch, 1.0))
            seconds = min(seconds, time.perf_counter() - start)
    return seconds
