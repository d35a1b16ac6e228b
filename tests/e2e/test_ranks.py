"""A run on two processes as a person starts it: what ends one of them ends both, and what is there stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

import backends
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.ranks import world
from gsm8k_core.training.checkpoints import newest
from gsm8k_core.types import RankLostError, UsageError
from tests.e2e.conftest import ROOT, Run
from tests.launched import FSDP, errors_of, launch
from tests.waiting import CEILING, wait_for
from verbs.train import verb

ENDLESS = "--device cpu --dtype float32 --max-samples 24 --batch-size 2 --num-epochs 2000 --save-steps 4"
QUIET = "--guard-problems 0 --probe-steps 0"


@pytest.fixture
def started(
    request: pytest.FixtureRequest, model: Path, data: Path, tmp_path: Path
) -> Iterator[tuple[subprocess.Popen[str], dict[int, psutil.Process]]]:
    """A run on two processes with two checkpoints: its launcher, and the processes by rank."""
    if not backends.installed(backend := "torch" if request.param == "fsdp" else request.param):
        pytest.skip(f"backend {backend} is not installed here")
    flags = ["--model", str(model), "--data", str(data), *ENDLESS.split(), *QUIET.split(), "--output-dir", "run"]
    launcher = launch(request.param, 2, [str(ROOT / "cli.py"), "train", *flags], tmp_path)
    metrics = tmp_path / "run/metrics.jsonl"
    try:
        wait_for(lambda: metrics.exists() and metrics.read_text().count('"event": "save"') >= 2, launcher)
        yield launcher, ranks_of(launcher.pid)
    finally:
        for process in [launcher, *ranks_of(launcher.pid).values()]:
            process.kill()


def ranks_of(launcher: int) -> dict[int, psutil.Process]:
    """The processes that a launcher started, by rank."""
    found: dict[int, psutil.Process] = {}
    if not psutil.pid_exists(launcher):
        return found
    for process in psutil.Process(launcher).children(recursive=True):
        try:
            given, command = process.environ(), process.cmdline()
        except psutil.Error:
            continue
        rank = given.get("RANK") or given.get("MLX_RANK")
        if rank is not None and str(ROOT / "cli.py") in command and "-c" not in command:
            found.setdefault(int(rank), process)
    return found


@pytest.mark.parametrize("started", ["fsdp"], indirect=True)  # torchrun alone: faults/test_ranks.py
def test_kill_9_of_one_rank_ends_all_with_one_line_and_a_whole_checkpoint(
    started: tuple[subprocess.Popen[str], dict[int, psutil.Process]], tmp_path: Path
) -> None:
    launcher, ranks = started
    assert sorted(ranks) == [0, 1]
    os.kill(ranks[1].pid, signal.SIGKILL)
    assert not psutil.wait_procs(list(ranks.values()), timeout=CEILING)[1]
    said = launcher.communicate(timeout=CEILING)[1]
    ours = errors_of(said)
    assert len(ours) == 1, said
    assert f"rank 1 ({os.uname().nodename}, process {ranks[1].pid}) is gone" in ours[0]
    assert f"exitcode  : {RankLostError.exit_code}" in said or "exitcode  : -9" in said
    found = newest(tmp_path / "run/checkpoints", print)
    assert found is not None
    assert found.update >= 8
    assert found.state().step == found.update


@pytest.mark.parametrize("started", ["mlx"], indirect=True)
def test_one_signal_to_the_launcher_ends_all_as_a_run_alone_ends(
    started: tuple[subprocess.Popen[str], dict[int, psutil.Process]], tmp_path: Path
) -> None:
    launcher, ranks = started
    launcher.send_signal(signal.SIGTERM)
    assert not psutil.wait_procs(list(ranks.values()), timeout=CEILING)[1]
    manifest = json.loads((tmp_path / "run/run.json").read_text())
    assert manifest["status"] == "stopped"
    assert manifest["choices"]["ranks"]["name"] == "2"
    assert (tmp_path / "run/model/model.safetensors").is_file()


def test_a_verb_that_shares_nothing_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", **place}.items():
        monkeypatch.setenv(name, value)
    done = run("runs")
    assert done.returncode == 2
    assert "runs uses one process; start it without torchrun (train, eval, compare, doctor use several)" in done.stderr
    done = run("train", "--backend", "mlx")
    assert done.returncode == 2
    assert "try mlx.launch -n 2 -- python cli.py train, or --backend torch" in done.stderr
    done = run("train", "--recipe", "grpo", "--rollout-engine", "vllm")
    assert done.returncode == 2
    assert "--rollout-engine vllm answers for one process; leave it out, and each rank samples itself" in done.stderr
    for name, value in {**FSDP, "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}.items():
        monkeypatch.setenv(name, value)
    done = run("train", "--method", "dora")  # before anything is read, and before the ranks meet
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "error: --method dora is not available with FSDP" in done.stderr


@pytest.mark.parametrize("wrong", [("runs",), ("train", "--bogus", "1"), ("eval", "--backend", "x")])
def test_the_second_rank_of_a_host_lets_the_first_say_what_is_wrong(
    wrong: tuple[str, ...], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(world, "sleep", waited.append)
    place = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    done = run(*wrong)  # whose launcher did not end it
    assert waited == [world.GRACE]
    assert (done.returncode, done.stderr.count("error: ")) == (2, 1)


def test_an_engine_of_one_process_is_refused_where_a_run_is_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    job = SimpleNamespace(run=None, config=TrainConfig(recipe="grpo", rollout_engine="vllm"))
    monkeypatch.setattr(verb, "resumed_job", lambda config, context: job)
    monkeypatch.setattr(backends, "_shared", print)
    with pytest.raises(UsageError, match="samples with --rollout-engine vllm, which answers for one process; add"):
        verb.run(TrainConfig(resume="runs/one"), Any)  # whose own engine is the backend


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"recipe": "grpo", "kl": 0.1}, "--kl with --method full holds a second model"),
        ({"method": "dora"}, "--method dora is not available with FSDP"),
    ],
)
def test_what_needs_all_weights_on_one_rank_is_refused_with_fsdp(
    settings: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = SimpleNamespace(run=None, config=TrainConfig(**settings))
    monkeypatch.setattr(verb, "new_job", lambda config, context: job)
    monkeypatch.setattr(backends, "_shared", print)
    monkeypatch.setattr(backends, "_spread", 2)
    with pytest.raises(UsageError, match=said):
        verb.run(TrainConfig(**settings), Any)
