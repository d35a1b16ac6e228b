"""Bad input at every door: one clear line, the documented exit code, no traceback, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

import backends
import cli
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.types import PreflightError, UsageError
from tests import fake_checkpoints, tiny
from tests.e2e.conftest import ROOT, Run
from tests.fake_hub import waits

TRAIN = ("train", "--model", "{model}", "--data", "{data}")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("train", "--model", "./nowhere"), 4, "nowhere"),
        (("train", "--model", "some/unknown-model"), 4, "some/unknown-model"),
        (("train", "--data", "missing.jsonl", "--model", "{model}"), 4, "missing.jsonl"),
        (("train", "--data", "some/unknown-data", "--model", "{model}"), 4, "some/unknown-data"),
        ((*TRAIN, "--backend", "mlx", "--device", "cuda"), 3, "--device cuda"),
        ((*TRAIN, "--backend", "torch", "--device", "cpu", "--dtype", "float16"), 3, "--dtype float16"),
        (("train", "--max-samples", "0"), 2, "greater than zero"),
        (("train", "--seed", "5000000000"), 2, "--seed"),
        (("train", "--weight-decay", "inf"), 2, "--weight-decay"),
        (("train", "--max-time", "0"), 2, "--max-time"),
        ((*TRAIN, "--max-length", "16"), 4, "every row is longer"),
        (("eval", "--model", "{data}"), 4, "config.json"),
        (("compare",), 2, "--trained-model"),
        (("compare", "--trained-model", "{model}", "--data", "{data}"), 2, "--base-model"),
        (("compare", "--trained-model", "./gone/run"), 4, "--trained-model (python cli.py runs lists your runs)"),
        (
            ("compare", "--trained-model", "some/gone", "--data", "{data}"),
            4,
            "error: --trained-model: model 'some/gone'",
        ),
        (("compare", "--trained-model", "runs/nope"), 4, "runs/nope: there is no such folder; give"),
        (("compare", "--trained-model", "{data}/nope"), 4, "data/nope: there is no such folder; give"),
    ],
)
def test_one_clear_line_and_the_documented_code(
    run: Run, model: Path, data: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = run(*(argument.format(model=model, data=data) for argument in arguments))
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == code, done.stderr
    assert len(errors) == 1
    assert says in errors[0]
    assert "Traceback" not in done.stderr


OF_A_BACKEND = sorted(verb for verb in cli.VERBS if "backend" in cli._settings(verb).model_fields)


@pytest.mark.parametrize("verb", OF_A_BACKEND)
def test_a_backend_that_does_not_exist_is_refused_before_anything_is_read(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By flag or by file, and the names that exist come from one list. A model that is not there is not looked for."""
    (tmp_path / "jax.yaml").write_text("backend: jax\n")
    file = tmp_path / "jax.yaml"
    for asked, place in ((["--backend", "jax"], "--backend"), (["--config", str(file)], f"--config {file}: backend")):
        model = [] if verb == "compare" else ["--model", "./nowhere"]
        assert cli.main([verb, *asked, *model]) == UsageError.exit_code
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{place} jax does not exist (there are auto, {', '.join(sorted(backends.PROVIDERS))})" in line


@pytest.mark.parametrize("verb", OF_A_BACKEND)
def test_help_names_every_backend(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    flag = capsys.readouterr().out.partition("--backend auto|NAME")[2].partition("--device")[0]
    assert flag
    assert all(name in flag for name in ("auto", *backends.PROVIDERS))


def test_verbose_shows_the_traceback(run: Run) -> None:
    assert "Traceback" in run("train", "--model", "./nowhere", "-v").stderr


def test_a_named_model_that_is_not_there_is_asked_for_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with waits() as waited:
        done = run("train", "--model", "Qwen/Qwen2.5-0.5B-Instruct")
    assert (len(waited.questions), waited.sleeps) == (1, [])
    assert done.returncode == 4
    assert "give a folder's path, embedded, or go online" in done.stderr


def test_a_bad_row_is_named_by_file_and_line(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"question": "q", "answer": "a\\n#### 1"}\n{"question": "q"}\n')
    done = run("train", "--model", model, "--data", "bad.jsonl", "--backend", "torch")
    assert done.returncode == 4
    assert "bad.jsonl:2" in done.stderr


def test_a_second_run_leaves_the_first_alone(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/run.json").write_text(json.dumps({"status": "done", "pid": 1}))
    done = run("train", "--model", model, "--data", data, "--output-dir", "out", "--backend", "torch")
    assert done.returncode == 7
    assert "--output-dir out-2" in done.stderr
    assert json.loads((tmp_path / "out/run.json").read_text()) == {"status": "done", "pid": 1}


def test_a_mistyped_name_leaves_no_folder(run: Run, model: Path, tmp_path: Path) -> None:
    assert run("train", "--model", model, "--data", "gone.jsonl", "--output-dir", "out").returncode == 4
    assert not (tmp_path / "out").exists()


def test_an_output_folder_with_anything_in_it_is_refused_and_left_alone(run: Run, model: Path, data: Path) -> None:
    before = sorted(path.name for path in model.iterdir())
    assert run("train", "--model", model, "--data", data, "--output-dir", model).returncode == 7
    assert sorted(path.name for path in model.iterdir()) == before


def test_a_run_that_fails_later_says_so_in_its_manifest(
    backend_name: str, run: Run, data: Path, tmp_path: Path
) -> None:
    broken = tiny.make(tmp_path / "broken", "llama")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    done = run(
        "train",
        "--model",
        broken,
        "--data",
        data,
        "--backend",
        backend_name,
        "--dtype",
        "float32",
        "--device",
        "cpu",
        "--output-dir",
        "out",
    )
    manifest = json.loads((tmp_path / "out/run.json").read_text())
    assert done.returncode == 5
    assert manifest["status"] == "failed"
    assert manifest["outcome"]["reason"] in done.stderr
    assert "nan" in manifest["outcome"]["reason"]


def test_a_launcher_with_several_processes_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = run("train")
    assert done.returncode == 2
    assert "WORLD_SIZE" in done.stderr


def test_json_prints_nothing_on_stdout_when_it_fails(run: Run) -> None:
    assert run("train", "--model", "./nowhere", "--json").stdout == ""


def test_the_tokenizer_of_another_model_is_refused(backend_name: str, run: Run, data: Path, tmp_path: Path) -> None:
    small = tiny.make(tmp_path / "small", "llama", vocab_size=16)
    done = run("train", "--model", small, "--data", data, "--backend", backend_name)
    assert done.returncode == 4
    assert "tokenizer of another model" in done.stderr


def test_help_imports_no_framework() -> None:
    code = (
        "import sys, cli\n"
        "for line in (['--help'], ['train', '--help']):\n"
        "    try:\n        cli.main(line)\n    except SystemExit:\n        pass\n"
        "print([name for name in ('torch', 'mlx', 'mlx_lm', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_a_look_can_refuse_is_said_before_a_framework_is_imported(model: Path, data: Path, tmp_path: Path) -> None:
    """Rows, a budget, a folder, a Hub: each in a second or two, where a framework alone takes longer."""
    (tmp_path / "bad.jsonl").write_text('{"question": "x"}\n')
    run = tmp_path / "spent"
    config = TrainConfig(model=str(model), data=str(data), max_time="2m").model_dump(mode="json")
    (run / "checkpoints").mkdir(parents=True)
    chosen = {"dtype": {"name": "float32", "reason": "asked for"}}
    manifest = {"config": config, "status": "stopped", "hashes": {}, "choices": chosen}
    (run / "run.json").write_text(json.dumps(manifest))
    plan = [{"update": 0, "total": 9, "rate_factor": 1.0}]
    facts = {"config": config, "hashes": {}}
    fake_checkpoints.save(run / "checkpoints", 3, elapsed=119.5, events=plan, losses=[1.0] * 3, facts=facts)
    cases = [
        (["train", "--model", str(model), "--data", "bad.jsonl"], 4, "bad.jsonl"),
        (["train", "--model", str(model), "--data", "some/where"], 4, "some/where"),
        (["train", "--model", "some/where", "--data", str(data)], 4, "some/where"),
        (
            ["train", "--model", str(model), "--data", str(data), "--max-time", "0.001"],
            3,
            "gone before anything was read",
        ),
        (["train", "--resume", str(run)], 2, "the run has used"),
        (["train", "--lora-rank", "3"], 2, "--method lora"),
        (["eval", "--model", str(model), "--data", "bad.jsonl"], 4, "bad.jsonl"),
        (["eval", "--model", "some/where"], 4, "some/where"),
        (["compare", "--trained-model", "runs/none"], 4, "runs/none"),
        (["generate", "x", "--model", "some/where"], 4, "some/where"),
        (["generate", "--file", "gone.txt"], 4, "gone.txt"),
        (["chat", "--model", "some/where"], 4, "some/where"),
        (["export", "nowhere", "--to", "gguf"], 4, "nowhere"),
    ]
    code = (
        "import contextlib, io, json, sys, cli\n"
        "from verbs.train import parent\n"
        "parent.supervises = lambda arguments: False\n"  # the process that looks is this one
        "for arguments, _, _ in json.loads(sys.argv[1]):\n"
        "    said = io.StringIO()\n"
        "    with contextlib.redirect_stderr(said):\n"
        "        code = cli.main(arguments)\n"
        "    there = [name for name in ('torch', 'mlx', 'mlx_lm', 'transformers') if name in sys.modules]\n"
        "    print(json.dumps([code, said.getvalue(), there]))"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, json.dumps(cases)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    for (arguments, wanted, says), (code_, said, there) in zip(cases, found, strict=True):
        assert (code_, there) == (wanted, []), (arguments, said)
        assert says in said, (arguments, said)


@pytest.mark.parametrize("made", [True, False])
def test_outside_of_the_environment_it_says_what_to_type(made: bool, tmp_path: Path) -> None:
    """-S: no installed package is seen, as by the system's Python."""
    shutil.copy(ROOT / "cli.py", tmp_path)
    (tmp_path / "gsm8k_core").mkdir()
    for name in ("__init__.py", "doing.py"):
        shutil.copy(ROOT / "gsm8k_core" / name, tmp_path / "gsm8k_core")
    if made:
        (tmp_path / ".venv" / "bin").mkdir(parents=True)
        (tmp_path / ".venv" / "bin" / "python").touch(0o755)
    done = subprocess.run(
        [sys.executable, "-S", "cli.py", "generate", "How many?", "--lr", "3"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (PreflightError.exit_code, "", 1), done.stderr
    assert "has no pydantic; type: " in done.stderr
    assert done.stderr.strip().endswith(".venv/bin/python cli.py generate 'How many?' --lr 3") == made
    assert ("make demo" in done.stderr) != made


def test_json_keeps_stdout_whatever_a_library_prints(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from verbs import runs

    def noisy(config: object, context: Any) -> int:
        print("[INFO] from Python")
        os.write(1, b"from below Python\n")
        subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
        context.terminal.result({"a": 1})
        return 0

    monkeypatch.setattr(runs, "run", noisy)
    done = run("runs", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"a": 1})
    assert {"[INFO] from Python", "from below Python", "from a child"} <= set(done.stderr.splitlines())
    assert "[INFO] from Python" in run("runs").stdout  # and only with --json


def test_json_is_json_with_wandb_offline(model: Path, data: Path, tmp_path: Path) -> None:
    """transformers greets on stdout when it is imported with this variable set."""
    command = [sys.executable, str(ROOT / "cli.py"), "eval", "--model", str(model), "--data", str(data)]
    done = subprocess.run(
        [*command, "--backend", "torch", "--max-samples", "1", "--max-new-tokens", "2", "--json"],
        cwd=tmp_path,
        env={**os.environ, "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["n"] == 1
    assert "WANDB offline" in done.stderr  # or this proves nothing


def test_a_stdout_that_is_not_utf8_is_written_to_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "caf\N{LATIN SMALL LETTER E WITH ACUTE}").mkdir()
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), "runs", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert b"no runs under caf?" in done.stdout


def test_reasons_do_not_blame_a_flag_for_what_the_file_says(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"model: {model}\ndata: {data}\n")
    done = run("inspect", "--config", "c.yaml")
    assert "train: you named it;" in " ".join(done.stdout.split())
    assert "--data" not in done.stdout


@pytest.mark.skipif(not backends.installed("mlx"), reason="mlx's")
def test_a_window_that_mlx_ignores_is_refused_before_anything_is_made(run: Run, data: Path, tmp_path: Path) -> None:
    windowed = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 8}
    model = tiny.make(tmp_path / "windowed", "llama", **windowed)
    place = ("--model", model, "--data", data, "--backend", "mlx", "--device", "cpu", "--dtype", "float32")
    trained = run("train", *place, "--output-dir", tmp_path / "run")
    assert (trained.returncode, "config.json has sliding_window 8, which mlx" in trained.stderr) == (3, True)
    assert not (tmp_path / "run").exists()
    scored = run("eval", *place, "--max-samples", "2", "--max-new-tokens", "4")
    assert (scored.returncode, "--backend torch" in scored.stderr) == (3, True), scored.stderr
    assert len(scored.stderr.strip().splitlines()) == 1
