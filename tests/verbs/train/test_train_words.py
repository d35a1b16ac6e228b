"""What `train` says of its plan."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gsm8k_core.config.train import TrainConfig
from gsm8k_core.rollouts.watch import STOP_CUT
from gsm8k_core.tracking.panel import ROLLOUT
from gsm8k_core.tracking.terminal import Terminal
from gsm8k_core.training.memory import fastest
from gsm8k_core.types import Choice, StepEvent
from verbs import say_choices
from verbs.train import words
from verbs.train.model import no_time
from verbs.train.policy_words import advice
from verbs.train.words import Narrator


@pytest.mark.parametrize(
    ("seconds", "enough", "total", "ends"),
    [
        (100.0, True, 30, "the budget is enough"),
        (900.0, False, 30, "the budget ends before that"),  # not even one more update fits, so the plan stays
        (119.0, False, 30, "the budget ends before that"),  # nor here, with what is kept for the end
        (900.0, False, 10, "the budget ends after 1.0 epochs (10 updates)"),
    ],
)
def test_an_estimate_says_whether_the_budget_is_enough(seconds: float, enough: bool, total: int, ends: str) -> None:
    said: list[str] = []
    job: Any = SimpleNamespace(
        config=TrainConfig(max_time="120", num_epochs=3),
        total=30,
        rows=SimpleNamespace(examples=[0] * 80),
        events=[SimpleNamespace(total=30)],
    )
    steps: Any = SimpleNamespace(resize=lambda number: None)
    terminal: Any = SimpleNamespace(say=said.append)
    values = {"update": 1, "seconds": seconds, "asked": 30, "total": total, "enough": enough}
    Narrator(job, steps, terminal)(StepEvent("estimate", values))
    assert len(said) == 1
    assert said[0].endswith(f"on this machine; {ends}")


@pytest.mark.parametrize(
    ("update", "kept", "why", "enough"),
    [
        (0.0, None, "2.0 s are gone before it;", 1),
        (0.04, None, "2.0 s are gone before it and an update takes about 0.0 s;", 1),
        (
            0.5,
            {"the last measurement": 0.25, "saving": 75.0},
            "2.0 s are gone before it, an update takes about 0.5 s, 0.2 s are kept for the last measurement and "
            "1 min 15 s are kept for saving;",
            3,
        ),
        (
            0.0,
            {"the last measurement": 0.0, "saving": 1.5},
            "2.0 s are gone before it and 1.5 s are kept for saving;",
            1,
        ),
    ],
)
def test_a_time_that_holds_no_update_is_said_in_parts_that_add_up(
    update: float, kept: dict[str, float] | None, why: str, enough: int
) -> None:
    job: Any = SimpleNamespace(config=TrainConfig(max_time="3.5s"))
    said = no_time(job, 2.0, update, "no folder was made", kept)
    assert f"--max-time 3.5s has no time for one update: {why} nothing was trained, no folder was made;" in said
    assert said.endswith(f"such as --max-time {enough}m")


def test_a_warning_comes_with_the_answer_that_made_it() -> None:
    said: list[str] = []
    job: Any = SimpleNamespace(config=TrainConfig(), total=30, events=[SimpleNamespace(total=30)])
    terminal: Any = SimpleNamespace(say=said.append)
    values = {"update": 25, "warnings": ["it repeats"], "texts": ["fine", "8 8\n" * 99, "fine", "fine"], "telling": 1}
    Narrator(job, SimpleNamespace(), terminal)(StepEvent("probe", values))  # type: ignore[arg-type]
    (line,) = said
    first, second = line.split("\n")
    assert first == "health   update 25: it repeats"
    assert second.startswith("answer   8 8 8 8")
    assert len(second) <= 175
    healthy = {"update": 50, "warnings": [], "texts": ["fine"] * 4}
    Narrator(job, SimpleNamespace(), terminal)(StepEvent("probe", healthy))  # type: ignore[arg-type]
    assert said[1:] == []


def test_how_fast_each_dtype_was_is_said_with_verbose_alone(capsys: pytest.CaptureFixture[str]) -> None:
    choices = {"dtype": fastest({"float32": 0.4, "bfloat16": 0.2}), "device": Choice("cpu", "there is no GPU: 2 cores")}
    say_choices(Terminal(json_only=False), choices)
    short = capsys.readouterr().out
    assert "400 ms" not in short
    assert "dtype    bfloat16: as it was timed here" in short
    assert "there is no GPU: 2 cores" in short
    say_choices(Terminal(json_only=False, verbose=True), choices)
    assert "float32 400 ms, bfloat16 200 ms" in capsys.readouterr().out


def test_what_to_try_after_a_policy_that_is_no_better() -> None:
    worse, same = advice(True, 3e-6, "2h", 99), advice(False, 3e-6, "2h", 99)
    assert "a lower rate (--learning-rate 1e-06); --kl 0.01" in worse
    assert "--learning-rate" not in same
    assert "--guard-problems" in same
    assert all("--max-time than 2h: hundreds of" in line and "\n" not in line for line in (worse, same))
    done = advice(False, 3e-6, "", 400)  # neither time nor updates are what was short
    assert done.startswith("try      more --num-epochs; --recipe rft")
    assert "--max-time" not in done


@pytest.mark.parametrize(("reason", "tries"), [("done", "more --num-epochs"), ("budget", "--max-time than 2h")])
def test_more_time_is_advised_where_time_ended_a_policys_run(reason: str, tries: str) -> None:
    said = list[str]()
    job: Any = SimpleNamespace(config=TrainConfig(recipe="grpo"))
    guard = {"end": {}, "verdict": "not distinguishable at n = 9", "base": {}}
    result = {"reason": reason, "updates": 9, "guard": guard}
    words._say_guard(job, Path("m"), result, SimpleNamespace(say=said.append))  # type: ignore[arg-type]
    assert tries in said[1]
    words._say_guard(job, Path("m"), {**result, "reason": STOP_CUT}, SimpleNamespace(say=said.append))  # type: ignore[arg-type]
    assert len(said) == 3  # what to try is said with the reason


@pytest.mark.parametrize(("context", "few"), [(24, " --max-new-tokens 24"), (512, ""), (None, "")])
def test_what_to_type_next_is_taken_by_a_model_that_reads_few_tokens(context: int | None, few: str) -> None:
    said, source = list[str](), SimpleNamespace(model=SimpleNamespace(context=context))
    job: Any = SimpleNamespace(config=TrainConfig(model="m"), rows=SimpleNamespace(examples=[]), source=source)
    terminal: Any = SimpleNamespace(say=said.append, result=lambda found: None)
    result = {"reason": "done", "updates": 1, "seconds": 9.0, "first_loss": 1.0, "last_loss": 1.0}
    words.say_outcome(job, Path("runs/x"), Path("runs/x/model"), Path("runs/x/best"), result, terminal)
    assert f"next     python cli.py compare --base-model m --trained-model runs/x{few}" in said
    assert f"talk     python cli.py chat --model runs/x{few}" in said


FIGURES = {"reward": 0.25, "solve_rate": 0.5, "mixed": 0.4, "length": 91.6, "cut": 0.01, "entropy": 0.612}
FIGURES |= {"clipped": 0.0, "asked": 16, "sampling_speed": 1360.2, "training_speed": 3500.7}
TIMES = {"seconds": 12.1, "eta": 3600.0, "elapsed": 60.0, "loss": -0.02}


@pytest.mark.parametrize(("update", "said"), [(1, True), (2, False), (14, False), (15, True), (300, True)])
def test_a_policys_figures_are_said_now_and_then_and_its_reward_always(update: int, said: bool) -> None:
    lines, notes = list[str](), list[str]()
    job: Any = SimpleNamespace(config=TrainConfig(recipe="grpo", max_time="2h"), events=[SimpleNamespace(total=300)])
    steps: Any = SimpleNamespace(advance=lambda note, done: notes.append(note))
    terminal: Any = SimpleNamespace(say=lines.append)
    values = {"update": update, "total": 300, **TIMES, **FIGURES}
    Narrator(job, steps, terminal)(StepEvent("update", values))
    assert notes == ["reward 0.250  12.1 s, 1 h 00 min to go, budget 1 h 59 min"]
    assert bool(lines) == said
    if said:
        assert "50.0 % of the problems solved, 40.0 % of the groups mixed; 92 tokens an answer, 1.0 % cut" in lines[0]
        assert "entropy 0.61; 1,360 sampled and 3,501 trained tokens/s" in lines[0]
    assert not any("loss" in text for text in (*lines, *notes))


def test_a_long_rollout_gives_a_sign_of_life_where_nothing_else_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    now, lines = [0.0], list[str]()
    monkeypatch.setattr(words, "time", SimpleNamespace(monotonic=lambda: now[0]))
    job: Any = SimpleNamespace(config=TrainConfig(recipe="grpo"), events=[SimpleNamespace(total=300)])
    steps: Any = SimpleNamespace(advance=lambda note, done: None)
    narrator = Narrator(job, steps, SimpleNamespace(say=lines.append))  # type: ignore[arg-type]
    for now[0] in range(0, 180, 10):
        if now[0] == 70:
            narrator(StepEvent("update", {"update": 15, "total": 300, **TIMES, **FIGURES}))  # which makes a line
        if now[0] == 100:
            narrator(StepEvent("update", {"update": 16, "total": 300, **TIMES, **FIGURES}))  # and none
        values = {"update": 2, "answered": int(now[0]), "of": 1280, "sampling_speed": 240.2}
        narrator(StepEvent(ROLLOUT, values))
    said = [line for line in lines if line.startswith("rollout")]
    assert said == [f"rollout  update 2: {at} of 1,280 answers, 240 tokens/s" for at in (60, 130)]
