"""What training would see, before a model is loaded: lengths, lost answers, rows without a label."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gsm8k_core.folders import read_json
from gsm8k_core.types import DataError, Example, PreflightError, UsageError

LOSS_LIMIT = 0.05  # share of the answers that may be left out without being asked about


@dataclass(frozen=True, slots=True)
class Preflight:
    """The summary of a training set under a length limit. Lengths in tokens."""

    rows: int
    longer_than_max_length: int
    without_supervised_token: int
    max_length: int
    tokens: dict[str, float]  # mean, p50, p95, max of the whole rows
    suggested_max_length: int

    def as_json(self) -> dict[str, object]:
        return asdict(self)

    def line(self) -> str:
        """One line for a person."""
        tokens, longer, empty = self.tokens, self.longer_than_max_length, self.without_supervised_token
        lost = (
            f"{longer:,} ({100 * longer / self.rows:.1f} %) longer than --max-length {self.max_length} are left out "
            f"(cut there, {empty:,} would keep no trained token)"
        )
        return (
            f"{self.rows:,}; tokens: mean {tokens['mean']:.1f}, p50 {tokens['p50']:.0f}, p95 {tokens['p95']:.0f}, "
            f"max {tokens['max']:.0f}; {lost if longer else f'all fit --max-length {self.max_length}'}; "
            f"suggested: --max-length {self.suggested_max_length}"
        )


def summarise(examples: Sequence[Example], max_length: int) -> Preflight:
    """Count what a limit of `max_length` tokens costs. Raises DataError when there are no rows."""
    if not examples:
        raise DataError("there are no training rows")
    lengths = np.array([len(example.tokens) for example in examples])
    prompts = np.array([example.num_prompt for example in examples])
    p50, p95 = np.percentile(lengths, [50, 95])
    return Preflight(
        rows=len(examples),
        longer_than_max_length=int((lengths > max_length).sum()),
        without_supervised_token=int((prompts >= np.minimum(lengths, max_length)).sum()),
        max_length=max_length,
        tokens={"mean": float(lengths.mean()), "p50": float(p50), "p95": float(p95), "max": float(lengths.max())},
        suggested_max_length=int(-(-np.percentile(lengths, 99.5) // 64) * 64),
    )


def keep_whole(examples: Sequence[Example], summary: Preflight, drop_long: bool) -> list[Example]:
    """The rows that fit. An answer is never cut: a longer row is left out whole.

    Raises PreflightError when more than LOSS_LIMIT of them would be lost unasked, DataError when none is left.
    """
    kept = [example for example in examples if len(example.tokens) <= summary.max_length]
    if not kept:
        raise DataError(
            f"every row is longer than --max-length {summary.max_length}; "
            f"try --max-length {summary.suggested_max_length}"
        )
    lost = summary.longer_than_max_length / summary.rows
    if lost > LOSS_LIMIT and not drop_long:
        raise PreflightError(
            f"--max-length {summary.max_length} would lose {lost:.0%} of the answers (at most {LOSS_LIMIT:.0%} "
            f"unasked); try --max-length {summary.suggested_max_length}, or --drop-long to train on the rest"
        )
    return kept


def check_context(prompts: Iterable[Sequence[int]], folder: Path, max_new_tokens: int, shots: int = 0) -> None:
    """Raises DataError for a prompt that leaves the model no room for an answer (`max_position_embeddings`).

    UsageError for an answer that may be longer than all that the model reads: what it writes there means nothing.
    """
    limit = read_json(folder / "config.json").get("max_position_embeddings")
    if isinstance(limit, int) and max_new_tokens > limit:
        raise UsageError(f"--max-new-tokens {max_new_tokens} is too many: this model reads {limit:,}; give fewer")
    longest = max((len(prompt) for prompt in prompts), default=0)
    if isinstance(limit, int) and longest >= limit:
        what = (
            f"a question of {longest:,} tokens, --shots {shots} included,"
            if shots
            else f"a question of {longest:,} tokens"
        )
        advice = "try fewer --shots" if shots else "shorten it"
        raise DataError(f"{what} is too long: this model reads {limit:,}; {advice}")


def check_token_ids(rows: Iterable[Sequence[int]], vocabulary: int) -> None:
    """Raises DataError when the tokenizer makes ids that the model has no row for: it is another model's."""
    largest = max((max(row) for row in rows if row), default=0)
    if largest >= vocabulary:
        raise DataError(
            f"the tokenizer makes token {largest} and the model knows only {vocabulary}; "
            "the folder holds the tokenizer of another model"
        )
