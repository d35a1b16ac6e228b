"""The training loop in MLX: one update in a few lines, made for unified memory.

Each micro-batch is sent to the device as soon as it is built, so the graph of only one is alive; each update
blocks once, to read its loss, its norm and a sum over the weights. The model computes in its own dtype; what is
trained is kept in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten

from backends.mlx.adapter import RowDropout, dropouts_of
from backends.mlx.fast_exp import whole_array_ops
from backends.mlx.group import MLXGroup
from backends.mlx.loss import loss_sum, sum_all, target_positions
from backends.mlx.memory import NO_MEMORY
from gsm8k_core.backend import Live, Pilot
from gsm8k_core.models.adapter import draws_dropout, dropout_seed
from gsm8k_core.ranks.together import together
from gsm8k_core.training.finite import check_fit, not_finite
from gsm8k_core.training.memory import memory_error
from gsm8k_core.types import Batch, DivergedError, Outcome, Update, UpdateStats

if TYPE_CHECKING:
    from gsm8k_core.config.train import TrainConfig

Arrays = dict[str, mx.array]

# SmolLM2, an update of 2,000 targets: of the gradients at a projection's outputs 15 % (the median) are below 6e-5, and
# were 40 % at 128. The largest of a weight is 417, in an update of one row (206 of three): there is room for 157 times
# that, and what has none goes on in float32.
FLOAT16_SCALE = 1024.0
MOST_TRACES = 64  # a trace of SmolLM2 holds 9 MiB; it saves 6 % of each micro-batch on a CPU


def one_run() -> AbstractContextManager[None]:
    """A run beside which another may train: what both replace in mlx-lm's code on a CPU is rounding alone."""
    return nullcontext()


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
    """AdamW over named float32 arrays; weight decay on those with two or more dimensions."""

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

    def moments(self, which: str) -> Arrays:
        """The first ("m") or second ("v") moments by parameter name."""
        return {
            name: value[which] for state in self.state for name, value in state.items() if isinstance(value, Mapping)
        }

    @property
    def num_steps(self) -> int:
        """Steps applied so far."""
        return max(int(optimizer.step.item()) for optimizer in self._optimizers)

    def restore(self, step: int, first: Arrays, second: Arrays) -> None:
        """Go on from these. Raises DataError when names or shapes are not those of the parameters."""
        for state in self.state:
            state["step"] = mx.array(step, mx.uint64)
        for which, moments in (("m", first), ("v", second)):
            check_fit(self.moments(which), moments)
            for state in self.state:
                for name, value in state.items():
                    if isinstance(value, Mapping):
                        value[which] = moments[name]


def set_working(model: Any, masters: Arrays, dtype: mx.Dtype) -> None:
    """Put the float32 parameters into the model, in its compute dtype. Lazy."""
    model.update(tree_unflatten([(name, value.astype(dtype)) for name, value in masters.items()]))


def loss_scale(dtype: mx.Dtype, num_targets: int) -> float:
    """What the loss sum is multiplied by before its gradient is taken: 1, but for float16.

    float16 ends at 65,504 and has fewer digits below 6e-5, none below 6e-8. The gradient of a sum over thousands of
    targets comes near the one end, that of their mean near the other: it gets FLOAT16_SCALE times the mean.
    """
    return FLOAT16_SCALE / max(num_targets, 1) if dtype == mx.float16 else 1.0


def scaled_loss(
    model: Any,
    scale: float | mx.array,
    tokens_BT: mx.array,
    positions_N: mx.array,
    targets_N: mx.array,
    weights_N: mx.array,
) -> mx.array:
    """loss_sum times `scale`, which is on the gradient before it enters the compute dtype."""
    return loss_sum(model, tokens_BT, positions_N, targets_N, weights_N * scale)


@contextmanager
def checkpointed_blocks(model: Any, checkpoint: bool) -> Iterator[None]:
    """While inside, with `checkpoint`, each block keeps no activations and is computed again."""
    if not checkpoint:
        yield
        return
    kinds = [type(layer) for layer in model.layers]
    try:
        for layer, kind in zip(model.layers, kinds, strict=True):
            layer.__class__ = _checkpointed(kind)  # mlx-lm changes the class of all models instead
        yield
    finally:
        for layer, kind in zip(model.layers, kinds, strict=True):
            layer.__class__ = kind


def _checkpointed(kind: type) -> type:
    def again(layer: Any, *arguments: Any, **named: Any) -> Any:
        if not layer.training:
            return kind.__call__(layer, *arguments, **named)  # type: ignore[operator]

        def inner(parameters: Any, *inner_arguments: Any, **inner_named: Any) -> Any:
            layer.update(parameters)
            return kind.__call__(layer, *inner_arguments, **inner_named)  # type: ignore[operator]

        return mx.checkpoint(inner)(layer.trainable_parameters(), *arguments, **named)

    return type(kind.__name__, (kind,), {"__call__": again})


class MicroBatch:
    """Loss and gradients of a micro-batch. Compiled, one trace for each shape, for the first MOST_TRACES shapes.

    Dropout seeds itself anew for each micro-batch, which a trace would keep: with it, nothing is compiled.
    """

    def __init__(self, model: Any, compiled: bool) -> None:
        self.model = model
        self._shapes: set[tuple[tuple[int, ...], ...]] = set()
        self._most = MOST_TRACES if compiled else 0
        self._compiled = mx.compile(self._eager)

    @property
    def num_traces(self) -> int:
        """How many shapes were traced."""
        return len(self._shapes)

    def _eager(self, parameters: Arrays, scale: mx.array, *batch: mx.array) -> tuple[mx.array, Arrays]:
        def loss(parameters: Arrays) -> mx.array:
            self.model.update(tree_unflatten(list(parameters.items())))
            return scaled_loss(self.model, scale, *batch)

        return mx.value_and_grad(loss)(parameters)

    def __call__(self, batch: Batch, scale: float) -> tuple[mx.array, Arrays]:
        """The loss sum and its gradients by name, in the compute dtype, both times `scale`. Lazy."""
        arrays = (mx.array(batch.tokens), *target_positions(batch))
        shape = tuple(array.shape for array in arrays)
        if shape in self._shapes or len(self._shapes) < self._most:
            self._shapes.add(shape)
            function = self._compiled
        else:
            function = self._eager
        parameters = dict(tree_flatten(self.model.trainable_parameters()))
        try:
            return function(parameters, mx.array(scale), *arrays)
        finally:
            self.model.update(tree_unflatten(list(parameters.items())))  # a trace leaves its placeholders there


def update_gradients(
    micro_batch: MicroBatch, update: Update, scale: float, seed: Callable[[int, Batch], None]
) -> tuple[mx.array, Arrays]:
    """Sums of loss and float32 gradient, both times `scale`, over the micro-batches of one update; not waited for.

    `seed` is called with each micro-batch and its place before it.
    """
    total, gradients = mx.array(0.0), dict[str, mx.array]()
    for place, batch in enumerate(update.micro_batches):
        seed(place, batch)
        loss, parts = micro_batch(batch, scale)
        for name in list(parts):
            part = parts.pop(name).astype(mx.float32)  # nobody else holds either: the sum takes the place of one
            gradients[name] = gradients.pop(name) + part if name in gradients else part
            del part
        total = total + loss
        mx.async_eval(total, gradients)
    return total, gradients


def global_norm(gradients: Arrays) -> mx.array:
    """The Euclidean norm over all gradients."""
    return mx.sqrt(mx.stack([sum_all(mx.square(gradient)) for gradient in gradients.values()]).sum())


def any_sum(arrays: Arrays) -> mx.array:
    """A number that is not finite when one of the weights is not; its value means nothing. One pass, no copy."""
    return mx.stack([array.sum() for array in arrays.values()]).sum()


def _finite(arrays: Iterable[tuple[str, mx.array]]) -> dict[str, bool]:
    return {name: bool(mx.isfinite(array).all().item()) for name, array in arrays}


def _why(
    micro_batch: MicroBatch,
    masters: Arrays,
    update: Update,
    loss: float,
    norm: float,
    scale: float,
    seed: Callable[[int, Batch], None],
    name_of: Callable[[str], str],
) -> DivergedError:
    """The update once more, a micro-batch at a time, to find what is not finite in it."""

    def recompute(place: int, batch: Batch) -> tuple[float, dict[str, bool]]:
        seed(place, batch)
        total, gradients = micro_batch(batch, scale)
        squares = ((name_of(name), mx.square(value.astype(mx.float32)).sum()) for name, value in gradients.items())
        return total.item(), _finite(squares)

    every = tree_flatten(micro_batch.model.parameters())
    frozen = ((name.replace(".linear.", "."), value) for name, value in every if name not in masters)
    weights = _finite((name_of(name), value) for name, value in masters.items()) | _finite(frozen)
    return not_finite(update, loss, norm, weights, recompute)


class Seeds:
    """What the dropout of the micro-batch at hand is drawn from: a key for each of its rows."""

    def __init__(self, seed: int, dropouts: Sequence[RowDropout]) -> None:
        self._run, self._update, self._dropouts = seed, 0, dropouts

    def begin(self, update: int) -> None:
        """Before an update's first micro-batch."""
        self._update = update

    def micro_batch(self, place: int, batch: Batch) -> None:
        """Before each micro-batch."""
        if self._dropouts:
            rows = batch.rows or tuple(f"{place}/{row}" for row in range(len(batch.tokens)))
            keys_B = mx.array([dropout_seed(self._run, self._update, row) for row in rows], mx.uint32)
            for dropout in self._dropouts:
                dropout.rows(keys_B)


def train(
    micro_batch: MicroBatch,
    masters: Arrays,
    optimizer: AdamW,
    updates: Iterable[Update],
    config: TrainConfig,
    pilot: Pilot,
    live: Live,
    dtype: mx.Dtype,
    name_of: Callable[[str], str] = str,
    group: MLXGroup | None = None,
) -> Outcome:
    """One segment over `updates`; see Backend.train. `masters` is replaced in place, update by update.

    `name_of` gives Hugging Face's or PEFT's name of a parameter that is trained.
    """
    model, number = micro_batch.model, 0
    dropout = Seeds(config.seed, dropouts_of(model) if draws_dropout(config) else ())
    with checkpointed_blocks(model, config.gradient_checkpointing), whole_array_ops(model):
        for update in updates:
            number = update.number
            model.train()  # the pilot may have generated
            dropout.begin(number)
            scale = loss_scale(dtype, update.num_targets)
            with together(group), memory_error("mlx", NO_MEMORY):
                total, gradients = update_gradients(micro_batch, update, scale, dropout.micro_batch)
                if group is not None:
                    mx.eval(total, gradients)
            if group is not None:
                total, gradients = group.sum(total, gradients, masters)
            norm, weights = global_norm(gradients), any_sum(masters)
            if group is not None:
                norm, weights = group.mean(mx.stack([norm, weights]))
            mx.eval(total, norm, weights)  # the update's only blocking call
            divisor = max(update.num_targets, 1) * scale
            loss, grad_norm = total.item() / divisor, norm.item() / divisor
            if not all(map(math.isfinite, (loss, grad_norm, weights.item()))):
                del gradients
                raise _why(micro_batch, masters, update, loss, grad_norm, scale, dropout.micro_batch, name_of)
            clip = min(1.0, config.max_grad_norm / (grad_norm + 1e-6))
            rate = pilot.rate(number)
            masters.update(optimizer.step(gradients, masters, clip / divisor, rate))
            set_working(model, masters, dtype)
            del gradients  # they go before the next update's are there
            mx.async_eval(masters, model.parameters(), optimizer.state)
            stats = UpdateStats(number, loss, update.num_targets, update.num_tokens, grad_norm, rate)
            if (reason := pilot.after(stats, live).stop) is not None:
                return Outcome(reason, number)
    return Outcome("done", number)
