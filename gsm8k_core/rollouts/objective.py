"""The objective of `--recipe grpo`, as a weight for each token that was drawn; a backend's own loss does the rest.

A backend minimises minus the sum of weight x log p, once over the number of targets (gsm8k_core/backend.py). A weight
is a number, so what its gradient is to be has to be in it:

    advantage     reward - mean reward of the group; no standard deviation (Liu et al. 2025, arXiv 2503.20783)
    clip          min(r A, clip(r, 1 - low, 1 + high) A) of the ratio r = p now / p when sampled has the gradient
                  r A grad log p where r is not clipped, and none where it is (Schulman et al. 2017, arXiv 1707.06347):
                  a token's weight is A x r, or 0 where r > 1 + high and A > 0, or r < 1 - low and A < 0
    kl            beta x (q/p - log(q/p) - 1), q of the first weights and p now (Schulman's k3), has the gradient
                  beta x (1 - q/p) grad log p: beta x (q/p - 1) is added to the weight
    normaliser    what the sum is divided by, as a factor for each answer of T targets, of G answers in the update
                  dapo     all their targets, sum T       (Yu et al. 2025, arXiv 2503.14476)
                  grpo     each answer's own, G x T        (Shao et al. 2024, arXiv 2402.03300)
                  dr_grpo  a constant, G x the longest answer that may be drawn (arXiv 2503.20783)

Axes: G answers, N targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from gsm8k_core.types import FloatArray

LossName: TypeAlias = Literal["dapo", "dr_grpo", "grpo"]
FARTHEST = 20.0  # nats between two log-probabilities of a token: a ratio beyond that is no number to train with


def advantages(rewards: Sequence[float]) -> tuple[float, ...]:
    """Of a group's answers: reward - mean. All 0 where they are alike."""
    mean = sum(rewards) / len(rewards)
    return tuple(reward - mean for reward in rewards)


@dataclass(frozen=True, slots=True)
class Weighed:
    """The weights of the targets of a micro-batch before the normaliser, and how many were clipped."""

    weights_N: FloatArray
    num_clipped: int
    kl: float  # summed over the targets, nats


@dataclass(frozen=True, slots=True)
class Objective:
    """What is maximised. `longest`: tokens of an answer, at most, its end token included."""

    loss: LossName = "dapo"
    low: float = 0.2
    high: float = 0.28
    kl: float = 0.0
    longest: int = 320

    def weigh(
        self,
        advantages_N: FloatArray,
        now_N: FloatArray | None = None,
        then_N: FloatArray | None = None,
        first_N: FloatArray | None = None,
    ) -> Weighed:
        """The weight of each target: `now_N` and the others are log-probabilities in nats.

        Without `then_N` the ratio is 1: the weights that are trained are those that sampled. Without `first_N`
        nothing is said of the first weights.
        """
        weights_N, num_clipped, kl = advantages_N.astype(np.float64), 0, 0.0
        if then_N is not None and now_N is not None:
            ratio_N = _ratio(now_N, then_N)
            out_N = np.where(advantages_N > 0, ratio_N > 1 + self.high, ratio_N < 1 - self.low) & (advantages_N != 0)
            weights_N, num_clipped = np.where(out_N, 0.0, weights_N * ratio_N), int(out_N.sum())
        if first_N is not None and now_N is not None:
            over_N = _ratio(first_N, now_N)
            weights_N = weights_N + self.kl * (over_N - 1)
            kl = float((over_N - np.log(over_N) - 1).sum())
        return Weighed(weights_N.astype(np.float32), num_clipped, kl)

    def factors(self, targets_G: Sequence[int], num_targets: int) -> tuple[float, ...]:
        """What each answer's weights are multiplied by, where a backend divides by `num_targets`.

        `targets_G`: of all answers of the update, also of those that are not trained.
        """
        answers = len(targets_G)
        if self.loss == "grpo":
            return tuple(num_targets / (answers * max(count, 1)) for count in targets_G)
        divisor = answers * self.longest if self.loss == "dr_grpo" else sum(targets_G)
        return (num_targets / max(divisor, 1),) * answers


def _ratio(above_N: FloatArray, below_N: FloatArray) -> npt.NDArray[np.float64]:
    apart_N = above_N.astype(np.float64) - below_N
    found: npt.NDArray[np.float64] = np.exp(np.clip(apart_N, -FARTHEST, FARTHEST))
    return found
