"""The words about what is not finite: which tensor comes first, which rows, and what may be written."""

from __future__ import annotations

import numpy as np
import pytest

from gsm8k_core.problems.batching import make_updates
from gsm8k_core.training.finite import LOGITS, Finite, check_weights, logits_not_finite, model_order, not_finite
from gsm8k_core.types import Batch, DivergedError, Example, Update

NAN = float("nan")
ROWS = [Example(f"train-{index}", tuple(range(4, 12 + index)), 4) for index in range(12)]


def update() -> Update:
    return next(make_updates(ROWS, update_size=12, num_epochs=1, seed=0, batch_size=6))


def test_the_order_is_the_models() -> None:
    names = ["lm_head.weight", "model.norm.weight", "model.layers.10.b", "model.layers.2.c", "model.layers.2.b"]
    assert model_order([*names, "model.embed_tokens.weight"]) == [
        "model.embed_tokens.weight",
        "model.layers.2.b",
        "model.layers.2.c",
        "model.layers.10.b",
        "model.norm.weight",
        "lm_head.weight",
    ]
    assert sorted(names)[1] == "model.layers.10.b"  # the control: by letters, layer 10 comes before layer 2


def found(weights: Finite, *parts: tuple[float, Finite]) -> DivergedError:
    asked: list[int] = []

    def recompute(place: int, batch: Batch) -> tuple[float, Finite]:
        asked.append(place)
        assert batch is update_.micro_batches[place]
        return parts[place]

    update_ = update()
    error = not_finite(update_, 2.5, NAN, weights, recompute)
    assert asked == list(range(len(asked)))
    return error


def test_a_bad_weight_comes_before_all_else() -> None:
    error = found({"model.layers.1.b": False, "model.layers.0.c": False, "model.layers.0.b": True}, (NAN, {}))
    assert (error.tensor, error.rows) == ("the weight model.layers.0.c (and of 1 more)", ())
    assert "earlier checkpoint" in str(error)


def test_a_gradient_is_named_with_the_rows_of_its_micro_batch() -> None:
    error = found({"a": True}, (1.0, {"a": True}), (1.0, {"a": True, "b": False}))
    rows = update().micro_batches[1].rows
    assert (error.update, error.tensor, error.rows) == (1, "the gradient of b", rows)
    assert str(error) == (
        "update 1: loss 2.5, gradient norm nan; the step was not applied; first not finite: the gradient of b "
        f"(rows {', '.join(rows[:4])} and 2 more); try a lower --learning-rate, or --dtype float32"
    )


def test_the_loss_comes_before_its_gradients() -> None:
    assert found({}, (NAN, {"a": False})).tensor == "the loss"


def test_what_is_finite_alone_is_said_so() -> None:
    error = found({}, (1.0, {"a": True}), (2.0, {"a": True}))
    assert error.tensor == "the sum over the micro-batches, each of which is finite alone"
    assert error.rows == update().rows


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.filterwarnings("error")
def test_one_bad_number_in_a_weight_is_seen(value: float) -> None:
    good = {"a": np.zeros((3, 4), np.float32), "empty": np.zeros(0, np.float32), "b": np.full(5, 3e38, np.float32)}
    check_weights(good)
    bad = {**good, "a": good["a"].copy()}
    bad["a"][2, 3] = value
    with pytest.raises(DivergedError, match="the weight a;"):
        check_weights(bad)


def test_logits_that_are_not_finite_are_explained() -> None:
    assert "token 0" in LOGITS
    assert "!!!!" in str(logits_not_finite())
    assert logits_not_finite().exit_code == 5
