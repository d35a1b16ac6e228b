"""Problem -> chat messages -> tokens. The only place that decides what is masked.

Training and evaluation render the same messages through the model's own chat template, so a prompt has the
same ids in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from gsm8k_core.types import DataError, Example, Problem

PROMPT_NAME = "gsm8k-chat-v1"
SYSTEM_PROMPT = "Solve step by step. The last line must be: #### <number>"


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...
    def __call__(self, text: Any, **options: Any) -> Any: ...
    def decode(self, token_ids: Any, **options: Any) -> str: ...


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder. Raises DataError when it cannot be read or has no chat template."""
    from transformers import AutoTokenizer  # here, not above: it takes seconds, and `--help` must not

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the Rust library raises plain Exception; the files belong to the model, not to us
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise DataError(f"the tokenizer in {folder} cannot be read ({reason}); download or save it again") from error
    if not tokenizer.chat_template:
        raise DataError(f"the tokenizer in {folder} has no chat template; use an Instruct model")
    return tokenizer  # type: ignore[no-any-return]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def messages(problem: Problem, with_answer: bool = False) -> list[dict[str, str]]:
    """The conversation of one problem."""
    turns = [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": problem.question},
    ]
    return [*turns, {"role": "assistant", "content": problem.answer}] if with_answer else turns


def _render(tokenizer: Tokenizer, problem: Problem, with_answer: bool) -> str:
    # tokenize=False: transformers 5 returns a dict otherwise, whose len() is 2.
    try:
        text = tokenizer.apply_chat_template(
            messages(problem, with_answer), tokenize=False, add_generation_prompt=not with_answer
        )
    except Exception as error:  # jinja2 raises many kinds; the template belongs to the model, not to us
        raise DataError(f"the model's chat template refused {problem.id}: {_first_line(error)}") from error
    return str(text)


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    # The template already holds the special tokens.
    return list(tokenizer(list(texts), add_special_tokens=False)["input_ids"]) if texts else []


def prompt_tokens(tokenizer: Tokenizer, problems: Sequence[Problem]) -> list[tuple[int, ...]]:
    """The prompt of each problem, up to and with the start of the assistant's turn."""
    return [tuple(ids) for ids in _encode(tokenizer, [_render(tokenizer, p, False) for p in problems])]


def make_examples(tokenizer: Tokenizer, problems: Sequence[Problem], end_ids: Iterable[int]) -> list[Example]:
    """Training rows, whole: the answer and its end token supervised, the prompt not.

    Raises DataError when a prompt is not a token prefix of its row, or when a row has no end token among its
    supervised ones: such a row would train the wrong thing silently.
    """
    ends = frozenset(end_ids)
    rows = _encode(tokenizer, [_render(tokenizer, p, True) for p in problems])
    examples = []
    for problem, prompt, row in zip(problems, prompt_tokens(tokenizer, problems), rows, strict=True):
        if not prompt or tuple(row[: len(prompt)]) != prompt:
            raise DataError(
                f"{problem.id}: with this chat template the prompt's tokens are not the start of the row's; "
                "use a model whose template keeps the prompt as it is when the answer follows"
            )
        if ends.isdisjoint(row[len(prompt) :]):
            raise DataError(
                f"{problem.id}: the chat template closes the answer with none of the end tokens {sorted(ends)}"
            )
        examples.append(Example(problem.id, tuple(row), len(prompt)))
    return examples


def decode(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """The text of a completion, special tokens left out."""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True))
