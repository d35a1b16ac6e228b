"""What a person types to start this program, in every hint: `python cli.py`, or `gsm8k` where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path

SOURCE = "python cli.py"  # from a clone; what our messages are written with
INSTALLED = "gsm8k"  # pyproject.toml's script


def typed() -> str:
    """The one that started this process."""
    return INSTALLED if Path(sys.argv[0]).stem == INSTALLED else SOURCE


def as_typed(text: str) -> str:
    """A message with the commands in it as this person types them."""
    return text.replace(SOURCE, typed())
