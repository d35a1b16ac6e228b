"""What is drawn of a run of grpo: its reward and what warns, in a sketch, a picture, on the page, in a tracker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gsm8k_core.report import charts, policy
from gsm8k_core.report.curves import RunCurves, read_curves
from gsm8k_core.report.figure import save_picture, sketch
from gsm8k_core.tracking.trackers import measures
from gsm8k_core.types import StepEvent

FIGURES = {"solve_rate": 0.5, "mixed": 0.4, "length": 90.0, "cut": 0.02, "entropy": 0.6, "clipped": 0.0}


def event(update: int, reward: float | None) -> dict[str, Any]:
    own = {} if reward is None else {"reward": reward, **FIGURES}
    return {"update": update, "loss": -0.01 * update, "rate": 1e-6, "grad_norm": 0.5, **own}


def run(folder: Path, with_reward: bool) -> RunCurves:
    folder.mkdir()
    path = folder / "metrics.jsonl"
    events = [event(update, 0.1 * update if with_reward else None) for update in range(1, 5)]
    path.write_text("".join(json.dumps({"event": "update", **each}) + "\n" for each in events))
    return RunCurves(folder.name, folder, read_curves(path))


def test_the_reward_is_drawn_and_the_loss_is_not(tmp_path: Path) -> None:
    found = run(tmp_path / "grpo", with_reward=True)
    assert "loss" not in found.curves
    assert set(FIGURES) | {"reward"} <= set(policy.CURVES)
    titles = [line for line in sketch([found], 1) if not line.startswith((" ", "0", "1"))]
    assert titles[0] == "reward"
    assert "loss" not in titles
    assert found.summary()["updates"] == 4
    assert found.summary()["reward"] == pytest.approx(0.4)
    assert found.summary()["last_loss"] is None
    drawn = charts.draw(found.curves)
    assert "Reward" in drawn[0].title
    assert not any("Loss" in chart.title for chart in drawn)
    assert len(drawn) >= 4
    assert drawn[0].lines[0].dots[0][1] > drawn[0].lines[0].dots[-1][1]  # from the top: it rises


def test_how_fast_a_policy_goes_is_what_it_says_itself(tmp_path: Path) -> None:
    """Its seconds are those of sampling too, and its tokens the trained alone: one by the other is no speed."""
    timed = {"num_tokens": 900, "seconds": 45.0}
    lines = [
        {"event": "update", **event(update, reward), **timed, "sampling_speed": 1300.0, "training_speed": 3500.0}
        for update, reward in ((1, 0.1), (2, 0.2), (3, None))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curves = read_curves(tmp_path / "metrics.jsonl")
    assert curves["tokens/s"].updates == [3]  # that one's reward is not there
    del curves["tokens/s"]
    (speed,) = (chart for chart in charts.draw(curves) if "per second" in chart.title)
    assert speed.title == "Tokens per second, sampled and trained"
    assert [line.label for line in speed.lines] == ["sampled tokens/s", "trained tokens/s"]
    assert speed.y_labels[-1] == "0"  # or noise would look like a change


def test_of_another_recipe_the_loss_is_drawn_as_ever(tmp_path: Path) -> None:
    found = run(tmp_path / "sft", with_reward=False)
    assert sketch([found], 1)[0] == "loss"
    assert "Loss" in charts.draw(found.curves)[0].title
    assert policy.drawn(found.curves) == []


@pytest.mark.parametrize("kinds", [(True,), (False,), (True, False)])
def test_a_picture_is_made_of_either_and_of_both(tmp_path: Path, kinds: tuple[bool, ...]) -> None:
    runs = [run(tmp_path / f"run-{number}", kind) for number, kind in enumerate(kinds)]
    save_picture(runs, tmp_path / "curves.svg", 1)
    text = (tmp_path / "curves.svg").read_text()
    assert ("<!-- reward -->" in text) == (True in kinds)
    assert ("<!-- entropy -->" in text) == (True in kinds)
    assert ("<!-- loss (nats per target) -->" in text) == (False in kinds)


def test_a_tracker_gets_the_figures_and_no_loss_of_a_policy() -> None:
    found = measures(StepEvent("update", event(3, 0.3)))
    assert found["train/reward"] == 0.3
    assert found["train/entropy"] == 0.6
    assert "train/loss" not in found
    assert "train/loss" in measures(StepEvent("update", event(3, None)))
