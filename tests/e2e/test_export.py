"""`export`: each format from the command line, opened by what it is for; each bad input, and nothing half left."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

import backends
from gsm8k_core.exports import gguf_file, merged
from gsm8k_core.models.find import resolve_model
from gsm8k_core.models.folder import ModelFolder, own_dtype
from gsm8k_core.models.tensors import read_tensors
from tests import fake_hub, tiny, tiny_bytes
from tests.core.conftest import HUB_KEYS
from tests.e2e.conftest import Run

TOKENS = [1, 40, 41, 42, 90, 200, 5, 6, 7, 2]
needs_mlx = pytest.mark.skipif(not backends.installed("mlx"), reason="backend mlx is not installed here")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bytes.make(tmp_path_factory.mktemp("export") / "tiny-llama")


@pytest.fixture(scope="module")
def half(model: Path) -> Path:
    """The same, stored in bfloat16."""
    return tiny_bytes.rounded_copy(model, model.with_name("tiny-half"), "bfloat16")


def logits(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        opened = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return opened(torch.tensor([TOKENS])).logits[0].numpy()


def mlx_logits(folder: Path) -> Any:
    import mlx.core as mx
    import mlx_lm

    opened, _ = mlx_lm.load(str(folder))
    return np.array(opened(mx.array([TOKENS]))[0].astype(mx.float32))


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.endswith(".tmp") or path.name.startswith(".")]


@needs_mlx
def test_a_merged_adapter_is_one_model_for_transformers_and_for_mlx_lm(run: Run, model: Path, tmp_path: Path) -> None:
    adapter = random_adapter(model, tmp_path / "adapter")
    done = run("export", adapter, "--to", "merged", "--output-dir", "out")
    assert done.returncode == 0, done.stderr
    assert "an adapter of" in done.stdout
    theirs = logits(tmp_path / "out")
    assert np.abs(theirs - logits(model)).max() > 0.1  # the adapter does something
    assert np.abs(theirs - mlx_logits(tmp_path / "out")).max() < 3e-5  # measured: 3e-6
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["rope_theta"], config["rope_parameters"]["rope_theta"]) == (100_000.0, 100_000.0)
    assert config["tie_word_embeddings"] is True


def random_adapter(base: Path, folder: Path) -> Path:
    from gsm8k_core.models.adapter import LoraSpec, first_values, write_adapter

    spec = LoraSpec(4, 8.0, 0.0, (), True, 0)
    weights = {
        name.removesuffix(".weight"): value
        for name, value in read_tensors(base / "model.safetensors").items()
        if name.endswith("_proj.weight")
    }
    drawn = np.random.default_rng(0)
    values = {
        name: drawn.normal(0, 0.1, value.shape).astype(np.float32) if "lora_B" in name else value
        for name, value in first_values(spec, weights).items()
    }
    write_adapter(folder, values, spec, str(base))
    return folder


@pytest.mark.parametrize(("flags", "dtype"), [((), "bfloat16"), (("--save-dtype", "float16"), "float16")])
def test_the_bases_own_dtype_unless_another_is_asked_for(
    run: Run, half: Path, tmp_path: Path, flags: tuple[str, ...], dtype: str
) -> None:
    assert run("export", half, "--to", "merged", "--output-dir", "out", *flags).returncode == 0
    assert own_dtype(tmp_path / "out") == dtype
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == dtype


@needs_mlx
def test_mlx_lm_opens_its_own_conversion_and_answers_with_it(run: Run, half: Path, tmp_path: Path) -> None:
    import mlx_lm

    done = run("export", half, "--to", "mlx", "--output-dir", "plain")
    assert done.returncode == 0, done.stderr
    # mlx-lm's conversion of bfloat16 weights to bfloat16 changes none, and leaves none out.
    before, after = (read_tensors(place / "model.safetensors") for place in (half, tmp_path / "plain"))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    done = run("export", half, "--to", "mlx", "--bits", "8", "--output-dir", "eight")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "eight/config.json").read_text())["quantization"]["bits"] == 8
    opened, tokenizer = mlx_lm.load(str(tmp_path / "eight"))
    assert mlx_lm.generate(opened, tokenizer, "Tom has 2", max_tokens=4)
    assert (tmp_path / "eight/tokenizer.json").read_bytes() == (half / "tokenizer.json").read_bytes()
    assert sorted(path.name for path in (tmp_path / "eight").iterdir() if path.is_dir()) == []


@needs_mlx
def test_what_stays_float_is_said_and_a_form_that_nothing_has_is_refused(run: Run, tmp_path: Path) -> None:
    """A file of float numbers that is called q4_0 would be measured, and uploaded, as what it is not."""
    some = tiny_bytes.make(tmp_path / "some", hidden_size=128, intermediate_size=80)
    none = tiny_bytes.make(tmp_path / "none", hidden_size=72, num_attention_heads=3, intermediate_size=80)
    for flags, size, float_ in ((("gguf", "--type", "q4_0"), 32, "float16"), (("mlx", "--bits", "4"), 64, "float32")):
        done = run("export", some, "--to", *flags, "--output-dir", f"some-{flags[0]}")
        assert done.returncode == 0, done.stderr
        said = f"2 of 15 matrices (10.2 % of the weights) stay {float_}, as their rows are no whole blocks of {size}"
        card = (tmp_path / f"some-{flags[0]}/README.md").read_text()
        assert f"float    {said}" in done.stdout
        assert f"; {said}." in card
        done = run("export", none, "--to", *flags, "--output-dir", "out")
        assert (done.returncode, (tmp_path / "out").exists()) == (4, False)
        assert f"no matrix of {none} has rows of whole blocks of {size}, so all of it would stay float" in done.stderr
    written = read_tensors(tmp_path / "some-mlx/model.safetensors")
    kept = {name for name, value in written.items() if name.endswith("proj.weight") and value.dtype == np.float32}
    assert kept == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1)}


def test_ollama_gets_a_modelfile_and_is_run_where_it_is(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run("export", model, "--to", "ollama", "--type", "q8_0", "--json", "--output-dir", "out")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ollama"] is None
    assert "ollama create tiny-llama -f Modelfile" in done.stderr  # to be typed where it is
    text = (tmp_path / "out/Modelfile").read_text()
    assert text.startswith("FROM ./tiny-llama-q8_0.gguf\n")
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert 'SYSTEM """Solve step by step.' in text
    program = tmp_path / "bin/ollama"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    for code, said in ((0, "created  tiny-llama in Ollama"), (1, "could not connect to the server")):
        program.write_text(
            f"#!/bin/sh\npwd > {tmp_path}/called\necho $* >> {tmp_path}/called\necho {said} >&2\nexit {code}\n"
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        done = run("export", model, "--to", "ollama", "--output-dir", f"again-{code}")
        assert done.returncode == (3 if code else 0), done.stderr
        assert said in done.stdout + done.stderr
        assert (tmp_path / "called").read_text().split("\n")[:2] == [
            str(tmp_path / f"again-{code}"),
            "create tiny-llama -f Modelfile",
        ]
        assert (tmp_path / f"again-{code}/Modelfile").is_file()


def test_a_run_is_exported_into_itself_with_its_dtype_its_prompt_and_its_card(
    run: Run, half: Path, data: Path, tmp_path: Path
) -> None:
    flags = ["--max-samples", "8", "--batch-size", "2", "--gradient-accumulation-steps", "2", "--num-epochs", "1"]
    quick = [
        "--guard-problems",
        "0",
        "--probe-steps",
        "0",
        "--save-steps",
        "1",
        "--device",
        "cpu",
        "--dtype",
        "float32",
    ]
    done = run(
        "train", "--backend", "torch", "--model", half, "--data", data, *flags, *quick, "--output-dir", "one",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "export   python cli.py export one --to ollama" in done.stdout
    assert own_dtype(tmp_path / "one/model") == "bfloat16"
    newest = sorted((tmp_path / "one/checkpoints").iterdir())[-1]
    assert own_dtype(newest / "model") == "float32"  # what --resume goes on from is not rounded
    exact, kept = (read_tensors(place / "model.safetensors") for place in (newest / "model", tmp_path / "one/model"))
    assert all(np.abs(exact[name] - kept[name]).max() <= np.abs(exact[name]).max() / 256 for name in exact)
    assert any(np.any(exact[name] != kept[name]) for name in exact)
    manifest = json.loads((tmp_path / "one/run.json").read_text())
    assert manifest["choices"]["saved"]["name"] == "bfloat16"
    first = newest.with_name("update-000001")
    assert run("export", first, "--to", "merged").returncode == 0
    early = tmp_path / f"one/export/{first.name}-merged"
    assert own_dtype(early) == "bfloat16"
    assert f"1 update over {manifest['rows']['train']} rows" in (early / "README.md").read_text()
    done = run("export", "one", "--to", "gguf", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["export"] == "one/export/gguf-f16"
    assert (tmp_path / "one/export/gguf-f16/one-f16.gguf").is_file()
    card = (tmp_path / "one/export/gguf-f16/README.md").read_text()
    assert "Not measured" in card
    assert f"2 updates over {manifest['rows']['train']} rows" in card
    assert f"- data: `{data}`, sha256 of train `{manifest['data']['sha256']['train']}`\n" in card
    assert run("compare", "--trained-model", "one", "--max-samples", "2", "--max-new-tokens", "4").returncode == 0
    assert run("export", "one", "--to", "merged").returncode == 0
    card = (tmp_path / "one/export/merged/README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["model-index"][0]["results"]
    assert "## Results" in card
    assert "## This export" in card


def test_an_adapter_on_weights_that_it_was_not_trained_on_is_refused_or_said(
    run: Run, model: Path, data: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(model, base)
    flags = [
        "--max-samples",
        "8",
        "--num-epochs",
        "1",
        "--guard-problems",
        "0",
        "--device",
        "cpu",
        "--dtype",
        "float32",
    ]
    known = ["--backend", "torch", "--model", base, "--data", data, "--method", "lora", "--output-dir", "one"]
    assert run("train", *known, *flags).returncode == 0
    moved = tmp_path / "moved"
    shutil.copytree(base, moved)
    export = ["export", "one", "--to", "merged", "--output-dir"]
    same = run(*export, "same", "--base-model", moved)  # the same weights elsewhere
    assert (same.returncode, "was never trained" in same.stdout) == (0, False)
    card = (tmp_path / "same/README.md").read_text()
    whole = resolve_model(str(base), lambda said: None).model.hash
    assert f"- base: `{base}`, sha256 `{whole}`" in card
    assert "- made from: the first 16 digits of a sha256 `" in card
    weights = read_tensors(moved / "model.safetensors")
    save_file({name: value * np.float32(1.5) for name, value in weights.items()}, moved / "model.safetensors")
    other = run(*export, "other", "--base-model", moved)
    assert other.returncode == 0
    assert f"{moved} has other weights than {base}" in " ".join(other.stdout.split())
    assert f"- base: `{moved}`" in (tmp_path / "other/README.md").read_text()
    shutil.copy(moved / "model.safetensors", base / "model.safetensors")  # what the run began with is gone
    for verb in (
        [*export, "gone"],
        ["eval", "--model", "one", "--max-samples", "2", "--data", data],
        ["generate", "--model", "one", "1+1?"],
    ):
        done = run(*verb)
        assert done.returncode == 4, done.stdout
        assert "is not what the run began with any more; add --base-model" in " ".join(done.stderr.split())
    assert not (tmp_path / "gone").exists()
    shutil.rmtree(base)
    few = ["--data", data, "--max-samples", "2", "--max-new-tokens", "2"]
    compared = run("compare", "--base-model", moved, "--trained-model", "one", *few)
    assert compared.returncode == 0, compared.stderr
    assert f"export   python cli.py export one --to ollama --base-model {moved}   (" in compared.stdout


BAD = [
    (("export",), 2, "export needs a run"),
    (("export", "MODEL"), 2, "export needs --to merged, mlx, gguf or ollama"),
    (("export", "MODEL", "--to", "onnx"), 2, "--to"),
    (("export", "MODEL", "--to", "gguf", "--type", "q5_k"), 2, "--type"),
    (("export", "MODEL", "--to", "mlx", "--bits", "3"), 2, "--bits"),
    (("export", "MODEL", "--to", "merged", "--bits", "4"), 2, "--bits is for --to mlx, not for merged"),
    (("export", "MODEL", "--to", "mlx", "--type", "f16"), 2, "--type is for --to gguf and ollama, not for mlx"),
    (("export", "MODEL", "--to", "gguf", "--save-dtype", "float16"), 2, "--save-dtype is for --to merged and mlx"),
    (("export", "MODEL", "--to", "merged", "--push", "no name"), 2, "give OWNER/NAME"),
    (("export", "MODEL", "--to", "merged", "--push", "me/mine"), 4, "HF_HUB_OFFLINE is set"),
    (("export", "nowhere/at/all", "--to", "gguf"), 4, "is not a folder here"),
    (("export", "stopped", "--to", "gguf"), 4, "run folder stopped has no model in it"),
    (("export", "words", "--to", "gguf"), 4, "'WordLevel'"),
    (("export", "MODEL", "--to", "merged", "--output-dir", "there"), 7, "there exists already"),
    (("export", "MODEL", "--to", "merged", "--output-dir", "file/below"), 7, "file"),
]


def test_each_bad_input_is_one_line_and_leaves_nothing(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped/run.json").write_text('{"status": "stopped"}')
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    tiny.make(tmp_path / "words", "llama")
    before = sorted(path.name for path in tmp_path.iterdir())
    for arguments, code, said in BAD:
        done = run(*(model if argument == "MODEL" else argument for argument in arguments))
        (line,) = done.stderr.splitlines()[-1:]
        assert (done.returncode, line.startswith("error: ")) == (code, True), (arguments, done.stderr)
        assert said in line, (arguments, line)
        assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_architecture_without_a_map_is_refused_by_its_name(run: Run, model: Path, tmp_path: Path) -> None:
    folder = tiny_bytes.make(tmp_path / "falcon")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "falcon_h1"}))
    done = run("export", folder, "--to", "gguf")
    assert done.returncode == 4
    assert "'falcon_h1' is not made here (llama, mistral, qwen2" in done.stderr
    assert not (tmp_path / "falcon-gguf-f16").exists()


@pytest.mark.parametrize(
    ("kind", "where"), [("merged", (merged, "write_tensors")), ("gguf", (gguf_file, "_quantised"))]
)
def test_a_full_disk_leaves_no_half_of_an_export(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, where: tuple[Any, str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*where, full)
    done = run("export", model, "--to", kind, "--output-dir", "out")
    assert done.returncode == 7
    assert "out was not written: the disk is full" in done.stderr
    assert not (tmp_path / "out").exists()
    assert leftovers(tmp_path) == []


def test_a_package_that_is_missing_is_named(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None if name.startswith("mlx") else object())
    done = run("export", model, "--to", "mlx", "--output-dir", "out")
    assert done.returncode == 3
    assert "backend mlx needs mlx and mlx_lm, not installed here; pip install" in done.stderr


def test_push_uploads_the_whole_export_and_only_when_asked(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    for key in HUB_KEYS:
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with fake_hub.FakeHub({}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert run("export", model, "--to", "merged", "--output-dir", "first").returncode == 0
        assert hub.requests == []
        done = run("export", model, "--to", "merged", "--output-dir", "out", "--push", "me/mine")
        assert (done.returncode, (tmp_path / "out").exists()) == (4, False)
        assert "--push me/mine needs a key of the Hub; log in with `hf auth login`" in done.stderr
        monkeypatch.setenv("HF_TOKEN", "hf_wrong_and_secret")
        done = run("export", model, "--to", "merged", "--output-dir", "out", "--push", "me/mine")
        assert done.returncode == 4
        assert "the Hub does not know this key" in done.stderr
        monkeypatch.setenv("HF_TOKEN", fake_hub.KEY)
        done = run("export", model, "--to", "gguf", "--output-dir", "out", "--push", "me/mine")
        assert done.returncode == 0, done.stderr
        assert f"pushed   {hub.url}/me/mine" in done.stdout
        assert hub.private == {"me/mine": True}
        assert hub.pushed["me/mine"] == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        assert fake_hub.KEY not in done.stdout + done.stderr


def test_what_is_refused_at_the_push_leaves_the_export_and_says_how_to_go_on(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gsm8k_core.models.hub.check_push", lambda repo: None)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", fake_hub.KEY)
    done = run("export", model, "--to", "merged", "--output-dir", "out", "--push", "me/mine")
    assert done.returncode == 4
    assert "me/mine was not uploaded" in done.stderr
    assert "the export is whole in out: hf upload me/mine out" in done.stderr
    assert ModelFolder(tmp_path / "out").check()
