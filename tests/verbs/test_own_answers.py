"""Why an answer was not kept, as `inspect --run` says it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gsm8k_core.config.stored import stored
from gsm8k_core.rollouts.progress import Progress
from gsm8k_core.rollouts.record import as_line, judged
from gsm8k_core.scoring.verify import Mode
from gsm8k_core.tracking.terminal import Terminal
from gsm8k_core.types import Completion, DataError, GSM8KError, Problem, StorageError
from tests.core.rollouts.script import END, decode, encode, problem
from verbs import own_answers
from verbs.own_answers import _Judge, _Selected, _Shown, _verdict

RIGHT = "2 + 3 = 5\n#### 5"


def shown(text: str, problem: Problem, mode: Mode = "steps") -> _Shown:
    """A line of the record, as inspect reads it."""
    line = as_line(judged(problem, 0, Completion(encode(text), "stop", END), decode, 1.0), mode)
    return stored(_Shown, json.loads(line), "records.jsonl", "")


@pytest.mark.parametrize(
    ("last", "mode", "refused"),
    [
        ("$1,000.50", "steps", ""),
        ("1000.5", "steps", "the gold number in another form: 1000.5, not $1,000.50"),
        ("$1,000.50", "gold", ""),
    ],
)
def test_an_answer_is_shown_as_the_run_judged_it_by_the_rows_own_line(last: str, mode: Mode, refused: str) -> None:
    steps = "2 + 3 = 5\n" if mode == "steps" else ""
    row = shown(f"{steps}#### {last}", Problem("train-0", "?", "so\n#### $1,000.50", "1000.5"), mode)
    assert _verdict(row, mode).reason == refused
    assert _verdict(row, mode).verified == (not refused)


@pytest.mark.parametrize("error", [DataError, StorageError])
def test_where_no_rollout_can_be_shown_the_error_is_the_files_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[GSM8KError]
) -> None:
    """And so is the exit code: a file without its rights is no bad data."""

    def refused(path: Path) -> bytes:
        raise error(f"{path.name} cannot be shown")

    monkeypatch.setattr(own_answers, "content_of", refused)
    with pytest.raises(error, match=r"rollout-000001\.jsonl cannot be shown"):
        own_answers._show_policy(
            [tmp_path / "rollout-000001.jsonl"], tmp_path, Progress(), 1, Terminal(json_only=False)
        )


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
    row = shown(text, problem("train-0"))
    selected = [_Selected(id="train-0", sample=sample, chain=chain) for sample, chain in chains.items()]
    found = _Judge("steps", 2, human)(row, selected)
    assert label in found.label
    assert found.label.endswith("--max-length") == (not human)
    assert found.kept == (label == "kept")
