"""The draw on the device against the one in words: what is kept, the odds, and what damage does."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import scipy  # which brings its parts when they are asked for: the tests' collection need not

from gsm8k_core.scoring.sampling import draw, moved, uniforms, weights
from gsm8k_core.types import Sampling

ALMOST = 2e-6  # a share of a draw's odds: 64 roundings of float32 are 4e-6 at worst. Of 5,616 draws none differed
SETTINGS = [
    {"temperature": 1.0},
    {"temperature": 0.7},
    {"top_p": 0.95},
    {"top_p": 0.3},
    {"top_k": 50},
    {"top_k": 50, "top_p": 0.9},
    {"temperature": 1.4, "top_k": 100_000},
    {"temperature": 1e-38, "top_p": 0.9},
    {"temperature": 5e-324, "top_k": 3},
]


def sampling(**changes: Any) -> Sampling:
    return Sampling(8, 1, **{"temperature": 1.0, **changes})


def on_device(name: str, logits_BV: np.ndarray, how: Sampling, keys: list[int], positions: list[int]) -> list[int]:
    u_B3 = uniforms(how.seed, keys, positions)
    if name == "torch":
        import torch

        from backends.torch.sampling import draw as torch_draw

        return torch_draw(torch.from_numpy(logits_BV), how, torch.from_numpy(u_B3)).tolist()
    import mlx.core as mx

    from backends.mlx.sampling import draw as mlx_draw

    return mlx_draw(mx.array(logits_BV), how, mx.array(u_B3)).tolist()


def rows(num_rows: int, vocabulary: int, spread: float = 3.0) -> np.ndarray:
    logits_BV = spread * np.random.default_rng(vocabulary).normal(size=(num_rows, vocabulary)).astype(np.float32)
    logits_BV[:, :: vocabulary // 3] += 9  # a few likely ones, as after most texts
    return logits_BV


@pytest.mark.parametrize("changes", SETTINGS, ids=str)
@pytest.mark.parametrize("vocabulary", [50, 64, 5003, 49_152])
def test_each_draw_is_the_one_in_words(backend_name: str, vocabulary: int, changes: dict[str, Any]) -> None:
    """But where its u lies within rounding of a boundary: those are counted, and few."""
    logits_BV, how = rows(24, vocabulary), sampling(seed=2, **changes)
    keys, positions = list(range(24)), [7 * key for key in range(24)]
    found = on_device(backend_name, logits_BV, how, keys, positions)
    places = zip(logits_BV, keys, positions, found, strict=True)
    apart = [moved(row_V, how, key, at, token) for row_V, key, at, token in places]
    assert max(apart) < ALMOST
    assert sum(each > 0 for each in apart) <= 1


def test_control_another_place_is_another_draw(backend_name: str) -> None:
    logits_BV, how = rows(24, 5003), sampling()
    found = on_device(backend_name, logits_BV, how, [0] * 24, [1] * 24)
    assert sum(moved(row_V, how, 0, 2, token) > 1e-3 for row_V, token in zip(logits_BV, found, strict=True)) > 12


@pytest.mark.parametrize("changes", [{}, {"top_p": 0.9}, {"top_k": 20}], ids=str)
def test_20000_draws_have_the_odds_of_the_softmax(backend_name: str, changes: dict[str, Any]) -> None:
    """And the control: those at eight tenths of the temperature have not."""
    logits_V = np.random.default_rng(1).normal(0, 1.5, size=300).astype(np.float32)

    def p_value(how: Sampling) -> float:
        many = [
            on_device(backend_name, np.tile(logits_V, (2000, 1)), how, [n] * 2000, list(range(2000))) for n in range(10)
        ]
        counts = np.bincount(np.concatenate(many), minlength=300)
        odds = weights(logits_V, sampling(**changes))
        assert counts[odds == 0].sum() == 0 or how.temperature != 1
        seen = odds > 0
        return float(scipy.stats.chisquare(counts[seen], odds[seen] / odds.sum() * counts[seen].sum()).pvalue)

    assert p_value(sampling(**changes)) > 1e-3
    assert p_value(sampling(temperature=0.8, **changes)) < 1e-6


def test_logits_in_half_precision_are_drawn_from_in_float32(backend_name: str) -> None:
    """Ties, of which bfloat16 has many, are kept together."""
    logits_BV = np.round(rows(24, 5003) * 4) / 4  # exact in bfloat16
    how = sampling(top_p=0.8)
    if backend_name == "torch":
        import torch

        from backends.torch.sampling import draw as torch_draw

        u_B3 = torch.from_numpy(uniforms(0, range(24), [0] * 24))
        found = torch_draw(torch.from_numpy(logits_BV).bfloat16(), how, u_B3).tolist()
    else:
        import mlx.core as mx

        from backends.mlx.sampling import draw as mlx_draw

        u_B3 = mx.array(uniforms(0, range(24), [0] * 24))
        found = mlx_draw(mx.array(logits_BV).astype(mx.bfloat16), how, u_B3).tolist()
    assert found == [draw(row_V, how, key, 0) for key, row_V in enumerate(logits_BV)]


@pytest.mark.parametrize("changes", [{}, {"top_p": 0.9}, {"top_k": 20, "top_p": 0.5}], ids=str)
def test_the_way_of_a_gpu_draws_the_same(
    backend_name: str, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """All rows at once, and all weights sorted for top-p: here on a CPU that is told it is none."""
    logits_BV, how, keys = rows(24, 5003), sampling(**changes), list(range(24))
    right = on_device(backend_name, logits_BV, how, keys, keys)
    asked: list[bool] = []
    module = importlib.import_module(f"backends.{backend_name}.sampling")
    monkeypatch.setattr(module, "_on_cpu", lambda *tensor: bool(asked.append(True)))
    assert on_device(backend_name, logits_BV, how, keys, keys) == right
    assert asked
