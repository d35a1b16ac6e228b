"""The run directory: what it holds, how it is claimed, and its manifest.

run.json        config, versions, hashes, every automatic choice with its reason, the outcome
metrics.jsonl   one event a line
model/          the trained model, a Hugging Face folder
checkpoints/    models saved on the way (--save-steps)
logs/           evaluations: a record per problem
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gsm8k_core.types import StorageError

SCHEMA = 1
MANIFEST = "run.json"
PACKAGES = ("torch", "transformers", "accelerate", "mlx", "mlx-lm", "numpy", "tokenizers", "safetensors", "datasets")


def write_json(path: Path, value: object) -> None:
    """Replace a JSON file in one step: readers see the old content or the new, never a part."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror}); give another --output-dir") from error


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a run folder, or None where there is none that can be read."""
    try:
        value = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def run_of_model(folder: Path) -> Path | None:
    """The run folder that a model folder belongs to (run/model, run/checkpoints/update-N), or None."""
    parents = folder.resolve().parents
    return next((parent for parent in parents[:2] if (parent / MANIFEST).is_file()), None)


def default_folder(model: str, now: datetime.datetime | None = None) -> Path:
    """runs/<date>-<time>-<model>."""
    stamp = (now or datetime.datetime.now()).strftime("%Y%m%d-%H%M%S")
    tail = re.sub(r"[^A-Za-z0-9.]+", "-", model.rstrip("/").split("/")[-1]).strip("-.") or "model"
    return Path("runs") / f"{stamp}-{tail}"


def versions() -> dict[str, str]:
    """Versions of what decides the numbers, those that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def host() -> dict[str, object]:
    return {"system": platform.system(), "machine": platform.machine(), "cores": os.cpu_count() or 1}


def code_hash() -> str:
    """sha256 over our own source: an evaluation is reused only by the code that made it."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for folder in ("gsm8k_core", "backends"):
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


class Run:
    """A claimed run folder."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def record(self, **values: object) -> None:
        """Add to the manifest and write it."""
        self.manifest.update(values)
        write_json(self.folder / MANIFEST, self.manifest)


def create(folder: Path, first: Mapping[str, object]) -> Run:
    """Claim a new run folder. Raises StorageError when it holds a run or a model, or cannot be written."""
    _refuse_taken(folder)
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    manifest = {
        "schema": SCHEMA, "status": "running", "pid": os.getpid(), "started": started, "command": sys.argv,
        "versions": versions(), "host": host(), "code": code_hash(), **first,
    }  # fmt: skip
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        # O_EXCL: of two runs started at once, one gets the folder and the other the error below.
        os.close(os.open(folder / MANIFEST, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        _refuse_taken(folder)
        raise StorageError(f"{folder} is not a folder; give another --output-dir") from None
    except OSError as error:
        raise StorageError(f"{folder} cannot be written ({error.strerror}); give another --output-dir") from error
    run = Run(folder, manifest)
    run.record()
    return run


def _refuse_taken(folder: Path) -> None:
    if os.path.lexists(folder / MANIFEST):
        manifest = read_manifest(folder) or {}
        what = f"a run ({manifest.get('status', 'starting')}, pid {manifest.get('pid', 'unknown')})"
    elif os.path.lexists(folder / "model"):
        what = "a folder named model"
    else:
        return
    raise StorageError(f"{folder} already holds {what}; give a new folder: --output-dir {folder}-2")
