"""What a run tells: metrics.jsonl first, then the terminal. Both read the same events."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import textwrap
import time
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

from rich.console import Console, ConsoleDimensions
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column
from rich.text import Text

from gsm8k_core.command import as_typed
from gsm8k_core.doing import aside, doing, quiet
from gsm8k_core.tracking.table import table
from gsm8k_core.types import StepEvent, StorageError

if TYPE_CHECKING:
    from gsm8k_core.tracking.region import Region

INDENT = " " * 9  # under a line's label, such as "model    "
LAUNCHED = r"(?:torchrun|mlx\.launch|accelerate launch)(?= -)"
COMMAND = re.compile(rf"(?:python cli\.py|(?<![\w./-])gsm8k|pip install|hf download|{LAUNCHED}) (?:(?!  )[^;\n])*")
HELD = "\ue000"  # stands for a space that no line may be broken at


def _strict(value: object) -> object:
    """JSON has no NaN: a number that is not finite becomes its name."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class MetricsFile:
    """Appends each event to metrics.jsonl as it happens."""

    def __init__(self, path: Path, run: Path | None = None) -> None:
        """`run`: the one that goes on with it, where that is not the file's folder: of a phase, the whole run."""
        self._path, self._run = path, run or path.parent
        try:
            self._file: IO[str] = path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise StorageError(f"{path} cannot be written ({error.strerror}); check the run's folder") from error

    def __call__(self, event: StepEvent) -> None:
        line = {"event": event.name} | {key: _strict(value) for key, value in event.values.items()}
        if not self._is_there():
            raise StorageError(
                f"{self._path} was removed or moved while the run went on, and its lines would be lost; "
                f"go on from what is saved with: python cli.py train --resume {self._run}"
            )
        try:
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            raise StorageError(f"{self._path} cannot be written ({error.strerror}); free some space") from error

    def _is_there(self) -> bool:
        """Whether the open file is the one that lies there: lines for another one would be lost without a word."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except OSError:
            return False

    def close(self) -> None:
        # Each line was flushed when it was written. One that did not fit was said then, and would fail here once more.
        with suppress(OSError):
            self._file.close()


class Screen(Console):
    """rich's console, which hides no cursor below a bar: a kill would leave it hidden.

    rich takes a terminal that knows no codes for one of 80 columns; here it has those that it has.
    """

    def show_cursor(self, show: bool = True) -> bool:
        return False

    @property
    def size(self) -> ConsoleDimensions:
        found = super().size
        if not self.is_dumb_terminal:
            return found
        return ConsoleDimensions(self._width or _columns(self.file) or found.width, found.height)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size  # the first is COLUMNS from the beginning, where that is set


def _columns(file: IO[str]) -> int:
    """Of the terminal that it is; 0 where the system does not say."""
    try:
        return os.get_terminal_size(file.fileno()).columns
    except (AttributeError, OSError, ValueError):
        return 0


def room_of(console: Console) -> int | None:
    """Columns of a terminal, or COLUMNS where that is set; None in a file or a pipe."""
    return console.width if console.is_terminal or os.environ.get("COLUMNS") else None


def can_draw(console: Console) -> bool:
    """Whether a bar may be drawn there: a terminal that knows the codes. FORCE_COLOR makes rich take a file for one,
    which is for colours alone."""
    if os.environ.get("FORCE_COLOR") and not console.file.isatty():
        return False
    return console.is_terminal and not console.is_dumb_terminal


class Terminal:
    """Lines for a person: on stdout, or on stderr when stdout is kept for one JSON object.

    Lines are broken to the width of a terminal, or to COLUMNS where that is set; in a file or a pipe they stay whole.
    """

    def __init__(self, json_only: bool, out: IO[str] | None = None, verbose: bool = False) -> None:
        self.json_only, self.verbose = json_only, verbose
        self._out = out  # where the JSON object goes, when sys.stdout is not the place
        self._said: set[str] = set()
        self.console = Screen(stderr=json_only, highlight=False, soft_wrap=True)
        self.region: Region | None = None  # what stays at the bottom of the terminal while lines are said
        self._gone = False

    @property
    def is_drawn(self) -> bool:
        """Whether a panel holds the bottom of the terminal: nothing may be written past it."""
        return self.region is not None

    @property
    def room(self) -> int | None:
        """Columns of a terminal, or COLUMNS where that is set; None in a file or a pipe."""
        return room_of(self.console)

    def doing(self, what: str) -> None:
        """Name the step that is at work, where nothing else is shown."""
        if not self.is_drawn:
            doing(what)

    def say(self, text: str, width: int | None = None) -> None:
        """One line or several, broken at `width` or as the terminal needs it."""
        width = min(filter(None, (width, self.room)), default=None)
        text = as_typed(text)
        # Text, not markup: a path or a model's words may hold square brackets.
        self._print(Text(wrapped(printable(text), width) if width else printable(text)))

    def say_again(self, text: str, short: str) -> None:
        """`text` the first time, `short` from then on."""
        self.say(short if text in self._said else text)
        self._said.add(text)

    def verbatim(self, text: str) -> None:
        """A model's words or a question, broken only where they are."""
        self._print(Text(printable(text)))

    def _print(self, what: Text) -> None:
        """A reader that went away (a closed terminal, `| head`) must not end a run."""
        if self._gone:
            return
        try:
            with self.region.above() if self.region else aside():
                self.console.print(what)
        except (OSError, SystemExit):  # rich turns a broken pipe into SystemExit
            self._gone = True

    def table(self, columns: list[str], rows: list[list[str]]) -> None:
        """Columns with their names, or a line a cell where the terminal is too narrow for them."""
        self._print(table(columns, [list(map(printable, row)) for row in rows], self.room))

    def result(self, value: Mapping[str, object]) -> None:
        """The one JSON object of --json."""
        quiet()
        if self.json_only:
            out = self._out or sys.stdout
            out.write(json.dumps(value, allow_nan=False) + "\n")
            out.flush()

    def progress(self, what: str, total: int, done: int = 0) -> Steps:
        """A bar, or lines now and then, from `done` on."""
        # On one terminal, lines and bar go through one console, or each would write over the other.
        return Steps(what, total, self.console if can_draw(self.console) else None, done)


def printable(text: str) -> str:
    """Text without control characters: model output must not steer the terminal. Tabs and wide spaces stay."""
    return "".join(mark if _is_shown(mark) else "\N{REPLACEMENT CHARACTER}" for mark in text)


def _is_shown(mark: str) -> bool:
    return mark.isprintable() or mark in "\n\t" or unicodedata.category(mark) == "Zs"


def wrapped(text: str, width: int, indent: str = INDENT) -> str:
    """Lines of at most `width` columns, the later ones indented. A word, a path or a command is never broken."""
    return "\n".join(_fill(line, width, indent) if len(line) > width else line for line in text.split("\n"))


def _fill(line: str, width: int, indent: str) -> str:
    held = COMMAND.sub(lambda command: command[0].replace(" ", HELD), line)
    filled = textwrap.fill(held, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return filled.replace(HELD, " ")


class Steps:
    """A progress bar on a terminal; elsewhere a plain line now and then, on stderr."""

    LINES = 20  # plain lines in a whole run

    def __init__(self, what: str, total: int, console: Console | None = None, done: int = 0) -> None:
        self._what, self._total, self._done, self._begun = what, total, done, time.monotonic()
        self._first = done  # what was done before it began; what was there already is seen when the first one comes
        self._fresh = True
        self._console = console = console or Screen(stderr=True, highlight=False, soft_wrap=True)
        names, numbers = (Column(no_wrap=True, min_width=len(text)) for text in (what, f"{total}/{total}"))
        self._bar = (
            Progress(
                TextColumn("{task.description}", table_column=names),
                BarColumn(bar_width=None),
                MofNCompleteColumn(table_column=numbers),
                TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True)),
                console=console,
            )
            if can_draw(console)
            else None
        )
        self._task = self._bar.add_task(what, total=total, completed=done, note="") if self._bar else None

    def __enter__(self) -> Steps:
        quiet()
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        bar, self._bar = self._bar, None
        try:
            if bar:
                bar.stop()
        except (OSError, SystemExit):  # as in advance: a closed terminal must not cost the model
            self._total = sys.maxsize

    def advance(self, note: str, done: int | None = None) -> None:
        before, self._done = self._done, self._done + 1 if done is None else done
        self._begin(self._done)
        every = max(1, self._total // self.LINES)
        due = self._done // every > before // every or self._done == self._total or before <= self._first
        try:
            if self._bar and self._task is not None:
                self._bar.update(self._task, completed=self._done, note=note or f"{self.left(self._done)} to go")
            elif due:
                self._console.print(Text(self._line(note, room_of(self._console))))
        except (OSError, SystemExit):  # the terminal is gone; the run is not
            self._bar, self._total = None, sys.maxsize

    def _line(self, note: str, room: int | None) -> str:
        """What is plainly said of a step: with both its times, where a terminal has room for them."""
        what, at = f"{self._what} {self._done}/{self._total}", time.strftime("%H:%M:%S")
        whole = f"{what}  {at} after {clock(time.monotonic() - self._begun)}  {note}".rstrip()
        if room is None or len(whole) <= room:
            return whole
        return wrapped(f"{what}  {note}".rstrip(), room)

    def resize(self, total: int) -> None:
        """Another number of steps in all."""
        self._total = total if self._total != sys.maxsize else self._total
        try:
            if self._bar and self._task is not None:
                self._bar.update(self._task, total=total)
        except (OSError, SystemExit):
            self._bar, self._total = None, sys.maxsize

    def _begin(self, done: int) -> None:
        if self._fresh:
            self._first, self._fresh = done - 1, False

    def left(self, done: int) -> str:
        """The time that all after `done` will take, if they go on as those since the beginning."""
        self._begin(done)
        seconds = (time.monotonic() - self._begun) / max(done - self._first, 1) * max(self._total - done, 0)
        return clock(seconds)


def clock(seconds: float) -> str:
    """12 s, 3 min 05 s, 1 h 02 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
