"""Files of rows -> Problems, whatever their format and shape; what was found in them is told and recorded.

The answer of a problem ends with its one `#### N`, whatever form it had in the file: gold.py says how.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gsm8k_core.config.fields import ProblemSettings
from gsm8k_core.files import MAX_LINES_BYTES, open_plain
from gsm8k_core.problems.gold import ended, plain_decimal
from gsm8k_core.problems.lines import POINTER, first_bytes, read_objects, unreadable
from gsm8k_core.problems.shapes import BadRowError, Columns, Shape, shape_of
from gsm8k_core.types import DataError, Problem, counted

FORM = "give one JSON object a line, with question and answer"
PARQUET = b"PAR1"
NOT_READ = (".csv", ".tsv", ".arrow", ".xlsx", ".zip", ".pkl")
BATCH_ROWS = 4096
MOST_NAMED = 3  # rows that were left out, in a line; run.json names more
MOST_KEPT = 100
GOLDS = {
    "####": "after ####",
    "#### and more": "after ####, and what follows is cut off",
    "sentence": 'in a sentence ("the answer is"), as a last line #### from now on',
    "box": r"in \boxed{}, with a last line #### from now on",
}

BY_NAME = Columns()
Rows = Iterator[tuple[str, Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class RowOptions:
    """How rows are to be read. `skip_bad_rows`: None where a verb does not offer it."""

    columns: Columns = BY_NAME
    skip_bad_rows: bool | None = None
    revision: str = ""  # of a repository on the Hub: the one that a run began with

    @classmethod
    def of(cls, config: ProblemSettings, revision: str = "") -> RowOptions:
        """As a verb's settings say."""
        return cls(Columns(config.question_column, config.answer_column), config.skip_bad_rows, revision)


@dataclass(slots=True)
class Found:
    """What the rows of one split turned out to be."""

    shape: str = ""
    rows: int = 0
    golds: Counter[str] = field(default_factory=Counter)
    systems: int = 0  # rows with a system turn, which is left out
    num_skipped: int = 0
    skipped: list[str] = field(default_factory=list)  # the first ones, each with its place and why

    @property
    def is_gsm8k(self) -> bool:
        """Whether it is GSM8K's own form: what others read is the same as what was read here."""
        return self.shape == "question/answer" and set(self.golds) == {"####"}

    def lines(self) -> Iterator[str]:
        """What a person is told."""
        kinds = self.golds.most_common()
        only = len(kinds) == 1
        golds = "; ".join(f"{'' if only else f'of {count:,} '}{GOLDS[kind]}" for kind, count in kinds)
        system = f"; the system turn of {self.systems:,} is left out, for ours" if self.systems else ""
        yield f"shape    {self.shape}, {counted(self.rows, 'row')}, the gold {golds}{system}"
        if self.num_skipped:
            more = f"; and {self.num_skipped - MOST_NAMED:,} more" if self.num_skipped > MOST_NAMED else ""
            named = "; ".join(self.skipped[:MOST_NAMED])
            yield f"skipped  {self.num_skipped:,} of {counted(self.rows + self.num_skipped, 'row')}: {named}{more}"

    def as_json(self) -> dict[str, Any]:
        """For run.json."""
        skipped = {"count": self.num_skipped, "rows": self.skipped}
        return {"shape": self.shape, "rows": self.rows, "golds": dict(self.golds), "skipped": skipped}

    def skip(self, why: str) -> None:
        """Count and name a row that is left out."""
        self.num_skipped += 1
        if len(self.skipped) < MOST_KEPT:
            self.skipped.append(why.partition("; ")[0])


def read_problems(paths: Sequence[Path], split: str, reading: RowOptions) -> tuple[tuple[Problem, ...], Found]:
    """The problems of a split's files, in order, with what was found. Errors say `file:line`."""
    problems: list[Problem] = []
    found = Found()
    for path in paths:
        shape, rows = _rows_of(path, reading.columns)
        found.shape = found.shape or shape.name
        for where, row in rows:
            try:
                number = len(problems) + found.num_skipped
                problems.append(_problem(shape, row, where, f"{split}-{number}", found))
            except BadRowError as error:
                if not reading.skip_bad_rows:
                    advice = "" if reading.skip_bad_rows is None else "; or add --skip-bad-rows to leave such rows out"
                    raise DataError(f"{error}{advice}") from None
                found.skip(str(error))
    found.rows = len(problems)
    if not problems:
        left = f" that can be used (--skip-bad-rows: {found.skipped[0]})" if found.skipped else ""
        raise DataError(f"{paths[0]} has no problems{left}; {FORM}")
    return tuple(problems), found


def _problem(shape: Shape, row: Mapping[str, Any], where: str, name: str, found: Found) -> Problem:
    question, answer, has_system = shape.texts(row, where)
    try:
        answer, number, kind = ended(answer)
    except DataError as error:
        raise BadRowError(f"{where}: {error}") from None
    found.golds[kind] += 1
    found.systems += has_system
    return Problem(id=name, question=question, answer=answer, gold=plain_decimal(number))


def _rows_of(path: Path, columns: Columns) -> tuple[Shape, Rows]:
    """The shape of a file's rows, and the rows with their places."""
    start = first_bytes(path, len(POINTER))
    if start == POINTER:
        raise DataError(f"{path} is a Git LFS pointer, not the data itself; run `git lfs pull` in its repository")
    if (ending := path.suffix.lower()) in NOT_READ:
        raise DataError(f"{path}: {ending[1:]} is not read; give JSONL, a JSON array or parquet")
    if start.startswith(PARQUET) or ending == ".parquet":
        return _of_parquet(path, columns)
    rows = read_objects(path, FORM)
    if (first := next(rows, None)) is None:
        return Shape("", ""), rows
    where, row = first
    shape = shape_of(row, columns, where, lambda name: isinstance(row[name], list))

    def every() -> Rows:
        yield first
        yield from rows

    return shape, every()


def _of_parquet(path: Path, columns: Columns) -> tuple[Shape, Rows]:
    import pyarrow.parquet  # type: ignore[import-untyped]  # heavy: a third of a second

    def read() -> Iterator[Any]:
        with open_plain(path, MAX_LINES_BYTES) as file:
            table = pyarrow.parquet.ParquetFile(file)
            groups = range(table.metadata.num_row_groups)
            if sum(table.metadata.row_group(group).total_byte_size for group in groups) > MAX_LINES_BYTES:
                raise DataError(f"{path} unpacks to more than {MAX_LINES_BYTES >> 20} MiB; check where it comes from")
            schema = table.schema_arrow
            is_list = {name: pyarrow.types.is_list(schema.field(name).type) for name in set(schema.names)}
            shape = shape_of(schema.names, columns, str(path), lambda name: is_list[name])
            yield shape
            number = 0
            for batch in table.iter_batches(BATCH_ROWS, columns=list(shape.columns)):
                for row in batch.to_pylist():
                    yield f"{path}: row {number}", row
                    number += 1

    def guarded() -> Iterator[Any]:
        try:
            yield from read()
        except (pyarrow.ArrowException, KeyError, OSError) as error:
            raise unreadable(str(path), error, "remove it and download it again") from None

    rows = guarded()
    return next(rows), rows
