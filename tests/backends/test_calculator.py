"""The calculator on both backends: of what a tiny model draws, every sum that can be read gets its result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import backends
from gsm8k_core.scoring.calculator import Calculator
from gsm8k_core.scoring.claims import find_claims
from gsm8k_core.types import Completion, Example, Sampling

FIRST = 4  # the ids below are the end token's and the like
# What the tiny vocabulary's tokens are here: half of them open an annotation or close it, so that noise writes many.
PIECES = [*"0123456789", ".", "-", ">>", "/", "=", "=-", "=.", "=(", "=$", "=>", "<<1+", "<<2*3=", "<<4-7=", "<<9/2="]
PIECES += ["<<8/0=", "<<x+2=", "<<30/", "3=", "5=", "+", ")", "7>>", "8>>", "-2>>", "<<48/2="]


def decode(tokens: Sequence[int]) -> str:
    return "".join(PIECES[(token - FIRST) % len(PIECES)] for token in tokens)


def encode(texts: Sequence[str]) -> list[list[int]]:
    return [_encoded(text) for text in texts]


def _encoded(text: str) -> list[int]:
    row = []
    while text:
        piece = max((piece for piece in PIECES if text.startswith(piece)), key=len)
        row.append(FIRST + PIECES.index(piece))
        text = text[len(piece) :]
    return row


SAMPLING = Sampling(30, 8, temperature=4.0, seed=1, force=Calculator(encode, decode))


def answers(name: str, folder: Path, examples: list[Example], sampling: Sampling) -> dict[int, Completion]:
    backend: Any = backends.open(name, folder, "cpu", "float32")
    prompts = [example.tokens[: 4 + index % 7] for index, example in enumerate(examples)]
    return dict(backend.generate(prompts, sampling, keys=range(len(prompts))))


def wrong(found: dict[int, Completion]) -> tuple[int, int]:
    """Of all annotations whose left side can be read: how many there are, and how many are wrong."""
    claims = [claim for each in found.values() for claim in find_claims(decode(each.tokens))]
    annotations = [claim for claim in claims if claim.kind == "annotation"]
    return len(annotations), sum(not claim.right for claim in annotations)


def test_no_annotation_is_wrong_on_either_backend(backend_name: str, qwen2: Path, examples: list[Example]) -> None:
    found = answers(backend_name, qwen2, examples, SAMPLING)
    read, false = wrong(found)
    assert (read > 20, false) == (True, 0)  # 43 are read
    if backends.installed("torch"):
        assert found == answers("torch", qwen2, examples, SAMPLING)
    read, false = wrong(answers(backend_name, qwen2, examples, replace(SAMPLING, force=None)))
    assert false > read / 2 > 0  # the control: 4 of 4 are wrong


def test_what_was_forced_is_what_the_calculator_says(backend_name: str, qwen2: Path, examples: list[Example]) -> None:
    calculator = Calculator(encode, decode)
    for each in answers(backend_name, qwen2, examples, SAMPLING).values():
        expected: list[int] = []
        for place in range(1, len(each.tokens) + 1):
            if given := calculator(each.tokens[:place]):
                expected += range(place, min(place + len(given), len(each.tokens)))
        assert each.forced == tuple(expected)
