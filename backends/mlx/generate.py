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
from gsm8k_core.types import Completion, DivergedError, Sampling


def _next_tokens(model: Any, tokens_BT: mx.array, cache: list[BatchKVCache]) -> tuple[mx.array, mx.array]:
    """Greedy next token (B,) and the largest logit of each row (B,)."""
    # The body takes its cache as the second argument; only the last position needs the head.
    logits_BV = head(model, model.model(tokens_BT, cache)[:, -1, :])
    return mx.argmax(logits_BV, axis=-1), logits_BV.max(axis=-1)


def _left_padded(prompts: Sequence[Sequence[int]]) -> tuple[mx.array, list[int]]:
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    rows = [[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)]
    return mx.array(np.asarray(rows, dtype=np.int32)), padding


def _decode(
    model: Any, prompts: Sequence[Sequence[int]], end_ids: frozenset[int], max_new_tokens: int
) -> Iterator[tuple[int, Completion]]:
    tokens_BT, padding = _left_padded(prompts)
    cache = [BatchKVCache(padding) for _ in model.layers]
    written: list[list[int]] = [[] for _ in prompts]
    active = list(range(len(prompts)))
    while active:
        tokens_B, largest_B = _next_tokens(model, tokens_BT, cache)
        mx.eval(tokens_B, largest_B)
        if not np.isfinite(np.array(largest_B)).all():
            raise DivergedError("the model's logits are not finite (NaN or infinity): its weights are damaged")
        keep = []
        for place, (row, token) in enumerate(zip(active, tokens_B.tolist(), strict=True)):
            if token in end_ids:
                yield row, Completion(tuple(written[row]), "stop")
                continue
            written[row].append(token)
            if len(written[row]) == max_new_tokens:
                yield row, Completion(tuple(written[row]), "length")
            else:
                keep.append(place)
        if len(keep) < len(active):
            active = [active[place] for place in keep]
            if not active:
                return
            tokens_B = tokens_B[mx.array(keep)]
            for layer in cache:
                layer.filter(mx.array(keep))
        tokens_BT = tokens_B[:, None]


def generate(
    model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, end_ids: frozenset[int]
) -> Iterator[tuple[int, Completion]]:
    """See Backend.generate."""
    model.eval()
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    for start in range(0, len(order), sampling.batch_size):
        chunk = order[start : start + sampling.batch_size]
        for place, completion in _decode(model, [prompts[i] for i in chunk], end_ids, sampling.max_new_tokens):
            yield chunk[place], completion


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
