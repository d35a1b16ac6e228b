"""Drawing a token from logits: temperature, top-k, top-p, and noise that depends on nothing but its place.

The noise of a draw comes from (seed, key of the prompt, position), so batching, resuming and refilling change no
text, and both backends draw the same token from the same logits. In an evaluation the key comes from the problem's id
and the number of the sample (`noise_key`), so other problems beside it change nothing either.

Axes: B rows, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gsm8k_core.types import Sampling

if TYPE_CHECKING:
    import numpy.typing as npt

    from gsm8k_core.types import FloatArray


def kept(logits_V: FloatArray, sampling: Sampling) -> FloatArray:
    """Logits under the largest one, over the temperature, -inf outside top-k and top-p: (V,) float32.

    Top-p keeps the fewest most likely tokens whose probabilities sum to at least p (Holtzman et al. 2020).
    """
    # The largest is 0: over a tiny temperature several would be infinite, and the first of them drawn.
    below = logits_V.astype(np.float64) - np.max(logits_V)
    with np.errstate(over="ignore"):
        scaled = below / sampling.temperature
    if 0 < sampling.top_k < len(scaled):
        scaled[scaled < np.partition(scaled, -sampling.top_k)[-sampling.top_k]] = -np.inf
    if sampling.top_p < 1:
        order = np.argsort(-scaled, kind="stable")
        odds = np.exp(scaled[order] - scaled[order[0]])
        before = np.concatenate([[0.0], np.cumsum(odds / odds.sum())[:-1]])
        scaled[order[before >= sampling.top_p]] = -np.inf
    with np.errstate(over="ignore"):  # -inf then, which is not drawn
        return scaled.astype(np.float32)


def noise_key(problem_id: str, sample: int) -> int:
    """The key of one answer: 64 bits of sha256 over the problem's id and the number of the sample."""
    return int.from_bytes(hashlib.sha256(f"{problem_id}\0{sample}".encode()).digest()[:8], "big")


def noise(sampling: Sampling, key: int, position: int, size: int) -> npt.NDArray[np.float64]:
    """Gumbel noise of the first `size` tokens of the vocabulary: (size,) float64."""
    return np.random.default_rng([sampling.seed, key, position]).gumbel(size=size)


def draw(logits_V: FloatArray, sampling: Sampling, key: int, position: int) -> int:
    """One token id, by the Gumbel-max trick: the argmax of logits plus noise has the softmax's distribution."""
    return int(np.argmax(kept(logits_V, sampling) + noise(sampling, key, position, len(logits_V))))


def draw_rows(logits_BV: FloatArray, sampling: Sampling, keys: Sequence[int], positions: Sequence[int]) -> list[int]:
    """One token id for each row: `keys` are the prompts' keys, `positions` count the tokens written so far."""
    return [
        draw(row_V, sampling, key, position) for row_V, key, position in zip(logits_BV, keys, positions, strict=True)
    ]
