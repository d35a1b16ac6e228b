"""A run's settings taken up again: `--config runs/NAME/run.json`, or the run's folder; and settings printed as YAML.

A repeated run gets what the first one was given and what was settled for it by its profile. What says where it went,
or how this one command was to be carried out, is not repeated. Nor are values that stand as the defaults do, or a flag
that means nothing beside the others, such as --lora-rank beside --method full, would count as asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from gsm8k_core.config.fields import EMBEDDED_MODEL, Settings
from gsm8k_core.config.train import DEMO_PROFILE, GRPO_PROFILE, NOT_OF_GRPO, UNREAD, TrainConfig, with_profile
from gsm8k_core.files import read_json
from gsm8k_core.types import DataError, UsageError

RECORD = "run.json"
OF_ONE_COMMAND = ("config", "json_", "verbose", "print_config", "output_dir", "resume", "force", "dry_run")
UNPRINTED = ("config", "json_", "verbose", "print_config", "api_key")  # no file needs a secret: api_key_file
# What another recipe takes in another sense: answers to a problem are asked for in waves, or compared.
MEANT_OTHERWISE = ("samples", "sample_temperature")
REFUSED = {"grpo": ("lora_dropout",)}  # recipe -> what is given to others alone
SETTLED = frozenset({*DEMO_PROFILE, "learning_rate"})  # a profile or a method would choose these anew


def record_of(path: Path) -> Path | None:
    """The run.json that a --config means; None for any other file."""
    if path.is_dir():
        return path / RECORD
    return path if path.name == RECORD else None


def repeated(path: Path, recipe: str | None = None) -> dict[str, Any]:
    """The settings of the run that wrote `path`, by field; `recipe`: the one that is asked for, where one is.

    Raises UsageError where they are none of this version's.
    """
    if not path.is_file():
        raise UsageError(f"--config {path.parent} has no {RECORD}; give a YAML file, or the folder of a run")
    try:
        manifest = read_json(path)
    except DataError as error:
        raise UsageError(f"--config {error}") from None
    config, made = manifest.get("config"), manifest.get("versions")
    if not isinstance(config, dict):
        raise UsageError(f"--config {path} holds no settings of a run; give another run's {RECORD}, or a YAML file")
    fields = TrainConfig.model_fields
    if unknown := sorted(set(config) - set(fields)):
        version = made.get("gsm8k-finetune", "unknown") if isinstance(made, dict) else "unknown"
        raise UsageError(
            f"--config {path} is of another version ({version}): there is no setting {unknown[0]!r} here; "
            "give its settings as flags"
        )
    own = str(config.get("recipe", "sft"))
    if recipe is not None and {own, recipe} <= UNREAD.keys() and recipe != own:
        return _for_another(config, own, recipe)
    idle = NOT_OF_GRPO if config.get("recipe") == "grpo" else ()  # its profile settles them anew
    wanted = {name: value for name, value in config.items() if name not in (*OF_ONE_COMMAND, *idle)}
    defaults = TrainConfig().model_dump(mode="json")
    settled = SETTLED | set(GRPO_PROFILE) if config.get("recipe") == "grpo" else SETTLED
    return {name: value for name, value in wanted.items() if name in settled or value != defaults[name]}


def _for_another(config: Mapping[str, Any], own: str, recipe: str) -> dict[str, Any]:
    """The settings that a run's `own` recipe has in common with another one, less those that its profile settled."""
    kind = {name: config[name] for name in ("profile", "method") if name in config}
    settled = with_profile(TrainConfig(**{**kind, "recipe": own}), demo=False, explicit=()).model_dump(mode="json")
    left = {*OF_ONE_COMMAND, *UNREAD[own], *UNREAD[recipe], *REFUSED.get(recipe, ()), *MEANT_OTHERWISE, "recipe"}
    return {name: value for name, value in config.items() if name not in left and value != settled[name]} | {
        name: value for name, value in kind.items() if value != TrainConfig.model_fields[name].default
    }


def as_yaml(config: Settings, given: Collection[str], command: str) -> str:
    """The settings in the words of a --config file; those that nobody gave stand behind a #, as they are by default."""
    lines = [f"# {command} --config FILE reads this; a # marks a default"]
    unread: Collection[str] = ()
    if isinstance(config, TrainConfig):
        config, unread = _by_default(config, given), UNREAD[config.recipe]
    values: Mapping[str, Any] = config.model_dump(mode="json")
    for name, value in values.items():
        if name in UNPRINTED or (name not in given and (value in (None, "") or name in unread)):
            continue
        line = yaml.safe_dump({name.rstrip("_"): value}, allow_unicode=True, default_flow_style=False, width=10**6)
        lines.append(line.rstrip("\n") if name in given else f"# {line.rstrip()}")
    return "\n".join(lines)


def _by_default(config: TrainConfig, given: Collection[str]) -> TrainConfig:
    """With what recipe, method and profile settle where nobody does; the model that is named says which profile."""
    settled = with_profile(config, demo=config.model == EMBEDDED_MODEL, explicit=given)
    return settled.model_copy(update={"profile": config.profile})
