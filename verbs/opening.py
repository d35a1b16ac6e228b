"""The model of a run, opened on its backend: for the first segment, and again for each one after a failure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import backends
from gsm8k_core.adjust import as_choice, smaller
from gsm8k_core.batching import choose_tokens
from gsm8k_core.quantized import cached_base, dequantized_folder, is_quantized, widths
from gsm8k_core.tracking import Terminal
from gsm8k_core.types import Choice
from verbs import Context
from verbs.job import Job, checked_base


@dataclass(slots=True)
class Opened:
    """The model on its backend, the choices made, and what an adapter of it says it belongs to."""

    backend: Any
    choices: Mapping[str, Choice]
    seconds: float  # that loading took
    quantized: Path | None = None  # qlora: the 4-bit base, in the cache or in the run

    @property
    def tokens(self) -> int:
        """Padded tokens at most in a micro-batch."""
        return int(self.choices["batches"].name)


def open_model(job: Job, context: Context) -> Opened:
    """Load the job's model. Raises PreflightError, DataError and OutOfMemoryError."""
    before, config = context.elapsed(), job.config
    folder, quantized = job.source.folder, None
    if config.method == "qlora":
        quantized = _quantized_base(job, context.terminal)
        folder = quantized if backends.opens_quantized(job.backend.name) else dequantized_folder(quantized)
    backend = backends.open(job.backend.name, folder, config.device, config.dtype)
    tokens = job.batches or choose_tokens(
        config.micro_batch_tokens, config.batch_size, config.max_length, backend.micro_batch_tokens
    )
    if job.shrink and (fewer := smaller(int(tokens.name), job.widest, config.update_size)):
        tokens = as_choice(fewer, f"half, since the training process {job.shrink}")
    if config.dtype == "auto" and (first := next(job.updates(int(tokens.name)), None)):
        backend.choose_dtype(first.micro_batches[0], config)
    choices = {"backend": job.backend, **backend.choices, "batches": tokens}
    return Opened(backend, choices, context.elapsed() - before, quantized)


def _quantized_base(job: Job, terminal: Terminal) -> Path:
    """The 4-bit base: a new run's from the cache, a resumed one's from its own folder."""
    if job.run is not None and (job.checkpoint is not None or "base" in job.run.manifest):
        return checked_base(job.run)
    made_from = job.source.made_from
    if made_from is not None and is_quantized(made_from):
        terminal.say(f"base     the {widths(made_from)} weights as they are")
        return made_from
    terminal.say("base     4-bit weights are made of the model, by mlx-lm")
    return cached_base(job.source.folder, lambda target: backends.quantize(job.source.folder, target))
