"""metrics.jsonl -> the curves of a run: loss, rate and gradient norm of each update, and the dev split's scores.

A line that is still being written is left out; anything else that is not an event is an error with its file and line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gsm8k_core.files import MAX_LINES_BYTES, open_plain, read_plain
from gsm8k_core.report import policy
from gsm8k_core.rollouts.progress import folder_of, training_phases
from gsm8k_core.training.runs import ROLLOUTS, read_manifest, run_of_model
from gsm8k_core.types import DataError

METRICS = "metrics.jsonl"
LARGEST = 3.4028235e38  # of float32, which both backends measure in; what is larger is none of theirs, and overflows
TAIL_BYTES = 65536

# Event -> its number -> the curve's name. An event of another name is nobody's curve.
CURVES: Mapping[str, Mapping[str, str]] = {
    "update": {"loss": "loss", "rate": "rate", "grad_norm": "gradient norm", **policy.CURVES},
    "dev": {"accuracy": "dev accuracy", "loss": "dev loss"},
}
SPEED = "tokens/s"  # of an update, from its tokens and its seconds
REQUIRED = ("loss",)  # of an update; the other numbers may be missing


@dataclass(frozen=True, slots=True)
class Curve:
    """Points in the order of the updates. A value that was not finite is NaN."""

    updates: list[int]
    values: list[float]

    def smooth(self, width: int) -> Curve:
        """The mean of each value and those before it, `width` at most; what is not finite is left out of it."""
        means = []
        for end in range(1, len(self.values) + 1):
            window = [value for value in self.values[max(0, end - width) : end] if math.isfinite(value)]
            means.append(math.fsum(window) / len(window) if window else math.nan)
        return Curve(self.updates, means)


@dataclass(frozen=True, slots=True)
class RunCurves:
    """One run: what to call it, where it is, its curves by name, and why it failed, if it did."""

    name: str
    folder: Path
    curves: dict[str, Curve] = field(default_factory=dict)
    failure: str | None = None
    phase: str = ""  # of a run of rft that has not come to its last training: the newest one before it

    def summary(self) -> dict[str, object]:
        """What --json says of it."""
        loss = self.curves.get("loss")
        finite = [value for value in loss.values if math.isfinite(value)] if loss else []
        found: dict[str, object] = {"run": str(self.folder), "name": self.name, "failure": self.failure}
        found |= {"phase": self.phase or None}
        found |= {
            "updates": len(shown.updates) if (shown := loss or self.curves.get(policy.REWARD)) else 0,
            "not_finite": len(loss.values) - len(finite) if loss else 0,
        }
        found |= {
            "first_loss": _first(finite),
            "last_loss": _first(finite[::-1]),
            "min_loss": min(finite, default=None),
        }
        for name, curve in self.curves.items():
            if name.startswith("dev ") or name in policy.SKETCHED:
                found[name.replace(" ", "_")] = _first([v for v in curve.values[::-1] if math.isfinite(v)])
        return found


def _first(values: Sequence[float]) -> float | None:
    return values[0] if values else None


def read_runs(references: Sequence[Path]) -> list[RunCurves]:
    """The curves of runs, each once, under names that tell them apart."""
    found = {file.resolve(): (reference, file) for reference in references for file in [metrics_file(reference)]}
    given = [reference for reference, _ in found.values()]
    return [_read(name, file) for name, (_, file) in zip(_names(given), found.values(), strict=True)]


def _read(name: str, file: Path) -> RunCurves:
    events, phase = newest_training(file.parent) if file.name == METRICS else (file, "")
    return RunCurves(name, file.parent, read_curves(events), read_failure(events, file.parent), phase)


def newest_training(run: Path) -> tuple[Path, str]:
    """The events of a run's newest training with an update, and its phase where that is not the last: rft has several.

    The run's own where there is none.
    """
    for phase in training_phases() if last_update(run / METRICS) is None else ():
        file = run / ROLLOUTS / folder_of(phase) / METRICS
        if last_update(file) is not None:
            return file, phase
    return run / METRICS, ""


def _names(references: Sequence[Path]) -> list[str]:
    """The last part of each path, or the path as it was given where two would be called the same."""
    folders = [path.parent if path.name == METRICS else path for path in references]
    last = [folder.name or folder.resolve().name for folder in folders]
    return [name if last.count(name) == 1 else str(folder) for name, folder in zip(last, folders, strict=True)]


def metrics_file(reference: Path) -> Path:
    """Of a run folder, of its model's folder, or the file itself."""
    if reference.is_file():
        return reference
    for folder in (reference, run_of_model(reference) if reference.exists() else None):
        if folder and newest_training(folder)[0].is_file():
            return folder / METRICS
    what = f"has no {METRICS}" if reference.exists() else "is not there"
    raise DataError(f"{reference} {what}; give a run folder: python cli.py runs lists them")


def read_curves(path: Path) -> dict[str, Curve]:
    """All curves of one file. Of two values for an update, the later stands: a run went on from a checkpoint."""
    points: dict[str, dict[int, float]] = {}
    for place, event in _events(path):
        for key, curve in CURVES.get(event["event"], {}).items():
            if key in event or (event["event"] == "update" and key in REQUIRED):
                points.setdefault(curve, {})[_update(event, place)] = _number(event, key, place)
        if (speed := _speed(event)) is not None:
            points.setdefault(SPEED, {})[_update(event, place)] = speed
    names = [name for names in CURVES.values() for name in names.values()]
    curves = {
        name: Curve(sorted(points[name]), [points[name][update] for update in sorted(points[name])])
        for name in [*names, SPEED]
        if name in points
    }
    return policy.without_loss(curves)


def _speed(event: Mapping[str, Any]) -> float | None:
    """Tokens per second of an update, pads counted in; None where the event does not say.

    And of a policy's: its seconds are those of sampling too, its tokens the trained alone. It gives both rates itself.
    """
    if policy.REWARD in event:
        return None
    tokens, seconds = event.get("num_tokens"), event.get("seconds")
    if event["event"] != "update" or not isinstance(tokens, int | float) or not isinstance(seconds, int | float):
        return None
    return tokens / seconds if seconds > 0 and 0 <= tokens / seconds <= LARGEST else None


def read_failure(path: Path, run: Path) -> str | None:
    """Why a run ended, in one line, where it failed and has not gone on since; from these events or its manifest."""
    reason = None
    for _, event in _events(path):
        reason = event.get("reason") if event["event"] == "failed" else None
    manifest = read_manifest(run) or {}
    outcome = manifest.get("outcome")
    if reason is None and manifest.get("status") == "failed" and isinstance(outcome, dict):
        reason = outcome.get("reason")
    return " ".join(reason.split()) if isinstance(reason, str) else None


def failed(reason: str) -> str:
    """In words: failed at update 3: loss nan."""
    return f"failed at {reason}" if reason.startswith("update ") else f"failed: {reason}"


def shown_loss(loss: float | None) -> str:
    """A loss for a column of a table."""
    return "-" if loss is None else f"{loss:.3f}" if abs(loss) < 1e5 else f"{loss:.2e}"


def _events(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, event)."""
    try:
        content = read_plain(path, MAX_LINES_BYTES)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    lines = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            event = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            if number == len(lines):  # no line end after it: the run is writing it, or was killed while it did
                return
            raise DataError(f"{path}:{number}: not JSON; remove that line, or give another run") from error
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            raise DataError(f'{path}:{number}: not an event of a run (it has no name under "event")')
        yield f"{path}:{number}", event


def _update(event: Mapping[str, Any], place: str) -> int:
    update = event.get("update")
    if not isinstance(update, int) or isinstance(update, bool) or not 0 <= update < 2**53:
        raise DataError(f'{place}: "update" must be a whole number, not {str(update)[:40]!r}')
    return update


def _number(event: Mapping[str, Any], key: str, place: str) -> float:
    """A number, or NaN for the names that a number that is not finite has in the file."""
    value = event.get(key)
    if value in ("nan", "inf", "-inf"):
        return math.nan
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise DataError(f'{place}: "{key}" must be a number, not {str(value)[:40]!r}')
    return float(value) if abs(value) <= LARGEST else math.nan


def last_update(path: Path) -> dict[str, Any] | None:
    """The newest update event, looked for in the end of the file only; None where there is none to be read."""
    try:
        with open_plain(path, MAX_LINES_BYTES) as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read(TAIL_BYTES).split(b"\n")
    except (OSError, DataError):
        return None
    for line in reversed(lines):
        try:
            event = json.loads(line.decode())
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and event.get("event") == "update":
            return event
    return None
