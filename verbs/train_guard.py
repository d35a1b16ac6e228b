"""The guard of a run: the base's answers, from now or from when the run began."""

from __future__ import annotations

from collections.abc import Callable

from gsm8k_core.dev import DevSet, Measured
from gsm8k_core.guard import SHARE, Guard, base_line, measure_base
from gsm8k_core.runs import Run
from gsm8k_core.tracking import Terminal
from gsm8k_core.types import OutOfMemoryError
from verbs.job import Job


def opened_guard(
    job: Job,
    run: Run,
    dev: DevSet | None,
    base: Measured,
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
