"""The card of an export: what it says of the training, where the scores are another test's."""

from __future__ import annotations

from typing import Any

import pytest

from gsm8k_core.report.export_card import Taken, make_export_card

ROWS = {"rows": {"train": 30}, "outcome": {"updates": 60}}


@pytest.mark.parametrize(
    ("manifest", "updates", "said"),
    [
        (ROWS, 50, "50 updates over 30 rows"),  # best/, of a run that went on to 60
        (ROWS, None, None),
        ({}, 50, None),
        ({**ROWS, "trained": {"rows": 51, "own": 21}}, 60, "60 updates over 51 rows"),  # --recipe rft
    ],
)
def test_it_tells_of_the_training_of_the_weights_that_are_exported(
    manifest: dict[str, Any], updates: int | None, said: str | None
) -> None:
    taken = Taken("one", "a folder", "gguf", "0" * 64, manifest, updates, {}, {})
    lines = [line for line in make_export_card(taken, None).splitlines() if line.startswith("- trained:")]
    assert lines == ([f"- trained: {said}"] if said else [])
