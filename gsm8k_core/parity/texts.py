"""Equality of texts, one sentence everywhere: token-equal, or at the first difference the reference's top-2 logit gap
is below eps; counted and listed.

The gap is log p(its own token) - log p(the other's), from `score`. What the reference rejected is at most its second,
so its top-2 gap is no larger. Of a drawn token the gap is how far the reference's u lies from where the other token
is drawn (sampling.moved), a share of what u draws from. A token at the edge of top-k or top-p can part texts at a
larger gap; such a place is listed as beyond eps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gsm8k_core.scoring.sampling import moved
from gsm8k_core.types import IGNORE_INDEX, Batch, Completion, Sampling

if TYPE_CHECKING:
    from gsm8k_core.backend import Weights

# Nats, by compute dtype; ten times what was measured at most, on a CPU, batches of 24 and 64 against one by one.
# float32: no text of 2,000 (tiny models, both backends) and 24 (SmolLM2-135M, torch) parted; there a top-2 log p moved
# by 5.2e-5, so a gap by twice that. bfloat16: SmolLM2-135M, 64 problems of 200 tokens, against float32: ours on torch
# and transformers' generate() part at gaps up to 0.31 and 0.35, most under 0.2; so a gap by twice that. float16 (a
# GPU's) is not measured: its rounding is an eighth of bfloat16's.
EPS: Mapping[str, float] = {"float32": 1e-3, "bfloat16": 0.7, "float16": 0.09}


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """One answer of the reference and the other's to the same prompt."""

    id: str
    prompt: Sequence[int]
    key: int  # of the noise
    reference: Completion
    other: Completion


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two answers part. `gap`: how much likelier the reference finds its own token, or the other's, in nats.

    Of drawn answers: the share by which its u would have to move.
    """

    id: str
    position: int  # tokens that both share
    gap: float


def closed(completion: Completion) -> tuple[int | None, ...]:
    """The tokens, with None for the end token that a completion leaves out."""
    return (*completion.tokens, None) if completion.finish_reason == "stop" else completion.tokens


def first_difference(ours: Sequence[int | None], theirs: Sequence[int | None]) -> int | None:
    """Where the closed texts part, or None."""
    return next((place for place, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)


def differences(
    pairs: Iterable[AnswerPair], reference: Weights, sampling: Sampling, end_ids: Sequence[int]
) -> list[Difference]:
    """Every place where two texts part, by what the reference finds likely there."""
    found = []
    for pair in pairs:
        ours, theirs = closed(pair.reference), closed(pair.other)
        at = first_difference(ours, theirs)
        if at is not None:
            own, other = (end_ids if token is None else (token,) for token in (ours[at], theirs[at]))
            prefix = [*pair.prompt, *pair.reference.tokens[:at]]
            if sampling.temperature > 0:
                odds_V = reference.odds(prefix)
                gap = min(moved(odds_V, sampling, pair.key, at, token) for token in other)
            else:
                gap = abs(_chance(prefix, own, reference) - _chance(prefix, other, reference))
            found.append(Difference(pair.id, at, gap))
    return found


def eps_of(dtype: str, sampling: Sampling) -> float:
    """How far two backends may be apart where texts part: nats, or a share where they are drawn.

    Two logits that move by d each close a gap of 2 d, and move a share c by up to 2 d c (1 - c) / temperature.
    """
    return EPS[dtype] / 4 / sampling.temperature if sampling.temperature > 0 else EPS[dtype]


def compare(
    pairs: Sequence[AnswerPair], reference: Weights, sampling: Sampling, end_ids: Sequence[int], dtype: str
) -> dict[str, Any]:
    """How many texts are equal, and every place where two part; `dtype` is that which they were computed in."""
    eps = eps_of(dtype, sampling)
    places = [
        {**asdict(found), "within": found.gap < eps} for found in differences(pairs, reference, sampling, end_ids)
    ]
    within = sum(place["within"] for place in places)
    return {
        "problems": len(pairs),
        "equal": len(pairs) - len(places),
        "within_eps": within,
        "beyond_eps": len(places) - within,
        "eps": eps,
        "unit": "share" if sampling.temperature > 0 else "nats",
        "places": places,
    }


def _chance(prefix: Sequence[int], tokens: Sequence[int], reference: Weights) -> float:
    """log p of the likeliest of `tokens` behind `prefix`."""
    rows = np.array([[*prefix, token] for token in tokens], dtype=np.int32)
    return float(reference.score(Batch(rows, np.full_like(rows, IGNORE_INDEX)))[:, -1].max())
