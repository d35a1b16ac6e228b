"""Going on with a run: which settings may differ from those it began with, and its metrics.jsonl cut to fit.

Every setting of TrainConfig is in exactly one class:

    FREE       may change: how and where the run is done, watched and kept
    HARMLESS   needs --force: speed, memory, rounding or how it is measured, not what is learned
    FIXED      may not change: with it, this would be another run
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from gsm8k_core.config import TrainConfig, flag
from gsm8k_core.folders import write_bytes
from gsm8k_core.types import StorageError, UsageError

FREE: Final = frozenset(
    {
        "config",
        "json_",
        "verbose",
        "output_dir",
        "resume",
        "force",
        "dry_run",
        "profile",  # a name for defaults; what it sets is compared by itself
        "backend",
        "device",
        "max_time",
        "save_steps",
        "save_total_limit",
        "probe_steps",
        "guard_problems",
        "report_to",
        "no_wandb",
        "wandb_project",
        "wandb_key_file",
    }
)
HARMLESS: Final = frozenset(
    {
        "dtype",
        "gradient_checkpointing",
        "micro_batch_tokens",
        "batch_size",
        "gradient_accumulation_steps",  # as long as an update holds as many rows
        "eval_steps",
        "eval_problems",
        "eval_max_new_tokens",
    }
)
FIXED: Final = frozenset(
    {
        "model",
        "data",
        "data_config",
        "seed",
        "max_samples",
        "max_length",
        "annotations",
        "drop_long",
        "num_epochs",
        "learning_rate",
        "warmup_ratio",
        "schedule",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "max_grad_norm",
        "trainable",
        "method",
        "lora_rank",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
    }
)

SPLIT: Final = ("batch_size", "gradient_accumulation_steps")
# A model or a data set moves, or gets another name on another machine: its hash says whether it is the same.
NAMES: Final = {"model": "model", "data": "data"}  # setting -> fact
SHOWN = 12  # characters of a hash


def check(
    recorded: TrainConfig, asked: TrainConfig, facts: Mapping[str, str], now: Mapping[str, str], force: bool
) -> tuple[str, ...]:
    """The differences that `force` lets pass, as words to print. UsageError when the run may not go on like this.

    `facts` and `now` are hashes by name ("model", "data", "rows", ...): of when the run began, and of today.
    """
    changed = _changed(recorded, asked, facts, now)
    contents = [name for name in dict.fromkeys([*facts, *now]) if facts.get(name) != now.get(name)]
    same_size = recorded.update_size == asked.update_size
    fixed = [name for name in changed if name in FIXED or (name in SPLIT and not same_size)]
    words = tuple(f"{name}: {pair}" for name, pair in changed.items())
    if fixed or contents or (words and not force):
        every = (*words, *(f"{name} (sha256): {_short(facts, name)} -> {_short(now, name)}" for name in contents))
        advice = _advice([name for name in changed if name in fixed or not force], asked, bool(fixed), contents)
        raise UsageError(f"this is not what the run began with: {', '.join(every)}; {advice}")
    return words


def _changed(
    recorded: TrainConfig, asked: TrainConfig, facts: Mapping[str, str], now: Mapping[str, str]
) -> dict[str, str]:
    """Setting -> "recorded -> asked", for those that are not free."""
    before, after = recorded.model_dump(mode="json"), asked.model_dump(mode="json")
    names = [name for name in before if before[name] != after[name] and name not in FREE]
    known = {name for name, fact in NAMES.items() if fact in facts and facts[fact] == now.get(fact)}
    return {name: f"{before[name]} -> {after[name]}" for name in names if name not in known}


def _short(hashes: Mapping[str, str], name: str) -> str:
    return hashes[name][:SHOWN] if name in hashes else "unknown"


def _advice(to_drop: Sequence[str], asked: TrainConfig, fixed: bool, contents: Sequence[str]) -> str:
    """What to type next."""
    off = {name: "no_" if getattr(asked, name) is False else "" for name in to_drop}
    drop = "drop " + ", ".join(flag(f"{off[name]}{name}") for name in to_drop) if to_drop else ""
    if not fixed and not contents:
        return f"{drop}, or add --force to go on with what is asked now"
    # Rows, tokens and prompts follow from fixed settings: where one changed, dropping it is the answer.
    back = "" if fixed or not contents else f"bring back the {', '.join(contents)} that it began with"
    what = " and ".join(step for step in (drop, back) if step)
    return f"{what}, or start a new run: without --resume, and with another --output-dir"


def cut_metrics(path: Path, update: int) -> int:
    """Takes from metrics.jsonl what comes after `update`, ends of the run and what is no event; how many lines."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror}); check the run's folder") from error
    lines = content.splitlines()
    kept = [line for line in lines if _stays(line, update)]
    new = b"".join(line + b"\n" for line in kept)
    if new != content:
        write_bytes(path, new)
    return len(lines) - len(kept)


def _stays(line: bytes, update: int) -> bool:
    try:
        event: Any = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return False
    if not isinstance(event, dict) or not isinstance(event.get("event"), str) or event["event"] == "end":
        return False
    number = event.get("update")
    return not (isinstance(number, int | float) and number > update)
