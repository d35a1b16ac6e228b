"""What each verb of the command line does: wiring between core and a backend, one file a verb.

A verb's file has `run(config, context) -> exit code`; train's is train/verb.py. What several verbs share, or one needs,
stands beside them: demo, link, results, lm_eval_model.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from gsm8k_core.clock import RunClock
from gsm8k_core.command import typed
from gsm8k_core.models import hub
from gsm8k_core.processes import seconds_since_start
from gsm8k_core.tracking.terminal import Terminal
from gsm8k_core.types import Choice
from verbs.link import Link

LATER = "eval and compare: --max-new-tokens"  # whose default may be more than a model reads


@dataclass(frozen=True, slots=True)
class Context:
    """What a verb gets beside its settings."""

    terminal: Terminal
    explicit: frozenset[str]  # names of the fields that were given by flag or file
    elapsed: RunClock  # seconds since the process began, downloads left out
    link: Link = field(default_factory=Link)  # to the process that watches over this one


def process_clock() -> RunClock:
    """The clock of this process, from its very beginning."""
    return RunClock(max(0.0, seconds_since_start()), left_out=hub.seconds_downloading)


def say_choices(terminal: Terminal, choices: Mapping[str, Choice]) -> None:
    """What was chosen, each with its reason; figures with -v alone."""
    from gsm8k_core.training.memory import TIMED  # here, not above: it brings numpy, which train's parent needs not

    for name, chosen in choices.items():
        reason = chosen.reason
        if reason.startswith(f"{TIMED}: ") and not terminal.verbose:
            reason = "as it was timed here (-v shows how fast each was)"
        terminal.say(f"{name:<8} {chosen.name}: {reason}")


def as_json(choices: Mapping[str, Choice]) -> dict[str, dict[str, str]]:
    """The same, for run.json and results."""
    return {name: asdict(chosen) for name, chosen in choices.items()}


def as_many_as_it_reads(context: int | None) -> list[str]:
    """The flag that a hint needs for a model that reads fewer tokens than an answer may have by default."""
    from gsm8k_core.config.fields import LONGEST_ANSWER  # here, not above: it brings pydantic

    return ["--max-new-tokens", str(context)] if context is not None and context < LONGEST_ANSWER else []


def say_export(model: str, few: Sequence[str], terminal: Terminal, on: str = "") -> str:
    """How to take a run's model to another program: the command. `model`: the run, its best/ or a checkpoint of it.

    `few`: see as_many_as_it_reads. `on`: what an adapter has to be opened on, where it is not what it names itself.
    """
    base = ["--base-model", on] if on else []
    command = shlex.join([*typed().split(), "export", model, "--to", "ollama", *base])
    terminal.say(f"export   {command}   (or merged, mlx, gguf)")
    talk = [*typed().split(), "chat", "--model", model, *base, *few]
    terminal.say(f"talk     {shlex.join(talk)}")
    return command
