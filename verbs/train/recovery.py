"""Does what the pilot decided about a segment that failed: keeps the weights, and goes on from a checkpoint or ends.

What may follow which failure stands in gsm8k_core/training/plan.py; nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gsm8k_core.files import remove_folder
from gsm8k_core.training.checkpoints import Checkpoint, newest
from gsm8k_core.training.metrics import cut_metrics
from gsm8k_core.training.plan import ADJUSTMENTS, Adjustment, Change, adjustments_of, as_choice, dtype_of
from gsm8k_core.training.runs import Run
from gsm8k_core.types import DivergedError, GSM8KError, OutOfMemoryError, StorageError
from verbs import as_json
from verbs.train.start import Job

Say = Callable[[str], None]


def go_on(change: Change, error: GSM8KError, job: Job, run: Run, tokens: int, say: Say) -> Job:
    """The job with `change`, from the newest whole checkpoint that it allows. What was kept first is on the disk.

    `tokens` were the padded tokens at most in a micro-batch when `error` came.
    """
    checkpoint = newest(run.checkpoints, say) if change.before is None else _before(run, change.before, say)
    at = checkpoint.update if checkpoint else 0
    where = f"going on from {f'update {at}' if checkpoint else 'the beginning'}"
    if change.what == "rate":
        say(f"retry    {error}\n{'':9}{where} at half the rate; this is done once in a run")
    elif change.what == "dtype":
        say(f"retry    {error}\n{'':9}{where} in {change.value}, at the same rate")
    else:
        fewer = int(change.value)
        job = replace(job, batches=as_choice(fewer, "half, after the device had no room, or no time, for more"))
        say(
            f"memory   {error}\n{'':9}{where} with micro-batches of {fewer} padded tokens (before: {tokens}); "
            "the updates stay the same"
        )
    job = _record(job, run, change.at(at))
    cut_metrics(run.metrics, at)
    return replace(job, checkpoint=checkpoint)


def _before(run: Run, update: int, say: Say) -> Checkpoint | None:
    """The newest whole checkpoint of an earlier update. Those of `update` go: they lead to the same failure."""
    while (checkpoint := newest(run.checkpoints, say)) is not None and checkpoint.update >= update:
        remove_folder(checkpoint.folder)
    return checkpoint


def _record(job: Job, run: Run, change: Adjustment) -> Job:
    values: dict[str, Any] = {ADJUSTMENTS: [*run.manifest.get(ADJUSTMENTS, ()), change.as_json()]}
    if change.what == "dtype" and (dtype := dtype_of([change])):  # --resume reads it there: written with it, or not
        values["choices"] = {**run.manifest.get("choices", {}), **as_json({"dtype": dtype})}
        job = replace(job, dtype=dtype)
    run.record(**values)
    return replace(job, run=run, adjustments=tuple(adjustments_of(run.manifest)))


def note_killed(job: Job, run: Run, tokens: int, why: str) -> Job:
    """The job, with the record that its process died and that it goes on with `tokens` in a micro-batch."""
    change = Adjustment("micro_batch_tokens", job.done, tokens, f"the training process {why}")
    return replace(_record(job, run, change), shrink="")


def is_whole(live: Any, done: int) -> bool:
    """Whether the weights are those after `done` updates, and every one of them and of their moments is a number."""
    try:
        return bool(live.state().step == done)
    except DivergedError:  # a weight or a moment that is none
        return False


def keep(live: Any, done: int, save: Callable[[int, Any], Path], say: Say) -> None:
    """A checkpoint of the weights after `done` updates, where they are whole and there is room for one."""
    try:
        if is_whole(live, done):
            save(done, live)
    except (OutOfMemoryError, StorageError) as error:
        say(f"kept     nothing new: {error}")


def keep_model(run: Run, live: Any, done: int, write: Callable[[], None], say: Say) -> None:
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
