"""Memory that ran out is one error and one sentence, whichever framework says it in whichever way."""

from __future__ import annotations

import pytest

from gsm8k_core.training.memory import gflops, memory_error
from gsm8k_core.types import OutOfMemoryError

WORDS = ("out of memory", "allocate")


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (RuntimeError("CUDA Out Of Memory. Tried 2 GiB\nof 1 GiB"), "(CUDA Out Of Memory. Tried 2 GiB)"),
        (RuntimeError("[malloc] Unable to allocate 9 bytes."), "([malloc] Unable to allocate 9 bytes.)"),
        (MemoryError(), "(MemoryError)"),  # whatever it says
    ],
)
def test_each_way_to_say_it_becomes_one(error: Exception, detail: str) -> None:
    with pytest.raises(OutOfMemoryError) as caught, memory_error("jax", WORDS):
        raise error
    advice = "try a smaller --micro-batch-tokens, --max-length or --eval-batch-size"
    assert str(caught.value) == f"jax ran out of memory; {advice} {detail}"
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), ValueError("out of memory")])
def test_another_error_stays_what_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, memory_error("jax", WORDS):
        raise error
    assert caught.value is error


def test_the_rate_of_a_product_is_the_best_of_its_rounds() -> None:
    called: list[int] = []
    assert gflops(lambda: called.append(1), 64, rounds=3) > 0
    assert len(called) == 3
