"""`doctor`: what this machine can do, what `auto` picks on it, and the command that mends what is wrong.

Each backend is looked at in a process of its own, so that a broken or hanging import costs a line and no more.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.text import Text

import backends
from gsm8k_core import machine
from gsm8k_core.auto import AUTO, Pair, choose_pair
from gsm8k_core.command import SOURCE, as_typed, typed
from gsm8k_core.config.diagnostics import DoctorConfig
from gsm8k_core.doing import quiet
from gsm8k_core.machine import Finding, Report
from gsm8k_core.tracking.terminal import Terminal, printable, wrapped
from gsm8k_core.types import EXIT_OK, Choice, PreflightError
from verbs import Context

IMPORT_SECONDS = 60.0  # about 8 on two slow cores; a busy machine, or the first import of all, takes far longer
MEASURE_SECONDS = 20.0  # about 2
STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "problem": "bold red"}
REINSTALL = "pip install --force-reinstall -c constraints.txt"  # without the flag, a damaged package stays as it is
NARROWEST, INDENT_BELOW = 40, 6  # columns of a detail beside its name; where it stands below instead
UNKNOWN = Choice("unknown", "the backend could not be looked at")


@dataclass(frozen=True, slots=True)
class Late:
    """A backend's process that did not answer in time: nothing is known of it, good or bad."""

    seconds: float


Answer = Report | Late | str  # a str is what went wrong


def run(config: DoctorConfig, context: Context) -> int:
    """The verb."""
    return report(config, context)


def report(config: DoctorConfig, context: Context, ranks: Sequence[Finding] = (), engine: Choice | None = None) -> int:
    """What is found here, said; the exit code. A finding is a problem when `train` could not start because of it.

    `ranks` are what several processes found of one another, and `engine` the backend that their launcher starts.
    """
    terminal = context.terminal
    terminal.say("Looking at this machine; that takes about ten seconds.\n")
    here = backends.detect()
    chosen = engine or backends.choose(here)
    with ThreadPoolExecutor() as pool:
        pair_later = pool.submit(choose_pair, AUTO, AUTO, "main", lambda asked: None)
        hub_later = pool.submit(machine.reach_hub)
        reports = _reports(sorted(here.installed))
    pair = pair_later.result()
    findings = [*machine.system(here.rosetta), *machine.packages(), machine.memory()]
    findings.append(machine.disk(config.output_dir or Path("runs"), pair.model))
    for name in backends.PROVIDERS:
        findings += _of_backend(name, reports, here, chosen.name)
    findings += ranks or _launchers(here.installed)
    findings += [*machine.caches(), hub_later.result(), *machine.missing_model(pair)]
    findings = [replace(finding, mend=as_typed(finding.mend)) for finding in findings]
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


def _auto(chosen: Choice, report: Answer | None, pair: Pair) -> dict[str, Choice]:
    picks = report.choices if isinstance(report, Report) else {}
    return {
        "backend": chosen,
        "device": picks.get("device", UNKNOWN),
        "dtype": picks.get("dtype", UNKNOWN),
        "model": pair.model_choice,
        "data": pair.data_choice,
    }


def _launchers(names: Collection[str]) -> list[Finding]:
    """What starts one run on several processes, of those backends that are installed."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    every = [each for name in backends.PROVIDERS if name in names for each in backends.PROVIDERS[name].launchers]
    found = [each for each in every if shutil.which(each.split()[0], path=beside)]
    if not found:
        return []
    program = "cli.py" if typed() == SOURCE else shutil.which(typed()) or typed()
    programs = ", ".join(each.split()[0].replace("accelerate", "accelerate launch") for each in found)
    return [Finding("launchers", "ok", programs, "; ".join(f"{each} {program} train" for each in found))]


# --- backends ---------------------------------------------------------------------------------------------------


def _of_backend(name: str, reports: Mapping[str, Answer], here: backends.Machine, chosen: str) -> Sequence[Finding]:
    report = reports.get(name)
    if isinstance(report, Report):
        return report.findings
    if isinstance(report, Late):
        mend = "run doctor again when the machine is quiet"
        return [Finding(name, "warning", "not known", f"no answer within {report.seconds:g} s", mend)]
    wanted = backends.choose(replace(here, installed=frozenset(backends.PROVIDERS))).name
    if report is None:
        status = "problem" if name == chosen else "warning" if name == wanted else "note"
        reason = f"it needs {' and '.join(backends.PROVIDERS[name].packages)}"
        return [Finding(name, status, "not installed", reason, backends.PROVIDERS[name].install)]
    works = [f"--backend {other}" for other, found in reports.items() if isinstance(found, Report)]
    mend = "; meanwhile ".join([backends.PROVIDERS[name].install.replace("pip install", REINSTALL), *works])
    return [Finding(name, "problem" if name == chosen else "warning", "does not work here", report, mend)]


def _reports(names: Sequence[str]) -> dict[str, Answer]:
    """What each backend's own process found, or why it found nothing."""
    imported, turn = threading.Barrier(len(names)) if names else None, threading.Lock()
    with ThreadPoolExecutor(max(1, len(names))) as pool:
        return dict(zip(names, pool.map(lambda name: _ask(name, imported, turn), names), strict=True))


def _ask(name: str, imported: threading.Barrier | None, turn: threading.Lock) -> Answer:
    """Imports go on together; the rates are measured one after the other, when all imports are done."""
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        child = subprocess.Popen(
            [sys.executable, "-c", f"import backends; backends.look({name!r})"],
            cwd=machine.ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            errors="replace",
        )
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
        return Late(IMPORT_SECONDS if late.is_set() else MEASURE_SECONDS)
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
    found = [
        (each.status, each.name, [each.value, each.reason, f"mend: {each.mend}" if each.mend else ""])
        for each in findings
    ]
    picks = [("auto", name, [choice.name, as_typed(choice.reason)]) for name, choice in auto.items()]
    lines = [*_lines(found, terminal.room), Text("\nWhat auto picks, and why:"), *_lines(picks, terminal.room)]
    with suppress(OSError, SystemExit):  # the reader went away (`| head`): rich makes SystemExit of it
        quiet()
        terminal.console.print(Text("\n").join(lines))
    names = ", ".join(finding.name for finding in problems)
    start = "Training can start: python cli.py train"
    terminal.say(f"\n{f'Training cannot start; to be mended: {names}' if problems else start}")


def _lines(rows: Sequence[tuple[str, str, Sequence[str]]], room: int | None) -> Iterator[Text]:
    """Each row's status and name, and its details beside them, or below where there is no room for that."""
    first, second = (max(len(row[place]) for row in rows) for place in (0, 1))
    indent = first + second + 4
    is_below = room is not None and room - indent < NARROWEST
    indent = INDENT_BELOW if is_below else indent
    for status, name, details in rows:
        head = Text.assemble((f"{status:<{first}}", STYLES.get(status, "")), f"  {name:<{second}}  ")
        whole = [printable(line) for line in details if line]
        broken = [piece for line in whole for piece in (wrapped(line, room - indent, "") if room else line).split("\n")]
        for piece in broken:
            # What must not be broken and is longer begins further left, so that the terminal breaks it not either.
            pad = " " * (indent if room is None else max(0, min(indent, room - len(piece))))
            if head and (is_below or len(pad) < indent):
                head.rstrip()
                yield head
                head = Text("")
            yield Text.assemble(head or pad, piece)
            head = Text("")
