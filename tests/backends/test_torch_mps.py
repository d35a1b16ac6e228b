"""What MPS lacks or computes wrongly, on a CPU that is taken for it: the loss keeps away from both.

No test here has run on a Mac. `kind_of` is the one place in which the loss asks for its device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import backends
from backends.torch import loss as loss_module
from backends.torch.loss import BLOCK, TOO_MANY_ON_MPS, LossModel, to_device
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.models.head import PLAIN
from gsm8k_core.problems.batching import pad
from gsm8k_core.types import Example, PreflightError
from tests import tiny

CPU = torch.device("cpu")
VOCABULARY = 3 * BLOCK + 64  # SmolLM2's and three more: blocks of which the last is short
aten = torch.ops.aten
# The product, and which of its operands' places hold the two matrices.
PRODUCTS = {
    aten.mm: (0, 1),
    aten.bmm: (0, 1),
    aten.addmm: (1, 2),
    aten.addmm_: (1, 2),
    aten.baddbmm: (1, 2),
    aten.mv: (0, 1),
    aten.addmv: (1, 2),
    aten.dot: (0, 1),
}


class Sums(TorchDispatchMode):
    """Over how many elements each product sums, the most."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in PRODUCTS:
            left, _ = (args[place] for place in PRODUCTS[func.overloadpacket])
            self.most = max(self.most, left.shape[-1])
        return func(*args, **(kwargs or {}))


class NoOtherDtype(TorchDispatchMode):
    """Refuses what has no kernel on MPS: a result written into another dtype than that of what it is made of."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = (kwargs or {}).get("out")
        if out is not None and out.dtype not in {arg.dtype for arg in args if isinstance(arg, torch.Tensor)}:
            raise RuntimeError(f"{func} has no kernel into {out.dtype}")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def as_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "kind_of", lambda device: "mps")


def head_parts(dtype: Any, vocabulary: int = VOCABULARY) -> tuple[Any, ...]:
    draw = torch.Generator().manual_seed(0)
    hidden_NH = torch.randn(20, 16, generator=draw).requires_grad_()
    weight_VH = torch.randn(vocabulary, 16, generator=draw).requires_grad_()
    targets_N = torch.randint(vocabulary, (20,), generator=draw)
    return hidden_NH, weight_VH, weight_VH.detach().to(dtype), targets_N, torch.rand(20, generator=draw) / 20


def gradients_of(parts: tuple[Any, ...]) -> tuple[Any, ...]:
    loss: Any = loss_module.HeadLoss.apply(*parts)
    return (loss.detach(), *torch.autograd.grad(loss, parts[:2]))


def apart(right: Any, found: Any) -> float:
    """The rms difference over the rms."""
    return float((right - found).double().square().mean().sqrt() / right.double().square().mean().sqrt())


# --- no kernel --------------------------------------------------------------------------------------------------------


def test_nothing_is_written_into_another_dtype_on_mps(as_mps: None) -> None:
    """And every bit is that of the CPU's way, which rounds the same float32 product."""
    parts = head_parts(torch.bfloat16, vocabulary=400)
    with NoOtherDtype():
        found = gradients_of(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "kind_of", lambda device: device.type)
        right = gradients_of(parts)
    assert all(torch.equal(a, b) for a, b in zip(right, found, strict=True))


def test_control_the_way_of_a_cpu_has_no_kernel_there() -> None:
    with NoOtherDtype(), pytest.raises(RuntimeError, match="has no kernel into"):
        gradients_of(head_parts(torch.bfloat16, vocabulary=400))


def test_a_dtype_that_the_device_refuses_is_out_and_its_error_is_the_reason(
    qwen2: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend: Any = backends.open("torch", qwen2, "cpu", "float32")
    one = backend._one

    def refuses(model: Any, batch: Any, dtype: str) -> bool:
        if dtype == "bfloat16":
            raise NotImplementedError("The operator 'aten::mul.out' has no kernel\nand more words")
        return bool(one(model, batch, dtype))

    monkeypatch.setattr(backend, "_one", refuses)
    choice = backend.choose_among(("float32", "bfloat16"), pad(examples[:3]), TrainConfig())
    assert choice.name == "float32"
    assert choice.reason.endswith("bfloat16 fails (The operator 'aten::mul.out' has no kernel)")


# --- wrong sums -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_product_of_the_loss_sums_over_the_vocabulary_on_mps(dtype: Any, as_mps: None) -> None:
    parts = head_parts(dtype)
    with Sums() as sums:
        found = gradients_of(parts)
    assert 16 < sums.most <= BLOCK
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "kind_of", lambda device: device.type)
        right = gradients_of(parts)
    assert torch.equal(right[0], found[0])
    assert torch.equal(right[2], found[2])
    rounding = 1e-6 if dtype == torch.float32 else 5e-3
    assert apart(right[1], found[1]) < rounding
    short = loss_module.HeadLoss.apply(
        parts[0], *(part[: 3 * BLOCK] for part in parts[1:3]), parts[3] % BLOCK, parts[4]
    )
    (control,) = torch.autograd.grad(short, parts[:1])
    assert apart(right[1], control) > 10 * rounding


def test_control_elsewhere_the_sum_is_over_all_of_it() -> None:
    with Sums() as sums:
        gradients_of(head_parts(torch.float32))
    assert sums.most == VOCABULARY >= TOO_MANY_ON_MPS


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "large"
    return tiny.make(folder, vocab_size=VOCABULARY, num_hidden_layers=1, hidden_size=32)


@pytest.mark.parametrize("plain", [True, False])
def test_no_product_of_an_update_sums_over_as_many(
    plain: bool, large: Path, examples: list[Example], as_mps: None
) -> None:
    """A model whose head is plain, and one that computes its logits itself."""
    model: Any = backends.open("torch", large, "cpu", "float32")._model  # type: ignore[attr-defined]
    loss = LossModel(model)
    loss._finish = PLAIN if plain else None
    with Sums() as sums:
        loss(**to_device(pad(examples[:3]), CPU), scale=0.1).backward()
    assert 32 < sums.most <= BLOCK
    assert "forward" not in vars(model.lm_head)
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "kind_of", lambda device: device.type)
        loss(**to_device(pad(examples[:3]), CPU), scale=0.1).backward()
    for name, parameter in model.named_parameters():
        assert apart(parameter.grad, found[name]) < 1e-5, name


def test_a_micro_batch_of_too_many_tokens_is_refused_on_mps(as_mps: None) -> None:
    rows = [Example(f"row-{index}", (4,) * 1024, 4) for index in range(32)]
    with pytest.raises(PreflightError, match=r"32768 padded tokens is too large for MPS.*--micro-batch-tokens 16384"):
        to_device(pad(rows), CPU)
    assert to_device(pad(rows[:16]), CPU)["tokens_BT"].numel() == BLOCK


def test_few_words_and_many_targets_are_no_more_at_a_time() -> None:
    """The head's own gradient sums over the targets of a chunk."""
    assert loss_module.chunk_rows(64) == BLOCK
    assert loss_module.chunk_rows(151_936) == 220
