"""Where a base model's closing token starts from.

A base model's template closes a turn with a token that the base has hardly seen: its row of the embedding is near what
it was drawn as (Qwen2.5-0.5B: norm 0.38, and 1.6 for the end of a document). Its meaning is that of a document's end,
so training starts it there, in the head as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gsm8k_core.models.folder import EMBEDDING, ModelFolder, read_rows
from gsm8k_core.types import Choice

if TYPE_CHECKING:
    from gsm8k_core.types import FloatArray

NAME = "turn_end"  # of the choice
STARTED = "started as the document's end"
# Of the document end's norm, and the cosine between the two. Below both, the row is no learned one.
SMALL, UNLIKE = 0.5, 0.5


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """The token that closes a turn and the one that ends a document, with what their rows say of one another."""

    token: int
    document_end: int
    words: tuple[str, str]
    norms: tuple[float, float]
    cosine: float

    @property
    def is_near_random(self) -> bool:
        """Whether its row has not been learned."""
        return self.norms[0] < SMALL * self.norms[1] and self.cosine < UNLIKE

    def choice(self, adapter: bool) -> Choice:
        """What is done with it, and why; an `adapter` leaves its base as it is."""
        (own, end), (norm, other) = self.words, self.norms
        rows = (
            f"{own} closes an answer; its row has norm {norm:.2g}, that of {end} {other:.2g}, cosine {self.cosine:.2f}"
        )
        if not self.is_near_random:
            return Choice("as it is", rows)
        if adapter:
            return Choice("as it is", f"{rows}: near-random, and an adapter leaves it so; --method full would start it")
        return Choice(STARTED, f"{rows}: near-random")


def turn_end_of(model: ModelFolder) -> TurnEnd | None:
    """That of a model whose template closes a turn with a token that its files do not name; else None."""
    rendering = model.rendering
    token, end = rendering.turn_end, rendering.document_end
    if token is None or end is None or max(token, end) >= model.vocabulary:  # the rows' check says that
        return None
    rows = read_rows(model, EMBEDDING, (token, end))
    if rows is None:
        return None
    words = rendering.word(token), rendering.word(end)
    return TurnEnd(token, end, words, (_norm(rows[0]), _norm(rows[1])), _cosine(*rows))


def _norm(row: FloatArray) -> float:
    return float((row.astype("float64") ** 2).sum() ** 0.5)


def _cosine(a: FloatArray, b: FloatArray) -> float:
    length = _norm(a) * _norm(b)
    return float((a.astype("float64") * b).sum()) / length if length else 0.0
