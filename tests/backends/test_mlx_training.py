"""What makes training on MLX fast, each held to the plain way; and what an update costs in waiting."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import backends
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.problems.batching import make_updates, pad
from gsm8k_core.types import Example, Update
from tests.backends.conftest import FakePilot

pytestmark = pytest.mark.skipif(not backends.installed("mlx"), reason="backend mlx is not installed here")

TOLERANCE = 2e-6  # relative to the largest element; measured: 4e-7 (attention), 1.3e-7 (SiLU), 2e-7 (head)


@pytest.fixture
def mlx() -> Any:
    """The modules, with the CPU as device."""
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_flatten

    from backends.mlx import fast_exp, loss, train

    mx.set_default_device(mx.cpu)
    return SimpleNamespace(mx=mx, nn=nn, tree_flatten=tree_flatten, fast_exp=fast_exp, loss=loss, train=train)


def updates_of(examples: list[Example]) -> list[Update]:
    return list(make_updates(examples, batch_size=2, update_size=8, num_epochs=1, seed=0))


def worst(mlx: Any, wanted: Any, found: Any) -> float:
    return max(float(mlx.mx.abs(a - b).max() / mlx.mx.abs(a).max()) for a, b in zip(wanted, found, strict=True))


def with_gradients(mlx: Any, function: Any, arguments: list[Any], seed: Any, compiled: bool = False) -> list[Any]:
    def both(arguments: list[Any], seed: Any) -> Any:
        values, gradients = mlx.mx.vjp(function, arguments, [seed])
        return [*values, *gradients]

    return (mlx.mx.compile(both) if compiled else both)(arguments, seed)  # type: ignore[no-any-return]


def normal(mlx: Any, *shape: int, seed: int = 0) -> Any:
    return mlx.mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def test_exp_is_exp_and_keeps_what_is_not_finite(mlx: Any) -> None:
    values = np.linspace(-86.9, 87.9, 100_003, dtype=np.float32)
    found = np.array(mlx.fast_exp.exp(mlx.mx.array(values)))
    assert np.abs(found / np.exp(values.astype(np.float64)) - 1).max() < 3e-7  # measured: 8e-8
    ends = np.array(mlx.fast_exp.exp(mlx.mx.array([-np.inf, -1e30, np.nan, 0.0])))
    assert ends[0] == ends[1] < 2e-38
    assert np.isnan(ends[2])
    assert ends[3] == 1.0


@pytest.mark.parametrize("compiled", [False, True])
def test_silu_is_mlx_lms(mlx: Any, compiled: bool) -> None:
    from mlx_lm.models.activations import swiglu

    gate, up, seed = (normal(mlx, 5, 70, seed=place) * 4 for place in range(3))
    wanted = with_gradients(mlx, swiglu, [gate, up], seed)
    assert worst(mlx, wanted, with_gradients(mlx, mlx.fast_exp.swiglu, [gate, up], seed, compiled)) < TOLERANCE
    other = with_gradients(mlx, lambda gate, up: mlx.nn.gelu(gate) * up, [gate, up], seed)
    assert worst(mlx, wanted, other) > 10 * TOLERANCE  # the control


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("heads", [(6, 2), (4, 4), (3, 1)])
def test_attention_is_mlxs(mlx: Any, heads: tuple[int, int], compiled: bool) -> None:
    query, key, value = (normal(mlx, 2, count, 37, 16, seed=count) for count in (heads[0], heads[1], heads[1]))
    seed = normal(mlx, 2, heads[0], 37, 16, seed=9)

    def stock(mask: str | None) -> Any:
        return lambda q, k, v: mlx.mx.fast.scaled_dot_product_attention(q, k, v, scale=0.25, mask=mask)

    arguments = [query, key, value]
    wanted = with_gradients(mlx, stock("causal"), arguments, seed)
    found = with_gradients(mlx, lambda q, k, v: mlx.fast_exp.attention(q, k, v, 0.25), arguments, seed, compiled)
    assert worst(mlx, wanted, found) < TOLERANCE
    assert worst(mlx, wanted, with_gradients(mlx, stock(None), arguments, seed)) > 10 * TOLERANCE  # the control


def test_a_score_that_is_not_finite_stays_visible(mlx: Any) -> None:
    query = normal(mlx, 1, 2, 5, 4)
    query[0, 1, 2, 0] = float("nan")
    out = mlx.fast_exp.attention(query, normal(mlx, 1, 2, 5, 4, seed=1), normal(mlx, 1, 2, 5, 4, seed=2), 0.5)
    assert np.isnan(np.array(out)[0, 1, 2]).all()


def test_the_models_code_is_as_before_afterwards(mlx: Any) -> None:
    from mlx_lm.models import llama

    before = (llama.swiglu, llama.scaled_dot_product_attention)
    with mlx.fast_exp.whole_array_ops(OfLlama()):
        assert llama.swiglu is mlx.fast_exp.swiglu
    assert (llama.swiglu, llama.scaled_dot_product_attention) == before


class OfLlama:
    """Of the module that mlx-lm's Llama is of; nothing else is asked of it."""

    __module__ = "mlx_lm.models.llama"


@pytest.mark.parametrize("chunk", [1, 4 * 384 * 7, 2**30])  # one row, seven rows (the last chunk is shorter), all
@pytest.mark.parametrize("bias", [False, True])
def test_the_heads_loss_and_gradients_are_the_plain_ones(
    mlx: Any, chunk: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlx.loss, "CHUNK_BYTES", chunk)
    module = mlx.nn.Linear(24, 384, bias=bias)
    hidden = normal(mlx, 33, 24)
    targets = mlx.mx.array(np.arange(33, dtype=np.int32) * 11)
    weights = mlx.mx.array(np.linspace(0, 2, 33, dtype=np.float32))

    def plain(hidden: Any, *trained: Any) -> Any:
        logits = hidden @ trained[0].T + (trained[1] if bias else 0.0)
        return (mlx.nn.losses.cross_entropy(logits, targets) * weights).sum()

    def ours(hidden: Any, *trained: Any) -> Any:
        module.update(dict(zip(("weight", "bias"), trained, strict=False)))
        return mlx.loss.head_loss(module, hidden, targets, weights)

    arguments = [hidden, module.weight, *([module.bias] if bias else [])]
    wanted = with_gradients(mlx, plain, arguments, mlx.mx.array(3.0))
    assert worst(mlx, wanted, with_gradients(mlx, ours, arguments, mlx.mx.array(3.0))) < TOLERANCE
    weights = weights + 1e-3  # the control: another weight
    assert worst(mlx, wanted, with_gradients(mlx, ours, arguments, mlx.mx.array(3.0))) > 10 * TOLERANCE


def test_a_frozen_head_gets_no_gradient(mlx: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole or in 4 bits: only the hidden states' gradient is an output, and it is the plain one."""
    module = mlx.nn.Linear(64, 320, bias=False)
    targets, weights = mlx.mx.array(np.arange(9, dtype=np.int32)), mlx.mx.ones(9)
    monkeypatch.setattr(mlx.loss, "FROZEN_CHUNK_BYTES", 4 * 320 * 4)  # four rows: two chunks, and one row
    for frozen in (module, mlx.nn.QuantizedLinear.from_linear(module, 64, 4)):
        frozen.freeze()

        def plain(hidden: Any, head: Any = frozen) -> Any:
            return (mlx.nn.losses.cross_entropy(head(hidden), targets) * weights).sum()

        def ours(hidden: Any, head: Any = frozen) -> Any:
            return mlx.loss.head_loss(head, hidden, targets, weights)

        one = mlx.mx.array(1.0)
        wanted = with_gradients(mlx, plain, [normal(mlx, 9, 64)], one)
        assert worst(mlx, wanted, with_gradients(mlx, ours, [normal(mlx, 9, 64)], one)) < TOLERANCE


def test_targets_are_rounded_up_with_weight_zero(mlx: Any, examples: list[Example]) -> None:
    batch = pad(examples[:3])
    positions, targets, weights = mlx.loss.target_positions(batch)
    assert positions.shape == targets.shape == weights.shape
    assert positions.size % mlx.loss.TARGETS_MULTIPLE == 0
    assert weights.sum().item() == batch.num_targets
    assert {array.dtype for array in (positions, targets)} == {mlx.mx.int32}
    assert weights.dtype == mlx.mx.float32


def test_each_update_waits_once(
    mlx: Any, qwen2: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, updates, waits = backends.open("mlx", qwen2, "cpu", "float32"), updates_of(examples), []
    real = mlx.mx.eval
    monkeypatch.setattr(mlx.mx, "eval", lambda *arrays: (waits.append(1), real(*arrays)))
    assert max(len(update.micro_batches) for update in updates) > 1
    backend.train(updates, TrainConfig(), FakePilot())
    assert len(waits) == len(updates)


def test_nothing_in_training_is_float64(mlx: Any, qwen2: Path, examples: list[Example]) -> None:
    """Metal has none."""
    backend = backends.open("mlx", qwen2, "cpu", "float32")
    update = updates_of(examples)[0]
    backend.train([update], TrainConfig(), FakePilot())
    micro_batch = mlx.train.MicroBatch(backend._model, compiled=True)
    total, gradients = mlx.train.update_gradients(micro_batch, update, 1.0, lambda place, batch: None)
    kept = [total, *gradients.values(), *backend._masters.values(), *mlx.loss.target_positions(pad(examples[:2]))]
    kept += [value for which in ("m", "v") for value in backend._optimizer.moments(which).values()]
    assert {value.dtype for value in kept} == {mlx.mx.float32, mlx.mx.int32}


def test_a_shape_is_traced_once_and_only_so_many_are(
    mlx: Any, qwen2: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = backends.open("mlx", qwen2, "cpu", "float32")._model
    narrow, wide = pad(examples[:1]), pad([Example("long", tuple(range(4, 60)) * 2, 20)])
    free, held = mlx.train.MicroBatch(model, compiled=True), mlx.train.MicroBatch(model, compiled=False)
    for batch in (narrow, wide, narrow, wide):
        wanted, found = held(batch, 1.0), free(batch, 1.0)
        assert found[0].item() == pytest.approx(wanted[0].item(), rel=1e-6)
    assert (free.num_traces, held.num_traces) == (2, 0)
    monkeypatch.setattr(mlx.train, "MOST_TRACES", 1)
    few = mlx.train.MicroBatch(model, compiled=True)
    losses = [few(batch, 1.0)[0].item() for batch in (narrow, wide)]
    assert few.num_traces == 1
    assert losses == pytest.approx([free(batch, 1.0)[0].item() for batch in (narrow, wide)], rel=1e-6)


def test_the_scale_of_float16_leaves_few_gradients_among_its_subnormals(
    mlx: Any, qwen2: Path, examples: list[Example]
) -> None:
    """Below 2**-14 a float16 has fewer digits. Computed in float16, as Metal does, in an update of 2,000 targets."""
    from backends.mlx.load import cast

    backend = backends.open("mlx", qwen2, "cpu", "float32")
    model, batch = backend._model, pad(examples[:8])
    cast(model, mlx.mx.float16)

    class Tapped(mlx.nn.Module):  # type: ignore[misc, name-defined]
        """A projection whose gradient at its output is that of what is added there: 0."""

        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner, self.added = inner, mlx.mx.zeros((*batch.tokens.shape, inner.weight.shape[0]), mlx.mx.float16)

        def __call__(self, x: Any) -> Any:
            return self.inner(x) + self.added

    for layer in model.layers:
        for part in (layer.self_attn, layer.mlp):
            part.update_modules({name: Tapped(inner) for name, inner in part.children().items() if "proj" in name})
    arrays = mlx.mx.array(batch.tokens), *mlx.loss.target_positions(batch)
    gradient_of = mlx.nn.value_and_grad(model, mlx.train.scaled_loss)

    def at(scale: float) -> tuple[float, float]:
        """The share of subnormals at the projections' outputs, and the largest of all gradients."""
        gradients = dict(mlx.tree_flatten(gradient_of(model, scale, *arrays)[1]))
        sizes = {name: np.abs(np.array(value)) for name, value in gradients.items()}
        assert all(size.dtype == np.float16 for size in sizes.values())
        tapped = np.concatenate([size.ravel() for name, size in sizes.items() if name.endswith("added")])
        tapped = tapped[tapped > 0]  # what comes after the last target has none
        return float((tapped < 2**-14).mean()), max(float(size.max()) for size in sizes.values())

    few, largest = at(mlx.train.loss_scale(mlx.mx.float16, 2000))
    many, _ = at(128 / 2000)  # the control: what it was
    print(few, many, largest)
    assert few < many / 4, (few, many)
    assert largest < 65504 / 100, largest
