"""Files and folders: JSON read with care, files and folders written whole or not at all.

What is written has a temporary name beside its own, is synced to the disk and renamed once, so that a kill
or a full disk at any moment leaves what was there before, or all of the new.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gsm8k_core.types import DataError, StorageError

MAX_JSON_BYTES = 64 << 20
CHUNK_BYTES = 1 << 20
STALE_SECONDS = 3600.0  # no folder takes an hour to write
WINDOWS = sys.platform == "win32"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the folder; DataError with the file's name for anything else."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise DataError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB; it is not a model's JSON file")
        value = json.loads(path.read_bytes(), parse_constant=_no_constants)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({error}); download or save the model again") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the folder") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no JSON object; download or save the model again")
    return value


def _no_constants(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def write_json(path: Path, value: object, indent: int | None = 2) -> None:
    """Writes or replaces a JSON file in one step: readers see the old content or the new, never a part.

    Raises StorageError when it cannot be written, and ValueError for a number that JSON does not have.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
    # Half a surrogate pair (from a file name, say) has no UTF-8: Python's escape of it is JSON's.
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes or replaces a file in one step. Raises StorageError when it cannot be written."""
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise StorageError(_storage_message(path, error)) from error
        raise


def file_hash(path: Path) -> str:
    """sha256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def matching(folder: Path, patterns: tuple[str, ...]) -> set[Path]:
    """The files (or links to files, as in the Hub's cache) of the folder itself that match a pattern."""
    return {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}


def refuse_links(*paths: Path) -> None:
    """Raises StorageError for a path that is a link: what is written in a folder of ours stays in it."""
    for path in paths:
        if path.is_symlink():
            raise StorageError(f"{path} is a link, and is not written through; put the file or folder itself there")


@contextmanager
def new_folder(directory: Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes `directory` when the block ends, and vanishes when it fails."""
    if os.path.lexists(directory):  # lexists: a dangling link is somebody's too, and is not followed
        raise StorageError(f"{directory} exists already; give another folder, or remove it")
    folder = _temporary(directory)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(directory)
        folder.mkdir()
        yield folder
        _open_up(folder)
        _sync_tree(folder)
        os.rename(folder, directory)
        sync(directory.parent)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        # write_json's error names the temporary folder, which nobody knows.
        cause = error.__cause__ if isinstance(error, StorageError) else error
        if isinstance(cause, Exception) and (isinstance(cause, OSError) or _is_full(cause)):
            raise StorageError(_storage_message(directory, cause)) from error
        raise


def remove_folder(folder: Path) -> None:
    """Removes a folder. It leaves its name in one step: a kill leaves it whole, or as a temporary folder."""
    doomed = _temporary(folder)
    try:
        os.rename(folder, doomed)
        sync(folder.parent)
    except OSError as error:
        raise StorageError(f"{folder} was not removed: {error.strerror}; check the folder") from error
    shutil.rmtree(doomed, ignore_errors=True)


def remove_leftovers(parent: Path, name: re.Pattern[str]) -> None:
    """Removes temporary folders for names like this, however young: only for a parent where nobody else writes."""
    for path in parent.glob(".*.tmp"):
        ours = re.fullmatch(r"\.(.+)\.[0-9]+-[0-9a-f]{8}\.tmp", path.name)
        if ours and name.fullmatch(ours[1]) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def _temporary(path: Path) -> Path:
    return path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    if WINDOWS and path.is_dir():
        return  # a folder cannot be opened there
    # Windows syncs only what is open for writing; other systems refuse to open a folder so.
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):  # some network disks
            raise
    finally:
        os.close(handle)


def _open_up(folder: Path) -> None:
    """Give every file the rights that the umask leaves, as the folder has them: safetensors writes its own 0600."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and not WINDOWS:
            path.chmod(folder.stat().st_mode & 0o666)


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            sync(Path(root) / name)
        sync(Path(root))


def _remove_stale(directory: Path) -> None:
    """Temporary folders that a killed process left here an hour ago or more."""
    for path in directory.parent.glob(f".{glob.escape(directory.name)}.*-*.tmp"):
        with suppress(OSError):  # it was another process's, which has just renamed it
            if not path.is_symlink() and time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _is_full(error: Exception) -> bool:
    """safetensors and MLX have their own exception types for a failed write."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(text in str(error) for text in ("No space left", "StorageFull", "code: 28"))


def _storage_message(directory: Path, error: Exception) -> str:
    if _is_full(error):
        return f"{directory} was not written: the disk is full; free some space or give another folder"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{directory} was not written: {reason}; check the folder, or give another one"
