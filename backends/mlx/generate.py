"""Decoding in MLX: one loop over a batch whose places are filled again when some rows have ended.

The prompts' common beginning is read once. The longest prompts come first: the keys reach their full size at the
start, and what is left alone at the end is short. Picks stay on the device, and the next step is launched before the
host looks at them; a row that has ended is seen one step late, and its last token is thrown away.

Axes: B rows, T tokens, V vocabulary, H hidden.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from backends.mlx import fast_exp
from backends.mlx.cache import PromptConvolution, PromptLayer, Slots, causal
from backends.mlx.loss import chunk_rows, compute_dtype, head, hidden_states, logsumexp, raw_head
from backends.mlx.sampling import draw
from gsm8k_core.problems.batching import shared_length
from gsm8k_core.scoring.sampling import uniforms
from gsm8k_core.scoring.writing import Writing, manners
from gsm8k_core.training.finite import logits_not_finite
from gsm8k_core.types import Completion, Incoming, OnToken, Sampling

AHEAD = 1  # steps that are launched before the host looks at the one before
NO_TOKEN = -1  # an index that a step which was launched with it may have: the last token's
REFILL = 16  # a 16th of the places free, as on torch: a prompt alone is read at a fraction of the device's rate
READ_TOKENS = 1024  # padded prompt tokens read together: enough for full products, little beside the keys


class _Reading(NamedTuple):
    """Prompts that were read together: the keys of each in a row, and the state behind it."""

    prompts: list[int]  # each one's `alike`
    layers: list[Any]
    last_BH: mx.array


class _Picks(NamedTuple):
    """One token for each of some rows, perhaps not computed yet; NO_TOKEN where a row's logits are not finite."""

    rows: list[Writing]
    tokens_B: mx.array  # int32


class _Decoder:
    """The rows in the first places of `slots`, those that wait, and the next input of each place."""

    def __init__(
        self,
        model: Any,
        rows: Sequence[Writing],
        num_places: int,
        end_ids: frozenset[int],
        on_token: OnToken,
        incoming: Incoming | None = None,
    ) -> None:
        self._model, self._end_ids, self._on_token, self._incoming = model, end_ids, on_token, incoming
        self._is_fast = fast_exp.has_fast_body(model)
        self._body = fast_exp.fast_body(model) if self._is_fast else model.model
        self._dtype = compute_dtype(model)
        self._convolutions = [hasattr(layer, "conv") for layer in model.layers]
        self._waiting = deque(_longest_first(rows))
        self._reading: _Reading | None = None  # the last one, while rows wait whose prompt is in it
        self._active: list[Writing] = []
        self._num_places = num_places
        self._num_shared = shared_length([row.prompt for row in rows]) if rows else 0
        self._prefix = self._read([rows[0].prompt[: self._num_shared]], None)[1] if self._num_shared else None
        # The fused attention of a GPU copies a mask that all heads share, in each layer. (A few models have no args.)
        asked = None if self._is_fast else getattr(model, "args", None)
        self._num_heads = getattr(self._body, "mask_heads", getattr(asked, "num_attention_heads", 1)) if asked else 1
        self._window = getattr(getattr(self._body, "plan", None), "window", None)
        self._slots = self._make_slots()
        self._inputs_B = mx.zeros(self._num_places, mx.int32)
        self._flying: deque[_Picks] = deque()

    def _make_slots(self) -> Slots:
        num_layers = len(self._model.layers)
        return Slots(self._num_places, self._prefix, num_layers, self._num_heads, self._window, self._convolutions)

    def run(self) -> Iterator[tuple[int, Completion]]:
        """Until all are answered."""
        while self._active or self._waiting or self._flying:
            yield from self._turn()

    def run_on(self) -> Iterator[list[tuple[int, Completion]]]:
        """For ever, one turn at a time. While nobody is here, no room is held that the longest answer took."""
        while True:
            ended = list(self._turn())
            if not self._active and self._slots.num_positions:
                self._slots = self._make_slots()
                mx.clear_cache()
            yield ended

    def _turn(self) -> Iterator[tuple[int, Completion]]:
        self._flying.extend(self._turn_over())
        if self._active:
            self._flying.append(self._step())
        while len(self._flying) > (AHEAD if self._active else 0):
            yield from self._land(self._flying.popleft())

    def _turn_over(self) -> Iterator[_Picks]:
        """Rows that need no more steps leave; waiting ones take their places, the last ones close the holes.

        Nobody comes while too few places are free to be worth reading prompts for; but nobody who is incoming waits
        for that.
        """
        free = [place for place, row in enumerate(self._active) if row.needs_no_step]
        free += range(len(self._active), self._num_places)
        enough = len(free) >= self._num_places // REFILL
        if self._incoming is not None and free:
            self._waiting.extend(_longest_first(Writing.of_queries(self._incoming(len(free)))))
            enough = True
        num_new = min(len(free), len(self._waiting)) if enough else 0
        yield from self._admit([self._waiting.popleft() for _ in range(num_new)], free[:num_new])
        for hole in reversed([place for place in free[num_new:] if place < len(self._active)]):
            last = self._active.pop()
            if hole < len(self._active):
                self._active[hole] = last
                self._slots.move(len(self._active), hole)
                self._inputs_B[hole] = self._inputs_B[len(self._active)]

    def _admit(self, rows: list[Writing], places: list[int]) -> Iterator[_Picks]:
        """Read the rows' prompts, some at a time and each once, and give each row its place, in the order of length."""
        while rows:
            if self._reading is None or rows[0].alike not in self._reading.prompts:
                self._reading = self._read_some(rows)
            known = self._reading.prompts
            size = next((number for number, row in enumerate(rows) if row.alike not in known), len(rows))
            yield self._begin(rows[:size], places[:size], self._reading)
            rows, places = rows[size:], places[size:]
        if self._reading is not None and not (self._waiting and self._waiting[0].alike in self._reading.prompts):
            self._reading = None

    def _read_some(self, rows: list[Writing]) -> _Reading:
        """The prompts of the first rows, as many as are read together."""
        first = {row.alike: row for row in reversed(rows)}  # of each prompt its first row
        unread = [row for row in rows if first[row.alike] is row]
        longest = len(unread[0].prompt) - self._num_shared
        unread = unread[: max(1, READ_TOKENS // longest)]
        own = [row.prompt[self._num_shared :] for row in unread]
        hidden_BTH, layers = self._read(own, self._prefix)
        last_BH = hidden_BTH[mx.arange(len(own)), mx.array([len(tokens) - 1 for tokens in own])]
        return _Reading([row.alike for row in unread], layers, last_BH)

    def _begin(self, rows: list[Writing], places: list[int], reading: _Reading) -> _Picks:
        numbers = [reading.prompts.index(row.alike) for row in rows]
        for number, row, place in zip(numbers, rows, places, strict=True):
            self._slots.put(place, reading.layers, number, len(row.prompt) - self._num_shared)
            if place < len(self._active):
                self._active[place] = row
            else:
                self._active.append(row)
        picks = self._pick(reading.last_BH[mx.array(numbers)], rows)
        self._inputs_B[mx.array(places)] = picks.tokens_B
        return picks

    def _read(self, prompts: Sequence[Sequence[int]], prefix: list[Any] | None) -> tuple[mx.array, list[Any]]:
        """States (B, T, H) and keys of prompts behind `prefix`. Padded on the right: no token sees what follows it."""
        tokens_BT = np.zeros((len(prompts), max(map(len, prompts))), np.int32)
        for row_T, prompt in zip(tokens_BT, prompts, strict=True):
            row_T[: len(prompt)] = prompt
        before = self._num_shared if prefix else 0
        mask = causal(tokens_BT.shape[1], before) if self._is_fast else "causal"
        own = [len(prompt) for prompt in prompts]
        layers = [
            PromptConvolution(behind, before, own) if convolves else PromptLayer(behind, mask)
            for convolves, behind in zip(self._convolutions, prefix or [None] * len(self._convolutions), strict=True)
        ]
        return self._body(mx.array(tokens_BT), layers), layers

    def _step(self) -> _Picks:
        num_rows = len(self._active)
        forced = {place: row.forced_input for place, row in enumerate(self._active) if row.forced_input is not None}
        if forced:
            self._inputs_B[mx.array(list(forced))] = mx.array(list(forced.values()), mx.int32)
        self._slots.begin_step(num_rows, self._dtype)
        hidden_B1H = self._body(self._inputs_B[:num_rows, None], self._slots.layers)
        picks = self._pick(hidden_B1H[:, 0], list(self._active))
        self._inputs_B[:num_rows] = picks.tokens_B
        return picks

    def _pick(self, hidden_BH: mx.array, rows: list[Writing]) -> _Picks:
        """The rows' next tokens, likeliest or drawn, on the device."""
        logits_BV = raw_head(self._model, hidden_BH)
        groups = manners(rows)
        tokens = [_picked_tokens(logits_BV, rows, sampling, places) for sampling, places in groups]
        tokens_B = tokens[0]
        if len(groups) > 1:
            order_B = mx.array([place for _, places in groups for place in places])
            tokens_B = mx.zeros(len(rows), mx.int32)
            tokens_B[order_B] = mx.concatenate(tokens)
        # Here, and not where they are read: what is asked of the device then stands behind the step launched after it.
        tokens_B = mx.where(mx.isfinite(logits_BV.max(axis=-1)), tokens_B, NO_TOKEN)
        for row in rows:
            row.launched += 1
        mx.async_eval(tokens_B)
        return _Picks(rows, tokens_B)

    def _land(self, picks: _Picks) -> Iterator[tuple[int, Completion]]:
        """The host learns tokens; yields the rows that end with them."""
        tokens = picks.tokens_B.tolist()
        # Of one that has ended already, this is the token behind its end, which is thrown away.
        if any(token == NO_TOKEN and not row.done for row, token in zip(picks.rows, tokens, strict=True)):
            raise logits_not_finite()
        for row, token in zip(picks.rows, tokens, strict=True):
            done = row.land(token, self._end_ids, self._on_token)
            if done is not None:
                yield row.index, done


def _longest_first(rows: Sequence[Writing]) -> list[Writing]:
    """Those with the same prompt follow each other."""
    return sorted(rows, key=lambda row: (-len(row.prompt), row.alike, row.index))


def _picked_tokens(logits_BV: mx.array, rows: Sequence[Writing], sampling: Sampling, places: Sequence[int]) -> mx.array:
    """The next token of some of the rows, likeliest or drawn in the same manner."""
    if len(places) < len(rows):
        logits_BV = logits_BV[mx.array(places)]
    if sampling.temperature == 0:
        return mx.argmax(logits_BV, axis=-1).astype(mx.int32)
    u_B3 = uniforms(sampling.seed, [rows[place].key for place in places], [rows[place].launched for place in places])
    return draw(logits_BV, sampling, mx.array(u_B3))


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    end_ids: frozenset[int],
    on_token: OnToken,
    keys: Sequence[int] | None = None,
) -> Iterator[tuple[int, Completion]]:
    """See Backend.generate."""
    model.eval()
    rows = Writing.of_prompts(prompts, sampling, keys)
    if rows:
        yield from _Decoder(model, rows, min(sampling.batch_size, len(rows)), end_ids, on_token).run()


def answer(
    model: Any, incoming: Incoming, num_places: int, end_ids: frozenset[int], on_token: OnToken
) -> Iterator[list[tuple[int, Completion]]]:
    """See Backend.answer."""
    model.eval()
    return _Decoder(model, (), num_places, end_ids, on_token, incoming).run_on()


def score(
    model: Any, tokens_BT: np.ndarray[Any, np.dtype[np.int32]], most_tokens: int
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """See Backend.score: as many rows at once as hold `most_tokens`, and of their logits as many as a loss holds."""
    model.eval()
    rows = max(1, most_tokens // tokens_BT.shape[1])
    parts = [_score(model, tokens_BT[at : at + rows]) for at in range(0, len(tokens_BT), rows)]
    return np.concatenate(parts)


def _score(model: Any, tokens_RT: np.ndarray[Any, np.dtype[np.int32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    hidden_RTH = hidden_states(model, mx.array(tokens_RT))[:, :-1]
    hidden_NH, targets_N = hidden_RTH.reshape(-1, hidden_RTH.shape[-1]), mx.array(tokens_RT[:, 1:].reshape(-1))
    found_N, size = np.empty(targets_N.size, np.float32), chunk_rows(model)
    for start in range(0, targets_N.size, size):
        part = slice(start, start + size)
        logits_CV = head(model, hidden_NH[part])
        picked_C1 = mx.take_along_axis(logits_CV, targets_N[part, None], axis=-1)
        found_N[part] = np.array(picked_C1[:, 0] - logsumexp(logits_CV))  # computed here: the next take their room
    return found_N.reshape(len(tokens_RT), tokens_RT.shape[1] - 1)


def odds(model: Any, tokens: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """See Backend.odds."""
    model.eval()
    logits_V = head(model, hidden_states(model, mx.array([list(tokens)]))[0, -1])
    return np.array(logits_V - logsumexp(logits_V)).astype(np.float32)
