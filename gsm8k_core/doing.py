"""One line about what a command is at while nothing else is shown: `loading the tokenizer ...`, on a terminal alone.

A start takes seconds, and most of them pass inside of other people's imports. So the line is written once a step, by
no thread, straight to stderr; whatever is shown next wipes it. In a file or a pipe there is nothing of it, and stdout
is never touched: with --json it holds one object. Standard library alone: it has to be there before anything else is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

WIPE = "\r\x1b[2K"
NARROWEST = 20  # columns
DUMB = ("dumb", "unknown")  # as rich takes TERM
_is_command = False  # a program that calls the verbs from Python is told nothing
_step = ""  # what is shown now


def start(what: str) -> None:
    """The command line's first step; from now on, each is named."""
    global _is_command
    _is_command = True
    doing(what)


def doing(what: str) -> None:
    """Name the step that is at work, until `quiet` or another one."""
    global _step
    columns = _columns() if _is_command else 0
    if columns < NARROWEST:
        return
    text = f"{what} ..."
    if len(text) >= columns:  # a line that the terminal breaks in two could not be wiped
        text = f"{text[: columns - 5]} ..."
    _step = text
    _write(f"{WIPE}{text}")


def quiet() -> None:
    """The line goes for good: asked before anything is shown that takes its place."""
    global _step
    if _step:
        _step = ""
        _write(WIPE)


@contextmanager
def aside() -> Iterator[None]:
    """The line goes while another one is written, and comes back below it."""
    if _step:
        _write(WIPE)
    try:
        yield
    finally:
        if _step:
            _write(_step)


def _columns() -> int:
    """Of the terminal that stderr is; 0 where it is none, or knows no codes, or a bar or a panel is on it."""
    try:
        if hasattr(sys.stderr, "rich_proxied_file"):  # what they put in its place
            return 0
        if os.environ.get("TERM", "").lower() in DUMB or not sys.stderr.isatty():
            return 0
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (AttributeError, OSError, ValueError):
        return 0


def _write(text: str) -> None:
    with suppress(OSError, ValueError):  # the terminal is gone; the command is not
        sys.stderr.write(text)
        sys.stderr.flush()
