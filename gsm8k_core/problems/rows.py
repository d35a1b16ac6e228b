"""Rows before a model is loaded: how long they are, what a limit on their length costs, what is trained in one.

An answer is never cut: a row that does not fit is left out whole, and too many of them are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path

import numpy as np

from gsm8k_core.config.fields import EMBEDDED_MODEL
from gsm8k_core.files import check_strangers
from gsm8k_core.models import hub
from gsm8k_core.models.adapter import base_of, is_adapter, recorded_base
from gsm8k_core.models.find import (
    SMALL_FILES,
    NoBaseError,
    Source,
    cached_model,
    local_source,
    no_base,
    refuse_chain,
    require_model,
    resolve_model,
)
from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.models.merged import TEMPLATE_FILE, own_tokenizer, read_changes
from gsm8k_core.models.tokenizer import Tokenizer, has_tokenizer
from gsm8k_core.types import Choice, DataError, Example, PreflightError, UsageError

LOSS_LIMIT = 0.05  # share of the answers that may be left out without being asked about
MAX_BINS = 16


# --- what a limit costs ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Preflight:
    """The summary of a training set under a length limit. Lengths in tokens."""

    rows: int
    longer_than_max_length: int
    without_supervised_token: int
    max_length: int
    tokens: dict[str, float]  # mean, p50, p95, max of the whole rows
    suggested_max_length: int
    looked_at: int = 0  # rows that were tokenised for this, where they are a part of all; 0: all were
    context: int | None = None  # tokens that the model reads; None: that is not known
    beyond_context: int = 0  # rows that the limit leaves in, and that are longer than those

    def as_json(self) -> dict[str, object]:
        return asdict(self)

    def line(self) -> str:
        """One line for a person."""
        tokens, longer, empty = self.tokens, self.longer_than_max_length, self.without_supervised_token
        lost_share = f"{'about ' if self.looked_at else ''}{longer:,} ({100 * longer / self.rows:.1f} %)"
        sample = f" of {self.looked_at:,} of them, the others are tokenised as they are used" if self.looked_at else ""
        lost = (
            f"{lost_share} longer than --max-length {self.max_length} are left out "
            f"(cut there, {empty:,} would keep no trained token)"
        )
        fit = lost if longer else f"all fit --max-length {self.max_length}"
        return (
            f"{self.rows:,}; tokens{sample}: mean {tokens['mean']:.1f}, p50 {tokens['p50']:.0f}, "
            f"p95 {tokens['p95']:.0f}, max {tokens['max']:.0f}; "
            f"{fit}; suggested: --max-length {self.suggested_max_length}"
        )


def summarise(examples: Sequence[Example], max_length: int, context: int | None = None) -> Preflight:
    """Count what a limit of `max_length` tokens costs, and what a model reads of the rest: `context` tokens of a row.

    Raises DataError when there are no rows.
    """
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
        context=context,
        beyond_context=0 if context is None else int(((lengths > context) & (lengths <= max_length)).sum()),
    )


def of_sample(summary: Preflight, rows: int) -> Preflight:
    """The summary of a sample as that of all `rows`: counts grow in proportion."""
    times = rows / summary.rows
    return replace(
        summary,
        rows=rows,
        longer_than_max_length=round(times * summary.longer_than_max_length),
        without_supervised_token=round(times * summary.without_supervised_token),
        beyond_context=round(times * summary.beyond_context),
        looked_at=summary.rows,
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


def rehearsed(examples: Sequence[Example], max_length: int) -> list[Example]:
    """Rows to rehearse with where none of them is trained: those that fit, else each cut at the limit or at its prompt.

    So nothing is lost by a limit that they do not keep.
    """
    fit = [example for example in examples if len(example.tokens) <= max_length]
    return fit or [
        replace(example, tokens=example.tokens[: max(max_length, example.num_prompt + 1)]) for example in examples
    ]


# --- what a model can read ------------------------------------------------------------------------------------


def check_context(
    prompts: Iterable[Sequence[int]],
    limit: int | None,
    max_new_tokens: int,
    shots: int = 0,
    named: str = "--max-new-tokens",
) -> None:
    """Raises DataError for a prompt that leaves the model no room for an answer; it reads `limit` tokens (None: any).

    UsageError for an answer that may be longer than all that the model reads: what it writes there means nothing.
    """
    for error in _beyond_context(prompts, limit, max_new_tokens, shots, named):
        raise error


def context_lines(prompts: Iterable[Sequence[int]], summary: Preflight, answers: Mapping[str, int]) -> list[str]:
    """What is longer than all that the model reads, in the words that refuse it elsewhere: training can do without.

    `answers`: the flag that says how long one may get, and how long that is.
    """
    limit, about = summary.context, "about " if summary.looked_at else ""
    lines = []
    if summary.beyond_context:
        lines.append(
            f"{about}{summary.beyond_context:,} of {summary.rows:,} rows are longer than this model reads, which is "
            f"{limit:,} tokens: what stands behind them means nothing to it; --max-length {limit} leaves these rows out"
        )
    lines += [str(error) for named, most in answers.items() for error in _beyond_context([], limit, most, 0, named)]
    return lines + [str(error) for error in _beyond_context(prompts, limit, 0, 0, "")]


def _beyond_context(
    prompts: Iterable[Sequence[int]], limit: int | None, max_new_tokens: int, shots: int, named: str
) -> Iterator[UsageError | DataError]:
    if limit is None:
        return
    if max_new_tokens > limit:
        yield UsageError(f"{named} {max_new_tokens} is too many: this model reads {limit:,}; give fewer")
    longest = max((len(prompt) for prompt in prompts), default=0)
    if longest >= limit:
        what = (
            f"a question of {longest:,} tokens, --shots {shots} included,"
            if shots
            else f"a question of {longest:,} tokens"
        )
        advice = "try fewer --shots" if shots else "shorten it"
        yield DataError(f"{what} is too long: this model reads {limit:,}; {advice}")


def check_token_ids(rows: Iterable[Sequence[int]], vocabulary: int) -> None:
    """Raises DataError when the tokenizer makes ids that the model has no row for: it is another model's."""
    largest = max((max(row) for row in rows if row), default=0)
    if largest >= vocabulary:
        raise DataError(
            f"the tokenizer makes token {largest} and the model knows only {vocabulary}; "
            "the folder holds the tokenizer of another model"
        )


# --- the tokenizer, without weights ---------------------------------------------------------------------------


def resolve_tokenizer(reference: str, announce: hub.Announce, base: str = "", above: tuple[Path, ...] = ()) -> Source:
    """As resolve_model, but a folder with the tokenizer's files is enough, and the Hub is asked for no weights.

    `above`: the adapters whose base this is.
    """
    path = hub.local_path(reference)
    found = local_source(reference, path.absolute()) if path is not None and path.is_dir() else None
    if found is not None and is_adapter(found.folder):
        return _of_adapter(found, announce, base, above)
    if base:
        raise UsageError(f"--base-model {base} is for an adapter, and {reference} is none; leave it out")
    if found is not None:
        return _with_tokenizer(found)
    named = hub.is_hub_id(reference) and not hub.looks_like_path(reference)
    if path is None and named and reference != EMBEDDED_MODEL and cached_model(reference) is None:
        return _named(reference, announce)
    return resolve_model(reference, announce)


def _of_adapter(adapter: Source, announce: hub.Announce, base: str, above: tuple[Path, ...]) -> Source:
    """An adapter's own tokenizer, or that of the model under it. Raises DataError for what could not be opened so."""
    folder, own = adapter.folder, own_tokenizer(adapter.folder)
    check_strangers(folder)
    refuse_chain(adapter, above)
    if own == TEMPLATE_FILE:
        return resolve_model(adapter.name, announce, base)
    named = base or recorded_base(folder) or base_of(folder)
    try:
        if own:  # then the base's is not asked for
            _require_path(named)
            found = adapter
        else:
            under = resolve_tokenizer(named, announce, above=(*above, folder))
            # Its prompt.json goes with it.
            found = Source(adapter.name, under.model, Choice("adapter", f"an adapter of {under.name}"), folder)
    except NoBaseError:  # of one that is further down, and that says it itself
        raise
    except DataError as error:
        if base or hub.local_path(named):
            raise
        raise no_base(folder, named, error) from error
    read_changes(folder)
    return found


def _require_path(reference: str) -> None:
    """resolve_model's error for a path that leads nowhere; a Hub id is not looked for."""
    if hub.looks_like_path(reference):
        require_model(reference)


def _with_tokenizer(found: Source) -> Source:
    if not has_tokenizer(found.folder):
        raise DataError(
            f"{found.folder} has no tokenizer.json; give a model folder, a folder with tokenizer.json and "
            "tokenizer_config.json, or --model embedded"
        )
    return found


def _named(repo: str, announce: hub.Announce) -> Source:
    for snapshot in hub.cached_snapshots(repo, "model"):
        if has_tokenizer(snapshot):
            choice = Choice("cache", f"its tokenizer is in the Hub's cache, {hub.hub_cache()}")
            return Source(repo, ModelFolder(snapshot), choice)
    try:
        listing = hub.look_up(repo, "model")
    except hub.Unavailable as error:
        raise DataError(
            f"model {repo!r} is not a folder here, is not cached, and {error}; "
            f"give a folder with --model PATH, use --model embedded, or {error.advice}"
        ) from None
    names = [name for name in listing.files if any(fnmatch(name, kind) for kind in SMALL_FILES) and "/" not in name]
    folder = hub.download(listing, names, announce)
    if not has_tokenizer(folder):
        raise DataError(f"model {repo!r} has no tokenizer.json; give another one, or use --model embedded")
    return Source(repo, ModelFolder(folder), Choice("hub", f"its tokenizer was downloaded from {hub.shown_endpoint()}"))


# --- lengths --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bin:
    """Rows of `low` to `high` tokens, both ends counted in."""

    low: int
    high: int
    count: int


def bins(lengths: Sequence[int], limit: int) -> list[Bin]:
    """At most MAX_BINS equal steps, and one more where `limit` cuts a step in two."""
    shortest, longest = min(lengths), max(lengths)
    width = 8
    while (longest - 1) // width - (shortest - 1) // width >= MAX_BINS:
        width *= 2
    ends = set(range(-(-shortest // width) * width, longest + width, width))
    if shortest <= limit < longest:
        ends.add(limit)
    made, low = [], min(ends) - width + 1
    for high in sorted(ends):
        made.append(Bin(low, high, sum(low <= length <= high for length in lengths)))
        low = high + 1
    return made


def histogram(lengths: Sequence[int], limit: int, width: int = 80, plain: bool = False) -> list[str]:
    """A line a step, at most `width` columns, with a rule where the rows become longer than `limit`."""
    steps = bins(lengths, limit)
    digits, most = len(str(steps[-1].high)), max(step.count for step in steps)
    counts = len(f"{most:,}")
    room = width - 2 * digits - counts - 5
    lines = []
    for number, step in enumerate(steps):
        if step.low > limit and (number == 0 or steps[number - 1].high <= limit):
            lines.append(f"-- longer than --max-length {limit} ".ljust(width, "-"))
        bar = _bar(step.count * room / most, plain)
        lines.append(f"{step.low:>{digits}} - {step.high:>{digits}} {step.count:>{counts},} {bar}".rstrip())
    return lines


def _bar(length: float, plain: bool) -> str:
    if plain:
        return "#" * max(round(length), int(length > 0))
    eighths = max(round(8 * length), int(length > 0))
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


def share(part: int, whole: int) -> str:
    """94 %, 5.9 %, 0.07 %."""
    percent = 100 * part / whole
    return f"{percent:.{0 if percent >= 10 or part == 0 else 1 if percent >= 1 else 2}f} %"


# --- one row --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens that stand together and are treated alike, as text."""

    text: str
    trained: bool
    special: bool  # one of the tokenizer's own marks, such as <|im_end|>


def pieces(tokenizer: Tokenizer, example: Example) -> list[Piece]:
    """A row as it is trained: nothing is left out, special tokens keep their names."""
    marked = [
        (place >= example.num_prompt and place not in example.forced, _is_special(tokenizer, token), token)
        for place, token in enumerate(example.tokens)
    ]
    return [
        Piece(_text(tokenizer, [token for *_, token in group]), trained, special)
        for (trained, special), group in groupby(marked, key=lambda token: token[:2])
    ]


def _is_special(tokenizer: Tokenizer, token: int) -> bool:
    return not tokenizer.decode([token], skip_special_tokens=True) and bool(_text(tokenizer, [token]))


def _text(tokenizer: Tokenizer, tokens: list[int]) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
