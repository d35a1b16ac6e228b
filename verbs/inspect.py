"""`inspect`: what training would see, before any model is loaded; then a few rows, masked and trained apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.text import Text

from gsm8k_core.auto import AUTO, NAMED, choose_pair
from gsm8k_core.config.diagnostics import InspectConfig
from gsm8k_core.config.fields import EMBEDDED_MODEL, LONGEST_ANSWER
from gsm8k_core.config.train import TrainConfig, with_profile
from gsm8k_core.doing import quiet
from gsm8k_core.models.find import Source, prompted
from gsm8k_core.models.prompt_settings import given
from gsm8k_core.models.tokenizer import Tokenizer
from gsm8k_core.problems.corpus import MOST_TOKENISED, sampled
from gsm8k_core.problems.data import load_data, strip_annotations, training_rows
from gsm8k_core.problems.overlap import Overlap, Questions
from gsm8k_core.problems.prompts import make_examples, spelled, spelled_line
from gsm8k_core.problems.reading import RowOptions
from gsm8k_core.problems.rows import (
    Piece,
    Preflight,
    context_lines,
    histogram,
    keep_whole,
    of_sample,
    pieces,
    resolve_tokenizer,
    share,
    summarise,
)
from gsm8k_core.tracking.terminal import Terminal, printable
from gsm8k_core.types import EXIT_OK, SHOWN_ROWS, Choice, DataError, Example, GSM8KError, Problem, counted
from verbs import LATER, Context
from verbs.overlap import before_training
from verbs.own_answers import show_run

WIDTH = 80
TRAINS = "train: --eval-max-new-tokens"
STYLES = {  # (trained, special) -> colours
    (False, False): "bright_black",
    (False, True): "magenta",
    (True, False): "green",
    (True, True): "bold black on green",
}


@dataclass(frozen=True, slots=True)
class Subject:
    """What is looked at, and where it came from."""

    source: Source
    problems: Sequence[Problem]
    taken: frozenset[str]  # ids of the rows that train would take; some may lie beyond `problems`
    others: Sequence[Problem]  # those
    num_problems: int  # in all: of very many a part is looked at
    num_taken: int
    data: str
    reasons: dict[str, Choice]
    found: dict[str, Any]  # what the rows turned out to be, and whether they are the test's


def run(config: InspectConfig, context: Context) -> int:
    """The verb."""
    terminal = context.terminal
    if config.run is not None:
        return show_run(config.run, config.show, terminal)
    found = _find(config, context)
    rendering = found.source.model.rendering
    for note in rendering.notes():
        terminal.say(note, WIDTH)
    tokens = spelled(rendering, found.problems)
    every = make_examples(rendering, [*found.problems, *found.others])
    examples = every[: len(found.problems)]
    context = _context(found.source)
    summary = _summary(examples, config.max_length, found.num_problems, context)
    _show_summary(summary, examples, terminal)
    prompts = [example.tokens[: example.num_prompt] for example in examples]
    for line in context_lines(prompts, summary, {TRAINS: TrainConfig().eval_max_new_tokens, LATER: LONGEST_ANSWER}):
        terminal.say(f"context  {line}", WIDTH)
    for line in spelled_line(tokens):
        terminal.say(line, WIDTH)
    taken = [example for example in every if example.id in found.taken]
    refusal = _verdict(taken, config.max_length, found.num_taken, terminal) if taken else None
    _show_rows(rendering.tokenizer, examples[: config.show], config, terminal)
    terminal.result(
        {
            "model": found.source.name,
            "data": found.data,
            "split": config.split,
            "shape": found.found["found"],
            "overlap": found.found["overlap"],
            **summary.as_json(),
            "supervised_tokens": sum(example.num_targets for example in examples),
            "train_rows": found.num_taken,
            "spelled_control_tokens": {"rows": len(tokens), "ids": list(tokens)[:SHOWN_ROWS]},
            "prompt": rendering.as_json(),
            "train_would_refuse": refusal,
            "reasons": {name: asdict(choice) for name, choice in found.reasons.items()},
        }
    )
    return EXIT_OK


def _find(config: InspectConfig, context: Context) -> Subject:
    terminal = context.terminal
    # A model that is given is looked for below, by its tokenizer only: choose_pair would ask for its weights.
    stand_in = AUTO if config.model == AUTO else EMBEDDED_MODEL
    pair = choose_pair(stand_in, config.data, config.data_config, lambda asked: None)
    automatic = config.model == AUTO
    model_choice = pair.model_choice if automatic else Choice(config.model, NAMED)
    source = resolve_tokenizer(model_choice.name, terminal.say, config.base_model)
    source = prompted(source, given(config.thinking, config.system_prompt, config.chat_template))
    reading = RowOptions.of(config)
    data = load_data(pair.data, config.data_config, config.seed, terminal.say, (config.split,), reading)
    problems = data.train if config.split == "train" else data.test
    if config.max_samples >= 0:
        problems = problems[: config.max_samples]
    if not problems:
        raise DataError(f"{pair.data} has no {config.split} problems; try another --split or --data")
    if config.annotations == "strip":
        problems = tuple(replace(problem, answer=strip_annotations(problem.answer)) for problem in problems)
    taken, _ = training_rows(data.train, _train_samples(config, context, source), config.annotations)
    looked_at = _part(problems, config.show)
    shown = {problem.id for problem in looked_at}
    others = [problem for problem in _part(taken, 0) if problem.id not in shown]
    tested, overlap = (
        before_training(Questions.of(taken), config, data.name, data.revision) if taken else ("", Overlap())
    )
    terminal.say(f"model    {source.name}: {model_choice.reason}; {source.choice.reason}", WIDTH)
    terminal.say(f"data     {data.name}, {config.split}: {pair.data_choice.reason}; {data.choice.reason}", WIDTH)
    for line in data.lines():
        terminal.say(line, WIDTH)
    if taken:
        terminal.say(f"overlap  {tested}: {overlap.line}", WIDTH)
    reasons = {"model": model_choice, "data": pair.data_choice}
    ids = frozenset(problem.id for problem in taken)
    found = {**data.as_json(), "overlap": {"test": tested, **overlap.as_json()} if taken else None}
    return Subject(source, looked_at, ids, others, len(problems), len(taken), data.name, reasons, found)


def _part(problems: Sequence[Problem], first: int) -> Sequence[Problem]:
    """All of them, or of very many the first ones and a sample."""
    if len(problems) <= MOST_TOKENISED:
        return problems
    return list({problem.id: problem for problem in (*problems[:first], *sampled(problems))}.values())


def _context(source: Source) -> int | None:
    """Tokens that the model reads, where there is more than its tokenizer."""
    return source.model.context if (source.folder / "config.json").is_file() else None


def _summary(examples: Sequence[Example], max_length: int, rows: int, context: int | None = None) -> Preflight:
    summary = summarise(examples, max_length, context)
    return of_sample(summary, rows) if len(examples) < rows else summary


def _train_samples(config: InspectConfig, context: Context, source: Source) -> int:
    """`train`'s --max-samples: the one given here, else its own default for this model."""
    if "max_samples" in context.explicit:
        return config.max_samples
    return with_profile(TrainConfig(), demo=source.name == EMBEDDED_MODEL, explicit=()).max_samples


def _verdict(taken: list[Example], max_length: int, num_rows: int, terminal: Terminal) -> str | None:
    """Says what `train` would do with its rows; the words with which it would refuse them, or None."""
    summary = _summary(taken, max_length, num_rows)
    rows = f"{counted(num_rows, 'row')} (the dev split set aside, --max-samples as in train)"
    try:
        kept = keep_whole(taken, summary, drop_long=False)
    except GSM8KError as error:
        terminal.say(f"train    would take {rows} and refuse: {error}", WIDTH)
        return str(error)
    longer = summary.longer_than_max_length
    about = "about " if summary.looked_at and longer else ""
    rest = f"; {longer:,} longer would be left out" if len(kept) < len(taken) else ""
    fit = f"{about}{num_rows - longer:,} fit whole{rest}"
    terminal.say(f"train    would take {rows} and accept this limit: {fit}", WIDTH)
    return None


def _show_summary(summary: Preflight, examples: Sequence[Example], terminal: Terminal) -> None:
    tokens, rows, limit = summary.tokens, summary.rows, summary.max_length
    trained = sum(example.num_targets for example in examples)
    longer, empty = summary.longer_than_max_length, summary.without_supervised_token
    part = f"; {summary.looked_at:,} of them are looked at here" if summary.looked_at else ""
    terminal.say(f"rows     {rows:,}{part}")
    terminal.say(
        f"tokens   mean {tokens['mean']:.1f}, p50 {tokens['p50']:.0f}, p95 {tokens['p95']:.0f}, max "
        f"{tokens['max']:.0f}; {share(trained, round(tokens['mean'] * len(examples)))} trained, the rest masked",
        WIDTH,
    )
    bars = histogram([len(example.tokens) for example in examples], limit, WIDTH, _is_ascii(terminal))
    _print(Text("\n".join(bars)), terminal)
    lost = (
        f"{counted(longer, 'row')} ({share(longer, rows)}) {'is' if longer == 1 else 'are'} longer; cut there, they "
        f"would lose their answer, and {empty:,} ({share(empty, rows)}) would keep no trained token at all"
    )
    terminal.say(f"limit    --max-length {limit}: {lost if longer else 'every row fits'}", WIDTH)
    terminal.say(f"suggest  --max-length {summary.suggested_max_length}")


def _show_rows(tokenizer: Tokenizer, examples: Sequence[Example], config: InspectConfig, terminal: Terminal) -> None:
    coloured = terminal.console.color_system is not None and not terminal.console.no_color
    if examples and coloured:
        _print(_legend(), terminal)
    for example in examples:
        size, masked = len(example.tokens), example.num_prompt
        beyond = f"; longer than {config.max_length}" if size > config.max_length else ""
        out = ", train leaves it out" if beyond and config.split == "train" else ""
        terminal.say(f"\n{example.id}: {size} tokens, {masked} masked, {size - masked} trained{beyond}{out}", WIDTH)
        _print(show_row(pieces(tokenizer, example), coloured), terminal)


def show_row(row: Sequence[Piece], coloured: bool) -> Text:
    """Masked and trained tokens in different colours; without colours, after [masked] and [trained]."""
    text = Text()
    for piece, mark in zip(row, _marks(row), strict=True):
        words = printable(piece.text).replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\n")
        if coloured:
            text.append(words, STYLES[piece.trained, piece.special])
        else:
            text.append(mark + words)
    text.rstrip()
    return text


def _marks(row: Sequence[Piece]) -> Iterator[str]:
    before: bool | None = None
    for piece in row:
        yield "" if piece.trained == before else "[trained]" if piece.trained else "[masked]"
        before = piece.trained


def _legend() -> Text:
    names = {(False, False): "masked", (True, False): "trained", (False, True): "special", (True, True): "special"}
    legend = Text("\ncolours ")
    for kind, style in STYLES.items():
        legend.append(" ").append(names[kind], style)
    return legend


def _is_ascii(terminal: Terminal) -> bool:
    return not terminal.console.encoding.lower().startswith("utf")


def _print(text: Text, terminal: Terminal) -> None:
    if _is_ascii(terminal):
        text = Text(text.plain.encode("ascii", "replace").decode(), spans=text.spans)
    with suppress(OSError, SystemExit):  # the reader went away (`| head`): rich makes SystemExit of it
        quiet()
        terminal.console.print(text, soft_wrap=False)
