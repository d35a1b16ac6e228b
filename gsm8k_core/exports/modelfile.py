"""Ollama's Modelfile beside a GGUF: the template in Ollama's own language, the system prompt, and where answers end.

Ollama does not run a model's Jinja template: it looks for one of its own that resembles it, and where none does, sends
the bare question. So the template is written out. What it has to say is found by rendering conversations of marked
texts through the model's own template and reading off what stands between them; a conversation of five turns, put
together from that, has to be the model's own to the letter, else there is no Modelfile.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gsm8k_core.files import plain_name
from gsm8k_core.types import DataError, UsageError, first_line

Render = Callable[[Sequence[dict[str, str]]], str]  # a conversation -> the prompt of the answer that comes next
MARKS = {"system": "Qsystemq", "user": "Quserq", "assistant": "Qanswerq", "next": "Qnextq"}
FOLDED = "\n\n"  # between the system prompt and the first question, where a template has no system turn


@dataclass(frozen=True, slots=True)
class Turns:
    """What a template writes between the texts of a conversation."""

    start: str  # before the system prompt
    after_system: str  # from there to the first question
    first: str  # before the first question, where there is no system prompt
    answer: str  # from the last question to the answer that comes now
    answered: str  # from an earlier question to its answer
    following: str  # from an answer to the next question

    def prompt(self, texts: Sequence[str], system: str | None) -> str:
        """The prompt that these make of question, answer, ..., question."""
        parts = [self.first if system is None else f"{self.start}{system}{self.after_system}"]
        for place, text in enumerate(texts):
            parts.append(text)
            last = place == len(texts) - 1
            parts.append(self.answer if last else self.following if place % 2 else self.answered)
        return "".join(parts)


def turns_of(render: Render) -> Turns:
    """Raises DataError for a template that is not made of turns, one after another."""
    system, user, answer, following = (
        {"role": role, "content": MARKS[mark]}
        for role, mark in (("system", "system"), ("user", "user"), ("assistant", "assistant"), ("user", "next"))
    )
    first, after = _between(render, [user])
    try:
        start, after_system, same = _between(render, [system, user])
    except DataError:  # no system turn, or one that is dropped
        start, after_system, same = first, FOLDED, after
    _, answered, follows, last = _between(render, [user, answer, following])
    found = Turns(start, after_system, first, after, answered, follows)
    folded = start == first and after_system == FOLDED
    opening = (
        [{"role": "user", "content": f"A{FOLDED}b"}]
        if folded
        else [{"role": "system", "content": "A"}, {"role": "user", "content": "b"}]
    )
    more = [("assistant", "c"), ("user", "d"), ("assistant", "e"), ("user", "f")]
    whole = [*opening, *({"role": role, "content": text} for role, text in more)]
    if last != after or same != after or found.prompt(list("bcdef"), "A") != _rendered(render, whole):
        raise DataError(f"the model's chat template is not one turn after another; {INSTEAD}")
    if any(mark in piece for mark in ("{{", "}}", '"""') for piece in _pieces(found)):
        raise DataError(
            f"the model's chat template writes braces or quotes that a Modelfile has no place for; {INSTEAD}"
        )
    return found


INSTEAD = "export --to gguf, which has the template as it is"


def _between(render: Render, conversation: Sequence[dict[str, str]]) -> list[str]:
    """What stands before, between and after the texts of a conversation, each of which has to be there once."""
    text = _rendered(render, conversation)
    marks = [turn["content"] for turn in conversation]
    if any(text.count(mark) != 1 for mark in marks):
        raise DataError(f"the model's chat template leaves out a turn, or has it twice; {INSTEAD}")
    return re.split("|".join(marks), text)


def _rendered(render: Render, conversation: Sequence[dict[str, str]]) -> str:
    try:
        return render(conversation)
    except Exception as error:  # jinja2 raises many kinds; the template belongs to the model, not to us
        reason = first_line(error)[:200]
        raise DataError(f"the model's chat template refused a conversation ({reason}); {INSTEAD}") from error


def _pieces(turns: Turns) -> list[str]:
    return [turns.start, turns.after_system, turns.first, turns.answer, turns.answered, turns.following]


def go_template(turns: Turns) -> str:
    """The template in Go's language, for Ollama's `.Messages`; the system prompt is the first of them there."""
    last = "{{ if eq (len (slice $.Messages $i)) 1 }}" + turns.answer + "{{ else }}" + turns.answered + "{{ end }}"
    after = turns.answer if turns.answer == turns.answered else last
    before = (
        '{{ if eq $before "system" }}'
        + turns.after_system
        + '{{ else if eq $before "" }}'
        + turns.first
        + "{{ else }}"
        + turns.following
        + "{{ end }}"
    )
    return (
        '{{ $before := "" }}{{ range $i, $_ := .Messages }}'
        '{{ if eq .Role "system" }}' + turns.start + "{{ .Content }}"
        '{{ else if eq .Role "user" }}'
        + before
        + "{{ .Content }}"
        + after
        + '{{ else if eq .Role "assistant" }}{{ .Content }}{{ end }}'
        "{{ $before = .Role }}{{ end }}"
    )


def modelfile(weights: str, turns: Turns, system: str, stops: Sequence[str]) -> str:
    """The Modelfile: greedy and without a penalty for what was said before, as the model was measured.

    (Ollama's own defaults draw with temperature 0.8 and punish repeated numbers, which a sum is full of.)
    """
    lines = [
        f"FROM ./{weights}",
        f'TEMPLATE """{go_template(turns)}"""',
        f'SYSTEM """{system}"""',
        *(f'PARAMETER stop "{stop}"' for stop in stops),
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
    ]
    return "\n".join(lines) + "\n"


def file_name(text: str) -> str:
    """A name for a file, from any: small letters and digits of every script, points and dashes."""
    return plain_name(text.lower()) or "model"


def ollama_name(text: str) -> str:
    """A name that Ollama takes: as file_name, of Latin letters alone. Raises UsageError where nothing is left."""
    if not (plain := plain_name(text.lower(), str.isascii)):
        raise UsageError(
            f"Ollama's names are of the letters a to z, digits, points and dashes, and {text!r} has none of them; "
            "add --name NAME"
        )
    return plain
