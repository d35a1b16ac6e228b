"""`eval`: one model, its answers to the problems, every rule."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import backends
from gsm8k_core.config import EMBEDDED_MODEL, EvalConfig, ScoreSettings, flag
from gsm8k_core.data import is_single_file, load_data
from gsm8k_core.evaluate import Key, evaluate, problems_hash, summarise
from gsm8k_core.folders import write_json
from gsm8k_core.generated import HELD_OUT
from gsm8k_core.model_folder import folder_hash, vocabulary_size
from gsm8k_core.models import Source, resolve_model
from gsm8k_core.preflight import check_context, check_token_ids
from gsm8k_core.prompts import PROMPT_NAME, decode, load_tokenizer, prompt_tokens
from gsm8k_core.report import show_scores
from gsm8k_core.runs import check_writable, code_hash, read_manifest, run_of_model, versions
from gsm8k_core.sources import AUTO, NAMED, Pair, choose_pair
from gsm8k_core.tracking import Terminal, counted
from gsm8k_core.types import EXIT_OK, Choice, Completion, DataError, Problem, Sampling, UsageError
from verbs import Context, say_choices
from verbs.demo import banner

TRAINED_ON = {"test": "the train split, and not on these", "train": "these"}


@dataclass(frozen=True, slots=True)
class Scored:
    """One model's evaluation: its summary as JSON, its records in the order of the problems."""

    summary: dict[str, Any]
    records: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Problems:
    """The problems of an evaluation and where they came from."""

    problems: Sequence[Problem]
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where to compute, and where the records go."""

    backend: Choice
    device: str
    dtype: str
    folder: Path


def run(config: EvalConfig, context: Context) -> int:
    """The verb."""
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
    scored = score(config, place, source, problems, terminal)
    show_scores(terminal, scored.summary)
    if owner is not None:
        terminal.say(f"next     {shlex.join(['python', 'cli.py', 'compare', '--trained-model', str(owner)])}")
    if source.choice.name == EMBEDDED_MODEL:
        banner(terminal, reason)
    terminal.result(scored.summary)
    return EXIT_OK


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
    data = load_data(reference, data_config, seed, context.terminal.say, splits=(config.split,))
    problems = (data.test if config.split == "test" else data.train)[: config.num_problems]
    if not problems:
        raise DataError(f"{reference} has no {config.split} problems; try another --split or --data")
    return Problems(problems, data.name, reason)


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
    """Answer and grade; finished problems of the same key are not answered again."""
    check_writable(place.folder)
    tokenizer = load_tokenizer(source.folder)
    prompts = prompt_tokens(tokenizer, problems.problems)
    check_token_ids(prompts, vocabulary_size(source.folder))
    check_context(prompts, source.folder)
    terminal.say(f"model    {source.name}: {source.choice.reason}")
    asked = counted(len(problems.problems), f"{config.split} problem")
    terminal.say(f"problems {asked} of {problems.name}: {problems.reason}")
    backend = backends.open(place.backend.name, source.folder, place.device, place.dtype)
    choices = {"backend": place.backend, **backend.choices}
    key = Key(
        model=folder_hash(source.folder),
        data=problems_hash(problems.problems),
        prompt=PROMPT_NAME,
        max_new_tokens=config.max_new_tokens,
        backend=place.backend.name,
        device=choices["device"].name,
        dtype=choices["dtype"].name,
        code=code_hash(),
        versions=json.dumps(versions()),
    )
    sampling = Sampling(config.max_new_tokens, config.eval_batch_size)
    by_id = {problem.id: prompt for problem, prompt in zip(problems.problems, prompts, strict=True)}

    def generate(left: Sequence[Problem]) -> Iterator[tuple[int, Completion, str]]:
        for index, completion in backend.generate([by_id[problem.id] for problem in left], sampling):
            yield index, completion, decode(tokenizer, completion.tokens)

    count = len(problems.problems)
    say_choices(terminal, choices)
    with terminal.progress("problem", count) as steps:
        records, path, reused = evaluate(
            problems.problems, generate, key, place.folder / "logs", lambda done: steps.advance("", done=done)
        )
    if reused:
        terminal.say(
            f"reused   {reused} of {counted(count, 'record')} of the same model, problems and settings: {path}"
        )
    summary = {"model": source.name, "hash": key.model, **summarise(records, HELD_OUT), "data": problems.name}
    summary |= {"split": config.split, "backend": key.backend, "device": key.device, "dtype": key.dtype}
    summary |= {"max_new_tokens": config.max_new_tokens, "records": str(path), "reused": reused}
    summary |= {"choices": {name: asdict(chosen) for name, chosen in choices.items()}}
    write_json(path.parent / "summary.json", summary)
    return Scored(summary, records)
