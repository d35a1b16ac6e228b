"""A conversation as a prompt: through the model's own chat template, its oldest turns left out where they are many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.models.tokenizer import Tokenizer
from gsm8k_core.models.trial import MOST_CHARACTERS
from gsm8k_core.problems.prompts import encode
from gsm8k_core.problems.rows import check_token_ids
from gsm8k_core.types import DataError, first_line

Turn = dict[str, str]  # role and content
SYSTEM, USER, ASSISTANT = "system", "user", "assistant"


@dataclass(frozen=True, slots=True)
class ContextLimits:
    """How much a model is asked: tokens of prompt and answer together, and of the longest answer."""

    window: int
    answer: int

    def room(self, num_prompt: int) -> int:
        """How long an answer to so long a prompt may get; 0 or less where there is no room for one."""
        return min(self.answer, self.window - num_prompt)


def chat_prompt(model: ModelFolder, turns: Sequence[Turn]) -> tuple[int, ...]:
    """The tokens of a conversation, up to and with the start of the assistant's turn.

    Raises DataError where the template refuses it, in the template's words.
    """
    (tokens,) = encode(model.tokenizer, [_rendered(model.tokenizer, turns)])
    check_token_ids([tokens], model.vocabulary)
    return tuple(tokens)


def _rendered(tokenizer: Tokenizer, turns: Sequence[Turn]) -> str:
    try:
        text = str(tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True))
    except Exception as error:  # jinja2 raises many kinds; the template belongs to the model, not to us
        raise DataError(f"the model's chat template refused this conversation ({first_line(error)[:300]})") from error
    if len(text) > MOST_CHARACTERS + 2 * sum(len(turn["content"]) for turn in turns):
        raise DataError(
            f"the model's chat template makes {len(text)} characters of this conversation; use another model"
        )
    return text


def plain_prompt(model: ModelFolder, text: str) -> tuple[int, ...]:
    """The tokens of a text that is gone on with, with those that the tokenizer puts before every text."""
    (tokens,) = model.tokenizer([text], add_special_tokens=True)["input_ids"]
    check_token_ids([tokens], model.vocabulary)
    return tuple(tokens)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A conversation that fits: its turns, its prompt, and how many of the oldest questions went."""

    turns: list[Turn]
    prompt: tuple[int, ...]
    dropped: int


def fit(model: ModelFolder, turns: Sequence[Turn], limits: ContextLimits) -> Fitted:
    """The conversation without as many of its oldest questions, with their answers, as leave room for an answer.

    An answer gets a quarter of the window, or less where the longest is shorter. The system turn stays, and so does
    the last question: raises DataError where they alone are too long.
    """
    kept, dropped = list(turns), 0
    reserved = max(1, min(limits.answer, limits.window // 4))
    while True:
        prompt = chat_prompt(model, kept)
        if len(prompt) + reserved <= limits.window:
            return Fitted(kept, prompt, dropped)
        first = 1 if kept[0]["role"] == SYSTEM else 0
        later = [place for place in range(first + 1, len(kept)) if kept[place]["role"] == USER]
        if not later:
            if limits.room(len(prompt)) > 0:
                return Fitted(kept, prompt, dropped)
            raise DataError(
                f"this question has {len(prompt):,} tokens with its system turn, and the model reads "
                f"{limits.window:,} with its answer; shorten it"
            )
        del kept[first : later[0]]
        dropped += 1
