"""Sampled answers: batches, order and other prompts beside them change nothing; and texts that part are weighed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import backends
from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.parity.texts import AnswerPair, compare, eps_of
from gsm8k_core.scoring.sampling import noise_key
from gsm8k_core.types import Completion, Example, Sampling

HOT = Sampling(20, 7, temperature=1.2, seed=5)


def open_it(name: str, folder: Path) -> Any:
    return backends.open(name, folder, "cpu", "float32")


def prompts_of(examples: list[Example]) -> list[tuple[int, ...]]:
    return [example.tokens[: 5 + 3 * (index % 4)] for index, example in enumerate(examples[:9])]


def answers(
    backend: Any, prompts: list[tuple[int, ...]], which: list[int], sampling: Sampling
) -> dict[int, Completion]:
    """By number of the prompt, asked in the order of `which`."""
    keys = [noise_key(f"test-{number}", 0) for number in which]
    found = backend.generate([prompts[number] for number in which], sampling, keys=keys)
    return {which[index]: completion for index, completion in found}


def test_batches_order_and_other_prompts_change_nothing(
    backend_name: str, tiny_model: Path, examples: list[Example]
) -> None:
    backend, prompts = open_it(backend_name, tiny_model), prompts_of(examples)
    whole = answers(backend, prompts, list(range(9)), HOT)
    assert whole == answers(backend, prompts, list(range(9)), replace(HOT, batch_size=1))
    assert whole == answers(backend, prompts, list(range(9))[::-1], replace(HOT, batch_size=2))
    part = answers(backend, prompts, [7, 2, 4], HOT)
    assert part == {number: whole[number] for number in (2, 4, 7)}
    assert whole != answers(backend, prompts, list(range(9)), replace(HOT, seed=6))


def test_without_keys_the_place_is_the_key(backend_name: str, qwen2: Path, examples: list[Example]) -> None:
    backend, prompts = open_it(backend_name, qwen2), prompts_of(examples)
    plain = dict(backend.generate(prompts, HOT))
    assert plain == dict(backend.generate(prompts, HOT, keys=range(len(prompts))))
    assert plain != dict(backend.generate(prompts, HOT, keys=range(1, len(prompts) + 1)))


def test_a_token_is_told_with_its_place_not_its_key(backend_name: str, qwen2: Path, examples: list[Example]) -> None:
    told: dict[int, list[int]] = {}
    backend, prompts = open_it(backend_name, qwen2), prompts_of(examples)[:3]
    done = dict(
        backend.generate(
            prompts, HOT, lambda index, token: told.setdefault(index, []).append(token), keys=[2**63, 2**40, 7]
        )
    )
    assert {index: tuple(tokens) for index, tokens in told.items()} == {
        i: c.tokens for i, c in done.items() if c.tokens
    }


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_equal_texts_pass_and_a_changed_token_does_not(
    backend_name: str, qwen2: Path, examples: list[Example], temperature: float
) -> None:
    """The control: a text in which one token is another is beyond eps, or the sentence would say nothing."""
    backend, prompts = open_it(backend_name, qwen2), prompts_of(examples)
    sampling = replace(HOT, temperature=temperature)
    alone = answers(backend, prompts, list(range(9)), replace(sampling, batch_size=1))
    together = answers(backend, prompts, list(range(9)), sampling)

    def compared(others: dict[int, Completion]) -> dict[str, Any]:
        pairs = [AnswerPair(f"test-{n}", prompts[n], noise_key(f"test-{n}", 0), alone[n], others[n]) for n in range(9)]
        return compare(pairs, backend, sampling, ModelFolder(qwen2).end_ids, "float32")

    assert compared(together)["beyond_eps"] == 0
    changed = {
        n: replace(each, tokens=(*each.tokens[:-1], 4 + (each.tokens[-1] + 1) % 30)) if each.tokens else each
        for n, each in alone.items()
    }
    found = compared(changed)
    assert found["equal"] < 5
    assert found["beyond_eps"] == 9 - found["equal"]
    assert min(place["gap"] for place in found["places"]) > 10 * eps_of("float32", sampling)
