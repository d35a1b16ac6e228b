"""Several answers to one prompt: it is read once, and every answer is what it is when asked alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import backends
from gsm8k_core.types import Example, Sampling

HOT = Sampling(16, 5, temperature=1.2, seed=5)
TIMES = 4


def asked(examples: list[Example]) -> list[tuple[int, ...]]:
    """Five prompts of three lengths, four times each, in turn."""
    return [examples[number].tokens[: 5 + 2 * (number % 3)] for number in range(5)] * TIMES


def count_reads(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """How many prompts each reading has."""
    counts: list[int] = []
    if name == "torch":
        from backends.torch.generate import _Decoder

        prefill = _Decoder.prefill

        def counted(self: Any, rows: Any, prompts: Any, *more: Any) -> Any:
            counts.append(len(prompts))
            return prefill(self, rows, prompts, *more)

        monkeypatch.setattr(_Decoder, "prefill", counted)
    else:
        from backends.mlx.generate import _Decoder

        read = _Decoder._read

        def counted_read(self: Any, prompts: Any, prefix: Any) -> Any:
            counts.append(len(prompts))
            return read(self, prompts, prefix)

        monkeypatch.setattr(_Decoder, "_read", counted_read)
    return counts


@pytest.mark.parametrize("size", [3, 64])
def test_each_prompt_is_read_once_and_each_answer_is_its_own(
    backend_name: str, qwen2: Path, examples: list[Example], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = backends.open(backend_name, qwen2, "cpu", "float32")
    prompts = asked(examples)
    keys = [100 + index for index in range(len(prompts))]
    counts = count_reads(monkeypatch, backend_name)
    together = dict(backend.generate(prompts, replace(HOT, batch_size=size), keys=keys))
    assert sum(counts) == 5
    alone = {
        index: dict(backend.generate([prompt], HOT, keys=[keys[index]]))[0]
        for index, prompt in enumerate(prompts)
        if index % 3 == 0
    }
    assert {index: together[index] for index in alone} == alone
    assert len({completion.tokens for completion in together.values()}) > 15  # its own key, its own answer


def test_control_a_prompt_of_another_is_seen(
    backend_name: str, qwen2: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All prompts of one length are taken for the first of them."""
    backend, prompts = backends.open(backend_name, qwen2, "cpu", "float32"), asked(examples)
    right = dict(backend.generate(prompts, HOT))
    monkeypatch.setattr(
        "gsm8k_core.scoring.writing.first_alike",
        lambda prompts: [list(map(len, prompts)).index(len(prompt)) for prompt in prompts],
    )
    wrong = dict(backend.generate(prompts, HOT))
    assert sum(wrong[index] != right[index] for index in right) > 5


def test_one_prompt_many_times(backend_name: str, qwen2: Path, examples: list[Example]) -> None:
    """All of it but the last token is then the beginning that all share."""
    backend, prompt = backends.open(backend_name, qwen2, "cpu", "float32"), examples[0].tokens[:9]
    together = dict(backend.generate([prompt] * 9, replace(HOT, batch_size=4)))
    for index in (0, 3, 8):
        assert together[index] == dict(backend.generate([prompt], HOT, keys=[index]))[0]
    assert len({completion.tokens for completion in together.values()}) > 5
