"""Which problems an update of `--recipe grpo` asks: a pure function of the seed and the rollout's number.

The first `prompts` of a rollout come from an endless row of permutations of all problems, so that each is asked once
before one is asked again. Where too few of them gave answers that differ, more are asked, up to MOST_ASKED times as
many: from a permutation of the rollout's own, without those that it asked already.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MOST_ASKED = 4  # times as many problems as are asked at first


def chunks(ids: Sequence[str], seed: int, rollout: int, prompts: int) -> list[list[str]]:
    """The problems of `rollout` (from 0), `prompts` at a time: MOST_ASKED lists, fewer where there are too few."""
    whole, size = range(rollout * prompts, (rollout + 1) * prompts), len(ids)
    passes = {number: _permutation([seed, number], size) for number in {place // size for place in whole}}
    first = dict.fromkeys(passes[place // size][place % size] for place in whole)  # a pass may end in the middle
    more = (place for place in _permutation([seed, rollout, prompts], size) if place not in first)
    asked = [ids[place] for place in [*first, *more][: MOST_ASKED * prompts]]
    return [asked[at : at + prompts] for at in range(0, len(asked), prompts)]


def _permutation(seed: Sequence[int], size: int) -> list[int]:
    found: list[int] = np.random.default_rng(seed).permutation(size).tolist()
    return found
