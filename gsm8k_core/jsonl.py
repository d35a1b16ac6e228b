"""Lines and JSON objects from a file or stdin, with `file:line` for what cannot be used.

Only what is asked for is checked: a NaN or a repeated key in a field that nobody reads does no harm.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from gsm8k_core.types import DataError

STDIN = Path("-")
MAX_LINE_BYTES = 1_000_000
KINDS = {bool: "true or false", dict: "an object", list: "a list", str: "a text", type(None): "null"}


class Number(str):
    """A JSON number as it is written: int() refuses 5,000 digits, float() makes infinity of 1e400."""


class Constant(str):
    """NaN, Infinity or -Infinity, which Python's reader takes and JSON does not have."""


class Row(dict[str, Any]):
    """A JSON object that remembers which of its keys stood twice."""

    twice: frozenset[str] = frozenset()


def read_lines(path: Path, give: str) -> Iterator[tuple[str, str]]:
    """`file:line` and each line that is not blank. A UTF-8 mark at the start and CRLF do no harm.

    A line ends at a line feed and nowhere else: U+2028 may stand inside a JSON text.
    """
    name = "stdin" if path == STDIN else str(path)
    try:
        with _opened(path) as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                where = f"{name}:{number}"
                text = _decoded(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, where, give)
                if text.strip():
                    yield where, text
    except OSError as error:
        raise DataError(f"{name} cannot be read ({error.strerror}); {give}") from None


def parse(line: str, where: str, give: str) -> Row:
    """The JSON object of a line; its numbers are `Number`s."""
    try:
        row = json.loads(line, object_pairs_hook=_row, parse_constant=Constant, parse_int=Number, parse_float=Number)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({str(error)[:160]}); {give}") from None
    if not isinstance(row, Row):
        raise DataError(f"{where}: {kind(row)}, not an object; {give}")
    return row


def fields(row: Row, names: Iterable[str], where: str) -> dict[str, Any]:
    """Those of the named fields that the row has. Raises DataError for one that stands twice or is no JSON."""
    found = {name: row[name] for name in names if name in row}
    for name, value in found.items():
        if name in row.twice:
            raise DataError(f"{where}: a key stands twice, {name!r}; keep one of them")
        if isinstance(value, Constant):
            raise DataError(f"{where}: {name!r} is {value}, and {value} is not JSON; give a real value")
    return found


def is_text(text: str) -> bool:
    """Whether it can be written as UTF-8, without a NUL: half a surrogate pair cannot."""
    return not re.search("[\0\ud800-\udfff]", text)


def kind(value: object) -> str:
    """What a JSON value is, in words."""
    return KINDS.get(type(value), "a number")


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    if path == STDIN:
        if sys.stdin is None:  # it was closed by whoever started this process
            raise DataError("stdin is closed; give a file")
        yield sys.stdin.buffer
        return
    with path.open("rb") as file:
        yield file


def _decoded(line: bytes, where: str, give: str) -> str:
    if len(line) > MAX_LINE_BYTES:
        raise DataError(f"{where}: longer than {MAX_LINE_BYTES} bytes; {give}")
    if b"\0" in line:
        raise DataError(f"{where}: a NUL byte; the file is damaged or not UTF-8 text")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 (byte {error.start + 1} of the line); save it as UTF-8") from None


def _row(pairs: list[tuple[str, Any]]) -> Row:
    row = Row(pairs)
    if len(row) != len(pairs):
        row.twice = frozenset(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
    return row
