"""What a backend is: the author of a new one reads this file first.

It is a folder backends/NAME with the files of its twins. Asked for by name, beside the class below, are: in __init__
DARWIN (variables that a Mac's process needs before the framework starts), in device CAPABILITIES and `check`, in memory
`device_memory`, in backend `open_backend`, and doctor as a program of its own (machine.report_in_turn).

A backend turns updates into weights and prompts into tokens. It holds no schedule, no clock, no threshold
and no file name: the pilot decides, core words the messages, the command line does the wiring.

The loss, in words. One update holds one or more micro-batches. A target is a position t >= 1 whose label is
not IGNORE_INDEX; it is predicted from the positions before it. The loss of an update is

    minus the sum, over all targets of all its micro-batches, of weight x log p(target | tokens before it),
    divided once by the number of its targets.

It is never a mean of means. Which positions count is said by `Batch.targets`, and no length is ever computed.
Rows are padded on the right, so causal attention needs no padding mask. Log-probabilities are taken in
float32 whatever the compute precision is.

The step, in words. AdamW (Loshchilov & Hutter 2019) with bias correction, in float32, on the gradient of that
loss after clipping its global norm g to `max_grad_norm` c by the factor min(1, c / (g + 1e-6)). Weight decay
touches parameters with two or more dimensions. Loss, norm and a sum over the weights before the step are read
together, once an update; when one of them is not finite, the step is not applied, and gsm8k_core.training.finite finds
out why.
Weights and moments are float32 even where the products are computed in bfloat16 or float16.

Several ranks, in words. Each has the whole model, and its own rows of an update
(gsm8k_core.problems.batching.over_ranks). Every rank divides by the number of targets of all; loss and gradients are
summed over the ranks once an update, before the norm is taken, so all take the same step. What goes wrong on one before
that sum ends the update on all (gsm8k_core.ranks.together). Where a group is `sharded`, each rank has a part of every
weight, gradient and moment; a rank with fewer micro-batches than another computes as many, which add nothing.

Randomness, in words. Nothing is restored, everything is seeded: dropout in a row of update u draws from
gsm8k_core.models.adapter.dropout_seed(seed, u, its id), whatever ran before. A backend that draws for a whole
micro-batch at once takes the id of its first row.

Axes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gsm8k_core.types import (
    Batch,
    Choice,
    Completion,
    Incoming,
    OnToken,
    Orders,
    Outcome,
    Sampling,
    TrainState,
    Update,
    UpdateStats,
)

if TYPE_CHECKING:
    from gsm8k_core.config.train import TrainConfig
    from gsm8k_core.types import FloatArray


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend offers, checked before anything is loaded. `auto` is always understood."""

    devices: tuple[str, ...]
    dtypes: tuple[str, ...]
    methods: tuple[str, ...]
    trainable: tuple[str, ...] = ("all", "blocks")
    engines: tuple[str, ...] = ()  # what may sample beside the model, and is no part of it


def ignore_token(index: int, token: int) -> None:
    """The default of `generate`: nobody listens."""


def nobody() -> None:
    """The default of a `summon`: no other rank has to be told."""


class Group(Protocol):
    """The processes that share a run, joined by the backend's own engine, which sums that framework's arrays."""

    rank: int  # this process's, from 0
    size: int
    engine: str  # what carries the sums, in its own name: gloo, nccl, ring, jaccl
    sharded: bool  # each has a part of every weight: what computes with them needs all ranks

    def first(self, data: bytes) -> bytes:
        """Rank 0's `data`, on every rank."""
        ...

    def agree(self, code: int) -> list[int]:
        """Every rank's code, by rank, once all have given theirs."""
        ...

    def bandwidth(self) -> float:
        """Bytes a second that a sum over the ranks goes through, measured on a few large ones. Every rank calls it."""
        ...


class Answering(Protocol):
    """What answers by the weights that are trained: they themselves, or an engine beside them that follows them."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        on_token: OnToken = ignore_token,
        keys: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, Completion]]:
        """Complete each prompt; yields (index into `prompts`, completion) as they finish, in any order.

        A completion ends before the first of the model's end tokens, or after `max_new_tokens`. `on_token` is
        called with (index, token) for each token as it is written. With a temperature, tokens are drawn on the device
        as gsm8k_core.scoring.sampling says in words; `keys` holds each prompt's key there, by default its index.

        `sampling.force` is asked as gsm8k_core.scoring.writing says. The model reads what was forced as if it had
        drawn it, in the steps of the batch that runs; what it draws in those places meanwhile counts for nothing.
        Prompts that are the same, token by token, are read once, however many there are and whatever their keys; what
        is kept of one is dropped when no more wait with it. None of this changes a text. Raises DivergedError where
        logits are not finite. Of an engine, all answers may come together, and `on_token` with them.
        """
        ...


class Weights(Answering, Protocol):
    """The weights as they are now, and what can be asked of them."""

    def answer(
        self, incoming: Incoming, num_places: int, longest: int, on_token: OnToken = ignore_token
    ) -> Iterator[Sequence[tuple[int, Completion]]]:
        """Complete prompts that come while others are completed: one step of the batch for each `next`, for ever.

        `incoming` is asked before each step how many prompts come now, at most as many as there are free places;
        none is longer than `longest` tokens with its answer. They share the steps of those that are there. Yields the
        numbers and completions of those that ended with the step, perhaps none; `on_token` is called with a query's
        number. Nothing is done between two steps, nor when there is nobody to answer; whoever closes the iterator
        leaves those that are not done. Everything else is `generate`'s, and so is each text.
        """
        ...

    def score(self, batch: Batch) -> FloatArray:
        """log p(tokens[:, 1:]) in nats, (B, T-1) float32; the value at padding means nothing.

        Whole micro-batches are read together, as many padded tokens as `micro_batch_tokens`, and one row at the least.
        Of their logits as many are there at a time as the loss holds.
        """
        ...

    def score_first(self, batch: Batch) -> FloatArray:
        """The same by the weights as they were before an adapter was put on them; without one, it is `score`."""
        ...

    def odds(self, tokens: Sequence[int]) -> FloatArray:
        """log p of every token that may follow `tokens`, in nats, (V,) float32."""
        ...

    def save(self, directory: Path, dtype: str = "float32") -> None:
        """Write a Hugging Face folder, whole or not at all, each weight rounded to `dtype`. `directory` must not exist.

        With an adapter, the folder is one in PEFT's layout, and holds the adapter alone, in float32. Raises
        DivergedError, before anything is written, when a weight is not finite, and NumberTooLarge for float16.
        """
        ...


class Live(Weights, Protocol):
    """The weights in training, between two updates."""

    def state(self) -> TrainState:
        """What another backend needs to go on from here. The arrays are valid until the next update.

        Raises DivergedError when any of it is not finite.
        """
        ...


class Pilot(Protocol):
    """The run's decision maker; implemented once, in core."""

    def rate(self, update: int) -> float:
        """The learning rate of update number `update` (from 1)."""
        ...

    def after(self, stats: UpdateStats, live: Live) -> Orders:
        """Called once after each update, on the host; `live` offers the weights as they now are."""
        ...


class Backend(Live, Protocol):
    """One model, loaded on one device."""

    name: str
    capabilities: Capabilities
    group: Group | None  # the ranks that train together; None: alone. Set before `train`

    @property
    def choices(self) -> dict[str, Choice]:
        """What was chosen on loading ("device", "dtype", ...), each with its reason."""
        ...

    @property
    def micro_batch_tokens(self) -> Choice:
        """How many padded tokens in a micro-batch the device is fast with: a whole number, and why."""
        ...

    def train(
        self, updates: Iterable[Update], config: TrainConfig, pilot: Pilot, resume: TrainState | None = None
    ) -> Outcome:
        """Run one segment: each update once, in order, until they end or the pilot orders a stop.

        With `resume`, weights and moments are set to it first, whichever backend made it, and `updates` begin
        after it. An adapter method gives the model its adapter here, drawn by gsm8k_core.models.adapter.

        Raises DivergedError when loss, gradient or weights are not finite: the step is not applied, and `state()` is
        that after the update before. Raises OutOfMemoryError, and DataError for a `resume` that does not fit.

        With a `group`, every rank calls it, the updates being its own rows. Weights and moments become rank 0's first:
        of the others' `resume`, only `step` is read.
        """
        ...

    def start_token(self, token: int, like: int) -> None:
        """Before anything is trained: the rows of `token`, in the embedding and the head, become those of `like`."""
        ...

    def choose_dtype(self, batch: Batch, config: TrainConfig) -> Choice:
        """The compute dtype for training: one real micro-batch timed in each that this device may be fast in.

        Forward and backward, 10 s at most together; a dtype whose loss or gradients are not finite is out. On a
        CPU it is the one chosen on loading. The choice is taken from now on.
        """
        ...

    def rehearse(self, batch: Batch, config: TrainConfig, late: Callable[[], bool] = lambda: False) -> float:
        """Seconds that one micro-batch takes, forward and backward, the shorter of two times. No weight changes.

        When `late` is true after the first time, that one has to do. A device's peak begins anew with it. Raises
        OutOfMemoryError.
        """
        ...

    def engine(self, name: str, longest: int) -> Answering:
        """Open one of `capabilities.engines` beside this model.

        No prompt with its answer has more than `longest` tokens. Raises PreflightError where it is not installed, or
        not for this device.
        """
        ...

    def peak_memory(self) -> int:
        """Bytes at the peak: of the device since the last rehearsal began, or where none can be forgotten of the
        process so far."""
        ...

    def close(self) -> None:
        """Let go of the model and of the device's memory; nothing else may be called afterwards."""
        ...


class Sharded(Backend, Protocol):
    """A backend whose group is `sharded`."""

    def lead(self, summon: Callable[[], None]) -> None:
        """Of rank 0: `summon` has the others serve; each call that computes with the weights begins with it."""
        ...

    def serve(self) -> None:
        """Of a rank above 0: take part in what rank 0 computes with the weights, until it is done."""
        ...
