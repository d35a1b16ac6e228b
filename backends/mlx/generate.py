"""Greedy decoding in MLX: prompts of similar length together, finished rows leave the batch.

Axes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import BatchKVCache

from backends.mlx.loss import head, hidden_states, logsumexp
from gsm8k_core.sampling import draw_rows
from gsm8k_core.types import Completion, DivergedError, OnToken, Sampling


def _next_logits(model: Any, tokens_BT: mx.array, cache: list[BatchKVCache]) -> mx.array:
    """Logits of the next token, (B, V) float32, not yet computed."""
    # The body takes its cache as the second argument; only the last position needs the head.
    return head(model, model.model(tokens_BT, cache)[:, -1, :])


def _pick(logits_BV: mx.array, sampling: Sampling, keys: Sequence[int], position: int) -> list[int]:
    """The next tokens. Raises DivergedError where a row's logits are not finite."""
    tokens_B, largest_B = mx.argmax(logits_BV, axis=-1), logits_BV.max(axis=-1)
    mx.eval(tokens_B, largest_B)
    if not np.isfinite(np.array(largest_B)).all():
        raise DivergedError("the model's logits are not finite (NaN or infinity): its weights are damaged")
    if sampling.temperature == 0:
        return [int(token) for token in tokens_B.tolist()]
    return draw_rows(np.array(logits_BV), sampling, keys, [position] * len(keys))


def _left_padded(prompts: Sequence[Sequence[int]]) -> tuple[mx.array, list[int]]:
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    rows = [[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)]
    return mx.array(np.asarray(rows, dtype=np.int32)), padding


def _decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    indices: Sequence[int],
    keys: Sequence[int],
    sampling: Sampling,
    end_ids: frozenset[int],
    on_token: OnToken,
) -> Iterator[tuple[int, Completion]]:
    """Complete one batch; yields (index, completion)."""
    tokens_BT, padding = _left_padded(prompts)
    cache = [BatchKVCache(padding) for _ in model.layers]
    written: list[list[int]] = [[] for _ in prompts]
    active = list(range(len(prompts)))
    for position in range(sampling.max_new_tokens):
        picked = _pick(_next_logits(model, tokens_BT, cache), sampling, [keys[row] for row in active], position)
        places = [place for place, token in enumerate(picked) if token not in end_ids]
        for row in (row for row, token in zip(active, picked, strict=True) if token in end_ids):
            yield indices[row], Completion(tuple(written[row]), "stop")
        if len(places) < len(active):
            active, picked = [active[place] for place in places], [picked[place] for place in places]
            if not active:
                return
            for layer in cache:
                layer.filter(mx.array(places))
        for row, token in zip(active, picked, strict=True):
            written[row].append(token)
            on_token(indices[row], token)
        tokens_BT = mx.array(picked)[:, None]
    for row in active:
        yield indices[row], Completion(tuple(written[row]), "length")


def generate(
    model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, end_ids: frozenset[int], on_token: OnToken,
    keys: Sequence[int] | None = None,
) -> Iterator[tuple[int, Completion]]:  # fmt: skip
    """See Backend.generate."""
    model.eval()
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    for start in range(0, len(order), sampling.batch_size):
        chunk = order[start : start + sampling.batch_size]
        theirs = chunk if keys is None else [keys[index] for index in chunk]
        yield from _decode(model, [prompts[index] for index in chunk], chunk, theirs, sampling, end_ids, on_token)


def score(model: Any, tokens_BT: np.ndarray[Any, np.dtype[np.int32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """See Backend.score: log p(tokens[:, 1:]) in nats, (B, T-1) float32; one row at a time."""
    model.eval()
    rows = []
    for row in tokens_BT:
        tokens_1T = mx.array(row[None])
        logits_TV = head(model, hidden_states(model, tokens_1T)[0, :-1])
        picked = mx.take_along_axis(logits_TV, tokens_1T[0, 1:, None], axis=-1)[:, 0]
        rows.append(np.array(picked - logsumexp(logits_TV)))
    return np.stack(rows).astype(np.float32)
