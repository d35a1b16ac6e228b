"""Forced tokens: the model reads them as if it had written them, whoever decodes and whatever is decoded beside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import backends
from gsm8k_core.scoring.writing import Writing
from gsm8k_core.types import Completion, Example, Sampling
from tests.backends.conftest import force
from tests.tiny import END_ID

LIMIT = 20


FORCED = Sampling(LIMIT, 3, force=force)


def open_it(name: str, folder: Path) -> Any:
    return backends.open(name, folder, "cpu", "float32")


def prompts_of(examples: list[Example]) -> list[tuple[int, ...]]:
    return [example.tokens[: 4 + index % 7] for index, example in enumerate(examples)]


def by_hand(backend: Any, prompt: tuple[int, ...], sampling: Sampling) -> Completion:
    """Greedy: prompt and answer are read anew, whole, for each drawn token."""
    answer, done = Writing(0, 0, prompt, 0, sampling), None
    while done is None:
        token = int(np.argmax(backend.odds([*prompt, *answer.written])))
        done = answer.write(token, frozenset({END_ID}), lambda index, token: None)
    return done


def test_forced_tokens_are_read_as_if_drawn(backend_name: str, tiny_model: Path, examples: list[Example]) -> None:
    """And the control: a model that reads what it drew in their places goes on otherwise."""
    backend, prompts = open_it(backend_name, tiny_model), prompts_of(examples)[:8]
    found = dict(backend.generate(prompts, FORCED))
    assert found == {index: by_hand(backend, prompt, FORCED) for index, prompt in enumerate(prompts)}
    assert sum(len(completion.forced) for completion in found.values()) > 20
    free = dict(backend.generate(prompts, replace(FORCED, force=None)))
    assert sum(free[index].tokens != found[index].tokens for index in free) >= 6


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_batches_and_refilled_places_change_nothing(
    backend_name: str, qwen2: Path, examples: list[Example], temperature: float
) -> None:
    backend, prompts = open_it(backend_name, qwen2), prompts_of(examples)
    sampling = replace(FORCED, temperature=temperature, seed=3)
    alone = dict(backend.generate(prompts, replace(sampling, batch_size=1)))
    for size in (3, 64):
        assert dict(backend.generate(prompts, replace(sampling, batch_size=size))) == alone
    if backends.installed("torch"):
        other = dict(open_it("torch", qwen2).generate(prompts, sampling))
        assert other == alone
    places = {place for completion in alone.values() for place in completion.forced}
    assert {1, LIMIT - 1} <= places  # right behind the first token, and the last that there is room for


@pytest.mark.parametrize("given", [(8, END_ID), (END_ID, 8), (9,) * LIMIT])
def test_a_forced_end_frees_the_place(
    backend_name: str, qwen2: Path, examples: list[Example], given: tuple[int, ...]
) -> None:
    backend, prompts = open_it(backend_name, qwen2), prompts_of(examples)
    sampling = replace(FORCED, force=lambda written: given if len(written) == 4 or written[-1] % 5 == 0 else ())
    found = dict(backend.generate(prompts, sampling))
    assert found == dict(backend.generate(prompts, replace(sampling, batch_size=1)))
    for index in (0, 7, 13):
        assert found[index] == by_hand(backend, prompts[index], sampling)
    ends = {completion.end_token for completion in found.values()}
    assert ends == ({END_ID} if END_ID in given else ends)
    assert all((c.finish_reason == "stop") == (c.end_token == END_ID) for c in found.values())


def test_a_drawn_end_is_told_with_its_token(backend_name: str, tiny_model: Path, examples: list[Example]) -> None:
    found = dict(open_it(backend_name, tiny_model).generate(prompts_of(examples), Sampling(40, 8)))
    assert {(c.finish_reason, c.end_token) for c in found.values()} <= {("stop", END_ID), ("length", None)}
    assert {c.forced for c in found.values()} == {()}
