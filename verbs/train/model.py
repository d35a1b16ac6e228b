"""The model of a run on its backend: opened for the first segment, and again for each one after a failure.

Before it is loaded, a formula says how many padded tokens a micro-batch may have; where that is close, one real
micro-batch shows it. A rehearsed micro-batch says how long an update may take, so that none is begun that has no time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import backends
from gsm8k_core.backend import Backend
from gsm8k_core.config.fields import AUTO
from gsm8k_core.config.train import SHARE, TrainConfig
from gsm8k_core.exports.blocks import GROUP, Blocks, matrices_in
from gsm8k_core.models import turn_end
from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.models.hub import human_size
from gsm8k_core.models.quantized import cached_base, dequantized_folder, is_quantized, widths
from gsm8k_core.models.turn_end import turn_end_of
from gsm8k_core.problems.batching import choose_tokens, fullest
from gsm8k_core.tracking.terminal import Terminal, clock
from gsm8k_core.training.memory import Plan, dev_at_once, model_of, plan
from gsm8k_core.training.plan import as_choice, fewer_tokens
from gsm8k_core.types import Choice, OutOfMemoryError, PreflightError
from verbs import Context
from verbs.train.start import Job, checked_base

REHEARSAL = 0.1  # of what the budget holds: where one pass takes more, the second, which would be quicker, is left out


class NoTimeError(PreflightError):
    """The time does not hold one update; another training of the same run may have some."""


@dataclass(slots=True)
class OpenModel:
    """The model on its backend, with what was chosen for it, and what an adapter of it says it belongs to."""

    backend: Any
    choices: Mapping[str, Choice]
    quantized: Path | None = None  # qlora: the 4-bit base, in the cache or in the run
    plan: Plan | None = None  # of the memory; None for a model whose sizes are not known
    rehearsed: float = 0.0  # seconds that a padded token of an update takes; 0: not rehearsed
    update_seconds: float = 0.0  # and the next update
    seconds: float = 0.0  # that it took to open it, and to rehearse it

    @property
    def micro_batch_tokens(self) -> int:
        """Padded tokens at most in a micro-batch."""
        return int(self.choices["batches"].name)

    def memory(self) -> dict[str, Any]:
        """For run.json: what was predicted, and the peak so far."""
        measured = {"measured": self.backend.peak_memory()}
        return {**self.plan.as_json(), **measured} if self.plan else measured


def open_model(job: Job, context: Context) -> OpenModel:
    """Load the job's model. Raises PreflightError, DataError and OutOfMemoryError."""
    config, began = job.config, context.elapsed()
    backends.check_rows(job.backend.name, job.source.model.config, job.longest)
    planned = None if job.batches else _plan_memory(job, context)
    if planned is not None:
        context.terminal.say(f"memory   {planned.line()}")
    folder, quantized = job.source.folder, None
    if config.method == "qlora":
        quantized = _quantized_base(job, context.terminal)
        folder = quantized if backends.opens_quantized(job.backend.name) else dequantized_folder(quantized)
    backend = backends.open(job.backend.name, folder, config.device, config.dtype, job.source.model.rendering)
    started = _start_turn_end(job, backend)
    if job.dtype is not None:
        backend.choices["dtype"] = job.dtype  # it is the one that was asked for; its reason is the run's
    tokens = job.batches or (planned.tokens if planned else _without_a_plan(job))
    if int(tokens.name) < job.widest:
        context.terminal.say(f"batches  the longest row has {job.widest} padded tokens: a micro-batch of its own")
    if job.shrink and (fewer := fewer_tokens(int(tokens.name), job.widest, config.update_size)):
        tokens = as_choice(fewer, f"half, since the training process {job.shrink}")
    if config.dtype == "auto" and (first := next(job.updates(int(tokens.name)), None)):
        backend.choose_dtype(first.micro_batches[0], config)
    if planned is not None and planned.tight:
        tokens = _tokens_that_fit(backend, job, planned, tokens)
    if planned is not None:
        planned = planned.settled(config, backend.choices["dtype"].name, tokens)
    choices = {
        "backend": job.backend,
        **backend.choices,
        "batches": tokens,
        **_cadence(config),
        **started,
        **_saved(job),
    }
    if job.rows.dev:
        longest = max(row.num_prompt for _, row in job.rows.dev) + config.eval_max_new_tokens
        choices["dev"] = dev_at_once(planned or job.memory, config, choices["dtype"].name, longest, len(job.rows.dev))
    return OpenModel(backend, choices, quantized, planned, seconds=context.elapsed() - began)


def _start_turn_end(job: Job, backend: Any) -> dict[str, Choice]:
    """What is done about an end token that the model never saw, done."""
    end = turn_end_of(job.source.model)
    started = {} if end is None else {turn_end.NAME: end.choice(job.config.uses_adapter)}
    if end is not None and started[turn_end.NAME].name == turn_end.STARTED:
        backend.start_token(end.token, end.document_end)
    return started


def first_weights(job: Job, model: OpenModel) -> Backend:
    """A second model, as the run's was before its first update; nothing is trained in it.

    Raises PreflightError, DataError and OutOfMemoryError, as open_model does.
    """
    names = model.choices["device"].name, model.choices["dtype"].name
    backend: Backend = backends.open(job.backend.name, job.source.folder, *names, job.source.model.rendering)
    _start_turn_end(job, backend)
    return backend


def rehearse(job: Job, model: OpenModel, elapsed: Callable[[], float], terminal: Terminal) -> None:
    """Time the micro-batch of the next update's shortest rows, so that no update is begun of which nothing is known.

    `elapsed` gives the seconds of the whole run. Nothing is rehearsed when the budget is gone.
    """
    update, left = next(job.updates(model.micro_batch_tokens), None), job.config.budget_seconds - elapsed()
    if update is None or left <= 0:
        return
    batch, before = update.micro_batches[-1], elapsed()  # the longest rows stand first
    try:
        seconds = model.backend.rehearse(batch, job.config, lambda: elapsed() - before > REHEARSAL * left)
    except OutOfMemoryError as error:  # the first update will find the same, and be halved
        terminal.say(f"memory   no micro-batch could be timed: {error}")
        return
    model.rehearsed = seconds / batch.tokens.size
    model.seconds += elapsed() - before
    tokens = islice(job.tokens(model.micro_batch_tokens), job.done, job.done + 1)
    model.update_seconds = model.rehearsed * sum(tokens)


def check_time(job: Job, model: OpenModel, elapsed: float) -> None:
    """Refuse a run that has no time for one update, before it has a folder. Raises NoTimeError.

    A run with a checkpoint is none: that becomes its model.
    """
    if not job.done and elapsed + model.update_seconds >= job.config.budget_seconds:
        left = f"{job.run.folder} is as it was" if job.run else "no folder was made"
        raise NoTimeError(no_time(job, elapsed, model.update_seconds, left))


def no_time(job: Job, elapsed: float, update: float, left: str, kept: Mapping[str, float] | None = None) -> str:
    """What a run says that cannot do one update; `left` is what it leaves on the disk.

    `kept`: the seconds that what must follow the update has to have, by what it is.
    """
    after, parts = kept or {}, [f"{_tenths(elapsed)} are gone before it"]
    if update:
        parts.append(f"an update takes about {_tenths(update)}")
    parts += [f"{_tenths(seconds)} are kept for {what}" for what, seconds in after.items() if seconds]
    *first, last = parts
    why = f"{', '.join(first)} and {last}" if first else last
    enough = int(2 * (elapsed + 2 * update + sum(after.values())) / 60) + 1
    return (
        f"--max-time {job.config.max_time} has no time for one update: {why}; nothing was trained, {left}; "
        f"give it more, such as --max-time {enough}m"
    )


def _tenths(seconds: float) -> str:
    """A short time with its tenth, so that a sum of them is the sum of what is shown."""
    return f"{seconds:.1f} s" if seconds < 59.95 else clock(seconds)


def _plan_memory(job: Job, context: Context) -> Plan | None:
    """What fits, before the model is loaded. Raises OutOfMemoryError where one row does not."""
    config = job.config
    model = model_of(job.source.model.config, config)
    if model is None:
        return None
    memory = backends.device_memory(job.backend.name, config.device)
    sizes = config.micro_batch_tokens, config.batch_size, config.max_length
    wanted = choose_tokens(*sizes, memory.tokens, memory.caps_alone, memory.most)
    dtype = "float32" if config.dtype == "auto" else config.dtype
    return plan(model, config, dtype, memory, wanted, job.widest, "micro_batch_tokens" in context.explicit)


def _cadence(config: TrainConfig) -> dict[str, Choice]:
    """How often there is a checkpoint and a probe, where nobody said so."""
    why = f"updates from one to the next, or more where they would take over {100 * SHARE:.0f} % of the time"
    every = {"saves": (config.save_steps, config.save_every), "probes": (config.probe_steps, config.probe_every)}
    return {name: Choice(str(updates), why) for name, (asked, updates) in every.items() if asked == AUTO}


def _saved(job: Job) -> dict[str, Choice]:
    """The dtype of model/; an adapter is small, and stays as it is."""
    asked = job.config.save_dtype
    if job.config.uses_adapter:
        return {}
    if asked != AUTO:
        return {"saved": Choice(asked, "--save-dtype")}
    return {"saved": Choice(job.source.dtype, "as the base's own weights are stored")}


def _quantized_base(job: Job, terminal: Terminal) -> Path:
    """The 4-bit base: a new run's from the cache, a resumed one's from its own folder."""
    if job.run is not None and (job.checkpoint is not None or "base" in job.run.manifest):
        return checked_base(job.run)
    made_from = job.source.made_from
    if made_from is not None and is_quantized(ModelFolder(made_from)):
        terminal.say(f"base     the {widths(ModelFolder(made_from))} weights as they are")
        return made_from
    stays = Blocks.of(matrices_in(job.source.folder), GROUP).line("float32")
    terminal.say(f"base     4-bit weights are made of the model, by mlx-lm{f'; {stays}' if stays else ''}")
    return cached_base(job.source.folder, lambda target: backends.quantize(job.source.folder, target))


def _without_a_plan(job: Job) -> Choice:
    config, memory = job.config, backends.device_memory(job.backend.name, job.config.device)
    sizes = config.micro_batch_tokens, config.batch_size, config.max_length
    return choose_tokens(*sizes, memory.tokens, limit=memory.most)


def _tokens_that_fit(backend: Any, job: Job, memory: Plan, tokens: Choice) -> Choice:
    """The padded tokens that one real micro-batch of the longest rows had room for: `tokens`, or half, and so on.

    A process's peak never falls: of a smaller one it is that of the larger one before, less what the formula says of
    the difference. Raises OutOfMemoryError where one row has none.
    """
    dtype = backend.choices["dtype"].name
    before: tuple[int, int, int] | None = None  # of the one before: the peak, what it took, and the formula's
    while True:
        count = int(tokens.name)
        predicted = memory.settled(job.config, dtype, tokens).need.total
        fewer = fewer_tokens(count, job.widest, job.config.update_size)
        try:
            backend.rehearse(fullest(job.rows.examples, count, job.config.update_size), job.config)
            took = peak = backend.peak_memory()
            if before is not None and peak >= before[0]:  # no smaller one takes as much
                took = before[1] - (before[2] - predicted)
            before, needed = (peak, took, predicted), took + memory.moments
            if needed <= memory.memory.free or fewer is None:
                return tokens
            why = f"{count} took {human_size(needed)} of {human_size(memory.memory.free)}, moments included"
        except OutOfMemoryError:
            if fewer is None:
                raise
            why = f"there was no memory for {count}"
        tokens = as_choice(fewer, f"half: {why}")
