"""`eval`: one model, its answers to the problems, every rule."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import backends
from backends.base import Backend
from gsm8k_core.answer_line import AnswerLine
from gsm8k_core.config import EMBEDDED_MODEL, flag
from gsm8k_core.data import is_single_file, load_data
from gsm8k_core.diagnose import breakdown
from gsm8k_core.evaluate import (
    ANSWER_LINE,
    STOP_RULE,
    Draw,
    Key,
    completion_of,
    evaluate,
    problems_hash,
    summarise,
)
from gsm8k_core.folders import write_json
from gsm8k_core.generated import HELD_OUT
from gsm8k_core.health import vitals, warnings
from gsm8k_core.model_folder import folder_hash, vocabulary_size
from gsm8k_core.models import Source, resolve_model
from gsm8k_core.preflight import check_context, check_token_ids
from gsm8k_core.prompts import NO_SHOTS, Shots, Tokenizer, choose_shots, decode, load_tokenizer, prompt_tokens
from gsm8k_core.report import show_scores
from gsm8k_core.runs import check_writable, code_hash, read_manifest, run_of_model, versions
from gsm8k_core.samples import voted
from gsm8k_core.score_config import EvalConfig, ScoreSettings
from gsm8k_core.slow_rules import judge_records, require
from gsm8k_core.sources import AUTO, NAMED, Pair, choose_pair
from gsm8k_core.stats import cannot_show
from gsm8k_core.tracking import Terminal, counted
from gsm8k_core.types import EXIT_OK, Choice, Completion, DataError, Problem, Sampling, UsageError
from verbs import Context, checks, say_choices
from verbs.demo import banner
from verbs.results import Made, write_one

TRAINED_ON = {"test": "the train split, and not on these", "train": "these"}


@dataclass(frozen=True, slots=True)
class Scored:
    """One model's evaluation: its summary as JSON, its records in the order of the problems.

    `records` holds one a problem, of several samples the one that the vote chose; `answers` holds all.
    """

    summary: dict[str, Any]
    records: list[dict[str, Any]]
    answers: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Problems:
    """The problems of an evaluation and where they came from."""

    problems: Sequence[Problem]
    name: str
    reason: str
    shots: Shots = NO_SHOTS


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that is loaded, and what it is asked."""

    config: ScoreSettings
    source: Source
    problems: Problems
    tokenizer: Tokenizer
    prompts: Mapping[str, Sequence[int]]  # by the problems' ids
    backend: Backend
    choices: Mapping[str, Choice]
    key: Key
    folder: Path

    def sampling(self, key: Key, batch_size: int | None = None) -> Sampling:
        """How a backend is to draw under a key."""
        size = batch_size or key.batch_size
        complete = AnswerLine(partial(decode, self.tokenizer)) if key.stop == ANSWER_LINE else None
        return Sampling(key.max_new_tokens, size, key.temperature, key.top_p, key.top_k, key.seed, complete)

    def generate(self, draws: Sequence[Draw], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        """The answers that are wanted, as they finish."""
        prompts = [self.prompts[draw.problem.id] for draw in draws]
        return self.backend.generate(prompts, sampling, keys=[draw.key for draw in draws])


@dataclass(frozen=True, slots=True)
class Place:
    """Where to compute, and where the records go."""

    backend: Choice
    device: str
    dtype: str
    folder: Path
    settled: str = ""  # why device and dtype are these, where nobody asked for them


def run(config: EvalConfig, context: Context) -> int:
    """The verb."""
    checks.refuse(config)
    if config.slow_rules:
        require()
    terminal = context.terminal
    place = Place(backends.resolve(config.backend), config.device, config.dtype, config.output_dir or Path("."))
    pair = None
    if config.model == AUTO:
        pair = choose_pair(config.model, config.data, config.data_config, lambda asked: None)
    source = resolve_model(pair.model if pair else config.model, terminal.say)
    reason = pair.model_choice.reason if pair else NAMED
    if source.choice.name == EMBEDDED_MODEL:
        banner(terminal, reason)
    problems = load_problems(config, source, context, pair)
    owner = run_of_model(source.found)
    if config.output_dir is None and owner is not None:
        place = replace(place, folder=owner)
    terminal.say(f"limits   {cannot_show(len(problems.problems))}")
    scored = _with_checks(config, open_model(config, place, source, problems, terminal), terminal)
    found = breakdown(scored.records)
    show_scores(terminal, scored.summary, found)
    _say_health(scored.records, terminal)
    made = Made("eval", config, context.explicit, problems.problems, owner)
    page = write_one(made, scored.summary, scored.records, found, terminal.say)
    terminal.say(f"\nrecords  {scored.summary['records']}\npage     {page}")
    if owner is not None:
        model = str(owner) if source.found == owner / "model" else source.name
        terminal.say(f"next     {shlex.join(['python', 'cli.py', 'compare', '--trained-model', model])}")
    if source.choice.name == EMBEDDED_MODEL:
        banner(terminal, reason)
    terminal.result({**scored.summary, "breakdown": found, "page": str(page)})
    return EXIT_OK


def _say_health(records: Sequence[Mapping[str, Any]], terminal: Terminal) -> None:
    """What no healthy model's answers look like, in a line each."""
    found = vitals([completion_of(record) for record in records], [record["completion"] for record in records])
    for warning in warnings(found, updates=0):
        terminal.say(f"health   {warning}")


def load_problems(config: ScoreSettings, source: Source, context: Context, pair: Pair | None = None) -> Problems:
    """The asked split; `auto` is what the model was trained on, else the real test set where it can be had."""
    recorded = _trained_on(source) if config.data == AUTO else None
    if recorded:
        _refuse_ambiguous(config, recorded[0], context)
        (reference, data_config, seed), reason = (
            recorded,
            f"the run's own data; it trained on {TRAINED_ON[config.split]}",
        )
    else:
        pair = pair or choose_pair(source.name, config.data, config.data_config, lambda asked: None)
        reference, data_config, seed, reason = pair.data, config.data_config, config.seed, pair.data_choice.reason
    if config.shots and config.split == "test" and is_single_file(reference):
        raise UsageError(
            f"--shots takes train problems, and {reference} is a single file; "
            "give --data a folder with train.jsonl and test.jsonl"
        )
    splits = ("train", config.split) if config.shots else (config.split,)
    data = load_data(reference, data_config, seed, context.terminal.say, splits=splits)
    shots = choose_shots(data.train, config.shots, config.shot_annotations)
    problems = (data.test if config.split == "test" else data.train)[: config.num_problems]
    if not problems:
        raise DataError(f"{reference} has no {config.split} problems; try another --split or --data")
    return Problems(problems, data.name, reason, shots)


def _refuse_ambiguous(config: ScoreSettings, reference: str, context: Context) -> None:
    if config.split == "test" and is_single_file(reference):
        raise UsageError(f"the run was trained on {reference}, which has no test problems; add --data TEST.jsonl")
    given = sorted({"seed", "data_config"} & context.explicit)
    if given:
        raise UsageError(f"{flag(given[0])} does not apply to the run's own problems; add --data {reference} to use it")


def _trained_on(source: Source) -> tuple[str, str, int] | None:
    folder = run_of_model(source.found)
    manifest = (read_manifest(folder) or {}) if folder else {}
    try:
        return manifest["data"]["name"], manifest["config"]["data_config"], manifest["config"]["seed"]
    except (KeyError, TypeError):
        return None


def score(config: ScoreSettings, place: Place, source: Source, problems: Problems, terminal: Terminal) -> Scored:
    """Answer and grade; finished answers of the same key are not asked for again."""
    opened = open_model(config, place, source, problems, terminal)
    return answer(opened, terminal, opened.key)


def open_model(config: ScoreSettings, place: Place, source: Source, problems: Problems, terminal: Terminal) -> Opened:
    """Load the model; what it cannot be asked is refused before that."""
    check_writable(place.folder)
    tokenizer = load_tokenizer(source.folder)
    prompts = prompt_tokens(tokenizer, problems.problems, problems.shots)
    check_token_ids(prompts, vocabulary_size(source.folder))
    check_context(prompts, source.folder, config.max_new_tokens, problems.shots.count)
    terminal.say(f"model    {source.name}: {source.choice.reason}")
    asked = counted(len(problems.problems), f"{config.split} problem")
    terminal.say(f"problems {asked} of {problems.name}: {problems.reason}")
    if config.shots:
        terminal.say(f"shots    {config.shots} of the train problems: {problems.shots.prompt_name}")
    if config.samples > 1:
        terminal.say(f"samples  {config.samples} of each; tests and tables by problem take the one that the vote chose")
    backend = backends.open(place.backend.name, source.folder, place.device, place.dtype)
    choices = {"backend": place.backend, **backend.choices}
    if place.settled:
        choices |= {name: replace(choices[name], reason=place.settled) for name in ("device", "dtype")}
    key = Key(
        model=folder_hash(source.folder),
        data=problems_hash(problems.problems),
        prompt=problems.shots.prompt_name,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.eval_batch_size,
        backend=place.backend.name,
        device=choices["device"].name,
        dtype=choices["dtype"].name,
        code=code_hash(),
        versions=json.dumps(versions()),
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        seed=config.sample_seed,
        samples=config.samples,
        stop=ANSWER_LINE if config.stop_at_answer else STOP_RULE,
    )
    say_choices(terminal, choices)
    by_id = {problem.id: prompt for problem, prompt in zip(problems.problems, prompts, strict=True)}
    return Opened(config, source, problems, tokenizer, by_id, backend, choices, key, place.folder)


def answer(opened: Opened, terminal: Terminal, key: Key) -> Scored:
    """One evaluation under a key, which may be of another seed than the model was opened for."""
    sampling = opened.sampling(key)

    def generate(left: Sequence[Draw]) -> Iterator[tuple[int, Completion, str]]:
        for index, completion in opened.generate(left, sampling):
            yield index, completion, decode(opened.tokenizer, completion.tokens)

    problems, count = opened.problems.problems, len(opened.problems.problems) * key.samples
    with terminal.progress("problem" if key.samples == 1 else "answer", count) as steps:
        records, path, reused = evaluate(
            problems, generate, key, opened.folder / "logs", lambda done: steps.advance("", done=done)
        )
    if reused:
        terminal.say(
            f"reused   {reused} of {counted(count, 'record')} of the same model, problems and settings: {path}"
        )
    summary = {"model": opened.source.name, "hash": key.model, **summarise(records, HELD_OUT)}
    summary |= {"data": opened.problems.name, "split": opened.config.split}
    summary |= {"backend": key.backend, "device": key.device, "dtype": key.dtype}
    summary |= {"max_new_tokens": key.max_new_tokens, "prompt": key.prompt, "stop_rule": key.stop}
    summary |= {"sampling": {name: getattr(key, name) for name in ("temperature", "top_p", "top_k", "seed")}}
    summary |= {"records": str(path), "reused": reused}
    summary |= {"choices": {name: asdict(chosen) for name, chosen in opened.choices.items()}}
    write_json(path.parent / "summary.json", summary)
    return Scored(summary, voted(records), records)


def _with_checks(config: EvalConfig, opened: Opened, terminal: Terminal) -> Scored:
    """The evaluation, with what --slow-rules, --check-batching and --repeat add to its summary."""
    scored = answer(opened, terminal, opened.key)
    if config.slow_rules:
        terminal.say(judge_records(scored.answers))
        summary = {**scored.summary, **summarise(scored.answers, HELD_OUT)}
        scored = Scored(summary, voted(scored.answers), scored.answers)
    if config.check_batching:
        scored.summary["batching"] = checks.check_batching(opened, scored.answers, terminal)
    if config.repeat > 1:
        scored.summary["repeat"] = checks.repeat(opened, config.repeat, scored, answer, terminal)
    write_json(Path(scored.summary["records"]).parent / "summary.json", scored.summary)
    return scored
