"""A run of `--recipe grpo` in curves: what its updates showed. Its loss is no sign of progress, and is not drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol, TypeVar


class Drawn(Protocol):
    """A curves.Curve, of which this needs the values."""

    @property
    def values(self) -> list[float]: ...


Line = TypeVar("Line", bound=Drawn)

REWARD = "reward"  # the number, and the curve, that such a run has and no other
# A number of an update's event -> the curve's name.
CURVES: Mapping[str, str] = {
    REWARD: REWARD,
    "solve_rate": "solve rate",
    "mixed": "mixed groups",
    "length": "answer tokens",
    "cut": "cut answers",
    "entropy": "entropy",
    "clipped": "clipped tokens",
    "sampling_speed": "sampled tokens/s",
    "training_speed": "trained tokens/s",
    "kl": "kl",
}
SHARES = frozenset({REWARD, "solve rate", "mixed groups", "cut answers", "clipped tokens"})
SKETCHED = {REWARD: 11, "solve rate": 6, "entropy": 6, "answer tokens": 6}  # curve -> rows in the terminal
SPEED_TITLE = "Tokens per second, sampled and trained"
BELOW = ("entropy", "answer tokens")  # of the picture's reward


def without_loss(curves: Mapping[str, Line]) -> dict[str, Line]:
    """The curves as they are drawn: a policy's loss is left out."""
    return {name: curve for name, curve in curves.items() if name != "loss" or REWARD not in curves}


def drawn(curves: Mapping[str, Line]) -> list[tuple[str, bool, list[tuple[str, str, Line]]]]:
    """The page's charts: each a title, whether it shows shares, and its lines of label, kind and curve."""
    found = []
    for title, names in (
        ("Reward, and problems solved by one of the answers", {REWARD: "raw", "solve rate": "dev"}),
        ("Groups whose answers differ, and answers that were cut", {"mixed groups": "raw", "cut answers": "dev"}),
        ("Entropy (nats a token, estimated)", {"entropy": "raw"}),
        ("Tokens of an answer", {"answer tokens": "raw"}),
        (SPEED_TITLE, {"sampled tokens/s": "raw", "trained tokens/s": "dev"}),
    ):
        lines = [(name, kind, curves[name]) for name, kind in names.items() if name in curves]
        lines = [line for line in lines if any(map(math.isfinite, line[2].values))]
        if lines and REWARD in curves:
            found.append((title, lines[0][0] in SHARES, lines))
    return found
