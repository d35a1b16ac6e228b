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
from gsm8k_core.models.prompt_settings import (
    CLOCK,
    FILE,
    NOTHING,
    SWITCH,
    TEMPLATE_FILE,
    THOUGHTS,
    PromptSettings,
    as_json,
    set_clock,
)
from gsm8k_core.models.tokenizer import Tokenizer, plain_template
from gsm8k_core.models.trial import CHAT, FORMS, MOST_CHARACTERS, arranged
from gsm8k_core.types import DataError, UsageError, first_line

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
    date: str = ""  # the day that the template writes, where it writes one
    thinking: str = ""  # "off" or "on", where the template has a switch for it
    given: PromptSettings = NOTHING  # what a person asked for, or the model was trained with
    # The token that the template closes an answer with, where the model's files name only others: a base model's, whose
    # files name the end of a document.
    turn_end: int | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer, end_ids: Sequence[int], asked: PromptSettings = NOTHING) -> Rendering:
        """That of a model's tokenizer, tried with one problem. `end_ids` are those that the model's files name."""
        try:
            template = asked.template or tokenizer.get_chat_template()
        except ValueError as error:  # several templates, and none is the one for a chat
            raise DataError(
                f"its tokenizer names no template for a chat ({first_line(error)[:300]}); {ADVICE}"
            ) from None
        first = cls(
            tokenizer,
            template,
            tuple(end_ids),
            asked.instruction or SYSTEM_PROMPT,
            date=asked.day if CLOCK in template else "",
            thinking=(asked.thinking or "off") if SWITCH in template else "",
            given=asked,
        )
        tried = [replace(first, place=place, parts=parts) for place, parts in FORMS]
        # The first that keeps all, else the first of those that lose the least: each problem will say what.
        best = next((each for each in tried if not each._lost()), None) or min(tried, key=cls._lost)
        if not best.thinking and best._begun:  # it always thinks, unless its thought is closed for it
            best = replace(best, thinking=asked.thinking or "off")
        if asked.thinking == "on" and not best.thinking:
            raise UsageError("--thinking on: the chat template of this model knows no thinking; leave it out")
        if asked.template:
            best.render(CHAT, False)  # a person's own: what is wrong with it is said before any problem is asked
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
        words += [f"date-{self.date}"] if self.date else []
        words += [f"thinking-{self.thinking}"] if self.thinking else []
        words += [f"instruction-{_digest(self.system)}"] if self.system != SYSTEM_PROMPT else []
        words += [f"template-{_digest(self.template)}"] if self.given.template else []
        return "-".join(words)

    def as_json(self) -> dict[str, Any]:
        """For run.json."""
        return {
            "name": self.name,
            "system": self.system,
            "place": self.place,
            "parts": list(self.parts),
            **self.settings(),
            "template": "plain" if self.is_plain else self.given.template_name or "the model's own",
            "template_sha256": hashlib.sha256(self.template.encode()).hexdigest(),
            "end_ids": list(self.end_ids),
            "turn_end": self.turn_end,
        }

    def settings(self, template: bool = True) -> dict[str, str]:
        """What is not the model's own, for run.json and for prompt.json."""
        system = self.system if self.system != SYSTEM_PROMPT else ""
        return as_json(self.date, self.thinking, system, self.given.template if template else "")

    @property
    def settled(self) -> PromptSettings:
        """The same to ask another model with: the base of a trained one, say."""
        values = self.settings()
        return PromptSettings(
            values.get("date", ""),
            values.get("thinking", ""),
            values.get("instruction", ""),
            self.given.template,
            self.given.template_name,
        )

    def notes(self) -> list[str]:
        """What a person is told: nothing where the model's own template has a system turn and names its end."""
        lines = []
        if self.is_plain:
            lines.append(
                "prompt   Question: ... Answer: ... and the document's end, in training and evaluation: the model "
                "has no chat template of its own; it is saved with what is trained"
            )
        if self.given.template:
            lines.append(f"prompt   the chat template is {self.given.template_name}, and not the model's own")
        if self.system != SYSTEM_PROMPT:
            lines.append("prompt   the instruction is --system-prompt's, and not the usual one")
        if self.date:
            lines.append(f"prompt   the chat template writes the date, and it is {self.date} in every prompt")
        if self.thinking:
            other = "on" if self.thinking == "off" else "off"
            how = "begins a thought, and it is closed at once" if self._closed_for_it else "has a switch for it"
            how = "begins a thought" if self.thinking == "on" and SWITCH not in self.template else how
            lines.append(f"thinking {self.thinking}: the chat template {how} (--thinking {other})")
        if self.place == "question":
            lines.append(
                "prompt   the chat template has no system turn, or loses it: the instruction goes before the question"
            )
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
        if prompt:
            text = self.closed(text)
        elif self._closed_for_it:
            start = text.rindex(answer) if (answer := safe[-1]["content"].strip()) in text else len(text)
            text = self.render(turns[:-1], True).text + text[start:]
        if lost := next((turn for turn in safe if turn["content"].strip() not in text), None):
            what = {"system": "instruction", "user": "question", "assistant": "answer"}[lost["role"]]
            raise DataError(f"{self._whose} leaves out the text of the {what}, or rewrites it; {ADVICE}")
        return Rendered(text, tuple(hidden))

    @property
    def _closed_for_it(self) -> bool:
        """Whether a prompt ends with a thought that the template only began, and the row with it."""
        return self.thinking == "off" and SWITCH not in self.template

    def closed(self, prompt: str) -> str:
        """A prompt with the thought closed that the template only began, where it is not to think."""
        mark = self._opened(prompt) if self._closed_for_it else ""
        return f"{prompt.rstrip()}\n\n{THOUGHTS[mark]}\n\n" if mark else prompt

    @staticmethod
    def _opened(prompt: str) -> str:
        return next((mark for mark in THOUGHTS if prompt.rstrip().endswith(mark)), "")

    def _apply(self, turns: Sequence[Mapping[str, Any]], prompt: bool) -> str:
        # tokenize=False: transformers 5 returns a dict otherwise, whose len() is 2.
        try:
            text = self.tokenizer.apply_chat_template(
                list(turns), tokenize=False, add_generation_prompt=prompt, **self.options
            )
        except Exception as error:  # jinja2 raises many kinds; the template belongs to the model, not to us
            raise DataError(f"{self._whose} refused it ({first_line(error)[:300]}); {ADVICE}") from error
        if len(text) > MOST_CHARACTERS:  # the trial saw one problem, and this is another
            said = sum(len(part) for turn in turns for part in _words(turn["content"]))
            if 2 * said > len(text):
                what = f"with its chat template it has {len(text):,} characters"
                raise DataError(f"{what}, and at most {MOST_CHARACTERS:,} are read; shorten it")
            raise DataError(f"{self._whose} makes {len(text):,} characters of it; {ADVICE}")
        return str(text)

    @property
    def options(self) -> dict[str, Any]:
        """What transformers is told beside the turns; the template's clock is set by then."""
        if self.date:
            set_clock(self.template, self.date)
        switch = {SWITCH: self.thinking == "on"} if self.thinking else {}
        return {"chat_template": self.template, **switch}

    @property
    def _whose(self) -> str:
        if self.given.template:
            return f"the chat template {self.given.template_name}"
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

    def text(self, tokens: Sequence[int]) -> str:
        """A completion's, special tokens left out, but not the marks of a thought, also one that the prompt began."""
        parts, start = [self._begun], 0
        for place, token in enumerate(tokens):
            if token in self._marks:
                parts += [self._decode(tokens[start:place]), self._marks[token]]
                start = place + 1
        return "".join([*parts, self._decode(tokens[start:])])

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    @cached_property
    def _marks(self) -> dict[int, str]:
        """Those around a thought that decoding would leave out."""
        special = {int(number) for number, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        words = {*THOUGHTS, *THOUGHTS.values()}
        return {number: word for word, number in self.control.ids.items() if number in special and word in words}

    @cached_property
    def _begun(self) -> str:
        """The mark with which the template ends a prompt, where it does: DeepSeek's, for one."""
        try:
            return self._opened(self.render(CHAT[:2], True).text)
        except DataError:  # each problem will say so
            return ""

    # --- saved with a model ----------------------------------------------------------------------------------------

    def write_settings(self, folder: Path) -> None:
        """Into the folder of a trained model or adapter, what it is to be asked with wherever that is moved."""
        (folder / FILE).unlink(missing_ok=True)
        if values := self.settings(template=False):
            write_json(folder / FILE, values)
        if self.given.template:
            write_json(folder / FILE, {**values, "chat_template": TEMPLATE_FILE})
            write_bytes(folder / TEMPLATE_FILE, self.template.encode())

    def write(self, folder: Path) -> None:
        """Into the folder of a trained model, what it needs to be opened the same way, beside its base's files."""
        self.write_settings(folder)
        if self.is_plain:
            write_bytes(folder / TEMPLATE_FILE, self.template.encode())
        if self.turn_end is not None:
            path = folder / "generation_config.json"
            known = read_json(path) if path.is_file() else {}
            others = [token for token in self.end_ids if token != self.turn_end]
            write_json(path, {**known, "eos_token_id": [self.turn_end, *others]})


def _words(content: Any) -> list[str]:
    """What is said in a turn: its text, or the texts of its parts."""
    return [content] if isinstance(content, str) else [part["text"] for part in content]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
