"""`eval` with samples, shots, checks and repeats, through the command line; and one that is killed on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import backends
from gsm8k_core.training.memory import Costs, DeviceMemory
from gsm8k_core.types import Choice, Completion, OutOfMemoryError
from tests.e2e.conftest import ROOT, Run
from tests.waiting import SOONEST, wait_for
from verbs import evaluate

HOT = ("--temperature", "1.2", "--max-new-tokens", "12", "--device", "cpu", "--dtype", "float32")
COLD = ("--max-new-tokens", "12", "--device", "cpu", "--dtype", "float32")


def summary_of(run: Run, *arguments: object) -> dict[str, Any]:
    done = run("eval", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def records_of(summary: dict[str, Any], folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    lines = (folder / summary["records"]).read_text().splitlines()
    return {(record["id"], record["sample"]): record for record in map(json.loads, lines)}


def test_samples_are_the_same_beside_fewer_problems_in_other_batches_and_on_both_backends(
    run: Run, model: Path, data: Path, tmp_path: Path
) -> None:
    arguments = ("--model", model, "--data", data, *HOT, "--backend", "torch")
    whole = summary_of(run, *arguments, "--samples", 4)
    assert (whole["n"], whole["samples"], whole["answers"]) == (8, 4, 32)
    assert set(whole["pass_at_k"]["robust"]) == {"1", "2", "3", "4"}
    assert whole["pass_at_k"]["robust"]["1"] == pytest.approx(whole["rules"]["robust"]["accuracy"])
    assert whole["sampling"] == {"temperature": 1.2, "top_p": 1.0, "top_k": 0, "seed": 0}
    right = {name: record["completion"] for name, record in records_of(whole, tmp_path).items()}
    assert len(set(right.values())) > 8
    for more in (("--max-samples", 3, "--eval-batch-size", 2), ("--backend", "mlx")):
        other = records_of(summary_of(run, *arguments, "--samples", 3, *more), tmp_path)
        assert {name: record["completion"] for name, record in other.items()} == {name: right[name] for name in other}
    other_seed = records_of(summary_of(run, *arguments, "--sample-seed", 1), tmp_path)
    assert any(record["completion"] != right[name] for name, record in other_seed.items())


class OnAGpu:
    """A backend that says so."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    @property
    def choices(self) -> dict[str, Choice]:
        return {**self._backend.choices, "device": Choice("cpu-as-gpu", "faked")}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """The CPU as a GPU with so many bytes free."""
    opened = backends.open

    def as_gpu(name: str, folder: Path, device: str, dtype: str, rendering: Any) -> Any:
        return OnAGpu(opened(name, folder, "cpu", dtype, rendering))

    monkeypatch.setattr(backends, "open", as_gpu)

    def has(free: int) -> None:
        costs = Costs(process=0, chunk=0, frozen_chunk=0)
        memory = DeviceMemory("gpu", free, free, costs, Choice("64", "faked"), "faked")
        monkeypatch.setattr(backends, "device_memory", lambda name, device: memory)

    return has


def test_how_many_are_answered_at_once_is_chosen_by_memory_and_changes_no_text(
    run: Run, model: Path, data: Path, tmp_path: Path, gpu: Callable[[int], None]
) -> None:
    arguments = ("--model", model, "--data", data, *COLD, "--backend", "torch")
    found = {}
    for name, free in (("large", 10**12), ("small", 10**5), ("asked", 10**12)):
        gpu(free)
        more = ("--eval-batch-size", "2") if name == "asked" else ()
        found[name] = summary_of(run, *arguments, "--output-dir", tmp_path / name, *more)
    assert [each["eval_batch_size"] for each in found.values()] == ["512", "1", "2"]
    assert found["large"]["choices"]["batch"]["reason"].startswith(
        "problems at once, 512 at most and in half of the me"
    )
    assert found["asked"]["choices"]["batch"] == {"name": "2", "reason": "--eval-batch-size 2"}
    records = [records_of(each, tmp_path) for each in found.values()]
    texts = [{name: record["completion"] for name, record in each.items()} for each in records]
    assert texts[0] == texts[1] == texts[2]


def test_an_evaluation_goes_on_with_as_many_at_once_as_it_began_with(
    run: Run, model: Path, data: Path, tmp_path: Path, gpu: Callable[[int], None]
) -> None:
    arguments = ("--model", model, "--data", data, *COLD, "--backend", "torch")
    gpu(10**12)
    begun = summary_of(run, *arguments)
    gpu(10**6)  # something else took the memory meanwhile
    again = summary_of(run, *arguments)
    assert (again["reused"], again["records"]) == (8, begun["records"])
    assert again["choices"]["batch"] == {"name": "512", "reason": "as the evaluation that is there began"}


@pytest.mark.parametrize("answered", [0, 2])
def test_a_size_that_ran_out_of_memory_is_not_gone_back_to(
    run: Run, model: Path, data: Path, gpu: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, answered: int
) -> None:
    original = evaluate.LoadedModel.generate

    def no_room_for_512(self: evaluate.LoadedModel, draws: Any, sampling: Any, **more: Any) -> Any:
        for number, found in enumerate(original(self, draws, sampling, **more)):
            if number == answered and sampling.batch_size == 512:
                raise OutOfMemoryError("no room")
            yield found

    monkeypatch.setattr(evaluate.LoadedModel, "generate", no_room_for_512)
    arguments = ("--model", model, "--data", data, *COLD, "--backend", "torch")
    gpu(10**12)
    assert run("eval", *arguments).returncode == 6
    gpu(10**5)  # what fits now is another size, and answers anew
    found = summary_of(run, *arguments)
    assert (found["eval_batch_size"], found["reused"]) == ("1", 0)
    gpu(10**12)
    again = summary_of(run, *arguments)
    assert (again["eval_batch_size"], again["reused"]) == ("1", 8)


def test_compare_answers_as_many_at_once_with_both(
    run: Run, model: Path, data: Path, gpu: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu(10**12)
    chosen = evaluate.choose_together

    def shrinking(*asked: Any) -> Choice:
        found = chosen(*asked)
        gpu(10**6)
        return found

    monkeypatch.setattr(evaluate, "choose_together", shrinking)
    both = ("--base-model", model, "--trained-model", model, "--data", data, *COLD)
    done = run("compare", *both, "--backend", "torch", "--json")
    assert done.returncode == 0, done.stderr
    trained = json.loads(done.stdout)["trained"]
    assert trained["eval_batch_size"] == "512"
    assert "--eval-batch-size 512" in Path("report.html").read_text()


# `cli.py` that answers forty times, and then waits for its end.
PAUSES = """
import signal, sys
sys.path.insert(0, {root!r})
import cli
from verbs.evaluate import LoadedModel
original = LoadedModel.generate
def generate(self, draws, sampling, **more):
    for number, found in enumerate(original(self, draws, sampling, **more)):
        if number == 40: signal.pause()
        yield found
LoadedModel.generate = generate
sys.exit(cli.main())
"""


def test_a_killed_sampled_evaluation_goes_on_bit_for_bit(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    arguments = ["--model", str(model), "--data", str(data), *HOT, "--backend", SOONEST, "--samples", "8"]
    arguments += ["--eval-batch-size", "1", "--output-dir"]
    process = subprocess.Popen(
        [sys.executable, "-c", PAUSES.format(root=str(ROOT)), "eval", *arguments, "killed"],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def there() -> int:
        return sum(path.read_bytes().count(b"\n") for path in tmp_path.glob("killed/logs/*/records.jsonl"))

    wait_for(lambda: there() >= 10, process, step=0.005)
    process.kill()
    process.wait()
    before = there()
    assert 10 <= before <= 40
    killed, whole = (summary_of(run, *arguments, folder) for folder in ("killed", "whole"))
    assert (killed["reused"], whole["reused"]) == (before, 0)
    assert records_of(killed, tmp_path) == records_of(whole, tmp_path)
    assert all(killed[name] == whole[name] for name in ("rules", "pass_at_k", "majority", "disagreement_rows"))


def test_batches_are_checked_and_listed(backend_name: str, run: Run, model: Path, data: Path) -> None:
    arguments = ("--model", model, "--data", data, "--backend", backend_name, "--check-batching")
    for more in (COLD, HOT):
        found = summary_of(run, *arguments, *more)["batching"]
        assert (found["problems"], found["equal"] + found["within_eps"], found["beyond_eps"]) == (8, 8, 0)
    done = run("eval", *arguments, *COLD)
    assert "8 of 8 answers are the same tokens when answered one by one" in " ".join(done.stdout.split())


def test_batches_are_not_checked_where_auto_comes_to_one(
    run: Run, model: Path, data: Path, gpu: Callable[[int], None]
) -> None:
    gpu(10**5)
    done = run("eval", "--model", model, "--data", data, "--backend", "torch", "--check-batching", *COLD)
    assert done.returncode == 2, done.stdout
    assert "--check-batching needs batches, and --eval-batch-size auto came to 1 (problems at once" in done.stderr
    assert "give --eval-batch-size 2, or leave" in done.stderr
    assert not list(Path().glob("logs/*/records.jsonl"))


def test_answers_that_were_made_one_by_one_are_not_taken_for_a_batchs(
    run: Run, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from verbs.evaluate import LoadedModel

    arguments = ("--model", model, "--data", data, "--backend", "torch", *COLD)
    summary_of(run, *arguments, "--eval-batch-size", 1)
    original = LoadedModel.generate

    def batches_are_wrong(self: LoadedModel, draws: Any, sampling: Any, **more: Any) -> Any:
        for index, completion in original(self, draws, sampling, **more):
            yield index, Completion((7,), "length") if sampling.batch_size > 1 else completion

    monkeypatch.setattr(LoadedModel, "generate", batches_are_wrong)
    found = summary_of(run, *arguments, "--check-batching")
    assert found["reused"] == 0
    assert found["batching"]["equal"] == 0
    again = summary_of(run, *arguments, "--check-batching")  # what was there is what is checked
    assert (again["reused"], again["batching"]["equal"]) == (8, 0)


def test_a_repeat_is_another_seed_and_the_spread_is_said(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    arguments = ("--model", model, "--data", data, "--backend", "torch")
    found = summary_of(run, *arguments, *HOT, "--repeat", 3)["repeat"]
    third = summary_of(run, *arguments, *HOT, "--sample-seed", 2)
    assert found["runs"] == 3
    assert third["records"] == found["records"][2]
    assert third["reused"] == 8
    assert {"mean", "deviation", "lowest", "highest"} <= set(found["rules"]["flexible"])
    greedy = run("eval", *arguments, *COLD, "--repeat", 2)
    assert greedy.returncode == 2
    assert "--repeat 2 without --temperature would ask the same and get the same each time; add" in greedy.stderr


def test_shots_change_the_prompt_and_the_key(run: Run, model: Path, data: Path) -> None:
    arguments = ("--model", model, "--data", data, "--backend", "torch", *COLD)
    zero, two, bare = (
        summary_of(run, *arguments, *more)
        for more in ((), ("--shots", 2), ("--shots", 2, "--shot-annotations", "strip"))
    )
    assert zero["prompt"] == "gsm8k-chat-v1"
    assert len({found["prompt"] for found in (zero, two, bare)}) == 3
    assert len({found["records"] for found in (zero, two, bare)}) == 3
    assert summary_of(run, *arguments, "--shots", 2)["reused"] == 8


def test_compare_pairs_the_votes(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    done = run(
        "compare",
        "--base-model",
        model,
        "--trained-model",
        model,
        "--data",
        data,
        "--backend",
        "torch",
        *HOT,
        "--samples",
        3,
        "--output-dir",
        "out",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    assert "both are the same model, file by file" in done.stderr
    paired = json.loads(done.stdout)["paired"]
    assert (paired["won"], paired["lost"], paired["both"] + paired["neither"]) == (0, 0, 8)
    page = (tmp_path / "out/report.html").read_text()
    assert "test-7" in page
    assert "Each problem was answered 3 times. The answer that the vote chose (maj@3) is" in page
    assert "3 times; the answer that the vote chose" in (tmp_path / "out/model_card.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--samples", "4"), 2, "--samples 4 has no effect on greedy decoding"),
        (("--top-p", "0.9"), 2, "--top-p 0.9 has no effect on greedy decoding"),
        (("--sample-seed", "3"), 2, "add a --temperature above 0"),
        (("--samples", "0", "--temperature", "1"), 2, "--samples"),
        (("--shot-annotations", "strip"), 2, "--shot-annotations strip is for --shots"),
        (("--check-batching", "--eval-batch-size", "1"), 2, "--check-batching needs batches"),
        (("--check-batching", "--max-samples", "1"), 2, "one problem makes none"),
        (("--shots", "60"), 4, "--shots 60: there are only 5"),
        (("--shots", "40"), 4, "--shots 40 included, is too long: this model reads 512; try fewer --shots"),
        (("--data", "{data}/test.jsonl", "--shots", "2"), 2, "is a single file; give --data a folder"),
    ],
)
def test_what_cannot_work_is_one_clear_line(
    run: Run, model: Path, data: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = run("eval", "--model", model, "--data", data, *(argument.format(data=data) for argument in arguments))
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert (done.returncode, len(errors)) == (code, 1), done.stderr
    assert says in errors[0]
