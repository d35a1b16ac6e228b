"""Problems: from the Hub, JSONL or generated; their checksums; the dev split carved from train.

A line of JSON that cannot be used is an error with its `file:line`. Only what is asked for is checked: a NaN or a
repeated key in a field that nobody reads does no harm.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from gsm8k_core.config.fields import DEFAULT_DATA, GENERATED_DATA
from gsm8k_core.files import MAX_LINES_BYTES, open_plain
from gsm8k_core.models import hub
from gsm8k_core.problems.gold import gold_number
from gsm8k_core.types import Choice, DataError, Problem, first_line

SPLITS = ("train", "test")
FORM = "give one JSON object a line, with question and answer"
MIN_ROWS_FOR_DEV = 20
LONGEST_REASON = 160  # characters of another library's error
STDIN = Path("-")
MAX_LINE_BYTES = 1_000_000
KINDS = {bool: "true or false", dict: "an object", list: "a list", str: "a text", type(None): "null"}


@dataclass(frozen=True, slots=True)
class DataSet:
    """Problems by split, empty where not asked for. `choice.name`: file, folder, cache, hub or generated."""

    name: str  # what a person would type again
    train: tuple[Problem, ...]
    test: tuple[Problem, ...]
    sha256: dict[str, str]  # split -> hash of its questions and answers, in order
    choice: Choice


def load_data(
    reference: str, config: str, seed: int, announce: hub.Announce, splits: Sequence[str] = SPLITS
) -> DataSet:
    """The problems of the splits asked for. A name never falls back; "auto" is auto.choose_pair's."""
    if reference == GENERATED_DATA:
        return _generated(seed, splits)
    if path := hub.local_path(reference):
        return (_from_folder if path.is_dir() else _from_file)(reference, path, splits)
    return _from_hub(reference, config, announce, splits)


def require_data(reference: str, config: str) -> None:
    """Raises load_data's DataError where there are no such problems: at once, and without a download."""
    if reference != GENERATED_DATA and not hub.local_path(reference):
        _refuse_no_id(reference)
        if not any(cached_data(reference, config, (split,)) for split in SPLITS):
            _listing(reference)


def is_single_file(reference: str) -> bool:
    """Whether it names one JSONL file, whose rows serve whichever split is asked for."""
    path = None if reference == GENERATED_DATA else hub.local_path(reference)
    return path is not None and not path.is_dir()


def read_jsonl(path: Path, split: str) -> tuple[Problem, ...]:
    """The problems of a JSONL file, one object with question and answer a line; errors say `file:line`."""
    problems: list[Problem] = []
    for where, line in read_lines(path, FORM):
        row = fields(parse(line, where, FORM), ("question", "answer"), where)
        problems.append(_problem(row, where, f"{split}-{len(problems)}"))
    if not problems:
        raise DataError(f"{path} has no problems; {FORM}")
    return tuple(problems)


def content_hash(problems: Iterable[Problem]) -> str:
    """sha256 of the questions and answers in order, whatever file they came from."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(json.dumps([problem.question, problem.answer]).encode() + b"\n")
    return digest.hexdigest()


def carve_dev(
    problems: Sequence[Problem], share: float = 0.04, at_most: int = 200
) -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
    """(train, dev). Dev goes by each question's own hash, whatever the order, the seed and the other rows."""
    if len(problems) < MIN_ROWS_FOR_DEV:
        return tuple(problems), ()
    hashes = [hashlib.sha256(problem.question.encode()).hexdigest() for problem in problems]
    small = {value for value in hashes if int(value[:8], 16) < share * 16**8}
    chosen = set(sorted(small)[:at_most])
    train = tuple(problem for problem, value in zip(problems, hashes, strict=True) if value not in chosen)
    dev = tuple(problem for problem, value in zip(problems, hashes, strict=True) if value in chosen)
    return (train, dev) if train else (tuple(problems), ())


def training_rows(
    problems: Sequence[Problem], max_samples: int, annotations: str
) -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
    """(train, dev): the rows that `train` takes of the train problems, and those that it never trains on."""
    train, dev = carve_dev(problems)
    if max_samples >= 0:
        train = train[:max_samples]
    if annotations == "strip":
        train = tuple(replace(problem, answer=strip_annotations(problem.answer)) for problem in train)
    return train, dev


def strip_annotations(answer: str) -> str:
    """The answer without GSM8K's calculator marks: `48/2 = <<48/2=24>>24` -> `48/2 = 24`."""
    return re.sub(r"<<[^<>=\n]*=[^<>\n]*>>", "", answer)


def cached_data(repo: str, config: str, splits: Sequence[str] = SPLITS) -> dict[str, list[Path]] | None:
    """The parquet files of each split in the Hub's cache, without asking the network."""
    for snapshot in hub.cached_snapshots(repo, "dataset"):
        names = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*.parquet") if path.is_file()]
        found = parquet_files(names, config, splits)
        if all(found.values()):
            return {split: [snapshot / name for name in found[split]] for split in splits}
    return None


def parquet_files(names: Iterable[str], config: str, splits: Sequence[str]) -> dict[str, list[str]]:
    """Each split's parquet files of a configuration: config/train-00000-of-00001.parquet, or under data/."""
    ordered = sorted(names)
    found: dict[str, list[str]] = {}
    for split in splits:
        for folder in (f"{config}/", "data/", ""):
            pattern = re.escape(folder + split) + r"(-\d+-of-\d+)?\.parquet"
            found[split] = [name for name in ordered if re.fullmatch(pattern, name)]
            if found[split]:
                break
    return found


# --- where they come from -------------------------------------------------------------------------------------


def _data_set(name: str, parts: Mapping[str, tuple[Problem, ...]], choice: Choice) -> DataSet:
    hashes = {split: content_hash(problems) for split, problems in parts.items()}
    return DataSet(name, parts.get("train", ()), parts.get("test", ()), hashes, choice)


def _generated(seed: int, splits: Sequence[str]) -> DataSet:
    from gsm8k_core.problems.generated import generate_problems  # only who asks pays for the templates

    train, test = generate_problems(seed)
    parts = {split: tuple(rows) for split, rows in zip(SPLITS, (train, test), strict=True) if split in splits}
    return _data_set(GENERATED_DATA, parts, Choice("generated", f"made here with seed {seed}"))


def _refuse_no_id(reference: str) -> None:
    if hub.looks_like_path(reference) or not hub.is_hub_id(reference) or reference.endswith(".jsonl"):
        raise DataError(
            f"data {reference!r} is not a file or folder here, and not a Hub id such as {DEFAULT_DATA}; "
            "give a JSONL file or a folder with --data PATH, or use --data generated"
        )


def _from_file(reference: str, path: Path, splits: Sequence[str]) -> DataSet:
    # Never both: what is trained on would be what it is tested on.
    split = "train" if "train" in splits else splits[0]
    return _data_set(reference, {split: read_jsonl(path, split)}, Choice("file", "one file of this machine"))


def _from_folder(reference: str, folder: Path, splits: Sequence[str]) -> DataSet:
    parts = {split: read_jsonl(_split_file(reference, folder, split), split) for split in splits}
    return _data_set(reference, parts, Choice("folder", "a folder of this machine"))


def _split_file(reference: str, folder: Path, split: str) -> Path:
    path = folder / f"{split}.jsonl"
    if path.is_file():
        return path
    if os.path.lexists(path):
        what = "a folder" if path.is_dir() else "a link to nothing" if path.is_symlink() else "not a plain file"
        raise DataError(f"{path} is {what}; put a JSONL file there, or give another --data")
    names = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise DataError(f"{reference} has no {path.name} (it has {names}); add it, or give another --data")


def _from_hub(repo: str, config: str, announce: hub.Announce, splits: Sequence[str]) -> DataSet:
    _refuse_no_id(repo)
    choice = Choice("cache", f"it is in the Hub's cache, {hub.hub_cache()}")
    files = cached_data(repo, config, splits)
    if files is None:
        files = _download(repo, config, announce, splits)
        choice = Choice("hub", f"downloaded from {hub.shown_endpoint()}")
    return _data_set(repo, {split: _read_parquet(files[split], split) for split in splits}, choice)


def _listing(repo: str) -> hub.Listing:
    try:
        return hub.look_up(repo, "dataset")
    except hub.Unavailable as error:
        raise DataError(
            f"data {repo!r} is not a file or folder here, is not cached, and {error}; "
            f"give a JSONL file or folder with --data PATH, use --data generated, or {error.advice}"
        ) from None


def _download(repo: str, config: str, announce: hub.Announce, splits: Sequence[str]) -> dict[str, list[Path]]:
    listing = _listing(repo)
    found = parquet_files(listing.files, config, SPLITS)  # both: they are small, and an evaluation will follow
    lacking = [split for split in splits if not found.get(split)]
    if lacking:
        raise DataError(
            f"data {repo!r} has no parquet file of {config}/{lacking[0]}; check --data-config, or give a JSONL file"
        )
    folder = hub.download(listing, [name for names in found.values() for name in names], announce)
    return {split: [folder / name for name in found[split]] for split in splits}


def _read_parquet(paths: Sequence[Path], split: str) -> tuple[Problem, ...]:
    import pyarrow  # type: ignore[import-untyped]  # heavy: a third of a second

    problems: list[Problem] = []
    for path in paths:
        try:
            rows = _rows_of(path)
        except (pyarrow.ArrowException, KeyError, OSError) as error:
            reason = first_line(error)[:LONGEST_REASON]
            raise DataError(f"{path} cannot be read ({reason}); remove it and download it again") from None
        for number, row in enumerate(rows):
            problems.append(_problem(row, f"{path}: row {number}", f"{split}-{len(problems)}"))
    if not problems:
        raise DataError(f"{paths[0]} has no problems; give another --data")
    return tuple(problems)


def _rows_of(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet  # type: ignore[import-untyped]

    with open_plain(path, MAX_LINES_BYTES) as file:
        table = pyarrow.parquet.ParquetFile(file)
        groups = range(table.metadata.num_row_groups)
        if sum(table.metadata.row_group(group).total_byte_size for group in groups) > MAX_LINES_BYTES:
            raise DataError(f"{path} unpacks to more than {MAX_LINES_BYTES >> 20} MiB; check where it comes from")
        rows: list[dict[str, Any]] = table.read(["question", "answer"]).to_pylist()
    return rows


def _problem(row: Mapping[str, Any], where: str, name: str) -> Problem:
    for key in ("question", "answer"):
        value = row.get(key)
        if key not in row:
            raise DataError(f"{where}: no {key!r}; give question and answer")
        if type(value) is not str:  # a Number is a str too
            raise DataError(f"{where}: {key!r} is {kind(value)}, not a text; give question and answer as texts")
        if not value.strip():
            raise DataError(f"{where}: {key!r} is empty; give question and answer")
        if not is_text(value):
            raise DataError(f"{where}: {key!r} has a NUL or half a surrogate pair, which is not text; remove it")
    try:
        gold = gold_number(row["answer"])
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    return Problem(id=name, question=row["question"], answer=row["answer"], gold=gold)


# --- lines and JSON objects, from a file or stdin -------------------------------------------------------------


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
    with open_plain(path, MAX_LINES_BYTES) as file:
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
