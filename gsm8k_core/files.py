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
import stat
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from gsm8k_core.types import DataError, StorageError

MAX_JSON_BYTES = 64 << 20
MAX_WEIGHTS_BYTES = 1 << 40
MAX_LINES_BYTES = 1 << 30  # of a JSONL file: a hundred times the largest that is ours
CHUNK_BYTES = 1 << 20
LONGEST_NAME = 60  # characters
STALE_SECONDS = 3600.0  # no folder takes an hour to write
WINDOWS = sys.platform == "win32"
SPECIAL = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))


# --- read with care -------------------------------------------------------------------------------------------------


def open_plain(path: Path, most: int = MAX_JSON_BYTES) -> IO[bytes]:
    """A regular file of at most `most` bytes, open for reading: nothing else has an end for certain.

    Raises DataError for any other, without waiting for a pipe's other end, and OSError when it cannot be opened.
    """
    _refuse_special(path, os.stat(path), most)
    file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")
    try:
        _refuse_special(path, os.fstat(file.fileno()), most)  # it may have become another since
    except DataError:
        file.close()
        raise
    return file


def read_plain(path: Path, most: int = MAX_JSON_BYTES) -> bytes:
    """All of a regular file. Raises DataError where it is none, or is or grows larger than `most` bytes; OSError."""
    with open_plain(path, most) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise DataError(_too_large(path, most))
    return content


def _refuse_special(path: Path, found: os.stat_result, most: int) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{path} is {_special(found.st_mode)}, not a plain file; put a plain file there")
    if found.st_size > most:
        raise DataError(_too_large(path, most))


def _special(mode: int) -> str:
    return next((name for is_one, name in SPECIAL if is_one(mode)), "a device")


def _too_large(path: Path, most: int) -> str:
    return f"{path} is larger than {most >> 20} MiB, the most that is read of such a file; check where it comes from"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the folder; DataError with the file's name for anything else."""
    try:
        value = json.loads(read_plain(path), parse_constant=_no_constants)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({error}); download or save the model again") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {advice(error, 'check the folder')}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no JSON object; download or save the model again")
    return value


def advice(error: Exception, otherwise: str) -> str:
    """What to do about a file that cannot be read: where the system denies it, its content is not to blame."""
    return "check its rights" if isinstance(error, PermissionError) else otherwise


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


def plain_name(text: str, keeps: Callable[[str], bool] = lambda letter: True) -> str:
    """What of a text may stand in a file's name, or a folder's, on every system: letters and digits of every script,
    those of them that `keeps` says, and points; one dash for what stands between, and of a long one its end."""
    kept = ""
    for letter in unicodedata.normalize("NFC", text):  # each accent in its letter
        kept += letter if letter == "." or (_is_letter(kept[-1:], letter) and keeps(letter)) else "-"
    return re.sub("-+", "-", kept).strip("-.")[-LONGEST_NAME:].lstrip("-.")


def _is_letter(before: str, letter: str) -> bool:
    """A digit, a letter, or a mark on one. What chooses a picture's colour is a mark as well, and is not seen."""
    is_mark = unicodedata.category(letter).startswith("M") and not "\ufe00" <= letter <= "\ufe0f"
    return letter.isalnum() or (is_mark and before not in "-.")


def home_path(text: str, variable: str) -> Path:
    """A path that may begin with `~`, from a variable of the environment. StorageError where there is no such home."""
    path = os.path.expanduser(text)
    if path.startswith("~"):
        raise StorageError(f"{variable}: there is no home folder for {text}; set {variable} to a folder's full path")
    return Path(path)


def file_hash(path: Path) -> str:
    """sha256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def same_files(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files, byte for byte; not where one cannot be read."""
    try:
        names = sorted(os.listdir(one))
        return names == sorted(os.listdir(other)) and all(_same_content(one / name, other / name) for name in names)
    except (OSError, DataError):
        return False


def _same_content(one: Path, other: Path) -> bool:
    """Read up to the first difference."""
    with open_plain(one, MAX_WEIGHTS_BYTES) as left, open_plain(other, MAX_WEIGHTS_BYTES) as right:
        while (chunk := left.read(CHUNK_BYTES)) == right.read(CHUNK_BYTES):
            if not chunk:
                return True
    return False


def names_hash(folder: Path, patterns: tuple[str, ...]) -> str:
    """sha256 over name and content of the folder's files that match a pattern."""
    total = hashlib.sha256()
    for path in sorted(matching(folder, patterns)):
        total.update(f"{path.name}\0{file_hash(path)}\n".encode())
    return total.hexdigest()


def matching(folder: Path, patterns: tuple[str, ...]) -> set[Path]:
    """The files (or links to files, as in the Hub's cache) of the folder itself that match a pattern."""
    return {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}


def refuse_links(*paths: Path) -> None:
    """Raises StorageError for a path that is a link, a pipe or a device: what is written in a folder stays in it."""
    for path in paths:
        mode = path.lstat().st_mode if os.path.lexists(path) else stat.S_IFREG
        if stat.S_ISLNK(mode):
            raise StorageError(f"{path} is a link, and is not written through; put the file or folder itself there")
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise StorageError(f"{path} is {_special(mode)}, not a file or folder, and is not written to; remove it")


def check_strangers(folder: Path, *below: str) -> None:
    """Raises DataError for a link that leads out of a stranger's folder (or these folders in it), a pipe or a device.

    What is read there is copied into what a person publishes. The Hub's cache keeps its files as links to the blobs of
    the same repository, and those are the folder's own.
    """
    home = os.path.realpath(folder)
    for part in ("", *below):
        if not os.path.isdir(os.path.join(home, part)):
            continue
        for name in sorted(os.listdir(os.path.join(home, part))):
            found = _inside(folder, home, os.path.join(part, name))
            if os.path.exists(found) and not os.path.isdir(found) and not os.path.isfile(found):
                what = _special(os.stat(found).st_mode)
                raise DataError(f"{folder / part / name} is {what}, not a plain file; remove it from the folder")


def copy_plain(source: Path, target: Path, names: Iterable[str], most: int = MAX_JSON_BYTES) -> None:
    """Copies those of the named files that `source` has. Raises DataError for a link out of it and no plain file."""
    home = os.path.realpath(source)
    for name in names:
        if os.path.lexists(source / name):
            with open_plain(Path(_inside(source, home, name)), most) as file, (target / name).open("xb") as copy:
                shutil.copyfileobj(file, copy, CHUNK_BYTES)


def _inside(folder: Path, home: str, name: str) -> str:
    """Where a name of the folder really leads to: `home` is the folder's own real path."""
    found, own = os.path.realpath(os.path.join(home, name)), [home]
    snapshots = Path(home).parent
    if snapshots.name == "snapshots" and snapshots.parent.name.startswith(("models--", "datasets--")):
        own.append(str(snapshots.parent / "blobs"))  # as it is called: where it is a link, it leads elsewhere
    if not any(found.startswith(place + os.sep) for place in own):
        raise DataError(
            f"{folder / name} is a link out of the folder, to {found}; it is not followed: put the file itself there"
        )
    return found


@contextmanager
def new_folder(directory: Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes `directory` when the block ends, and vanishes when it fails.

    Its parent has to be there: a run's folder that was removed meanwhile is not made again.
    """
    if os.path.lexists(directory):  # lexists: a dangling link is somebody's too, and is not followed
        raise StorageError(f"{directory} exists already; give another folder, or remove it")
    folder = _temporary(directory)
    try:
        remove_stale(directory)
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
        if isinstance(cause, Exception) and (isinstance(cause, OSError) or _is_full(cause) or _of_the_system(cause)):
            raise StorageError(_storage_message(directory, cause)) from error
        raise


def make_folder(folder: Path, parents: bool = False) -> None:
    """Makes a folder where there is none, known to the disk. Raises StorageError when it cannot be made."""
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=parents, exist_ok=True)
        for path in missing:
            sync(path.parent)
    except OSError as error:
        raise StorageError(_storage_message(folder, error)) from error


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
    """Removes what killed processes left of writing names like this, however young: where nobody else may write."""
    for path in leftovers(parent, name):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def leftovers(parent: Path, name: re.Pattern[str]) -> list[Path]:
    """Temporary files and folders for names like this. No links."""
    found = {path: re.fullmatch(r"\.(.+)\.[0-9]+-[0-9a-f]{8}\.tmp", path.name) for path in parent.glob(".*.tmp")}
    return [path for path, ours in found.items() if ours and name.fullmatch(ours[1]) and not path.is_symlink()]


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


def remove_stale(directory: Path) -> None:
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


def _of_the_system(error: Exception) -> str:
    """What the system said where safetensors or MLX say that they could not write; empty for any other error."""
    number = re.search(r"(?:os error |code: )([0-9]{1,3})\b", str(error))
    return os.strerror(int(number[1])) if number and not isinstance(error, OSError) else ""


def _storage_message(directory: Path, error: Exception) -> str:
    if _is_full(error):
        return f"{directory} was not written: the disk is full; free some space or give another folder"
    found = _of_the_system(error)
    reason = error.strerror if isinstance(error, OSError) and error.strerror else found or str(error)
    return f"{directory} was not written: {reason}; check the folder, or give another one"
