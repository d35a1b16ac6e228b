"""The record of a benchmark: machine, versions, commit, settings and who runs, before its first sample."""

from __future__ import annotations

import platform
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.config import BenchmarkConfig
from benchmarks.contenders import parts_of
from benchmarks.results import SCHEMA
from benchmarks.scaling import threads_told
from benchmarks.work import Work
from gsm8k_core.files import read_json
from gsm8k_core.machine import ROOT
from gsm8k_core.models.find import identity
from gsm8k_core.models.folder import shape_of
from gsm8k_core.training.runs import host, versions
from gsm8k_core.types import Choice, DataError, StorageError


def new_record(config: BenchmarkConfig, work: Work, devices: Mapping[str, Choice], data: str) -> dict[str, Any]:
    """All but the samples."""
    try:
        shape = shape_of(read_json(work.source.folder / "config.json"))
    except KeyError as error:
        raise DataError(f"{work.source.name}: its config.json has no {error}; take a Llama-like model") from error
    contenders = {
        name: {
            "device": device.name,
            "reason": device.reason,
            **({"world": parts_of(name)[1]} if config.worlds else {}),
            "updates": [
                {
                    "rows": len(rows),
                    "tokens": sum(len(row.tokens) for row in rows),
                    "targets": sum(row.example.num_targets for row in rows),
                }
                for rows in work.updates(name)
            ],
        }
        for name, device in devices.items()
    }
    # A result is shared: a folder's own name is enough, and where it was written says nothing of the measurement.
    told = config.model_dump(mode="json", exclude={"results", "output"})
    told |= {"model": own_name(config.model), "data": own_name(config.data)}
    return {
        "schema": SCHEMA,
        "mode": config.mode,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": machine(),
        "versions": versions("trl"),
        "commit": commit(),
        "config": told,
        "model": {"name": own_name(work.source.name), "hash": identity(work.source), "shape": asdict(shape)},
        "data": own_name(data),
        "contenders": contenders,
        "prompts": {"tokens": [len(prompt) for prompt in work.prompts], "shared": work.num_shared},
        **({"threads": threads_told(devices, config.worlds)} if config.worlds else {}),
        "samples": [],
        "scores": {},
        "texts": {},
        "failures": {},
    }


def own_name(asked: str) -> str:
    """A folder's own name; anything else as it is."""
    return Path(asked).resolve().name if Path(asked).is_dir() else asked


def new_path(folder: Path, mode: str) -> Path:
    """A file that is not there yet. Raises StorageError where the folder cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise StorageError(
            f"--results {folder} cannot be written to ({error.strerror}); give another folder"
        ) from error
    stem = f"{mode}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = [stem, *(f"{stem}-{number}" for number in range(2, 100))]
    return next(path for path in (folder / f"{name}.json" for name in names) if not path.exists())


def machine() -> dict[str, Any]:
    """This machine, in a result that is shared."""
    return {**host(), "os": platform.platform(), "cpu": _cpu(), "memory": _memory()}


def _cpu() -> str:
    """The processor's name, as the system has it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    if platform.system() == "Darwin":
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    return platform.processor() or "unknown"


def _memory() -> int:
    import psutil  # here, not above: a report needs none

    return int(psutil.virtual_memory().total)


def commit() -> dict[str, Any] | None:
    """The commit and whether the tree, but for results, was changed since; None outside a checkout."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return None if commit is None else {"hash": commit, "changed": bool(changes)}
