"""The memory planner: its formula, what it chooses, what it refuses; and how much memory there is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gsm8k_core.config.train import TrainConfig
from gsm8k_core.training.memory import (
    Costs,
    DeviceMemory,
    Model,
    answers_at_once,
    container_limits,
    dev_at_once,
    evaluated_at_once,
    model_of,
    plan,
    predict,
    sampling_bytes,
    system_memory,
)
from gsm8k_core.types import Choice, OutOfMemoryError

SMOL = {
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
COSTS = Costs(process=0, chunk=128 * 2**20, frozen_chunk=32 * 2**20, scores=1.0, again=2.0, working_copy=True)
GB = 10**9


def model(**settings: Any) -> Model:
    found = model_of(SMOL, TrainConfig(**settings))
    assert found is not None
    return found


def memory(free: float, limit: float | None = None) -> DeviceMemory:
    return DeviceMemory(
        "cpu", int(free * GB), int((limit or free) * GB), COSTS, Choice("1024", "it is fast"), "in this test"
    )


def test_parameters_are_counted_from_the_config_alone() -> None:
    assert model().num_parameters == pytest.approx(134_515_008, rel=1e-3)  # of the embedded model's file
    assert model(trainable="blocks").num_trained == model().num_parameters - 576 * 49152
    adapter = model(method="lora", lora_rank=16)
    # rank x (in + out) over the seven layers of a block
    each = 2 * (576 + 576) + 2 * (576 + 192) + 2 * (576 + 1536) + (1536 + 576)
    assert adapter.num_trained == 30 * 16 * each
    assert model(method="lora", target_modules="q_proj").num_trained == 30 * 16 * (576 + 576)
    assert model(method="dora").num_trained == adapter.num_trained + 30 * (2 * 576 + 2 * 192 + 2 * 1536 + 576)
    assert model_of({"n_embd": 768}, TrainConfig()) is None


@pytest.mark.parametrize(
    ("settings", "dtype", "of_model", "of_trained"),
    [
        ({}, "float32", 4, 12),
        ({}, "bfloat16", 6, 14),  # with the working copy and its gradients: 20
        ({"method": "lora"}, "float32", 4, 16),
        ({"method": "lora"}, "bfloat16", 2, 20),
        ({"method": "qlora"}, "float32", 0.63, 16),
    ],
)
def test_bytes_a_parameter(settings: dict[str, Any], dtype: str, of_model: float, of_trained: int) -> None:
    """docs/training.md's table."""
    found = model(**settings)
    need = predict(found, TrainConfig(**settings), dtype, COSTS, 512, 512)
    assert need.weights == int(of_model * found.num_parameters)
    assert need.states == of_trained * found.num_trained


def test_ranks_that_share_the_weights_take_less() -> None:
    found, config = model(), TrainConfig()
    blocks, rest = found.shape.block_parameters, found.num_parameters - found.shape.block_parameters
    need = predict(found, config, "bfloat16", replace(COSTS, ranks=4), 512, 512)
    # float32 alone, its part; and gathered: what is in no block with its gradient, two blocks with that of one
    assert need.weights == 4 * (found.num_parameters // 4 + 2 * rest + 3 * blocks // 30)
    assert need.states == 12 * found.num_parameters // 4
    adapter = TrainConfig(method="lora")
    small = predict(model(method="lora"), adapter, "float32", replace(COSTS, ranks=4), 512, 512)
    assert small.weights == 4 * (found.num_parameters // 4 + rest + 2 * blocks // 30)
    assert small.states == 16 * model(method="lora").num_trained  # an adapter is whole on every rank
    wanted, spread = Choice("1024", "it is fast"), replace(memory(20), costs=replace(COSTS, ranks=4))
    alone, shared = (plan(found, config, "float32", each, wanted, 512, asked=False) for each in (memory(20), spread))
    assert (alone.moments, shared.moments) == (8 * found.num_parameters, 2 * found.num_parameters)


def test_the_first_weights_beside_those_that_are_trained_are_counted() -> None:
    found, near = model(), {"kl": 0.1, "recipe": "grpo"}
    for settings, dtype, more in (({}, "float32", 4), ({}, "bfloat16", 6), ({"method": "lora"}, "float32", 0)):
        plain, held = (predict(found, TrainConfig(**{**settings, **own}), dtype, COSTS, 512, 512) for own in ({}, near))
        assert held.total - plain.total == more * found.num_parameters


def test_more_tokens_take_more_and_checkpointing_less() -> None:
    config, found = TrainConfig(), model()
    small, large = (predict(found, config, "float32", COSTS, tokens, 512) for tokens in (512, 1024))
    assert large.activations == 2 * small.activations
    assert predict(found, config, "float32", COSTS, 64, 512) == small  # one row is the least
    again = predict(found, TrainConfig(gradient_checkpointing=True), "float32", COSTS, 1024, 512)
    assert again.activations < large.activations / 5


def test_what_fits_is_left_alone() -> None:
    wanted = Choice("1024", "it is fast")
    found = plan(model(), TrainConfig(), "float32", memory(20), wanted, 512, asked=False)
    assert (found.tokens, found.fits, found.tight) == (wanted, True, False)


def test_the_budget_is_lowered_to_what_is_free() -> None:
    wanted = Choice("1024", "it is fast")
    free = predict(model(), TrainConfig(), "float32", COSTS, 1000, 512).total
    found = plan(model(), TrainConfig(), "float32", memory(free / GB), wanted, 512, asked=False)
    assert 512 <= int(found.tokens.name) < 1024
    assert found.fits
    assert "1024 would take about" in found.tokens.reason
    more = predict(model(), TrainConfig(), "float32", COSTS, int(found.tokens.name) + 64, 512)
    assert more.total * 1.15 > free  # not lower than it has to be
    kept = plan(model(), TrainConfig(), "float32", memory(free / GB), wanted, 512, asked=True)
    assert (kept.tokens, kept.fits, kept.tight) == (wanted, False, True)
    assert "that is tight" in kept.line()


def test_one_row_that_does_not_fit_is_refused_with_what_would() -> None:
    wanted = Choice("1024", "it is fast")
    with pytest.raises(OutOfMemoryError, match=r"one row of 512 tokens, .* are 2.5 GB .*--method lora \(about "):
        plan(model(), TrainConfig(), "float32", memory(2.5), wanted, 512, asked=False)
    with pytest.raises(OutOfMemoryError, match="a smaller model, or close other programs"):
        plan(model(), TrainConfig(), "float32", memory(0.5), wanted, 512, asked=False)
    # A Mac makes room: what is not free now is a warning.
    found = plan(model(), TrainConfig(), "float32", memory(2.5, limit=16), wanted, 512, asked=False)
    assert (found.tokens.name, found.fits) == ("512", False)


def group(folder: Path, most: str, used: int, files: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {files}\n")


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/outer/inner\n")
    root = tmp_path / "fs"
    group(root / "outer/inner", "max", 10, 0)
    group(root / "outer", "1000000000", 700_000_000, 300_000_000)
    assert list(container_limits(root, own)) == [(1_000_000_000, 400_000_000)]
    free, total, reason = system_memory(root, own)
    plain, every, _ = system_memory(tmp_path / "none", tmp_path / "none")
    assert (total, reason) == (1_000_000_000, "the container's limit")
    assert 0.6e9 <= free < plain <= every


def test_version_1_of_the_control_groups_is_read_too(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("4:cpu,cpuacct:/a\n9:memory:/docker/x\n")
    folder = tmp_path / "fs/memory/docker/x"
    folder.mkdir(parents=True)
    for name, text in (("limit_in_bytes", "2000"), ("usage_in_bytes", "500"), ("stat", "inactive_file 0")):
        (folder / f"memory.{name}").write_text(text)
    assert list(container_limits(tmp_path / "fs", own)) == [(2000, 500)]
    (folder / "memory.limit_in_bytes").write_text("9223372036854771712")
    assert list(container_limits(tmp_path / "fs", own)) == []


def test_answers_at_once_are_halved_until_they_fit() -> None:
    config, found = TrainConfig(), model()
    shape = found.shape
    # Of SmolLM2's keys and values: 30 layers, 3 heads of 64, both of them, float32.
    assert sampling_bytes(shape, "float32", 1, 500) == 30 * 3 * 64 * 2 * 500 * 4 + 3 * 4 * 49152
    assert sampling_bytes(shape, "bfloat16", 64, 500) < sampling_bytes(shape, "float32", 64, 500)
    roomy = plan(found, config, "float32", memory(16), Choice("1024", "fast"), 512, asked=False)
    assert answers_at_once(roomy, config, "float32", 500, 64).name == "64"
    there = 4 * found.num_parameters + roomy.moments
    tight = plan(
        found,
        config,
        "float32",
        memory(1.2 * (there + sampling_bytes(shape, "float32", 16, 500)) / GB, 16),
        Choice("1024", "fast"),
        512,
        asked=False,
    )
    chosen = answers_at_once(tight, config, "float32", 500, 64)
    assert chosen.name == "16"
    assert chosen.reason.startswith("64 would take about")
    least = plan(found, config, "float32", memory(0.1, 16), Choice("1024", "fast"), 512, asked=False)
    assert answers_at_once(least, config, "float32", 500, 64).name == "1"


def gpu(free: float) -> DeviceMemory:
    return replace(memory(free), device="cuda")


@pytest.mark.parametrize(("free", "chosen"), [(140, 512), (40, 512), (24, 256), (12, 128), (7, 64), (6, 32), (0.1, 1)])
def test_as_many_problems_are_answered_at_once_as_half_of_a_gpus_memory_holds(free: float, chosen: int) -> None:
    """SmolLM2's keys and values of 700 tokens are 32 MB an answer in float32."""
    found = evaluated_at_once("auto", SMOL, gpu(free), "float32", 700)
    assert int(found.name) == chosen
    assert found.reason.startswith("problems at once, 512 at most and in half of the memory: about ")
    need = 4 * model().num_parameters + sampling_bytes(model().shape, "float32", chosen, 700)
    assert chosen == 1 or need <= free * GB / 2


def test_on_a_cpu_64_problems_are_answered_at_once_whatever_is_free() -> None:
    for free in (1, 4, 140):
        assert evaluated_at_once("auto", SMOL, memory(free), "float32", 700).name == "64"
    assert evaluated_at_once("auto", {"n_embd": 768}, gpu(140), "float32", 700).name == "64"
    assert evaluated_at_once("7", SMOL, gpu(140), "float32", 700) == Choice("7", "--eval-batch-size 7")


def test_the_dev_problems_of_a_gpu_are_answered_all_at_once_where_they_fit() -> None:
    def chosen(where: DeviceMemory, problems: int = 64) -> str:
        found = plan(model(), TrainConfig(), "float32", where, Choice("1024", "fast"), 512, asked=False)
        return dev_at_once(found, TrainConfig(), "float32", 600, problems).name

    assert (chosen(gpu(140)), chosen(gpu(140), 1000)) == ("64", "512")
    assert (chosen(gpu(6)), chosen(memory(140))) == ("64", "16")
    assert chosen(replace(memory(3, limit=6), device="cuda")) == "32"
    assert dev_at_once(None, TrainConfig(), "float32", 600, 64).name == "16"
