"""`train --dry-run`: what a run would take, from the rows, a formula and one real micro-batch; it leaves nothing."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

from gsm8k_core.config.train import TrainConfig
from gsm8k_core.models.hub import human_size
from gsm8k_core.problems.batching import fullest
from gsm8k_core.tracking.terminal import clock
from gsm8k_core.training.memory import answers_at_once
from gsm8k_core.types import EXIT_OK, StorageError, UsageError, counted
from verbs import Context, as_json, say_choices
from verbs.train import policy_words
from verbs.train.model import OpenModel, open_model
from verbs.train.room import room_of
from verbs.train.sampler import TOGETHER
from verbs.train.start import Job, new_job
from verbs.train.words import phases_line


def dry_run(config: TrainConfig, context: Context) -> int:
    """The verb, without the training. Raises what would refuse the run."""
    if config.resume:
        raise UsageError("--dry-run is for a new run; leave out --resume, or --dry-run to go on")
    job = new_job(config, context)
    before = context.elapsed()
    model = open_model(job, context)
    loading = context.elapsed() - before
    say_choices(context.terminal, model.choices)
    rehearsal = _rehearse(job, model)
    time, room = rehearsal.of(job, model.micro_batch_tokens, loading), room_of(job)
    terminal = context.terminal
    peak = model.backend.peak_memory()
    moments = model.plan.moments if model.plan else 0
    terminal.say(f"memory   one micro-batch took {human_size(peak)}; {human_size(moments)} of moments are added")
    terminal.say(rehearsal.line(time, job.config) if job.config.recipe != "grpo" else policy_words.time_line(job, time))
    if job.config.recipe != "sft" and model.plan is not None:
        dtype = model.choices["dtype"].name
        at_once = answers_at_once(model.plan, job.config, dtype, job.longest_sampled, TOGETHER)
        terminal.say(f"together {at_once.name}: {at_once.reason}")
    if job.config.recipe == "rft":
        terminal.say(phases_line(job.config, time["budget"] - time["loading"], len(job.rows.asked)))
    terminal.say(f"disk     {room.line()}")
    terminal.say("dry run  nothing was trained, and no folder was made")
    terminal.result(
        {
            "memory": {**model.memory(), "measured_with_moments": peak + moments},
            "time": time,
            "disk": room.as_json(),
            "rows": {"train": len(job.rows.examples), "dev": job.rows.num_dev, **job.rows.preflight.as_json()},
            "choices": as_json(model.choices),
        }
    )
    room.check()
    if room.needed > room.free:
        raise StorageError(
            f"{room.folder} has {human_size(room.free)} free, and the run may need "
            f"{human_size(room.needed)}; give another --output-dir, or --save-total-limit 1"
        )
    return EXIT_OK


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """One micro-batch of the longest rows, forward and backward."""

    seconds: float
    tokens: int  # padded

    def of(self, job: Job, max_tokens: int, loading: float) -> dict[str, Any]:
        """Seconds of the whole run, its micro-batches' padded tokens at the rate of this one's.

        Of grpo, at most, and without the sampling.
        """
        if job.config.recipe == "grpo":
            tokens = job.total * job.config.update_size * job.widest
        else:
            per_epoch = job.total // job.config.num_epochs
            tokens = job.config.num_epochs * sum(islice(job.tokens(max_tokens), per_epoch))
        seconds = tokens * self.seconds / self.tokens
        return {
            "seconds": seconds,
            "updates": job.total,
            "tokens": tokens,
            "loading": loading,
            "per_update": seconds / job.total,
            "budget": job.config.budget_seconds,
        }

    def line(self, time: dict[str, Any], config: TrainConfig) -> str:
        """For a person."""
        room = time["budget"] - time["loading"]
        epochs = counted(config.num_epochs, "epoch")
        said = (
            f"time     about {clock(time['seconds'])} for {counted(time['updates'], 'update')} ({epochs}), by one "
            f"micro-batch of {self.tokens} padded tokens in {self.seconds:.2f} s; steps and evaluations are added"
        )
        if time["seconds"] <= room:
            return f"{said}; --max-time {config.max_time} is enough"
        done = config.num_epochs * max(room, 0) / time["seconds"]
        return f"{said}; --max-time {config.max_time} ends it after about {done:.1f} of {epochs}"


def _rehearse(job: Job, model: OpenModel) -> Rehearsal:
    batch = fullest(job.rows.examples, model.micro_batch_tokens, job.config.update_size)
    return Rehearsal(model.backend.rehearse(batch, job.config), batch.tokens.size)
