"""How a model is talked to: its chat template, what is said in it where, and what ends an answer.

One `Rendering` goes from a model's folder to its prompts, its rows, run.json and the key of an evaluation, so that a
model is asked in one way wherever it is asked. A template is a stranger's: it is tried with one short problem, in the
forms that templates want, and the first form that keeps every word is taken. What it keeps of each problem is looked at
again when that is rendered: a row without its question or its answer would train something else, silently.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from gsm8k_core.files import read_json, write_bytes, write_json
from gsm8k_core.models.control_tokens import ControlTokens, Rendered
from gsm8k_core.models.tokenizer import Tokenizer, plain_template
from gsm8k_core.models.trial import CHAT, FORMS, MOST_CHARACTERS, arranged
from gsm8k_core.types import DataError, first_line

PROMPT_NAME = "gsm8k-chat-v1"
PLAIN_NAME = "gsm8k-plain-v1"
SYSTEM_PROMPT = "Solve step by step. The last line must be: #### <number>"
ADVICE = "use another model, or mend it"
Turn = Mapping[str, str]  # role and content


@dataclass(frozen=True)
class Rendering:
    """A tokenizer with its template and all that decides a prompt's words beside the problem."""

    tokenizer: Tokenizer = field(compare=False, repr=False)
    template: str
    end_ids: tuple[int, ...]  # all that end an answer, `turn_end` included
    system: str = SYSTEM_PROMPT  # the instruction, which asks for ####
    place: str = "system"  # its turn; or "question": it goes before the first one
    parts: tuple[str, ...] = ()  # roles whose content the template reads as a list of parts
    # The token that the template closes an answer with, where the model's files name only others: a base model's, whose
    # files name the end of a document.
    turn_end: int | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer, end_ids: Sequence[int]) -> Rendering:
        """That of a model's tokenizer, tried with one problem. `end_ids` are those that the model's files name."""
        try:
            template = tokenizer.get_chat_template()
        except ValueError as error:  # several templates, and none is the one for a chat
            raise DataError(
                f"its tokenizer names no template for a chat ({first_line(error)[:300]}); {ADVICE}"
            ) from None
        first = cls(tokenizer, template, tuple(end_ids))
        tried = [replace(first, place=place, parts=parts) for place, parts in FORMS]
        best = min(tried, key=lambda each: each._lost())  # the first of equal ones
        turn_end = best._closing()
        ends = {*end_ids} | ({turn_end} if turn_end is not None else set())
        return replace(best, turn_end=turn_end, end_ids=tuple(sorted(ends)))

    @property
    def document_end(self) -> int | None:
        """The token that ends a document, where the template closes a turn with another one."""
        others = [token for token in self.end_ids if token != self.turn_end]
        own = self.tokenizer.eos_token_id
        return own if own in others else next(iter(others), None)

    # --- what it is called -----------------------------------------------------------------------------------------

    @property
    def is_plain(self) -> bool:
        """Whether it is ours, of a model that has no template."""
        return self.template == plain_template(self.tokenizer)

    @property
    def name(self) -> str:
        """With all that decides a prompt's words, beside the template, the shots and the problem."""
        words = [PLAIN_NAME if self.is_plain else PROMPT_NAME]
        words += ["before-question"] if self.place == "question" else []
        words += [f"parts-{'-'.join(self.parts)}"] if self.parts else []
        return "-".join(words)

    def as_json(self) -> dict[str, Any]:
        """For run.json."""
        return {
            "name": self.name,
            "system": self.system,
            "place": self.place,
            "parts": list(self.parts),
            "template": "plain" if self.is_plain else "the model's own",
            "template_sha256": hashlib.sha256(self.template.encode()).hexdigest(),
            "end_ids": list(self.end_ids),
            "turn_end": self.turn_end,
        }

    def notes(self) -> list[str]:
        """What a person is told: nothing where the model's own template has a system turn and names its end."""
        lines = []
        if self.is_plain:
            lines.append(
                "prompt   Question: ... Answer: ... and the document's end, in training and evaluation: the model has "
                "no chat template of its own; it is saved with what is trained"
            )
        if self.place == "question":
            lines.append("prompt   the chat template has no system turn: the instruction goes before the question")
        if self.parts:
            lines.append(f"prompt   the chat template reads lists of parts, and gets them ({', '.join(self.parts)})")
        if self.turn_end is not None:
            lines.append(
                f"ends     the chat template closes an answer with {self.word(self.turn_end)}, and the model's files "
                f"name only {', '.join(self.word(each) for each in self.end_ids if each != self.turn_end)}: both end it"
            )
        return lines

    def word(self, token: int) -> str:
        """A token as text."""
        return str(self.tokenizer.decode([token], skip_special_tokens=False))

    # --- to text ---------------------------------------------------------------------------------------------------

    def render(self, turns: Sequence[Turn], prompt: bool) -> Rendered:
        """The conversation; with `prompt`, up to and with the start of the assistant's turn.

        Raises DataError, without saying of which problem, where the template refuses it or loses words.
        """
        hidden: list[str] = []
        safe = [{**turn, "content": self.control.hide(turn["content"], hidden)} for turn in turns]
        text = self._apply(arranged(safe, self.place, self.parts), prompt)
        if lost := next((turn for turn in safe if turn["content"].strip() not in text), None):
            what = {"system": "instruction", "user": "question", "assistant": "answer"}[lost["role"]]
            raise DataError(f"{self._whose} leaves out the text of the {what}, or rewrites it; {ADVICE}")
        return Rendered(text, tuple(hidden))

    def _apply(self, turns: Sequence[Mapping[str, Any]], prompt: bool) -> str:
        # tokenize=False: transformers 5 returns a dict otherwise, whose len() is 2.
        try:
            text = self.tokenizer.apply_chat_template(
                list(turns), chat_template=self.template, tokenize=False, add_generation_prompt=prompt
            )
        except Exception as error:  # jinja2 raises many kinds; the template belongs to the model, not to us
            raise DataError(f"{self._whose} refused it ({first_line(error)[:300]}); {ADVICE}") from error
        if len(text) > MOST_CHARACTERS:  # the trial saw one problem, and this is another
            raise DataError(f"{self._whose} makes {len(text)} characters of it; {ADVICE}")
        return str(text)

    @property
    def _whose(self) -> str:
        return f"the chat template of {getattr(self.tokenizer, 'name_or_path', '') or 'the model'}"

    def _lost(self) -> int:
        """How many of the short problem's two texts, without and with its answer, do not come out whole."""
        lost = 0
        for turns, prompt in ((CHAT[:2], True), (CHAT, False)):
            try:
                self.render(turns, prompt)
            except DataError:
                lost += 1
        return lost

    def _closing(self) -> int | None:
        """The control token that comes first behind an answer, where none that the files name comes there."""
        try:
            text = self.render(CHAT, False).text
        except DataError:  # each problem will say so
            return None
        rest = text[text.rindex(CHAT[-1]["content"].strip()) + len(CHAT[-1]["content"].strip()) :]
        behind = self.encode([Rendered(rest)])[0]
        closing = [token for token in behind if token in self.control.ids.values()]
        return closing[0] if closing and not {*behind} & {*self.end_ids} else None

    # --- to tokens -------------------------------------------------------------------------------------------------

    @cached_property
    def control(self) -> ControlTokens:
        """The tokenizer's control tokens."""
        return ControlTokens(self.tokenizer)

    def encode(self, texts: Sequence[Rendered]) -> list[list[int]]:
        """The tokens of each text, and no special ones beside those that the template wrote."""
        plain = [each.text for each in texts if not each.hidden]
        found = iter(self.tokenizer(plain, add_special_tokens=False)["input_ids"] if plain else ())
        return [self.control.encode(each.text, each.hidden) if each.hidden else list(next(found)) for each in texts]

    # --- saved with a model ----------------------------------------------------------------------------------------

    def write(self, folder: Path) -> None:
        """Into the folder of a trained model, what it needs to be opened the same way, beside its base's files."""
        if self.is_plain:
            write_bytes(folder / "chat_template.jinja", self.template.encode())
        if self.turn_end is not None:
            path = folder / "generation_config.json"
            known = read_json(path) if path.is_file() else {}
            others = [token for token in self.end_ids if token != self.turn_end]
            write_json(path, {**known, "eos_token_id": [self.turn_end, *others]})
