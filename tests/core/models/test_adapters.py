"""A merged adapter is the model that peft and mlx-lm make of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import backends
from gsm8k_core.models.find import resolve_model
from gsm8k_core.problems.batching import pad
from gsm8k_core.types import DataError, Example
from tests import tiny

BATCH = pad([Example("a", (4, 5, 6, 7, 8, 9, 1), 2)])


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GSM8K_CACHE", str(tmp_path / "cache"))
    return tiny.make(tmp_path / "base", "llama")


def peft_adapter(base: Path, folder: Path, **settings: object) -> np.ndarray:
    """A random adapter made and saved by peft; returns peft's own scores of BATCH."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "down_proj"], init_lora_weights=False, **settings)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    model.save_pretrained(folder)
    tokens = torch.from_numpy(BATCH.tokens).long()
    logits = torch.log_softmax(model(input_ids=tokens).logits[0, :-1], -1)
    return logits.gather(-1, tokens[0, 1:, None])[:, 0].detach().numpy()


def scores(folder: Path) -> np.ndarray:
    source = resolve_model(str(folder), print)
    assert source.choice.name == "adapter"
    return backends.open("torch", source.folder, "cpu", "float32").score(BATCH)[0]


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_a_peft_adapter_scores_as_in_peft(base: Path, tmp_path: Path, settings: dict[str, object]) -> None:
    theirs = peft_adapter(base, tmp_path / "adapter", **settings)
    plain = backends.open("torch", base, "cpu", "float32").score(BATCH)[0]
    assert np.abs(scores(tmp_path / "adapter") - theirs).max() < 2e-5  # measured: 3e-6
    assert np.abs(plain - theirs).max() > 1e-2


@pytest.mark.skipif(not backends.installed("mlx"), reason="backend mlx is not installed here")
def test_an_mlx_lm_adapter_scores_as_in_mlx_lm(base: Path, tmp_path: Path) -> None:
    import mlx.core as mx
    import mlx_lm

    folder = tmp_path / "adapter"
    folder.mkdir()
    rng = np.random.default_rng(0)
    weights = {}
    for layer in range(2):
        stem = f"model.layers.{layer}.self_attn.q_proj"
        weights[f"{stem}.lora_a"] = rng.normal(0, 0.2, (64, 4)).astype(np.float32)
        weights[f"{stem}.lora_b"] = rng.normal(0, 0.2, (4, 64)).astype(np.float32)
    save_file(weights, str(folder / "adapters.safetensors"))
    parameters = {"rank": 4, "scale": 2.5, "dropout": 0.0, "keys": ["self_attn.q_proj"]}
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": parameters, "model": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    model, _ = mlx_lm.load(str(base), adapter_path=str(folder))
    logits = np.array(model(mx.array(BATCH.tokens)))[0, :-1].astype(np.float64)
    picked = np.take_along_axis(logits, BATCH.tokens[0, 1:, None], -1)[:, 0]
    theirs = picked - np.log(np.exp(logits).sum(-1))
    assert np.abs(scores(folder) - theirs).max() < 2e-5


def test_a_merged_adapter_is_made_once(base: Path, tmp_path: Path) -> None:
    peft_adapter(base, tmp_path / "adapter")
    first = resolve_model(str(tmp_path / "adapter"), print).folder
    made = (first / "model.safetensors").stat().st_mtime_ns
    assert resolve_model(str(tmp_path / "adapter"), print).folder == first
    assert (first / "model.safetensors").stat().st_mtime_ns == made


def test_a_damaged_merged_folder_is_made_again(base: Path, tmp_path: Path) -> None:
    theirs = peft_adapter(base, tmp_path / "adapter")
    weights = resolve_model(str(tmp_path / "adapter"), print).folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert np.abs(scores(tmp_path / "adapter") - theirs).max() < 2e-5


def test_what_is_not_read_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    peft_adapter(base, tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_model.safetensors"
    save_file(load_file(path) | {"base_model.model.extra": np.zeros(2, np.float32)}, str(path))
    with pytest.raises(DataError, match=r"changes extra, which its base lacks"):
        resolve_model(str(tmp_path / "adapter"), print)


def test_the_wrong_base_is_refused(base: Path, tmp_path: Path) -> None:
    peft_adapter(base, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    other = tiny.make(tmp_path / "other", "llama", num_hidden_layers=1)
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(other)}))
    with pytest.raises(DataError, match="which its base lacks"):
        resolve_model(str(tmp_path / "adapter"), print)
