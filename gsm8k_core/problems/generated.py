"""Our own word problems in GSM8K's exact form, for trying things out where no data can be fetched.

Easier than GSM8K on purpose, so that a small model can learn them in minutes: 1 to 4 steps, mostly short
(10, 9, 4 and 2 rows of every 25), whole numbers, few of them above 200. A fifth of the test rows comes from
templates that training never sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gsm8k_core.problems.stories import FOUR_STEPS, ONE_STEP, THREE_STEPS, TWO_STEPS, Draw, Story, Writer
from gsm8k_core.types import DataError, Problem, UsageError

# Of every 25 rows, how many have 1, 2, 3 and 4 steps: 60, 28, 8 and 4 %; ten minutes on two cores must show something.
LEVEL_MIX = {1: 15, 2: 7, 3: 2, 4: 1}
HELD_OUT_EVERY = 5  # every fifth test row comes from a held-out template
MAX_DRAWS = 200  # tries to find a question that was not asked before
_TEST, _TRAIN = 0, 1  # part of the random seed: renumbering changes every problem
_HELD_OUT_DECK, _SEEN_DECK, _ROWS = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Template:
    """One kind of story. `level` is its number of steps."""

    name: str
    level: int
    write: Writer


TEMPLATES: tuple[Template, ...] = tuple(
    Template(write.__name__, level, write)
    for level, writers in enumerate((ONE_STEP, TWO_STEPS, THREE_STEPS, FOUR_STEPS), start=1)
    for write in writers
)
HELD_OUT: frozenset[str] = frozenset(
    {
        "chair_rows",
        "tree_heights",
        "music_practice",
        "leaking_tank",
        "bus_stop",
        "pizza_slices",
        "empty_seats",
        "theater_tickets",
    }
)


def generate_problems(seed: int = 0, num_train: int = 2000, num_test: int = 400) -> tuple[list[Problem], list[Problem]]:
    """Train and test problems: no question twice, held-out templates in test only.

    The test rows depend on `seed` alone, so runs on more or fewer train rows face the same test.
    """
    if min(seed, num_train, num_test) < 0:
        raise UsageError(f"seed and row counts must be 0 or more, got {seed}, {num_train} and {num_test}")
    seen = _deal(seed, _TEST, _SEEN_DECK, [one for one in TEMPLATES if one.name not in HELD_OUT])
    held_out = _deal(seed, _TEST, _HELD_OUT_DECK, [one for one in TEMPLATES if one.name in HELD_OUT])
    asked: set[str] = set()
    test = []
    for row in range(num_test):
        deck = held_out if row % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 else seen
        test.append(_fresh_problem(f"test-{row}", next(deck), _row_rng(seed, _TEST, row), asked))
    train_deck = _deal(seed, _TRAIN, _SEEN_DECK, [one for one in TEMPLATES if one.name not in HELD_OUT])
    train = [
        _fresh_problem(f"train-{row}", next(train_deck), _row_rng(seed, _TRAIN, row), asked) for row in range(num_train)
    ]
    return train, test


def _row_rng(seed: int, split: int, row: int) -> np.random.Generator:
    """Each row has its own: a question that must be redrawn changes no other row."""
    return np.random.default_rng([seed, split, _ROWS, row])


def _deal(seed: int, split: int, deck: int, templates: Sequence[Template]) -> Iterator[Template]:
    """Templates without end: levels in the proportions of LEVEL_MIX, each level's templates in turn."""
    rng = np.random.default_rng([seed, split, deck])
    turns = {level: _in_turn(rng, [one for one in templates if one.level == level]) for level in LEVEL_MIX}
    levels = [level for level, count in LEVEL_MIX.items() for _ in range(count)]
    while True:
        for card in rng.permutation(len(levels)):
            yield next(turns[levels[card]])


def _in_turn(rng: np.random.Generator, templates: Sequence[Template]) -> Iterator[Template]:
    """All templates once, in random order, then all again in a new order."""
    while True:
        for index in rng.permutation(len(templates)):
            yield templates[index]


def _fresh_problem(row_id: str, template: Template, rng: np.random.Generator, asked: set[str]) -> Problem:
    """A problem whose question is not in `asked`; adds it there."""
    for _ in range(MAX_DRAWS):
        story = template.write(Draw(rng))
        if story.question not in asked:
            asked.add(story.question)
            return _problem(row_id, template, story)
    raise DataError(
        f"generated data: no new question for {template.name!r} after {len(asked)} rows; ask for fewer rows"
    )


def _problem(row_id: str, template: Template, story: Story) -> Problem:
    answer = "\n".join((*story.steps, f"#### {story.gold}"))
    return Problem(row_id, story.question, answer, str(story.gold), template.name)
