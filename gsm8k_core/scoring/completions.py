"""Completions that any system made: read from JSONL, graded under every rule, told apart by rule.

One object a line: {"completion": text, "gold": number or GSM8K answer}. `answer` serves where `gold` is absent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from gsm8k_core.problems.gold import MAX_DIGITS, gold_number
from gsm8k_core.problems.lines import STDIN, Constant, Number, Row, fields, kind, parse, read_lines
from gsm8k_core.scoring import tallies
from gsm8k_core.scoring.answers import grade, version_of
from gsm8k_core.scoring.stats import wilson
from gsm8k_core.types import DataError, StorageError

FORM = 'give {"completion": "...", "gold": 18} a line'

Record = dict[str, Any]  # a line of the records file: plain JSON


@dataclass(frozen=True, slots=True)
class CompletionRow:
    """One completion and what it should have said."""

    where: str  # file:line
    id: str | int | None  # what the row calls itself
    completion: str
    gold: str  # a plain number, or GSM8K's answer text


def read_completions(path: Path) -> list[CompletionRow]:
    """The rows of a JSONL file, or of stdin for `-`. Raises DataError, with `file:line`, for the first bad one."""
    rows = [_completion_row(parse(line, where, FORM), where) for where, line in read_lines(path, FORM)]
    if not rows:
        raise DataError(f"{path if path != STDIN else 'stdin'} has no completions; {FORM}")
    return rows


def grade_rows(rows: Sequence[CompletionRow]) -> list[Record]:
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
    """{"n", "rules": {name: {"correct", "accuracy", "interval", "nothing_read", "version"}}} and what differs."""
    rules = {}
    for name in tallies.rules_of(records):
        verdicts = [record["rules"][name] for record in records]
        correct = sum(verdict["correct"] for verdict in verdicts)
        rules[name] = {
            "correct": correct,
            "accuracy": correct / len(records),
            "interval": list(wilson(correct, len(records))),
            "nothing_read": sum(verdict["extracted"] is None for verdict in verdicts),
            "version": version_of(name),
        }
    return {"n": len(records), "rules": rules, **tallies.disagreement_summary(records)}


def check_records(path: Path) -> None:
    """Raises StorageError unless a new file can be made under this name. Leaves nothing."""
    if os.path.lexists(path):
        raise StorageError(f"--records {path} exists already; give another file, or remove it")
    if not path.parent.is_dir():
        raise StorageError(f"--records {path}: there is no folder {path.parent}; make it, or give another file")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise StorageError(f"--records {path}: {path.parent} cannot be written to; give a file elsewhere")


def write_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """A line a record, whole or not at all; never over another file."""
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with part.open("x", encoding="ascii") as file:
            for record in records:
                file.write(json.dumps(record, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        check_records(path)
        part.rename(path)
    except OSError as error:
        raise StorageError(f"--records {path} cannot be written ({error.strerror}); give another file") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _completion_row(row: Row, where: str) -> CompletionRow:
    key = "gold" if "gold" in row or "answer" not in row else "answer"
    used = fields(row, ("completion", key), where)
    completion = used.get("completion")
    if type(completion) is not str:  # a Number is a str too
        what = f"'completion' is {kind(completion)}, not a text" if "completion" in used else "no 'completion'"
        raise DataError(f"{where}: {what}; {FORM}")
    if key not in used:
        raise DataError(f"{where}: no 'gold'; {FORM}")
    return CompletionRow(where, _id(row.get("id")), completion, _gold(used[key], f"{where}: {key!r}"))


def _id(value: object) -> str | int | None:
    if isinstance(value, Number) and len(value) <= MAX_DIGITS and value.lstrip("-").isdecimal():
        return int(value)
    return str(value) if isinstance(value, str) and not isinstance(value, Constant) else None


def _gold(value: object, what: str) -> str:
    """GSM8K's text as it is, a number as a plain one: 18.0 and 1.8e1 give 18."""
    if isinstance(value, Number):
        return _plain(value, what)
    if not isinstance(value, str):
        raise DataError(f"{what} is {kind(value)}; give a number, or GSM8K's answer text")
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
