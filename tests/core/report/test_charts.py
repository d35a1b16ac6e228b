"""Numbers become the geometry of the page's charts."""

from __future__ import annotations

import pytest

from gsm8k_core.report.charts import _as_many, draw, draw_runs, scale
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


def test_the_dev_accuracy_stands_beside_the_loss_on_a_scale_of_its_own() -> None:
    curves = {"loss": Curve([1, 2, 3], [2.0, 1.0, 0.5]), "dev accuracy": Curve([2, 3], [0.1, 0.3])}
    (chart,) = draw(curves | {"tokens/s": Curve([], [])})
    assert [line.kind for line in chart.lines] == ["raw", "accuracy"]
    assert len(chart.right_labels) == len(chart.y_labels)
    assert (chart.right_labels[-1], chart.right_labels[0]) == ("10 %", "40 %")
    assert "from 2 to 0.5, from 10.0 % to 30.0 %, over updates 1 to 3" in chart.summary.replace("\xa0", " ")
    *_, last = chart.lines[1].dots
    assert last == (1000.0, 333.3)  # 30 % on a scale from 10 to 40
    speed = draw({**curves, "tokens/s": Curve([1, 2], [50.0, 60.0])})[1]
    assert speed.y_labels[-1] == "0"  # or noise would look like a change


@pytest.mark.parametrize("count", range(2, 7))
def test_a_second_scale_has_as_many_ticks_and_reaches_over_all(count: int) -> None:
    for low, high in ((0.0, 1.0), (0.12, 0.47), (0.31, 0.31), (0.999, 1.0), (0.0, 0.0004)):
        ticks = _as_many(low, high, count)
        assert len(ticks) == count
        assert ticks[0] <= low + 1e-9
        assert ticks[-1] >= high - 1e-9


def test_several_runs_have_a_line_each() -> None:
    falling = Curve(list(range(1, 101)), [3 / n for n in range(1, 101)])
    charts = draw_runs(
        [("trained", "a", {"loss": falling}), ("trained-2", "b", {"loss": falling}), ("trained-3", "c", {})]
    )
    assert [(line.kind, line.label) for line in charts[0].lines] == [("trained", "a"), ("trained-2", "b")]
    assert len(charts) == 1
    assert draw_runs([]) == []


def test_several_policies_have_their_rewards_beside_each_other() -> None:
    rising = {"reward": Curve([1, 2, 3], [0.1, 0.2, 0.4]), "entropy": Curve([1, 2, 3], [0.5, 0.4, 0.3])}
    (chart,) = draw_runs([("trained", "a", rising), ("trained-2", "b", rising)])
    assert chart.title == "Reward"
    assert [(line.kind, line.label) for line in chart.lines] == [("trained", "a"), ("trained-2", "b")]
    assert all(label.endswith(" %") for label in chart.y_labels)
    assert "from 10.0 % to 40.0 %" in chart.summary.replace("\xa0", " ")
