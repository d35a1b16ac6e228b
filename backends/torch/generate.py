"""Decoding in PyTorch: a batch whose seats are taken again as answers end, over a cache that copies nothing.

Tokens and positions stay on the device, and on a GPU the next step is launched before the host looks at the one before:
an answer that has ended is seen one step late, and its last token is thrown away. What the host sees of a step comes in
one read, which waits for that step alone. On a CPU, which computes while it launches, a step is seen at once.

Axes: B rows, T new tokens, S cached positions, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from backends.torch.architectures import CONVOLUTION, FULL, SLIDING, layer_kinds, window_of_layers
from backends.torch.cache import ATTENTION, SeatCache
from backends.torch.loss import as_forward, chunk_rows, finish_of, finished
from backends.torch.sampling import NOT_FINITE, draw, likeliest
from backends.torch.seats import Arrivals, Seat, Seats
from gsm8k_core.models.head import Finish
from gsm8k_core.problems.batching import shared_length
from gsm8k_core.scoring.sampling import uniforms
from gsm8k_core.scoring.writing import manners
from gsm8k_core.training.finite import logits_not_finite
from gsm8k_core.types import Completion, Incoming, OnToken, PreflightError, Sampling

AHEAD = {"cpu": 0, "cuda": 1, "mps": 1}  # steps that are launched before the host looks at the one before


@contextmanager
def _attention(model: Any, name: str) -> Iterator[None]:
    """transformers looks the function up in the config in each forward; training keeps its own."""
    before = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = before


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """A prompt that was read, for those who wait with the same: its keys, in a cache of one row, and its logits."""

    decoder: _Decoder
    logits_V: torch.Tensor


class _Decoder:
    """A model, its cache, and what each forward is given."""

    def __init__(self, model: Any, num_rows: int) -> None:
        self._model = model
        # Such a model takes a mask for each kind of layer.
        self._kinds = layer_kinds(model.config) if layer_kinds(model.config) != {FULL} else frozenset()
        self._window = window_of_layers(model.config)
        stock = model.config._attn_implementation
        ours = stock == "sdpa" and self._window is None and model.device.type == "cpu"
        self._attention = ATTENTION if ours and model._supports_attention_backend else stock
        # Only our own attention takes the keys group by group.
        self._cache = SeatCache(num_rows, grouped=self._attention == ATTENTION)
        # What the next step reads in each row: a token, and its position.
        self._next_2B = torch.zeros(2, num_rows, dtype=torch.long, device=model.device)

    def _mask(self, positions_BT: torch.Tensor, width: int, num_rows: int) -> Any:
        """0 where the token at a position may look, the lowest number elsewhere: (rows, 1, T, S)."""
        behind_BTS = positions_BT[:, :, None] - torch.arange(width, device=positions_BT.device)
        dtype = self._model.dtype

        def additive(allowed_BTS: torch.Tensor) -> torch.Tensor:
            zero_BTS = torch.zeros(allowed_BTS.shape, dtype=dtype, device=allowed_BTS.device)
            mask_BTS = zero_BTS.masked_fill_(~allowed_BTS, torch.finfo(dtype).min)
            return mask_BTS[:, None].expand(num_rows, -1, -1, -1)

        seen = behind_BTS >= 0
        near = seen if self._window is None else seen & (behind_BTS < self._window)
        if not self._kinds:
            return additive(near)
        return {FULL: additive(seen), SLIDING: additive(near) if SLIDING in self._kinds else None, CONVOLUTION: None}

    @torch.no_grad()
    def prefill(
        self, rows: slice, prompts: Sequence[Sequence[int]], prefix: _Decoder | None = None, shared: int = 0
    ) -> torch.Tensor:
        """Read the prompts into `rows`, their first `shared` tokens from `prefix`; the logits after each, (B, V)."""
        longest, count, device = max(map(len, prompts)), len(prompts), self._model.device
        tokens_BT = torch.tensor([[*prompt[shared:], *[0] * (longest - len(prompt))] for prompt in prompts])
        last_BT = torch.zeros(tokens_BT.shape, dtype=torch.bool)
        last_BT[torch.arange(count), torch.tensor([len(prompt) - 1 - shared for prompt in prompts])] = True
        positions_1T = torch.arange(shared, longest, device=device)[None]
        lengths_B = torch.tensor([len(prompt) - shared for prompt in prompts])
        self._cache.at_prompts(rows, longest, prefix and prefix._cache, shared, lengths_B)
        logits = self._model(
            input_ids=_sent(tokens_BT, device),
            position_ids=positions_1T.expand(count, -1),
            attention_mask=self._mask(positions_1T, longest, count),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=_sent(last_BT, device),
        ).logits
        return logits.reshape(count, -1)

    def sit_down(self, first: int, seats: Sequence[Seat]) -> None:
        """The rows from `first` on are those of `seats`, whose prompts are in the cache."""
        lengths_B = torch.tensor([len(seat.prompt) for seat in seats])
        self._next_2B[1, first : first + len(seats)] = _sent(lengths_B, self._next_2B.device)

    def read_next(self, first: int, tokens_B: torch.Tensor) -> None:
        """The next step reads these in the rows from `first` on."""
        self._next_2B[0, first : first + len(tokens_B)] = tokens_B.clamp(min=0)  # NOT_FINITE is no row of an embedding

    @torch.no_grad()
    def step(self, seats: Sequence[Seat]) -> torch.Tensor:
        """Read a token of each seat; the next logits, (B, V)."""
        for row, seat in enumerate(seats):
            if seat.forced_input is not None:
                self._next_2B[0, row].fill_(seat.forced_input)
        tokens_B1, positions_B1 = self._next_2B[:, : len(seats), None]
        width = self._cache.at_step([seat.num_cached for seat in seats], positions_B1[:, 0])
        with _attention(self._model, self._attention):
            logits_B1V = self._model(
                input_ids=tokens_B1,
                position_ids=positions_B1,
                attention_mask=self._mask(positions_B1, width, len(seats)),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
        self._next_2B[1, : len(seats)] += 1
        return logits_B1V[:, -1]

    def copy(self, source: _Decoder, old: int, row: int, width: int) -> None:
        """See SeatCache.copy."""
        self._cache.copy(source._cache, old, row, width)

    def reorder(self, order: Sequence[int], seats: Sequence[Seat]) -> None:
        """See SeatCache.reorder; `seats` are those in the new order."""
        self._cache.reorder(order, [seat.num_cached for seat in seats])
        for row, old in enumerate(order):
            if row != old:
                self._next_2B[:, row] = self._next_2B[:, old]


def _sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on the device. CUDA has taken it when this returns, and nobody waits for what is computed there."""
    return tensor.to(device, non_blocking=device.type == "cuda")


class _Picks:
    """A token for each of some seats, on its way to the host and perhaps not computed yet."""

    def __init__(self, seats: Sequence[Seat], tokens_B: torch.Tensor) -> None:
        self.seats = list(seats)
        self._tokens_B = tokens_B.to("cpu", non_blocking=True)
        make = {"cuda": torch.cuda.Event, "mps": torch.mps.Event}.get(tokens_B.device.type)
        # Passed as soon as the copy is there. To wait for all that was launched would be to wait for the next step.
        self._there = None if make is None else make()
        if self._there is not None:
            self._there.record()

    def wait(self) -> None:
        """Until the host has them; their memory must not be given back before."""
        if self._there is not None:
            self._there.synchronize()

    def read(self) -> list[int]:
        """The tokens. Raises DivergedError where logits were not finite."""
        self.wait()
        tokens: list[int] = self._tokens_B.tolist()
        if any(token == NOT_FINITE and not seat.done for seat, token in zip(self.seats, tokens, strict=True)):
            raise logits_not_finite()
        return tokens


class _Reception:
    """Those who arrive get their prompts' keys in their rows: each prompt is read once, for all who have it."""

    def __init__(self, model: Any, decoder: _Decoder, prompts: Sequence[Sequence[int]]) -> None:
        """`prompts`: those of whom nobody else comes; none where it is not known who will."""
        self._model, self._decoder, self._shared = model, decoder, shared_length(prompts) if prompts else 0
        self._prefix = _Decoder(model, 1) if self._shared else None
        if self._prefix is not None:
            self._prefix.prefill(slice(0, 1), [prompts[0][: self._shared]])
        self._kept: _Kept | None = None

    def admit(self, arrived: Arrivals, first: int, keeps: bool) -> torch.Tensor:
        """Fill the rows from `first` on; the logits after each prompt, (B, V). `keeps`: see Seats."""
        parts = []
        if arrived.read:
            rows = slice(first, first + len(arrived.read))
            prompts = [seat.prompt for seat in arrived.read]
            parts.append(self._decoder.prefill(rows, prompts, self._prefix, self._shared))
        for row, (seat, source) in enumerate(
            zip(arrived.copied, arrived.sources, strict=True), first + len(arrived.read)
        ):
            if source is not None:
                self._decoder.copy(self._decoder, first + source, row, len(seat.prompt))
                parts.append(parts[0][source : source + 1])
            else:
                self._decoder.copy(self._kept.decoder, 0, row, len(seat.prompt))
                parts.append(self._kept.logits_V[None])
        if arrived.keep is not None:
            self._kept = _Kept(_Decoder(self._model, 1), parts[0][arrived.keep].clone())
            width = len(arrived.read[arrived.keep].prompt)
            self._kept.decoder.copy(self._decoder, first + arrived.keep, 0, width)
        elif not keeps:
            self._kept = None
        return torch.cat(parts)


class _Turns:
    """One call of `generate` or `answer`: steps and readings of prompts are launched, and land in the same order."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], num_rows: int, seats: Seats) -> None:
        self._seats, self._ahead = seats, AHEAD[model.device.type]
        self._decoder = _Decoder(model, num_rows)
        self._reception = _Reception(model, self._decoder, prompts)
        self._flying: deque[_Picks] = deque()

    def run(self) -> Iterator[tuple[int, Completion]]:
        """Until all are answered."""
        try:
            while self._seats:
                yield from self._turn()
        finally:
            self._wait()

    def run_on(self) -> Iterator[list[tuple[int, Completion]]]:
        """For ever, one turn at a time."""
        try:
            while True:
                yield list(self._turn())
        finally:
            self._wait()

    def _turn(self) -> Iterator[tuple[int, Completion]]:
        seats, first = self._seats, len(self._seats.taken)
        if first:
            self._launch(0, self._decoder.step(seats.taken), seats.taken)
            yield from self._land(self._ahead)
        while (arrived := seats.arrivals()).seats:
            logits_BV = self._reception.admit(arrived, first, seats.keeps)
            self._decoder.sit_down(first, arrived.seats)
            self._launch(first, logits_BV, arrived.seats)
            yield from self._land(self._ahead)
            first += len(arrived.seats)
        self._decoder.reorder(seats.order(), seats.taken)
        if not seats:
            yield from self._land(0)

    def _wait(self) -> None:
        for picks in self._flying:
            picks.wait()

    def _launch(self, first: int, logits_BV: torch.Tensor, seats: Sequence[Seat]) -> None:
        """Pick the next token of each seat, for the next step to read and the host to see."""
        groups = manners(seats)
        tokens = [_picked_tokens(logits_BV, seats, sampling, rows) for sampling, rows in groups]
        tokens_B = tokens[0]
        if len(groups) > 1:
            order_B = torch.tensor([row for _, rows in groups for row in rows], device=logits_BV.device)
            tokens_B = torch.empty_like(order_B).index_copy_(0, order_B, torch.cat(tokens))
        self._decoder.read_next(first, tokens_B)
        for seat in seats:
            seat.launched += 1
        self._flying.append(_Picks(seats, tokens_B))

    def _land(self, most: int) -> Iterator[tuple[int, Completion]]:
        """Let the host see what was launched, until at most so many are on their way."""
        while len(self._flying) > most:
            picks = self._flying.popleft()
            yield from self._seats.land(picks.seats, picks.read())


def _picked_tokens(
    logits_BV: torch.Tensor, seats: Sequence[Seat], sampling: Sampling, rows: Sequence[int]
) -> torch.Tensor:
    """The next token of some of the rows, likeliest or drawn in the same manner."""
    if len(rows) < len(seats):
        logits_BV = logits_BV[torch.tensor(rows, device=logits_BV.device)]
    if sampling.temperature == 0:
        return likeliest(logits_BV)
    u_B3 = uniforms(sampling.seed, [seats[row].key for row in rows], [seats[row].launched for row in rows])
    return draw(logits_BV, sampling, _sent(torch.from_numpy(u_B3), logits_BV.device))


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    end_ids: frozenset[int],
    on_token: OnToken,
    keys: Sequence[int] | None = None,
) -> Iterator[tuple[int, Completion]]:
    """See Backend.generate. `model` is already in the compute dtype."""
    if prompts:
        seats = Seats(Seat.of_prompts(prompts, sampling, keys), sampling.batch_size, end_ids, on_token)
        yield from _Turns(model, prompts, min(sampling.batch_size, len(prompts)), seats).run()


def answer(
    model: Any, incoming: Incoming, num_places: int, end_ids: frozenset[int], on_token: OnToken
) -> Iterator[list[tuple[int, Completion]]]:
    """See Backend.answer. `model` is already in the compute dtype."""
    return _Turns(model, (), num_places, Seats((), num_places, end_ids, on_token, incoming)).run_on()


@torch.no_grad()
def score(
    model: Any, tokens_BT: np.ndarray[Any, np.dtype[np.int32]], most_tokens: int
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """See Backend.score: as many rows at once as hold `most_tokens`, and of their logits as many as a loss holds."""
    num_rows, width = tokens_BT.shape
    finish = finish_of(model)
    rows = max(1, most_tokens // width) if finish is not None else 1
    parts = (
        torch.from_numpy(tokens_BT[at : at + rows]).to(model.device, torch.long) for at in range(0, num_rows, rows)
    )
    found = (as_forward(model, partial(_score, model, tokens_RT, finish), finish is None) for tokens_RT in parts)
    return np.concatenate([scores_RT.float().cpu().numpy() for scores_RT in found])


def _score(model: Any, tokens_RT: torch.Tensor, finish: Finish | None) -> torch.Tensor:
    targets_N = tokens_RT[:, 1:].flatten()
    if finish is None:  # what stands behind its head is the model's own to compute: all logits of one row
        return _picked(model(input_ids=tokens_RT, use_cache=False).logits[:, :-1].flatten(0, 1), targets_N)[None]
    hidden_NH = model.get_decoder()(input_ids=tokens_RT, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
    weight_VH = model.get_output_embeddings().weight
    size = chunk_rows(len(weight_VH))
    chunks = zip(hidden_NH.split(size), targets_N.split(size), strict=True)
    found = [_picked(finished(finish, hidden_CH @ weight_VH.T), targets_C) for hidden_CH, targets_C in chunks]
    return torch.cat(found).view(len(tokens_RT), tokens_RT.shape[1] - 1)


def _picked(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """log p of each target, (N,) float32."""
    logits_NV = logits_NV.float()
    return logits_NV.gather(-1, targets_N[:, None])[:, 0] - logits_NV.logsumexp(dim=-1)


@torch.no_grad()
def odds(model: Any, tokens: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """See Backend.odds."""
    tokens_1T = torch.tensor([list(tokens)], device=model.device)
    logits_V = model(input_ids=tokens_1T, use_cache=False, logits_to_keep=1).logits[0, -1]
    found: np.ndarray[Any, np.dtype[np.float32]] = logits_V.float().log_softmax(dim=-1).cpu().numpy()
    return found


TRIED = (4, 9)  # tokens of the prompts that a type which the tests do not know is tried with, one more behind each
APART = 1e-3  # of a logit's rms; measured 1e-6 where a type is decoded rightly, and 0.1 and more where it is not


@torch.no_grad()
def check_decoding(model: Any) -> None:
    """Raises PreflightError for a model that is decoded otherwise than transformers computes it, or not at all."""
    kind, vocabulary = model.config.model_type, model.get_input_embeddings().num_embeddings
    rows = [[(7 * place + 3 * count) % vocabulary for place in range(count + 1)] for count in TRIED]
    try:
        alone = [model(input_ids=torch.tensor([row], device=model.device), use_cache=False).logits[0] for row in rows]
        decoder = _Decoder(model, len(rows))
        first_BV = decoder.prefill(slice(0, len(rows)), [row[:-1] for row in rows])
        seats = [
            Seat(place, place, row[:-1], place, Sampling(1, len(rows)), launched=1) for place, row in enumerate(rows)
        ]
        decoder.sit_down(0, seats)
        decoder.read_next(0, torch.tensor([row[-1] for row in rows], device=model.device))
        then_BV = decoder.step(seats)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # transformers' classes raise many kinds, and all of them mean this type
        raise PreflightError(f"model type {kind} cannot be decoded here ({error}); try another --model") from error
    right_2BV = torch.stack([torch.stack([logits_TV[at] for logits_TV in alone]) for at in (-2, -1)]).float()
    found_2BV = torch.stack([first_BV, then_BV]).float()
    if not bool((right_2BV - found_2BV).abs().max() <= APART * right_2BV.square().mean().sqrt()):
        raise PreflightError(
            f"model type {kind} would be decoded otherwise than transformers computes it; try another --model"
        )
