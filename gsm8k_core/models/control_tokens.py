"""Text is text: what a problem's words look like never makes one of the tokenizer's control tokens of them.

A tokenizer takes `<|im_end|>` for the end of a turn wherever it stands, also in the middle of a question: a turn of the
assistant's could be forged there. So such words are hidden before a conversation is rendered, and the few texts that
held some are encoded by a copy of the tokenizer that knows its control tokens under other names, which nobody can
type. The copy is the same pipeline, so that what merges with what stays as it is.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gsm8k_core.models.tokenizer import Tokenizer

NONCE = secrets.token_hex(12)  # known to nobody before the process began, and in no token's number
_PLACE = re.compile(f"q{NONCE}x([0-9]+)q")
# Of added tokens that are not called special, those that look like a mark: <think>, [INST], <|fim_prefix|>. Others are
# ordinary text that has a token of its own, such as Gemma's line ends.
_MARK = re.compile(r"[<\[|\uff5c][^\s]*\w[^\s]*[>\]|\uff5c]")
_START = 3  # characters by which a text is looked through first


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as its template writes it. What is hidden, in order, stands behind the places in `text`."""

    text: str
    hidden: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """With the words in their places."""
        return restored(self.text, self.hidden)


def restored(text: str, hidden: Sequence[str]) -> str:
    """The text with the hidden words in their places."""
    return _PLACE.sub(lambda place: hidden[int(place[1])], text) if hidden else text


def is_control(content: str, special: bool) -> bool:
    """Whether an added token is a control token, and no ordinary text."""
    return bool(content.strip()) and (special or bool(_MARK.fullmatch(content)))


class ControlTokens:
    """Those of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self._ids = {
            token.content: int(number)
            for number, token in added.items()
            if is_control(token.content, token.special) and not token.single_word
        }
        starts = sorted({re.escape(content[:_START]) for content in self._ids})
        self._starts = re.compile("|".join(starts)) if starts else None

    @property
    def ids(self) -> Mapping[str, int]:
        """Their numbers, by their texts."""
        return self._ids

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self._ids, key=len, reverse=True))))

    def first(self, text: str) -> str | None:
        """The first one that a text spells."""
        if self._starts is None or not self._starts.search(text):
            return None
        found = self._pattern.search(text)
        return found[0] if found else None

    def hide(self, text: str, hidden: list[str]) -> str:
        """The text with a place for each control token that it spells; those come behind what is `hidden` already."""
        if self.first(text) is None:
            return text

        def place(found: re.Match[str]) -> str:
            hidden.append(found[0])
            return f"q{NONCE}x{len(hidden) - 1}q"

        return self._pattern.sub(place, text)

    def encode(self, text: str, hidden: Sequence[str] = ()) -> list[int]:
        """The tokens of a text: control tokens are control tokens, and what is hidden is only spelled."""
        if not getattr(self._tokenizer, "is_fast", False):
            return self._in_pieces(text, hidden)
        named = self._pattern.sub(lambda found: self._name(found[0]), text)
        return list(self._renamed.encode(restored(named, hidden), add_special_tokens=False).ids)

    def _name(self, content: str) -> str:
        return f"<{NONCE}:{self._ids[content]}>"

    @cached_property
    def _renamed(self) -> Any:
        """The tokenizer with its control tokens under other names and the same numbers."""
        from tokenizers import Tokenizer as Pipeline  # here, not above: transformers brings it, and `--help` must not

        described = json.loads(self._tokenizer.backend_tokenizer.to_str())
        described |= {"post_processor": None, "truncation": None, "padding": None}  # nothing is added, cut or filled
        for token in described["added_tokens"]:
            if token["content"] in self._ids:
                token["content"] = self._name(token["content"])
        self._rename(described["model"])
        return Pipeline.from_str(json.dumps(described, ensure_ascii=False))

    def _rename(self, model: dict[str, Any]) -> None:
        """The same in the vocabulary: a text that spells a whole entry might be taken for that."""
        if model.get("unk_token") in self._ids:
            model["unk_token"] = self._name(model["unk_token"])
        vocabulary = model.get("vocab")
        if isinstance(vocabulary, list):  # Unigram: pieces and their scores
            model["vocab"] = [[self._name(p) if p in self._ids else p, score] for p, score in vocabulary]
        elif isinstance(vocabulary, dict):
            model["vocab"] = {self._name(p) if p in self._ids else p: number for p, number in vocabulary.items()}
        if "merges" in model:
            pairs = (pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"])
            model["merges"] = [pair for pair in pairs if not {*pair, "".join(pair)} & self._ids.keys()]

    def _in_pieces(self, text: str, hidden: Sequence[str]) -> list[int]:
        """For a tokenizer in Python: it splits a text at its added tokens, and encodes each piece by itself."""
        ids: list[int] = []
        flags = {token.content: token for token in self._tokenizer.added_tokens_decoder.values()}
        at, strip = 0, False
        for found in [*self._pattern.finditer(text), None]:
            piece = text[at : found.start() if found else len(text)]
            piece = piece.lstrip() if strip else piece
            piece = piece.rstrip() if found and flags[found[0]].lstrip else piece
            if piece:
                spelled = self._tokenizer(
                    restored(piece, hidden), add_special_tokens=False, split_special_tokens=bool(_PLACE.search(piece))
                )
                # One that splits at blanks alone has no other token for such a word.
                unknown, control = self._tokenizer.unk_token_id, set(self._ids.values())
                ids += [unknown if each in control and unknown is not None else each for each in spelled["input_ids"]]
            if found:
                ids.append(self._ids[found[0]])
                at, strip = found.end(), bool(flags[found[0]].rstrip)
        return ids


class PlainTexts:
    """Rendered conversations that go through other hands as plain texts, get more behind them, and are encoded then.

    Such a text may also begin with `begin`, a token that is none of a problem's.
    """

    def __init__(self, control: ControlTokens, begin: str = "") -> None:
        self._control = control
        # By what the others see, without white space at its end: some take it away.
        self._made = {begin: Rendered(begin)}

    def give(self, made: Rendered) -> str:
        """What the others see."""
        self._made[made.shown.rstrip()] = made
        return made.shown

    def encode(self, text: str) -> list[int] | None:
        """The tokens of a text in which something spells a control token; None where nothing does.

        What no template wrote is text, all of it.
        """
        if self._control.first(text) is None:
            return None
        start = max((seen for seen in self._made if text.startswith(seen)), key=len, default="")
        made = self._made.get(start) or Rendered("")
        hidden = list(made.hidden)
        rest = self._control.hide(text[len(start) :], hidden)
        return self._control.encode(made.text.rstrip() + rest, hidden) if hidden else None
