"""`benchmark mac-report`: doctor, parity and a short benchmark in one JSON file, for the first with a Mac.

It ends with something in every case: each part is a process of its own with a ceiling of time, and one that fails,
crashes, hangs or talks nonsense is in the file with its words, and the next part still runs.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import backends
from benchmarks.config import BenchmarkConfig
from benchmarks.record import commit, machine
from benchmarks.work import hardware
from gsm8k_core import __version__
from gsm8k_core.files import MAX_JSON_BYTES, read_plain, write_json
from gsm8k_core.machine import ROOT
from gsm8k_core.processes import end, end_in_order, ending
from gsm8k_core.tracking.terminal import clock, printable
from gsm8k_core.training.runs import versions
from gsm8k_core.types import EXIT_OK, GSM8KError
from verbs import Context

NAME = "mac-report.json"
SCHEMA = 2
WORDS = 4000  # characters that are kept of the last words of a part that failed
# Device, as the benchmark names it -> what `parity` checks there.
PARITY = {
    "metal": ("--backend", "mlx", "--device", "gpu"),
    "mlx-cuda": ("--backend", "mlx", "--device", "gpu"),
    "mps": ("--backend", "torch", "--device", "mps"),
    "cuda": ("--backend", "torch", "--device", "cuda"),
}
SEND = "an issue of this project, with this file attached and one line on what you saw"


@dataclass(frozen=True, slots=True)
class Part:
    """One command. After `seconds` it is ended: a part that hangs must not cost the others."""

    arguments: tuple[str, ...]
    seconds: float


def parts(devices: Collection[str]) -> dict[str, Part]:
    """About five minutes together; the ceilings are twice what each should need."""
    there = {device: flags for device, flags in PARITY.items() if device in devices} or {"here": ()}
    small = ("--rounds", "3", "--max-time")
    # MLX's decoding: without MLX there is none.
    copies = {"key-copies": Part(("benchmark", "key-copies"), 45.0)} if backends.installed("mlx") else {}
    return {
        "doctor": Part(("doctor",), 75.0),
        **{f"parity {device}": Part(("parity", *flags), 180.0) for device, flags in there.items()},
        **copies,
        "train": Part(("benchmark", "train", *small, "75s", "--rows", "24", "--held-out", "24"), 180.0),
        "generate": Part(("benchmark", "generate", *small, "45s", "--problems", "16", "--max-new-tokens", "64"), 120.0),
    }


def mac_report(config: BenchmarkConfig, context: Context) -> int:
    """Run the parts in turn. The file is written before the first and after each: a later one may be interrupted."""
    path, plan, say = Path(config.output or NAME), parts(hardware().devices), context.terminal.say
    found: dict[str, Any] = {"schema": SCHEMA, "version": __version__, "commit": commit()}
    found |= {"started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "system": platform.platform(), "host": machine()}
    found |= {"versions": versions("trl"), "parts": {}, "failed": {}}
    write_json(path, found)
    # Generated problems: no part waits for a network, and everyone's report is of the same rows.
    data = config.data if "data" in context.explicit else "generated"
    most = sum(part.seconds for part in plan.values())
    say(f"{len(plan)} parts, each a process of its own: about five minutes, {clock(most)} at most")
    with tempfile.TemporaryDirectory(prefix="mac-report-", ignore_cleanup_errors=True) as scratch:
        for number, (name, part) in enumerate(plan.items(), start=1):
            folder = Path(scratch) / str(number)
            measured = ("--results", str(folder / "results"), "--model", config.model, "--data", data)
            arguments = [*part.arguments, *(measured if part.arguments[0] == "benchmark" else ())]
            say(f"{name:<12} python cli.py {' '.join(part.arguments)}")
            outcome: dict[str, Any] = {"command": " ".join(part.arguments), "failure": "interrupted"}
            found["parts"][name] = outcome
            try:
                _run(arguments, part.seconds, folder, outcome)
            except OSError as error:  # no room for its files, or no process for it
                outcome["failure"] = f"could not be run: {error}"
            finally:
                if outcome["failure"]:
                    found["failed"][name] = outcome["failure"]
                write_json(path, found)
            say(f"{'':<12} {_in_a_line(outcome)}, {clock(context.elapsed())} in all")
    for name, why in found["failed"].items():
        say(f"failed       {name}: {why}; its words are in the file")
    say(f"written      {path}: look through it first; it names this machine's processor, versions and paths")
    say(f"send it      to {SEND}")
    context.terminal.result({"written": str(path), **found})
    return EXIT_OK


def _in_a_line(outcome: Mapping[str, Any]) -> str:
    said = outcome.get("said", "").splitlines()
    return "done" if not outcome["failure"] else " | ".join([outcome["failure"], *said[-1:]])[:300]


def _run(arguments: list[str], seconds: float, folder: Path, outcome: dict[str, Any]) -> None:
    """Fills `outcome`: how it ended, its one JSON object, else its last words and what it had written by then."""
    command = [sys.executable, str(ROOT / "cli.py"), *arguments, "--json", "--verbose"]
    folder.mkdir()
    start = time.monotonic()
    # Files, no pipes: whatever the part leaves behind can hold a pipe open, and then nobody sees its end.
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as said:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=said, start_new_session=True)
        try:
            code = child.wait(seconds)
            outcome["failure"] = ending(code) if code else ""
        except subprocess.TimeoutExpired:
            end_in_order(child)  # its contender is ended by it, and the scratch folder, which holds weights, removed
            outcome["failure"] = f"no end within {seconds:.0f} s"
        except BaseException:
            end_in_order(child)
            raise
        finally:
            end(child)
    outcome |= {"code": child.returncode, "seconds": round(time.monotonic() - start, 1)}
    outcome["result"] = _object(folder / "stdout")
    if outcome["result"] is None and not outcome["failure"]:
        outcome["failure"] = "exit code 0, and no JSON object on stdout"
    if outcome["failure"]:
        last = [_last_words(folder / name) for name in ("stderr", "stdout")]
        outcome["said"] = last[0] if outcome["result"] is not None else "\n".join(filter(None, reversed(last)))
        outcome["kept"] = [value for path in sorted((folder / "results").glob("*.json")) if (value := _object(path))]


def _object(path: Path) -> dict[str, Any] | None:
    """The JSON object that a part printed or wrote; None where it is none, or holds what JSON does not have."""

    try:
        value = json.loads(read_plain(path, MAX_JSON_BYTES))
        json.dumps(value, allow_nan=False)
    except (OSError, ValueError, RecursionError, GSM8KError):
        return None
    return value if isinstance(value, dict) else None


def _last_words(path: Path) -> str:
    """The end of what it said."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - WORDS))
        text = file.read(WORDS).decode("utf-8", errors="replace")
    return "\n".join(printable(line) for line in text.strip().splitlines())
