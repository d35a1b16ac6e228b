"""Checkpoints: what a run needs to go on, in files that belong to the run and not to a backend.

RUN/checkpoints/update-000010/
    model/               what `live.save` writes: a Hugging Face folder, or an adapter in PEFT's layout
    moments.safetensors  AdamW's moments, float32: "first/<name>" and "second/<name>", names as in model/
    checkpoint.json      written last: where the run stood, and size and sha256 of every other file, and its own

A second checkpoint of an update (the run went back to an earlier one) is update-000010-2: nothing is replaced.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pydantic

from gsm8k_core.files import (
    file_hash,
    make_folder,
    new_folder,
    read_json,
    remove_folder,
    remove_leftovers,
    write_json,
)
from gsm8k_core.models.folder import CHECKPOINT_RECORD as RECORD
from gsm8k_core.types import DataError, GSM8KError, StorageError, TrainState

if TYPE_CHECKING:
    from gsm8k_core.backend import Live
    from gsm8k_core.types import FloatArray

SCHEMA = 1
MODEL, MOMENTS = "model", "moments.safetensors"
FIRST, SECOND = "first/", "second/"
NAME = re.compile(r"update-([0-9]{6,12})(?:-([0-9]{1,6}))?")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint. Only what its checkpoint.json names is ever read."""

    folder: Path
    update: int
    step: int  # AdamW steps applied so far
    elapsed: float  # seconds of training so far, over all parts of the run
    events: tuple[Mapping[str, object], ...]  # changes of the plan, in order
    losses: tuple[float, ...]  # of every update so far
    facts: Mapping[str, Any]  # the caller's: config, hashes, ...
    parameters: tuple[str, ...]  # names of the parameters that are trained
    weights: tuple[str, ...]  # the safetensors files under model/, relative to `folder`

    @property
    def model(self) -> Path:
        return self.folder / MODEL

    def state(self) -> TrainState:
        """Weights and moments. DataError when they do not fit one another, or a file cannot be read."""
        _check_fit(self)
        wanted = set(self.parameters)
        loaded: dict[str, FloatArray] = {}
        for name in self.weights:
            loaded |= _load(self.folder / name, wanted)
        moments = _load(self.folder / MOMENTS, {kind + name for kind in (FIRST, SECOND) for name in wanted})
        return TrainState(
            self.step,
            {name: loaded[name] for name in self.parameters},
            {name: moments[FIRST + name] for name in self.parameters},
            {name: moments[SECOND + name] for name in self.parameters},
        )


class _File(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True)

    sha256: str
    size: int


class _Record(pydantic.BaseModel):
    """checkpoint.json."""

    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    schema_: Literal[1] = pydantic.Field(alias="schema")
    update: int
    step: int
    elapsed: float
    events: list[dict[str, Any]]
    losses: list[float]
    facts: dict[str, Any]
    parameters: list[str]
    files: dict[str, _File]
    sha256: str  # of all the rest: a flipped bit in a number would be valid JSON


def write(
    checkpoints: Path,
    live: Live,
    *,
    update: int,
    elapsed: float,
    events: Iterable[Mapping[str, object]],
    losses: Sequence[float],
    facts: Mapping[str, Any],
) -> Path:
    """Writes a checkpoint, whole or not at all; returns its folder. Raises StorageError when it cannot."""
    make_folder(checkpoints)
    directory = _free(checkpoints, update)
    with new_folder(directory) as folder:
        try:
            live.save(folder / MODEL)
            state = live.state()
            _write_moments(folder / MOMENTS, state)
            values = {
                "schema": SCHEMA,
                "update": update,
                "step": state.step,
                "elapsed": elapsed,
                "events": [dict(event) for event in events],
                "losses": list(losses),
                "facts": dict(facts),
                "parameters": list(state.parameters),
                "files": _files(folder),
            }
            write_json(folder / RECORD, {**values, "sha256": _seal(values)})
            _check_fit(_read(folder, content=False))  # what could not be read again is noticed now
        except GSM8KError as error:
            message = str(error).replace(folder.name, directory.name)  # nobody knows the temporary name
            kind = StorageError if isinstance(error, DataError) else type(error)
            raise kind(message) from error.__cause__
    return directory


def newest(checkpoints: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint, or None. A damaged one is named in one line and passed over, never removed."""
    for folder in _numbered(checkpoints):
        try:
            return _open(folder, content=True)
        except DataError as error:
            warn(f"checkpoint {folder.name} is passed over: {error}")
    return None


def update_of(model: Path) -> int | None:
    """The update that a checkpoint's model/ is of; None of any other folder, and where its record is damaged."""
    try:
        return _read_record(model.parent).update
    except DataError:
        return None


def prune(checkpoints: Path, keep: int) -> list[Path]:
    """Removes the oldest whole checkpoints beyond `keep`, and what killed processes left; returns the former.

    The newest whole one stays in any case, and damaged ones stay for a person to look at. The caller holds the
    run: nobody else is writing here.
    """
    sweep(checkpoints)
    # By size only: hashing every checkpoint at every save would read many gigabytes.
    whole = [folder for folder in _numbered(checkpoints) if _is_whole(folder, content=False)]
    surplus = whole[keep:]
    safe = next((folder for folder in whole if _is_whole(folder, content=True)), None) if surplus else None
    doomed = [] if safe is None else [folder for folder in reversed(surplus) if folder != safe]
    for folder in doomed:
        remove_folder(folder)
    return doomed


def remove_all(checkpoints: Path) -> None:
    """Removes every checkpoint, and the folder where nothing else is in it. The caller holds the run."""
    sweep(checkpoints)
    for folder in _numbered(checkpoints):
        remove_folder(folder)
    with suppress(OSError):  # a person's copy of one lies there, or there is none
        checkpoints.rmdir()


def sweep(checkpoints: Path) -> None:
    """Removes what killed processes left. The caller holds the run: nobody else is writing here."""
    remove_leftovers(checkpoints, NAME)


def _free(checkpoints: Path, update: int) -> Path:
    first = checkpoints / f"update-{update:06d}"
    names = itertools.chain([first], (first.with_name(f"{first.name}-{count}") for count in itertools.count(2)))
    return next(path for path in names if not os.path.lexists(path))


def _numbered(checkpoints: Path) -> list[Path]:
    """The folders with a checkpoint's name, newest first. Links are not followed."""
    try:
        with os.scandir(checkpoints) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"{checkpoints} cannot be read ({error.strerror}); check the folder") from error
    found = {name: match for name in names if (match := NAME.fullmatch(name))}
    order = sorted(found, key=lambda name: (int(found[name][1]), int(found[name][2] or 1)), reverse=True)
    return [checkpoints / name for name in order]


def _is_whole(folder: Path, content: bool) -> bool:
    try:
        _open(folder, content)
    except DataError:
        return False
    return True


def _open(folder: Path, content: bool) -> Checkpoint:
    checkpoint = _read(folder, content)
    number = NAME.fullmatch(folder.name)
    if number is None or int(number[1]) != checkpoint.update:
        raise DataError(f"{folder / RECORD} is of update {checkpoint.update}, not of this folder's")
    return checkpoint


def _read(folder: Path, content: bool) -> Checkpoint:
    """Raises DataError unless every file is there in its size and, with `content`, to the last bit."""
    record = _read_record(folder)
    if MOMENTS not in record.files:
        raise DataError(f"{folder / RECORD} names no {MOMENTS}")
    for name, file in record.files.items():
        _check_file(_inside(folder, name), file, content)
    weights = sorted(name for name in record.files if re.fullmatch(rf"{MODEL}/[^/]+\.safetensors", name))
    return Checkpoint(
        folder,
        record.update,
        record.step,
        record.elapsed,
        tuple(record.events),
        tuple(record.losses),
        record.facts,
        tuple(record.parameters),
        tuple(weights),
    )


def _read_record(folder: Path) -> _Record:
    path = _inside(folder, RECORD)
    try:
        values = read_json(path)
        seal = _seal(values)
    except DataError as error:
        raise DataError(str(error).rpartition(";")[0]) from None  # its advice is for models
    except RecursionError:
        raise DataError(f"{path} is nested too deeply") from None
    if values.get("schema") != SCHEMA:
        raise DataError(f"{path} has schema {values.get('schema')!r}; this version reads {SCHEMA}")
    if values.get("sha256") != seal:
        raise DataError(f"{path} is damaged (its content does not have the sha256 that it names)")
    try:
        return _Record.model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path} is not a checkpoint's ({place}: {first['msg']})") from None


def _seal(values: Mapping[str, Any]) -> str:
    """sha256 of the values as they will be read again, but for the one that holds it."""
    rest = json.loads(json.dumps({name: value for name, value in values.items() if name != "sha256"}))
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _inside(folder: Path, name: str) -> Path:
    """A file of the folder, by the name that checkpoint.json gives it; DataError for any other place."""
    path = folder
    for part in name.split("/"):
        if part in ("", ".", "..") or re.search(r"[\\:\0]", part):
            raise DataError(f"{folder / RECORD} names {name!r}, which is no file of this folder")
        path /= part
        if path.is_symlink():
            raise DataError(f"{path} is a link, and links are not followed here")
    if not path.is_file():
        raise DataError(f"{path} {'is not a file' if path.exists() else 'is missing'}")
    return path


def _check_file(path: Path, written: _File, content: bool) -> None:
    try:
        size = path.stat().st_size
        if size != written.size:
            what = "is cut short" if size < written.size else "has grown"
            raise DataError(f"{path} {what} ({size} of {written.size} bytes)")
        if content and file_hash(path) != written.sha256:
            raise DataError(f"{path} is damaged (sha256 differs from what was written)")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None


def _files(folder: Path) -> dict[str, dict[str, object]]:
    paths = sorted(path for path in folder.rglob("*") if not path.is_dir())
    return {
        path.relative_to(folder).as_posix(): {"sha256": file_hash(path), "size": path.stat().st_size} for path in paths
    }


def _write_moments(path: Path, state: TrainState) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    moments = {FIRST + name: array for name, array in state.first_moments.items()}
    moments |= {SECOND + name: array for name, array in state.second_moments.items()}
    try:
        # order="C": save_file (0.8) takes the bytes as they lie, so a transposed view would be read as another matrix.
        save_file({name: np.asarray(array, order="C") for name, array in moments.items()}, str(path))
    except SafetensorError as error:
        raise StorageError(f"{path} was not written: {error}; check the folder, or give another one") from error


Header = dict[str, tuple[str, tuple[int, ...]]]  # tensor -> (dtype, shape)


def _check_fit(checkpoint: Checkpoint) -> None:
    """Raises DataError unless every parameter is stored in float32, with two moments of its shape and no others."""
    path = checkpoint.folder / MOMENTS
    moments = _header(path)
    stored: Header = {}
    for name in checkpoint.weights:
        stored |= _header(checkpoint.folder / name)
    if missing := sorted(set(checkpoint.parameters) - stored.keys()):
        raise DataError(f"{checkpoint.model} lacks {missing[0]}, which is trained")
    wanted = {kind + name: stored[name] for kind in (FIRST, SECOND) for name in checkpoint.parameters}
    if other := sorted(wanted.keys() ^ moments.keys()):
        raise DataError(f"{path} {'lacks' if other[0] in wanted else 'also holds'} {other[0]}")
    for name, (dtype, shape) in wanted.items():
        parameter = name.split("/", 1)[1]
        if dtype != "F32":
            raise DataError(f"{checkpoint.model} holds {parameter} in {dtype}, not in float32")
        if moments[name] != (dtype, shape):
            raise DataError(f"{path} holds {name} as {moments[name]}, but {MODEL}/ {parameter} as {(dtype, shape)}")


def _header(path: Path) -> Header:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} cannot be read ({error})") from None


def _load(path: Path, wanted: set[str]) -> dict[str, FloatArray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys() if name in wanted}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} cannot be read ({error})") from None
