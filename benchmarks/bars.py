"""Bars with a dot for each round, as a PNG (matplotlib)."""

from __future__ import annotations

import importlib.util
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gsm8k_core.files import write_bytes
from gsm8k_core.report import look
from gsm8k_core.types import PreflightError

OURS, PEERS = look.TRAINED[0], look.BASE[0]


@dataclass(frozen=True, slots=True)
class Bars:
    """One picture: a bar of each name's median, its values as dots."""

    title: str
    unit: str
    values: Mapping[str, Sequence[float]]


def save_bars(bars: Bars, path: Path) -> None:
    """Draw into `path`, whole or not at all; the same values give the same file with the same matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise PreflightError("the plots need matplotlib, which is not installed; pip install -e '.[bench]'")
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # not pyplot: no window, no display, nothing kept

    with rc_context(look.picture(10)):
        figure = Figure(figsize=(9, 1.2 + 0.45 * max(len(bars.values), 1)), layout="constrained")
        axes = figure.add_subplot()
        names = list(bars.values)[::-1]  # the first one on top
        medians = [statistics.median(bars.values[name]) for name in names]
        axes.barh(names, medians, color=[OURS if name.startswith("ours") else PEERS for name in names], alpha=0.8)
        for place, name in enumerate(names):
            axes.plot(bars.values[name], [place] * len(bars.values[name]), ".", color=look.INK[0], markersize=4)
            axes.annotate(f"{medians[place]:.3g}", (0, place), xytext=(4, 0), textcoords="offset points", va="center")
        axes.set_xlabel(f"{bars.unit}; bar: median, dots: rounds")
        axes.set_title(bars.title, fontsize=8, parse_math=False, wrap=True)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=120, metadata={"Software": None})
    write_bytes(path, drawn.getvalue())
