"""Drawings of curves: a sketch that fits 80 columns, and a picture."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

from gsm8k_core.report import look
from gsm8k_core.report.curves import Curve, RunCurves
from gsm8k_core.report.figure import MOST_RUNS, SEVERAL, check_picture, save_picture, sketch
from gsm8k_core.types import PreflightError, StorageError, UsageError


def falling(name: str, count: int = 100, start: float = 4.0) -> RunCurves:
    updates = list(range(1, count + 1))
    curves = {
        "loss": Curve(updates, [start / update for update in updates]),
        "rate": Curve(updates, [1e-4] * count),
        "gradient norm": Curve(updates, [100.0 / update for update in updates]),
        "dev accuracy": Curve(updates[::50], [0.1 * n for n in range(len(updates[::50]))]),
    }
    return RunCurves(name, Path(name), curves)


@pytest.mark.parametrize("count", [1, 2, 3, 69, 70, 5000])
def test_a_sketch_is_plain_and_80_columns_wide(count: int) -> None:
    lines = sketch([falling("a", count), falling("b", max(1, count // 2), 3.0)], 1)
    assert max(len(line) for line in lines) <= 80
    assert all(line.isascii() for line in lines)
    assert {"loss", "rate"} <= set(lines)


def test_a_sketch_falls_with_the_loss() -> None:
    lines = sketch([RunCurves("a", Path("a"), {"loss": Curve([1, 2], [4.0, 1.0])})], 1)
    top, bottom = lines[1], lines[11]
    assert top.startswith("        4 |o")
    assert bottom.startswith("        1 |")
    assert bottom.endswith("o")
    assert len(bottom) == 80
    assert lines[-1].endswith("update 2")


def test_runs_have_letters_and_a_sign_where_they_meet() -> None:
    runs = [RunCurves(name, Path(name), {"loss": Curve([1, 2], [4.0, end])}) for name, end in (("a", 1.0), ("b", 2.0))]
    text = "\n".join(sketch(runs, 1))
    assert f"4 |{SEVERAL}" in text
    assert text.splitlines()[11].endswith("a")


def test_what_is_not_finite_leaves_no_mark() -> None:
    assert sketch([RunCurves("a", Path("a"), {"loss": Curve([1], [math.nan])})], 1) == []
    assert "nan" not in "\n".join(sketch([RunCurves("a", Path("a"), {"loss": Curve([1, 2], [math.nan, 1.0])})], 1))


def test_a_wide_gradient_norm_is_drawn_logarithmic() -> None:
    assert "gradient norm, logarithmic" in sketch([falling("a")], 1)
    assert "gradient norm" in sketch([RunCurves("a", Path("a"), {"gradient norm": Curve([1, 2], [1.0, 2.0])})], 1)


def test_only_png_and_svg_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"must end in \.png or \.svg"):
        check_picture(Path("a.jpg"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PreflightError, match=r"pip install -e '\.\[track\]'"):
        check_picture(Path("a.png"))


def test_a_picture_of_many_odd_runs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    names = ["_hidden", "$x$", "<script>alert(1)</script>", "\x1b[31m", "日本", *(f"run-{n}" for n in range(5))]
    runs = [falling(name, 3 + n, 2.0 + n) for n, name in enumerate(names)]
    runs.append(RunCurves("empty", Path("empty"), {"loss": Curve([1], [math.nan])}))
    (tmp_path / "new").mkdir()
    for name in ("new/plot.png", "new/plot.svg", "new/plot.svg"):
        save_picture(runs, tmp_path / name, smooth=3)
    assert (tmp_path / "new/plot.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "new/plot.svg").read_text()
    assert "<svg" in text
    assert "<script" not in text
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["plot.png", "plot.svg"]


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="give another --output"):
        save_picture([falling("a", 3)], tmp_path / "file" / "plot.png", smooth=1)


def test_a_picture_needs_a_folder_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for name, says in (
        ("gone/a.png", "gone does not exist; make it first"),
        ("file/a.png", "file is not a folder; make it first"),
        ("folder.png", "folder.png is a folder; give a file"),
    ):
        with pytest.raises(StorageError, match=says):
            check_picture(tmp_path / name)
    assert not (tmp_path / "gone").exists()


def test_equal_runs_can_be_told_apart() -> None:
    """The next run's line has gaps where the last one's has none, and no two look the same."""
    looks = [(look.style(number)["color"], look.style(number)["linestyle"]) for number in range(MOST_RUNS)]
    assert len(set(looks)) == MOST_RUNS
    assert all(one[1] != other[1] for one, other in itertools.pairwise(looks))
