"""Problems: from the Hub, files, folders or generated; their checksums; the dev split carved from train.

reading.py reads a file of rows, shapes.py knows which columns are the question and the answer, splits.py which file
holds which split.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gsm8k_core.config.fields import DEFAULT_DATA, GENERATED_DATA
from gsm8k_core.doing import doing
from gsm8k_core.models import hub
from gsm8k_core.problems.reading import Found, RowOptions, read_problems
from gsm8k_core.problems.splits import FORMATS, SPLITS, configurations, data_files, listed
from gsm8k_core.types import Choice, DataError, Problem

MIN_ROWS_FOR_DEV = 20
AS_FOUND = RowOptions()
ENDINGS = tuple(f".{ending}" for ending in FORMATS)  # of a file that a person meant
MUCH_TO_READ = 32 << 20  # bytes, a few seconds: a person is told what is waited for
MOST_DEEP = 2  # folders below a folder


class MissingSplitError(DataError):
    """The data is there, and has no such split."""


@dataclass(frozen=True, slots=True)
class DataSet:
    """Problems by split, empty where not asked for. `choice.name`: file, folder, cache, hub or generated."""

    name: str  # what a person would type again
    train: tuple[Problem, ...]
    test: tuple[Problem, ...]
    sha256: dict[str, str]  # split -> hash of its questions and answers, in order
    choice: Choice
    found: Mapping[str, Found] = field(default_factory=dict)  # split -> what its rows turned out to be
    revision: str = ""  # of a repository on the Hub

    def lines(self) -> list[str]:
        """What a person is told of its rows; nothing of generated ones."""
        return [line for found in self.found.values() for line in found.lines()]

    def as_json(self) -> dict[str, Any]:
        """For run.json."""
        found = {split: found.as_json() for split, found in self.found.items()}
        return {"source": self.choice.name, "sha256": self.sha256, "revision": self.revision, "found": found}


def load_data(
    reference: str,
    config: str,
    seed: int,
    announce: hub.Announce,
    splits: Sequence[str] = SPLITS,
    reading: RowOptions = AS_FOUND,
) -> DataSet:
    """The problems of the splits asked for. A name never falls back; "auto" is auto.choose_pair's.

    Raises MissingSplitError where the data has no such split.
    """
    doing("reading the problems")
    if reference == GENERATED_DATA:
        return _generated(seed, splits)
    if path := hub.local_path(reference):
        if path.is_dir():
            return _from_folder(reference, path, config, splits, reading, announce)
        return _from_file(reference, path, splits, reading, announce)
    return _from_hub(reference, config, announce, splits, reading)


def require_data(reference: str, config: str) -> None:
    """Raises load_data's DataError where there are no such problems: at once, and without a download."""
    if reference != GENERATED_DATA and not hub.local_path(reference):
        _refuse_no_id(reference)
        repo, _, revision = reference.partition("@")
        if not any(cached_data(repo, config, (split,), revision) for split in SPLITS):
            _listing(reference)


def is_single_file(reference: str) -> bool:
    """Whether it names one file, whose rows serve whichever split is asked for."""
    path = None if reference == GENERATED_DATA else hub.local_path(reference)
    return path is not None and not path.is_dir()


def is_at_hand(reference: str, config: str, split: str) -> bool:
    """Whether a split can be read without a network, as far as names say."""
    if reference == GENERATED_DATA or hub.local_path(reference):
        return True
    repo, _, revision = reference.partition("@")
    return cached_data(repo, config, (split,), revision) is not None


def read_jsonl(path: Path, split: str) -> tuple[Problem, ...]:
    """The problems of one file, whatever its shape; errors say `file:line`."""
    return read_problems([path], split, AS_FOUND)[0]


def content_hash(problems: Iterable[Problem]) -> str:
    """sha256 of the questions and answers in order, whatever file they came from."""
    digest = hashlib.sha256()
    quoted = json.encoder.encode_basestring_ascii  # as json.dumps writes a list of both, in half the time
    for problem in problems:
        digest.update(f"[{quoted(problem.question)}, {quoted(problem.answer)}]\n".encode())
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


def cached_data(
    repo: str, config: str, splits: Sequence[str] = SPLITS, revision: str = ""
) -> dict[str, list[Path]] | None:
    """The files of each split in the Hub's cache, without asking the network; those of `revision` alone, if given."""
    for snapshot in hub.cached_snapshots(repo, "dataset"):
        if revision and not snapshot.name.startswith(revision):
            continue
        found = data_files(_names_in(snapshot), config, splits)
        if all(found.values()):
            return {split: [snapshot / name for name in found[split]] for split in splits}
    return None


# --- where they come from -------------------------------------------------------------------------------------


def _data_set(
    name: str,
    parts: Mapping[str, tuple[Problem, ...]],
    choice: Choice,
    found: Mapping[str, Found] | None = None,
    revision: str = "",
) -> DataSet:
    hashes = {split: content_hash(problems) for split, problems in parts.items()}
    return DataSet(name, parts.get("train", ()), parts.get("test", ()), hashes, choice, found or {}, revision)


def _of_files(
    name: str,
    files: Mapping[str, list[Path]],
    choice: Choice,
    reading: RowOptions,
    announce: hub.Announce,
    revision: str = "",
) -> DataSet:
    size = sum(path.stat().st_size for paths in files.values() for path in paths if path.exists())
    if size > MUCH_TO_READ:
        announce(f"reading  {name}: {hub.human_size(size)}")
    read = {split: read_problems(paths, split, reading) for split, paths in files.items()}
    parts = {split: problems for split, (problems, _) in read.items()}
    return _data_set(name, parts, choice, {split: found for split, (_, found) in read.items()}, revision)


def _generated(seed: int, splits: Sequence[str]) -> DataSet:
    from gsm8k_core.problems.generated import generate_problems  # only who asks pays for the templates

    train, test = generate_problems(seed)
    parts = {split: tuple(rows) for split, rows in zip(SPLITS, (train, test), strict=True) if split in splits}
    return _data_set(GENERATED_DATA, parts, Choice("generated", f"made here with seed {seed}"))


def _refuse_no_id(reference: str) -> None:
    if hub.looks_like_path(reference) or not hub.is_hub_id(_repo(reference)) or reference.endswith(ENDINGS):
        raise DataError(
            f"data {reference!r} is not a file or folder here, and not a Hub id such as {DEFAULT_DATA}; "
            "give a JSONL file or a folder with --data PATH, or use --data generated"
        )


def _repo(reference: str) -> str:
    """The repository of `owner/name@revision`."""
    return reference.partition("@")[0]


def _from_file(
    reference: str, path: Path, splits: Sequence[str], reading: RowOptions, announce: hub.Announce
) -> DataSet:
    # Never both: what is trained on would be what it is tested on.
    split = "train" if "train" in splits else splits[0]
    return _of_files(reference, {split: [path]}, Choice("file", "one file of this machine"), reading, announce)


def _from_folder(
    reference: str, folder: Path, config: str, splits: Sequence[str], reading: RowOptions, announce: hub.Announce
) -> DataSet:
    for split in splits:
        _refuse_no_file(folder / f"{split}.jsonl")
    names = _names_in(folder)
    found = data_files(names, config, splits)
    if lacking := [split for split in splits if not found[split]]:
        has = listed(names) if names else listed([path.name for path in folder.iterdir()])
        advice = f"check --data-config{others}" if (others := _others(names, config)) else "add it"
        raise MissingSplitError(
            f"{reference} has no {lacking[0]}.jsonl (it has {has}); {advice}, or give another --data"
        )
    files = {split: [folder / name for name in found[split]] for split in splits}
    return _of_files(reference, files, Choice("folder", "a folder of this machine"), reading, announce)


def _others(names: Sequence[str], config: str) -> str:
    """The configurations that there are beside the one that was asked for."""
    others = [each for each in configurations(names) if each != config]
    return f" (there is {', '.join(others)})" if others else ""


def _refuse_no_file(path: Path) -> None:
    if os.path.lexists(path) and not path.is_file():
        what = "a folder" if path.is_dir() else "a link to nothing" if path.is_symlink() else "not a plain file"
        raise DataError(f"{path} is {what}; put a JSONL file there, or give another --data")


def _names_in(folder: Path) -> list[str]:
    """The files of a folder and, but for hidden ones, of those in it."""
    found = []
    for root, folders, names in os.walk(folder):
        depth = len(Path(root).relative_to(folder).parts)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if depth < MOST_DEEP else []
        found += [(Path(root) / name).relative_to(folder).as_posix() for name in names]
    return [name for name in found if (folder / name).is_file()]


def _from_hub(
    reference: str, config: str, announce: hub.Announce, splits: Sequence[str], reading: RowOptions
) -> DataSet:
    _refuse_no_id(reference)
    repo, _, named = reference.partition("@")
    revision = named or reading.revision
    choice = Choice("cache", f"it is in the Hub's cache, {hub.hub_cache()}")
    files = cached_data(repo, config, splits, revision)
    if files is None:
        files = _download_known(reference, config, announce, splits, revision)
        choice = Choice("hub", f"downloaded from {hub.shown_endpoint()}")
    return _of_files(reference, files, choice, reading, announce, hub.revision_of(next(iter(files.values()))[0]))


def _download_known(
    reference: str, config: str, announce: hub.Announce, splits: Sequence[str], revision: str
) -> dict[str, list[Path]]:
    """The files, downloaded. Where that fails and the cache has another split, this one is what is missing."""
    try:
        return _download(reference, config, announce, splits, revision)
    except MissingSplitError:
        raise
    except DataError as error:
        if any(cached_data(_repo(reference), config, (split,), revision) for split in SPLITS):
            raise MissingSplitError(f"data {reference!r} has no {splits[0]} in the Hub's cache; {error}") from None
        raise


def _listing(reference: str, revision: str = "") -> hub.Listing:
    try:
        return hub.look_up(_repo(reference), "dataset", revision=revision or reference.partition("@")[2])
    except hub.Unavailable as error:
        raise DataError(
            f"data {reference!r} is not a file or folder here, is not cached, and {error}; "
            f"give a JSONL file or folder with --data PATH, use --data generated, or {error.advice}"
        ) from None


def _download(
    reference: str, config: str, announce: hub.Announce, splits: Sequence[str], revision: str
) -> dict[str, list[Path]]:
    listing = _listing(reference, revision)
    found = data_files(listing.files, config, SPLITS)  # both: they are small, and an evaluation will follow
    if lacking := [split for split in splits if not found.get(split)]:
        names = [name for name in listing.files if not name.startswith(".")]
        raise MissingSplitError(
            f"data {reference!r} has no file of {config}/{lacking[0]} (it has {listed(names)}); "
            f"check --data-config{_others(names, config)}, or give a file of your own"
        )
    folder = hub.download(listing, [name for names in found.values() for name in names], announce)
    return {split: [folder / name for name in found[split]] for split in splits}
