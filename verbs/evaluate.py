"""`eval`: one model, its answers to the problems, every rule."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import backends
from gsm8k_core.config import EvalConfig, ScoreSettings
from gsm8k_core.data import load_data
from gsm8k_core.evaluate import Key, evaluate, problems_hash, summarise
from gsm8k_core.generated import HELD_OUT
from gsm8k_core.model_folder import folder_hash
from gsm8k_core.models import Source, resolve_model
from gsm8k_core.prompts import PROMPT_NAME, decode, load_tokenizer, prompt_tokens
from gsm8k_core.report import show_scores
from gsm8k_core.runs import code_hash, read_manifest, run_of_model
from gsm8k_core.sources import AUTO, Pair, choose_pair
from gsm8k_core.tracking import Terminal
from gsm8k_core.types import EXIT_OK, Choice, Completion, DataError, Problem, Sampling
from verbs import Context


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


def run(config: EvalConfig, context: Context) -> int:
    """The verb."""
    terminal = context.terminal
    choice = backends.resolve(config.backend)
    pair = None
    if config.model == AUTO:
        pair = choose_pair(config.model, config.data, config.data_config, lambda asked: None)
        terminal.say(f"auto     {pair.model}: {pair.model_choice.reason}")
    source = resolve_model(pair.model if pair else config.model, terminal.say)
    problems = load_problems(config, source, terminal, pair)
    folder = config.output_dir or run_of_model(source.folder) or Path(".")
    scored = score(config, choice, source, problems, folder, terminal)
    show_scores(terminal, scored.summary)
    if run_of_model(source.folder) is not None:
        terminal.say(f"next     python cli.py compare --trained-model {run_of_model(source.folder)}")
    terminal.result(scored.summary)
    return EXIT_OK


def load_problems(config: ScoreSettings, source: Source, terminal: Terminal, pair: Pair | None = None) -> Problems:
    """The asked split; `auto` is what the model was trained on, else the real test set where it can be had."""
    recorded = _trained_on(source) if config.data == AUTO else None
    if recorded:
        (reference, data_config, seed), reason = recorded, "the model's run was trained on it"
    else:
        pair = pair or choose_pair(source.name, config.data, config.data_config, lambda asked: None)
        reference, data_config, seed, reason = pair.data, config.data_config, config.seed, pair.data_choice.reason
    data = load_data(reference, data_config, seed, terminal.say, splits=(config.split,))
    problems = (data.test if config.split == "test" else data.train)[: config.num_problems]
    if not problems:
        raise DataError(f"{reference} has no {config.split} problems; try --split train or another --data")
    return Problems(problems, data.name, reason)


def _trained_on(source: Source) -> tuple[str, str, int] | None:
    folder = run_of_model(source.folder)
    manifest = (read_manifest(folder) or {}) if folder else {}
    try:
        return manifest["data"]["name"], manifest["config"]["data_config"], manifest["config"]["seed"]
    except (KeyError, TypeError):
        return None


def score(
    config: ScoreSettings, choice: Choice, source: Source, problems: Problems, folder: Path, terminal: Terminal
) -> Scored:
    """Answer and grade; finished problems of the same key are not answered again."""
    backend = backends.open(choice.name, source.folder, config.device, config.dtype)
    key = Key(
        model=folder_hash(source.folder),
        data=problems_hash(problems.problems),
        prompt=PROMPT_NAME,
        max_new_tokens=config.max_new_tokens,
        backend=choice.name,
        device=backend.choices["device"].name,
        dtype=backend.choices["dtype"].name,
        code=code_hash(),
    )
    tokenizer = load_tokenizer(source.folder)
    sampling = Sampling(config.max_new_tokens, config.eval_batch_size)

    def generate(left: Sequence[Problem]) -> Iterator[tuple[int, Completion, str]]:
        for index, completion in backend.generate(prompt_tokens(tokenizer, left), sampling):
            yield index, completion, decode(tokenizer, completion.tokens)

    count = len(problems.problems)
    terminal.say(f"model    {source.name}: {source.choice.reason}")
    terminal.say(f"problems {count} of {problems.name}: {problems.reason}")
    terminal.say(f"on       {choice.name}, {key.device}, {key.dtype}: {backend.choices['dtype'].reason}")
    with terminal.progress("problem", count) as steps:
        records, path, reused = evaluate(
            problems.problems, generate, key, folder / "logs", lambda done: steps.advance("", done=done)
        )
    if reused:
        terminal.say(f"reused   {reused} of {count} records of the same model, problems and settings, from {path}")
    summary = {"model": source.name, "hash": key.model, **summarise(records, HELD_OUT), "data": problems.name}
    summary |= {"split": config.split, "backend": key.backend, "device": key.device, "dtype": key.dtype}
    summary |= {"max_new_tokens": config.max_new_tokens, "records": str(path), "reused": reused}
    (path.parent / "summary.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return Scored(summary, records)
