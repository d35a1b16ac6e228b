"""Why an answer was not kept, as `inspect --run` says it."""

from __future__ import annotations

import pytest

from verbs.own_answers import _Judge, _Selected, _Shown

RIGHT = "2 + 3 = 5\n#### 5"


@pytest.mark.parametrize(
    ("text", "chains", "human", "label"),
    [
        (RIGHT, {0: ["2+3"]}, True, "kept"),
        ("2 + 3 = 5\n#### 6", {}, True, "wrong number"),
        (RIGHT, {1: ["2+3"]}, True, "a kept answer has the same equations"),
        (RIGHT, {1: ["3+2"], 2: ["1+4"]}, True, "there are 2 that are less alike (--keep)"),
        (RIGHT, {1: ["3+2"]}, True, "longer than --max-length, or of the human answer's equations"),
        (RIGHT, {}, False, "verified, and not kept: longer than --max-length"),
    ],
)
def test_why_an_answer_was_not_kept(text: str, chains: dict[int, list[str]], human: bool, label: str) -> None:
    row = _Shown(id="train-0", sample=0, question="?", gold="5", completion=text, finish_reason="stop")
    selected = [_Selected(id="train-0", sample=sample, chain=chain) for sample, chain in chains.items()]
    found = _Judge("steps", 2, human)(row, selected)
    assert label in found.label
    assert found.label.endswith("--max-length") == (not human)
    assert found.kept == (label == "kept")
