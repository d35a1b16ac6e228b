"""`doctor`: what this machine can do, what `auto` picks on it, and the command that mends what is wrong.

Each backend is looked at in a process of its own, so that a broken or hanging import costs a line and no more.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

from rich.table import Table
from rich.text import Text

import backends
from gsm8k_core import machine
from gsm8k_core.config import DoctorConfig
from gsm8k_core.machine import Finding, Report
from gsm8k_core.sources import AUTO, Pair, choose_pair
from gsm8k_core.tracking import Terminal, printable
from gsm8k_core.types import EXIT_OK, Choice, PreflightError
from verbs import Context

BACKEND_SECONDS = 13.0  # to import and measure; about 8 on two slow cores
STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "problem": "bold red"}
UNKNOWN = Choice("unknown", "the backend could not be looked at")


@dataclass(frozen=True, slots=True)
class Looked:
    """What was found of one backend; `report` is None when it does not work here."""

    findings: list[Finding]
    report: Report | None


def run(config: DoctorConfig, context: Context) -> int:
    """The verb."""
    terminal = context.terminal
    terminal.say("Looking at this machine; this takes about ten seconds.")
    here = backends.detect()
    chosen = backends.choose(here)
    with ThreadPoolExecutor() as pool:
        pair_later = pool.submit(choose_pair, AUTO, AUTO, "main", lambda asked: None)
        hub_later = pool.submit(machine.reach_hub)
        looked = _look_at_all(here, chosen.name)
    pair = pair_later.result()
    findings = machine.system(here.rosetta) + machine.packages() + [machine.memory()]
    findings.append(machine.disk(config.output_dir or Path("runs")))
    findings += [finding for each in looked.values() for finding in each.findings]
    findings += [*machine.caches(), hub_later.result(), machine.chosen_model(pair)]
    auto = _auto(chosen, looked[chosen.name].report, pair)
    obstacles = [finding for finding in findings if _stops_training(finding, chosen.name)]
    _show(terminal, findings, auto, obstacles)
    terminal.result(
        {
            "ok": not obstacles,
            "findings": machine.as_json(findings),
            "auto": {name: choice.name for name, choice in auto.items()},
            "reasons": {name: choice.reason for name, choice in auto.items()},
        }
    )
    return PreflightError.exit_code if obstacles else EXIT_OK
