"""Which verified answers become training rows, and how they are mixed with the human ones.

Of one problem, one answer is kept for each chain of equations, and at most so many: more would make the easiest
problems the loudest. The first that was sampled comes first; then, again and again, the one that is least like those
kept, by the pairs of neighbouring tokens that they share (Jaccard's distance of the sets of pairs).
Source of one answer a chain, of equal ones the farthest: Yuan et al. 2023, arXiv 2308.01825 (RFT), which measures by
edit distance; sets of pairs order answers of a few sentences alike at a hundredth of the work.

A row is the prompt, the ids as they were sampled and the end token that was drawn: encoding the text anew gives other
ids for one answer in fifty. A forced token is read and never trained, as the model never chose it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Literal, TypeAlias

from gsm8k_core.rollouts.group import row_of
from gsm8k_core.rollouts.record import Rollout
from gsm8k_core.scoring.verify import Mode
from gsm8k_core.types import Example

Chain: TypeAlias = tuple[str, ...]
# own-first: human rows only for problems without a kept answer of the model's own.
Mixed: TypeAlias = Literal["own", "own-first", "both"]


def pairs(rollout: Rollout) -> frozenset[tuple[int, int]]:
    """The neighbouring tokens that an answer holds."""
    return frozenset(pairwise(rollout.completion.tokens))


def distance(one: frozenset[tuple[int, int]], other: frozenset[tuple[int, int]]) -> float:
    """Jaccard's distance of two sets: 0 where they are the same, 1 where they share nothing."""
    either = len(one | other)
    return 1 - len(one & other) / either if either else 0.0


def choose(candidates: Sequence[Rollout], keep: int, known: Collection[Chain] = ()) -> list[Rollout]:
    """The answers to one problem that are kept, at most `keep`, in the order in which they are taken.

    None has a chain of `known` (the human answer's, where that is trained as well).
    """
    left = [each for each in candidates if each.chain not in known]
    held = {each.sample: pairs(each) for each in left}
    taken: list[Rollout] = []
    near: dict[int, float] = {}  # sample -> its distance from the nearest answer that is taken
    while left and len(taken) < keep:
        best = max(left, key=lambda each: near.get(each.sample, 0.0))  # the first of several
        taken.append(best)
        left = [each for each in left if each.chain != best.chain]
        for each in left:
            apart = distance(held[each.sample], held[best.sample])
            near[each.sample] = min(near.get(each.sample, 1.0), apart)
    return taken


def kept_of(
    answers: Iterable[Rollout],
    keep: int,
    mode: Mode,
    fits: Callable[[Rollout], bool],
    known: Mapping[str, Chain],
) -> dict[str, list[Rollout]]:
    """Problem -> its answers that are kept, of all that are verified and that `fits` lets pass.

    They are taken in the order of their samples, so that the order in which a batch gave them changes nothing.
    `known` holds the chain of a problem whose human answer is trained as well.
    """
    found: dict[str, list[Rollout]] = {}
    for each in sorted(answers, key=lambda one: one.sample):
        if each.verified(mode) and fits(each):
            found.setdefault(each.problem.id, []).append(each)
    return {name: choose(verified, keep, [known[name]] if name in known else []) for name, verified in found.items()}


def own_row(rollout: Rollout, prompt: Sequence[int]) -> Example:
    """The answer as a training row. Raises ValueError for one that did not end by itself: it teaches no end."""
    if rollout.completion.end_token is None:
        raise ValueError(f"{rollout.problem.id}, sample {rollout.sample}: it has no end token")
    return row_of(rollout, prompt)


def as_lines(kept: Mapping[str, Sequence[Rollout]]) -> bytes:
    """selected.jsonl."""
    rows = (each for found in kept.values() for each in found)
    values = (
        {"id": each.problem.id, "sample": each.sample, "chain": list(each.chain), "completion": each.text}
        for each in rows
    )
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def mix(
    how: Mixed, order: Sequence[str], own: Mapping[str, Sequence[Example]], human: Mapping[str, Example]
) -> list[Example]:
    """The training rows: problem by problem in `order`, the human row of one before its own ones."""
    rows: list[Example] = []
    for name in order:
        mine = own.get(name, ())
        wanted = how == "both" or (how == "own-first" and not mine)
        if wanted and name in human:
            rows.append(human[name])
        rows += mine
    return rows
