"""Numbers -> the geometry of the page's charts. Coordinates are thousandths of the plot, from its top left corner.

The browser stretches the plot to its box and keeps the lines thin; all words stay HTML, so that they are as large on a
phone as anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gsm8k_core.report import policy
from gsm8k_core.report.curves import SPEED, Curve
from gsm8k_core.scoring.stats import percent

SPEED_TITLE = "Tokens per second, pads counted in"
MOST_POINTS = 1200  # of a drawn line
FEW_POINTS = 30  # so many are drawn as dots, too
SHARES = policy.SHARES | {"dev accuracy"}
SMOOTH_FROM = 60  # from so many updates on a mean is drawn through the loss


@dataclass(frozen=True, slots=True)
class Line:
    """One curve as pieces: it is broken where a value was not finite."""

    label: str
    kind: str  # raw, mean, dev, accuracy, or the key of a run's column: a class of the style sheet
    pieces: tuple[str, ...]
    dots: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    summary: str  # what a screen reader says
    y_labels: tuple[str, ...]  # evenly spaced, from the top
    x_labels: tuple[str, ...]
    lines: tuple[Line, ...]
    right_labels: tuple[str, ...] = ()  # of a second scale, that of the lines of kind "accuracy"


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
    """The loss with the dev split's, the dev accuracy beside it on a scale of its own, and how fast it went.

    Of a policy there is no loss: its reward, and what warns.
    """
    charts = [
        _chart(title, lines, shares=shares, from_zero=title == policy.SPEED_TITLE)
        for title, shares, lines in policy.drawn(curves)
    ]
    loss, dev_loss, accuracy = (curves.get(name) for name in ("loss", "dev loss", "dev accuracy"))
    if loss and _finite(loss):
        wanted = _with_mean(loss)
        wanted += [("dev loss", "dev", dev_loss)] if dev_loss and _finite(dev_loss) else []
        right = [("dev accuracy", "accuracy", accuracy)] if accuracy and _finite(accuracy) else []
        title = "Loss (nats per target), with the accuracy on the dev split" if right else "Loss (nats per target)"
        charts.append(_chart(title, wanted, right=right))
    elif accuracy and _finite(accuracy):
        charts.append(_chart("Accuracy on the dev split", [("dev split", "dev", accuracy)], shares=True))
    if (speed := curves.get(SPEED)) and _finite(speed):
        charts.append(_chart(SPEED_TITLE, _with_mean(speed), from_zero=True))
    return charts


def _with_mean(curve: Curve) -> list[tuple[str, str, Curve]]:
    """Each update, and a mean through them where they are many."""
    width = _width(curve)
    return [("each update", "raw", curve), *([(f"mean of {width}", "mean", curve.smooth(width))] if width > 1 else [])]


def draw_runs(runs: Sequence[tuple[str, str, Mapping[str, Curve]]]) -> list[Chart]:
    """The same of several runs, (kind, label, curves) each: a line a run, smoothed."""
    charts = []
    for name, title in (
        ("loss", "Loss (nats per target)"),
        (policy.REWARD, "Reward"),
        ("dev accuracy", "Accuracy on the dev split"),
        (SPEED, SPEED_TITLE),
    ):
        found = [(kind, label, curves[name]) for kind, label, curves in runs if name in curves]
        wanted = [(label, kind, curve.smooth(_width(curve))) for kind, label, curve in found if _finite(curve)]
        if wanted:
            charts.append(_chart(title, wanted, shares=name in SHARES, from_zero=name == SPEED))
    return charts


def _width(curve: Curve) -> int:
    """Over how many updates a mean is drawn."""
    return max(1, len(curve.updates) // 25) if len(curve.updates) >= SMOOTH_FROM else 1


def _finite(curve: Curve) -> list[float]:
    return [value for value in curve.values if math.isfinite(value)]


Wanted = Sequence[tuple[str, str, Curve]]


def _chart(title: str, wanted: Wanted, shares: bool = False, right: Wanted = (), from_zero: bool = False) -> Chart:
    updates = [update for _, _, curve in (*wanted, *right) for update in curve.updates]
    first, last = min(updates), max(updates)
    low, high = _ends(wanted)
    ticks = _ticks(0.0 if from_zero else low, high)
    lines = [_line(label, kind, curve, (first, last), (ticks[0], ticks[-1])) for label, kind, curve in wanted]
    shown = [(curve, shares) for _, _, curve in wanted[-1:]] + [(curve, True) for _, _, curve in right]
    labels = _labels(ticks, shares)
    summary = f"{title}: {', '.join(map(_from_to, shown))}, over updates {first} to {last}."
    right_labels: tuple[str, ...] = ()
    if right:
        beside = _as_many(*_ends(right), len(ticks))
        lines += [_line(label, kind, curve, (first, last), (beside[0], beside[-1])) for label, kind, curve in right]
        right_labels = _labels(beside, shares=True)
    x_labels = (str(first), f"update {last}") if last > first else (str(first),)
    return Chart(title, summary, labels, x_labels, tuple(lines), right_labels)


def _ends(wanted: Wanted) -> tuple[float, float]:
    values = [value for _, _, curve in wanted for value in _finite(curve)]
    return min(values), max(values)


def _from_to(shown: tuple[Curve, bool]) -> str:
    curve, share = shown
    values = _finite(curve)
    start, end = (percent(value) if share else f"{value:.3g}" for value in (values[0], values[-1]))
    return f"from {start} to {end}"


def _labels(ticks: Sequence[float], shares: bool) -> tuple[str, ...]:
    return tuple(f"{100 * tick:.4g} %" if shares else f"{tick:.4g}" for tick in reversed(ticks))


def _as_many(low: float, high: float, count: int) -> list[float]:
    """`count` round numbers from a round one at or under `low` to `high` or above: a second scale on one grid."""
    power = 10.0 ** math.floor(math.log10(max(high - low, 1e-3) / (count - 1)))
    for step in (factor * power for factor in (1, 2, 2.5, 5, 10, 20, 25, 50)):
        start = math.floor(low / step + 1e-9)
        if (start + count - 1) * step >= high - 1e-9 * step:
            return [step * (start + number) for number in range(count)]
    raise AssertionError("a step of 50 times their distance reaches over both")


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
    few = kind in ("dev", "accuracy") or len(curve.updates) <= FEW_POINTS
    return Line(label, kind, drawn, tuple(dots) if few and len(dots) <= 200 else ())
