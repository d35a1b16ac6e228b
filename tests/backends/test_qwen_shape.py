"""Two updates of a random model with Qwen2.5-0.5B's shape and its real tokenizer and template, on each backend."""

from __future__ import annotations

import gc
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import backends
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.problems.batching import make_updates
from gsm8k_core.problems.prompts import make_examples
from gsm8k_core.types import Problem
from tests import tiny
from tests.backends.conftest import FakePilot

SHAPE = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 2,  # the rest is its shape; 24 of them took 10 GB and a minute more on each backend
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "max_position_embeddings": 32_768,
    "rope_theta": 1e6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "eos_token_id": 151_645,
    "pad_token_id": 151_643,
}
NAMES = {"mlx", "torch"}


@pytest.fixture(scope="module")
def qwen_shaped(qwen_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tiny.make(tmp_path_factory.mktemp("qwen") / "model", "qwen2", std=0.02, **SHAPE)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(qwen_tokenizer / name, folder / name)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [151_645, 151_643]}))
    yield folder
    shutil.rmtree(folder)  # 2 GB


losses: dict[str, list[float]] = {}


def test_two_updates(backend_name: str, qwen_shaped: Path) -> None:
    problems = [
        Problem(f"train-{n}", f"Tom has {n} apples.", f"<<{n}+1={n + 1}>>\n#### {n + 1}", str(n + 1)) for n in (3, 8)
    ]
    examples = make_examples(ModelFolder(qwen_shaped).rendering, problems)
    backend = backends.open(backend_name, qwen_shaped, "cpu", "float32")
    pilot = FakePilot(rate=1e-4)
    backend.train(
        make_updates(examples, batch_size=1, update_size=1, num_epochs=1, seed=0), TrainConfig(batch_size=1), pilot
    )
    losses[backend_name] = [stats.loss for stats in pilot.stats]
    del backend
    gc.collect()
    first, second = losses[backend_name]
    assert abs(first - math.log(SHAPE["vocab_size"])) < 1.5  # type: ignore[arg-type]  # a random model knows nothing
    assert second < first
    if set(losses) == NAMES:
        assert losses["mlx"] == pytest.approx(losses["torch"], abs=1e-4)
