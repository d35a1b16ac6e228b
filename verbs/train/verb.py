"""`train`: problems and a model in, a run folder with a trained model out."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from threading import Event
from typing import Any

import backends
from gsm8k_core.clock import kept_awake
from gsm8k_core.config.fields import EMBEDDED_MODEL
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.models.hub import seconds_downloading
from gsm8k_core.rollouts.progress import PROGRESS, ROUNDS, Progress
from gsm8k_core.tracking.feed import open_trackers
from gsm8k_core.training.pilot import STOP_INTERRUPTED, RunPilot
from gsm8k_core.training.runs import Run
from gsm8k_core.types import (
    EXIT_OK,
    EXIT_STOPPED,
    GSM8KError,
    Outcome,
    StorageError,
    UsageError,
)
from verbs import Context, say_choices
from verbs.demo import banner
from verbs.train.dry_run import dry_run
from verbs.train.model import OpenModel, check_time, open_model, rehearse
from verbs.train.policy_words import outcome_of
from verbs.train.recovery import note_killed
from verbs.train.room import check_room
from verbs.train.rounds import Rounds
from verbs.train.segment import Segment
from verbs.train.signals import Interrupted, stopping
from verbs.train.start import Job, new_job, resumed_job
from verbs.train.words import say_outcome, say_stopped


def run(config: TrainConfig, context: Context) -> int:
    """The verb."""
    if config.dry_run:
        return dry_run(config, context)
    job = resumed_job(config, context) if config.resume else new_job(config, context)
    if job is None:
        return EXIT_OK
    with job.run.let_go_on_error() if job.run else nullcontext():
        return _run(job, context)


def _run(job: Job, context: Context) -> int:
    if (engine := job.config.rollout_engine) != "backend" and backends.is_shared():  # as the run that goes on has it
        raise UsageError(
            f"the run samples with --rollout-engine {engine}, which answers for one process; add --rollout-engine "
            "backend, and each rank samples itself, or go on without a launcher"
        )
    if backends.is_spread():
        from verbs.ranks import refuse_spread  # here, not above: most runs are alone

        refuse_spread(job.config)
    check_room(job, context.terminal)
    link = context.link
    before = job.seconds if link.seconds is None else link.seconds
    job = replace(job, seconds=before + link.before, shrink="" if _was_sampling(job) else link.killed_by)
    last = Event()  # what is trained from now on becomes the model
    if job.config.recipe != "rft":
        last.set()
    with (
        backends.one_run(job.backend.name),
        stopping(last.is_set, lambda: context.terminal.is_drawn) as stopped,
        kept_awake(platform.system(), os.getpid(), context.terminal.say),
    ):
        model = open_model(job, context)
        say_choices(context.terminal, model.choices)
        elapsed = partial(_elapsed, job, context)
        rehearse(job, model, elapsed, context.terminal)
        if job.config.recipe != "rft" or job.run is None:  # of rft, the phase that is at hand knows
            check_time(job, model, elapsed())
        claimed = job.claim(model.choices)
        flags = _repeated(job.config)
        link.tell(run=str(claimed.folder.resolve()), seconds=before, flags=flags, downloaded=seconds_downloading())
        if job.shrink:
            job = note_killed(job, claimed, model.micro_batch_tokens, job.shrink)
            if job.config.recipe == "rft":  # which opens its model again
                job = replace(job, batches=model.choices["batches"])
        with _held(claimed):
            result = _train(job, model, claimed, context, lambda: stopped() or link.parent_is_gone(), last)
    if result is None:
        say_stopped(claimed.folder, context.terminal)
        return EXIT_STOPPED
    if rounds := claimed.manifest.get(ROUNDS):
        result |= {"rounds": rounds, "own": claimed.manifest["trained"]["own"]}
    say_outcome(job, claimed.folder, claimed.model, claimed.best, result, context.terminal)
    if job.source.choice.name == EMBEDDED_MODEL:
        banner(context.terminal, job.reason)
    return EXIT_STOPPED if result["reason"] == STOP_INTERRUPTED else EXIT_OK


def _was_sampling(job: Job) -> bool:
    """Whether the process before this one was asking the model: no micro-batch was too large then."""
    return job.run is not None and Progress.from_json(job.run.manifest.get(PROGRESS)).sampling


def _elapsed(job: Job, context: Context) -> float:
    """Seconds of the whole run."""
    return job.seconds + context.elapsed()


@contextmanager
def _held(run: Run) -> Iterator[None]:
    """However the training ends, its folder says so, and is let go."""
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        run.record(status="stopped", outcome={"reason": STOP_INTERRUPTED})
        raise
    except BaseException as error:
        if isinstance(error, StorageError):
            run.check_held()  # what became of the folder says more than the first write that failed for it
        reason = str(error) if isinstance(error, GSM8KError) else type(error).__name__
        with suppress(StorageError):  # which may be the very error, and says it better
            run.record(status="failed", outcome={"reason": reason})
        raise
    finally:
        run.release()


def _train(
    job: Job, model: OpenModel, run: Run, context: Context, interrupted: Callable[[], bool], last: Event
) -> dict[str, Any] | None:
    """Train to the end or a stop, and save the model; returns how it went, which run.json keeps.

    None where a signal came before the last training, so that there is no model yet.
    """
    with open_trackers(job.config, run, context.terminal.say) as trackers:
        try:
            if job.config.recipe == "rft":
                segment = Rounds(job, model, run, context, trackers, interrupted).last()
                last.set()
            else:
                segment = Segment(job, model, run, context, trackers, interrupted, changed=bool(context.link.killed_by))
            outcome, pilot = segment.train_on()
        except Interrupted:
            run.record(status="stopped", outcome={"reason": STOP_INTERRUPTED, "seconds": _elapsed(job, context)})
            return None
        if outcome.reason == STOP_INTERRUPTED:
            context.terminal.say("stopping: the model is being saved; another signal quits at once")
        try:
            segment.save_model()
        except StorageError as error:
            segment.keep_what_fits(error)
    more = outcome_of(segment.policy.policy.history) if segment.policy else {}
    return _record_outcome(run, outcome, pilot, segment.elapsed(), more)


def _repeated(config: TrainConfig) -> list[str]:
    """The flags that are for the command line and not for the run: a process that goes on with it gets them again."""
    return [name for name, given in (("--json", config.json_), ("--verbose", config.verbose)) if given]


def _record_outcome(
    run: Run, outcome: Outcome, pilot: RunPilot[Any], elapsed: float, more: dict[str, Any]
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "reason": outcome.reason,
        "updates": len(pilot.losses),
        "seconds": elapsed,
        "first_loss": pilot.losses[0],
        "last_loss": pilot.losses[-1],
        "first_four": _mean(pilot.losses[:4]),
        "last_four": _mean(pilot.losses[-4:]),
        **more,
    }
    if run.manifest["config"].get("guard_problems"):
        result["guard"] = pilot.guard.outcome()
    if pilot.best is not None:
        update, best = pilot.best
        result["best"] = {"update": update, "accuracy": best.accuracy, "loss": best.loss, "folder": str(run.best)}
    run.record(status="done" if outcome.reason == "done" else "stopped", outcome=result)
    return result


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
