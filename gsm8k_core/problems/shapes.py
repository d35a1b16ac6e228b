"""The shape of a row: which of its columns hold the question and the answer, as the data sets of this field name them.

    question/answer        GSM8K                       messages        [{role, content}]: chats, TRL, OpenAI
    query/response         MetaMathQA                  conversations   [{from, value}]: ShareGPT
    problem/solution       NuminaMath, MATH            prompt/completion, instruction/output: texts, or lists of turns

A file's first row says which one it is; every other row must have the same columns. One row is one problem: a chat of
several questions is none. A system turn is left out, since training and evaluation have their own.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from gsm8k_core.problems.lines import Constant, Row, fields, is_text, kind
from gsm8k_core.types import DataError, UsageError

# The first that a row has is its shape; after these, any one question beside any one answer.
PAIRS = (
    ("question", "answer"),
    ("query", "response"),
    ("problem", "solution"),
    ("prompt", "completion"),
    ("instruction", "output"),
)
CHATS = ("messages", "conversations", "conversation")
QUESTIONS = ("question", "query", "problem", "prompt", "instruction", "input")
ANSWERS = ("answer", "response", "solution", "completion", "output")
MORE = "input"  # of instruction/output: what the instruction is about
USERS, ANSWERERS, SYSTEMS = {"user", "human"}, {"assistant", "gpt", "model", "chatgpt", "bot"}, {"system", "developer"}
MOST_NAMED = 12  # columns in one line of an error


class BadRowError(DataError):
    """A row that is no problem, in a file that is whole: --skip-bad-rows goes on without it."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Those that a person named; "" is for the ones that are found."""

    question: str = ""
    answer: str = ""


@dataclass(frozen=True)
class Shape:
    """Which columns are read. Of a chat both are the one that holds its turns."""

    question: str
    answer: str
    more: str = ""  # stands below the question where it is not empty

    @property
    def name(self) -> str:
        """messages, question/answer."""
        return self.question if self.is_chat else f"{self.question}/{self.answer}"

    @cached_property
    def is_chat(self) -> bool:
        return self.question == self.answer

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """What has to be read of a row."""
        return tuple(dict.fromkeys(filter(None, (self.question, self.answer, self.more))))

    def texts(self, row: Mapping[str, Any], where: str) -> tuple[str, str, bool]:
        """(question, answer, whether it had a system turn) of a row. Raises DataError with its place."""
        for name in self.columns:
            if name not in row and name != self.more:
                error = DataError if row else BadRowError
                raise error(f"{where}: no {name!r}; give {self._both}, as the rows before have it")
        values, question, answer = row, row[self.question], row[self.answer]
        if isinstance(row, Row) and (row.twice or not type(question) is type(answer) is str):
            fields(row, self.columns, where)
        if self.is_chat:
            return _of_turns(question, where, self.question)
        if isinstance(question, list) and isinstance(answer, list):  # TRL's prompt/completion as turns
            return _of_turns([*question, *answer], where, self.name)
        question, answer = self._text(question, self.question, where), self._text(answer, self.answer, where)
        more = values.get(self.more) if self.more else None
        return (f"{question}\n\n{more}" if isinstance(more, str) and more.strip() else question), answer, False

    @property
    def _both(self) -> str:
        return f"{self.question} and {self.answer}"

    def _text(self, value: object, name: str, where: str) -> str:
        if type(value) is not str:  # a Number is a str too
            error = BadRowError if value is None else DataError
            raise error(f"{where}: {name!r} is {kind(value)}, not a text; give {self._both} as texts")
        if not value.strip():
            raise BadRowError(f"{where}: {name!r} is empty; give {self._both}")
        return checked_text(value, name, where)


def checked_text(text: str, name: str, where: str) -> str:
    """The text itself. Raises DataError for a NUL or half a surrogate pair."""
    if not is_text(text):
        raise DataError(f"{where}: {name!r} has a NUL or half a surrogate pair, which is not text; remove it")
    return text


def shape_of(columns: Collection[str], asked: Columns, where: str, is_list: Callable[[str], bool]) -> Shape:
    """The shape of rows with these columns. Raises DataError where none is known, UsageError for a name they lack."""
    for name, setting in ((asked.question, "--question-column"), (asked.answer, "--answer-column")):
        if name and name not in columns:
            raise UsageError(f"{setting} {name}: {where} has no such column ({_named(columns)}){_near(name, columns)}")
    if asked.question and is_list(asked.question) and asked.answer in ("", asked.question):
        return Shape(asked.question, asked.question)
    if asked.question and asked.question == asked.answer:
        raise UsageError(f"--question-column and --answer-column are both {asked.question}; name two columns")
    found = _pair({name.lower(): name for name in reversed([*columns])}, asked)
    if found is None:
        raise DataError(
            f"{where}: no question and answer that are known among its columns ({_named(columns)}); give rows of "
            f"{', '.join('/'.join(pair) for pair in PAIRS)} or messages, or name yours with --question-column and "
            "--answer-column"
        )
    return found


def _pair(columns: Mapping[str, str], asked: Columns) -> Shape | None:
    """Of the columns by their small letters, those of the question and the answer."""
    questions = [asked.question] if asked.question else [columns[name] for name in QUESTIONS if name in columns]
    answers = [asked.answer] if asked.answer else [columns[name] for name in ANSWERS if name in columns]
    pairs = [pair for pair in product(questions, answers) if pair[0] != pair[1]]
    for question, answer in PAIRS:
        if (found := (columns.get(question, ""), columns.get(answer, ""))) in pairs:
            return Shape(*found, columns.get(MORE, "") if question == "instruction" else "")
    if not (asked.question or asked.answer):
        for name in CHATS:
            if name in columns:
                return Shape(columns[name], columns[name])
    return Shape(*pairs[0]) if len(pairs) == 1 else None


def _named(columns: Collection[str]) -> str:
    names = [repr(name)[1:-1] for name in columns]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"it has {', '.join(names[:MOST_NAMED])}{more}" if names else "it has none"


def _near(name: str, columns: Collection[str]) -> str:
    small = {column.lower(): column for column in columns}
    near = difflib.get_close_matches(name.lower(), small, n=1)
    return f"; did you mean {small[near[0]]}?" if near else ""


# --- turns ----------------------------------------------------------------------------------------------------


def _of_turns(turns: object, where: str, name: str) -> tuple[str, str, bool]:
    """The one question and the one answer of a chat."""
    if not isinstance(turns, list) or not turns:
        what = "an empty list" if turns == [] else kind(turns)
        error = BadRowError if turns == [] or turns is None else DataError
        raise error(f"{where}: {name!r} is {what}, not a list of turns; give [{{role, content}}, ...]")
    said = [_turn(turn, where, name, number) for number, turn in enumerate(turns, 1)]
    systems = [text for role, text in said if role in SYSTEMS]
    rest = [(role, text) for role, text in said if role not in SYSTEMS]
    roles = [role for role, _ in rest]
    asked, answered = sum(role in USERS for role in roles), sum(role in ANSWERERS for role in roles)
    if (asked, answered) != (1, 1) or roles[0] not in USERS:
        order = ", ".join(roles[:6]) + (", ..." if len(roles) > 6 else "")
        raise BadRowError(
            f"{where}: {name!r} has the turns {order or 'of a system alone'}; a row is one problem: one user turn with "
            "the question, then one assistant turn with the answer"
        )
    for (_, text), what in zip(rest, ("question", "answer"), strict=True):
        if not text.strip():
            raise BadRowError(f"{where}: the {what} in {name!r} is empty; give a text")
    return rest[0][1], rest[1][1], bool(systems)


def _turn(turn: object, where: str, name: str, number: int) -> tuple[str, str]:
    """(role, text) of a turn, its role in small letters."""
    place = f"{where}: turn {number} of {name!r}"
    if not isinstance(turn, Mapping):
        raise DataError(f"{place} is {kind(turn)}, not an object; give {{role, content}}")
    role = turn.get("role", turn.get("from"))
    content = turn["content"] if turn.get("content") is not None else turn.get("value")
    if type(role) is not str or role.lower() not in USERS | ANSWERERS | SYSTEMS:
        known = role if type(role) is str else kind(role)
        raise BadRowError(f"{place} is of {known!r}; the roles are system, user and assistant")
    text = _joined(content) if isinstance(content, list) else content
    if type(text) is not str or isinstance(text, Constant):
        raise DataError(f"{place} has no text: its content is {kind(content)}; give a text, or parts of type text")
    return role.lower(), checked_text(text, name, where)


def _joined(parts: Sequence[object]) -> str | None:
    """The text of a content in parts; None where one is an image or anything else."""
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    if not all(type(text) is str for text in texts):
        return None
    return "".join(map(str, texts))
