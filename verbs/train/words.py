"""What `train` says: its plan, its progress, its end."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

from gsm8k_core.command import typed
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.models.hub import seconds_downloading
from gsm8k_core.problems.corpus import Corpus
from gsm8k_core.problems.data import is_single_file
from gsm8k_core.report.words import short_data, short_model
from gsm8k_core.rollouts.schedule import phases, share
from gsm8k_core.rollouts.tally import Tally
from gsm8k_core.scoring.stats import percent
from gsm8k_core.tracking.panel import ROLLOUT, Panel
from gsm8k_core.tracking.terminal import Steps, Terminal, clock
from gsm8k_core.training import measure
from gsm8k_core.training.pilot import STOP_BUDGET, STOP_INTERRUPTED
from gsm8k_core.types import StepEvent, counted
from verbs import as_many_as_it_reads, say_export
from verbs.train import policy_words
from verbs.train.start import Job

ROSE = 1.5  # times the first loss: updates are of unlike rows, but not that unlike
LONGEST_ANSWER = 160  # characters of a model's answer in a line
SILENT = 60.0  # seconds without a line, after which a long rollout says how far it is
SAID_AGAIN = 0.05  # a change of the plan below this share of it is recorded, and makes no line


def say_plan(job: Job, folder: Path, terminal: Terminal) -> None:
    """What will be done, before anything is."""
    config = job.config
    if config.recipe == "grpo":
        terminal.say(policy_words.plan_line(job, folder))
        _say_downloading(terminal)
        return
    what = "" if config.method == "full" else f", {config.method} of rank {config.lora_rank}"
    after = f" after the first {job.done}" if job.done else ""
    terminal.say(
        f"plan     {counted(job.events[-1].total, 'update')} of {counted(config.update_size, 'row')}{after}, "
        f"{counted(config.num_epochs, 'epoch')}{what}, "
        f"rate {config.learning_rate:g}, at most {clock(config.budget_seconds)}; folder {folder}"
    )
    _say_downloading(terminal)


def _say_downloading(terminal: Terminal) -> None:
    if (seconds := seconds_downloading()) >= 1:
        terminal.say(f"clock    the {clock(seconds)} of downloading are not counted in the budget")


def title_of(job: Job) -> str:
    """What is trained on what, in a few words."""
    config = job.config
    return f"{short_model(job.source.name)} on {short_data(config.data)}, {config.method}, {config.recipe}"


def wrote(text: str) -> str:
    """The beginning of an answer, in one line."""
    flat = " ".join(text.split()) or "(nothing)"
    return flat if len(flat) <= LONGEST_ANSWER else f"{flat[: LONGEST_ANSWER - 4]} ..."


class Narrator:
    """Turns a run's events into lines, and what a person sees beside them: the panel, a bar or lines now and then."""

    def __init__(self, job: Job, shown: Panel | Steps, terminal: Terminal) -> None:
        self._job, self._shown, self._terminal = job, shown, terminal
        self._said = job.events[-1].total  # the plan that was last said
        self._budget = job.config.budget_seconds
        self._last = time.monotonic()  # when anything was told, but of a rollout

    def __call__(self, event: StepEvent) -> None:
        values: Any = event.values
        if event.name == ROLLOUT and not isinstance(self._shown, Panel):
            if (now := time.monotonic()) - self._last >= SILENT:
                self._last = now
                self._terminal.say(policy_words.rollout_line(values))
            return
        if isinstance(self._shown, Panel):
            self._shown.hear(event)
        elif event.name == "update":
            left = clock(self._budget - values["elapsed"])
            note = f"loss {values['loss']:.3f}  {values['seconds']:.1f} s, {clock(values['eta'])} to go, budget {left}"
            if "reward" in values:
                note = policy_words.note(values, left)
            self._shown.advance(note, done=values["update"])
        elif "total" in values:
            self._shown.resize(values["total"])
        if line := self._line(event.name, values):
            self._terminal.say(line)
            self._last = time.monotonic()

    def _line(self, name: str, values: Any) -> str:
        if name == "update":
            return policy_words.line(values) if "reward" in values else ""
        if name == "dev":
            return (
                f"dev      update {values['update']}: loss {values['loss']:.3f}, {values['correct']} of "
                f"{values['problems']} right, {values['stopped']} ended by themselves ({values['seconds']:.0f} s)"
            )
        if name == "probe":
            said = [f"health   update {values['update']}: {warning}" for warning in values["warnings"]]
            if "telling" in values:
                said.append(f"answer   {wrote(values['texts'][values['telling']])}")
            return "\n".join(said)
        if name in ("dev_skipped", "guard_skipped", "probe_skipped"):
            what = name.removesuffix("_skipped")
            return f"{what:<8} update {values['update']}: not measured ({values['reason']})"
        if name == "guard":
            return measure.event_line(values)
        if name == "slept":
            left = clock(values["left"])
            return f"clock    the machine slept for {clock(values['seconds'])}; the budget counts that: {left} are left"
        return self._plan(name, values) if name in ("estimate", "plan") else ""

    def _plan(self, name: str, values: Any) -> str:
        total, asked = values["total"], values["asked"]
        ends = f"the budget ends after {self._epochs(total)} ({counted(total, 'update')})"
        if name == "estimate":
            self._said = total
            if total == asked:  # not even the next update fits, or all of them do
                ends = "the budget is enough" if values["enough"] else "the budget ends before that"
            epochs, rows = self._job.config.num_epochs, counted(len(self._job.rows.examples), "example")
            if self._job.config.recipe == "grpo":
                rows = counted(len(self._job.rows.asked), "problem")
            return (
                f"plan     {rows}, {counted(epochs, 'epoch')} {'needs' if epochs == 1 else 'need'} "
                f"about {clock(values['seconds'])} on this machine; {ends}"
            )
        if abs(total - self._said) < SAID_AGAIN * self._said:
            return ""
        if values["update"] == self._job.done:  # before the first update
            self._said = total
            return f"plan     as fast as one micro-batch went, {ends}"
        how = "slower" if total < self._said else "faster"
        self._said = total
        return f"plan     updates are {how} than thought: {'all of them fit' if total == asked else ends}"

    def _epochs(self, total: int) -> str:
        return f"{total * self._job.config.num_epochs / self._job.total:.1f} epochs"


def phases_line(config: TrainConfig, left: float, problems: int) -> str:
    """What an rft run will do with the `left` seconds; the guards and the save are taken out of them when they came."""
    rounds = 1 if config.rounds == "auto" else int(config.rounds)
    plans = {"on": [True], "off": [False], "auto": [False, True]}[config.warm_start]
    said = []
    for warm in plans:
        parts = [f"{phase.name} {clock(left * float(share(phase, rounds, warm)))}" for phase in phases(rounds, warm)]
        said.append(", ".join(["guard", *parts, "guard and save"]))
    few = f"; with the warm start that a base needs whose answers are seldom verified: {said[1]}" if said[1:] else ""
    two = "; two rounds where each has time for 1,000 problems, or all" if config.rounds == "auto" else ""
    asked = f"{counted(problems, 'problem')}, at most {counted(config.samples, 'answer')} each a round"
    return f"phases   {asked}; at most: {said[0]}{few}{two}"


def round_line(counts: Tally) -> str:
    """A round of sampling, when it is done."""
    rate, tokens = "no wave was asked to its end", counted(counts.tokens, "token")
    if counts.forced_tokens:
        tokens += f", {counts.forced_tokens:,} of them by the calculator,"
    if counts.rate is not None and counts.interval is not None:
        low, high = (100 * bound for bound in counts.interval)
        rate = f"one answer solves {percent(counts.rate)} [{low:.1f}, {high:.1f}]"
    return (
        f"round {counts.round}  {counted(counts.answered, 'answer')} to {counted(counts.asked, 'problem')}: "
        f"{counts.verified:,} verified, {counts.kept:,} kept, {counts.new_chains:,} of them with equations that the "
        f"human answers lack; {counts.wrong_step:,} right with a wrong step; {rate}; {tokens} in "
        f"{clock(counts.seconds)}"
    )


def say_outcome(job: Job, folder: Path, model: Path, best: Path, result: dict[str, Any], terminal: Terminal) -> None:
    """How it ended, what was left, and what to type next."""
    why = {
        STOP_BUDGET: f"ended by the time budget ({job.config.max_time})",
        STOP_INTERRUPTED: "stopped by a signal",
    }.get(result["reason"], "done")
    if "policy" in result:
        for line in policy_words.outcome_lines(why, result, model):
            terminal.say(line)
    else:
        _say_losses(why, result, model, terminal)
    if isinstance(rows := job.rows.examples, Corpus) and rows.left_out:
        terminal.say(
            f"rows     {counted(len(rows.left_out), 'row')} turned out longer than --max-length {rows.max_length}, or "
            f"could not be made, such as {min(rows.left_out)}: left out"
        )
    if (found := result.get("best")) and found["update"] != result["updates"]:
        terminal.say(f"best     on the dev split after update {found['update']} ({found['accuracy']:.0%}): {best}")
    _say_guard(job, model, result, terminal)
    if result["reason"] not in ("done", *policy_words.ENDS):  # which would end it again at once
        more = ["--max-time", f"{int(2 * result['seconds'] / 60) + 1}m"] if result["reason"] == STOP_BUDGET else []
        terminal.say(f"go on    {shlex.join(['python', 'cli.py', 'train', '--resume', str(folder), *more])}")
    named = [] if job.config.base_model else ["--base-model", job.config.model]  # an adapter's own base is on record
    named += ["--data", "TEST.jsonl"] if is_single_file(job.config.data) else []  # its rows were trained on
    few = as_many_as_it_reads(job.source.model.context)
    follow = shlex.join([*typed().split(), "compare", *named, "--trained-model", str(folder), *few])
    terminal.say(f"next     {follow}")
    take = say_export(str(folder), few, terminal)
    terminal.result({"run": str(folder), "model": str(model), "next": follow, "export": take, **result})


def _say_losses(why: str, result: dict[str, Any], model: Path, terminal: Terminal) -> None:
    enough = result["updates"] >= 8
    first, last = ("first_four", "last_four") if enough else ("first_loss", "last_loss")
    terminal.say(
        f"{why} after {counted(result['updates'], 'update')} in {clock(result['seconds'])}: "
        f"loss {result[first]:.3f} -> {result[last]:.3f}{' (means of four)' if enough else ''}; model in {model}"
    )
    if result["last_loss"] > ROSE * result["first_loss"]:
        began, ended = (f"{result[name]:.3f}" for name in ("first_loss", "last_loss"))
        terminal.say(f"loss     from {began} to {ended}: training has damaged the model; try a lower --learning-rate")


def say_stopped(folder: Path, terminal: Terminal) -> None:
    """A signal came while the model was answering, or learning only to answer: what is there is on the disk."""
    terminal.say(f"stopped by a signal before there was a trained model; what was made so far is in {folder}")
    terminal.say(f"go on    {shlex.join(['python', 'cli.py', 'train', '--resume', str(folder)])}")
    terminal.result({"run": str(folder), "model": None, "reason": STOP_INTERRUPTED})


def _say_guard(job: Job, model: Path, result: dict[str, Any], terminal: Terminal) -> None:
    """Where the trained model was not better: that, and what to try."""
    config, found = job.config, (result.get("guard") or {})
    if found.get("end") is None or found["verdict"] == measure.BETTER:
        return
    terminal.say(measure.end_line(found["verdict"], config.model, str(model)))
    base, budget = found["base"], config.max_time if result["reason"] == STOP_BUDGET else ""
    if config.recipe == "grpo":
        if result["reason"] not in policy_words.ENDS:  # of those it was said
            worse = found["verdict"] == measure.WORSE
            terminal.say(policy_words.advice(worse, config.learning_rate, budget, result["updates"]))
        return
    said = measure.advice(
        found["verdict"],
        adapter=config.uses_adapter,
        rate=config.learning_rate,
        budget=budget,
        own=result.get("own", 0) if config.recipe == "rft" else None,
        solved=(base["correct"], base["problems"]) if "correct" in base else None,
    )
    terminal.say(said)
