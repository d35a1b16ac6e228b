"""Which answers a round asks for, in which order: waves over the problems, cut into blocks.

Wave 1 asks every problem once, in an order that the seed gives. Each later wave asks those that have fewer than
`keep` chains of equations so far, those that gave the most verified answers first: the hardest come last, so that the
clock, which may end a wave anywhere, takes from them first. (Which answers a wave has is never a matter of how long
they are.)

A block is what is decoded in one call. It is a pure function of the weights and its requests: a block that a kill cut
in two is asked for again as a whole, so that every answer has the neighbours that it would have had, and a run that
goes on writes the same texts to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gsm8k_core.scoring.sampling import noise_key


@dataclass(frozen=True, slots=True)
class Ask:
    """One answer that is wanted: to which problem, and which of all its samples over all rounds (from 0)."""

    id: str
    sample: int

    @property
    def key(self) -> int:
        """Of what is drawn: the same whatever else is asked beside it."""
        return noise_key(self.id, self.sample)


def shuffled(ids: Sequence[str], seed: int, number: int) -> list[str]:
    """The order in which round `number` (from 1) asks the problems."""
    order = np.random.default_rng([seed, number]).permutation(len(ids))
    return [ids[place] for place in order]


def wave(
    ordered: Sequence[str], number: int, chains: Mapping[str, int], verified: Mapping[str, int], keep: int
) -> list[str]:
    """The problems that wave `number` (from 1) asks, in order.

    `chains` counts the different chains of equations that a problem has, `verified` its verified answers; a problem
    that is not there has none.
    """
    if number == 1:
        return list(ordered)
    short = [name for name in ordered if chains.get(name, 0) < keep]
    return sorted(short, key=lambda name: -verified.get(name, 0))  # stable: of as many, in the round's order


def asks(names: Sequence[str], number: int, round_number: int, samples: int) -> list[Ask]:
    """The requests of a wave. Samples are counted on over the rounds, so that no two draw alike."""
    return [Ask(name, (round_number - 1) * samples + number - 1) for name in names]


def blocks(wanted: Sequence[Ask], size: int) -> Iterator[list[Ask]]:
    """The requests of a wave, `size` at a time."""
    return (list(wanted[at : at + size]) for at in range(0, len(wanted), size))
