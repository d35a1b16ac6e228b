"""What decides a model's prompts beside its template and the problem: the date, whether it thinks, the instruction.

A template may write the date of the day, and may have a switch for thinking; a person may give an instruction or a
template of their own. A model that was trained with such prompts is asked with the same ones: they stand in run.json,
and in `prompt.json` in its folder, which goes with it wherever that is moved. Nothing is written where all of it is
the model's own.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from gsm8k_core.config.stored import Stored, stored
from gsm8k_core.files import read_json, read_plain
from gsm8k_core.types import DataError, UsageError

FILE = "prompt.json"
TEMPLATE_FILE = "chat_template.jinja"
MOST_BYTES = 1 << 20  # of a template; the longest real ones have some ten thousand
# What stands around a thought, in the words of models that think.
THOUGHTS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "[THINK]": "[/THINK]",
    "<thought>": "</thought>",
}
CLOCK, SWITCH = "strftime_now", "enable_thinking"  # what a template calls, and asks for
_Text = Annotated[str, Field(max_length=MOST_BYTES)]


class _Saved(Stored):
    """prompt.json, or `prompt` of run.json: what is read of it."""

    date: Annotated[str, Field(pattern=r"^(\d{4}-\d\d-\d\d)?$")] | None = None
    thinking: Literal["", "off", "on"] | None = None
    instruction: _Text | None = None
    chat_template: _Text | None = None  # run.json has its text; prompt.json stands beside the file


def today() -> str:
    """Of this machine's clock."""
    return datetime.date.today().isoformat()


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """What was asked for or saved; nothing: not said."""

    date: str = ""  # a day, as in 2026-11-29
    thinking: str = ""  # off or on
    instruction: str = ""
    template: str = ""  # its text
    template_name: str = ""  # where that came from

    def over(self, other: PromptSettings) -> PromptSettings:
        """The same, with `other`'s where this says nothing."""
        template = self if self.template else other
        return PromptSettings(
            self.date or other.date,
            self.thinking or other.thinking,
            self.instruction or other.instruction,
            template.template,
            template.template_name,
        )

    @property
    def day(self) -> str:
        """Of a template with a clock: the one that was kept, or today."""
        return self.date or today()


NOTHING = PromptSettings()


def set_clock(template: str, date: str) -> None:
    """Lets a template's `strftime_now` stand still at the first moment of a day, until it is set again.

    transformers compiles each template once and keeps it; what is passed to it on rendering is data, and no function.
    """
    from transformers.utils import chat_template_utils  # here, not above: it takes seconds, and `--help` must not

    compiled = chat_template_utils._compile_jinja_template(template)
    compiled.globals[CLOCK] = datetime.datetime.fromisoformat(date).strftime


def given(thinking: str, instruction: str, chat_template: Path | None) -> PromptSettings:
    """What the flags say. Raises UsageError and DataError for a template that cannot be read."""
    if instruction and not instruction.strip():
        raise UsageError("--system-prompt is blank; give a text, or leave it out for the usual one")
    text = _read_template(chat_template) if chat_template else ""
    return PromptSettings("", "" if thinking == "auto" else thinking, instruction, text, str(chat_template or ""))


def _read_template(path: Path) -> str:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"--chat-template {path} {what}; give a file with a Jinja template")
    try:
        text = read_plain(path, MOST_BYTES).decode("utf-8")
    except UnicodeDecodeError:
        raise DataError(f"--chat-template {path} is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"--chat-template {path} cannot be read ({error.strerror}); check its rights") from None
    if not text.strip() or "\0" in text:
        raise DataError(f"--chat-template {path} holds no template; give a file with a Jinja template")
    return text


def saved_in(folder: Path) -> PromptSettings:
    """What goes with a model's folder."""
    if not (folder / FILE).is_file():
        return NOTHING
    values = read_json(folder / FILE)
    found = from_json(values, folder / FILE)
    own = folder / TEMPLATE_FILE
    if values.get("chat_template") is not None and own.is_file():
        text = read_plain(own, MOST_BYTES).decode("utf-8", "replace")
        return PromptSettings(found.date, found.thinking, found.instruction, text, str(own))
    return PromptSettings(found.date, found.thinking, found.instruction)


def from_json(values: object, where: object) -> PromptSettings:
    """What run.json or prompt.json says. Raises DataError with the key that is wrong."""
    saved = stored(_Saved, values if isinstance(values, Mapping) else {}, where, "bring the file back")
    if saved.date:
        try:
            datetime.date.fromisoformat(saved.date)
        except ValueError:
            raise DataError(f"{where}: date must be a day (got {saved.date!r}); bring the file back") from None
    text = saved.chat_template or ""
    name = f"the template in {where}" if text else ""
    return PromptSettings(saved.date or "", saved.thinking or "", saved.instruction or "", text, name)


def as_json(date: str, thinking: str, instruction: str, chat_template: str) -> dict[str, Any]:
    """Those that are not the model's own."""
    values = {"date": date, "thinking": thinking, "instruction": instruction, "chat_template": chat_template}
    return {name: value for name, value in values.items() if value}
