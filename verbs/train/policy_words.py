"""What `train --recipe grpo` says: the reward and what warns, and not the loss, which says nothing of progress."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from gsm8k_core.config.train import GRPO_WARMUP
from gsm8k_core.rollouts.order import MOST_ASKED
from gsm8k_core.rollouts.watch import STOP_CUT, STOP_ENTROPY, STOP_WORSE, WINDOW, Figures
from gsm8k_core.scoring.stats import percent
from gsm8k_core.tracking.terminal import clock
from gsm8k_core.types import counted
from verbs.train.start import Job

LINES = 20  # in a run, about
PUBLISHED = 200  # updates, at the least
# Why a run ended, and what to try.
ENDS = {
    STOP_ENTROPY: "its entropy fell under a third of what it was: its answers are becoming one answer",
    STOP_CUT: "more than 20 % of its answers reached the length limit, and such an answer has no reward",
    STOP_WORSE: "after a quarter of the updates the base is better on the dev problems",
}
TRIES = {
    STOP_ENTROPY: "a lower --learning-rate, a --kl such as 0.01, or fewer updates; the newest best/ or checkpoint "
    "before the fall may be the better model",
    STOP_CUT: "a larger --sample-max-new-tokens; where the model never ends, a short train --recipe sft first",
    STOP_WORSE: "a lower --learning-rate, --method lora, or --recipe rft",
}


def plan_line(job: Job, folder: object) -> str:
    """Before anything is done."""
    config = job.config
    what = "" if config.method == "full" else f", {config.method} of rank {config.lora_rank}"
    after = f" after the first {job.done}" if job.done else ""
    reuse = f", {config.updates_per_rollout} on the same answers" if config.updates_per_rollout > 1 else ""
    most = MOST_ASKED * config.prompts_per_update
    return (
        f"plan     {counted(job.events[-1].total, 'update')}{after} of {counted(config.prompts_per_update, 'problem')} "
        f"(up to {most}, until groups differ) with {counted(config.samples, 'answer')} each{reuse}{what}, "
        f"rate {config.learning_rate:g} after {GRPO_WARMUP} updates, at most {clock(config.budget_seconds)}; "
        f"folder {folder}"
    )


def time_line(job: Job, time: Any) -> str:
    """Of a dry run."""
    config = job.config
    return (
        f"time     {counted(time['updates'], 'update')} of {counted(config.update_size, 'answer')} at first; to train "
        f"on all of them takes at most {clock(time['per_update'])} an update, and what sampling takes is known after "
        f"the first update; --max-time {config.max_time} ends the run, whatever they take"
    )


def note(values: Any, left: str) -> str:
    """Beside the progress bar, after an update; the rest has no room there."""
    return f"reward {values['reward']:.3f}  {values['seconds']:.1f} s, {clock(values['eta'])} to go, budget {left}"


def rollout_line(values: Any) -> str:
    """A sign of life from a rollout that takes long."""
    return (
        f"rollout  update {values['update']}: {values['answered']:,} of {counted(values['of'], 'answer')}, "
        f"{values['sampling_speed']:,.0f} tokens/s"
    )


def line(values: Any) -> str:
    """All that an update showed, after the first one and then LINES times in a run; else nothing."""
    update, every = values["update"], max(1, values["total"] // LINES)
    if update != 1 and update % every:
        return ""
    kl = f", {values['kl']:.3f} nats from the first weights" if "kl" in values else ""
    clipped = f", {percent(values['clipped'])} clipped" if values["clipped"] else ""
    sampled = f"{values['sampling_speed']:,.0f} sampled and " if "sampling_speed" in values else ""
    return (
        f"policy   update {update}: reward {values['reward']:.3f}, {percent(values['solve_rate'])} of the problems "
        f"solved, {percent(values['mixed'])} of the groups mixed; {values['length']:.0f} tokens an answer, "
        f"{percent(values['cut'])} cut; entropy {values['entropy']:.2f}{clipped}{kl}; {sampled}"
        f"{values['training_speed']:,.0f} trained tokens/s"
    )


def advice(worse: bool, rate: float, budget: str, updates: int) -> str:
    """What to try where the trained model was not better on the dev problems.

    `budget`: the --max-time that ended the run, empty where it did all of its updates.
    """
    tries = [f"a lower rate (--learning-rate {rate / 3:.1g})", "--kl 0.01"] if worse else []
    longer = f"a longer --max-time than {budget}" if budget else "more --num-epochs"
    longer += ": hundreds of updates are what is published" if updates < PUBLISHED else ""
    more = "more --guard-problems, to see a smaller difference"
    return "try      " + "; ".join([*tries, longer, "--recipe rft, which needs less time", *([] if worse else [more])])


def outcome_of(history: Sequence[Figures]) -> dict[str, Any]:
    """For run.json: where the policy began and where it ended."""
    window = _window(len(history))
    first, last = _mean(history[:window]), _mean(history[-window:])
    return {
        "policy": {
            "rewarded": any(each.reward > 0 or each.mixed > 0 for each in history),
            "first": first,
            "last": last,
            "problems": sum(each.asked for each in history),
            "answers": sum(each.answers for each in history if each.asked),
            "tokens": sum(each.tokens for each in history),
        }
    }


def _window(updates: int) -> int:
    """How many updates the figures of the start and of the end are means of: none is in both."""
    return WINDOW if updates >= 2 * WINDOW else 1


def _means(updates: int) -> str:
    return f"means of {WINDOW} updates" if _window(updates) == WINDOW else "the first update and the last"


def _mean(some: Sequence[Figures]) -> dict[str, float]:
    names = ("reward", "solve_rate", "mixed", "length", "cut", "entropy")
    return {name: fmean(getattr(each, name) for each in some) for name in names}


def outcome_lines(why: str, result: dict[str, Any], model: object) -> list[str]:
    """How it ended, `why` where not by what the policy showed."""
    found, own = result["policy"], ENDS.get(result["reason"])
    first, last = found["first"], found["last"]
    lines = [
        f"{'ended early' if own else why} after {counted(result['updates'], 'update')} in {clock(result['seconds'])}; "
        f"model in {model}",
        f"reward   {first['reward']:.3f} -> {last['reward']:.3f} on train problems ({_means(result['updates'])}); "
        f"an answer of {first['length']:.0f} -> {last['length']:.0f} tokens, {percent(last['cut'])} cut; entropy "
        f"{first['entropy']:.2f} -> {last['entropy']:.2f} nats a token",
        f"sampled  {counted(found['answers'], 'answer')} to {counted(found['problems'], 'problem')}, "
        f"{counted(found['tokens'], 'token')}",
    ]
    if not found["rewarded"]:
        lines.append("learned  nothing: no answer was verified, so none was better than another; --recipe sft first")
    if own:
        lines.append(f"why      {own}")
        lines.append(f"try      {TRIES[result['reason']]}")
    return lines
