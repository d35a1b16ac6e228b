"""`benchmark mac-report`: doctor, parity and a benchmark of five minutes in one JSON file, for the first with a Mac."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.config import BenchmarkConfig
from gsm8k_core.files import write_json
from gsm8k_core.machine import ROOT
from gsm8k_core.tracking.terminal import clock
from gsm8k_core.types import EXIT_OK
from verbs import Context

NAME = "mac-report.json"
LIMIT_SECONDS = 1200.0  # of one part: parity needs a minute, a benchmark's one round is never cut short
SMALL = ("--rounds", "3", "--max-time", "150s")
# Part -> the arguments of its command.
PARTS: dict[str, Sequence[str]] = {
    "doctor": ("doctor",),
    "parity": ("parity",),
    "train": ("benchmark", "train", *SMALL, "--rows", "24", "--held-out", "24"),
    "generate": ("benchmark", "generate", *SMALL, "--problems", "16", "--max-new-tokens", "64"),
}


def mac_report(config: BenchmarkConfig, context: Context) -> int:
    """Each part in a process of its own; one that fails is in the file with its words, and the others go on."""
    path = Path(config.output or NAME)
    found: dict[str, Any] = {"schema": 1, "system": platform.platform(), "parts": {}}
    with tempfile.TemporaryDirectory(prefix="mac-report-") as scratch:
        measured = ("--results", scratch, "--model", config.model, "--data", config.data)
        for name, arguments in PARTS.items():
            context.terminal.say(f"{name:<9} python cli.py {' '.join(arguments)}")
            found["parts"][name] = _part([*arguments, *(measured if arguments[0] == "benchmark" else ())])
            write_json(path, found)  # after each part: a later one may be interrupted
            code = found["parts"][name]["code"]
            context.terminal.say(f"{'':<9} exit code {code}, {clock(context.elapsed())} in all")
    context.terminal.say(
        f"written  {path}: look through it before you share it; it names this machine's processor, versions and paths"
    )
    context.terminal.result({"written": str(path), **found})
    return EXIT_OK


def _part(arguments: Sequence[str]) -> dict[str, Any]:
    """Exit code, the one JSON object, and the last words where there is none."""
    command = [sys.executable, str(ROOT / "cli.py"), *arguments, "--json"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, said = child.communicate(timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        child.terminate()  # which ends its contender too; SIGKILL would leave that at work beside the next part
        child.communicate()
        return {"code": None, "result": None, "said": f"no end within {LIMIT_SECONDS:.0f} s"}
    try:
        result = json.loads(out)
    except ValueError:
        result = None
    words = "" if result is not None else "\n".join(said.strip().splitlines()[-3:])
    return {"code": child.returncode, "result": result, "said": words}
