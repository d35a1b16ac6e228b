"""A scripted model: sums, right or wrong as its script says, one character a token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from gsm8k_core.rollouts.wave import Ask
from gsm8k_core.types import Completion, OnToken, Problem

END = 1


def problem(name: str, a: int = 2, b: int = 3) -> Problem:
    return Problem(name, f"{a} and {b}?", f"{a} + {b} = <<{a}+{b}={a + b}>>{a + b}\n#### {a + b}", str(a + b))


def encode(text: str) -> tuple[int, ...]:
    return tuple(map(ord, text))


def decode(tokens: Sequence[int]) -> str:
    return "".join(map(chr, tokens))


RIGHT, OTHER, WRONG_STEP = "2 + 3 = 5\n#### 5", "3 + 2 = 5\n#### 5", "2 + 3 = 6\n#### 5"
WRONG, NO_STEP = "2 + 3 = 6\n#### 6", "Five.\n#### 5"

Script = Callable[[Ask], str]


def answering(script: Script, log: list[list[Ask]] | None = None) -> Callable[..., Iterator[tuple[int, Completion]]]:
    """Round.generate: the script's answers, the shortest first, as a batch would give them."""

    def generate(block: Sequence[Ask], on_token: OnToken) -> Iterator[tuple[int, Completion]]:
        if log is not None:
            log.append(list(block))
        texts = [script(ask) for ask in block]
        for index in sorted(range(len(block)), key=lambda place: (len(texts[place]), place)):
            for token in encode(texts[index]):
                on_token(index, token)
            yield index, Completion(encode(texts[index]), "stop", END)

    return generate
