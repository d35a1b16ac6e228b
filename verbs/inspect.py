"""`inspect`: what training would see, before any model is loaded; then a few rows, masked and trained apart."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from rich.text import Text

from gsm8k_core.config import EMBEDDED_MODEL, InspectConfig
from gsm8k_core.data import load_data, strip_annotations
from gsm8k_core.inspect import STYLES, histogram, percent, pieces, resolve_tokenizer, show_row
from gsm8k_core.model_folder import end_token_ids
from gsm8k_core.models import Source
from gsm8k_core.preflight import Preflight, keep_whole, summarise
from gsm8k_core.prompts import Tokenizer, load_tokenizer, make_examples
from gsm8k_core.sources import AUTO, choose_pair
from gsm8k_core.tracking import Terminal
from gsm8k_core.types import EXIT_OK, Choice, DataError, Example, GSM8KError, Problem
from verbs import Context

WIDTH = 80


@dataclass(frozen=True, slots=True)
class Found:
    """What is looked at, and where it came from."""

    source: Source
    problems: Sequence[Problem]
    data: str
    reasons: dict[str, Choice]


def run(config: InspectConfig, context: Context) -> int:
    """The verb."""
    terminal = context.terminal
    found = _find(config, terminal)
    tokenizer = load_tokenizer(found.source.folder)
    examples = make_examples(tokenizer, found.problems, end_token_ids(found.source.folder))
    summary = summarise(examples, config.max_length)
    refusal = _refusal(examples, summary)
    _show_summary(summary, examples, refusal, terminal)
    _show_rows(tokenizer, examples[: config.show], config.max_length, terminal)
    terminal.result(
        {
            "model": found.source.name,
            "data": found.data,
            "split": config.split,
            **summary.as_json(),
            "supervised_tokens": sum(example.num_targets for example in examples),
            "train_would_refuse": refusal,
            "reasons": {name: asdict(choice) for name, choice in found.reasons.items()},
        }
    )
    return EXIT_OK


def _find(config: InspectConfig, terminal: Terminal) -> Found:
    # A model that is given is looked for below, by its tokenizer only: choose_pair would ask for its weights.
    stand_in = AUTO if config.model == AUTO else EMBEDDED_MODEL
    pair = choose_pair(stand_in, config.data, config.data_config, lambda asked: None)
    automatic = config.model == AUTO
    model_choice = pair.model_choice if automatic else Choice(config.model, "given with --model")
    source = resolve_tokenizer(model_choice.name, terminal.say)
    data = load_data(pair.data, config.data_config, config.seed, terminal.say, splits=(config.split,))
    problems = data.train if config.split == "train" else data.test
    if config.max_samples >= 0:
        problems = problems[: config.max_samples]
    if not problems:
        raise DataError(f"{pair.data} has no {config.split} problems; try another --split or --data")
    if config.annotations == "strip":
        problems = tuple(replace(problem, answer=strip_annotations(problem.answer)) for problem in problems)
    _say(f"model    {source.name}: {model_choice.reason}; {source.choice.reason}", terminal)
    _say(f"data     {data.name}, {config.split}: {pair.data_choice.reason}; {data.choice.reason}", terminal)
    return Found(source, problems, data.name, {"model": model_choice, "data": pair.data_choice})


def _refusal(examples: list[Example], summary: Preflight) -> str | None:
    """The words with which `train` would refuse these rows, or None."""
    try:
        keep_whole(examples, summary, drop_long=False)
    except GSM8KError as error:
        return str(error)
    return None


def _show_summary(summary: Preflight, examples: Sequence[Example], refusal: str | None, terminal: Terminal) -> None:
    tokens, rows, limit = summary.tokens, summary.rows, summary.max_length
    trained = sum(example.num_targets for example in examples)
    longer, empty = summary.longer_than_max_length, summary.without_supervised_token
    _say(f"rows     {rows:,}", terminal)
    _say(
        f"tokens   mean {tokens['mean']:.1f}, p50 {tokens['p50']:.0f}, p95 {tokens['p95']:.0f}, max "
        f"{tokens['max']:.0f}; {percent(trained, round(tokens['mean'] * rows))} trained, the rest masked",
        terminal,
    )
    bars = histogram([len(example.tokens) for example in examples], limit, WIDTH, _is_ascii(terminal))
    _print(Text("\n".join(bars)), terminal)
    lost = (
        f"{longer:,} rows ({percent(longer, rows)}) are longer; cut there, they would lose their answer, and "
        f"{empty:,} ({percent(empty, rows)}) would keep no trained token at all"
    )
    _say(f"limit    --max-length {limit}: {lost if longer else 'every row fits'}", terminal)
    _say(f"suggest  --max-length {summary.suggested_max_length}", terminal)
    rest = f", {longer:,} would be left out" if longer else ""
    whole = f"would accept this limit: {rows - longer:,} rows fit whole{rest}"
    _say(f"train    {f'would refuse: {refusal}' if refusal else whole}", terminal)


def _show_rows(tokenizer: Tokenizer, examples: Sequence[Example], limit: int, terminal: Terminal) -> None:
    coloured = terminal.console.color_system is not None and not terminal.console.no_color
    if examples and coloured:
        _print(_legend(), terminal)
    for example in examples:
        size, masked = len(example.tokens), example.num_prompt
        long = f"; longer than {limit}, train leaves it out" if size > limit else ""
        terminal.say(f"\n{example.id}: {size} tokens, {masked} masked, {size - masked} trained{long}")
        _print(show_row(pieces(tokenizer, example), coloured), terminal)


def _legend() -> Text:
    names = {(False, False): "masked", (True, False): "trained", (False, True): "special", (True, True): "special"}
    legend = Text("\ncolours ")
    for kind, style in STYLES.items():
        legend.append(" ").append(names[kind], style)
    return legend


def _is_ascii(terminal: Terminal) -> bool:
    return not terminal.console.encoding.lower().startswith("utf")


def _say(line: str, terminal: Terminal) -> None:
    """A label and its words, which go on under themselves."""
    terminal.say(textwrap.fill(line, WIDTH, subsequent_indent=" " * 9, break_on_hyphens=False, break_long_words=False))


def _print(text: Text, terminal: Terminal) -> None:
    if _is_ascii(terminal):
        text = Text(text.plain.encode("ascii", "replace").decode(), spans=text.spans)
    with suppress(OSError, SystemExit):  # the reader went away (`| head`): rich makes SystemExit of it
        terminal.console.print(text, soft_wrap=False)
