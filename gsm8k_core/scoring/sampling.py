"""Drawing a token from logits, in words, with a slow and exact version: what a backend computes on its device.

A draw takes one number of 64 bits, a hash of (seed, key of the prompt, position) that is known before the logits are.
So batching, order, resuming and refilling change no text, and both backends draw the same token from the same logits.
In an evaluation the key comes from the problem's id and the number of the sample (`noise_key`), so other problems
beside it change nothing either.

The weights. A token's weight is exp((logit - largest logit) / temperature); with top-k it is 0 for all that weigh less
than the k-th, and with top-p (Holtzman et al. 2020) for all that weigh less than the last of the fewest heaviest whose
weights sum to at least p of what top-k left. Tokens that weigh as much as the last one kept are kept with it.

The draw. The vocabulary lies in blocks of FAN tokens in order of their ids, and the blocks in groups of FAN. A group is
drawn by its weight, then a block of it, then a token: each time the first whose running sum is above u times the whole,
each with a u of its own, DIGIT_BITS bits of the hash. Drawn in one piece from one u, 6 draws in 10,000 differ between
two backends at float32 (SmolLM2-135M, temperature 1): a running sum over 49,152 tokens moves by more than many of them
weigh. In three steps it is 3 in 100,000, those where a u lies within rounding of a boundary.

Axes: B rows, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gsm8k_core.types import Sampling

if TYPE_CHECKING:
    import numpy.typing as npt

    from gsm8k_core.types import FloatArray

    Weights = npt.NDArray[np.float64]

FAN = 64  # tokens in a block, blocks in a group: a few dozen groups for any vocabulary
STEPS = 3  # a group, a block, a token
DIGIT_BITS = 21  # 3 x 21 = 63; and u x sum stays below the sum in float32
COLDEST = 1e-30  # any two logits that differ are then infinitely far apart, and equal ones still equal
_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio: the step of splitmix64


def noise_key(problem_id: str, sample: int) -> int:
    """The key of one answer: 64 bits of sha256 over the problem's id and the number of the sample."""
    return int.from_bytes(hashlib.sha256(f"{problem_id}\0{sample}".encode()).digest()[:8], "big")


def _mixed(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): a bijection whose every output bit hangs on all."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def uniforms(seed: int, keys: Sequence[int], positions: Sequence[int]) -> FloatArray:
    """The three u of one draw a row, (B, STEPS) float32 in (0, 1), for its group, its block and its token.

    `positions` count the tokens that the row has before the drawn one, forced ones too. Numbers beyond 64 bits wrap.
    """
    words_B = _mixed(np.array([(seed + _GOLDEN) & _WORD], np.uint64))
    for part in (keys, positions):
        words_B = _mixed((words_B ^ np.array([number & _WORD for number in part], np.uint64)) + np.uint64(_GOLDEN))
    shifts_3 = np.array([64 - DIGIT_BITS * step for step in range(1, STEPS + 1)], np.uint64)
    digits_B3 = (words_B[:, None] >> shifts_3) & np.uint64((1 << DIGIT_BITS) - 1)
    return ((digits_B3.astype(np.float64) + 0.5) / (1 << DIGIT_BITS)).astype(np.float32)


def weights(logits_V: FloatArray, sampling: Sampling) -> Weights:
    """What each token weighs, (V,) float64: 1 for the likeliest, 0 outside top-k and top-p."""
    below_V = logits_V.astype(np.float64) - np.max(logits_V)
    weights_V: Weights = np.exp(below_V / max(sampling.temperature, COLDEST))
    if 0 < sampling.top_k < len(weights_V):
        weights_V[weights_V < np.sort(weights_V)[-sampling.top_k]] = 0
    if sampling.top_p < 1:
        heaviest_V = np.sort(weights_V)[::-1]
        sums_V = np.cumsum(heaviest_V)
        weights_V[weights_V < heaviest_V[np.argmax(sums_V >= sampling.top_p * sums_V[-1])]] = 0
    return weights_V


def draw(logits_V: FloatArray, sampling: Sampling, key: int, position: int) -> int:
    """One token id."""
    place = 0
    for sums_PN, u in _steps(logits_V, sampling, key, position):
        running_N = np.cumsum(sums_PN[place])
        place = place * sums_PN.shape[1] + int(np.argmax(running_N > u * running_N[-1]))
    return place


def moved(logits_V: FloatArray, sampling: Sampling, key: int, position: int, other: int) -> float:
    """How far a u has to move, as a share of the weights that it draws from, for `other` to be drawn here instead.

    0 where it is drawn anyway. When no logit moves by more than d nats, no boundary moves by more than d / 2 over the
    temperature, but where a token enters or leaves what top-k and top-p keep.
    """
    place, below = 0, FAN**STEPS
    for sums_PN, u in _steps(logits_V, sampling, key, position):
        below //= FAN
        wanted = other // below - place * sums_PN.shape[1]
        bounds = np.concatenate([[0.0], np.cumsum(sums_PN[place])])
        low, high = bounds[wanted : wanted + 2] / bounds[-1]
        if not low <= u < high:
            return float(max(low - u, u - high))
        place = place * sums_PN.shape[1] + wanted
    return 0.0


def _steps(logits_V: FloatArray, sampling: Sampling, key: int, position: int) -> Iterator[tuple[Weights, float]]:
    """The sums that each step draws from, (places that the steps before may have drawn, FAN), and its u."""
    tokens = weights(logits_V, sampling)
    blocks_BN = np.pad(tokens, (0, -len(tokens) % FAN**2)).reshape(-1, FAN)
    groups_GN = blocks_BN.sum(axis=1).reshape(-1, FAN)
    us = uniforms(sampling.seed, [key], [position])[0].tolist()
    yield from zip((groups_GN.sum(axis=1)[None], groups_GN, blocks_BN), us, strict=True)
