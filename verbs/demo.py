"""The banner of the demonstration: what is being run is not the real thing, why, and how to get that."""

from __future__ import annotations

from gsm8k_core.config import DEFAULT_DATA, DEFAULT_MODEL
from gsm8k_core.tracking import Terminal


def banner(terminal: Terminal, reason: str) -> None:
    """One line, said first and last."""
    terminal.say(
        f"DEMO MODEL (SmolLM2-135M-Instruct): {reason}. "
        f"For the real one: python cli.py train --model {DEFAULT_MODEL} --data {DEFAULT_DATA}"
    )
