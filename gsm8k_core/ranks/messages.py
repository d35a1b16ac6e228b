"""What goes over a line, to and from the nouns of the house."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np

from gsm8k_core.models.tokenizer import Tokenizer
from gsm8k_core.problems.prompts import decode
from gsm8k_core.ranks.wire import END, FAILED, Frame
from gsm8k_core.scoring.answers import AnswerLine
from gsm8k_core.scoring.calculator import Calculator
from gsm8k_core.types import (
    Batch,
    Completion,
    DivergedError,
    GSM8KError,
    OutOfMemoryError,
    RankLostError,
    Sampling,
    Totals,
    Update,
)

# Sampling's functions, which no line carries: those of these kinds a rank makes for itself, of its model's tokenizer.
MADE: Mapping[str, tuple[type, Callable[[Tokenizer], Any]]] = {
    "force": (Calculator, Calculator.of),
    "complete": (AnswerLine, lambda tokenizer: AnswerLine(partial(decode, tokenizer))),
}


def arrays_of(update: Update) -> list[np.ndarray[Any, Any]]:
    """The arrays of an update's micro-batches."""
    return [
        array
        for batch in update.micro_batches
        for array in (batch.tokens, batch.labels, batch.weights)
        if array is not None
    ]


def update_values(update: Update) -> dict[str, Any]:
    """All else of it."""
    return {
        "number": update.number,
        "epoch": update.epoch,
        "rows": [list(batch.rows) for batch in update.micro_batches],
        "weighted": [batch.weights is not None for batch in update.micro_batches],
        "totals": [update.num_targets, update.num_tokens],
    }


def update_of(message: Frame) -> Update:
    """The update that a message carries."""
    arrays, values, batches = iter(message.arrays), message.values, []
    for rows, weighted in zip(values["rows"], values["weighted"], strict=True):
        tokens, labels = next(arrays), next(arrays)
        batches.append(Batch(tokens, labels, next(arrays) if weighted else None, tuple(rows)))
    rows = tuple(row for batch in batches for row in batch.rows)
    return Update(values["number"], values["epoch"], rows, tuple(batches), Totals(*values["totals"]))


def completion_values(completion: Completion) -> list[Any]:
    """All that it carries, in the order of its fields."""
    return [getattr(completion, each.name) for each in fields(Completion)]


def completion(values: Sequence[Any]) -> Completion:
    """The answer that a message carries; JSON has lists for tuples."""
    made: list[Any] = [tuple(value) if isinstance(value, list) else value for value in values]
    return Completion(*made)


def sampling_values(sampling: Sampling) -> dict[str, Any] | None:
    """How answers are drawn, true for a function that the other end makes; None where it cannot make one."""
    values = {each.name: getattr(sampling, each.name) for each in fields(Sampling)}
    for name, (kind, _) in MADE.items():
        if type(values[name]) not in (kind, type(None)):
            return None
        values[name] = values[name] is not None
    return values


def sampling_of(values: Mapping[str, Any], tokenizer: Callable[[], Tokenizer]) -> Sampling:
    """The same at the other end; `tokenizer` is asked for where a function is made of it. Raises DataError."""
    made = {name: make(tokenizer()) if values[name] else None for name, (_, make) in MADE.items()}
    return Sampling(**{**values, **made})


def error_values(error: GSM8KError) -> dict[str, Any]:
    """What another rank has to know of an error."""
    values: dict[str, Any] = {"text": str(error), "code": error.exit_code}
    if isinstance(error, DivergedError):
        values |= {"tensor": error.tensor, "rows": list(error.rows), "damaged": error.damaged}
    return values


def raise_if_ended(peer: str, message: Frame) -> None:
    """Raise what ended another rank, where a message says that it did: nothing can be tried again without it."""
    if message.kind == END:
        raise RankLostError(f"{peer} has ended")
    if message.kind == FAILED:
        raise _lost(peer, message.values["error"])


def raise_failure(peer: str, message: Frame) -> None:
    """Raise the error that a message tells of, where it does."""
    error: Mapping[str, Any] | None = message.values.get("error")
    if error is None:
        return
    kinds = {OutOfMemoryError.exit_code: OutOfMemoryError, DivergedError.exit_code: DivergedError}
    kind: Any = kinds.get(error["code"])
    if kind is not None:  # all are there, and go on
        raise kind(f"{peer}: {error['text']}")
    raise _lost(peer, error)


def _lost(peer: str, error: Mapping[str, Any]) -> RankLostError:
    failure = RankLostError(f"{peer}: {error['text']}")
    failure.exit_code = error["code"]
    return failure
