"""metrics.jsonl -> curves: strict about what is whole, patient with what is being written."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from gsm8k_core.report.curves import (
    Curve,
    failed,
    last_update,
    metrics_file,
    read_curves,
    read_failure,
    read_runs,
    shown_loss,
)
from gsm8k_core.types import DataError

LINES = [
    '{"event": "start", "updates": 3}',
    '{"event": "update", "update": 1, "loss": 3.0, "rate": 0.1, "grad_norm": 9.0}',
    '{"event": "update", "update": 2, "loss": "nan", "rate": 0.2, "grad_norm": "inf"}',
    '{"event": "dev", "update": 2, "accuracy": 0.25}',
    '{"event": "update", "update": 3, "loss": 1.0, "rate": 0.1, "grad_norm": 3.0}',
]


def write(folder: Path, lines: list[str], end: str = "\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("\n".join(lines) + end)
    return folder / "metrics.jsonl"


def test_each_number_is_a_curve_over_updates(tmp_path: Path) -> None:
    curves = read_curves(write(tmp_path, LINES))
    assert list(curves) == ["loss", "rate", "gradient norm", "dev accuracy"]
    assert curves["loss"].updates == [1, 2, 3]
    assert curves["loss"].values[::2] == [3.0, 1.0]
    assert math.isnan(curves["loss"].values[1])
    assert curves["dev accuracy"] == Curve([2], [0.25])


def test_how_fast_it_went_is_tokens_over_seconds(tmp_path: Path) -> None:
    timed = [
        '{"event": "update", "update": 1, "loss": 3.0, "num_tokens": 900, "seconds": 45.0}',
        '{"event": "update", "update": 2, "loss": 2.0, "num_tokens": 900, "seconds": 0.0}',
        '{"event": "update", "update": 3, "loss": 2.0, "num_tokens": "inf", "seconds": 1.0}',
        '{"event": "probe", "update": 3, "num_tokens": 5, "seconds": 1.0}',
    ]
    curves = read_curves(write(tmp_path, timed))
    assert curves["tokens/s"] == Curve([1], [20.0])
    assert curves["loss"].updates == [1, 2, 3]


@pytest.mark.parametrize("cut", range(1, len(LINES[-1])))
def test_a_line_that_is_being_written_is_left_out(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path, [*LINES[:-1], LINES[-1][:cut]], end="")
    assert read_curves(path)["loss"].updates == [1, 2]


def test_a_whole_last_line_needs_no_line_end(tmp_path: Path) -> None:
    assert read_curves(write(tmp_path, LINES, end=""))["loss"].updates == [1, 2, 3]


def test_of_an_update_that_was_done_again_the_later_counts(tmp_path: Path) -> None:
    again = [*LINES, '{"event": "update", "update": 2, "loss": 2.0}']
    assert read_curves(write(tmp_path, again))["loss"] == Curve([1, 2, 3], [3.0, 2.0, 1.0])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"event": "upd', "not JSON"),
        ("\x00", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "not an event"),
        ('{"event": 3}', "not an event"),
        ('{"event": "update", "loss": 1}', '"update" must be a whole number'),
        ('{"event": "update", "update": true, "loss": 1}', '"update" must be a whole number'),
        ('{"event": "update", "update": -1, "loss": 1}', '"update" must be a whole number'),
        ('{"event": "update", "update": 1}', '"loss" must be a number'),
        ('{"event": "update", "update": 1, "loss": "low"}', '"loss" must be a number'),
        ('{"event": "update", "update": 1, "loss": 1, "rate": null}', '"rate" must be a number'),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = write(tmp_path, [*LINES[:2], line, *LINES[2:]])
    with pytest.raises(DataError, match=says) as error:
        read_curves(path)
    assert str(error.value).startswith(f"{path}:3: ")
    assert len(str(error.value)) < 300


def test_numbers_that_no_float32_holds_are_not_finite(tmp_path: Path) -> None:
    line = f'{{"event": "update", "update": 1, "loss": 1{"0" * 400}, "rate": 1e999, "grad_norm": -1.7e308}}'
    assert all(math.isnan(curve.values[0]) for curve in read_curves(write(tmp_path, [line])).values())


def test_the_largest_numbers_can_be_smoothed(tmp_path: Path) -> None:
    lines = [f'{{"event": "update", "update": {n}, "loss": 3.4e38}}' for n in (1, 2, 3)]
    assert read_curves(write(tmp_path, lines))["loss"].smooth(3).values == pytest.approx([3.4e38] * 3)


def test_why_a_run_failed_is_read_from_its_events(tmp_path: Path) -> None:
    fell = [*LINES, '{"event": "failed", "reason": "update 4: loss\\nnan", "elapsed": 3.0}']
    assert read_failure(write(tmp_path, fell), tmp_path) == "update 4: loss nan"
    assert read_failure(write(tmp_path, [*fell, '{"event": "resume", "update": 3}']), tmp_path) is None
    assert read_failure(write(tmp_path, [*LINES, '{"event": "failed"}']), tmp_path) is None


def test_why_a_run_failed_is_read_from_its_manifest(tmp_path: Path) -> None:
    path = write(tmp_path, LINES)
    (tmp_path / "run.json").write_text('{"status": "failed", "outcome": {"reason": "MemoryError"}}')
    assert read_failure(path, path.parent) == "MemoryError"
    (tmp_path / "run.json").write_text('{"status": "done", "outcome": {"reason": "done"}}')
    assert read_failure(path, path.parent) is None


def test_a_failure_in_words() -> None:
    assert failed("update 1: loss nan") == "failed at update 1: loss nan"
    assert failed("the disk is full") == "failed: the disk is full"


def test_a_loss_in_a_column_stays_narrow() -> None:
    shown = [shown_loss(loss) for loss in (None, 0.12345, 99999.0, -3.4e38, 1.7e308)]
    assert shown == ["-", "0.123", "99999.000", "-3.40e+38", "1.70e+308"]


def test_smoothing_is_a_mean_over_what_went_before() -> None:
    curve = Curve([1, 2, 3, 4], [4.0, 2.0, math.nan, 0.0])
    assert curve.smooth(2).values == [4.0, 3.0, 2.0, 0.0]
    assert curve.smooth(9).values == [4.0, 3.0, 3.0, 2.0]
    assert math.isnan(Curve([1], [math.nan]).smooth(3).values[0])


def test_the_summary_counts_what_is_not_finite(tmp_path: Path) -> None:
    write(tmp_path / "a", LINES)
    (run,) = read_runs([tmp_path / "a"])
    assert run.summary() == {
        "run": str(tmp_path / "a"),
        "name": "a",
        "failure": None,
        "phase": None,
        "updates": 3,
        "not_finite": 1,
        "first_loss": 3.0,
        "last_loss": 1.0,
        "min_loss": 1.0,
        "dev_accuracy": 0.25,
    }


def test_runs_are_told_apart_and_taken_once(tmp_path: Path) -> None:
    for folder in ("x/run", "y/run", "z/other"):
        write(tmp_path / folder, LINES)
    runs = read_runs([tmp_path / part for part in ("x/run", "y/run", "z/other", "x/run/metrics.jsonl")])
    assert [run.name for run in runs] == [str(tmp_path / "x/run"), str(tmp_path / "y/run"), "other"]


def test_a_run_is_found_from_its_model(tmp_path: Path) -> None:
    write(tmp_path, LINES)
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "model").mkdir()
    assert metrics_file(tmp_path / "model").samefile(tmp_path / "metrics.jsonl")
    with pytest.raises(DataError, match=r"gone is not there; .*cli.py runs"):
        metrics_file(tmp_path / "gone")
    (tmp_path / "run.json").unlink()
    with pytest.raises(DataError, match=r"model has no metrics\.jsonl"):
        metrics_file(tmp_path / "model")


def test_the_last_update_is_read_from_the_end(tmp_path: Path) -> None:
    path = write(tmp_path, [*LINES, *['{"event": "save"}'] * 1000, '{"event": "update", "up'], end="")
    found = last_update(path)
    assert found is not None
    assert found["update"] == 3
    assert last_update(tmp_path / "gone") is None
