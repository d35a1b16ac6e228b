"""What a run learns from and what it is asked: rows made of problems, measured and checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from gsm8k_core.config.fields import LONGEST_ANSWER
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.models.find import Source
from gsm8k_core.problems.batching import rows_hash
from gsm8k_core.problems.corpus import MOST_TOKENISED, Corpus, sampled
from gsm8k_core.problems.data import DataSet, training_rows
from gsm8k_core.problems.overlap import Questions
from gsm8k_core.problems.prompts import make_examples, prompt_tokens, spelled, spelled_line
from gsm8k_core.problems.rows import (
    Preflight,
    check_context,
    check_token_ids,
    context_lines,
    keep_whole,
    of_sample,
    rehearsed,
    summarise,
)
from gsm8k_core.tracking.terminal import Terminal
from gsm8k_core.training.health import PROBE_ROWS
from gsm8k_core.types import Example, Problem
from verbs import LATER
from verbs.overlap import with_base


@dataclass(frozen=True, slots=True)
class Rows:
    """The training rows, the dev rows in order, and what was set aside."""

    examples: Sequence[Example]
    dev: list[tuple[Problem, Example]]
    probed: list[Example]  # dev rows, too: those that a probe looks at
    num_dev: int
    preflight: Preflight
    questions: Questions  # of the rows
    looked_at: Sequence[Problem] = ()  # the problems of `probed`
    # Not of --recipe sft: the problems that are asked, with their prompts' tokens, and how many tokens the longest row
    # may have that an own answer becomes.
    asked: list[tuple[Problem, tuple[int, ...]]] = field(default_factory=list)
    longest_own: int = 0


def make_rows(
    config: TrainConfig,
    source: Source,
    data: DataSet,
    terminal: Terminal,
    whole_turn: bool = False,
    all_at_once: bool = False,
) -> Rows:
    """The rows of a run, with what there is to say about them. Raises DataError, UsageError and PreflightError.

    `whole_turn`: what stands after the end token is trained too. `all_at_once`: also of very many rows.
    """
    train, dev = training_rows(data.train, config.max_samples, config.annotations)
    rendering = source.model.rendering
    explained = train if config.rationales < 0 else train[: config.rationales]
    for note in () if whole_turn else (*rendering.notes(), *spelled_line(spelled(rendering, explained))):
        terminal.say(note)

    def make(problems: Sequence[Problem]) -> list[Example]:
        made = make_examples(rendering, problems, whole_turn)
        check_token_ids((example.tokens for example in made), source.model.vocabulary)
        return made

    is_corpus = config.recipe == "sft" and len(explained) > MOST_TOKENISED and not all_at_once
    examples = make(sampled(explained) if is_corpus else explained)
    summary = summarise(examples, config.max_length, source.model.context)
    if is_corpus:
        summary = of_sample(summary, len(explained))
    untrained = f"{summary.rows:,} problems to ask; no human answer is trained, so --max-length leaves none out"
    terminal.say(f"rows     {summary.line() if config.trains_human_answers else untrained}")  # before a refusal, too
    asked = dev[: config.dev_problems]
    pairs = list(zip(asked, make_examples(rendering, asked, whole_turn), strict=True)) if asked else []
    for line in _context_lines(config, summary, [example for _, example in pairs]):
        terminal.say(f"context  {line}")
    probed = make_examples(rendering, dev[:PROBE_ROWS], whole_turn) if config.probe_every and dev else []
    kept: Sequence[Example] = rehearsed(examples, config.max_length)
    if config.trains_human_answers:
        kept = keep_whole(examples, summary, config.drop_long)
    if is_corpus:
        content = f"{data.sha256['train']}:{config.max_samples}:{config.rationales}:{config.annotations}"
        kept = Corpus(explained, make, examples, config.max_length, content)
    questions = with_base(Questions.of(train), source)
    rows = Rows(kept, pairs, probed, len(dev), summary, questions, dev[: len(probed)])
    return _with_asked(rows, config, source, train) if config.recipe != "sft" else rows


def _context_lines(config: TrainConfig, summary: Preflight, dev: Sequence[Example]) -> list[str]:
    """What is longer than all that the model reads: of the rows, of the answers to dev problems, and of those later."""
    trained = summary if config.trains_human_answers else replace(summary, beyond_context=0)
    on_the_way = {"--eval-max-new-tokens": config.eval_max_new_tokens} if dev else {}
    prompts = [example.tokens[: example.num_prompt] for example in dev]
    return context_lines(prompts, trained, on_the_way | {LATER: LONGEST_ANSWER})


def _with_asked(rows: Rows, config: TrainConfig, source: Source, problems: Sequence[Problem]) -> Rows:
    """The rows, and the problems that are asked; those of the dev split are not among them."""
    prompts = prompt_tokens(source.model.rendering, problems)
    check_token_ids(prompts, source.model.vocabulary)
    longest = config.sample_max_new_tokens
    check_context(prompts, source.model.context, longest, named="--sample-max-new-tokens")
    own = max(map(len, prompts)) + longest + 1
    if config.recipe == "rft":  # which leaves out what is longer
        own = min(own, config.max_length)
    return replace(rows, asked=list(zip(problems, prompts, strict=True)), longest_own=own)


def rows_as_begun(
    config: TrainConfig, source: Source, data: DataSet, begun: str | None, terminal: Terminal
) -> Rows | None:
    """The rows of a run that began when the line end after the end token was trained too; None where it did not."""
    rows = make_rows(config, source, data, terminal, whole_turn=True, all_at_once=True)
    if rows_hash(rows.examples) != begun:
        return None
    terminal.say("rows     as the run began: what its template writes after the end token is trained as well")
    return rows
