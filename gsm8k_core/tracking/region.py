"""A block of lines at the bottom of a terminal that is drawn over itself, with all else that is said above it.

Only what is certain is relied on: the cursor is never hidden, no other screen is opened, no mode is changed, so that a
kill leaves a terminal as it was. Where it became narrower, its lines may have been broken into more than were drawn,
which differs between terminals: then the block begins anew below, and not a line of anybody's is wiped.

It is drawn when something happens, at most every LEAST seconds, and by a thread every TICK seconds, for what ages.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import IO, Any, cast

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

TICK = 1.0
LEAST = 0.5
MARGIN = 2  # rows of the screen that stay free

Lines = Callable[[int, int], Sequence[Text]]  # columns, rows at most -> the block


class Region:
    """Between `with`'s beginning and end; the last state stays on the screen."""

    def __init__(self, console: Console, lines: Lines, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._lines, self._clock = console, lines, clock
        # Held while it is made: what `lines` reads is changed under it. A signal's handler may come in between.
        self.lock = threading.RLock()
        self._widths: list[int] = []  # in columns, of the lines that are drawn
        self._drawn_at = -LEAST
        self._gone = self._over = False
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._streams: tuple[Any, Any] | None = None
        self.draws = 0  # how often it was made

    def __enter__(self) -> Region:
        self._streams = (sys.stdout, sys.stderr)
        # What libraries print goes above as well.
        sys.stdout, sys.stderr = (cast("IO[str]", _Above(self, stream)) for stream in self._streams)
        self.draw()
        self._thread = threading.Thread(target=self._tick, name="panel", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join(TICK)
        if self._streams is not None:
            for stream in (sys.stdout, sys.stderr):
                if isinstance(stream, _Above):
                    stream.settle()
            sys.stdout, sys.stderr = self._streams
        with self.lock:
            self._draw()
            self._over = True
            self._write("\n" if self._widths else "")

    def draw(self) -> None:
        """Show what changed, unless it was drawn a moment ago: then the thread does."""
        with self.lock:
            if self._clock() - self._drawn_at >= LEAST:
                self._draw()

    @contextmanager
    def above(self) -> Iterator[None]:
        """What is written to the terminal in the block stands above the region."""
        with self.lock:
            if self._over or self._gone:
                yield
                return
            self._write(self._wiped())
            self._widths = []
            try:
                yield
            finally:
                self._draw()

    def _tick(self) -> None:
        while not self._end.wait(TICK):
            self.draw()

    def _draw(self) -> None:
        if self._gone or self._over:
            return
        self.draws += 1
        self._drawn_at = self._clock()
        columns, rows = self._console.size
        lines = list(self._lines(columns - 1, rows - MARGIN))[: max(rows - MARGIN, 0)]
        for line in lines:
            line.truncate(columns - 1, overflow="ellipsis")  # a full row would be broken by some terminals
            line.rstrip()
        try:
            with self._console.capture() as captured:
                self._console.print(Text("\n").join(lines), soft_wrap=True, end="")
        except (OSError, ValueError, SystemExit):  # as in _write; rich turns a broken pipe into SystemExit
            self._gone = True
            return
        self._write(self._wiped() + captured.get())
        self._widths = [cell_len(line.plain) for line in lines]

    def _wiped(self) -> str:
        """What takes the cursor back to where the block begins, and clears from there on."""
        if not self._widths:
            return ""
        if max(self._widths) >= self._console.width:  # narrower by now
            return "\n"
        return "\r" + "\x1b[1A" * (len(self._widths) - 1) + "\x1b[J"

    def _write(self, text: str) -> None:
        """A terminal that is gone must not end a run."""
        if self._gone or not text:
            return
        try:
            self._console.file.write(text)
            self._console.file.flush()
        except (OSError, ValueError):
            self._gone = True


class _Above:
    """A stream whose whole lines go above the region. rich's console writes past it."""

    def __init__(self, region: Region, stream: IO[str]) -> None:
        self._region, self.rich_proxied_file, self._kept = region, stream, ""

    def write(self, text: str) -> int:
        whole, newline, self._kept = (self._kept + text).rpartition("\n")
        if newline:
            with self._region.above():
                self.rich_proxied_file.write(whole + newline)
                self.rich_proxied_file.flush()
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Nothing: what has no end of its line yet waits for it."""

    def settle(self) -> None:
        """The last line gets its end."""
        if self._kept:
            self.write("\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)  # isatty, encoding, buffer, and what else a stream has
