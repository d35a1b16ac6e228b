"""A conversation as a prompt: through the model's own chat template, its oldest turns left out where they are many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.problems.rows import check_token_ids
from gsm8k_core.scoring.thinking import split
from gsm8k_core.types import DataError

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

    What a person types stays text, as in training. Of earlier answers the thoughts go: templates leave them out, and
    models were trained so. Raises DataError where the template refuses the conversation or loses words.
    """
    said = [{**turn, "content": split(turn["content"]).answer} if turn["role"] == ASSISTANT else turn for turn in turns]
    (tokens,) = model.rendering.encode([model.rendering.render(said, True)])
    check_token_ids([tokens], model.vocabulary)
    return tuple(tokens)


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
