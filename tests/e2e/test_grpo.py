"""`train --recipe grpo` on sums that a tiny model has begun to learn: what it tells, kills, stops, refusals."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import backends
import cli
from gsm8k_core.rollouts.watch import STOP_CUT, STOPS
from gsm8k_core.training import runs
from gsm8k_core.training.pilot import RunPilot
from gsm8k_core.types import Completion, OutOfMemoryError
from tests.e2e import faulty_rank
from tests.e2e.conftest import Run
from tests.e2e.sums import BOTH, COMMON, LONGEST, QUICKEST, Finished
from tests.e2e.sums import data as data
from tests.e2e.sums import model as model
from tests.launched import are_gone, errors_of, launch
from tests.waiting import CEILING, wait_for
from verbs.train import policy, policy_words, sampler, verb
from verbs.train.policy import PolicyRun

FLAGS = f"{COMMON} --guard-problems 0"
SETTINGS = (
    f"{FLAGS} --recipe grpo --learning-rate 5e-4 --num-epochs 1 --prompts-per-update 16 --samples 4 "
    f"--overlong punish --save-steps 3 --updates-per-rollout 2 --sample-max-new-tokens {LONGEST}"
).split()
UPDATES = 10  # 80 problems, 16 an update, each answer trained twice
TIMES = {"seconds", "elapsed", "eta", "training_speed", "sampling_speed"}


class Trained(Finished):
    """One of --recipe grpo."""

    @property
    def updates(self) -> list[dict[str, Any]]:
        """The update events, without what a clock says."""
        events = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [
            {name: value for name, value in event.items() if name not in TIMES}
            for event in events
            if event["event"] == "update"
        ]


@pytest.fixture(scope="module")
def begun(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows the form, and is right now and then."""
    folder = tmp_path_factory.mktemp("grpo") / "sft"
    update = ("--batch-size", "16", "--gradient-accumulation-steps", "1")
    flags = (*update, "--learning-rate", "5e-3", "--num-epochs", "8", "--save-steps", "0")
    asked = ["train", *FLAGS.split(), *flags, "--backend", QUICKEST, "--model", str(model), "--data", str(data)]
    assert cli.main([*asked, "--output-dir", str(folder)]) == 0
    return folder / "model"


@pytest.fixture(scope="module")
def whole(begun: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run, with copies of its folder in a rollout and in updates; the newest checkpoints then are of 3 and of 6."""
    trained = Trained(tmp_path_factory.mktemp("grpo") / "whole")
    answer, after, rollouts = PolicyRun._answer, RunPilot.after, list[int]()

    def copy(name: str) -> None:
        trained.killed[name] = trained.folder.with_name(name)
        shutil.copytree(trained.folder, trained.killed[name])

    def answered(self: PolicyRun, block: Sequence[Any], on_token: Any) -> list[Completion]:
        found = answer(self, block, on_token)
        rollout = block[0].sample // 4
        if rollouts.count(rollout) == 0 and rollout == 2:
            copy("rollout of update 5")
        rollouts.append(rollout)
        return found

    def followed(self: RunPilot[Any], stats: Any, live: Any) -> Any:
        if stats.update in (2, 5, 8):
            copy(f"update {stats.update}")
        return after(self, stats, live)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PolicyRun, "_answer", answered)
        patch.setattr(RunPilot, "after", followed)
        asked = ["train", *SETTINGS, "--backend", QUICKEST, "--model", str(begun), "--data", str(data)]
        assert cli.main([*asked, "--output-dir", str(trained.folder)]) == 0
    return trained


PLACES = ["update 2", "rollout of update 5", "update 5"]  # the first from the beginning


def test_what_an_update_tells(whole: Trained) -> None:
    updates = whole.updates
    assert [each["update"] for each in updates] == list(range(1, UPDATES + 1))
    for each in updates:
        assert each["asked"] in ((16, 32, 48, 64) if each["update"] % 2 else (0,))
        assert 0 <= each["reward"] <= each["solve_rate"] <= 1
        assert each["entropy"] > 0
        assert 0 < each["length"] <= 13
    assert any(each["mixed"] > 0 for each in updates)
    assert whole.manifest["grpo"]["decisions"]["verify"]["name"] == "steps"
    outcome = whole.manifest["outcome"]["policy"]
    assert outcome["answers"] == 4 * outcome["problems"] == 4 * sum(each["asked"] for each in updates)
    rates = [each["rate"] for each in updates]
    assert rates == pytest.approx([5e-4 * update / 10 for update in range(1, UPDATES + 1)])


def test_its_answers_are_on_the_disk_and_inspect_shows_them(whole: Trained, run: Run) -> None:
    files = sorted((whole.folder / "rollouts").iterdir())
    assert [file.name for file in files] == [f"rollout-{update:06d}.jsonl" for update in range(1, UPDATES, 2)]
    for file, update in zip(files, whole.updates[::2], strict=True):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert len(rows) == 4 * update["asked"]
        assert [row["reward"] for row in rows] == [float(row["verified"]) for row in rows]
        first = rows[: 4 * 16]
        assert sum(row["reward"] for row in first) / len(first) == pytest.approx(update["reward"])
        for at in range(0, len(rows), 4):
            assert sum(row["advantage"] for row in rows[at : at + 4]) == pytest.approx(0)
    found = json.loads(run("inspect", "--run", whole.folder, "--json").stdout)
    assert [each["update"] for each in found["rollouts"]] == list(range(1, UPDATES, 2))
    assert [each["problems"] for each in found["rollouts"]] == [each["asked"] for each in whole.updates[::2]]
    said = run("inspect", "--run", whole.folder, "--show", "1").stdout
    assert len(re.findall(r", update 9, sample \d+, gold ", said)) == 4
    assert re.search(r"reward 1, advantage \+0\.\d\d\]", said)
    assert re.search(r"reward 0, advantage -0\.\d\d: ", said)


def test_a_damaged_rollout_is_left_out_of_what_inspect_shows_and_said(whole: Trained, tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(whole.folder / "rollouts", folder / "rollouts")
    shutil.copy(whole.folder / "run.json", folder)
    newest, *others = sorted((folder / "rollouts").iterdir(), reverse=True)
    newest.write_text("{}\n")
    done = run("inspect", "--run", folder, "--show", "1")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert re.search(r"left out \S+rollout-000009\.jsonl:1: id .*; bring the file back, or start a new run", said)
    assert ", update 7, sample " in said
    for other in others:
        other.write_text("{}\n")
    done = run("inspect", "--run", folder)
    assert (done.returncode, "rollout-000009.jsonl:1" in done.stderr) == (4, True)


@pytest.mark.parametrize("place", PLACES)
def test_killed_anywhere_it_comes_to_the_same_updates_and_the_same_model(
    whole: Trained, tmp_path: Path, place: str
) -> None:
    again = Trained(tmp_path / "again")
    shutil.copytree(whole.killed[place], again.folder)
    assert cli.main(["train", "--resume", str(again.folder)]) == 0
    assert again.manifest["status"] == "done"
    assert again.updates == whole.updates
    assert rolled(again) == rolled(whole)
    assert again.manifest["outcome"]["policy"] == whole.manifest["outcome"]["policy"]
    ours, theirs = again.weights, whole.weights
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


@BOTH
def test_a_run_goes_on_with_the_other_backend(whole: Trained, tmp_path: Path) -> None:
    again = Trained(tmp_path / "again")
    shutil.copytree(whole.killed["update 8"], again.folder)
    other = next(name for name in backends.PROVIDERS if name != QUICKEST)
    assert cli.main(["train", "--resume", str(again.folder), "--backend", other, "--device", "cpu"]) == 0
    assert again.manifest["status"] == "done"
    assert again.updates[:6] == whole.updates[:6]
    assert len(again.updates) == UPDATES
    # Its next update trains what the first backend sampled: the same answers, by weights that are the same.
    assert again.updates[6]["reward"] == pytest.approx(whole.updates[6]["reward"], abs=0.1)


def rolled(trained: Trained) -> list[list[dict[str, Any]]]:
    """What was answered, but for the times."""
    files = sorted((trained.folder / "rollouts").iterdir())
    return [[{**json.loads(line), "seconds": 0} for line in file.read_text().splitlines()] for file in files]


def test_two_processes_go_on_and_one_goes_on_with_what_they_left(
    whole: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the memory of one of them runs out in a rollout, and kill -9 ends it in a later one."""
    again = Trained(tmp_path / "again")
    shutil.copytree(whole.killed["rollout of update 5"], again.folder)
    monkeypatch.setenv("FAULTS", "1:memory 8:kill")
    flags = ["--backend", QUICKEST]  # a run says which one it was begun with, and a launcher starts its own
    started = launch(QUICKEST, 2, [faulty_rank.__file__, "train", "--resume", str(again.folder), *flags], tmp_path)
    said = "\n".join(started.communicate(timeout=CEILING))
    wait_for(lambda: are_gone(str(again.folder)))
    assert "no memory for the answers\n         going on with 32 answers at once" in said
    (error,) = errors_of(said)
    assert re.fullmatch(r"error: rank 1 .* is gone, so all ranks have ended; .* with train --resume", error)
    assert again.manifest["status"] == "running"
    assert again.manifest["choices"]["ranks"]["name"] == "2"
    assert 4 < len(again.updates) < UPDATES
    assert cli.main(["train", "--resume", str(again.folder), *flags]) == 0
    assert again.manifest["status"] == "done"
    assert again.manifest["grpo"]["together"] == 32
    for ours, theirs in zip(again.updates, whole.updates, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)  # answers, rewards, losses
    assert all(np.allclose(again.weights[name], value, atol=1e-5) for name, value in whole.weights.items())


def stopped_at(answers: int, patch: pytest.MonkeyPatch) -> None:
    """A signal in the middle of the rollout in which so many blocks were asked."""
    asked, answer = [0], PolicyRun._answer

    def counted(self: PolicyRun, *given: Any) -> Any:
        asked[0] += 1
        return answer(self, *given)

    @contextmanager
    def signalled(last: object, is_drawn: object) -> Iterator[Callable[[], bool]]:
        yield lambda: asked[0] >= answers

    patch.setattr(PolicyRun, "_answer", counted)
    patch.setattr(verb, "stopping", signalled)


def test_a_signal_in_a_rollout_keeps_the_weights_and_the_run_goes_on_as_if_there_was_none(
    whole: Trained, begun: Path, data: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = Trained(tmp_path / "again")
    asked = ("--backend", QUICKEST, "--model", begun, "--data", data, "--output-dir", again.folder)
    with monkeypatch.context() as patch:
        stopped_at(12, patch)
        done = run("train", *SETTINGS, *asked)
    assert done.returncode == 75, done.stderr
    assert again.manifest["status"] == "stopped"
    made = len(again.updates)
    assert 0 < made < UPDATES
    assert made % 2 == 0  # the signal came before the rollout's first update
    assert run("train", "--resume", again.folder).returncode == 0
    assert again.updates == whole.updates
    assert all(np.array_equal(again.weights[name], value) for name, value in whole.weights.items())


def test_a_signal_in_the_first_rollout_leaves_no_model_and_loses_nothing(
    begun: Path, data: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "again"
    asked = ("--backend", QUICKEST, "--model", begun, "--data", data, "--output-dir", folder)
    stopped_at(1, monkeypatch)
    done = run("train", *SETTINGS, *asked)
    assert done.returncode == 75, done.stderr
    assert "stopped by a signal before there was a trained model" in done.stdout
    assert not (folder / "model").exists()
    assert runs.read_manifest(folder) is not None


def test_where_memory_runs_out_half_as_many_are_asked_at_once_and_the_texts_are_the_same(
    whole: Trained, begun: Path, data: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate, sizes = sampler.Sampler.generate, list[int]()

    def short(self: Any, *given: Any) -> Any:
        sizes.append(self.together)
        if self.together > 16:
            raise OutOfMemoryError("no memory for the answers")
        yield from generate(self, *given)

    monkeypatch.setattr(sampler.Sampler, "generate", short)
    folder = tmp_path / "short"
    asked = ("--backend", QUICKEST, "--model", begun, "--data", data, "--output-dir", folder)
    done = run("train", *SETTINGS, *asked)
    assert done.returncode == 0, done.stderr
    assert sizes[:3] == [64, 32, 16]
    assert set(sizes[2:]) == {16}
    assert "going on with 16 answers at once" in done.stdout
    found = Trained(folder)
    assert found.manifest["grpo"]["together"] == 16
    assert [each["reward"] for each in found.updates] == [each["reward"] for each in whole.updates]


def test_a_dry_run_says_what_an_update_is_and_what_is_not_known(begun: Path, data: Path, run: Run) -> None:
    done = run("train", *SETTINGS, "--backend", QUICKEST, "--model", begun, "--data", data, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "10 updates of 64 answers" in done.stdout
    assert "what sampling takes is known after the first update" in done.stdout
    assert "together 64: " in done.stdout
    assert "epochs)" not in done.stdout


ONE_BY_ONE = ("--updates-per-rollout", "1", "--max-samples", "48", "--num-epochs", "3")


def test_a_run_that_its_figures_end_has_a_model_and_says_why(
    begun: Path, data: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = STOP_CUT
    assert set(policy_words.ENDS) == set(policy_words.TRIES) == set(STOPS)
    monkeypatch.setattr(policy, "reason_to_end", lambda history: reason if len(history) == 2 else None)
    found = Trained(tmp_path / "ended")
    asked = ("--backend", QUICKEST, "--model", begun, "--data", data, "--output-dir", found.folder)
    done = run("train", *SETTINGS, *ONE_BY_ONE, *asked)
    assert done.returncode == 0, done.stderr
    assert (found.manifest["status"], found.manifest["outcome"]["reason"]) == ("stopped", reason)
    assert f"why      {policy_words.ENDS[reason]}" in done.stdout
    assert f"try      {policy_words.TRIES[reason]}" in done.stdout
    assert "ended early after 2 updates" in done.stdout
    assert "reward   0." in done.stdout
    assert "reward 0." in done.stderr
    assert "loss" not in done.stderr
    assert found.weights


def test_a_rollout_that_has_no_time_ends_the_run_with_what_there_is(
    begun: Path, data: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("--backend", QUICKEST, "--model", begun, "--data", data)
    for updates, code in ((0, 3), (2, 0)):
        monkeypatch.setattr(PolicyRun, "_late", lambda self, most=updates: len(self.policy.history) >= most)
        found = Trained(tmp_path / f"late-{updates}")
        done = run("train", *SETTINGS, *ONE_BY_ONE, *asked, "--output-dir", found.folder)
        assert done.returncode == code, done.stderr
        if not updates:
            assert "has no time for one update" in done.stderr
            continue
        outcome = found.manifest["outcome"]
        assert (outcome["reason"], outcome["updates"]) == ("budget", 2)
        assert "ended by the time budget (9h) after 2 updates" in done.stdout
        assert found.manifest["plan"]["updates"] == 2
        assert found.weights


@pytest.mark.parametrize("method", ["full", "lora"])
def test_near_the_first_weights(method: str, begun: Path, data: Path, tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "near"
    asked = ("--backend", QUICKEST, "--model", begun, "--data", data, "--output-dir", folder, "--method", method)
    flags = ("--updates-per-rollout", "1", "--kl", "0.1", "--learning-rate", "5e-3", "--max-samples", "48")
    limit = ("--max-length", "32")  # which no human answer keeps
    done = run("train", *SETTINGS, *flags, *limit, *asked)
    assert done.returncode == 0, done.stderr
    assert "rows     48 problems to ask; no human answer is trained, so --max-length leaves none out" in done.stdout
    assert ("kl       0.1: the first weights are held in memory as well" in done.stdout) == (method == "full")
    drift = [each["kl"] for each in Trained(folder).updates]
    assert drift[0] == pytest.approx(0, abs=1e-6)
    assert drift[-1] > 1e-4


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--sample-temperature", "0.7"), "--sample-temperature 0.7: --recipe grpo samples at 1"),
        (("--keep", "2"), "--keep is for rejection sampling; leave it out, or take --recipe rft"),
        (("--gradient-accumulation-steps", "2"), "--gradient-accumulation-steps changes nothing with --recipe grpo"),
        (("--drop-long",), "--drop-long changes nothing with --recipe grpo"),
        (("--method", "lora", "--lora-dropout", "0.1"), "--lora-dropout 0.1: with --recipe grpo the policy"),
        (("--samples", "1"), "--samples 1: --recipe grpo compares answers to one problem; give 2 or more"),
        (("--recipe", "sft", "--kl", "0.1"), "--kl is for --recipe grpo; add that, or leave it out"),
        (
            ("--clip", "1.5"),
            "--clip takes one number, or two such as 0.2,0.28: both above 0, the first below 1 (got '1.5')",
        ),
    ],
)
def test_what_does_not_go_with_it_is_refused_in_one_line(
    run: Run, model: Path, data: Path, flags: Sequence[str], said: str
) -> None:
    done = run("train", "--model", model, "--data", data, "--recipe", "grpo", *flags)
    assert done.returncode == (3 if "vllm" in flags else 2)
    assert said in done.stderr
    assert len(re.findall("error:", done.stderr)) == 1
