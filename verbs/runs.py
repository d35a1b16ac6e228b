"""`runs`: what was trained here: model, data, outcome, accuracy, newest first."""

from __future__ import annotations

import datetime
import json
import math
import os
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from rich.cells import cell_len

from gsm8k_core.config.diagnostics import RunsConfig
from gsm8k_core.files import read_plain
from gsm8k_core.report.curves import failed, last_update, newest_training, shown_loss
from gsm8k_core.report.words import COMPARISON
from gsm8k_core.rollouts.progress import LAST, NAMES, PROGRESS, said_of
from gsm8k_core.scoring.answers import HEADLINE_RULE
from gsm8k_core.scoring.stats import percent
from gsm8k_core.tracking.terminal import Terminal, clock, printable
from gsm8k_core.training.runs import MANIFEST, read_manifest
from gsm8k_core.types import EXIT_OK, DataError
from verbs import Context

SUMMARY = "summary.json"
DEEPEST = 3  # folders below the one that is asked for
WIDTH = 80
OTHERS = {"checkpoints", "best", "base"}  # models of a run that are not what it ended with
CLOCK_SLACK = 120.0  # seconds between a process and its manifest; a process younger than that is another one


@dataclass(frozen=True, slots=True)
class Score:
    """An accuracy, and which update's weights it is of: those that the run has now, earlier ones, or nobody knows."""

    accuracy: float
    n: int
    calculator: bool
    update: int | None = None
    current: bool | None = None


def run(config: RunsConfig, context: Context) -> int:
    """The verb."""
    folder, terminal = config.folder, context.terminal
    if not folder.is_dir() and folder != RunsConfig().folder:
        raise DataError(f"{folder} is not a folder; give one that holds runs: python cli.py runs PATH")
    runs = sorted((describe(path) for path in find_runs(folder)), key=lambda run: str(run["started"]), reverse=True)
    if runs:
        _show(runs, folder, terminal)
    else:
        terminal.say(f"no runs under {folder}; python cli.py train starts one")
    terminal.result({"folder": str(folder), "runs": runs})
    return EXIT_OK


def find_runs(folder: Path, depth: int = 0) -> Iterator[Path]:
    """Run folders at and under `folder`; a run is not searched for others, nor is a link followed."""
    if os.path.lexists(folder / MANIFEST):
        yield folder
        return
    try:
        inside = sorted(entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
    except OSError:  # not a folder, or not ours to read
        return
    for path in inside if depth < DEEPEST else []:
        if not Path(path).name.startswith("."):
            yield from find_runs(Path(path), depth + 1)


def describe(folder: Path) -> dict[str, Any]:
    """One run as JSON; what is not known is None."""
    manifest = read_manifest(folder)
    events, phase = newest_training(folder)
    update = last_update(events) or {}
    updates = _whole(update.get("update")) or 0
    found = _read(folder / COMPARISON)
    compared = _own_score(_at(found, "trained"), manifest or {}, updates)  # several models' has no one trained
    evaluated = None if compared and compared.current else _evaluated(folder, manifest or {}, updates)
    score = evaluated if evaluated and (evaluated.current or not compared) else compared
    base = _score(_at(found, "base")) if score and score is compared else None
    made: dict[str, Any] = {
        "run": str(folder),
        "status": _status(manifest),
        "started": _text(_at(manifest or {}, "started")) or _changed(folder),
        "model": _text(_at(manifest or {}, "model", "name")) or _text(_at(manifest or {}, "config", "model")),
        "data": _text(_at(manifest or {}, "data", "name")) or _text(_at(manifest or {}, "config", "data")),
        "backend": _text(_at(manifest or {}, "choices", "backend", "name")),
        "seconds": _number(_at(manifest or {}, "outcome", "seconds")) or _number(update.get("elapsed")),
        "reason": _text(_at(manifest or {}, "outcome", "reason")),
        "updates": updates,
        "phase": phase or None,  # whose figures these are, where they are not of the run's last training
        "place": _place(manifest or {}),
        "planned": _whole(_at((read_manifest(events.parent) if phase else manifest) or {}, "plan", "updates")),
        "last_loss": None if "reward" in update else _number(update.get("loss")),  # a policy's says nothing
        "last_reward": _number(update.get("reward")),
        "rule": HEADLINE_RULE,
        "base_accuracy": base.accuracy if base else None,
        "accuracy": score.accuracy if score else None,
        "accuracy_update": score.update if score else None,
        "accuracy_current": score.current if score else None,
        "n": score.n if score else None,
        "calculator": score.calculator if score else None,
    }
    return made


def _place(manifest: Mapping[str, Any]) -> str | None:
    """The phase that a run of rft came to; None where it has none, is done, or where that is not known."""
    name = _text(_at(manifest, PROGRESS, "phase", "name"))
    if name is None or manifest.get("status") == "done" or not re.fullmatch(NAMES, name):
        return None
    rounds = _text(_at(manifest, PROGRESS, "decisions", "rounds", "name")) or "1"
    return LAST if name == f"train-{rounds}" else name


def _status(manifest: Mapping[str, Any] | None) -> str:
    """done, stopped, failed, running; died where a run's process is gone; damaged without a manifest to read."""
    status = manifest.get("status") if manifest else None
    if manifest is None or not isinstance(status, str):
        return "damaged"
    return "died" if status == "running" and not _is_alive(manifest) else status


def _is_alive(manifest: Mapping[str, Any]) -> bool:
    try:
        started = datetime.datetime.fromisoformat(str(manifest.get("started"))).timestamp()
        process = psutil.Process(_whole(manifest.get("pid")) or -1)
        return bool(process.create_time() <= started + CLOCK_SLACK) and process.status() != psutil.STATUS_ZOMBIE
    except (ValueError, OverflowError, psutil.NoSuchProcess):
        return False
    except psutil.AccessDenied:
        return True


def _evaluated(folder: Path, manifest: Mapping[str, Any], updates: int) -> Score | None:
    """The trained model's score, from its evaluation over the most problems: as it is now, by itself if it can."""
    found = []
    for path in sorted((folder / "logs").glob(f"*/{SUMMARY}")):
        summary = _read(path)
        left_out = summary.get("hash") == _at(manifest, "model", "hash") or summary.get("split") == "train"
        if left_out or OTHERS & set(Path(str(summary.get("model"))).parts):  # the train rows it learned from
            continue
        if score := _own_score(summary, manifest, updates):
            order = (bool(score.current), not score.calculator, score.n, path.stat().st_mtime)
            found.append((order, score))
    return max(found, key=lambda each: each[0])[1] if found else None


def _own_score(summary: object, manifest: Mapping[str, Any], updates: int) -> Score | None:
    """The score of a summary in a run's folder; None where it has none, or says that another model answered."""
    score = _score(summary)
    if score is None or not isinstance(summary, dict):
        return None
    if "run" not in summary:  # an older version's; all is well unless the run went on since
        return replace(score, current=None if manifest.get("segments") else True)
    if summary["run"] is None:
        return None
    update = _whole(_at(summary, "run", "update"))
    return replace(score, update=update, current=_is_current(update, _at(summary, "run", "save"), manifest, updates))


def _is_current(update: int | None, save: object, manifest: Mapping[str, Any], updates: int) -> bool | None:
    """Whether an answer came from the weights that the run has now: those after as many updates may be others.

    None where nobody knows: a kill came between two saves, or an older version saved or answered.
    """
    if update is None or update != updates:
        return None if update is None else False
    if "model_save" not in manifest:  # an older version's, which went by the updates
        return True
    now = manifest["model_save"]
    return save == now if save and now else None


def _score(summary: object) -> Score | None:
    if not isinstance(summary, dict):
        return None
    accuracy, n = _number(_at(summary, "rules", HEADLINE_RULE, "accuracy")), _whole(summary.get("n"))
    return Score(accuracy, n, bool(_at(summary, "calculator"))) if accuracy is not None and n is not None else None


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_plain(path).decode())
    except (OSError, ValueError, RecursionError, DataError):
        return {}
    return value if isinstance(value, dict) else {}


def _at(value: object, *keys: str) -> object:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53 else None


def _number(value: object) -> float | None:
    plain = isinstance(value, float) or _whole(value) is not None
    return float(value) if plain and math.isfinite(value) else None  # type: ignore[arg-type]


def _changed(folder: Path) -> str | None:
    try:
        changed = (folder / MANIFEST).lstat().st_mtime
    except OSError:
        return None
    return datetime.datetime.fromtimestamp(changed, datetime.UTC).isoformat(timespec="seconds")


def _show(runs: list[dict[str, Any]], folder: Path, terminal: Terminal) -> None:
    """A line of numbers for each run, and below it what it is and why it failed; no line is filled up with spaces."""
    columns = ["outcome", "updates", "loss", "accuracy", "n"]
    rows = [[f"runs under {folder}", *columns], *([printable(cell) for cell in _cells(run, folder)] for run in runs)]
    widths = [max(cell_len(row[column]) for row in rows) for column in range(1, len(rows[0]))]
    room = min(WIDTH, terminal.room or WIDTH)
    most = room - sum(width + 2 for width in widths)
    first = min(most, max(cell_len(row[0]) for row in rows))
    for row, below in zip(rows, [[], *map(_below, runs)], strict=True):
        name, *cells = row
        if cell_len(name) > first:  # a long name stays whole, so that it can be copied
            terminal.verbatim(name)
            name = ""
        if most >= 0:
            padded = [" " * (width - cell_len(cell)) + cell for cell, width in zip(cells, widths, strict=True)]
            terminal.verbatim("  ".join([name + " " * (first - cell_len(name)), *padded]))
        elif cells != columns:  # no room for a line of them
            known = [f"{column} {cell}" for column, cell in zip(columns, cells, strict=True) if cell != "-"]
            below = [", ".join(known), *below]
        for text in below:
            for line in textwrap.wrap(text, room, initial_indent="  ", subsequent_indent="  "):
                terminal.verbatim(line)


def _cells(run: Mapping[str, Any], folder: Path) -> list[str]:
    path = Path(run["run"])
    name = str(path.relative_to(folder)) if path != folder else path.name or str(path)
    of = f"/{run['planned']}" if run["planned"] and run["planned"] != run["updates"] else ""
    accuracy = "-" if run["accuracy"] is None else percent(run["accuracy"])
    if run["base_accuracy"] is not None:
        accuracy = f"{100 * run['base_accuracy']:.1f} -> {accuracy}"
    n = "-" if run["n"] is None else str(run["n"])
    outcome = run["reason"] if run["status"] == "stopped" and run["reason"] else run["status"]
    return [name, outcome, f"{run['updates']}{of}", shown_loss(run["last_loss"]), accuracy, n]


def _below(run: Mapping[str, Any]) -> list[str]:
    if run["status"] == "damaged":
        return [f"no {MANIFEST} to read"]
    parts = [f"{_last_part(run['model'])} on {_last_part(run['data'])}", run["backend"], _minute(run["started"])]
    if run["seconds"] is not None:
        parts.append(clock(run["seconds"]))
    parts += _where(run["place"], run["phase"])
    if run["last_reward"] is not None:
        parts.append(f"reward {run['last_reward']:.3f}")
    if run["calculator"]:
        parts.append("accuracy with calculator")
    if run["accuracy"] is not None and not run["accuracy_current"]:
        parts.append(_of_which(run["accuracy_update"], run["updates"], run["accuracy_current"]))
    ending = [failed(run["reason"])] if run["status"] == "failed" and run["reason"] else []
    return [printable(text) for text in (", ".join(filter(None, parts)), *ending)]


def _where(place: str | None, phase: str | None) -> list[str]:
    """Where a run of rft stands that has no update of its last training yet, and which training's figures are shown."""
    if not phase and place == LAST:
        return []
    stands = [f"in {said_of(place)}"] if place else []
    return [*stands, f"figures of {said_of(phase)}"] if phase and phase != place else stands


def _of_which(update: int | None, updates: int, current: bool | None) -> str:
    """What weights a score is of that is not surely the run's."""
    if update is not None and update != updates:
        return f"accuracy after update {update}"
    known = "perhaps from before it went on" if current is None else "of weights that it no longer has"
    return f"accuracy {known}"


def _minute(started: str | None) -> str | None:
    """When, in the person's own time."""
    try:
        return datetime.datetime.fromisoformat(str(started)).astimezone().strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError):
        return None


def _last_part(name: str | None) -> str:
    """The last part of a Hub id or a path."""
    return (name or "-").rstrip("/").split("/")[-1].removesuffix(".jsonl") or "-"
