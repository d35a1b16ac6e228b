"""Curves of runs as a picture (matplotlib) and as a sketch of plain characters."""

from __future__ import annotations

import importlib.util
import math
import os
import string
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gsm8k_core.curves import Curve, RunCurves
from gsm8k_core.tracking import printable
from gsm8k_core.types import PreflightError, StorageError, UsageError

FORMATS = (".png", ".svg")
# Okabe and Ito's colours: told apart with any colour vision. After the seventh run the line style changes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
MOST_RUNS = len(string.ascii_lowercase)
FEW_POINTS = 30  # so many are drawn as dots, too
LOG_FROM = 30.0  # a gradient norm that spans this factor is drawn on a logarithmic scale

WIDTH, LABEL = 80, 9
SKETCHED = {"loss": 11, "dev accuracy": 6, "dev loss": 6, "gradient norm": 6, "rate": 5}  # curve -> rows
SEVERAL = "*"  # where curves of several runs meet


def check_picture(path: Path) -> None:
    """Refuse at the door: a kind of picture that is not made here, or no matplotlib."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--output {path} must end in {' or '.join(FORMATS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise PreflightError(
            "a picture needs matplotlib, which is not installed; pip install -e '.[track]', or leave out --output "
            "for a sketch in the terminal"
        )


def save_picture(runs: Sequence[RunCurves], path: Path, smooth: int) -> None:
    """Draw all runs into `path`, whole or not at all."""
    kind = path.suffix.lower()[1:]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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

    below = [name for name in ("dev accuracy", "gradient norm", "rate") if any(name in run.curves for run in runs)]
    with rc_context({"font.size": 11, "axes.titlesize": 12, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10, 7), layout="constrained")
        places = figure.add_gridspec(2, max(1, len(below)), height_ratios=[3, 2] if below else [1, 0.001])
        _panel(figure.add_subplot(places[0, :]), "loss", runs, smooth)
        for column, name in enumerate(below):
            _panel(figure.add_subplot(places[1, column]), name, runs, smooth)
        _legend(figure, runs)
    return figure


def _panel(axes: Any, name: str, runs: Sequence[RunCurves], smooth: int) -> None:
    lowest, highest = math.inf, 0.0
    for number, run in enumerate(runs):
        look = {"color": COLOURS[number % len(COLOURS)], "linestyle": STYLES[number // len(COLOURS) % len(STYLES)]}
        if curve := run.curves.get(name):
            _line(axes, curve, smooth if name in ("loss", "gradient norm") else 1, look)
            finite = [value for value in curve.values if value > 0]
            lowest, highest = min([lowest, *finite]), max([highest, *finite])
        if name == "loss" and (dev := run.curves.get("dev loss")):
            axes.plot(dev.updates, dev.values, marker="D", markersize=5, linewidth=1, **look)
    dev_loss = name == "loss" and any("dev loss" in run.curves for run in runs)
    axes.set_title(
        {"loss": "loss (nats per target)"}.get(name, name) + (", dev loss with diamonds" if dev_loss else "")
    )
    axes.set_xlabel("update")
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.locator_params(axis="x", integer=True, nbins=8 if name == "loss" else 4)
    if name == "gradient norm" and highest > LOG_FROM * lowest:
        axes.set_yscale("log")
    elif name == "rate":
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    elif name == "dev accuracy":
        axes.yaxis.set_major_formatter(lambda value, place: f"{100 * value:.4g} %")


def _line(axes: Any, curve: Curve, smooth: int, look: dict[str, str]) -> None:
    dots: dict[str, Any] = {"marker": "o", "markersize": 3.5} if len(curve.updates) <= FEW_POINTS else {}
    if smooth > 1:
        axes.plot(curve.updates, curve.values, alpha=0.3, linewidth=1, **look)
        curve = curve.smooth(smooth)
    axes.plot(curve.updates, curve.values, linewidth=2, **look, **dots)


def _legend(figure: Any, runs: Sequence[RunCurves]) -> None:
    from matplotlib.lines import Line2D

    looks = [(COLOURS[n % len(COLOURS)], STYLES[n // len(COLOURS) % len(STYLES)]) for n in range(len(runs))]
    handles = [Line2D([], [], color=colour, linestyle=style, linewidth=2.5) for colour, style in looks]
    longest = max(len(run.name) for run in runs)
    legend = figure.legend(
        handles, ["-"] * len(runs), loc="outside upper left", ncols=max(1, min(3, 100 // (longest + 8))), frameon=False
    )
    for text, run in zip(legend.get_texts(), runs, strict=True):
        text.set_parse_math(False)  # a $ in a name is a $
        text.set_text(printable(run.name))


def sketch(runs: Sequence[RunCurves], smooth: int) -> list[str]:
    """Charts of 80 plain characters a line; run number n is the n-th letter, or a dot where there is one run."""
    lines: list[str] = []
    for name, rows in SKETCHED.items():
        curves = [run.curves[name].smooth(smooth) if name in run.curves else None for run in runs]
        lines += _chart(name, curves, rows)
    return lines


def marks(count: int) -> list[str]:
    return ["o"] if count == 1 else list(string.ascii_lowercase[:count])


def _chart(name: str, curves: Sequence[Curve | None], rows: int) -> list[str]:
    points = [
        [(u, v) for u, v in zip(curve.updates, curve.values, strict=True) if math.isfinite(v)] if curve else []
        for curve in curves
    ]
    every = [point for run in points for point in run]
    if not every:
        return []
    first, last = min(u for u, _ in every), max(u for u, _ in every)
    low, high = min(v for _, v in every), max(v for _, v in every)
    columns = WIDTH - LABEL - 2
    grid = [[" "] * columns for _ in range(rows)]
    for mark, run in zip(marks(len(curves)), points, strict=True):
        for column, value in _columns(run, first, last, columns).items():
            row = round((high - value) / (high - low) * (rows - 1)) if high > low else rows // 2
            grid[row][column] = mark if grid[row][column] == " " else SEVERAL
    labels = [""] * rows
    if high > low:
        labels[0], labels[-1] = f"{high:.3g}", f"{low:.3g}"
    else:
        labels[rows // 2] = f"{high:.3g}"
    body = [f"{label:>{LABEL}} |{''.join(cells)}".rstrip() for label, cells in zip(labels, grid, strict=True)]
    end = f"update {last}"
    axis = [" " * (LABEL + 1) + "+" + "-" * columns, " " * (LABEL + 2) + f"{first}{end:>{columns - len(str(first))}}"]
    return [name, *body, *axis]


def _columns(points: Sequence[tuple[int, float]], first: int, last: int, columns: int) -> dict[int, float]:
    """A value for each column between a run's first and last: means where several updates fall, lines where none does."""
    groups: dict[int, list[float]] = {}
    for update, value in points:
        place = round((update - first) / (last - first) * (columns - 1)) if last > first else columns // 2
        groups.setdefault(place, []).append(value)
    means = {place: math.fsum(values) / len(values) for place, values in sorted(groups.items())}
    filled = dict(means)
    known = list(means)
    for left, right in zip(known, known[1:], strict=False):
        for place in range(left + 1, right):
            filled[place] = means[left] + (means[right] - means[left]) * (place - left) / (right - left)
    return filled
