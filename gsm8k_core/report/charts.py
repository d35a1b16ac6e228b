"""Numbers -> the geometry of the page's charts. Coordinates are thousandths of the plot, from its top left corner.

The browser stretches the plot to its box and keeps the lines thin; all words stay HTML, so that they are as large on a
phone as anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gsm8k_core.report.curves import Curve
from gsm8k_core.scoring.stats import percent

MOST_POINTS = 1200  # of a drawn line
FEW_POINTS = 30  # so many are drawn as dots, too
SMOOTH_FROM = 60  # from so many updates on a mean is drawn through the loss


@dataclass(frozen=True, slots=True)
class Line:
    """One curve as pieces: it is broken where a value was not finite."""

    label: str
    kind: str  # raw, mean, dev
    pieces: tuple[str, ...]
    dots: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    summary: str  # what a screen reader says
    y_labels: tuple[str, ...]  # evenly spaced, from the top
    x_labels: tuple[str, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Scale:
    """From a share to percent of a plot's width."""

    low: float
    high: float

    def at(self, share: float) -> str:
        return f"{100 * (share - self.low) / (self.high - self.low):.2f}%"


def scale(shares: Sequence[float]) -> Scale:
    """The tens of percent that hold all `shares`."""
    low = math.floor(min(shares) * 10 + 1e-9) / 10
    high = math.ceil(max(shares) * 10 - 1e-9) / 10
    return Scale(low, high if high > low else low + 0.1)


def draw(curves: Mapping[str, Curve]) -> list[Chart]:
    """The loss with the dev split's, and the dev accuracy."""
    charts = []
    loss, dev_loss, accuracy = (curves.get(name) for name in ("loss", "dev loss", "dev accuracy"))
    if loss and _finite(loss):
        width = max(1, len(loss.updates) // 25) if len(loss.updates) >= SMOOTH_FROM else 1
        wanted = [("each update", "raw", loss)]
        wanted += [(f"mean of {width}", "mean", loss.smooth(width))] if width > 1 else []
        wanted += [("dev split", "dev", dev_loss)] if dev_loss and _finite(dev_loss) else []
        charts.append(_chart("Loss (nats per target)", wanted, shares=False))
    if accuracy and _finite(accuracy):
        charts.append(_chart("Accuracy on the dev split", [("dev split", "dev", accuracy)], shares=True))
    return charts


def _finite(curve: Curve) -> list[float]:
    return [value for value in curve.values if math.isfinite(value)]


def _chart(title: str, wanted: Sequence[tuple[str, str, Curve]], shares: bool) -> Chart:
    values = [value for _, _, curve in wanted for value in _finite(curve)]
    updates = [update for _, _, curve in wanted for update in curve.updates]
    ticks = _ticks(min(values), max(values))
    first, last = min(updates), max(updates)
    lines = tuple(_line(label, kind, curve, (first, last), (ticks[0], ticks[-1])) for label, kind, curve in wanted)
    shown = _finite(wanted[-1][2])
    start, end = (percent(value) if shares else f"{value:.3g}" for value in (shown[0], shown[-1]))
    summary = f"{title}: from {start} to {end}, over updates {first} to {last}."
    x_labels = (str(first), f"update {last}") if last > first else (str(first),)
    labels = [f"{100 * tick:.4g} %" if shares else f"{tick:.4g}" for tick in reversed(ticks)]
    return Chart(title, summary, tuple(labels), x_labels, lines)


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers, evenly spaced, around what is drawn."""
    if high <= low:
        low, high = low - max(abs(low) / 10, 1e-3), high + max(abs(high) / 10, 1e-3)
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * number for number in range(start, end + 1)]


def _line(label: str, kind: str, curve: Curve, across: tuple[int, int], up: tuple[float, float]) -> Line:
    every = math.ceil(len(curve.updates) / MOST_POINTS)
    wide, tall = max(1, across[1] - across[0]), up[1] - up[0]
    pieces: list[list[str]] = [[]]
    dots = []
    for update, value in list(zip(curve.updates, curve.values, strict=True))[::every]:
        if not math.isfinite(value):
            pieces.append([])
            continue
        x = 1000 * (update - across[0]) / wide if across[1] > across[0] else 500.0
        y = 1000 * (up[1] - value) / tall
        pieces[-1].append(f"{x:.1f},{y:.1f}")
        dots.append((round(x, 1), round(y, 1)))
    drawn = tuple(" ".join(piece) for piece in pieces if len(piece) > 1)
    few = kind == "dev" or len(curve.updates) <= FEW_POINTS
    return Line(label, kind, drawn, tuple(dots) if few and len(dots) <= 200 else ())
