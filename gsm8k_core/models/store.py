"""Model folders that are made from others: once each, kept in one place, made again when they are damaged."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from gsm8k_core.files import home_path, make_folder, remove_stale
from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.types import DataError, StorageError


def cache_folder() -> Path:
    """Where converted models are kept: $GSM8K_CACHE, else the platform's cache."""
    if chosen := os.environ.get("GSM8K_CACHE"):
        return home_path(chosen, "GSM8K_CACHE")
    if sys.platform == "darwin":
        return home_path("~/Library/Caches", "HOME") / "gsm8k-finetune"
    base = home_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "XDG_CACHE_HOME")
    return base / "gsm8k-finetune"


def short_hash(identity: str) -> str:
    """16 digits of sha256: a folder's name, by what it is made of."""
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def made_once(kind: str, name: str, write: Callable[[Path], None], quantized: bool = False) -> Path:
    """The folder `kind`/`name` of the cache; where it is absent or damaged, `write` makes it, whole or not at all."""
    folder = cache_folder() / kind / name
    remove_stale(folder)  # a process that was killed while another one wrote it left as much again
    if folder.is_dir():
        try:
            ModelFolder(folder).check(quantized)
            return folder
        except DataError:  # damaged since it was written: it is only a cache, so write it again
            shutil.rmtree(folder, ignore_errors=True)
    try:
        make_folder(folder.parent, parents=True)
        write(folder)
    except StorageError as error:
        if not folder.is_dir():  # else another process was first, and wrote the same
            raise StorageError(f"{error} (GSM8K_CACHE names the cache)") from error
    return folder
