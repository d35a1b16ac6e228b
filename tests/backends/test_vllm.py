"""Rollouts by vLLM: a stand-in of its interface, which answers by the weights that it was given last."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import backends
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.models.find import resolve_model
from gsm8k_core.problems.batching import make_updates, pad
from gsm8k_core.types import Example, PreflightError, Sampling
from tests import tiny
from tests.backends.conftest import FakePilot

pytestmark = pytest.mark.skipif(not backends.installed("torch"), reason="it stands beside torch")

END = tiny.END_ID
PROMPTS = [(2, 9, 5), (2, 7, 8, 30, 6)]


@dataclass
class Params:
    """vllm.SamplingParams."""

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    seed: int
    stop_token_ids: Sequence[int]
    detokenize: bool


@dataclass
class LLM:
    """vllm.LLM: its answer to a prompt is one token that its weights decide, and the end token where there is room."""

    model: str
    dtype: str
    max_model_len: int
    gpu_memory_utilization: float
    weights: dict[str, Any] = field(default_factory=dict)
    asked: list[Any] = field(default_factory=list)
    resets: int = 0

    def __post_init__(self) -> None:
        runner = SimpleNamespace(model=SimpleNamespace(load_weights=self._load))
        worker = SimpleNamespace(model_runner=runner)
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=worker))
        MADE.append(self)

    def _load(self, weights: Iterable[tuple[str, Any]]) -> None:
        self.weights = {name: value.clone() for name, value in weights}

    def reset_prefix_cache(self) -> None:
        self.resets += 1

    def generate(self, prompts: Sequence[Any], params: Sequence[Params], use_tqdm: bool) -> list[Any]:
        self.asked.append((prompts, params))
        assert not use_tqdm
        found = []
        for prompt, each in zip(prompts, params, strict=True):
            token = 4 + len(prompt["prompt_token_ids"]) % 7
            written = [token, END][: each.max_tokens]
            found.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=written)]))
        return found


MADE: list[LLM] = []


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's names, and a GPU that the CPU stands in for."""
    package = ModuleType("vllm")
    package.LLM, package.SamplingParams = LLM, Params  # type: ignore[attr-defined]
    package.__spec__ = SimpleNamespace(origin="there")  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setattr("backends.torch.vllm.DEVICE", "cpu")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "")
    MADE.clear()


def test_it_is_asked_as_the_backend_is(qwen2: Path) -> None:
    backend = backends.open("torch", qwen2, "cpu", "float32")
    engine, heard = backend.engine("vllm", 99), []
    sampling = Sampling(2, 64, temperature=1.0, seed=3)
    found = dict(engine.generate(PROMPTS, sampling, lambda index, token: heard.append((index, token)), [11, 12]))
    assert [found[index].tokens for index in (0, 1)] == [(7,), (9,)]
    assert {(each.finish_reason, each.end_token) for each in found.values()} == {("stop", END)}
    assert heard == [(0, 7), (1, 9)]
    (cut,) = dict(engine.generate(PROMPTS[:1], Sampling(1, 64, temperature=1.0))).values()
    assert (cut.tokens, cut.finish_reason, cut.end_token) == ((7,), "length", None)
    (llm,) = MADE
    prompts, params = llm.asked[0]
    assert [tuple(each["prompt_token_ids"]) for each in prompts] == PROMPTS
    assert [(each.temperature, each.top_p, each.top_k, each.max_tokens) for each in params] == [(1.0, 1.0, 0, 2)] * 2
    assert params[0].seed != params[1].seed  # each request draws by itself
    assert (llm.max_model_len, list(params[0].stop_token_ids)) == (99, [END])
    with pytest.raises(ValueError, match="nothing that it has not drawn"):
        list(engine.generate(PROMPTS, Sampling(2, 64, force=lambda written: ())))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_before_each_rollout_it_gets_the_weights_as_they_are(
    qwen2: Path, tmp_path: Path, examples: list[Example], method: Any
) -> None:
    """What it holds is what the backend saves: with an adapter, the sum of both."""
    backend, config = backends.open("torch", qwen2, "cpu", "float32"), TrainConfig(method=method, lora_rank=4)
    updates = list(make_updates(examples, batch_size=4, update_size=8, num_epochs=1, seed=0))
    backend.train(updates[:1], config, FakePilot(rate=1e-2))
    engine = backend.engine("vllm", 99)
    list(engine.generate(PROMPTS, Sampling(2, 64, temperature=1.0)))
    (llm,) = MADE
    backend.save(tmp_path / "saved")
    source = resolve_model(str(tmp_path / "saved"), lambda line: None)
    reference = backends.open("torch", source.folder, "cpu", "float32")
    wanted = dict(reference._model.named_parameters())
    assert set(llm.weights) == set(wanted)
    for name, value in wanted.items():
        assert np.abs(llm.weights[name].numpy() - value.detach().numpy()).max() < 1e-6, name
    before = {name: value.clone() for name, value in llm.weights.items()}
    list(engine.generate(PROMPTS, Sampling(2, 64, temperature=1.0)))
    assert llm.resets == 2
    assert all((before[name] == value).all() for name, value in llm.weights.items())


def test_what_it_cannot_do_is_refused(qwen2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backends.open("torch", qwen2, "cpu", "float32")
    backend.rehearse(pad(tiny.make_rows(4)), TrainConfig(method="dora", lora_rank=4))
    with pytest.raises(PreflightError, match="not for dora"):
        backend.engine("vllm", 99)
    monkeypatch.setattr("backends.torch.vllm.DEVICE", "cuda")
    with pytest.raises(PreflightError, match="runs on --device cuda, and this is cpu"):
        backends.open("torch", qwen2, "cpu", "float32").engine("vllm", 99)
    with pytest.raises(PreflightError, match="and this is cpu"):
        backends.check_engine("torch", "vllm", "cpu", uses_dora=False)
    with pytest.raises(PreflightError, match="not for dora"):
        backends.check_engine("torch", "vllm", "auto", uses_dora=True)
    backends.check_engine("torch", "vllm", "auto", uses_dora=False)  # the device is known when the model is open
    monkeypatch.delitem(sys.modules, "vllm")
    with pytest.raises(PreflightError, match="vLLM is not installed; pip install vllm"):
        backends.check_engine("torch", "vllm", "auto", uses_dora=False)
    if backends.installed("mlx"):
        with pytest.raises(PreflightError, match="not available on mlx, which samples itself"):
            backends.check_engine("mlx", "vllm", "auto", uses_dora=False)
