"""Greedy decoding in PyTorch: prompts of similar length together, finished rows leave the batch.

Axes: B rows, T tokens, S cached positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from backends.base import OnToken
from gsm8k_core.sampling import draw_rows
from gsm8k_core.types import Completion, DivergedError, Sampling


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (B, T) padded on the left, and the attention mask (B, T)."""
    longest = max(map(len, prompts))
    rows = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    masks = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(rows, device=device), torch.tensor(masks, device=device)


@torch.no_grad()
def _next_logits(
    model: Any, tokens_BT: torch.Tensor, mask_BS: torch.Tensor, positions_BT: torch.Tensor, cache: DynamicCache
) -> torch.Tensor:
    """Logits of the next token, (B, V) float32. Raises DivergedError where a row's are not finite."""
    output = model(
        input_ids=tokens_BT, attention_mask=mask_BS, position_ids=positions_BT, past_key_values=cache,
        use_cache=True, logits_to_keep=1,
    )  # fmt: skip
    logits_BV = output.logits[:, -1].float()
    if not torch.isfinite(logits_BV.amax(dim=-1)).all():
        raise DivergedError("the model's logits are not finite (NaN or infinity): its weights are damaged")
    return logits_BV


def _pick(logits_BV: torch.Tensor, sampling: Sampling, keys: Sequence[int], position: int) -> list[int]:
    if sampling.temperature == 0:
        return [int(token) for token in logits_BV.argmax(dim=-1).tolist()]
    return draw_rows(logits_BV.cpu().numpy(), sampling, keys, [position] * len(keys))


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
    tokens_BT, mask_BS = _left_padded(prompts, model.device)
    positions_BT = (mask_BS.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    written: list[list[int]] = [[] for _ in prompts]
    active = list(range(len(prompts)))
    for position in range(sampling.max_new_tokens):
        logits_BV = _next_logits(model, tokens_BT, mask_BS, positions_BT, cache)
        picked = _pick(logits_BV, sampling, [keys[row] for row in active], position)
        places = [place for place, token in enumerate(picked) if token not in end_ids]
        for row in (row for row, token in zip(active, picked, strict=True) if token in end_ids):
            yield indices[row], Completion(tuple(written[row]), "stop")
        positions_B = positions_BT[:, -1] + 1
        if len(places) < len(active):
            active, picked = [active[place] for place in places], [picked[place] for place in places]
            if not active:
                return
            kept = torch.tensor(places, device=model.device)
            positions_B, mask_BS = positions_B[kept], mask_BS[kept]
            cache.batch_select_indices(kept)
        for row, token in zip(active, picked, strict=True):
            written[row].append(token)
            on_token(indices[row], token)
        tokens_BT, positions_BT = torch.tensor(picked, device=model.device)[:, None], positions_B[:, None]
        mask_BS = torch.cat([mask_BS, mask_BS.new_ones(len(active), 1)], dim=-1)
    for row in active:
        yield indices[row], Completion(tuple(written[row]), "length")


def generate(
    model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, end_ids: frozenset[int], on_token: OnToken,
    keys: Sequence[int] | None = None,
) -> Iterator[tuple[int, Completion]]:  # fmt: skip
    """See Backend.generate. `model` is already in the compute dtype."""
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    for start in range(0, len(order), sampling.batch_size):
        chunk = order[start : start + sampling.batch_size]
        theirs = chunk if keys is None else [keys[index] for index in chunk]
        yield from _decode(model, [prompts[index] for index in chunk], chunk, theirs, sampling, end_ids, on_token)


def score(model: Any, tokens_BT: np.ndarray[Any, np.dtype[np.int32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """See Backend.score: log p(tokens[:, 1:]) in nats, (B, T-1) float32; one row at a time."""
    rows = []
    with torch.no_grad():
        for row in tokens_BT:
            tokens_1T = torch.from_numpy(row[None]).to(model.device, torch.long)
            logits_TV = model(input_ids=tokens_1T, use_cache=False).logits[0, :-1].float()
            picked = logits_TV.gather(-1, tokens_1T[0, 1:, None])[:, 0]
            rows.append((picked - logits_TV.logsumexp(dim=-1)).cpu().numpy())
    return np.stack(rows).astype(np.float32)
