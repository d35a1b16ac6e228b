"""An update that is not finite: not applied, its tensor and its rows named; and nothing bad is ever saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import backends
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.problems.batching import make_updates, pad
from gsm8k_core.types import Batch, DataError, DivergedError, Example, TrainState, Update, UsageError
from tests import tiny
from tests.backends.conftest import FakePilot

METHODS = {"full": TrainConfig(), "lora": TrainConfig(method="lora", lora_rank=4, lora_alpha=8, lora_dropout=0.1)}
UP = "model.layers.1.mlp.up_proj.weight"


def open_it(name: str, folder: Path) -> Any:
    return backends.open(name, folder, "cpu", "float32")


def updates_of(examples: list[Example]) -> list[Update]:
    return list(make_updates(examples, batch_size=4, update_size=8, num_epochs=1, seed=0))


def weighted(batch: Batch, value: float) -> Batch:
    """One target of the micro-batch counts `value` times."""
    weights = np.ones(batch.tokens.shape, np.float32)
    row, column = np.argwhere(batch.labels[:, 1:] >= 0)[3]
    weights[row, column + 1] = value
    return replace(batch, weights=weights)


def poisoned(update: Update, place: int, value: float) -> Update:
    batches = list(update.micro_batches)
    batches[place] = weighted(batches[place], value)
    return replace(update, micro_batches=tuple(batches))


def same(one: TrainState, other: TrainState) -> bool:
    parts = ("parameters", "first_moments", "second_moments")
    return one.step == other.step and all(
        np.array_equal(getattr(one, part)[name], getattr(other, part)[name])
        for part in parts
        for name in one.parameters
    )


def copied(state: TrainState) -> TrainState:
    """A state's arrays are valid until the next update."""
    kept = (
        {name: array.copy() for name, array in part.items()}
        for part in (state.parameters, state.first_moments, state.second_moments)
    )
    return TrainState(state.step, *kept)


def failing(backend: Any, updates: list[Update], config: TrainConfig, pilot: FakePilot | None = None) -> DivergedError:
    with pytest.raises(DivergedError) as caught:
        backend.train(updates, config, pilot or FakePilot())
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_second_update_is_not_applied_and_its_rows_are_named(
    backend_name: str, qwen2: Path, examples: list[Example], method: str, value: float
) -> None:
    first, second, third = updates_of(examples)
    backend, pilot = open_it(backend_name, qwen2), FakePilot()
    error = failing(backend, [first, poisoned(second, 1, value), third], METHODS[method], pilot)
    assert len(pilot.stats) == 1
    assert (error.update, error.tensor) == (2, "the loss")
    assert error.rows == second.micro_batches[1].rows
    assert set(error.rows) < set(second.rows)
    assert str(error).startswith("update 2: loss ")
    assert "the step was not applied; first not finite: the loss (rows " in str(error)
    alone = open_it(backend_name, qwen2)
    alone.train([first], METHODS[method], FakePilot())
    assert same(backend.state(), alone.state())
    # The control: the poison is what stopped it, and another update changes the state.
    alone.train([second], METHODS[method], FakePilot(), resume=copied(alone.state()))
    assert not same(backend.state(), alone.state())


def test_after_it_the_run_goes_on_from_the_state(backend_name: str, qwen2: Path, examples: list[Example]) -> None:
    first, second, _ = updates_of(examples)
    broken, whole = open_it(backend_name, qwen2), open_it(backend_name, qwen2)
    failing(broken, [first, poisoned(second, 0, np.nan)], METHODS["full"])
    broken.train([second], METHODS["full"], FakePilot(), resume=copied(broken.state()))
    whole.train([first, second], METHODS["full"], FakePilot())
    assert same(broken.state(), whole.state())


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_is_named_where_the_loss_is_finite(
    backend_name: str, qwen2: Path, examples: list[Example], method: str
) -> None:
    """One target counts so much that the squares of its gradient are too large for float32, though the loss is not."""
    first = updates_of(examples)[0]
    error = failing(open_it(backend_name, qwen2), [poisoned(first, 1, 1e30)], METHODS[method])
    assert (error.update, error.rows) == (1, first.micro_batches[1].rows)
    assert error.tensor is not None
    stem = "model.embed_tokens.weight" if method == "full" else "base_model.model.model.layers.0."
    assert error.tensor.startswith(f"the gradient of {stem}")
    assert "gradient norm inf" in str(error)
    open_it(backend_name, qwen2).train([poisoned(first, 1, 10.0)], METHODS[method], FakePilot())  # the control


def test_a_weight_of_the_folder_is_named(backend_name: str, tmp_path: Path, examples: list[Example]) -> None:
    folder = tiny.make(tmp_path / "nan")
    tensors = load_file(folder / "model.safetensors")
    tensors[UP][3, 4] = np.nan
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    for config in METHODS.values():
        error = failing(open_it(backend_name, folder), updates_of(examples), config)
        assert (error.update, error.tensor, error.rows) == (1, f"the weight {UP}", ())


def without_a_floor() -> TrainConfig:
    """AdamW's epsilon is 0 in float32: what has no gradient moves by 0 / 0. The settings refuse it."""
    with pytest.raises(UsageError, match="--adam-epsilon"):
        TrainConfig(adam_epsilon=1e-50)
    return TrainConfig().model_copy(update={"adam_epsilon": 1e-50})


@pytest.fixture
def untied(tmp_path: Path) -> Path:
    """A model with rows of the embedding that no update reads."""
    folder = tiny.make(tmp_path / "untied", tie_word_embeddings=False)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"][::-1].copy()
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


def test_a_weight_that_a_step_spoiled_stops_the_next_update(backend_name: str, untied: Path) -> None:
    """Loss and gradient stay finite: no row reads the weight. Only the check of the weights sees it."""
    # Tokens 4 to 19, each with a gradient, and no padding: the spoiled rows of the embedding are all the others.
    tokens = [*range(4, 20), *range(4, 12)]
    rows = [Example(f"row-{turn}", (*tokens[turn:16], *tokens[:turn], *tokens[16:]), 4) for turn in range(4)]
    updates = [Update(number, 0, batch.rows, (batch,)) for number, batch in ((1, pad(rows)), (2, pad(rows)))]
    pilot = FakePilot()
    error = failing(open_it(backend_name, untied), updates, without_a_floor(), pilot)
    assert (error.update, error.tensor, len(pilot.stats)) == (2, "the weight model.embed_tokens.weight", 1)
    assert "nan" not in str(error)
    assert "inf" not in str(error).replace("infinity", "")


@pytest.mark.parametrize("what", ["save", "state"])
def test_weights_that_are_not_finite_are_not_saved(
    backend_name: str, untied: Path, examples: list[Example], tmp_path: Path, what: str
) -> None:
    act: Callable[[Any], object] = (lambda b: b.save(tmp_path / "out")) if what == "save" else (lambda b: b.state())
    backend = open_it(backend_name, untied)
    backend.train(updates_of(examples)[:1], without_a_floor(), FakePilot())
    with pytest.raises(DivergedError, match=r"nothing was saved; first not finite: the weight model\.embed_tokens"):
        act(backend)
    assert not (tmp_path / "out").exists()
    backend = open_it(backend_name, untied)  # the control
    backend.train(updates_of(examples)[:1], TrainConfig(), FakePilot())
    act(backend)


@pytest.mark.parametrize("part", ["parameters", "first_moments", "second_moments"])
def test_a_state_that_is_not_finite_is_not_gone_on_from(
    backend_name: str, qwen2: Path, examples: list[Example], part: str
) -> None:
    backend = open_it(backend_name, qwen2)
    backend.train(updates_of(examples)[:1], TrainConfig(), FakePilot())
    state = copied(backend.state())
    getattr(state, part)[UP][0, 0] = np.inf
    with pytest.raises(DataError, match=f"{UP} is not finite; take an earlier one"):
        backend.train(updates_of(examples)[1:], TrainConfig(), FakePilot(), resume=state)
