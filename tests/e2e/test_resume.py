"""A run that ended anywhere goes on: on the same backend to the last bit, on the other one within rounding."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from safetensors.numpy import load_file

import backends
from gsm8k_core.models.adapter import base_of
from tests import tiny
from tests.apples import write_problems

CURVE_TOLERANCE = 6e-5  # rung 5's
BOTH = pytest.mark.skipif(
    not all(backends.installed(name) for name in backends.PROVIDERS), reason="needs both backends"
)
Train = Callable[..., Any]
ADAPTER = ("--lora-rank", "4", "--lora-alpha", "8", "--lora-dropout", "0.1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_problems(tmp_path_factory.mktemp("data"))


SHARED: dict[tuple[str, ...], tuple[Any, Path]] = {}  # what `train` gave by its settings, and where the run lies


@pytest.fixture
def train(run: Any, model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """`train(folder, *flags)`: six updates of four rows, a checkpoint after each second.

    With `shared`, for a test that changes nothing but flags: a copy of the run where another test had the same one.
    """
    asked = "--device cpu --dtype float32 --max-samples 24 --batch-size 2 --gradient-accumulation-steps 2"
    asked += " --num-epochs 1 --save-steps 2 --save-total-limit 9"

    def start(folder: Path, *flags: str, shared: bool = False) -> Any:
        settings = ("--model", str(model), "--data", str(data), *asked.split(), *flags)
        if shared and settings in SHARED:
            result, kept = SHARED[settings]
            shutil.copytree(kept, folder)
            return result
        result = run("train", *settings, "--output-dir", str(folder))
        if shared and result.returncode == 0:
            SHARED[settings] = result, tmp_path_factory.mktemp("shared") / "run"
            shutil.copytree(folder, SHARED[settings][1])
        return result

    return start


def losses(folder: Path) -> list[float]:
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    updates = [event for event in events if event["event"] == "update"]
    assert [event["update"] for event in updates] == list(range(1, len(updates) + 1))
    return [event["loss"] for event in updates]


def weights(folder: Path) -> dict[str, Any]:
    (path,) = (folder / "model").glob("*.safetensors")
    return load_file(path)


def killed(whole: Path, at: int, target: Path) -> Path:
    """The folder of `whole` as kill -9 would have left it in the update after checkpoint `at` and one more."""
    shutil.copytree(whole, target)
    for name in ("model", "mlx-adapter"):
        shutil.rmtree(target / name, ignore_errors=True)
    for path in (target / "checkpoints").iterdir():
        if int(path.name.removeprefix("update-")) > at:
            shutil.rmtree(path)
    manifest = json.loads((target / "run.json").read_text()) | {"status": "running"}
    (target / "run.json").write_text(json.dumps(manifest))
    lines = [json.loads(line) for line in (target / "metrics.jsonl").read_text().splitlines()]
    kept = [line for line in lines if line["event"] == "start" or line.get("update", 99) <= at + 1]
    torn = '{"event": "update", "upd'
    (target / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept) + torn)
    return target


@pytest.mark.parametrize("method", ["full", "lora", "dora"])
def test_killed_and_resumed_is_unbroken_to_the_last_bit(
    run: Any, train: Any, tmp_path: Path, backend_name: str, method: str
) -> None:
    flags = ("--backend", backend_name, "--method", method, *(ADAPTER if method != "full" else ()))
    assert train(tmp_path / "whole", *flags, shared=True).returncode == 0
    folder = killed(tmp_path / "whole", 2, tmp_path / "killed")
    result = run("train", "--resume", str(folder))
    assert result.returncode == 0, result.stderr
    assert "from update 2" in result.stdout
    ours_and_theirs = [json.loads((each / "run.json").read_text()) for each in (folder, tmp_path / "whole")]
    assert [each["model_update"] for each in ours_and_theirs] == [6, 6]
    assert len({each["model_save"] for each in ours_and_theirs}) == 2  # each save of a run's has a name of its own
    assert losses(folder) == losses(tmp_path / "whole")
    ours, theirs = weights(folder), weights(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


@BOTH
@pytest.mark.parametrize("method", ["full", "lora"])  # that a DoRA moves is parity's rungs 7 and 9
@pytest.mark.parametrize(("first", "second"), [("mlx", "torch"), ("torch", "mlx")])
def test_a_run_moves_to_the_other_backend(
    run: Any, train: Any, tmp_path: Path, first: str, second: str, method: str
) -> None:
    flags = ("--method", method, *(ADAPTER[:4] if method != "full" else ()))
    assert train(tmp_path / "whole", "--backend", first, *flags).returncode == 0
    folder = killed(tmp_path / "whole", 2, tmp_path / "killed")
    assert run("train", "--resume", str(folder), "--backend", second).returncode == 0
    apart = np.abs(np.array(losses(folder)) - np.array(losses(tmp_path / "whole"))).max()
    assert 0 < apart < CURVE_TOLERANCE
    manifest = json.loads((folder / "run.json").read_text())
    assert manifest["choices"]["backend"]["name"] == second
    assert manifest["segments"][0]["choices"]["backend"]["name"] == first


def test_a_damaged_checkpoint_is_named_and_passed_over(run: Any, train: Any, tmp_path: Path, backend_name: str) -> None:
    assert train(tmp_path / "whole", "--backend", backend_name, shared=True).returncode == 0
    folder = killed(tmp_path / "whole", 4, tmp_path / "killed")
    path = folder / "checkpoints/update-000004/moments.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    result = run("train", "--resume", str(folder))
    assert "update-000004 is passed over" in result.stdout
    assert "moments.safetensors" in result.stdout
    assert "from update 2" in result.stdout
    assert losses(folder) == losses(tmp_path / "whole")


def test_without_a_checkpoint_it_begins_again(run: Any, train: Any, tmp_path: Path) -> None:
    assert train(tmp_path / "whole", "--backend", "torch", shared=True).returncode == 0
    folder = killed(tmp_path / "whole", 0, tmp_path / "killed")
    result = run("train", "--resume", str(folder))
    assert "there is no whole checkpoint" in result.stdout
    assert losses(folder) == losses(tmp_path / "whole")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--learning-rate", "0.1"), "learning_rate: 3e-05 -> 0.1; drop --learning-rate"),
        (("--seed", "7"), "seed: 0 -> 7"),
        (("--dtype", "bfloat16"), "dtype: float32 -> bfloat16; drop --dtype, or add --force"),
        (("--batch-size", "4"), "batch_size: 2 -> 4"),
    ],
)
def test_another_config_is_refused_with_the_difference(
    run: Any, train: Any, tmp_path: Path, flags: tuple[str, ...], said: str
) -> None:
    assert train(tmp_path / "whole", "--backend", "torch", shared=True).returncode == 0
    folder = killed(tmp_path / "whole", 2, tmp_path / "killed")
    before = (folder / "run.json").read_text()
    result = run("train", "--resume", str(folder), *flags)
    assert (result.returncode, said in result.stderr) == (2, True), result.stderr
    assert (folder / "run.json").read_text() == before


def test_force_takes_another_split_of_the_same_update(run: Any, train: Any, tmp_path: Path) -> None:
    assert train(tmp_path / "whole", "--backend", "torch", shared=True).returncode == 0
    folder = killed(tmp_path / "whole", 2, tmp_path / "killed")
    split = ("--batch-size", "4", "--gradient-accumulation-steps", "1")
    assert run("train", "--resume", str(folder), *split).returncode == 2
    result = run("train", "--resume", str(folder), *split, "--force")
    assert (result.returncode, "batch_size: 2 -> 4" in result.stdout) == (0, True)
    assert losses(folder) == pytest.approx(losses(tmp_path / "whole"), abs=CURVE_TOLERANCE)


@pytest.mark.parametrize("what", ["data", "tokenizer"])
def test_other_data_or_another_tokenizer_is_refused(
    run: Any, train: Any, tmp_path: Path, model: Path, data: Path, what: str
) -> None:
    own_model, own_data = tmp_path / "model", tmp_path / "data"
    shutil.copytree(model, own_model)
    shutil.copytree(data, own_data)
    flags = ("--model", str(own_model), "--data", str(own_data), "--backend", "torch")
    assert train(tmp_path / "whole", *flags, shared=True).returncode == 0
    folder = killed(tmp_path / "whole", 2, tmp_path / "killed")
    if what == "data":
        path = own_data / "train.jsonl"
        path.write_text(path.read_text().replace("buys 2 apples", "buys 3 apples"))
    else:
        path = own_model / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 77}))
    result = run("train", "--resume", str(folder))
    assert (result.returncode, f"{what} (sha256): " in result.stderr) == (2, True), result.stderr


def test_a_checkpoint_of_another_run_is_refused(run: Any, train: Any, tmp_path: Path) -> None:
    assert train(tmp_path / "whole", "--backend", "torch", shared=True).returncode == 0
    assert train(tmp_path / "other", "--backend", "torch", "--learning-rate", "0.01").returncode == 0
    folder = killed(tmp_path / "whole", 2, tmp_path / "killed")
    shutil.rmtree(folder / "checkpoints")
    shutil.copytree(tmp_path / "other/checkpoints", folder / "checkpoints")
    result = run("train", "--resume", str(folder))
    assert (result.returncode, "update-000004 is another run's" in result.stderr) == (4, True), result.stderr


def test_a_dtype_that_the_other_backend_lacks_names_the_way_on(run: Any, train: Any, tmp_path: Path) -> None:
    assert train(tmp_path / "whole", "--backend", "torch", shared=True).returncode == 0
    folder = killed(tmp_path / "whole", 2, tmp_path / "killed")
    manifest = json.loads((folder / "run.json").read_text())
    manifest["choices"]["dtype"]["name"] = "float16"  # as a Mac may choose
    (folder / "run.json").write_text(json.dumps(manifest))
    result = run("train", "--resume", str(folder))
    assert (result.returncode, "--dtype float32 --force" in result.stderr) == (3, True), result.stderr
    assert run("train", "--resume", str(folder), "--dtype", "float32", "--force").returncode == 0


def test_a_launchers_variable_changes_no_precision(train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train(tmp_path / "plain", "--backend", "torch").returncode == 0
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert train(tmp_path / "left", "--backend", "torch").returncode == 0
    assert losses(tmp_path / "left") == losses(tmp_path / "plain")


def test_what_is_best_is_what_lies_in_best(run: Any, train: Any, tmp_path: Path) -> None:
    """Killed back to update 2, `best/` is of a later one: it is not called update 2's."""
    flags = ("--eval-steps", "2", "--eval-problems", "3", "--eval-max-new-tokens", "8", "--learning-rate", "0.01")
    assert train(tmp_path / "whole", "--backend", "torch", *flags).returncode == 0
    assert json.loads((tmp_path / "whole/run.json").read_text())["best"] == {"update": 6}
    folder = killed(tmp_path / "whole", 2, tmp_path / "killed")
    assert run("train", "--resume", str(folder), "--eval-steps", "0", "--force").returncode == 0
    assert "best" not in json.loads((folder / "run.json").read_text())["outcome"]


def test_a_kill_between_the_renames_of_best_loses_nothing(run: Any, train: Any, tmp_path: Path) -> None:
    flags = ("--eval-steps", "2", "--eval-problems", "3", "--eval-max-new-tokens", "8", "--learning-rate", "0.01")
    assert train(tmp_path / "whole", "--backend", "torch", *flags).returncode == 0
    folder = killed(tmp_path / "whole", 4, tmp_path / "killed")
    (folder / "best").rename(folder / "best.new")
    assert run("train", "--resume", str(folder)).returncode == 0
    assert (folder / "best/model.safetensors").is_file()
    assert not (folder / "best.new").exists()


def test_an_adapter_can_be_trained_further(run: Any, train: Any, tmp_path: Path) -> None:
    flags = ("--backend", "torch", "--method", "lora", *ADAPTER)
    assert train(tmp_path / "first", *flags).returncode == 0
    assert train(tmp_path / "second", *flags, "--model", str(tmp_path / "first/model")).returncode == 0
    for model in ("second", "second/checkpoints/update-000002"):
        scored = run("eval", "--model", tmp_path / model, "--max-samples", "2", "--max-new-tokens", "4", "--json")
        assert scored.returncode == 0, scored.stderr
    folder = killed(tmp_path / "second", 2, tmp_path / "killed")
    assert run("train", "--resume", str(folder)).returncode == 0
    assert losses(folder) == losses(tmp_path / "second")


def test_flags_of_the_start_may_be_repeated(run: Any, train: Any, tmp_path: Path, model: Path) -> None:
    assert train(tmp_path / "whole", "--backend", "torch", shared=True).returncode == 0
    folder = killed(tmp_path / "whole", 2, tmp_path / "killed")
    again = ("--data", "auto", "--dtype", "auto", "--model", os.path.relpath(model))
    assert run("train", "--resume", str(folder), *again).returncode == 0
    assert json.loads((folder / "run.json").read_text())["config"]["model"] == str(model)


@pytest.mark.parametrize(
    ("flags", "kept"),
    [((), ("50", "25")), (("--save-steps", "auto", "--probe-steps", "auto"), ("auto", "auto"))],
    ids=["silent", "auto"],
)
def test_an_older_runs_numbers_of_steps_are_kept_unless_auto_is_asked_for(
    run: Any, train: Any, tmp_path: Path, flags: tuple[str, ...], kept: tuple[str, str]
) -> None:
    assert train(tmp_path / "whole", "--backend", "torch", shared=True).returncode == 0
    folder = killed(tmp_path / "whole", 2, tmp_path / "killed")
    manifest = json.loads((folder / "run.json").read_text())
    manifest["config"] |= {"save_steps": 50, "probe_steps": 25}  # as it was written before there was `auto`
    (folder / "run.json").write_text(json.dumps(manifest))
    result = run("train", "--resume", str(folder), *flags)
    assert result.returncode == 0, result.stderr
    assert "_steps" not in result.stdout + result.stderr
    config = json.loads((folder / "run.json").read_text())["config"]
    assert (config["save_steps"], config["probe_steps"]) == kept


@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_moved_is_found_by_compare_after_the_resume(
    run: Any, train: Any, tmp_path: Path, model: Path, data: Path, method: str
) -> None:
    old = shutil.copytree(model, tmp_path / "old/model"), shutil.copytree(data, tmp_path / "old/data")
    flags = ("--model", str(old[0]), "--data", str(old[1]), "--backend", "torch", "--method", method)
    assert train(tmp_path / "whole", *flags, *(ADAPTER if method == "lora" else ())).returncode == 0
    folder = killed(tmp_path / "whole", 2, tmp_path / "killed")
    before = json.loads((folder / "run.json").read_text())
    (tmp_path / "old").rename(tmp_path / "new")
    new = tmp_path / "new/model", tmp_path / "new/data"
    resumed = run("train", "--resume", str(folder), "--model", str(new[0]), "--data", str(new[1]))
    assert resumed.returncode == 0, resumed.stderr
    few = ("--max-samples", "2", "--max-new-tokens", "4")
    evaluated = run("eval", "--model", str(folder), *few)
    assert evaluated.returncode == 0, evaluated.stderr
    advice = next(line for line in evaluated.stdout.splitlines() if line.startswith("next "))
    compared = run(*advice.split()[3:], *few)  # next python cli.py compare ...
    assert compared.returncode == 0, compared.stderr
    manifest = json.loads((folder / "run.json").read_text())
    assert [manifest[part]["name"] for part in ("model", "data")] == [str(path) for path in new]
    assert manifest["model"]["hash"] == before["model"]["hash"]
    assert manifest["data"]["sha256"] == before["data"]["sha256"]
    # What was written before the move names the old place: the run knows the new one.
    if method == "lora":
        assert base_of(folder / "checkpoints/update-000002/model") == base_of(folder / "model") == str(new[0])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--method", "lora", "--target-modules", "nope"), "no linear layer of this model is called so"),
        (
            ("--method", "lora", "--trainable", "blocks"),
            "error: --trainable blocks is for --method full; an adapter trains itself alone\n",
        ),
        (("--method", "lora", "--target-modules", "all-linear,q_proj"), "takes all-linear alone"),
    ],
)
def test_a_bad_adapter_flag_leaves_nothing(train: Any, tmp_path: Path, flags: tuple[str, ...], said: str) -> None:
    result = train(tmp_path / "run", "--backend", "torch", *flags)
    assert (result.returncode, said in result.stderr) == (2, True), result.stderr
    assert not (tmp_path / "run").exists()


def test_without_a_dev_split_it_says_so(train: Any, tmp_path: Path, data: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    lines = (data / "train.jsonl").read_text().splitlines(keepends=True)[:6]
    (few / "train.jsonl").write_text("".join(lines))
    (few / "test.jsonl").write_text("".join(lines))
    result = train(tmp_path / "run", "--backend", "torch", "--data", str(few), "--eval-steps", "1")
    assert "these rows have no dev split" in result.stdout


def test_an_ignored_hangup_stays_ignored() -> None:
    """nohup asks for it."""
    import signal

    from verbs.train.signals import stopping

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping(lambda: True) as interrupted:
            signal.raise_signal(signal.SIGHUP)
            assert not interrupted()
            signal.raise_signal(signal.SIGTERM)
            assert interrupted()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_complete_run_has_nothing_left(run: Any, train: Any, tmp_path: Path) -> None:
    assert train(tmp_path / "whole", "--backend", "torch", shared=True).returncode == 0
    result = run("train", "--output-dir", str(tmp_path / "whole"), "--resume")
    assert (result.returncode, "complete (6 updates); nothing is left" in result.stdout) == (0, True)


def test_a_folder_without_a_run_is_named(run: Any, tmp_path: Path) -> None:
    result = run("train", "--resume", str(tmp_path))
    assert (result.returncode, "no run.json" in result.stderr) == (2, True)


def test_a_run_that_another_process_holds_is_refused(run: Any, train: Any, tmp_path: Path) -> None:
    assert train(tmp_path / "whole", "--backend", "torch", shared=True).returncode == 0
    folder = killed(tmp_path / "whole", 2, tmp_path / "killed")
    with FileLock(folder / ".lock"):
        result = run("train", "--resume", str(folder))
    assert (result.returncode, "is in use by another process (pid " in result.stderr) == (7, True), result.stderr


def test_a_spent_budget_asks_for_more(run: Any, train: Any, tmp_path: Path) -> None:
    assert train(tmp_path / "whole", "--backend", "torch", shared=True).returncode == 0
    folder = killed(tmp_path / "whole", 2, tmp_path / "killed")
    result = run("train", "--resume", str(folder), "--max-time", "1s")
    assert (result.returncode, "such as --max-time" in result.stderr) == (2, True), result.stderr


def test_the_dev_split_is_measured_and_the_best_kept(run: Any, train: Any, tmp_path: Path, backend_name: str) -> None:
    flags = ("--eval-steps", "2", "--eval-problems", "3", "--eval-max-new-tokens", "8", "--learning-rate", "0.01")
    result = train(tmp_path / "run", "--backend", backend_name, *flags)
    assert result.returncode == 0, result.stderr
    events = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    dev = {event["update"]: event for event in events if event["event"] == "dev"}
    assert sorted(dev) == [2, 4, 6]
    assert dev[6]["loss"] < dev[2]["loss"]
    outcome = json.loads((tmp_path / "run/run.json").read_text())["outcome"]
    assert outcome["best"]["accuracy"] == max(event["accuracy"] for event in dev.values())
    assert (tmp_path / "run/best/model.safetensors").is_file()
    folder = killed(tmp_path / "run", 4, tmp_path / "killed")
    assert run("train", "--resume", str(folder)).returncode == 0
    again = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [event["loss"] for event in again if event["event"] == "dev"] == [dev[at]["loss"] for at in sorted(dev)]


def test_an_adapter_is_written_in_both_layouts_and_opens(
    run: Any, train: Any, tmp_path: Path, backend_name: str
) -> None:
    assert train(tmp_path / "run", "--backend", backend_name, "--method", "lora", *ADAPTER).returncode == 0
    assert (tmp_path / "run/model/adapter_model.safetensors").is_file()
    assert (tmp_path / "run/mlx-adapter/adapters.safetensors").is_file()
    scored = run("eval", "--model", str(tmp_path / "run"), "--max-samples", "2", "--max-new-tokens", "4", "--json")
    assert json.loads(scored.stdout)["n"] == 2, scored.stderr


@pytest.mark.skipif(not backends.installed("mlx"), reason="qlora is mlx's")
def test_qlora_keeps_its_base_and_goes_on_elsewhere(run: Any, train: Any, tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", "--backend", "mlx", "--method", "qlora", *ADAPTER[:4])
    assert whole.returncode == 0
    assert "4-bit weights are made of the model, by mlx-lm; 2 of " in whole.stdout
    assert "stay float32, as their rows are no whole blocks of 64" in whole.stdout
    assert "quantization" in json.loads((tmp_path / "whole/base/config.json").read_text())
    scored = run("eval", "--model", str(tmp_path / "whole"), "--max-samples", "2", "--max-new-tokens", "4", "--json")
    assert json.loads(scored.stdout)["n"] == 2, scored.stderr
    for name in backends.PROVIDERS:
        folder = killed(tmp_path / "whole", 2, tmp_path / name)
        result = run("train", "--resume", str(folder), "--backend", name)
        assert result.returncode == 0, result.stderr
        assert losses(folder) == pytest.approx(losses(tmp_path / "whole"), abs=CURVE_TOLERANCE)


@pytest.mark.skipif(not backends.installed("mlx"), reason="qlora is mlx's")
def test_qlora_goes_on_without_the_model_that_it_was_made_of(run: Any, train: Any, tmp_path: Path, model: Path) -> None:
    own = shutil.copytree(model, tmp_path / "model")
    flags = ("--model", str(own), "--backend", "mlx", "--method", "qlora", *ADAPTER[:4])
    assert train(tmp_path / "whole", *flags, shared=True).returncode == 0
    folder = killed(tmp_path / "whole", 2, tmp_path / "killed")
    shutil.rmtree(own)
    assert run("train", "--resume", str(folder)).returncode == 0
    assert losses(folder) == losses(tmp_path / "whole")
    (folder / "base/config.json").write_text((folder / "base/config.json").read_text() + " ")
    again = killed(folder, 2, tmp_path / "again")
    result = run("train", "--resume", str(again))
    assert (result.returncode, "is not the 4-bit base" in result.stderr) == (4, True), result.stderr


@pytest.mark.skipif(not backends.installed("mlx"), reason="qlora is mlx's")
def test_qlora_takes_weights_that_are_4_bit_already(train: Any, tmp_path: Path) -> None:
    flags = ("--backend", "mlx", "--method", "qlora", *ADAPTER[:4])
    assert train(tmp_path / "first", *flags).returncode == 0
    assert train(tmp_path / "second", *flags, "--model", str(tmp_path / "first/base")).returncode == 0
    bases = [json.loads((tmp_path / name / "run.json").read_text())["base"]["hash"] for name in ("first", "second")]
    assert bases[0] == bases[1]


def test_qlora_is_refused_where_it_cannot_be_trained(train: Any, tmp_path: Path) -> None:
    result = train(tmp_path / "run", "--backend", "torch", "--method", "qlora")
    assert result.returncode == 3
    assert "--method qlora is not available on torch (it has full, lora, dora)" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_complete_run_refuses_to_become_another(run: Any, train: Any, tmp_path: Path) -> None:
    assert train(tmp_path / "whole", "--backend", "torch", shared=True).returncode == 0
    result = run("train", "--resume", tmp_path / "whole", "--num-epochs", "5")
    assert (result.returncode, "num_epochs: 1 -> 5" in result.stderr) == (2, True), result.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--lora-rank", "8"), "--lora-rank is for an adapter, and --method full trains the model"),
        (("--force",), "--force is for --resume"),
    ],
)
def test_a_flag_that_would_change_nothing_is_refused(
    train: Any, tmp_path: Path, flags: tuple[str, ...], said: str
) -> None:
    result = train(tmp_path / "run", "--backend", "torch", *flags)
    assert (result.returncode, said in result.stderr, "{" in result.stderr) == (2, True, False), result.stderr


def test_a_large_set_is_tokenised_as_it_is_used_and_goes_on_to_the_last_bit(
    run: Any, train: Any, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    chats = [
        [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}] for row in rows
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    monkeypatch.setattr("verbs.train.rows.MOST_TOKENISED", 20)
    monkeypatch.setattr("gsm8k_core.problems.corpus.SAMPLE_ROWS", 8)
    done = train(tmp_path / "whole", "--backend", "torch", "--data", str(path))
    assert done.returncode == 0, done.stderr
    assert f"shape    messages, {len(rows)} rows, the gold after ####" in done.stdout
    assert "rows     24; tokens of 8 of them, the others are tokenised as they are used: mean" in done.stdout
    assert f"overlap  {path}: not checked: it has no test problems of its own" in done.stdout
    manifest = json.loads((tmp_path / "whole/run.json").read_text())
    assert (manifest["data"]["found"]["train"]["shape"], manifest["rows"]["train"]) == ("messages", 24)
    assert (tmp_path / "whole/questions.json").is_file()
    monkeypatch.setattr("verbs.train.rows.MOST_TOKENISED", 9)  # it goes on as it began, whatever is large today
    folder = killed(tmp_path / "whole", 2, tmp_path / "killed")
    result = run("train", "--resume", str(folder))
    assert result.returncode == 0, result.stderr
    assert f" --data TEST.jsonl --trained-model {folder}\n" in result.stdout
    assert losses(folder) == losses(tmp_path / "whole")
    ours, theirs = weights(folder), weights(tmp_path / "whole")
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    refused = run("compare", "--trained-model", str(folder))
    assert refused.returncode == 2
    assert f"the run was trained on {path}, which has no test problems; add --data TEST.jsonl" in refused.stderr


def test_a_run_goes_on_with_the_rows_that_it_began_with(
    run: Any, train: Any, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before 2026-11-29 the line end that a template writes after the end token was trained too."""
    turns = tmp_path / "turns"
    shutil.copytree(model, turns)
    settings = json.loads((turns / "tokenizer_config.json").read_text())
    settings["chat_template"] = tiny.TEMPLATE.replace("' <end> '", "' <end> . '")
    (turns / "tokenizer_config.json").write_text(json.dumps(settings))
    flags = ("--backend", "torch", "--model", str(turns))
    with monkeypatch.context() as patch:
        patch.setattr("gsm8k_core.problems.prompts._end", lambda tokenizer, row, num_prompt, ends: len(row))
        assert train(tmp_path / "whole", *flags).returncode == 0
    folder = killed(tmp_path / "whole", 2, tmp_path / "killed")
    result = run("train", "--resume", str(folder))
    assert (result.returncode, "rows     as the run began" in result.stdout) == (0, True), result.stderr
    assert losses(folder) == losses(tmp_path / "whole")
    assert train(tmp_path / "new", *flags).returncode == 0
    assert losses(tmp_path / "new") != losses(tmp_path / "whole")
