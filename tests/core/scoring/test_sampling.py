"""Drawing tokens: what is kept, the distribution, and noise that depends only on its place."""

from __future__ import annotations

import numpy as np
import pytest

from gsm8k_core.scoring.sampling import draw, draw_rows, kept, noise, noise_key
from gsm8k_core.types import Sampling

LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.1], dtype=np.float32))


def sampling(**changes: float) -> Sampling:
    return Sampling(8, 1, **{"temperature": 1.0, **changes})  # type: ignore[arg-type]


def test_top_k_keeps_the_k_most_likely() -> None:
    assert np.isfinite(kept(LOGITS, sampling(top_k=2))).tolist() == [True, True, False, False]


@pytest.mark.parametrize(("top_p", "count"), [(0.4, 1), (0.5, 1), (0.51, 2), (0.8, 3), (1.0, 4)])
def test_top_p_keeps_the_fewest_that_reach_p(top_p: float, count: int) -> None:
    assert np.isfinite(kept(LOGITS, sampling(top_p=top_p))).sum() == count


def test_draws_follow_the_softmax() -> None:
    counts = np.bincount([draw(LOGITS, sampling(), 0, position) for position in range(4000)], minlength=4) / 4000
    assert np.abs(counts - np.exp(LOGITS)).max() < 0.03  # four standard errors


def test_a_low_temperature_is_nearly_greedy_and_a_high_one_is_not() -> None:
    cold = [draw(LOGITS, sampling(temperature=0.05), 0, position) for position in range(200)]
    hot = [draw(LOGITS, sampling(temperature=5.0), 0, position) for position in range(200)]
    assert cold.count(0) == 200
    assert hot.count(0) < 100


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("temperature", [1e-3, 1e-38, 1e-45, 5e-324])
@pytest.mark.parametrize("more", [{}, {"top_p": 0.9}, {"top_k": 2}])
def test_a_temperature_of_next_to_nothing_draws_the_likeliest(temperature: float, more: dict[str, float]) -> None:
    logits = np.array([3.0, 18.0, 20.0, -7.0], dtype=np.float32)
    drawn = [draw(logits, sampling(temperature=temperature, **more), 0, place) for place in range(20)]
    assert drawn == [2] * 20


def test_noise_depends_on_seed_key_and_position_only() -> None:
    rows = np.stack([LOGITS] * 3)
    together = draw_rows(rows, sampling(), [7, 8, 9], [0, 0, 0])
    assert together == [draw(LOGITS, sampling(), key, 0) for key in (7, 8, 9)]
    many = [
        tuple(draw(LOGITS, sampling(seed=seed), key, place) for place in range(20)) for seed in (0, 1) for key in (0, 1)
    ]
    assert len(set(many)) == 4


def test_a_key_is_of_problem_and_sample_and_frozen() -> None:
    assert noise_key("test-0", 0) == 0x4F5D5832DAF53CA1  # frozen: records of one evaluation may come from two versions
    assert len({noise_key(f"test-{n}", sample) for n in range(200) for sample in range(8)}) == 1600
    assert noise_key("test-1", 11) != noise_key("test-11", 1)


def test_the_noise_of_fewer_tokens_is_the_start_of_that_of_more() -> None:
    place = (sampling(seed=3), noise_key("test-0", 0), 5)
    assert noise(*place, 10).tolist() == noise(*place, 1000)[:10].tolist()
