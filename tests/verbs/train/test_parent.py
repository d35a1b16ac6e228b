"""What the parent of a training process takes for progress, and what it says, with a child that the test plays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from verbs.train import parent

KILLED = -9


def supervised(children: list[dict[str, Any]], run: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int, str]:
    """Each child says its words and is killed; after the last, one ends well. The code, the starts, what was said."""
    said: list[str] = []
    left = iter(children)

    def play(child: Any, command: list[str], link: dict[str, Any], told: Any) -> int:
        starts.append(command)
        words = next(left, None)
        for name, value in {"run": run, **(words or {})}.items():
            setattr(told, name, value)
        return 0 if words is None else KILLED

    starts: list[list[str]] = []
    monkeypatch.setattr(parent._Child, "run", play)
    monkeypatch.setattr(parent, "_say", said.append)
    return parent.supervise(["train"]), len(starts), "\n".join(said)


def sampling(answers: int) -> dict[str, Any]:
    return {"phase": "sample-1", "place": "rollouts/round-1", "answers": answers}


def test_new_answers_are_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children = [sampling(answers) for answers in (0, 64, 192, 320, 448, 576)]
    code, starts, said = supervised(children, tmp_path, monkeypatch)
    assert (code, starts) == (0, 7)
    assert "going on with sample-1, where 192 answers are there, with half as many at once" in said
    assert "micro-batch" not in said


def test_a_child_that_is_killed_in_the_same_block_again_and_again_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, starts, said = supervised([sampling(64)] * 9, tmp_path, monkeypatch)
    assert (code, starts) == (6, 4)
    assert "again and again" in said


def test_a_training_between_others_goes_on_from_its_own_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rollouts/warm/checkpoints/update-000008").mkdir(parents=True)
    (tmp_path / "checkpoints/update-000099").mkdir(parents=True)
    warm = {"phase": "warm", "place": "rollouts/warm", "answers": None}
    code, _, said = supervised([warm], tmp_path, monkeypatch)
    assert code == 0
    assert "going on from update-000008 of warm with half the padded tokens in a micro-batch" in said


def test_a_run_of_sft_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoints/update-000004").mkdir(parents=True)
    code, starts, said = supervised([{}] * 9, tmp_path, monkeypatch)
    assert (code, starts) == (6, 4)
    assert "going on from update-000004 with half the padded tokens in a micro-batch" in said
