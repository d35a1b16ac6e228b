"""JSON objects from a file or stdin: a line each, or the elements of one array; packed with gzip or not.

What cannot be used is an error with its `file:line`. Only what is asked for is checked: a NaN or a repeated key in a
field that nobody reads does no harm.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from gsm8k_core.files import MAX_LINES_BYTES, advice, open_plain
from gsm8k_core.types import DataError, first_line

STDIN = Path("-")
MAX_LINE_BYTES = 1_000_000  # of a line, and of an element of an array
LONGEST_REASON = 160  # characters of another library's error
CHUNK_BYTES = 1 << 20
MARK, GZIP, POINTER = b"\xef\xbb\xbf", b"\x1f\x8b", b"version https://git-lfs"
KINDS = {bool: "true or false", dict: "an object", list: "a list", str: "a text", type(None): "null"}


class Number(str):
    """A JSON number as it is written: int() refuses 5,000 digits, float() makes infinity of 1e400."""


class Constant(str):
    """NaN, Infinity or -Infinity, which Python's reader takes and JSON does not have."""


class Row(dict[str, Any]):
    """A JSON object that remembers which of its keys stood twice."""

    twice: frozenset[str] = frozenset()


def read_objects(path: Path, give: str) -> Iterator[tuple[str, Row]]:
    """`file:line` and each object of a JSONL file, or of a file that is one JSON array."""
    if _begins(path, give) == b"[":
        yield from _elements(path, give)
        return
    for where, line in read_lines(path, give):
        yield where, parse(line, where, give)


def read_lines(path: Path, give: str) -> Iterator[tuple[str, str]]:
    """`file:line` and each line that is not blank. A UTF-8 mark at the start and CRLF do no harm.

    A line ends at a line feed and nowhere else: U+2028 may stand inside a JSON text.
    """
    name = "stdin" if path == STDIN else str(path)
    try:
        with _opened(path) as file:
            number = size = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number, size = number + 1, size + len(line)
                where = f"{name}:{number}"
                _refuse_bomb(path, size)
                text = _decoded(line.removeprefix(MARK) if number == 1 else line, where, give)
                if text.strip():
                    yield where, text
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(name, error, give) from None


def parse(line: str, where: str, give: str) -> Row:
    """The JSON object of a line; its numbers are `Number`s."""
    try:
        row = _DECODER.decode(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({str(error)[:LONGEST_REASON]}); {give}") from None
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
    return "\0" not in text and (text.isascii() or not re.search("[\ud800-\udfff]", text))


def kind(value: object) -> str:
    """What a JSON value is, in words."""
    return KINDS.get(dict if isinstance(value, dict) else type(value), "a number")


def first_bytes(path: Path, count: int) -> bytes:
    """The start of a file as it lies on the disk; nothing where it cannot be read."""
    try:
        with open_plain(path, MAX_LINES_BYTES) as file:
            return file.read(count)
    except OSError:
        return b""


# --- one array ------------------------------------------------------------------------------------------------


def _elements(path: Path, give: str) -> Iterator[tuple[str, Row]]:
    """The objects of a JSON array, read a part at a time: the file may be larger than the memory."""
    try:
        with _opened(path) as file:
            yield from _Array(_texts(file, path, give), path, give)
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(str(path), error, give) from None


class _Array:
    """The objects of an array whose text comes in parts, each with the line where it begins."""

    def __init__(self, parts: Iterator[str], path: Path, give: str) -> None:
        self._parts, self._path, self._give = parts, path, give
        self._text, self._at, self._line = "", 0, 1

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        first = True
        while self._next_mark() not in ("]", ""):
            if first or self._text[self._at] == ",":
                self._at += 1  # over the bracket, or the comma
            elif self._text[self._at] != "]":
                raise self._invalid("a comma is missing before it")
            if first and self._next_mark() == "]":
                return
            first = False
            if not self._next_mark():
                break
            where = f"{self._path}:{self._line}"
            value, end = self._value()
            if not isinstance(value, Row):
                raise DataError(f"{where}: {kind(value)}, not an object; {self._give}")
            self._line += self._text.count("\n", self._at, end)
            self._at = end
            yield where, value
        if not self._next_mark():
            raise self._invalid("the array has no end: the file is cut short")

    def _next_mark(self) -> str:
        """The next character that is no space, where the reading stands from now on; nothing at the end."""
        while True:
            found = _NO_SPACE.search(self._text, self._at)
            end = found.start() if found else len(self._text)
            self._line += self._text.count("\n", self._at, end)
            self._at = end
            if found:
                return found[0]
            if not self._more():
                return ""

    def _value(self) -> tuple[Any, int]:
        """The value that stands here, and where it ends."""
        while True:
            try:
                return _DECODER.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if len(self._text) - self._at > MAX_LINE_BYTES or not self._more():
                    raise self._invalid(str(error)[:LONGEST_REASON]) from None

    def _more(self) -> bool:
        part = next(self._parts, "")
        self._text, self._at = self._text[self._at :] + part, 0
        return bool(part)

    def _invalid(self, why: str) -> DataError:
        return DataError(f"{self._path}:{self._line}: not valid JSON ({why}); {self._give}")


def _texts(file: IO[bytes], path: Path, give: str) -> Iterator[str]:
    """A file's text in parts."""
    decoder, size = codecs.getincrementaldecoder("utf-8-sig")(), 0
    while True:
        part = file.read(CHUNK_BYTES)
        size += len(part)
        _refuse_bomb(path, size)
        try:
            text = decoder.decode(part, final=not part)
        except UnicodeDecodeError:
            raise DataError(f"{path}: not UTF-8; save it as UTF-8") from None
        if "\0" in text:
            raise DataError(f"{path}: a NUL byte; the file is damaged or not UTF-8 text")
        if text:
            yield text
        if not part:
            return


# --- bytes ----------------------------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    if path == STDIN:
        if sys.stdin is None:  # it was closed by whoever started this process
            raise DataError("stdin is closed; give a file")
        yield sys.stdin.buffer
        return
    packed = first_bytes(path, len(GZIP)) == GZIP
    with open_plain(path, MAX_LINES_BYTES) as file:
        if packed:
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield unpacked  # type: ignore[misc]  # it reads as any file does
        else:
            yield file


def _begins(path: Path, give: str) -> bytes:
    """The first character that is no space, as bytes; nothing in an empty file."""
    try:
        with _opened(path) as file:
            return file.read(1 << 12).removeprefix(MARK).lstrip()[:1]
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(str(path), error, give) from None


def _refuse_bomb(path: Path, size: int) -> None:
    if size > MAX_LINES_BYTES:
        raise DataError(f"{path} unpacks to more than {MAX_LINES_BYTES >> 20} MiB; check where it comes from")


def unreadable(name: str, error: Exception, give: str) -> DataError:
    """The error of a file that the system, or the library that unpacks it, gives nothing of."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)[:LONGEST_REASON]
    return DataError(f"{name} cannot be read ({reason}); {advice(error, give)}")


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


# Made once: json.loads makes one a call.
_DECODER = json.JSONDecoder(object_pairs_hook=_row, parse_constant=Constant, parse_int=Number, parse_float=Number)
_NO_SPACE = re.compile(r"[^ \t\r\n]")
