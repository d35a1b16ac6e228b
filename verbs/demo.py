"""The banner of the demonstration: what is being run is not the real thing, why, and how to get that."""

from __future__ import annotations

from gsm8k_core.auto import NAMED
from gsm8k_core.command import typed_verb
from gsm8k_core.config.fields import DEFAULT_DATA, DEFAULT_MODEL
from gsm8k_core.tracking.terminal import Terminal

SHORT = f"DEMO MODEL: SmolLM2-135M-Instruct; the real one is {DEFAULT_MODEL}"


def banner(terminal: Terminal, reason: str = NAMED) -> None:
    """Said first and last: the reason and the way to the real thing once, where nobody asked for this model."""
    verb = typed_verb() or "train"
    data = f" --data {DEFAULT_DATA}" if verb in ("train", "eval") else ""  # the others have none, or it is the run's
    why = f"{SHORT}\n{'':9}{reason}\nreal     python cli.py {verb} --model {DEFAULT_MODEL}{data}"
    terminal.say_again(SHORT if reason == NAMED else why, SHORT)
