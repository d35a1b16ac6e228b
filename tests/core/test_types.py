"""The mask of the loss, on batches that can be read: which labels are targets, what predicts each, what it weighs."""

from __future__ import annotations

import numpy as np

from gsm8k_core.types import IGNORE_INDEX, Batch, Targets, Update

NO = IGNORE_INDEX
# Two rows of four tokens. The first has two targets behind a prompt of two, the second one target and padding.
TOKENS = np.array([[7, 8, 5, 1], [9, 6, 0, 0]], np.int32)
LABELS = np.array([[NO, NO, 5, 1], [NO, 6, NO, NO]], np.int32)


def dtypes(targets: Targets) -> list[str]:
    return [str(part.dtype) for part in (targets.positions_N, targets.targets_N, targets.weights_N)]


def test_a_target_is_predicted_by_the_position_before_it() -> None:
    targets = Batch(TOKENS, LABELS).targets()
    assert targets.positions_N.tolist() == [1, 2, 4]  # of the 2 x 4 positions, row by row
    assert targets.targets_N.tolist() == [5, 1, 6]
    assert targets.weights_N.tolist() == [1, 1, 1]
    assert dtypes(targets) == ["int32", "int32", "float32"]


def test_a_weight_is_its_target_s() -> None:
    weights = np.array([[9, 9, 0.5, 2], [9, 3, 9, 9]], np.float32)
    found = Batch(TOKENS, LABELS, weights).targets().weights_N
    assert found.tolist() == [0.5, 2, 3]
    assert found.dtype == np.float32


def test_the_first_token_of_a_row_is_no_target() -> None:
    labels = LABELS.copy()
    labels[:, 0] = TOKENS[:, 0]
    assert Batch(TOKENS, labels).targets().targets_N.tolist() == [5, 1, 6]


def test_a_whole_row_and_the_last_position_are_targets_as_well() -> None:
    targets = Batch(TOKENS, TOKENS).targets()
    assert targets.positions_N.tolist() == [0, 1, 2, 4, 5, 6]
    assert targets.targets_N.tolist() == [8, 5, 1, 6, 0, 0]


def test_where_everything_is_masked_there_are_none() -> None:
    batch = Batch(TOKENS, np.full_like(LABELS, NO))
    targets = batch.targets()
    assert [part.shape for part in (targets.positions_N, targets.targets_N, targets.weights_N)] == [(0,)] * 3
    assert dtypes(targets) == ["int32", "int32", "float32"]
    assert batch.num_targets == Update(1, 0, (), (batch,)).num_targets == 0


def test_targets_are_counted_over_an_update() -> None:
    batch = Batch(TOKENS, LABELS)
    assert batch.num_targets == 3
    assert Update(1, 0, (), (batch, Batch(TOKENS, TOKENS))).num_targets == 9


def test_of_scores_those_of_the_targets_are_picked() -> None:
    scores = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], np.float32)  # of tokens 1, 2 and 3 of each row
    assert Batch(TOKENS, LABELS).at_targets(scores).tolist() == scores[[0, 0, 1], [1, 2, 0]].tolist()
