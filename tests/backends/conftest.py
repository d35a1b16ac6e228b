"""Tiny models on disk and small batches, the same for both backends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from gsm8k_core.types import Example, Orders, UpdateStats
from tests import tiny


@pytest.fixture(scope="session", autouse=True)
def imported(frameworks: None) -> None:
    """Each test here opens a backend."""


@pytest.fixture(scope="session", params=list(tiny.KINDS))
def tiny_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2 (RoPE base 1e4) and a tiny Llama (1e5)."""
    return tiny.make(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="session")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("models") / "qwen2", "qwen2")


@pytest.fixture
def examples() -> list[Example]:
    """22 rows of uneven length: token ids 4..39, the end token 1 in the prompt and last."""
    return tiny.make_rows()


class FakePilot:
    """A constant rate; stops after `stop_after` updates; keeps what it was told."""

    def __init__(self, rate: float = 1e-3, stop_after: int | None = None) -> None:
        self.stats: list[UpdateStats] = []
        self._rate, self._stop_after = rate, stop_after

    def rate(self, update: int) -> float:
        return self._rate

    def after(self, stats: UpdateStats, live: object) -> Orders:
        self.stats.append(stats)
        return Orders("enough" if stats.update == self._stop_after else None)


@pytest.fixture
def pilot() -> FakePilot:
    return FakePilot()


def force(written: Sequence[int]) -> Sequence[int]:
    """Behind every fifth kind of token three others, and behind the last of these two more; at 9 tokens one."""
    if written[-1] == 12:
        return (13, 14)
    if len(written) == 9:
        return (8,)
    return (8, 9, 12) if written[-1] % 5 == 0 else ()
