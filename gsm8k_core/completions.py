"""Completions that any system made: read from JSONL, graded under every rule, told apart by rule.

One object a line: {"completion": text, "gold": number or GSM8K answer}. `answer` serves where `gold` is absent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from gsm8k_core.answers import MAX_DIGITS, RULES, gold_number, grade
from gsm8k_core.stats import wilson
from gsm8k_core.types import DataError, StorageError

MAX_LINE_BYTES = 1_000_000
FORM = 'give {"completion": "...", "gold": 18} a line'
KINDS = {bool: "true or false", dict: "an object", list: "a list", str: "a text", type(None): "null"}

Record = dict[str, Any]  # a line of the records file: plain JSON


class _Number(str):
    """A JSON number as it is written: int() refuses 5,000 digits, float() makes infinity of 1e400."""


@dataclass(frozen=True, slots=True)
class Answered:
    """One completion and what it should have said."""

    where: str  # file:line
    id: str | int | None  # what the row calls itself
    completion: str
    gold: str  # a plain number, or GSM8K's answer text


def read_completions(path: Path) -> list[Answered]:
    """The rows of a JSONL file. Raises DataError, with `file:line`, for the first that cannot be used."""
    rows = [_answered(_parse(line, where), where) for where, line in _lines(path)]
    if not rows:
        raise DataError(f"{path} has no completions; {FORM}")
    return rows


def grade_rows(rows: Sequence[Answered]) -> list[Record]:
    """A record per row: what each rule read, and whether it is right. Raises DataError for a gold that is no number."""
    records = []
    for row in rows:
        try:
            verdicts = grade(row.completion, row.gold)
        except DataError as error:
            raise DataError(f"{row.where}: {error}") from None
        rules = {name: asdict(verdict) for name, verdict in verdicts.items()}
        named = {} if row.id is None else {"id": row.id}
        records.append({"row": row.where, **named, "gold": row.gold, "completion": row.completion, "rules": rules})
    return records


def summarise(records: Sequence[Mapping[str, Any]]) -> Record:
    """{"n", "rules": {name: {"correct", "accuracy", "interval", "nothing_read"}}, "disagreements"}."""
    rules = {}
    for name in RULES:
        verdicts = [record["rules"][name] for record in records]
        correct = sum(verdict["correct"] for verdict in verdicts)
        rules[name] = {
            "correct": correct,
            "accuracy": correct / len(records),
            "interval": list(wilson(correct, len(records))),
            "nothing_read": sum(verdict["extracted"] is None for verdict in verdicts),
        }
    return {"n": len(records), "rules": rules, "disagreements": _disagreements(records)}


def _disagreements(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """[a][b]: the rows that rule a calls right and rule b wrong."""
    return {
        right: {
            wrong: sum(r["rules"][right]["correct"] and not r["rules"][wrong]["correct"] for r in records)
            for wrong in RULES
        }
        for right in RULES
    }


def refuse_existing(path: Path) -> None:
    """Raises StorageError when there is something already under this name."""
    if os.path.lexists(path):
        raise StorageError(f"--records {path} exists already; give another file, or remove it")


def write_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """A line a record, whole or not at all; never over another file."""
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with part.open("x", encoding="ascii") as file:
            for record in records:
                file.write(json.dumps(record, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        refuse_existing(path)
        part.rename(path)
    except OSError as error:
        raise StorageError(f"--records {path} cannot be written ({error.strerror}); give another file") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


# --- reading --------------------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """`file:line` and the lines that are not blank. A UTF-8 mark at the start and CRLF do no harm."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                where = f"{path}:{number}"
                text = _decoded(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, where)
                if text.strip():
                    yield where, text
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); give a JSONL file of completions") from None


def _decoded(line: bytes, where: str) -> str:
    if len(line) > MAX_LINE_BYTES:
        raise DataError(f"{where}: longer than {MAX_LINE_BYTES} bytes; {FORM}")
    if b"\0" in line:
        raise DataError(f"{where}: a NUL byte; the file is damaged or not UTF-8 text")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 (byte {error.start + 1} of the line); save it as UTF-8") from None


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(
            line, object_pairs_hook=_no_duplicates, parse_constant=_no_constants, parse_int=_Number, parse_float=_Number
        )
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({str(error)[:160]}); {FORM}") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: {_kind(row)}, not an object; {FORM}")
    return row


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError("a key stands twice")
    return row


def _no_constants(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _kind(value: object) -> str:
    return KINDS.get(type(value), "a number")


def _answered(row: Mapping[str, Any], where: str) -> Answered:
    completion = row.get("completion")
    if type(completion) is not str:  # a _Number is a str too
        what = f"'completion' is {_kind(completion)}, not a text" if "completion" in row else "no 'completion'"
        raise DataError(f"{where}: {what}; {FORM}")
    key = "gold" if "gold" in row or "answer" not in row else "answer"
    if key not in row:
        raise DataError(f"{where}: no 'gold'; {FORM}")
    return Answered(where, _id(row.get("id")), completion, _gold(row[key], f"{where}: {key!r}"))


def _id(value: object) -> str | int | None:
    if isinstance(value, _Number) and len(value) <= MAX_DIGITS and value.lstrip("-").isdecimal():
        return int(value)
    return str(value) if isinstance(value, str) else None


def _gold(value: object, what: str) -> str:
    """GSM8K's text as it is, a number as a plain one: 18.0 and 1.8e1 give 18."""
    if isinstance(value, _Number):
        return _plain(value, what)
    if not isinstance(value, str):
        raise DataError(f"{what} is {_kind(value)}; give a number, or GSM8K's answer text")
    return value if "####" in value else value.strip()


def _plain(number: str, what: str) -> str:
    with suppress(ArithmeticError):  # an exponent that no Decimal has
        value = Decimal(number)
        if abs(value.adjusted()) <= MAX_DIGITS:
            try:
                return gold_number(f"#### {value:f}")
            except DataError as error:
                raise DataError(f"{what}: {error}") from None
    raise DataError(f"{what} is {number[:24]}, a number of more than {MAX_DIGITS} digits; give the real one")
