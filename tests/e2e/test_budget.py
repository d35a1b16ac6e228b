"""`--max-time` and the guard through the command line: planned, used, compared, and gone on with."""

from __future__ import annotations

import functools
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import budget_figures
from gsm8k_core.clock import RunClock
from gsm8k_core.training.measure import DevSet
from tests.apples import write_problems
from tests.e2e.conftest import Run
from verbs.train.model import OpenModel
from verbs.train.start import Job

SETTINGS = (
    "--device",
    "cpu",
    "--dtype",
    "float32",
    "--batch-size",
    8,
    "--gradient-accumulation-steps",
    1,
    "--num-epochs",
    2000,
    "--guard-problems",
    12,
    "--eval-max-new-tokens",
    16,
    "--save-steps",
    0,
)


READING = 0.01  # seconds


@pytest.fixture
def brief() -> None:
    """What a run takes of its time is what these are about: nothing of it is left out."""


@pytest.fixture
def from_now() -> None:
    """The clock is this file's own."""


@pytest.fixture(autouse=True)
def clock_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on when it is read: some readings an update, one a token. No machine is slower by it."""
    readings = itertools.count()

    def now() -> float:
        return READING * next(readings)

    monkeypatch.setattr("verbs.process_clock", lambda: RunClock(with_sleep=now, awake=now))
    monkeypatch.setattr("verbs.train.segment.DevSet", functools.partial(DevSet, clock=now))
    monkeypatch.setattr("verbs.train.segment.write_seconds", lambda folder, size: 0.1)
    monkeypatch.setattr("verbs.train.segment.slowdown", lambda: 1.0)
    rehearsed(monkeypatch, 0.0)


def rehearsed(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let an update take so many seconds of that clock, as far as the rehearsal knows."""

    def say(job: Job, model: OpenModel, elapsed: object, terminal: object) -> None:
        (update,) = itertools.islice(job.updates(model.micro_batch_tokens), 1)
        model.rehearsed, model.update_seconds = seconds / update.num_tokens, seconds

    monkeypatch.setattr("verbs.train.verb.rehearse", say)
    monkeypatch.setattr("verbs.train.segment.rehearse", say)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 rows, so that the dev split has some."""
    return write_problems(tmp_path_factory.mktemp("many"), 40, 10)


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def events_of(folder: Path, name: str) -> list[dict[str, Any]]:
    events = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [event for event in events if event["event"] == name]


def test_a_run_is_planned_to_its_budget_compared_with_the_base_and_gone_on_with(
    run: Run, model: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend_name: str
) -> None:
    rehearsed(monkeypatch, 3.0)  # far too slow, but the guard may take two of these
    out = tmp_path / "out"
    flags = ("--model", model, "--data", many, "--backend", backend_name, "--max-time", "25s")
    done = run("train", *flags, "--output-dir", out, *SETTINGS)
    assert done.returncode == 0, done.stderr
    manifest = manifest_of(out)
    plan, outcome = manifest["plan"], manifest["outcome"]
    assert outcome["reason"] == "budget"
    assert outcome["updates"] == plan["updates"] == plan["events"][-1]["total"] < plan["asked"]
    rates = [event["rate"] for event in events_of(out, "update")]
    assert rates[-1] < 0.1 * max(rates)
    assert outcome["seconds"] < 25 + max(event["seconds"] for event in events_of(out, "update"))
    assert "2,000 epochs need about " in done.stdout
    assert "the base answers 0 of " in done.stdout
    guard = outcome["guard"]
    assert guard["verdict"] == f"not distinguishable at n = {guard['base']['problems']}"
    assert [event["when"] for event in events_of(out, "guard")] == ["quarter", "end"]
    assert "do not show that the trained model is better than the base" in done.stdout
    assert "try      a longer --max-time than 25s" in done.stdout

    refused = run("train", "--resume", out)
    assert (refused.returncode, "such as --max-time" in refused.stderr) == (2, True), refused.stderr
    more = run("train", "--resume", out, "--max-time", f"{int(outcome['seconds']) + 8}s")
    assert more.returncode == 0, more.stderr
    assert "the base answers" not in more.stdout
    after = manifest_of(out)
    assert after["outcome"]["updates"] > outcome["updates"]
    assert after["outcome"]["guard"]["base"] == guard["base"]
    assert after["plan"]["events"][: len(plan["events"])] == plan["events"]
    figures = budget_figures.figures(out)
    assert (figures["budget"], figures["updates"]) == (int(outcome["seconds"]) + 8, after["outcome"]["updates"])


def test_an_ample_budget_and_no_guard_leave_the_run_as_it_was(
    run: Run, model: Path, many: Path, tmp_path: Path, backend_name: str
) -> None:
    losses = []
    for name, problems in (("with", 12), ("without", 0)):
        flags = ("--model", model, "--data", many, "--backend", backend_name, "--output-dir", tmp_path / name)
        done = run("train", *flags, *SETTINGS, "--num-epochs", 1, "--max-samples", 80, "--guard-problems", problems)
        assert done.returncode == 0, done.stderr
        losses.append([(event["loss"], event["rate"]) for event in events_of(tmp_path / name, "update")])
        assert manifest_of(tmp_path / name)["plan"]["events"] == [{"update": 0, "total": 10, "rate_factor": 1.0}]
    assert losses[0] == losses[1]
    assert len(events_of(tmp_path / "with", "guard")) == 2
    assert "guard" not in manifest_of(tmp_path / "without")["outcome"]


def test_too_few_dev_problems_are_said(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    flags = ("--model", model, "--data", data, "--backend", "torch", "--output-dir", tmp_path / "out")
    done = run("train", *flags, *SETTINGS, "--num-epochs", 1, "--max-samples", 8)
    assert done.returncode == 0, done.stderr
    assert "dev problems for it, and fewer than 8 show nothing" in done.stdout
    assert manifest_of(tmp_path / "out")["outcome"]["guard"]["verdict"] == "not measured"


@pytest.mark.parametrize(
    ("gone", "update", "says"), [(100.0, 0.0, "1 min 40 s are gone"), (20.0, 90.0, "an update takes about 1 min 30 s")]
)
def test_a_budget_without_time_for_an_update_trains_nothing_and_leaves_nothing(
    run: Run,
    model: Path,
    many: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gone: float,
    update: float,
    says: str,
) -> None:
    monkeypatch.setattr("verbs.process_clock", lambda: RunClock(gone, with_sleep=lambda: 0.0, awake=lambda: 0.0))
    rehearsed(monkeypatch, update)
    out = tmp_path / "out"
    flags = ("--model", model, "--data", many, "--backend", "torch", "--max-time", "60", "--output-dir", out)
    done = run("train", *flags, *SETTINGS)
    assert done.returncode == 3, done.stderr
    assert says in done.stderr
    assert "nothing was trained, no folder was made; give it more, such as --max-time" in done.stderr
    assert not out.exists()


def test_a_budget_that_the_saving_has_no_room_in_leaves_a_run_to_go_on_with(
    run: Run, model: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    flags = ("--model", model, "--data", many, "--backend", "torch", "--max-time", "60", "--output-dir", out)
    with monkeypatch.context() as patched:
        patched.setattr("verbs.train.segment.write_seconds", lambda folder, size: 50.0)
        done = run("train", *flags, *SETTINGS, "--num-epochs", 1, "--max-samples", 16)
    assert done.returncode == 3, done.stderr
    assert re.search(r" s are kept for the last measurement and [3-9] min \d\d s are kept for saving; ", done.stderr)
    assert f"nothing was trained, {out} has what the run made so far and no weights" in done.stderr
    assert manifest_of(out)["status"] == "failed"
    assert not (out / "model").exists()
    more = run("train", "--resume", out, "--max-time", "2h")
    assert more.returncode == 0, more.stderr
    assert manifest_of(out)["outcome"]["updates"] == 2


def test_the_rate_rises_to_its_peak_before_a_budget_that_holds_a_fraction_of_what_was_asked_for(
    run: Run, model: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend_name: str
) -> None:
    rehearsed(monkeypatch, 0.2)
    flags = ("--model", model, "--data", many, "--backend", backend_name, "--max-time", "15s", "--num-epochs", 100_000)
    done = run(
        "train",
        *flags,
        *[*SETTINGS[:-6], "--guard-problems", 0],
        "--warmup-ratio",
        0.1,
        "--output-dir",
        tmp_path / "out",
    )
    assert done.returncode == 0, done.stderr
    rates = [event["rate"] for event in events_of(tmp_path / "out", "update")]
    steps = [new - old for old, new in itertools.pairwise([0.0, *rates])]
    assert max(steps) <= max(rates) / 4
    assert manifest_of(tmp_path / "out")["plan"]["events"][1]["update"] == 0
    assert "plan     as fast as one micro-batch went, the budget ends after" in done.stdout


def test_the_budget_ends_the_run_with_the_model_saved(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    flags = ("--model", model, "--data", data, "--backend", "torch", "--num-epochs", 100_000, "--max-time", "14s")
    done = run("train", *flags, "--output-dir", "out")
    assert done.returncode == 0, done.stderr
    assert manifest_of(tmp_path / "out")["outcome"]["reason"] == "budget"
    assert (tmp_path / "out/model/model.safetensors").exists()
