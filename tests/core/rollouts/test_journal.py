"""The answers of grpo's rollouts on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from gsm8k_core.rollouts import journal
from gsm8k_core.rollouts.group import Sampled, grouped
from gsm8k_core.rollouts.record import judged
from gsm8k_core.types import Completion, StorageError
from tests.core.rollouts.script import END, RIGHT, decode, encode, problem

COMPLETION = Completion(encode(RIGHT), "stop", END)
ANSWER = judged(problem("train-1"), 0, COMPLETION, decode, 1.0)
SAMPLED = Sampled(0, (grouped("train-1", [ANSWER], lambda answer: 1.0),), 1, 1.0, 0.5, {})


def test_the_newest_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "KEPT", 3)
    rollouts = tmp_path / "rollouts"
    for update in (1, 99, 999_999, 1_000_000, 1_000_001):
        journal.write(rollouts, SAMPLED, update, "steps")
    assert [journal.update_of(path) for path in journal.files(rollouts)] == [999_999, 1_000_000, 1_000_001]
    # A run that went back to a checkpoint makes it again, and what follows.
    journal.write(rollouts, SAMPLED, 1_000_000, "steps")
    assert [journal.update_of(path) for path in journal.files(rollouts)] == [999_999, 1_000_000]
    (rollouts / "rollout-000012-2.jsonl").write_text("a person's copy")
    journal.write(rollouts, SAMPLED, 1_000_001, "steps")
    assert len(journal.files(rollouts)) == 3
    assert (rollouts / "rollout-000012-2.jsonl").exists()


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "rollouts").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="is a link"):
        journal.write(tmp_path / "rollouts", SAMPLED, 1, "steps")
    assert not list((tmp_path / "elsewhere").iterdir())
