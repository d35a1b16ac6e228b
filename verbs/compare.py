"""`compare`: base and trained over the same problems, the paired test, model_comparison.json."""

from __future__ import annotations

import gc
from pathlib import Path

import backends
from gsm8k_core.config import CompareConfig
from gsm8k_core.models import resolve_model
from gsm8k_core.report import make_comparison, show_comparison
from gsm8k_core.runs import read_manifest, run_of_model, write_json
from gsm8k_core.types import EXIT_OK, UsageError
from verbs import Context
from verbs.evaluate import load_problems, score

COMPARISON = "model_comparison.json"


def run(config: CompareConfig, context: Context) -> int:
    """The verb."""
    terminal = context.terminal
    if not config.trained_model:
        raise UsageError("compare needs the trained model; add --trained-model runs/<your run>")
    choice = backends.resolve(config.backend)
    trained = resolve_model(config.trained_model, terminal.say)
    base = resolve_model(_base(config, trained.folder), terminal.say)
    problems = load_problems(config, trained, terminal)
    folder = config.output_dir or run_of_model(trained.folder) or Path(".")
    base_scored = score(config, choice, base, problems, folder, terminal)
    gc.collect()  # two models need not be in memory at once
    trained_scored = score(config, choice, trained, problems, folder, terminal)
    comparison = make_comparison(
        base_scored.summary, trained_scored.summary, base_scored.records, trained_scored.records
    )
    write_json(folder / COMPARISON, comparison)
    show_comparison(terminal, comparison)
    terminal.say(f"written  {folder / COMPARISON}")
    terminal.result({**comparison, "file": str(folder / COMPARISON)})
    return EXIT_OK


def _base(config: CompareConfig, trained: Path) -> str:
    """The base that was named, or the one that the trained model's run began with."""
    if config.base_model != "auto":
        return config.base_model
    folder = run_of_model(trained)
    manifest = (read_manifest(folder) or {}) if folder else {}
    name = (manifest.get("model") or {}).get("name")
    if not isinstance(name, str):
        raise UsageError(f"{config.trained_model} is in no run folder that names its base; add --base-model MODEL")
    return name
