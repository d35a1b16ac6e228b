"""The training loop in MLX: one update in a few lines, made for unified memory.

Each micro-batch is sent to the device as soon as it is built, so the graph of only one is alive; each update
blocks once, to read its loss and norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from backends.base import Live, Pilot
from backends.mlx.loss import loss_sum, sum_all, target_positions
from gsm8k_core.types import DivergedError, Outcome, Update, UpdateStats

if TYPE_CHECKING:
    from gsm8k_core.config import TrainConfig

Arrays = dict[str, mx.array]


def freeze(model: Any, trainable: str) -> None:
    """Leave gradients on for everything, or for the transformer blocks only."""
    model.unfreeze()
    if trainable == "blocks":
        model.freeze()
        for layer in model.layers:
            layer.unfreeze()


def _optimizer(config: TrainConfig, weight_decay: float) -> optim.AdamW:
    return optim.AdamW(
        learning_rate=0.0,  # set for each update from the pilot
        betas=[config.adam_beta1, config.adam_beta2],
        eps=config.adam_epsilon,
        weight_decay=weight_decay,
        bias_correction=True,  # off by default in MLX; without it the first step is 3.16x torch's
    )


class AdamW:
    """AdamW over named arrays; weight decay on those with two or more dimensions."""

    def __init__(self, config: TrainConfig, parameters: Arrays) -> None:
        self._decays = frozenset(name for name, value in parameters.items() if value.ndim >= 2)
        self._optimizers = (_optimizer(config, config.weight_decay), _optimizer(config, 0.0))
        for optimizer, part in zip(self._optimizers, self._split(parameters), strict=True):
            optimizer.init(part)
        self.state = [optimizer.state for optimizer in self._optimizers]
        self._apply = partial(mx.compile, inputs=self.state, outputs=self.state)(self._eager)

    def _split(self, arrays: Arrays) -> tuple[Arrays, Arrays]:
        decays = {name: value for name, value in arrays.items() if name in self._decays}
        return decays, {name: value for name, value in arrays.items() if name not in self._decays}

    def _eager(self, gradients: Arrays, parameters: Arrays, factor: mx.array) -> Arrays:
        updated: Arrays = {}
        scaled = {name: gradient * factor for name, gradient in gradients.items()}
        for optimizer, part in zip(self._optimizers, self._split(scaled), strict=True):
            updated |= optimizer.apply_gradients(part, {name: parameters[name] for name in part})
        return updated

    def step(self, gradients: Arrays, parameters: Arrays, factor: float, rate: float) -> Arrays:
        """The new parameters, for the gradients times `factor`. Lazy: nothing is computed yet."""
        for optimizer in self._optimizers:
            optimizer.learning_rate = rate
        return self._apply(gradients, parameters, mx.array(factor))


def update_gradients(
    loss_and_grad: Callable[..., tuple[mx.array, Any]], model: Any, update: Update
) -> tuple[mx.array, Any]:
    """Loss sum and gradient sum over the micro-batches of one update, started but not waited for."""
    total, gradients = mx.array(0.0), None
    for batch in update.micro_batches:
        loss, part = loss_and_grad(model, mx.array(batch.tokens), *target_positions(batch))
        gradients = part if gradients is None else tree_map(mx.add, gradients, part)
        total = total + loss
        mx.async_eval(total, gradients)
    return total, gradients


def global_norm(gradients: Arrays) -> mx.array:
    """The Euclidean norm over all gradients."""
    return mx.sqrt(mx.stack([sum_all(mx.square(gradient)) for gradient in gradients.values()]).sum())


def train(model: Any, updates: Iterable[Update], config: TrainConfig, pilot: Pilot, live: Live) -> Outcome:
    """One segment over `updates`; see Backend.train."""
    freeze(model, config.trainable)
    model.train()
    loss_and_grad = nn.value_and_grad(model, loss_sum)
    optimizer = AdamW(config, dict(tree_flatten(model.trainable_parameters())))
    number = 0
    for update in updates:
        number = update.number
        total, tree = update_gradients(loss_and_grad, model, update)
        gradients = dict(tree_flatten(tree))
        norm = global_norm(gradients)
        mx.eval(total, norm)  # the update's only blocking call
        num_targets = max(update.num_targets, 1)
        loss, grad_norm = total.item() / num_targets, norm.item() / num_targets
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise DivergedError(f"update {number}: loss {loss}, gradient norm {grad_norm}; the step was not applied")
        clip = min(1.0, config.max_grad_norm / (grad_norm + 1e-6))
        parameters = dict(tree_flatten(model.trainable_parameters()))
        rate = pilot.rate(number)
        model.update(tree_unflatten(list(optimizer.step(gradients, parameters, clip / num_targets, rate).items())))
        del tree, gradients, parameters  # the old weights go as soon as the new ones are there
        mx.async_eval(model.parameters(), optimizer.state)
        stats = UpdateStats(number, loss, update.num_targets, update.num_tokens, grad_norm, rate)
        if (reason := pilot.after(stats, live).stop) is not None:
            return Outcome(reason, number)
    return Outcome("done", number)
