"""What a run of grpo says at its end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gsm8k_core.rollouts.watch import WINDOW, Figures
from verbs.train.policy_words import outcome_lines, outcome_of

ONE = Figures(16, 128, 0.5, 0.6, 0.5, 100.0, 0.05, 0.6, 12800, 9.0, 0.0, None)


def outcome(*rewards: float, mixed: float = 0.5) -> dict[str, Any]:
    found = outcome_of([replace(ONE, reward=reward, mixed=mixed) for reward in rewards])
    return {**found, "updates": len(rewards), "seconds": 60.0, "reason": "done"}


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        ((0.25, 0.0), "0.250 -> 0.000 on train problems (the first update and the last)"),
        ((0.25,) * WINDOW + (0.75,) * WINDOW, f"0.250 -> 0.750 on train problems (means of {WINDOW} updates)"),
        ((0.25,) * WINDOW + (0.75,) * (WINDOW - 1), "0.250 -> 0.750 on train problems (the first update and the last)"),
    ],
)
def test_no_update_is_in_the_start_and_in_the_end(rewards: tuple[float, ...], said: str) -> None:
    lines = outcome_lines("done", outcome(*rewards), "m")
    assert said in lines[1]
    assert not any(line.startswith("learned") for line in lines)


def test_a_run_without_any_reward_says_that_nothing_was_learned() -> None:
    assert any(line.startswith("learned  nothing") for line in outcome_lines("done", outcome(0, 0, mixed=0), "m"))
