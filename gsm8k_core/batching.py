"""Examples -> Updates -> micro-batches.

Which rows an update holds, and in what order updates come, is a pure function of seed, epoch, update size and
the rows themselves. How an update is cut into micro-batches changes speed and memory, never that.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import numpy as np

from gsm8k_core.types import IGNORE_INDEX, Batch, Example, Update

PAD_ID = 0  # any token would do: causal attention keeps padding on the right from every target, and its label is masked
PAD_MULTIPLE = 8  # few distinct widths: both frameworks keep one compiled shape per width


def rows_hash(examples: Sequence[Example]) -> str:
    """sha256 over ids, tokens and prompt lengths: the data as the model sees it."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{example.id}:{example.num_prompt}:".encode())
        digest.update(np.asarray(example.tokens, dtype="<i4").tobytes())
    return digest.hexdigest()


def num_updates(num_rows: int, update_size: int, num_epochs: int) -> int:
    """Updates in the whole run; the last update of an epoch may hold fewer rows."""
    return num_epochs * math.ceil(num_rows / update_size)


def pad(examples: Sequence[Example]) -> Batch:
    """One micro-batch of shape (B, T), right-padded to a multiple of PAD_MULTIPLE."""
    longest = max(len(example.tokens) for example in examples)
    width = math.ceil(longest / PAD_MULTIPLE) * PAD_MULTIPLE
    tokens = np.full((len(examples), width), PAD_ID, dtype=np.int32)
    labels = np.full((len(examples), width), IGNORE_INDEX, dtype=np.int32)
    for row, example in enumerate(examples):
        end = len(example.tokens)
        tokens[row, :end] = example.tokens
        labels[row, example.num_prompt : end] = example.tokens[example.num_prompt :]
    return Batch(tokens, labels)


def micro_batches(examples: Sequence[Example], batch_size: int) -> tuple[Batch, ...]:
    """The rows of one update, longest together, in micro-batches of at most `batch_size` rows."""
    by_length = sorted(examples, key=lambda example: (-len(example.tokens), example.id))
    return tuple(pad(by_length[at : at + batch_size]) for at in range(0, len(by_length), batch_size))


def make_updates(
    examples: Sequence[Example], *, batch_size: int, update_size: int, num_epochs: int, seed: int
) -> Iterator[Update]:
    """Every update of the run, in order, made as it is asked for."""
    salt = int(rows_hash(examples)[:16], 16)
    number = 0
    for epoch in range(num_epochs):
        order = np.random.default_rng([seed, epoch, update_size, salt]).permutation(len(examples))
        for start in range(0, len(examples), update_size):
            rows = [examples[index] for index in order[start : start + update_size]]
            number += 1
            cut = micro_batches(rows, batch_size)
            yield Update(number, epoch, tuple(example.id for example in rows), cut)
