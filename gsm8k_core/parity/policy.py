"""Rung 11 of the parity ladder: the gradient of an update of `--recipe grpo` whose answers older weights sampled.

Each of the two scores the rows itself, so its own log-probabilities are in its weights. The older ones are the
reference's, moved by as much as a few updates move them: some of the tokens are clipped, and some are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gsm8k_core.parity.bench import OF_RMS, Bench, Implementation, Measurement, settings, trained
from gsm8k_core.parity.rungs import UNCLIPPED, Gradient
from gsm8k_core.rollouts.objective import Objective
from gsm8k_core.rollouts.policy import row_of_target, weighted
from gsm8k_core.types import Batch, Update

if TYPE_CHECKING:
    from gsm8k_core.types import FloatArray

MOVED = 0.3  # nats, the standard deviation
FREE = Objective(low=1 - 1e-9, high=1e9)  # clips nothing
Scores = Sequence["FloatArray"]  # of the targets of each micro-batch


def policy(bench: Bench) -> Iterator[Measurement]:
    """Every tensor's gradient of one clipped update. Control: without the clip."""
    update = replace(bench.uneven_update, number=1)
    now = _scores(bench.reference, bench, update)
    rng = np.random.default_rng(0)
    then = [scores_N + rng.normal(0, MOVED, scores_N.shape).astype(np.float32) for scores_N in now]
    signs = {row: float(rng.choice([0.75, -0.25])) for row in update.rows}
    clipped, share = _weighed(update, now, then, signs, Objective())
    config = settings("full", max_grad_norm=UNCLIPPED)
    right = trained(bench.reference, bench, [clipped], config, Gradient(config), rate=0).found
    compare = Gradient(config, right)
    own = _scores(bench.candidate, bench, update)
    found, _ = _weighed(update, own, then, signs, Objective())
    error, name = trained(bench.candidate, bench, [found], config, compare.worst, rate=0).found
    wrong, _ = _weighed(update, own, then, signs, FREE)
    control, _ = trained(bench.candidate, bench, [wrong], config, compare.worst, rate=0).found
    yield Measurement("", OF_RMS, error, control, f"worst: {name}; {share:.0%} of the targets are clipped")


def _scores(one: Implementation, bench: Bench, update: Update) -> Scores:
    return one.ask(bench.folder, lambda model: [batch.at_targets(model.score(batch)) for batch in update.micro_batches])


def _weighed(
    update: Update, now: Scores, then: Scores, signs: dict[str, float], objective: Objective
) -> tuple[Update, float]:
    """The update with its weights, and the share of its targets that is clipped."""
    batches, clipped = list[Batch](), 0
    for batch, now_N, then_N in zip(update.micro_batches, now, then, strict=True):
        row_N = row_of_target(batch)
        advantages_N = np.array([signs[row] for row in batch.rows], np.float32)[row_N]
        found = objective.weigh(advantages_N, now_N, then_N)
        batches.append(weighted(batch, found.weights_N))
        clipped += found.num_clipped
    return replace(update, micro_batches=tuple(batches)), clipped / update.num_targets
