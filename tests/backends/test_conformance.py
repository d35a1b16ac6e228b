"""What every backend does, one test a fact."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import backends
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.problems.batching import make_updates, pad
from gsm8k_core.types import (
    IGNORE_INDEX,
    Batch,
    Completion,
    DataError,
    DivergedError,
    Example,
    OutOfMemoryError,
    PreflightError,
    Sampling,
    StorageError,
    Update,
)
from tests import tiny
from tests.backends.conftest import FakePilot


def open_it(name: str, folder: Path) -> Any:
    return backends.open(name, folder, "cpu", "float32")


def updates_of(examples: list[Example], epochs: int = 1) -> list[Update]:
    return list(make_updates(examples, batch_size=4, update_size=8, num_epochs=epochs, seed=0))


def test_each_update_is_reported_once_in_order(backend_name: str, qwen2: Path, examples: list[Example]) -> None:
    pilot = FakePilot()
    outcome = open_it(backend_name, qwen2).train(updates_of(examples), TrainConfig(), pilot)
    assert (outcome.reason, outcome.update) == ("done", 3)
    assert [stats.update for stats in pilot.stats] == [1, 2, 3]
    assert pilot.stats[0].rate == 1e-3


def test_a_stop_order_ends_the_segment(backend_name: str, qwen2: Path, examples: list[Example]) -> None:
    pilot = FakePilot(stop_after=2)
    outcome = open_it(backend_name, qwen2).train(updates_of(examples), TrainConfig(), pilot)
    assert (outcome.reason, outcome.update) == ("enough", 2)
    assert len(pilot.stats) == 2


def test_the_pilots_rate_is_the_step(backend_name: str, qwen2: Path, examples: list[Example], tmp_path: Path) -> None:
    # The first AdamW step with bias correction moves each weight by almost exactly the rate.
    backend = open_it(backend_name, qwen2)
    backend.train(updates_of(examples)[:1], TrainConfig(), FakePilot(rate=2e-3))
    backend.save(tmp_path / "out")
    name = "model.layers.1.mlp.down_proj.weight"
    moved = np.abs(load_file(tmp_path / "out/model.safetensors")[name] - load_file(qwen2 / "model.safetensors")[name])
    assert np.median(moved) == pytest.approx(2e-3, rel=1e-3)


def test_a_plan_changed_after_an_update_is_the_rate_of_the_next(
    backend_name: str, qwen2: Path, examples: list[Example], tmp_path: Path
) -> None:
    class Replanning(FakePilot):
        """A rate of zero from the moment that the first update is reported."""

        def rate(self, update: int) -> float:
            return 0.0 if self.stats else 1e-2

    saved = []
    for number in (1, 3):
        backend = open_it(backend_name, qwen2)
        pilot = Replanning()
        # Its scheduler asks for the second rate before the first update is reported: a later answer must win.
        backend.train(updates_of(examples)[:number], TrainConfig(), pilot)
        backend.save(tmp_path / str(number))
        saved.append(load_file(tmp_path / str(number) / "model.safetensors"))
    assert all(np.array_equal(saved[0][name], saved[1][name]) for name in saved[0])


def test_micro_batches_do_not_change_an_update(backend_name: str, qwen2: Path, examples: list[Example]) -> None:
    found = []
    for size in (2, 8):
        pilot = FakePilot()
        updates = make_updates(examples, batch_size=size, update_size=8, num_epochs=1, seed=0)
        open_it(backend_name, qwen2).train(updates, TrainConfig(), pilot)
        found.append([(stats.loss, stats.grad_norm) for stats in pilot.stats])
    # Measured: 1.2e-6. The control is test_a_mean_of_means_is_seen.
    assert np.abs(np.array(found[0]) - np.array(found[1])).max() < 1e-5


def test_blocks_leaves_embeddings_and_final_norm(
    backend_name: str, qwen2: Path, examples: list[Example], tmp_path: Path
) -> None:
    backend = open_it(backend_name, qwen2)
    backend.train(updates_of(examples), TrainConfig(trainable="blocks"), FakePilot())
    backend.save(tmp_path / "out")
    before, after = load_file(qwen2 / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert same == {"model.embed_tokens.weight", "model.norm.weight"}


def test_a_model_is_saved_in_a_narrower_dtype_rounded_as_torch_rounds(
    backend_name: str, qwen2: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file as load_tensors

    backend = open_it(backend_name, qwen2)
    for dtype in ("float32", "bfloat16", "float16"):
        backend.save(tmp_path / dtype, dtype)
        assert json.loads((tmp_path / dtype / "config.json").read_text())["dtype"] == dtype
    exact = load_tensors(tmp_path / "float32/model.safetensors")
    for dtype in (torch.bfloat16, torch.float16):
        found = load_tensors(tmp_path / str(dtype).removeprefix("torch.") / "model.safetensors")
        assert all(torch.equal(found[name], exact[name].to(dtype)) for name in exact)


def test_weights_of_targets_scale_the_loss(backend_name: str, qwen2: Path, examples: list[Example]) -> None:
    update = updates_of(examples)[0]
    doubled = tuple(
        Batch(batch.tokens, batch.labels, np.full(batch.tokens.shape, 2.0, np.float32))
        for batch in update.micro_batches
    )
    losses = []
    for item in (update, replace(update, micro_batches=doubled)):
        pilot = FakePilot()
        open_it(backend_name, qwen2).train([item], TrainConfig(), pilot)
        losses.append(pilot.stats[0].loss)
    assert losses[1] == pytest.approx(2 * losses[0], rel=1e-6)


def test_a_loss_that_is_not_finite_is_not_applied(
    backend_name: str, qwen2: Path, examples: list[Example], tmp_path: Path
) -> None:
    update = updates_of(examples)[0]
    weights = [np.full(batch.tokens.shape, np.nan, np.float32) for batch in update.micro_batches]
    poisoned = replace(
        update,
        micro_batches=tuple(Batch(b.tokens, b.labels, w) for b, w in zip(update.micro_batches, weights, strict=True)),
    )
    backend = open_it(backend_name, qwen2)
    with pytest.raises(DivergedError, match="update 1: loss nan"):
        backend.train([poisoned], TrainConfig(), FakePilot())
    backend.save(tmp_path / "out")
    before, after = load_file(qwen2 / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_batched_generation_is_one_by_one(backend_name: str, tiny_model: Path, examples: list[Example]) -> None:
    prompts = [example.tokens[: 5 + 3 * index] for index, example in enumerate(examples[:7])]
    backend = open_it(backend_name, tiny_model)
    together = dict(backend.generate(prompts, Sampling(24, 7)))
    assert together == dict(backend.generate(prompts, Sampling(24, 1)))
    assert sorted(together) == list(range(7))


def test_generation_stops_at_any_end_token(
    backend_name: str, qwen2: Path, tmp_path: Path, examples: list[Example]
) -> None:
    import json
    import shutil

    prompts = [example.tokens[:6] for example in examples[:4]]
    free = dict(open_it(backend_name, qwen2).generate(prompts, Sampling(24, 4)))
    second = next(c.tokens[2] for c in free.values() if len(c.tokens) > 3 and c.tokens[2] not in c.tokens[:2])
    folder = tmp_path / "two-ends"
    shutil.copytree(qwen2, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, int(second)]}))
    stopped = dict(open_it(backend_name, folder).generate(prompts, Sampling(24, 4)))
    for index, completion in stopped.items():
        cut = next((place for place, token in enumerate(free[index].tokens) if token == second), None)
        assert completion.tokens == free[index].tokens[:cut]
    assert any(completion.finish_reason == "stop" for completion in stopped.values())


def test_an_answer_that_is_complete_goes_no_further(backend_name: str, qwen2: Path, examples: list[Example]) -> None:
    """It ends with the token that completes it, its neighbours go on, and its seat is taken again."""
    prompts = [example.tokens[:6] for example in examples[:6]]
    backend = open_it(backend_name, qwen2)
    free = dict(backend.generate(prompts, Sampling(12, 3)))
    token = next(c.tokens[4] for c in free.values() if len(c.tokens) > 5 and c.tokens[4] not in c.tokens[:4])
    found = dict(backend.generate(prompts, Sampling(12, 3, complete=lambda tokens: tokens[-1] == token)))
    for index, completion in found.items():
        written = free[index].tokens
        if token in written:
            assert completion == Completion(written[: written.index(token) + 1], "complete")
        else:
            assert completion == free[index]
    assert {"complete"} < {completion.finish_reason for completion in found.values()}


def test_max_new_tokens_is_a_limit_and_is_told(backend_name: str, qwen2: Path, examples: list[Example]) -> None:
    done = dict(open_it(backend_name, qwen2).generate([examples[0].tokens[:6]], Sampling(3, 1)))
    assert len(done[0].tokens) == 3
    assert done[0].finish_reason == "length"


def test_weights_that_are_nan_are_named_and_not_answered(backend_name: str, tmp_path: Path) -> None:
    # Otherwise argmax of all-NaN logits is token 0: the "!!!!" of Qwen.
    folder = tiny.make(tmp_path / "nan")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][:] = np.nan
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    backend = open_it(backend_name, folder)
    for more in ({}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.9}, {"temperature": 1.0, "top_k": 3}):
        with pytest.raises(DivergedError, match="not finite"):
            list(backend.generate([[4, 5, 6]], Sampling(3, 1, **more)))


def test_untied_heads_are_trained_and_saved(backend_name: str, tmp_path: Path, examples: list[Example]) -> None:
    folder = tiny.make(tmp_path / "untied", tie_word_embeddings=False)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"][::-1].copy()
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    backend = open_it(backend_name, folder)
    backend.train(updates_of(examples), TrainConfig(), FakePilot())
    backend.save(tmp_path / "out")
    after = load_file(tmp_path / "out/model.safetensors")
    assert not np.array_equal(after["lm_head.weight"], tensors["lm_head.weight"])
    batch = pad(examples[:2])
    assert np.allclose(open_it(backend_name, tmp_path / "out").score(batch), backend.score(batch), atol=1e-6)


def test_transformers_and_mlx_lm_open_what_is_saved(
    backend_name: str, tiny_model: Path, tmp_path: Path, examples: list[Example]
) -> None:
    import mlx.core as mx
    import mlx_lm
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    backend = open_it(backend_name, tiny_model)
    backend.train(updates_of(examples), TrainConfig(), FakePilot())
    backend.save(tmp_path / "out")
    row = np.array([examples[0].tokens])
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(torch.from_numpy(row)).logits.detach().numpy()
    model, _ = mlx_lm.load(str(tmp_path / "out"))
    also = np.array(model(mx.array(row)))
    # Measured: 8e-6 on logits of up to 12.
    assert np.abs(theirs - also).max() < 8e-5
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tiny.TEMPLATE


def test_saving_over_something_is_refused(backend_name: str, qwen2: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="exists"):
        open_it(backend_name, qwen2).save(tmp_path)


def test_a_device_of_another_framework_is_refused(backend_name: str, qwen2: Path) -> None:
    other = {"torch": "tpu", "mlx": "mps"}[backend_name]
    with pytest.raises(PreflightError, match=rf"--device {other}.*--device auto"):
        backends.open(backend_name, qwen2, other)


def test_a_dtype_that_it_does_not_have_is_refused(backend_name: str, qwen2: Path) -> None:
    with pytest.raises(PreflightError, match=r"--dtype float16.*float32"):
        backends.open(backend_name, qwen2, "cpu", "float16")


def test_a_missing_or_surplus_weight_is_refused(backend_name: str, tmp_path: Path) -> None:
    # transformers fills a missing one with random numbers and goes on.
    for change in ("missing", "surplus"):
        folder = tiny.make(tmp_path / change)
        tensors = load_file(folder / "model.safetensors")
        if change == "missing":
            del tensors["model.layers.1.mlp.up_proj.weight"]
        else:
            tensors["model.layers.1.mlp.extra.weight"] = np.zeros((2, 2), np.float32)
        save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
        with pytest.raises(DataError):
            open_it(backend_name, folder)


def test_a_model_that_scales_its_logits_is_right(backend_name: str, tmp_path: Path) -> None:
    import torch
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    config = GraniteConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        logits_scaling=8.0,
        tie_word_embeddings=True,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=2,
    )
    folder = tmp_path / "granite"
    model = GraniteForCausalLM(config)
    model.save_pretrained(folder)
    tiny.tokenizer_files(folder)
    batch = pad([Example("a", (4, 5, 6, 7, 8, 1), 2)])
    tokens = torch.from_numpy(batch.tokens).long()
    right = torch.log_softmax(model(tokens).logits[0, :-1].detach(), -1).gather(-1, tokens[0, 1:, None])[:, 0]
    assert np.allclose(open_it(backend_name, folder).score(batch)[0], right.numpy(), atol=1e-4)


def test_dropout_in_the_config_changes_nothing(
    backend_name: str, qwen2: Path, tmp_path: Path, examples: list[Example]
) -> None:
    losses = []
    for folder in (qwen2, tiny.make(tmp_path / "drop", attention_dropout=0.5)):
        pilot = FakePilot()
        open_it(backend_name, folder).train(updates_of(examples)[:1], TrainConfig(), pilot)
        losses.append(pilot.stats[0].loss)
    assert losses[0] == losses[1]


def test_a_folder_that_is_no_model_is_refused(backend_name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config\.json"):
        open_it(backend_name, tmp_path)


def test_every_choice_has_a_reason(backend_name: str, qwen2: Path) -> None:
    choices = backends.open(backend_name, qwen2).choices
    assert {"device", "dtype"} <= set(choices)
    assert all(choice.reason for choice in choices.values())


def test_mps_is_not_chosen_by_itself() -> None:
    from backends.torch.device import choose_device

    assert choose_device("auto", ("mps", "cpu")).name == "cpu"
    assert choose_device("mps", ("mps", "cpu")).name == "mps"
    assert choose_device("gpu", ("mps", "cpu")).name == "mps"
    assert choose_device("auto", ("cuda", "cpu")).name == "cuda"
    with pytest.raises(PreflightError, match="--device gpu"):
        choose_device("gpu", ("cpu",))


@pytest.mark.parametrize("text", ["DefaultCPUAllocator: can't allocate memory: you tried", "CUDA out of memory. Tried"])
def test_running_out_of_memory_has_its_own_error(qwen2: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    import backends.torch.backend as module

    def fail(*unused: object) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(module, "train", fail)
    with pytest.raises(OutOfMemoryError, match="--micro-batch-tokens"):
        backends.open("torch", qwen2, "cpu", "float32").train([], TrainConfig(), FakePilot())


def test_prompts_without_a_common_beginning_are_decoded_as_they_score(
    backend_name: str, tiny_model: Path, examples: list[Example]
) -> None:
    backend = open_it(backend_name, tiny_model)
    first, second = (
        tuple(t for t in row.tokens[:size] if t != tiny.END_ID) for row, size in zip(examples[:2], (10, 6), strict=True)
    )
    assert first[0] != second[0]
    alone = dict(backend.generate([first], Sampling(8, 4)))[0].tokens
    assert len(set(alone)) > 1
    for place, token in enumerate(alone):
        rows = np.array(
            [[*first, *alone[:place], other] for other in range(ModelFolder(tiny_model).vocabulary)], dtype=np.int32
        )
        assert backend.score(Batch(rows, np.full_like(rows, IGNORE_INDEX)))[:, -1].argmax() == token
    assert dict(backend.generate([first, second], Sampling(8, 4)))[0].tokens == alone


def test_a_model_with_a_window_is_decoded_as_transformers_does(tmp_path: Path, examples: list[Example]) -> None:
    """And with a window as long as its texts, as one without."""
    if not backends.installed("torch"):
        pytest.skip("backend torch is not installed here")
    import torch
    from transformers import AutoModelForCausalLM

    window = {"use_sliding_window": True, "max_window_layers": 0, "layer_types": ["sliding_attention"] * 2}
    prompts = [example.tokens[: 9 + 3 * index] for index, example in enumerate(examples[:5])]
    short = tiny.make(tmp_path / "short", "qwen2", sliding_window=6, **window)
    found = dict(open_it("torch", short).generate(prompts, Sampling(12, 3)))
    model = AutoModelForCausalLM.from_pretrained(short, dtype=torch.float32)
    for index, prompt in enumerate(prompts):
        theirs = model.generate(torch.tensor([list(prompt)]), do_sample=False, max_new_tokens=12)[0, len(prompt) :]
        ours = found[index].tokens
        assert tuple(theirs.tolist()[: len(ours)]) == ours
    plain = dict(open_it("torch", tiny.make(tmp_path / "plain", "qwen2")).generate(prompts, Sampling(12, 3)))
    long = tiny.make(tmp_path / "long", "qwen2", sliding_window=256, **window)
    assert dict(open_it("torch", long).generate(prompts, Sampling(12, 3))) == plain
    assert found != plain  # the control: a window that is used changes the texts


def test_places_are_filled_again(backend_name: str, tiny_model: Path, examples: list[Example]) -> None:
    """More prompts than places, of uneven length and with uneven answers, 3 or 8 at once, or all: the same texts."""
    prompts = [example.tokens[: 4 + index % 9] for index, example in enumerate(examples[:12])]
    backend = open_it(backend_name, tiny_model)
    alone = dict(backend.generate(prompts, Sampling(30, 1)))
    assert len({len(completion.tokens) for completion in alone.values()}) > 3
    for size in (3, 8, 64):
        assert dict(backend.generate(prompts, Sampling(30, size))) == alone
