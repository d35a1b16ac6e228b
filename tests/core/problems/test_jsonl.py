"""Lines and objects of a file or stdin: harmless forms are read, bad ones named, unread fields left alone."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from gsm8k_core.problems.lines import STDIN, Number, fields, is_text, parse, read_lines
from gsm8k_core.types import DataError


def test_a_line_ends_at_a_line_feed_only(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes("\ufeffone\u2028still one\r\n\n three\x0bstill three".encode())
    assert [(where[len(str(path)) :], line.strip()) for where, line in read_lines(path, "give one")] == [
        (":1", "one\u2028still one"),
        (":3", "three\x0bstill three"),
    ]


def test_stdin_is_read_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\n\xff\n")))
    lines = read_lines(STDIN, "give one")
    assert next(lines) == ("stdin:1", "a\n")
    with pytest.raises(DataError, match="stdin:2: not UTF-8"):
        next(lines)


def test_only_the_fields_that_are_used_are_checked() -> None:
    row = parse('{"a": 1.50, "b": NaN, "c": 1, "c": 2, "d": {"e": Infinity}}', "f:1", "give one")
    assert fields(row, ("a", "z"), "f:1") == {"a": Number("1.50")}
    with pytest.raises(DataError, match="f:1: 'b' is NaN, and NaN is not JSON"):
        fields(row, ("b",), "f:1")
    with pytest.raises(DataError, match="f:1: a key stands twice, 'c'"):
        fields(row, ("c",), "f:1")


@pytest.mark.parametrize("text", ["\0", "a\ud800", "\udcff"])
def test_what_cannot_be_written_is_no_text(text: str) -> None:
    assert not is_text(text)
    assert is_text("caf\u00e9 \U0001f600\t\n")
