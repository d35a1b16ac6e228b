"""Numbers become the geometry of the page's charts."""

from __future__ import annotations

from gsm8k_core.report.charts import draw, scale
from gsm8k_core.report.curves import Curve


def test_a_curve_is_broken_where_it_was_not_finite() -> None:
    curve = Curve([1, 2, 3, 4, 5], [1.0, 2.0, float("nan"), 2.0, 1.0])
    (chart,) = draw({"loss": curve})
    assert len(chart.lines[0].pieces) == 2
    assert not any("nan" in piece for line in chart.lines for piece in line.pieces)


def test_points_stay_inside_the_plot() -> None:
    curves = {
        "loss": Curve(list(range(1, 3001)), [3 / n for n in range(1, 3001)]),
        "dev accuracy": Curve([7], [0.25]),
    }
    for chart in draw(curves):
        for line in chart.lines:
            numbers = [float(n) for piece in line.pieces for pair in piece.split() for n in pair.split(",")]
            assert all(0 <= number <= 1000 for number in [*numbers, *(n for dot in line.dots for n in dot)])
            assert len(line.pieces[0].split()) <= 1200 if line.pieces else line.dots


def test_no_curve_is_no_chart() -> None:
    assert draw({}) == []
    assert draw({"loss": Curve([1], [float("nan")])}) == []
    assert draw({"rate": Curve([1], [1.0])}) == []


def test_the_scale_holds_every_interval() -> None:
    found = scale([0.0, 0.271, 0.4])
    assert (found.low, found.high) == (0.0, 0.4)
    assert found.at(0.1) == "25.00%"
    assert scale([1.0, 1.0]).at(1.0) != ""
