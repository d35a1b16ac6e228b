"""Equality of texts, one sentence everywhere: token-equal, or at the first difference the reference's top-2 logit gap
is below eps; counted and listed.

The gap is log p(its own token) - log p(the other's), from `score`. What the reference rejected is at most its second,
so its top-2 gap is no larger. A sampled token is the argmax of logit / temperature + noise: there the noise of both
tokens, times the temperature, is added, and the gap is again how far the logits must move. A token at the edge of
top-k or top-p can part texts at a larger gap; such a place is listed as beyond eps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gsm8k_core.scoring.sampling import noise
from gsm8k_core.types import IGNORE_INDEX, Batch, Completion, Sampling

if TYPE_CHECKING:
    from gsm8k_core.types import FloatArray

Score = Callable[[Batch], "FloatArray"]

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
    """Where two answers part. `gap` in nats: how much likelier the reference finds its own token, or the other's."""

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
    pairs: Iterable[AnswerPair], score: Score, sampling: Sampling, end_ids: Sequence[int]
) -> list[Difference]:
    """Every place where two texts part, by the log-probabilities of `score`."""
    found = []
    for pair in pairs:
        ours, theirs = closed(pair.reference), closed(pair.other)
        at = first_difference(ours, theirs)
        if at is not None:
            chances = [
                _chance(pair, at, end_ids if token is None else (token,), score, sampling)
                for token in (ours[at], theirs[at])
            ]
            found.append(Difference(pair.id, at, abs(chances[0] - chances[1])))
    return found


def compare(
    pairs: Sequence[AnswerPair], score: Score, sampling: Sampling, end_ids: Sequence[int], eps: float
) -> dict[str, Any]:
    """How many texts are equal, and every place where two part."""
    places = [{**asdict(found), "within": found.gap < eps} for found in differences(pairs, score, sampling, end_ids)]
    within = sum(place["within"] for place in places)
    return {
        "problems": len(pairs),
        "equal": len(pairs) - len(places),
        "within_eps": within,
        "beyond_eps": len(places) - within,
        "eps": eps,
        "places": places,
    }


def _chance(pair: AnswerPair, at: int, tokens: Sequence[int], score: Score, sampling: Sampling) -> float:
    """log p of the likeliest of `tokens` at a place of the reference's text, with its noise where it was drawn."""
    prefix = [*pair.prompt, *pair.reference.tokens[:at]]
    rows = np.array([[*prefix, token] for token in tokens], dtype=np.int32)
    chances = score(Batch(rows, np.full_like(rows, IGNORE_INDEX)))[:, -1].astype(np.float64)
    if sampling.temperature > 0:
        noise_V = noise(sampling, pair.key, at, max(tokens) + 1)
        chances = chances + sampling.temperature * noise_V[list(tokens)]
    return float(chances.max())
