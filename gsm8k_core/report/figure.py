"""Curves of runs as a picture (matplotlib) and as a sketch of plain characters."""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
import string
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gsm8k_core.report import look, policy
from gsm8k_core.report.curves import Curve, RunCurves
from gsm8k_core.tracking.terminal import printable
from gsm8k_core.types import PreflightError, StorageError, UsageError

FORMATS = (".png", ".svg")
MOST_RUNS = len(string.ascii_lowercase)
FEW_POINTS = 30  # so many are drawn as dots, too
LOG_FROM = 30.0  # a gradient norm that spans this factor is drawn on a logarithmic scale

WIDTH, LABEL = 80, 9
LEAST = 20  # columns of a drawing itself
SKETCHED = {"loss": 11, **policy.SKETCHED, "dev accuracy": 6, "dev loss": 6, "gradient norm": 6, "rate": 5}
SMOOTHED = ("loss", "gradient norm", *policy.SKETCHED)
SEVERAL = "*"  # where curves of several runs meet


def check_picture(path: Path) -> None:
    """Refuse at the door: a kind of picture that is not made here, no folder for it, or no matplotlib."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--output {path} must end in {' or '.join(FORMATS)}")
    if not os.path.isdir(path.parent):
        what = "is not a folder" if os.path.lexists(path.parent) else "does not exist"
        raise StorageError(f"--output {path}: the folder {path.parent} {what}; make it first, or give another file")
    if os.path.isdir(path):
        raise StorageError(f"--output {path} is a folder; give a file")
    if importlib.util.find_spec("matplotlib") is None:
        raise PreflightError(
            "a picture needs matplotlib, which is not installed; pip install -e '.[track]', or leave out --output "
            "for a sketch in the terminal"
        )


def save_picture(runs: Sequence[RunCurves], path: Path, smooth: int) -> None:
    """Draw all runs into `path`, whole or not at all."""
    kind = path.suffix.lower()[1:]
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a character of a run's name that the font does not have
                _draw(runs, smooth).savefig(file, format=kind, dpi=150)
            os.chmod(name, 0o644)
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror}); give another --output") from error


def _draw(runs: Sequence[RunCurves], smooth: int) -> Any:
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # not pyplot: no window, no display, nothing kept

    main = policy.REWARD if any(policy.REWARD in run.curves for run in runs) else "loss"
    more = ("loss", *policy.BELOW) if main == policy.REWARD else ()
    wanted = (*more, "dev accuracy", "gradient norm", "rate")
    below = [name for name in wanted if any(name in run.curves for run in runs)]
    with rc_context(look.picture(11)):
        figure = Figure(figsize=(10, 7), layout="constrained")
        places = figure.add_gridspec(2, max(1, len(below)), height_ratios=[3, 2] if below else [1, 0.001])
        _panel(figure.add_subplot(places[0, :]), main, runs, smooth)
        for column, name in enumerate(below):
            _panel(figure.add_subplot(places[1, column]), name, runs, smooth)
        _legend(figure, runs)
    return figure


def _panel(axes: Any, name: str, runs: Sequence[RunCurves], smooth: int) -> None:
    title = {"loss": "loss (nats per target)"}.get(name, name)
    for number, run in enumerate(runs):
        if curve := run.curves.get(name):
            _line(axes, curve, smooth if name in SMOOTHED else 1, look.style(number))
        if name == "loss" and (dev := run.curves.get("dev loss")):
            axes.plot(dev.updates, dev.values, marker="D", markersize=5, linewidth=1, **look.style(number))
            title = "loss (nats per target), dev loss with diamonds"
    axes.set_xlabel("update")
    axes.grid(linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    axes.locator_params(axis="x", integer=True, nbins=8 if name == "loss" else 4, min_n_ticks=1)
    if _is_wide(name, [value for run in runs if name in run.curves for value in run.curves[name].values]):
        axes.set_yscale("log")
        title += ", logarithmic"
    elif name == "rate":
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    elif name == "dev accuracy":
        axes.yaxis.set_major_formatter(lambda value, place: f"{100 * value:.4g} %")
        axes.set_ylim(bottom=0)
    axes.set_title(title)


def _is_wide(name: str, values: Sequence[float]) -> bool:
    finite = [value for value in values if math.isfinite(value)]
    return name == "gradient norm" and bool(finite) and max(finite) > LOG_FROM * min(finite) > 0


def _line(axes: Any, curve: Curve, smooth: int, style: Mapping[str, Any]) -> None:
    dots: dict[str, Any] = {"marker": "o", "markersize": 3.5} if len(curve.updates) <= FEW_POINTS else {}
    if smooth > 1:
        axes.plot(curve.updates, curve.values, alpha=0.3, linewidth=1, **style)
        curve = curve.smooth(smooth)
    axes.plot(curve.updates, curve.values, linewidth=2, **style, **dots)


def _legend(figure: Any, runs: Sequence[RunCurves]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], linewidth=2.5, **look.style(number)) for number in range(len(runs))]
    longest = max(len(run.name) for run in runs)
    legend = figure.legend(
        handles,
        ["-"] * len(runs),
        loc="outside upper left",
        ncols=max(1, min(3, 100 // (longest + 8))),
        frameon=False,
        handlelength=3.5,
    )
    for text, run in zip(legend.get_texts(), runs, strict=True):
        text.set_parse_math(False)  # a $ in a name is a $
        text.set_text(printable(run.name))


def sketch(runs: Sequence[RunCurves], smooth: int, room: int | None = None) -> list[str]:
    """Charts of at most 80 plain characters a line, or of `room`; `marks` says which run is which."""
    lines: list[str] = []
    columns = max(min(room or WIDTH, WIDTH) - LABEL - 2, LEAST)
    for name, rows in SKETCHED.items():
        width = smooth if name in SMOOTHED else 1
        curves = [run.curves[name].smooth(width) if name in run.curves else None for run in runs]
        lines += _chart(name, curves, rows, columns)
    return lines


def marks(count: int) -> list[str]:
    """The character of each run in a sketch."""
    return ["o"] if count == 1 else list(string.ascii_lowercase[:count])


def _chart(name: str, curves: Sequence[Curve | None], rows: int, columns: int) -> list[str]:
    points = [
        [(u, v) for u, v in zip(curve.updates, curve.values, strict=True) if math.isfinite(v)] if curve else []
        for curve in curves
    ]
    updates = [update for run in points for update, _ in run]
    if not updates:
        return []
    first, last = min(updates), max(updates)
    drawn = [_columns(run, first, last, columns) for run in points]
    low, high = (pick(value for run in drawn for value in run.values()) for pick in (min, max))
    height = math.log if _is_wide(name, [low, high]) else float
    grid = [[" "] * columns for _ in range(rows)]
    for mark, run in zip(marks(len(drawn)), drawn, strict=True):
        for column, value in run.items():
            part = (height(high) - height(value)) / (height(high) - height(low)) if high > low else 0.5
            row = round(part * (rows - 1))
            grid[row][column] = mark if grid[row][column] == " " else SEVERAL
    labels = {0: high, rows - 1: low} if high > low else {round((rows - 1) / 2): high}
    body = [f"{_label(labels.get(row)):>{LABEL}} |{''.join(cells)}".rstrip() for row, cells in enumerate(grid)]
    end = f"update {last}" if last > first else ""
    axis = f"{first}{end:>{columns - len(str(first))}}".rstrip()
    title = name if height is float else f"{name}, logarithmic"
    return [title, *body, " " * (LABEL + 1) + "+" + "-" * columns, " " * (LABEL + 2) + axis]


def _label(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _columns(points: Sequence[tuple[int, float]], first: int, last: int, columns: int) -> dict[int, float]:
    """A value for each column between a run's first and last: a mean of several updates, or on a line between two."""
    groups: dict[int, list[float]] = {}
    for update, value in points:
        place = round((update - first) / (last - first) * (columns - 1)) if last > first else columns // 2
        groups.setdefault(place, []).append(value)
    means = {place: math.fsum(values) / len(values) for place, values in sorted(groups.items())}
    filled = dict(means)
    for left, right in itertools.pairwise(means):
        for place in range(left + 1, right):
            filled[place] = means[left] + (means[right] - means[left]) * (place - left) / (right - left)
    return filled
