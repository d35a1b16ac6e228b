"""Examples -> Updates -> micro-batches.

Which rows an update holds, and in what order updates come, is a pure function of seed, epoch, update size and
the rows themselves. How an update is cut into micro-batches changes speed and memory, never that.

Rows of like length share a micro-batch, and its padded tokens (rows x width) stay within a budget: so the longest rows
do not set the memory, and little of what is computed is padding. docs/performance.md has the figures.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise, takewhile

import numpy as np

from gsm8k_core.problems.corpus import Corpus
from gsm8k_core.types import IGNORE_INDEX, Batch, Choice, Example, Totals, Update, counted

PAD_ID = 0  # any token would do: causal attention keeps padding on the right from every target, and its label is masked
PAD_MULTIPLE = 8  # few distinct widths: both frameworks keep one compiled shape per width
LOOKED_AT = 256  # rows of a corpus that seem the longest, for its longest micro-batch
OVERHEAD_TOKENS = 64  # what a micro-batch costs beside its tokens, in tokens: 69 measured, SmolLM2-135M in bfloat16


def rows_hash(examples: Sequence[Example]) -> str:
    """sha256 over ids, tokens, prompt lengths and forced positions: the data as the model sees it."""
    if isinstance(examples, Corpus):
        return examples.hash
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{example.id}:{example.num_prompt}:".encode())
        if example.forced:  # a row without any has the hash that it always had
            digest.update(f"{example.forced}:".encode())
        digest.update(np.asarray(example.tokens, dtype="<i4").tobytes())
    return digest.hexdigest()


def num_updates(num_rows: int, update_size: int, num_epochs: int) -> int:
    """Updates in the whole run; the last update of an epoch may hold fewer rows."""
    return num_epochs * math.ceil(num_rows / update_size)


def pad(examples: Sequence[Example]) -> Batch:
    """One micro-batch of shape (B, T), right-padded to a multiple of PAD_MULTIPLE.

    A forced token is no target, as the prompt's are none: with a weight of 0 it would count in the loss's divisor.
    """
    width = width_of(examples)
    tokens = np.full((len(examples), width), PAD_ID, dtype=np.int32)
    labels = np.full((len(examples), width), IGNORE_INDEX, dtype=np.int32)
    for row, example in enumerate(examples):
        end = len(example.tokens)
        tokens[row, :end] = example.tokens
        labels[row, example.num_prompt : end] = example.tokens[example.num_prompt :]
        labels[row, list(example.forced)] = IGNORE_INDEX
    return Batch(tokens, labels, rows=tuple(example.id for example in examples))


def padded_width(num_tokens: int) -> int:
    """T of a micro-batch whose longest row has so many tokens."""
    return math.ceil(num_tokens / PAD_MULTIPLE) * PAD_MULTIPLE


def _width(example: Example) -> int:
    return padded_width(len(example.tokens))


def width_of(examples: Sequence[Example]) -> int:
    """T of a micro-batch of these rows; of a corpus, the most that a row may have."""
    return padded_width(examples.max_length) if isinstance(examples, Corpus) else max(map(_width, examples))


def by_length(examples: Sequence[Example]) -> list[Example]:
    """Longest first; of one length, in the order of their ids."""
    return sorted(examples, key=lambda example: (-len(example.tokens), example.id))


def micro_batches(examples: Sequence[Example], batch_size: int) -> tuple[Batch, ...]:
    """The rows of one update, longest together, in micro-batches of at most `batch_size` rows."""
    rows = by_length(examples)
    return tuple(pad(rows[at : at + batch_size]) for at in range(0, len(rows), batch_size))


def budgeted(examples: Sequence[Example], max_tokens: int) -> tuple[Batch, ...]:
    """The rows of one update in micro-batches of at most `max_tokens` padded tokens, or of one row.

    The cheapest cut of the sorted rows: padded tokens in all, and OVERHEAD_TOKENS for each micro-batch.
    """
    rows = by_length(examples)
    return tuple(pad(rows[start:end]) for start, end in _cut(rows, max_tokens))


def _cut(rows: Sequence[Example], max_tokens: int) -> list[tuple[int, int]]:
    """Where the micro-batches of `budgeted` begin and end in the sorted rows."""
    return _cut_widths([_width(row) for row in rows], max_tokens)


def _cut_widths(widths: Sequence[int], max_tokens: int) -> list[tuple[int, int]]:
    """The same, of rows of these widths, the widest first."""
    cost, begins = [0], [0]  # by number of rows cut so far: the least cost, and where its last micro-batch begins
    for end in range(1, len(widths) + 1):
        cost.append(cost[end - 1] + widths[end - 1] + OVERHEAD_TOKENS)
        begins.append(end - 1)
        for start in range(end - 2, -1, -1):
            tokens = (end - start) * widths[start]
            if tokens > max_tokens:
                break
            if cost[start] + tokens + OVERHEAD_TOKENS < cost[end]:
                cost[end], begins[end] = cost[start] + tokens + OVERHEAD_TOKENS, start
    cuts = [len(widths)]
    while cuts[-1]:
        cuts.append(begins[cuts[-1]])
    return [(start, end) for end, start in pairwise(cuts)][::-1]


def fullest(examples: Sequence[Example], max_tokens: int, update_size: int) -> Batch:
    """A micro-batch of the longest rows: as many as `max_tokens` has room for and an update holds, at least one."""
    rows = examples.longest(LOOKED_AT) if isinstance(examples, Corpus) else examples
    return pad(by_length(rows)[: max(min(max_tokens // width_of(rows), update_size), 1)])


def choose_tokens(
    asked: str, batch_size: int, max_length: int, device: Choice, by_memory: bool = False, limit: Choice | None = None
) -> Choice:
    """Most padded tokens in a micro-batch. `device` names how many it is fast with, and why.

    `by_memory`: what fits is reckoned beside this, so `batch_size`, which says how many rows do, caps nothing.
    `limit`: the most that the device is right with, and why, whatever is asked for.
    """
    most = batch_size * max_length
    if asked != "auto":
        name, reason = asked, f"--micro-batch-tokens {asked}"
    elif by_memory or int(device.name) <= most:
        name, reason = device.name, device.reason
    else:
        name, reason = str(most), f"as many as {counted(batch_size, 'row')} of --max-length {max_length}"
    if limit is not None and int(name) > int(limit.name):
        name, reason = limit.name, f"{reason}, but {limit.reason}"
    return Choice(name, f"padded tokens at most in a micro-batch; {reason}")


def make_updates(
    examples: Sequence[Example],
    *,
    update_size: int,
    num_epochs: int,
    seed: int,
    batch_size: int = 1,
    max_tokens: int | None = None,
    after: int = 0,
) -> Iterator[Update]:
    """Every update of the run that comes after the first `after`, in order, made as it is asked for.

    A micro-batch holds at most `max_tokens` padded tokens; without a budget, `batch_size` rows.
    """
    every = enumerate(_places_of_updates(examples, update_size, num_epochs, seed), 1)
    for number, (epoch, places) in islice(every, after, None):
        rows = examples.take(places) if isinstance(examples, Corpus) else [examples[place] for place in places]
        cut = micro_batches(rows, batch_size) if max_tokens is None else budgeted(rows, max_tokens)
        yield Update(number, epoch, tuple(example.id for example in rows), cut)


def padded_tokens(
    examples: Sequence[Example], *, update_size: int, num_epochs: int, seed: int, max_tokens: int
) -> Iterator[int]:
    """`num_tokens` of every update of the run, in order, without making one; of a corpus, about as many."""
    for _, places in _places_of_updates(examples, update_size, num_epochs, seed):
        rows = by_length(examples.outline(places) if isinstance(examples, Corpus) else [examples[p] for p in places])
        yield sum((end - start) * _width(rows[start]) for start, end in _cut(rows, max_tokens))


def _places_of_updates(
    examples: Sequence[Example], update_size: int, num_epochs: int, seed: int
) -> Iterator[tuple[int, list[int]]]:
    """(epoch, places of its rows) of every update, in order."""
    salt = int(rows_hash(examples)[:16], 16)
    for epoch in range(num_epochs):
        order = np.random.default_rng([seed, epoch, update_size, salt]).permutation(len(examples))
        for start in range(0, len(examples), update_size):
            yield epoch, order[start : start + update_size].tolist()


# --- over ranks -------------------------------------------------------------------------------------------------------


def over_ranks(update: Update, size: int, max_tokens: int) -> list[Update]:
    """The update's rows dealt out to `size` ranks: each one's own update, whose `totals` are those of all.

    Longest first, each to the rank with the fewest padded tokens so far: in the end, two are at most one row apart
    (Graham 1969). Each rank's rows are cut into micro-batches of at most `max_tokens` padded tokens, or of one row.
    What stands behind a row's last target changes nothing, and is left out. A rank may get no rows.
    """
    rows = sorted(_rows_of(update), key=lambda row: (-row.width, row.place))
    dealt: list[list[_Row]] = [[] for _ in range(size)]
    loads = [0] * size
    for row in rows:
        rank = loads.index(min(loads))
        dealt[rank].append(row)
        loads[rank] += row.width
    cuts = [
        tuple(_stack(mine[start:end]) for start, end in _cut_widths([row.width for row in mine], max_tokens))
        for mine in dealt
    ]
    batches = [batch for cut in cuts for batch in cut]
    totals = Totals(sum(batch.num_targets for batch in batches), sum(batch.tokens.size for batch in batches))
    ids = [tuple(row.id for row in sorted(mine, key=lambda row: row.place)) for mine in dealt]
    return [Update(update.number, update.epoch, *each, totals) for each in zip(ids, cuts, strict=True)]


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """One row of a micro-batch, as far as its last target."""

    place: int  # in the update
    id: str
    batch: Batch
    row: int  # in the batch
    end: int

    @property
    def width(self) -> int:
        return padded_width(self.end)


def _rows_of(update: Update) -> Iterator[_Row]:
    place = 0
    for batch in update.micro_batches:
        for row, labels_T in enumerate(batch.labels):
            targets = np.flatnonzero(labels_T != IGNORE_INDEX)
            name = batch.rows[row] if batch.rows else str(place)
            yield _Row(place, name, batch, row, int(targets[-1]) + 1 if len(targets) else 1)
            place += 1


def _stack(rows: Sequence[_Row]) -> Batch:
    """One micro-batch of these rows."""
    shape = (len(rows), max(row.width for row in rows))
    tokens, labels = np.full(shape, PAD_ID, dtype=np.int32), np.full(shape, IGNORE_INDEX, dtype=np.int32)
    weighted = any(row.batch.weights is not None for row in rows)
    weights = np.ones(shape, dtype=np.float32) if weighted else None
    for place, row in enumerate(rows):
        tokens[place, : row.end] = row.batch.tokens[row.row, : row.end]
        labels[place, : row.end] = row.batch.labels[row.row, : row.end]
        if weights is not None and row.batch.weights is not None:
            weights[place, : row.end] = row.batch.weights[row.row, : row.end]
    return Batch(tokens, labels, weights, tuple(row.id for row in rows))


# --- prompts that are alike -------------------------------------------------------------------------------------------


def shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens at their start all prompts share, at most all but one of the shortest; 0 for one prompt alone."""
    if len(prompts) < 2:
        return 0
    shortest = min(map(len, prompts))
    same = (len(set(column)) == 1 for column in zip(*prompts, strict=False))
    return sum(1 for _ in takewhile(bool, islice(same, shortest - 1)))


def first_alike(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Of each prompt, the index of the first that is the same token by token: its own, where none is before it."""
    first: dict[tuple[int, ...], int] = {}
    return [first.setdefault(tuple(prompt), index) for index, prompt in enumerate(prompts)]
