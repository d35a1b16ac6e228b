"""GRPO on both backends: a reward that a tiny model can earn rises, with the sign turned it falls, and nothing leaks.

The reward of the toy is one of six words in the answer: a model that knows nothing says one in two answers of five.
"""

from __future__ import annotations

import gc
import importlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import backends
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.problems.batching import make_updates, pad
from gsm8k_core.rollouts import objective
from gsm8k_core.rollouts import policy as policy_of
from gsm8k_core.rollouts.objective import Objective
from gsm8k_core.rollouts.policy import Policy, PolicySettings
from gsm8k_core.rollouts.record import Rollout
from gsm8k_core.rollouts.wave import Ask
from gsm8k_core.types import Completion, Example, OnToken, Orders, Problem, Sampling, UpdateStats
from tests import tiny
from tests.backends.conftest import FakePilot

WORDS, LONGEST, UPDATES = frozenset(range(18, 24)), 4, 40
PROBLEMS = {name: Problem(name, "", "1 + 1 = 2\n#### 2", "2") for name in (f"train-{number}" for number in range(40))}
PROMPTS = {name: (2, 10 + number % 20, 5, 6) for number, name in enumerate(PROBLEMS)}
SETTINGS = PolicySettings(4, 8, 1, "punish", Objective(longest=LONGEST), 1024, 0)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few groups are enough, and nothing is compiled: nearly each update has another number of targets."""
    monkeypatch.setattr(policy_of, "ENOUGH_MIXED", 2)
    if backends.installed("mlx"):
        monkeypatch.setattr(importlib.import_module("backends.mlx.train"), "MOST_TRACES", 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer: what is looked at is the stream."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    return tiny.make(tmp_path_factory.mktemp("policy") / "qwen2", "qwen2", **sizes)


def says_it(answer: Rollout) -> float:
    return float(not WORDS.isdisjoint(answer.completion.tokens))


def make(backend: Any, settings: PolicySettings = SETTINGS, **more: Any) -> Policy:
    sampling = Sampling(LONGEST, 64, temperature=1.0, seed=settings.seed)

    def answer(block: Sequence[Ask], on_token: OnToken) -> list[Completion]:
        found = dict(
            backend.generate([PROMPTS[ask.id] for ask in block], sampling, on_token, [ask.key for ask in block])
        )
        return [found[place] for place in range(len(block))]

    return Policy(settings, PROBLEMS, PROMPTS, answer, backend.score, lambda tokens: "", says_it, **more)


def opened(name: str, folder: Path) -> Any:
    return backends.open(name, folder, "cpu", "float32")


def rewards(name: str, folder: Path) -> list[float]:
    """The mean reward of each update's first problems."""
    backend = opened(name, folder)
    policy = make(backend)
    backend.train(policy.updates(UPDATES), TrainConfig(), FakePilot(rate=8e-4))
    return [each.reward for each in policy.history]


def z_of(found: Sequence[float], answers: int) -> float:
    """How far the last quarter's share is above the first quarter's, in standard errors of two independent shares."""
    quarter = len(found) // 4
    first, last = sum(found[:quarter]) / quarter, sum(found[-quarter:]) / quarter
    both, count = (first + last) / 2, quarter * answers
    return (last - first) / math.sqrt(max(both * (1 - both), 1e-9) * 2 / count)


P_01 = 2.58  # standard errors, both sides


def test_the_reward_rises(backend_name: str, model: Path) -> None:
    found = rewards(backend_name, model)
    assert z_of(found, 4 * 8) > P_01
    assert sum(found[-10:]) > 1.5 * sum(found[:10])


def test_with_the_sign_turned_it_falls(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weigh = Objective.weigh

    def turned(self: Objective, *given: Any) -> objective.Weighed:
        found = weigh(self, *given)
        return replace(found, weights_N=-found.weights_N)

    monkeypatch.setattr(Objective, "weigh", turned)
    name = next(filter(backends.installed, backends.PROVIDERS))  # the sign is core's
    assert z_of(rewards(name, model), 4 * 8) < -P_01


# --- the first weights --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_with_its_adapter_switched_off_a_model_scores_as_before_and_trains_on(
    backend_name: str, model: Path, method: Any, examples: list[Example]
) -> None:
    batch = pad(examples[:4])
    before = opened(backend_name, model).score(batch)
    updates = list(make_updates(examples, batch_size=4, update_size=8, num_epochs=2, seed=0))
    config = TrainConfig(method=method, lora_rank=4)
    backend, found = opened(backend_name, model), list[Any]()

    class Looking(FakePilot):
        def after(self, stats: UpdateStats, live: Any) -> Orders:
            found.append((live.score_first(batch), live.score(batch)))
            return super().after(stats, live)

    backend.train(updates, config, Looking(rate=1e-2))
    plain = opened(backend_name, model)
    plain.train(updates, config, FakePilot(rate=1e-2))
    for first, _ in found:
        assert np.abs(first - before).max() < 1e-5
    assert np.abs(found[-1][1] - before).max() > 0.1
    assert np.array_equal(backend.score(batch), plain.score(batch))  # to look changed nothing


def test_the_first_weights_of_a_whole_model_are_its_own(
    backend_name: str, model: Path, examples: list[Example]
) -> None:
    backend, batch = opened(backend_name, model), pad(examples[:4])
    assert np.array_equal(backend.score_first(batch), backend.score(batch))


# --- a long run ---------------------------------------------------------------------------------------------------


def live_bytes(name: str) -> int:
    """What arrays hold now, by MLX's own count, or by looking at every tensor that is there."""
    gc.collect()
    if name == "mlx":
        mx = importlib.import_module("mlx.core")
        mx.synchronize()  # what the device has still to compute holds what it computes from
        return int(mx.get_active_memory())
    torch = importlib.import_module("torch")
    storages = {}
    for found in gc.get_objects():
        if isinstance(found, torch.Tensor):
            storage = found.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


LEAK = 110  # bytes an update: MLX's own count wavers by 6 kB in all, and 64 numbers kept each time are 300 (measured)


class Counting(FakePilot):
    """Notes what arrays hold, after some updates: a thread of the device may let go of one a little later."""

    def __init__(self, name: str) -> None:
        super().__init__(rate=1e-4)
        self.name, self.bytes = name, dict[int, int]()

    def after(self, stats: UpdateStats, live: Any) -> Orders:
        if stats.update % 50 > 45 or not stats.update % 50:
            self.bytes[stats.update] = live_bytes(self.name)
        return super().after(stats, live)


def test_two_hundred_updates_stay_finite_and_hold_no_more_memory(
    backend_name: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_of, "ENOUGH_MIXED", 1)
    backend, pilot = opened(backend_name, model), Counting(backend_name)
    policy = make(backend, replace(SETTINGS, prompts=2, samples=4))
    backend.train(policy.updates(200), TrainConfig(), pilot)
    assert len(pilot.stats) == 200
    assert all(math.isfinite(value) for each in pilot.stats for value in (each.loss, each.grad_norm))
    assert all(math.isfinite(each.entropy) for each in policy.history)
    first, last = (min(pilot.bytes[update] for update in range(end - 4, end + 1)) for end in (50, 200))
    assert last - first < LEAK * 150
