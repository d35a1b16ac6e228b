"""Drawing tokens, in words: what is kept, the distribution, and one number a draw that depends only on its place."""

from __future__ import annotations

import numpy as np
import pytest
import scipy  # which brings its parts when they are asked for: the tests' collection need not

from gsm8k_core.scoring.sampling import FAN, draw, moved, noise_key, uniforms, weights
from gsm8k_core.types import Sampling

LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.1], dtype=np.float32))


def sampling(**changes: float) -> Sampling:
    return Sampling(8, 1, **{"temperature": 1.0, **changes})  # type: ignore[arg-type]


def kept(logits: np.ndarray, **changes: float) -> list[bool]:
    return (weights(logits, sampling(**changes)) > 0).tolist()


def test_top_k_keeps_the_k_most_likely() -> None:
    assert kept(LOGITS, top_k=2) == [True, True, False, False]


@pytest.mark.parametrize(("top_p", "count"), [(0.0, 1), (0.4, 1), (0.49, 1), (0.51, 2), (0.8, 3), (1.0, 4)])
def test_top_p_keeps_the_fewest_that_reach_p(top_p: float, count: int) -> None:
    assert sum(kept(LOGITS, top_p=top_p)) == count


def test_what_is_as_likely_as_the_last_one_kept_is_kept_too() -> None:
    logits = np.array([0.0, 1.0, 0.0, -1.0, 1.0], dtype=np.float32)
    assert kept(logits, top_k=1) == [False, True, False, False, True]
    assert kept(logits, top_k=3) == [True, True, True, False, True]
    assert kept(logits, top_p=0.1) == [False, True, False, False, True]
    assert kept(logits, top_k=2, top_p=0.9) == [False, True, False, False, True]  # p of what top-k left


def test_draws_follow_the_softmax_over_groups_blocks_and_tokens() -> None:
    """And the control: draws at another temperature do not."""
    rng = np.random.default_rng(0)
    logits = (2 * rng.normal(size=FAN**2 + 100)).astype(np.float32)

    def p_value(temperature: float) -> float:
        counts = np.bincount(
            [draw(logits, sampling(temperature=temperature), 5, at) for at in range(1500)], minlength=len(logits)
        )
        expected = weights(logits, sampling())
        folded = [each[: FAN**2].reshape(-1, 512).sum(axis=1) for each in (counts, expected)]
        return float(scipy.stats.chisquare(folded[0], folded[1] / folded[1].sum() * folded[0].sum()).pvalue)

    assert p_value(1.0) > 1e-3
    assert p_value(0.5) < 1e-9


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


def test_a_number_is_of_seed_key_and_position_only_and_frozen() -> None:
    together = uniforms(3, [7, 2**63, 9], [0, 1, 2])
    assert together.dtype == np.float32
    assert together.tolist() == [uniforms(3, [key], [at])[0].tolist() for key, at in ((7, 0), (2**63, 1), (9, 2))]
    # Frozen: records of one evaluation may come from two versions.
    assert uniforms(0, [noise_key("test-0", 0)], [5])[0].tolist() == FROZEN


FROZEN = [0.17100262641906738, 0.8877170085906982, 0.2812306880950928]


def test_numbers_are_uniform_and_their_neighbours_tell_nothing() -> None:
    """Over seeds, keys and positions that differ by one, as they do; and between the three of one draw."""
    size = 40
    grid = np.stack([uniforms(seed, [key] * size, range(size)) for seed in range(size) for key in range(size)])
    cube = grid.reshape(size, size, size, 3).astype(np.float64)
    assert 0 < cube.min() < cube.max() < 1
    assert scipy.stats.kstest(cube.ravel(), "uniform").pvalue > 1e-3
    neighbours = [np.roll(cube, 1, axis=axis) for axis in range(4)]
    assert [scipy.stats.pearsonr(cube.ravel(), each.ravel()).pvalue > 1e-3 for each in neighbours] == [True] * 4
    pairs = np.histogram2d(cube.ravel(), neighbours[2].ravel(), bins=20, range=[[0, 1]] * 2)[0]
    assert scipy.stats.chisquare(pairs.ravel()).pvalue > 1e-3
    # The control: numbers that grow with the position are seen.
    slanted = cube + np.linspace(0, 0.05, size)[None, None, :, None]
    assert scipy.stats.kstest(slanted.ravel() % 1.05, "uniform").pvalue < 1e-9


def test_a_key_is_of_problem_and_sample_and_frozen() -> None:
    assert noise_key("test-0", 0) == 0x4F5D5832DAF53CA1  # frozen: records of one evaluation may come from two versions
    assert len({noise_key(f"test-{n}", sample) for n in range(200) for sample in range(8)}) == 1600
    assert noise_key("test-1", 11) != noise_key("test-11", 1)


def test_a_u_moves_by_nothing_to_its_own_token_and_to_others_by_their_distance() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.1], dtype=np.float32))
    (u,) = uniforms(0, [1], [2])[:, 2].tolist()
    own = draw(logits, sampling(), 1, 2)
    found = [moved(logits, sampling(), 1, 2, token) for token in range(4)]
    bounds = [0.0, 0.5, 0.75, 0.9, 1.0]
    wanted = [max(bounds[t] - u, u - bounds[t + 1], 0.0) for t in range(4)]
    assert found == pytest.approx(wanted, abs=1e-6)
    assert found[own] == 0
