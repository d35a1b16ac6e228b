"""torch: head and loss with the gradient taken in the forward pass, and one cast of each weight an update."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import backends
from backends.torch import loss as loss_module
from backends.torch.loss import HeadLoss, LossModel, finish_of, to_device
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.models.head import PLAIN, Finish
from gsm8k_core.problems.batching import make_updates, pad
from gsm8k_core.types import Example
from tests import tiny
from tests.backends.conftest import FakePilot

N, H, V, CHUNK = 50, 32, 200, 16
Parts = tuple[Any, Any, Any, Any]


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four chunks, the last one short."""
    monkeypatch.setattr(loss_module, "chunk_rows", lambda vocabulary: CHUNK)


@pytest.fixture
def parts() -> Parts:
    """Hidden states, head, targets, and unlike scales."""
    draw = torch.Generator().manual_seed(0)
    hidden_NH = torch.randn(N, H, generator=draw).requires_grad_()
    weight_VH = (torch.randn(V, H, generator=draw) / 4).requires_grad_()
    return hidden_NH, weight_VH, torch.randint(V, (N,), generator=draw), torch.rand(N, generator=draw) / N


def plain(parts: Parts) -> Any:
    hidden_NH, weight_VH, targets_N, scale_N = parts
    return F.cross_entropy(hidden_NH @ weight_VH.T, targets_N, reduction="none").dot(scale_N)


def ours(parts: Parts, dtype: Any = torch.float32) -> Any:
    hidden_NH, weight_VH, targets_N, scale_N = parts
    return HeadLoss.apply(hidden_NH, weight_VH, weight_VH.detach().to(dtype), targets_N, scale_N)


def with_gradients(parts: Parts, loss: Any) -> tuple[Any, ...]:
    return (loss.detach(), *torch.autograd.grad(loss, parts[:2]))


def gap(right: tuple[Any, ...], found: tuple[Any, ...]) -> float:
    """The largest rms difference over the rms, of loss, dH and dW."""
    pairs = zip(right, found, strict=True)
    return max(float((a - b).double().square().mean().sqrt() / a.double().square().mean().sqrt()) for a, b in pairs)


def test_loss_and_gradients_are_those_of_the_plain_loss(parts: Parts) -> None:
    right = with_gradients(parts, plain(parts))
    error = gap(right, with_gradients(parts, ours(parts)))
    alike = (*parts[:3], parts[3].mean().expand(N))  # as if every target counted the same
    control = gap(right, with_gradients(parts, ours(alike)))
    assert error < 1e-6 < control / 10  # measured 1.3e-7, and 0.52 for the control


@pytest.mark.parametrize("finish", [Finish(3.0), Finish(cap=1.5), Finish(2.0, 1.5)])
def test_what_follows_the_head_is_in_loss_and_gradients(parts: Parts, finish: Finish) -> None:
    """A division and a soft cap, as Granite and Gemma have them; chunk by chunk, so that no more logits are there."""
    hidden_NH, weight_VH, targets_N, scale_N = parts
    logits_NV = hidden_NH @ weight_VH.T / finish.divisor
    if finish.cap is not None:
        logits_NV = finish.cap * torch.tanh(logits_NV / finish.cap)
    right = with_gradients(parts, F.cross_entropy(logits_NV, targets_N, reduction="none").dot(scale_N))
    found = HeadLoss.apply(hidden_NH, weight_VH, weight_VH.detach(), targets_N, scale_N, False, finish)
    assert gap(right, with_gradients(parts, found)) < 1e-6 < gap(right, with_gradients(parts, ours(parts))) / 10


def test_bfloat16_products_keep_a_float32_gradient_sum(parts: Parts) -> None:
    right = with_gradients(parts, plain(parts))
    found = with_gradients(parts, ours(parts, torch.bfloat16))
    assert {part.dtype for part in found} == {torch.float32}
    assert 1e-4 < gap(right, found) < 2e-2  # measured 3.3e-3


def test_a_frozen_head_gets_no_gradient(parts: Parts) -> None:
    hidden_NH, weight_VH, *rest = parts
    weight_VH.requires_grad_(False)
    with Largest() as largest:
        loss = ours((hidden_NH, weight_VH, *rest))
        loss.backward()
    assert weight_VH.grad is None
    assert largest.numel < V * H


def test_what_comes_after_the_loss_counts(parts: Parts) -> None:
    right = with_gradients(parts, plain(parts) * 3)
    assert gap(right, with_gradients(parts, ours(parts) * 3)) < 1e-6


def test_a_gradient_is_given_once(parts: Parts) -> None:
    loss = ours(parts)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the loss again"):
        loss.backward()


class Largest(TorchDispatchMode):
    """The largest tensor that any operation makes; a view is none."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and not func.is_view:
            self.numel = max(self.numel, found.numel())
        return found


def test_no_logits_of_all_targets_are_made(parts: Parts) -> None:
    with Largest() as whole:
        plain(parts).backward()
    with Largest() as chunked:
        ours(parts).backward()
    assert (whole.numel, chunked.numel) == (N * V, V * H)


def test_nothing_of_the_logits_is_kept(parts: Parts) -> None:
    kept: list[int] = []

    def keep(tensor: Any) -> Any:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        plain(parts)
        assert max(kept) == N * V  # log p
        kept.clear()
        ours(parts)
    assert kept == []


# --- the whole model ----------------------------------------------------------------------------------------------


@pytest.fixture
def model(tiny_model: Path) -> Any:
    return backends.open("torch", tiny_model, "cpu", "float32")._model  # type: ignore[attr-defined]


def gradients(model: Any, loss: Any) -> dict[str, Any]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("weighted", [False, True])
def test_every_gradient_of_a_model_is_the_plain_one(weighted: bool, model: Any, examples: list[Example]) -> None:
    batch = pad(examples[:5])
    if weighted:
        batch = replace(batch, weights=np.random.default_rng(0).random(batch.tokens.shape, np.float32))
    fast = LossModel(model)
    assert fast._finish == PLAIN
    slow = LossModel(model)
    slow._finish = None
    arguments = to_device(batch, torch.device("cpu"))
    right, found = (gradients(model, one(**arguments, scale=0.01)) for one in (slow, fast))
    assert right.keys() == found.keys()
    assert gap(tuple(right.values()), tuple(found.values())) < 5e-6  # measured 7e-7 at most


def test_gradients_added_in_place_are_the_plain_ones(model: Any, examples: list[Example]) -> None:
    """Over two micro-batches, which both add to the same gradient."""
    arguments = [to_device(pad(examples[at : at + 3]), torch.device("cpu")) for at in (0, 3)]
    loss = LossModel(model)
    for one in arguments:
        loss(**one, scale=0.01).backward()
    right = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    with loss.one_update():
        for one in arguments:
            loss(**one, scale=0.01).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert gap(tuple(right.values()), tuple(found.values())) < 1e-6  # measured 1.2e-7
    one_only = dict(found, **{name: value / 2 for name, value in found.items() if "embed" in name})
    assert gap(tuple(right.values()), tuple(one_only.values())) > 1e-2


def test_a_loss_scaled_after_its_head_is_refused(model: Any, examples: list[Example]) -> None:
    loss = LossModel(model)
    with loss.one_update(), pytest.raises(RuntimeError, match="not scaled again"):
        (2 * loss(**to_device(pad(examples[:2]), torch.device("cpu")))).backward()


def test_the_pad_token_learns_where_it_is_a_token(tmp_path: Path, examples: list[Example]) -> None:
    """SmolLM2 pads with the token that ends each turn, and transformers' embedding gives that one no gradient."""
    folder = tiny.make(tmp_path / "model", "llama", tie_word_embeddings=False)
    model: Any = backends.open("torch", folder, "cpu", "float32")._model  # type: ignore[attr-defined]
    assert model.config.pad_token_id == tiny.END_ID
    assert tiny.END_ID in examples[0].tokens[: examples[0].num_prompt]
    loss, arguments = LossModel(model), to_device(pad(examples[:2]), torch.device("cpu"))

    def norm() -> float:
        return float(gradients(model, loss(**arguments))["model.embed_tokens.weight"][tiny.END_ID].norm())

    assert norm() > 0
    model.get_input_embeddings().padding_idx = tiny.END_ID
    assert norm() == 0


@pytest.mark.parametrize("change", ["bias", "factor", "cap"])
def test_another_kind_of_head_is_left_to_the_model(change: str, model: Any) -> None:
    head, forward = model.lm_head, model.forward

    def changed(**kwargs: Any) -> Any:
        output = forward(**kwargs)
        output.logits = output.logits / 8 if change == "factor" else 30 * torch.tanh(output.logits / 30)
        return output

    assert finish_of(model) == PLAIN
    if change == "bias":
        head.bias = torch.nn.Parameter(torch.zeros(head.out_features))
    else:
        model.forward = changed
    assert finish_of(model) is None


def test_frozen_weights_in_bfloat16_change_no_bit(
    qwen2: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = list(make_updates(examples, batch_size=3, update_size=6, num_epochs=1, seed=0))
    config = TrainConfig(method="lora", lora_rank=2)
    losses = []
    for kept in (False, True):
        if kept:
            monkeypatch.setattr("backends.torch.backend.cast_frozen", lambda model, dtype: None)
        backends.open("torch", qwen2, "cpu", "bfloat16").train(updates, config, pilot := FakePilot())
        losses.append([stats.loss for stats in pilot.stats])
    assert losses[0] == losses[1]


def test_rope_keeps_its_frequencies_where_weights_are_cast_for_generating(qwen2: Path) -> None:
    cast = backends.open("torch", qwen2, "cpu", "bfloat16")._compute_model()  # type: ignore[attr-defined]
    assert {parameter.dtype for parameter in cast.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in cast.buffers()} == {torch.float32}
    assert cast.lm_head.weight is cast.get_input_embeddings().weight


# --- one cast an update -------------------------------------------------------------------------------------------


class Casts(TorchDispatchMode):
    """How often each parameter is cast to bfloat16, by its address."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and found.dtype == torch.bfloat16:
            self.counts[args[0].data_ptr()] = self.counts.get(args[0].data_ptr(), 0) + 1
        return found


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_each_weight_is_cast_once_an_update(method: Any, again: bool, qwen2: Path, examples: list[Example]) -> None:
    backend: Any = backends.open("torch", qwen2, "cpu", "bfloat16")
    updates = list(make_updates(examples[:16], batch_size=2, update_size=8, num_epochs=1, seed=0))
    assert [len(update.micro_batches) for update in updates] == [4, 4]
    config = TrainConfig(method=method, lora_rank=2, gradient_checkpointing=again)
    with Casts() as casts:
        backend.train(updates, config, FakePilot())
    weights = {name: p.data_ptr() for name, p in backend._model.named_parameters() if p.ndim == 2}
    counts = {name: casts.counts.get(place, 0) for name, place in weights.items()}
    trained = {name for name in counts if method == "full" or "lora_" in name}
    in_use = {name for name in counts if name in trained or "embed" in name}  # the embedding is the head, too
    assert {counts[name] for name in in_use} == {2}
    assert {counts[name] for name in counts.keys() - in_use} <= {0}


def test_the_head_is_cast_anew_outside_an_update(qwen2: Path, examples: list[Example]) -> None:
    """Weights are changed as fused AdamW does it: without a new version."""
    model: Any = backends.open("torch", qwen2, "cpu", "float32")._model  # type: ignore[attr-defined]
    loss, arguments = LossModel(model), to_device(pad(examples[:3]), torch.device("cpu"))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        with loss.one_update():
            before = loss(**arguments)
            model.lm_head.weight.data.mul_(0.5)
            same_head = loss._head(model.lm_head.weight, torch.bfloat16)
        after = LossModel(model)(**arguments)
        assert loss(**arguments) == after != before
        assert not torch.equal(same_head, loss._head(model.lm_head.weight, torch.bfloat16))


# --- the gradient's norm ----------------------------------------------------------------------------------------------


def test_the_norm_of_an_embeddings_gradient_is_whole() -> None:
    from backends.torch.train import global_norm

    embedding = torch.randn(49_152, 576, generator=torch.Generator().manual_seed(0))
    others = [torch.randn(576), torch.randn(()), torch.randn(3, 4, 5)]
    exact = math.sqrt(math.fsum(float(each.double().square().sum()) for each in (embedding, *others)))
    assert abs(global_norm([embedding, *others]).item() / exact - 1) < 1e-6  # measured 3e-8
    control = torch.nn.utils.get_total_norm([embedding, *others]).item()
    assert abs(control / exact - 1) > 1e-5, "torch sums in blocks by now: then Trainer's own norm would do"


def test_a_large_gradient_is_clipped_by_that_norm(qwen2: Path, examples: list[Example]) -> None:
    backend: Any = backends.open("torch", qwen2, "cpu", "float32")
    with pytest.MonkeyPatch.context() as patch:
        clip, seen = torch.nn.utils.clip_grads_with_norm_, []

        def spy(parameters: Any, limit: float, norm: torch.Tensor) -> None:
            clip(parameters, limit, norm)
            seen.append((limit, norm.item(), math.sqrt(sum(float(p.grad.double().square().sum()) for p in parameters))))

        patch.setattr(torch.nn.utils, "clip_grads_with_norm_", spy)
        updates = make_updates(examples, max_tokens=999, update_size=4, seed=0, num_epochs=1)
        backend.train(list(updates)[:2], TrainConfig(max_grad_norm=0.25, batch_size=4), pilot := FakePilot())
    for (limit, norm, clipped), stats in zip(seen, pilot.stats, strict=True):
        assert limit == 0.25 < norm == stats.grad_norm
        assert clipped == pytest.approx(0.25, rel=1e-4)
