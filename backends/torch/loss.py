"""The loss of gsm8k_core/backend.py in PyTorch.

Head, loss and their gradient are one step: while a chunk's logits are there, what they give to the hidden states
and to the head's weight is taken, and the logits go. So none is kept for the backward pass, and none computed twice.

Axes: B rows, T tokens, N targets, C targets in a chunk, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from gsm8k_core.models.head import PLAIN, Finish
from gsm8k_core.types import IGNORE_INDEX, Batch, PreflightError

CHUNK_BYTES = 128 * 2**20  # of float32 logits; many short chunks would read and write the (V, H) gradient too often
# On an M1 or M2, torch <= 2.13 and products of more than two dimensions in later ones read past their operands where a
# sum goes over as many elements as this (pytorch#195163, #193487): nothing is said, and the result is wrong.
TOO_MANY_ON_MPS = 32_767
BLOCK = 16_384  # elements that are summed at once there
LOUD = 1e4  # far outside what any soft cap lets through
KEPT, SHARDS = "_kept_finish", "_shards"  # of a model whose weights are spread: its finish, and who gathers them


def kind_of(device: torch.device) -> str:
    """cpu, cuda or mps. Asked here alone, so that a test can give another answer than the device on which it runs."""
    return device.type


def chunk_rows(vocabulary: int) -> int:
    """C: targets whose logits are there at one time."""
    return max(1, min(BLOCK, CHUNK_BYTES // (4 * vocabulary)))


def to_device(batch: Batch, device: torch.device) -> dict[str, torch.Tensor]:
    """A micro-batch as LossModel's arguments. Which positions count is worked out here: a device need not be asked.

    Raises PreflightError for one that is too large for MPS: a weight's gradient sums over all of its tokens.
    """
    if kind_of(device) == "mps" and batch.tokens.size >= TOO_MANY_ON_MPS:
        raise PreflightError(
            f"a micro-batch of {batch.tokens.size} padded tokens is too large for MPS, whose products are wrong from "
            f"{TOO_MANY_ON_MPS} on (pytorch#195163); try --micro-batch-tokens {BLOCK}, or a smaller --max-length"
        )
    targets = batch.targets()
    return {
        "tokens_BT": torch.from_numpy(batch.tokens).long().to(device),
        "positions_N": torch.from_numpy(targets.positions_N).long().to(device),
        "targets_N": torch.from_numpy(targets.targets_N).long().to(device),
        "weights_N": torch.from_numpy(targets.weights_N).to(device),
    }


# For a rank that has no row: it takes part in every gather and every sum, and adds zeros to them.
NO_ROW = Batch(
    np.zeros((1, 2), np.int32), np.array([[IGNORE_INDEX, 0]], np.int32), weights=np.zeros((1, 2), np.float32)
)


class HeadLoss(torch.autograd.Function):
    """Sum of scale x -log p over the targets, with its gradient computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        compute_VH: torch.Tensor,
        targets_N: torch.Tensor,
        scale_N: torch.Tensor,
        in_place: bool = False,
        finish: Finish = PLAIN,
    ) -> torch.Tensor:
        """`weight_VH` gets the gradient, in float32; `compute_VH` is it in the dtype of the products.

        `in_place` adds it to weight_VH.grad here and now; the backward pass must then come, and with a gradient of 1.
        """
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        loss = hidden_NH.new_zeros((), dtype=torch.float32)
        grad_NH = torch.empty_like(hidden_NH) if wants_hidden else None
        ctx.in_place = in_place and wants_weight
        grad_VH = gradient_of(weight_VH) if ctx.in_place else None
        for start in range(0, len(targets_N), chunk_rows(len(weight_VH))):
            part = slice(start, start + chunk_rows(len(weight_VH)))
            hidden_CH, scale_C = hidden_NH[part].to(compute_VH.dtype), scale_N[part]
            loss_C, grad_CV = _chunk(hidden_CH, compute_VH, targets_N[part], scale_C, finish)
            loss += loss_C.dot(scale_C)
            if grad_NH is not None:
                grad_NH[part] = _over_vocabulary(grad_CV, compute_VH)
            if wants_weight:
                grad_VH = _add_product(grad_VH, grad_CV.T, hidden_CH)
        ctx.found = grad_NH, None if ctx.in_place else grad_VH
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[torch.Tensor | None, ...]:
        if ctx.found is None:
            raise RuntimeError("the gradient of this loss was taken already; compute the loss again")
        # Given away, not kept: autograd then takes (V, H) as it is, where a second reference would make it copy.
        (grad_NH, grad_VH), ctx.found = ctx.found, None
        (grad,) = grads
        # The caller's scale is in them already. On a CPU, to see that is free; elsewhere it would wait for the device.
        if grad.device.type != "cpu" or grad.item() != 1:
            if ctx.in_place and grad.device.type == "cpu":
                raise RuntimeError("the gradient of the head is there already, for a loss that is not scaled again")
            grad_NH, grad_VH = (None if part is None else part.mul_(grad) for part in (grad_NH, grad_VH))
        return grad_NH, grad_VH, None, None, None, None, None


def gradient_of(weight: torch.Tensor) -> torch.Tensor:
    """Where a gradient is added in place: weight.grad, zeros if there was none."""
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


class EmbeddingRows(torch.autograd.Function):
    """Rows of the embedding; their gradient is added to weight.grad where it belongs.

    autograd makes a (V, H) of zeros for each micro-batch, and adds all of it: a tenth of an update in bfloat16.
    """

    @staticmethod
    def forward(ctx: Any, tokens_BT: torch.Tensor, weight_VH: torch.Tensor) -> torch.Tensor:
        ctx.tokens_BT, ctx.weight_VH = tokens_BT, weight_VH
        return F.embedding(tokens_BT, weight_VH)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[None, None]:
        (grad_BTH,) = grads
        gradient_of(ctx.weight_VH).index_add_(0, ctx.tokens_BT.flatten(), grad_BTH.flatten(0, 1))
        return None, None


def as_forward(model: Any, work: Callable[[], torch.Tensor], calls_it: bool = False) -> torch.Tensor:
    """`work()`, which calls every block once; with all ranks, where the model's weights are spread over them.

    `calls_it`: it calls the model, and not its parts.
    """
    shards = vars(model).get(SHARDS)
    found: torch.Tensor = work() if shards is None else shards.as_forward(work, calls_it)
    return found


def finished(finish: Finish, products: torch.Tensor) -> torch.Tensor:
    """The logits; in float32 where something follows the products."""
    if finish.is_plain:
        return products
    logits = products.float() / finish.divisor
    return logits if finish.cap is None else logits.div_(finish.cap).tanh_().mul_(finish.cap)


def _chunk(
    hidden_CH: torch.Tensor,
    compute_VH: torch.Tensor,
    targets_C: torch.Tensor,
    scale_C: torch.Tensor,
    finish: Finish = PLAIN,
) -> tuple[torch.Tensor, torch.Tensor]:
    """-log p of each target, and its gradient by the products, scale x (p - one at the target) where nothing follows
    them, (C, V), in their dtype."""
    logits_CV = finished(finish, hidden_CH @ compute_VH.T)
    grad_CV = logits_CV.log_softmax(-1, dtype=torch.float32)
    if finish.cap is None:
        del logits_CV
    loss_C = -grad_CV.gather(1, targets_C[:, None])[:, 0]
    grad_CV.exp_().scatter_add_(1, targets_C[:, None], grad_CV.new_full((len(targets_C), 1), -1.0))
    if finish.cap is not None:
        grad_CV.mul_(logits_CV.div_(finish.cap).square_().neg_().add_(1.0))
    if finish.divisor != 1:
        grad_CV.div_(finish.divisor)
    if hidden_CH.dtype == torch.float32 or kind_of(grad_CV.device) == "mps":  # which has no product into another dtype
        return loss_C, grad_CV.mul_(scale_C[:, None]).to(hidden_CH.dtype)
    return loss_C, torch.mul(grad_CV, scale_C[:, None], out=torch.empty_like(grad_CV, dtype=hidden_CH.dtype))


def _over_vocabulary(grad_CV: torch.Tensor, compute_VH: torch.Tensor) -> torch.Tensor:
    """Their product; on MPS in blocks of the vocabulary, added in float32."""
    if kind_of(grad_CV.device) != "mps":
        return grad_CV @ compute_VH
    sum_CH: torch.Tensor | None = None
    for part_CV, part_VH in zip(grad_CV.split(BLOCK, dim=1), compute_VH.split(BLOCK), strict=True):
        sum_CH = _add_product(sum_CH, part_CV, part_VH)
    assert sum_CH is not None
    return sum_CH


def _add_product(total: torch.Tensor | None, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`total`, in float32, with left @ right added."""
    if total is None:
        return (left @ right).float()
    if right.dtype == torch.float32:
        return total.addmm_(left, right)
    return total.add_(left @ right)


class LossModel(nn.Module):
    """Body, head and loss in one forward: autocast and DDP's hooks sit on the module that Trainer wraps."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._finish = finish_of(model)
        self._in_update = False
        self._cast: torch.Tensor | None = None  # the head in the dtype of the products

    @contextmanager
    def one_update(self) -> Iterator[None]:
        """The weights stay what they are in here, so the head is cast once; each loss meets its backward pass.

        It has to be said: fused AdamW changes weights without raising their version. Of weights that are spread over
        ranks nothing is kept, as nothing of them is whole from one micro-batch to the next.
        """
        self._in_update = SHARDS not in vars(self.model)
        try:
            yield
        finally:
            self._in_update, self._cast = False, None

    def forward(
        self,
        tokens_BT: torch.Tensor,
        positions_N: torch.Tensor,
        targets_N: torch.Tensor,
        weights_N: torch.Tensor,
        scale: float = 1.0,
    ) -> torch.Tensor:
        """Sum of scale x weight x -log p over the targets, in nats. `scale` is 1 / targets of the whole update."""
        given = tokens_BT, positions_N, targets_N, weights_N * scale
        return as_forward(self.model, partial(self._loss, *given), calls_it=self._finish is None)

    def _loss(
        self, tokens_BT: torch.Tensor, positions_N: torch.Tensor, targets_N: torch.Tensor, scale_N: torch.Tensor
    ) -> torch.Tensor:
        # Right-padded rows need no mask under causal attention; without one, SDPA takes its causal path.
        if self._finish is None:
            wanted_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
            wanted_BT.view(-1)[positions_N] = True
            with _head_in_blocks(self.model.get_output_embeddings()):
                logits_NV = self.model(input_ids=tokens_BT, logits_to_keep=wanted_BT, use_cache=False).logits.float()
            return F.cross_entropy(logits_NV, targets_N, reduction="none").dot(scale_N)
        hidden_BTH = self.model.get_decoder()(**self._inputs(tokens_BT), use_cache=False).last_hidden_state
        hidden_NH = hidden_BTH.flatten(0, 1).index_select(0, positions_N)
        weight_VH = self.model.get_output_embeddings().weight
        device = tokens_BT.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VH.dtype
        with torch.autocast(device, enabled=False):
            loss: torch.Tensor = HeadLoss.apply(
                hidden_NH,
                weight_VH,
                self._head(weight_VH, dtype),
                targets_N,
                scale_N,
                self._in_update,
                self._finish,
            )
        return loss

    def _inputs(self, tokens_BT: torch.Tensor) -> dict[str, torch.Tensor]:
        """The body's input: tokens, or their embeddings where the gradient of those can be added in place."""
        embedding = self.model.get_input_embeddings()
        # On a CPU alone: elsewhere index_add_ adds in an order of its own, and a resumed run would not be the same.
        plain = type(embedding) is nn.Embedding and embedding.weight.requires_grad and tokens_BT.device.type == "cpu"
        if not (plain and self._in_update):
            return {"input_ids": tokens_BT}
        return {"inputs_embeds": EmbeddingRows.apply(tokens_BT, embedding.weight)}

    def _head(self, weight_VH: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if weight_VH.dtype == dtype:
            return weight_VH.detach()
        cast_VH = self._cast if self._cast is not None else weight_VH.detach().to(dtype)
        self._cast = cast_VH if self._in_update else None
        return cast_VH


@contextmanager
def _head_in_blocks(head: Any) -> Iterator[None]:
    """On MPS a head that the model itself applies is as many heads, so that no gradient sums over more than a block."""
    if kind_of(head.weight.device) != "mps":
        yield
        return
    if not isinstance(head, nn.Linear):
        raise PreflightError(f"MPS would give wrong gradients for a head like {type(head).__name__}; try --device cpu")

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        parts = head.weight.split(BLOCK)
        biases = [None] * len(parts) if head.bias is None else head.bias.split(BLOCK)
        return torch.cat([F.linear(hidden, part, bias) for part, bias in zip(parts, biases, strict=True)], dim=-1)

    head.forward = forward
    try:
        yield
    finally:
        del head.forward


def finish_of(model: Any) -> Finish | None:
    """What follows the product of the head's one matrix with the last hidden state; None where that is not all.

    Named by the config, and asked of the model itself, with a loud hidden state and with a quiet one: a bias, another
    factor or another cap shows, whatever its name.
    """
    if kept := vars(model).get(KEPT):
        found: Finish | None = kept[0]
        return found
    head, body, config = model.get_output_embeddings(), model.get_decoder(), model.config
    if type(head) is not nn.Linear or head.bias is not None:
        return None
    divisor = getattr(config, "logits_scaling", None) or 1 / (getattr(config, "logit_scale", None) or 1)
    finish = Finish(float(divisor), getattr(config, "final_logit_softcapping", None) or None)
    weight_VH = head.weight
    loud_H = torch.linspace(-LOUD, LOUD, head.in_features, device=weight_VH.device).to(weight_VH.dtype)
    token_BT = torch.zeros((1, 1), dtype=torch.long, device=head.weight.device)
    before = vars(body).get("forward")
    try:
        for hidden_H in (loud_H, loud_H / LOUD):
            answer = BaseModelOutputWithPast(last_hidden_state=hidden_H.expand(1, 1, -1))
            body.forward = lambda *args, answer=answer, **kwargs: answer
            with torch.no_grad():
                logits_V = model(input_ids=token_BT, use_cache=False).logits[0, 0].float()
                right_V = finished(finish, weight_VH @ hidden_H).float()
            rounding = max(1e-3, 4 * torch.finfo(weight_VH.dtype).eps)
            if not bool((logits_V - right_V).abs().max() <= rounding * right_V.abs().max()):
                return None
    finally:
        del body.forward
        if before is not None:
            body.forward = before
    return finish
