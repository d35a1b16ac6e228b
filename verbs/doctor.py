"""`doctor`: what this machine can do, what `auto` picks on it, and the command that mends what is wrong.

Each backend is looked at in a process of its own, so that a broken or hanging import costs a line and no more.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

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

IMPORT_SECONDS = 20.0  # about 8 on two slow cores; the first import after an installation takes longer
MEASURE_SECONDS = 5.0
STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "problem": "bold red"}
UNKNOWN = Choice("unknown", "the backend could not be looked at")


def run(config: DoctorConfig, context: Context) -> int:
    """The verb. A finding is a problem when `train` could not start because of it, and nothing else is."""
    terminal = context.terminal
    terminal.say("Looking at this machine; that takes about ten seconds.\n")
    here = backends.detect()
    chosen = backends.choose(here)
    with ThreadPoolExecutor() as pool:
        pair_later = pool.submit(choose_pair, AUTO, AUTO, "main", lambda asked: None)
        hub_later = pool.submit(machine.reach_hub)
        reports = _reports(sorted(here.installed))
    pair = pair_later.result()
    findings = [*machine.system(here.rosetta), *machine.packages(), machine.memory()]
    findings.append(machine.disk(config.output_dir or Path("runs")))
    for name in backends.PROVIDERS:
        findings += _of_backend(name, reports, here, chosen.name)
    findings += [*machine.caches(), hub_later.result(), *machine.missing_model(pair)]
    auto = _auto(chosen, reports.get(chosen.name), pair)
    problems = [finding for finding in findings if finding.status == "problem"]
    _show(terminal, findings, auto, problems)
    terminal.result(
        {
            "ok": not problems,
            "findings": [asdict(finding) for finding in findings],
            "auto": {name: None if choice is UNKNOWN else choice.name for name, choice in auto.items()},
            "reasons": {name: choice.reason for name, choice in auto.items()},
        }
    )
    return PreflightError.exit_code if problems else EXIT_OK


def _auto(chosen: Choice, report: Report | str | None, pair: Pair) -> dict[str, Choice]:
    picks = report.choices if isinstance(report, Report) else {}
    return {
        "backend": chosen,
        "device": picks.get("device", UNKNOWN),
        "dtype": picks.get("dtype", UNKNOWN),
        "model": pair.model_choice,
        "data": pair.data_choice,
    }


# --- backends ---------------------------------------------------------------------------------------------------


def _of_backend(
    name: str, reports: Mapping[str, Report | str], here: backends.Machine, chosen: str
) -> Sequence[Finding]:
    report = reports.get(name)
    if isinstance(report, Report):
        return report.findings
    wanted = backends.choose(replace(here, installed=frozenset(backends.PROVIDERS))).name
    if report is None:
        status = "problem" if name == chosen else "warning" if name == wanted else "note"
        reason = f"it needs {' and '.join(backends.REQUIRES[name])}"
        return [Finding(name, status, "not installed", reason, backends.INSTALL[name])]
    works = [f"--backend {other}" for other, found in reports.items() if isinstance(found, Report)]
    mend = "; meanwhile ".join([backends.INSTALL[name], *works])
    return [Finding(name, "problem" if name == chosen else "warning", "does not work here", report, mend)]


def _reports(names: Sequence[str]) -> dict[str, Report | str]:
    """What each backend's own process found, or why it found nothing."""
    imported, turn = threading.Barrier(len(names)) if names else None, threading.Lock()
    with ThreadPoolExecutor(max(1, len(names))) as pool:
        return dict(zip(names, pool.map(lambda name: _ask(name, imported, turn), names), strict=True))


def _ask(name: str, imported: threading.Barrier | None, turn: threading.Lock) -> Report | str:
    """Imports go on together; the rates are measured one after the other, when all imports are done."""
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        child = subprocess.Popen(
            [sys.executable, "-m", f"backends.{name}.doctor"], cwd=machine.ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, errors="replace",
        )  # fmt: skip
        assert child.stdout is not None
        with _limit(child, IMPORT_SECONDS) as late:
            ready = any(line.strip() == machine.READY for line in iter(child.stdout.readline, ""))
        if imported is not None:
            with suppress(threading.BrokenBarrierError):
                imported.wait(IMPORT_SECONDS + MEASURE_SECONDS)
        with turn, _limit(child, MEASURE_SECONDS) as later:
            answer, _ = child.communicate("go\n" if ready else None)
        said.seek(0)
        words = said.read()
    if late.is_set() or later.is_set():
        seconds = IMPORT_SECONDS if late.is_set() else MEASURE_SECONDS
        return f"no answer within {seconds:g} s; the first import after an installation is slow: run doctor again"
    try:
        return machine.read_report(answer)
    except ValueError:
        last = (words.strip().splitlines() or [f"it ended with code {child.returncode}"])[-1]
        return printable(last)[:300]


@contextmanager
def _limit(child: subprocess.Popen[str], seconds: float) -> Iterator[threading.Event]:
    """Ends the child after so long; the event says that it was ended."""
    late = threading.Event()

    def end() -> None:
        late.set()
        child.kill()

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


# --- what a person reads ----------------------------------------------------------------------------------------


def _show(
    terminal: Terminal, findings: Sequence[Finding], auto: Mapping[str, Choice], problems: Sequence[Finding]
) -> None:
    table = _grid()
    for finding in findings:
        lines = [finding.value, finding.reason, f"mend: {finding.mend}" if finding.mend else ""]
        details = Text("\n".join(printable(line) for line in lines if line))
        table.add_row(Text(finding.status, STYLES[finding.status]), Text(finding.name), details)
    picks = _grid()
    for name, choice in auto.items():
        picks.add_row(Text("auto"), Text(name), Text(f"{choice.name}\n{printable(choice.reason)}"))
    with suppress(OSError, SystemExit):  # the reader went away (`| head`): rich makes SystemExit of it
        terminal.console.print(table, soft_wrap=False)
        terminal.console.print(Text("\nWhat auto picks, and why:"))
        terminal.console.print(picks, soft_wrap=False)
    names = ", ".join(finding.name for finding in problems)
    start = "Training can start: python cli.py train"
    terminal.say(f"\n{f'Training cannot start; to be mended: {names}' if problems else start}")


def _grid() -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table
