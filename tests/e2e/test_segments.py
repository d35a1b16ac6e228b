"""A segment that fails, and the one that goes on: a step that is not finite, and memory that runs out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import backends
from gsm8k_core.training.checkpoints import newest
from gsm8k_core.training.finite import logits_not_finite
from gsm8k_core.types import Choice, Update
from tests import tiny
from tests.apples import write_problems
from tests.e2e.test_resume import CURVE_TOLERANCE, killed, losses, weights
from tests.e2e.test_resume import data as data
from tests.e2e.test_resume import model as model
from tests.e2e.test_resume import train as train
from verbs.train.start import Job

Change = Callable[[Update], Update]
QUICKEST = "mlx" if backends.installed("mlx") else "torch"


def spoil(monkeypatch: pytest.MonkeyPatch, change: Change) -> None:
    """Each update that a run asks for goes through `change` first."""
    plain = Job.updates

    def updates(job: Job, max_tokens: int) -> Iterator[Update]:
        return (change(update) for update in plain(job, max_tokens))

    monkeypatch.setattr(Job, "updates", updates)


def not_finite(number: int, times: int) -> Change:
    """Weights that make the loss of one update NaN, the first `times` times."""
    left = [times]

    def change(update: Update) -> Update:
        if update.number != number or not left[0]:
            return update
        left[0] -= 1
        first, *rest = update.micro_batches
        nan = np.full(first.labels.shape, np.nan, np.float32)
        return replace(update, micro_batches=(replace(first, weights=nan), *rest))

    return change


class Hungry:
    """A micro-batch that the device has no memory for."""

    def __init__(self, batch: Any, message: str) -> None:
        self.targets, self.num_targets, self._message = batch.targets, batch.num_targets, message

    @property
    def tokens(self) -> Any:
        raise RuntimeError(self._message)


WORDS = {
    "torch": "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.",
    "mlx": "[malloc_or_wait] Unable to allocate 9 bytes.",
}


def memory_for(tokens: int, backend: str, first: int = 1) -> Change:
    """A device with memory for so many padded tokens, from update `first` on."""

    def change(update: Update) -> Update:
        batches = (
            Hungry(batch, WORDS[backend]) if batch.tokens.size > tokens and update.number >= first else batch
            for batch in update.micro_batches
        )
        return replace(update, micro_batches=tuple(batches))  # type: ignore[arg-type]

    return change


def manifest(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text()))


def rates(folder: Path) -> list[float]:
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [event["rate"] for event in events if event["event"] == "update"]


def test_one_bad_update_is_tried_again_at_half_the_rate(
    run: Any, train: Any, tmp_path: Path, backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--backend", backend_name)
    assert train(tmp_path / "plain", *flags).returncode == 0
    with monkeypatch.context() as patch:
        spoil(patch, not_finite(4, times=1))
        result = train(tmp_path / "run", *flags)
    assert result.returncode == 0, result.stderr
    assert "going on from update 3 at half the rate; this is done once in a run" in result.stdout
    (change,) = manifest(tmp_path / "run")["adjustments"]
    assert (change["what"], change["update"], change["value"]) == ("rate", 3, 0.5)
    plain = rates(tmp_path / "plain")
    assert rates(tmp_path / "run") == [*plain[:3], *(rate / 2 for rate in plain[3:])]
    assert losses(tmp_path / "run")[:4] == losses(tmp_path / "plain")[:4]
    assert losses(tmp_path / "run")[5] != losses(tmp_path / "plain")[5]
    kept = newest(tmp_path / "run/checkpoints", print)
    assert kept is not None
    assert kept.events == ({"update": 0, "total": 6, "rate_factor": 1.0}, {"update": 3, "total": 6, "rate_factor": 0.5})
    for at in (2, 4):  # before the change and after it
        folder = killed(tmp_path / "run", at, tmp_path / f"killed-{at}")
        assert run("train", "--resume", folder).returncode == 0
        assert (losses(folder), rates(folder)) == (losses(tmp_path / "run"), rates(tmp_path / "run"))


def test_the_second_bad_update_ends_the_run_with_the_last_good_model(
    run: Any, train: Any, tmp_path: Path, backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        spoil(patch, not_finite(4, times=99))
        result = train(folder, "--backend", backend_name)
        assert (result.returncode, "update 4: loss nan" in result.stderr) == (5, True), result.stderr
        # The weights before update 4 led there again, so the retry began at the checkpoint before them.
        assert [(one["update"], one["value"]) for one in manifest(folder)["adjustments"]] == [(3, 0.5), (2, 0.5)]
        assert f"{folder}/model is the model after update 3, the last good one" in result.stdout
        assert manifest(folder)["status"] == "failed"
        assert all(np.isfinite(value).all() for value in weights(folder).values())
        assert losses(folder)[2] > 0
        again = run("train", "--resume", folder)
        assert (again.returncode, "retry" in again.stdout) == (5, False), again.stdout
    assert run("train", "--resume", folder).returncode == 0  # what was wrong is mended
    assert len(losses(folder)) == 6


@pytest.mark.parametrize(("failure", "dev"), [("a bad update", "20"), ("no memory", "16")])
def test_dev_problems_are_answered_as_many_at_once_after_a_recovery_but_from_no_memory(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str, dev: str
) -> None:
    """On a GPU, by its memory: as this machine's is taken for one's."""
    plain = backends.device_memory
    monkeypatch.setattr(backends, "device_memory", lambda *asked: replace(plain(*asked), device="gpu"))
    data, folder = str(write_problems(tmp_path / "data", 25, 25)), tmp_path / "run"
    spoil(monkeypatch, not_finite(4, times=1) if failure == "a bad update" else memory_for(60, QUICKEST, first=4))
    flags = ("--backend", QUICKEST, "--data", data, "--guard-problems", "20", "--eval-max-new-tokens", "4")
    result = train(folder, *flags, "--micro-batch-tokens", "512")
    assert (result.returncode, "going on from" in result.stdout) == (0, True), result.stderr
    assert manifest(folder)["choices"]["dev"]["name"] == dev


def test_bad_from_the_start_is_tried_once_and_leaves_no_model(
    train: Any, tmp_path: Path, backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, not_finite(1, times=99))
    result = train(tmp_path / "run", "--backend", backend_name)
    assert (result.returncode, result.stdout.count("retry ")) == (5, 1), result.stderr
    assert not (tmp_path / "run/model").exists()


@pytest.fixture
def float16_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX's CPU computes float16 as a Mac does, if slowly; it is refused there for being slow."""
    from backends.mlx import backend, device

    def choose(asked: str, device: str) -> Choice:
        return Choice(asked if asked != "auto" else "float32", "as a Mac")

    monkeypatch.setattr(backend, "choose_dtype", choose)
    monkeypatch.setattr(device, "choose_dtype", choose)


def heavy(number: int) -> Change:
    """Weights that make the gradients of one update too large for float16, and for float32 just large."""

    def change(update: Update) -> Update:
        if update.number != number:
            return update
        heavy = [replace(one, weights=np.full(one.labels.shape, 1e6, np.float32)) for one in update.micro_batches]
        return replace(update, micro_batches=tuple(heavy))

    return change


@pytest.mark.skipif(not backends.installed("mlx"), reason="float16 is mlx's")
def test_what_float16_has_no_room_for_goes_on_in_float32_at_the_same_rate(
    run: Any, train: Any, tmp_path: Path, float16_everywhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--backend", "mlx", "--dtype", "float16")
    spoil(monkeypatch, heavy(4))
    result = train(tmp_path / "run", *flags)
    assert result.returncode == 0, result.stderr
    assert "going on from update 3 in float32, at the same rate" in result.stdout
    (change,) = manifest(tmp_path / "run")["adjustments"]
    assert (change["what"], change["update"], change["value"]) == ("dtype", 3, "float32")
    assert manifest(tmp_path / "run")["choices"]["dtype"] == {
        "name": "float32",
        "reason": "float16 had no room after update 3",
    }
    assert train(tmp_path / "wide", "--backend", "mlx").returncode == 0  # the control: float32 has room
    assert "adjustments" not in manifest(tmp_path / "wide")
    assert rates(tmp_path / "run") == rates(tmp_path / "wide")
    assert losses(tmp_path / "run")[0] != losses(tmp_path / "wide")[0]  # it did begin in float16
    folder = killed(tmp_path / "run", 4, tmp_path / "killed")
    assert run("train", "--resume", folder).returncode == 0
    assert (losses(folder), rates(folder)) == (losses(tmp_path / "run"), rates(tmp_path / "run"))


@pytest.mark.skipif(not backends.installed("mlx"), reason="float16 is mlx's")
@pytest.mark.parametrize("damaged", [False, True])
def test_logits_that_float16_has_no_room_for_in_a_probe_go_on_in_float32(
    train: Any, tmp_path: Path, float16_everywhere: None, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    from backends.mlx.backend import MLXBackend

    plain = MLXBackend.generate

    def generate(backend: Any, *asked: Any) -> Any:
        if backend.choices["dtype"].name != "float16":
            return plain(backend, *asked)
        if damaged:
            backend._masters["model.norm.weight"] = backend._masters["model.norm.weight"] * np.inf
        raise logits_not_finite()

    monkeypatch.setattr(MLXBackend, "generate", generate)
    folder, flags = tmp_path / "run", ("--backend", "mlx", "--dtype", "float16", "--probe-steps", "3")
    result = train(folder, *flags, "--guard-problems", "0")
    if damaged:  # it is no smaller a number in float32
        assert (result.returncode, "update 3: probe: the model's logits" in result.stderr) == (5, True), result.stderr
        assert "adjustments" not in manifest(folder)
        return
    assert result.returncode == 0, result.stderr
    assert "going on from update 3 in float32, at the same rate" in result.stdout
    (change,) = manifest(folder)["adjustments"]
    assert (change["what"], change["update"], change["value"]) == ("dtype", 3, "float32")
    assert len(losses(folder)) == 6


def loud(folder: Path) -> Path:
    """A model whose logits float16 has no room for, and whose weights it has."""
    tiny.make(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] *= 1e4
    tensors["model.embed_tokens.weight"] *= 1e3
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


@pytest.mark.skipif(not backends.installed("mlx"), reason="float16 is mlx's")
def test_a_base_whose_answers_float16_has_no_room_for_is_trained_in_float32(
    run: Any, train: Any, tmp_path: Path, float16_everywhere: None
) -> None:
    folder, base = tmp_path / "run", str(loud(tmp_path / "loud"))
    data = str(write_problems(tmp_path / "data", 25, 25))  # so that the dev split has enough for the guard
    flags = ("--backend", "mlx", "--model", base, "--data", data, "--eval-max-new-tokens", "4")
    result = train(folder, *flags, "--dtype", "float16")
    assert result.returncode == 0, result.stderr
    assert "the model's logits are not finite" in result.stdout
    assert "going on from the beginning in float32, at the same rate" in result.stdout
    (change,) = manifest(folder)["adjustments"]
    assert (change["what"], change["update"], change["value"]) == ("dtype", 0, "float32")
    assert manifest(folder)["choices"]["dtype"]["reason"] == "float16 had no room after update 0"
    assert train(tmp_path / "wide", *flags).returncode == 0  # the control: float32 has room
    assert losses(folder) == losses(tmp_path / "wide")


def test_memory_that_runs_out_halves_the_micro_batches_and_not_the_updates(
    run: Any, train: Any, tmp_path: Path, backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--backend", backend_name, "--micro-batch-tokens", "512")
    assert train(tmp_path / "plain", *flags).returncode == 0
    assert "adjustments" not in manifest(tmp_path / "plain")
    with monkeypatch.context() as patch:
        spoil(patch, memory_for(60, backend_name, first=4))
        result = train(tmp_path / "run", *flags)
        assert result.returncode == 0, result.stderr
        assert "going on from update 3 with micro-batches of" in result.stdout
        changes = manifest(tmp_path / "run")["adjustments"]
        assert {change["what"] for change in changes} == {"micro_batch_tokens"}
        assert changes[0]["update"] == 3
        assert int(manifest(tmp_path / "run")["choices"]["batches"]["name"]) == changes[-1]["value"] <= 60
        apart = np.abs(np.array(losses(tmp_path / "run")) - np.array(losses(tmp_path / "plain")))
        assert apart[:3].max() == 0 < apart.max() < CURVE_TOLERANCE
        folder = killed(tmp_path / "run", 4, tmp_path / "killed")
        assert run("train", "--resume", folder).returncode == 0  # which would fail with the first budget
        assert losses(folder) == losses(tmp_path / "run")
        assert manifest(folder)["adjustments"] == changes


def test_a_lost_device_ends_a_process_without_a_parent_with_what_to_type(
    run: Any, train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows. Nothing in the process can use the device again."""
    left = [4]

    def change(update: Update) -> Update:
        if update.number not in left:
            return update
        left.clear()  # a second try in this process would pass, and is not to come
        lost = [Hungry(batch, "CUDA error: the launch timed out and was terminated") for batch in update.micro_batches]
        return replace(update, micro_batches=tuple(lost))  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        spoil(patch, change)
        result = train(tmp_path / "run", "--backend", "torch")
    assert (result.returncode, "adjustments" in manifest(tmp_path / "run")) == (6, False), result.stderr
    before = int(manifest(tmp_path / "run")["choices"]["batches"]["name"])
    _, advice = result.stderr.rsplit("; go on in a new process: python cli.py ", 1)
    assert advice.split()[:3] == ["train", "--resume", str(tmp_path / "run")]
    again = run(*advice.split())
    assert again.returncode == 0, again.stderr
    assert "from update 2" in again.stdout  # the newest checkpoint on the disk
    assert int(manifest(tmp_path / "run")["choices"]["batches"]["name"]) < before
    assert len(losses(tmp_path / "run")) == 6


def test_no_memory_for_one_row_says_what_to_type(
    train: Any, tmp_path: Path, backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, memory_for(8, backend_name, first=2))
    result = train(tmp_path / "run", "--backend", backend_name)
    assert result.returncode == 6, result.stderr
    assert "each micro-batch is one row already: try --gradient-checkpointing, --method lora" in result.stderr
    kept = newest(tmp_path / "run/checkpoints", print)
    assert kept is not None
    assert kept.update == 1
