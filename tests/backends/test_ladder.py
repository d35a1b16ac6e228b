"""The ladder's own rules: when a rung passes, what its figures are, what its controls change."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gsm8k_core.parity import ladder
from gsm8k_core.parity.bench import NATS, UPDATES, Bench, Implementation, Measurement, curve_gap, most, worst
from gsm8k_core.parity.ladder import Reading, Rung, climb
from gsm8k_core.parity.rungs import identical_batches, pad_counted, parted
from gsm8k_core.types import IGNORE_INDEX, Batch, Completion, DataError, DivergedError, Example
from tests import tiny


def reading(error: float, control: float, tolerance: float | None) -> Reading:
    return Reading(1, "scores", "", error, control, NATS, tolerance, 0.0)


@pytest.mark.parametrize(
    ("error", "control", "tolerance", "passed"),
    [
        (1.0, 11.0, 1.0, True),
        (1.1, 99.0, 1.0, False),  # outside the tolerance
        (0.0, 10.0, 1.0, False),  # a control that would hardly be noticed
        (0.0, 1e-9, 0.0, True),
        (0.0, 0.0, 0.0, False),  # equal to the last bit, and so is what was made wrong
        (0.9, 10.0, None, True),
        (1.0, 10.0, None, False),
        (math.nan, 10.0, None, False),
        (0.0, math.nan, 1.0, False),
    ],
)
def test_when_a_rung_passes(error: float, control: float, tolerance: float | None, passed: bool) -> None:
    assert reading(error, control, tolerance).passed is passed


def test_json_has_null_for_what_is_not_finite() -> None:
    values = reading(math.nan, math.inf, None).as_json()
    assert json.dumps(values, allow_nan=False)
    assert (values["error"], values["control"], values["tolerance"], values["passed"]) == (None, None, None, False)


def test_a_missing_tensor_is_wholly_wrong() -> None:
    ones = np.ones(4, np.float32)
    assert worst({"a": ones}, {"a": 1.5 * ones}) == (0.5, "a")
    error, name = worst({"a": ones, "b": ones}, {"a": ones})
    assert error == 1
    assert name.startswith("b")
    assert worst({"a": 0 * ones}, {"a": ones})[0] == 1
    assert worst({"a": 0 * ones}, {"a": 0 * ones})[0] == 0


def test_a_curve_is_compared_where_both_have_updates() -> None:
    assert curve_gap({1: 5.0, 2: 1.0, 3: 2.0}, {2: 1.5, 3: 2.25}) == 0.5


def nobody(folder: Path) -> Any:
    raise AssertionError("rung 0 opens no model")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    side = Implementation("nobody", nobody)
    rows = tiny.make_rows()
    return Bench(side, side, tiny.make(tmp_path / "model"), rows, [(4, 5), (6,)], tmp_path)


def test_batches_are_compared_without_a_model(bench: Bench) -> None:
    assert list(identical_batches(bench)) == [Measurement("", UPDATES, 0, 12)]


def test_a_diverged_candidate_fails_its_rung_and_the_next_is_climbed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverges(bench: Bench) -> Iterator[Measurement]:
        yield Measurement("first", NATS, 0.0, 1.0)
        raise DivergedError("update 2: loss nan")

    rungs = (Rung(1, "scores", diverges, {NATS: 0.01}), Rung(0, "batches", identical_batches, {UPDATES: 0}))
    monkeypatch.setattr(ladder, "RUNGS", rungs)
    found = list(climb(bench, frozen=True))
    assert [(each.number, each.passed) for each in found] == [(1, True), (1, False), (0, True)]
    assert found[1].note == "update 2: loss nan"


def test_a_tolerance_is_frozen_only_where_it_was_measured(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(bench: Bench) -> Iterator[Measurement]:
        yield Measurement("reference", NATS, 0.0, 1.0, alone=True)
        yield Measurement("candidate", NATS, 0.0, 1.0)

    monkeypatch.setattr(ladder, "RUNGS", (Rung(8, "resume", measure, {NATS: 0.01}),))
    assert [each.tolerance for each in climb(bench, frozen=True)] == [0.01, 0.01]
    assert [each.tolerance for each in climb(bench, frozen=False)] == [0.01, None]


def test_the_wrong_rope_base_leaves_the_model_as_it_was(bench: Bench) -> None:
    before = {path.name: path.read_bytes() for path in bench.folder.iterdir()}
    wrong = json.loads((bench.wrong_rope / "config.json").read_text())
    assert (wrong["rope_theta"], wrong["rope_parameters"]["rope_theta"]) == (1e5, 1e5)
    assert {path.name for path in bench.wrong_rope.iterdir()} == set(before)
    assert {path.name: path.read_bytes() for path in bench.folder.iterdir()} == before


def test_a_counted_pad_adds_one_target_to_each_padded_row(bench: Bench) -> None:
    update = bench.updates(1)[0]
    padded = sum(
        int((batch.labels[:, -1] == IGNORE_INDEX).sum()) for batch in update.micro_batches
    )  # a row that fills its batch has no pad
    assert padded > 0
    assert pad_counted(update).num_targets == update.num_targets + padded


def test_controls_get_an_update_in_which_they_can_be_seen(bench: Bench) -> None:
    update = bench.uneven_update
    assert len({batch.num_targets for batch in update.micro_batches}) > 1
    alike = [Example(f"row-{index}", (4,) * 16, 4) for index in range(9)]  # nothing to pad, and the same counts
    with pytest.raises(DataError, match="another --data"):
        _ = replace(bench, examples=alike).uneven_update


class Likely:
    """A model that finds token t's log-probability to be -t."""

    def score(self, batch: Batch) -> np.ndarray[Any, np.dtype[np.float32]]:
        return -batch.tokens[:, 1:].astype(np.float32)


def completion(tokens: Sequence[int], end: bool = False) -> Completion:
    return Completion(tuple(tokens), "stop" if end else "length")


def test_texts_part_at_their_first_difference(bench: Bench) -> None:
    right = {0: completion([7, 8, 9]), 1: completion([7, 8, 9])}
    found = {0: completion([7, 8, 9]), 1: completion([7, 3, 2])}
    places = parted(Likely(), bench, right, found)  # type: ignore[arg-type]
    assert [(place.id, place.position, place.gap) for place in places] == [("1", 1, 5.0)]


def test_an_end_is_a_token_too(bench: Bench) -> None:
    right = {0: completion([7, 8], end=True), 1: completion([7, 8], end=True)}
    found = {0: completion([7, 8], end=True), 1: completion([7, 8, 5])}
    places = parted(Likely(), bench, right, found)  # type: ignore[arg-type]
    assert [(place.id, place.position, place.gap) for place in places] == [("1", 2, 4.0)]  # the end token is 1


def test_no_figure_drops_a_nan() -> None:
    """A device that computes NaN must not pass: Python's max would keep whichever came first."""
    nan = math.nan
    for right, found in (({1: 1.0, 2: 1.0}, {1: 1.0, 2: nan}), ({1: 1.0, 2: 1.0}, {1: nan, 2: 1.0})):
        assert math.isnan(curve_gap(right, found))
    assert math.isnan(most(0.5, nan))
    assert math.isnan(most(nan, 0.5))
    whole, broken = np.ones(3, np.float32), np.full(3, nan, np.float32)
    for names in (("a", "b"), ("b", "a")):
        figure, name = worst({"a": whole, "b": whole}, {names[0]: whole, names[1]: broken})
        assert math.isnan(figure)
        assert name == names[1]
