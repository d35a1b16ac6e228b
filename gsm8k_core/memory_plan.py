"""How much memory training will take, before a model is loaded: from config.json, the method and the longest rows.

    process      the interpreter, the framework's code, tokenizer and rows
    weights      what is loaded, in the dtype of the products where it is not trained
    states       of what is trained: AdamW's two moments and the gradient, float32; beside half-precision products the
                 float32 weights, and in the gradient's dtype another gradient
    activations  what a micro-batch keeps for its backward pass: per block and token about 12 x hidden and
                 4 x intermediate numbers, and the attention's scores where a backend keeps them
    logits       of one chunk of targets, three times

What differs between backends and devices is Costs: theirs, measured (docs/memory.md). All sizes in bytes.

Axes: B rows, T tokens of the longest row, N = B x T.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gsm8k_core.config import TrainConfig
from gsm8k_core.flops import ModelShape, shape_of
from gsm8k_core.hub import human_size
from gsm8k_core.lora import LoraSpec, lora_spec
from gsm8k_core.types import Choice, OutOfMemoryError

MARGIN = 1.15  # the prediction was within 15 % of what was measured
TIGHT = 1.3
STEP_TOKENS = 64  # the budget is lowered in such steps
PER_BLOCK_HIDDEN, PER_BLOCK_INNER = 12, 4
ADAM_BYTES = 8
QUANTISED_BYTES = 0.63  # 4-bit weights with their scales, a parameter
LESS = "--method lora, --gradient-checkpointing, or a smaller --max-length"


@dataclass(frozen=True, slots=True)
class Costs:
    """What a backend takes on a kind of device. Measured, in units of the formula."""

    process: int  # bytes before a model is there
    chunk: int  # bytes of float32 logits that are there at one time
    frozen_chunk: int  # the same where the head is not trained
    activations: float = 1.0  # times the formula, where the model is trained
    adapted: float = 1.0  # the same where an adapter is
    scores: float = 0.0  # float32 numbers kept for each head, token and token that it attends to
    again: float = 1.0  # blocks whose activations are there at one time, with --gradient-checkpointing
    half_bytes: int = 2  # of an activation with half-precision products; torch's autocast keeps some in float32
    working_copy: bool = False  # half-precision products get a copy of the trained weights, and gradients of their own


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """What a device has. `limit` is more than `free` where the system makes room for who asks: a Mac's does."""

    device: str
    free: int
    limit: int
    costs: Costs
    tokens: Choice  # padded tokens in a micro-batch that the device is fast with
    reason: str  # where the figures are from


@dataclass(frozen=True, slots=True)
class Model:
    """The sizes that decide."""

    shape: ModelShape
    num_parameters: int
    num_trained: int


def model_of(body: Mapping[str, Any], config: TrainConfig) -> Model | None:
    """From a model's config.json; None for a model whose sizes have other names."""
    try:
        shape = shape_of(body)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    heads = 1 if body.get("tie_word_embeddings", True) else 2
    every = shape.block_parameters + heads * shape.head_parameters
    spec = lora_spec(config)
    trained = every if spec is None else adapter_parameters(shape, spec)
    return Model(shape, every, shape.block_parameters if config.trainable == "blocks" else trained)


def adapter_parameters(shape: ModelShape, spec: LoraSpec) -> int:
    """Numbers in A, B and m over all blocks."""
    attention, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sizes = {
        "q_proj": (shape.hidden, attention),
        "k_proj": (shape.hidden, kv),
        "v_proj": (shape.hidden, kv),
        "o_proj": (attention, shape.hidden),
        "gate_proj": (shape.hidden, shape.inner),
        "up_proj": (shape.hidden, shape.inner),
        "down_proj": (shape.inner, shape.hidden),
    }
    chosen = [size for name, size in sizes.items() if not spec.targets or name in spec.targets]
    lengths = sum(width for _, width in chosen) if spec.dora else 0
    return shape.layers * (spec.rank * sum(map(sum, chosen)) + lengths)


@dataclass(frozen=True, slots=True)
class Need:
    """The predicted peak, in its parts."""

    process: int
    weights: int
    states: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.process + self.weights + self.states + self.activations + self.logits

    def as_json(self) -> dict[str, int]:
        names = ("process", "weights", "states", "activations", "logits")
        return {name: getattr(self, name) for name in names} | {"total": self.total}


def predict(model: Model, config: TrainConfig, dtype: str, costs: Costs, tokens: int, widest: int) -> Need:
    """The peak of an update whose micro-batches hold at most `tokens` padded tokens, or one row of `widest`."""
    shape, filled = model.shape, max(min(tokens, config.update_size * widest), widest)  # an update holds no more
    size = 4 if dtype == "float32" else 2
    adapted = config.uses_adapter
    copied = size == 2 and (costs.working_copy or adapted)
    each = ADAM_BYTES + 4 + (4 if adapted else 0) + (size * (2 if adapted else 1) if copied else 0)
    each_kept = 4 if size == 4 else costs.half_bytes
    per_token = (PER_BLOCK_HIDDEN * shape.hidden + PER_BLOCK_INNER * shape.inner) * each_kept
    per_token += int(costs.scores * 4 * shape.heads * widest)
    factor = costs.adapted if adapted else costs.activations
    blocks: float = shape.layers
    kept = 0
    if config.gradient_checkpointing:
        blocks, kept = costs.again, filled * shape.layers * shape.hidden * size
    chunk = costs.frozen_chunk if adapted else costs.chunk
    return Need(
        costs.process,
        _weights(model, config, size),
        each * model.num_trained,
        kept + int(factor * blocks * filled * per_token),
        3 * min(chunk, 4 * filled * shape.vocabulary),
    )


def _weights(model: Model, config: TrainConfig, size: int) -> int:
    """Of what is loaded. An adapter's own are among the states."""
    if config.method == "qlora":
        return int(QUANTISED_BYTES * model.num_parameters)
    if config.uses_adapter:
        return model.num_parameters * size
    return model.num_parameters * 4 + (model.num_parameters * size if size < 4 else 0)


@dataclass(frozen=True, slots=True)
class Plan:
    """What fits."""

    model: Model
    need: Need
    tokens: Choice  # padded tokens at most in a micro-batch
    memory: DeviceMemory
    widest: int

    moments: int  # bytes of AdamW's moments, which a rehearsal has not made

    @property
    def fits(self) -> bool:
        return self.need.total * MARGIN <= self.memory.free

    @property
    def tight(self) -> bool:
        """Whether the prediction alone is not enough: one real micro-batch is worth its time."""
        return self.need.total * TIGHT > self.memory.free

    def line(self) -> str:
        """For a person."""
        tight = "" if self.fits else "; close other programs: that is tight"
        return (
            f"about {human_size(self.need.total)} of {human_size(self.memory.free)} ({self.memory.reason}) with "
            f"{self.tokens.name} padded tokens in a micro-batch{tight}"
        )

    def settled(self, config: TrainConfig, dtype: str, tokens: Choice) -> Plan:
        """The same with the dtype that was chosen on loading, and the micro-batches that will be made."""
        need = predict(self.model, config, dtype, self.memory.costs, int(tokens.name), self.widest)
        return replace(self, need=need, tokens=tokens)

    def as_json(self) -> dict[str, Any]:
        return {"predicted": self.need.as_json(), "free": self.memory.free, "tokens": int(self.tokens.name)}


def plan(
    model: Model, config: TrainConfig, dtype: str, memory: DeviceMemory, wanted: Choice, widest: int, asked: bool
) -> Plan:
    """The largest budget of padded tokens up to `wanted` that fits; one that was `asked` for stays.

    Raises OutOfMemoryError where not even one row of `widest` tokens does.
    """

    def need(tokens: int) -> Need:
        return predict(model, config, dtype, memory.costs, tokens, widest)

    least = need(widest)
    if least.total > MARGIN * memory.limit:  # the formula may be wrong by that; a trial decides what is in between
        raise OutOfMemoryError(
            f"training needs about {human_size(least.total)} for one row of {widest} tokens, and there are "
            f"{human_size(memory.limit)} ({memory.reason}); try {_less(model, config, dtype, memory, widest)}"
        )
    first, moments = int(wanted.name), ADAM_BYTES * model.num_trained
    budgets = range(first, widest, -STEP_TOKENS)
    fitting = (tokens for tokens in budgets if need(tokens).total * MARGIN <= memory.free)
    tokens = first if asked else next(fitting, min(first, widest))
    if tokens == first:
        return Plan(model, need(first), wanted, memory, widest, moments)
    why = f"{first} would take about {human_size(need(first).total)} of {human_size(memory.free)}"
    lowered = Choice(str(tokens), f"padded tokens at most in a micro-batch; {why}")
    return Plan(model, need(tokens), lowered, memory, widest, moments)


def _less(model: Model, config: TrainConfig, dtype: str, memory: DeviceMemory, widest: int) -> str:
    """What to type so that it fits, with what it would take; else all that may help."""
    if config.resume:
        return "closing other programs; a run that goes on keeps its method"
    changes: list[dict[str, Any]] = [{"gradient_checkpointing": True}, {"method": "lora"}]
    changes.append({"method": "lora", "gradient_checkpointing": True})
    words = {"gradient_checkpointing": "--gradient-checkpointing", "method": "--method lora"}
    for change in changes:
        changed = config.model_copy(update=change)
        if changed == config:
            continue
        smaller = Model(model.shape, model.num_parameters, _trained(model, changed))
        total = predict(smaller, changed, dtype, memory.costs, widest, widest).total
        if total * MARGIN <= memory.free:
            return f"{' '.join(words[name] for name in change)} (about {human_size(total)})"
    return f"{LESS}, a smaller model, or close other programs"


def _trained(model: Model, config: TrainConfig) -> int:
    spec = lora_spec(config)
    return model.num_trained if spec is None else adapter_parameters(model.shape, spec)
