"""The one sentence on equal texts: what is equal, what is a near tie, and what is neither."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from gsm8k_core.parity.texts import EPS, AnswerPair, closed, compare, eps_of, first_difference
from gsm8k_core.scoring.sampling import uniforms
from gsm8k_core.types import Batch, Completion, Sampling

END = 1
CHANCES = {5: -1.0, 6: -1.00005, 7: -3.0, END: -1.2}


class Reference:
    """Log-probabilities that depend on the token alone."""

    def score(self, batch: Batch) -> np.ndarray:
        return np.array(
            [[CHANCES.get(int(token), -9.0) for token in row[1:]] for row in batch.tokens], dtype=np.float32
        )

    def odds(self, tokens: Sequence[int]) -> np.ndarray:
        return np.array([CHANCES.get(token, -9.0) for token in range(10)], dtype=np.float32)


def answer(reference: Completion, other: Completion) -> AnswerPair:
    return AnswerPair("test-0", (2, 3), 11, reference, other)


def found(reference: tuple[int, ...], other: tuple[int, ...], **changes: object) -> dict[str, object]:
    sampling = Sampling(8, 1, **changes)  # type: ignore[arg-type]
    pairs = [answer(Completion(reference, "stop"), Completion(other, "stop"))]
    return compare(pairs, Reference(), sampling, (END, 0), "float32")  # type: ignore[arg-type]


def test_equal_tokens_are_equal() -> None:
    result = found((5, 6), (5, 6))
    assert (result["problems"], result["equal"], result["places"]) == (1, 1, [])


def test_a_near_tie_is_within_eps_and_its_place_is_listed() -> None:
    result = found((7, 5, 7), (7, 6, 5))
    assert (result["equal"], result["within_eps"], result["beyond_eps"]) == (0, 1, 0)
    (place,) = result["places"]  # type: ignore[misc]
    assert (place["id"], place["position"], place["within"]) == ("test-0", 1, True)
    assert place["gap"] == pytest.approx(5e-5, rel=0.01)


def test_another_token_is_beyond_eps() -> None:
    result = found((7, 5), (7, 7))
    assert (result["within_eps"], result["beyond_eps"]) == (0, 1)


def test_an_end_is_a_token_too_the_likeliest_of_them() -> None:
    result = found((7,), (7, 5))
    (place,) = result["places"]  # type: ignore[misc]
    assert (place["position"], place["gap"]) == (1, pytest.approx(0.2, rel=1e-5))
    assert first_difference(closed(Completion((7,), "length")), closed(Completion((7,), "stop"))) is None


def test_a_drawn_token_is_weighed_by_how_far_its_u_lies_from_the_other() -> None:
    (place,) = found((7, 5), (7, 7), temperature=2.0, seed=4)["places"]  # type: ignore[misc]
    odds_V = Reference().odds(())
    weights_V = np.exp(odds_V.astype(np.float64) / 2)
    bounds = np.cumsum(weights_V) / weights_V.sum()
    u = uniforms(4, [11], [1])[0, 2]
    assert not bounds[6] <= u < bounds[7]
    assert place["gap"] == pytest.approx(max(bounds[6] - u, u - bounds[7]))
    assert eps_of("float32", Sampling(8, 1, temperature=2.0)) == pytest.approx(EPS["float32"] / 8)
