"""What a run does about a segment that failed: keep what it has, change one thing, and go on from a checkpoint.

not finite      the step was not applied, so the weights are those of the update before it: they are kept, and go on
                at half the rate. Where the same update fails at once again, the weights themselves were the
                trouble, and the same retry begins at the checkpoint before them. One retry a run.
out of memory   half the padded tokens in a micro-batch, until each holds one row

The guard of a run: the base's answers, from now or from when the run began.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsm8k_core.files import remove_folder
from gsm8k_core.tracking.terminal import Terminal
from gsm8k_core.training.checkpoints import Checkpoint, newest
from gsm8k_core.training.measure import SHARE, DevSet, Guard, base_line, measure_base
from gsm8k_core.training.plan import ADJUSTMENTS, RATE_FACTOR, Adjustment, as_choice, halved, recorded, smaller
from gsm8k_core.training.runs import Run, cut_metrics
from gsm8k_core.types import DivergedError, GSM8KError, OutOfMemoryError, StorageError
from verbs.train.start import Job

if TYPE_CHECKING:
    from gsm8k_core.backend import Live

Say = Callable[[str], None]
LESS_MEMORY = "try --gradient-checkpointing, --method lora, or a smaller --max-length"


def is_whole(live: Any, done: int) -> bool:
    """Whether the weights are those after `done` updates, and every one of them and of their moments is a number."""
    try:
        return bool(live.state().step == done)
    except DivergedError:  # a weight or a moment that is none
        return False


def keep(live: Any, done: int, save: Callable[[], Path], say: Say) -> Path | None:
    """A checkpoint of the weights after `done` updates, or None where they are not whole."""
    try:
        return save() if is_whole(live, done) else None
    except (OutOfMemoryError, StorageError) as error:
        say(f"kept     nothing new: {error}")
        return None


def recover(
    error: GSM8KError, job: Job, run: Run, done: int, tokens: int, save: Callable[[], Path | None], say: Say
) -> Job:
    """The job to go on with after `error` came in the update after `done`. Raises `error` when nothing is left to try.

    `tokens` are the padded tokens at most in a micro-batch; `save` keeps the weights, and says where.
    """
    if isinstance(error, OutOfMemoryError):
        return _with_fewer_tokens(error, job, run, done, tokens, save, say)
    before = halved(recorded(run.manifest))
    if before is None:
        if done > job.done:
            save()
        checkpoint = newest(run.checkpoints, say)
    elif before.update == done == job.done and not went_back(run) and done:
        checkpoint = _before(run, done, say)
    else:
        raise error
    at = checkpoint.update if checkpoint else 0
    again = "" if before is None else "its weights were the trouble: "
    change = Adjustment("rate", at, RATE_FACTOR, f"{again}{error}")
    say(f"retry    {error}\n{'':9}going on {_where(checkpoint)} at half the rate; this is done once in a run")
    return _go_on(job, run, checkpoint, change)


def went_back(run: Run) -> bool:
    """Whether the one retry has taken its second beginning already."""
    return sum(one.what == "rate" for one in recorded(run.manifest)) > 1


def _before(run: Run, update: int, say: Say) -> Checkpoint | None:
    """The newest whole checkpoint of an earlier update. Those of `update` go: they lead to the same failure."""
    while (checkpoint := newest(run.checkpoints, say)) is not None and checkpoint.update >= update:
        remove_folder(checkpoint.folder)
    return checkpoint


def _with_fewer_tokens(
    error: OutOfMemoryError, job: Job, run: Run, done: int, tokens: int, save: Callable[[], Path | None], say: Say
) -> Job:
    fewer = smaller(tokens, job.widest, job.config.update_size)
    if done > job.done:
        save()
    if fewer is None:
        raise OutOfMemoryError(f"{error}; each micro-batch is one row already: {LESS_MEMORY}") from None
    checkpoint = newest(run.checkpoints, say)
    at = checkpoint.update if checkpoint else 0
    say(
        f"memory   {error}\n{'':9}going on {_where(checkpoint)} with micro-batches of {fewer} padded tokens (before: "
        f"{tokens}); the updates stay the same"
    )
    change = Adjustment("micro_batch_tokens", at, fewer, str(error))
    return replace(_go_on(job, run, checkpoint, change), batches=as_choice(fewer, "half, after memory ran out"))


def note_smaller(job: Job, run: Run, tokens: int, why: str) -> Job:
    """The job, with the record that its process died and that it goes on with `tokens` in a micro-batch."""
    change = Adjustment("micro_batch_tokens", job.done, tokens, f"the training process {why}")
    run.record(**{ADJUSTMENTS: [*run.manifest.get(ADJUSTMENTS, ()), change.as_json()]})
    return replace(job, run=run, adjustments=tuple(recorded(run.manifest)), shrink="")


def _where(checkpoint: Checkpoint | None) -> str:
    return f"from update {checkpoint.update}" if checkpoint else "from the beginning"


def _go_on(job: Job, run: Run, checkpoint: Checkpoint | None, change: Adjustment) -> Job:
    run.record(**{ADJUSTMENTS: [*run.manifest.get(ADJUSTMENTS, ()), change.as_json()]})
    cut_metrics(run.metrics, checkpoint.update if checkpoint else 0)
    return replace(job, run=run, checkpoint=checkpoint, adjustments=tuple(recorded(run.manifest)))


def last_good(run: Run, live: Any, done: int, write: Callable[[], None], say: Say) -> None:
    """Before a run fails for good: the weights after `done` updates become its model, where they are numbers."""
    if done and is_whole(live, done):
        write()
        say(f"kept     {run.model} is the model after update {done}, the last good one")
    else:
        name_newest(run, say)


def name_newest(run: Run, say: Say) -> None:
    """Say which checkpoint is the last good model, where there is one."""
    if (checkpoint := newest(run.checkpoints, say)) is not None:
        say(f"kept     {checkpoint.model} is the last good model")


def opened_guard(
    job: Job,
    run: Run,
    dev: DevSet | None,
    base: Live,
    elapsed: float,
    interrupted: Callable[[], bool],
    terminal: Terminal,
) -> Guard:
    """What the base showed, measured now unless it was. `base` answers as the untrained model; `elapsed` in seconds."""
    config = job.config
    if not config.guard_problems:
        return Guard(reason="--guard-problems 0")
    if (known := _recorded(job, run)) is not None:
        return known
    room = SHARE * min(config.budget_seconds, max(config.budget_seconds - elapsed, 0.0))
    try:
        guard = (
            measure_base(dev, base, config.guard_problems, room, interrupted)
            if dev
            else Guard(reason="these rows have no dev split")
        )
    except OutOfMemoryError:  # training may have room all the same
        guard = Guard(reason="there was no memory for its answers")
    terminal.say(base_line(guard))
    if guard.base is not None or not interrupted():  # after a signal, a run that begins again measures it then
        run.record(guard=guard.as_json())
    return guard


def _recorded(job: Job, run: Run) -> Guard | None:
    """What an earlier part of the run measured; None where this is its beginning."""
    facts = job.checkpoint.facts if job.checkpoint else run.manifest
    longest = facts.get("config", {}).get("eval_max_new_tokens")
    if facts.get("guard") and longest == job.config.eval_max_new_tokens:
        return Guard.from_json(facts["guard"])
    return Guard(reason="the run began without it, or with answers of another length") if job.done else None
