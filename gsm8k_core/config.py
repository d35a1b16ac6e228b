"""Every setting, once: its default, its check and its help text.

Flags, YAML keys and JSON manifests are all made from these models. A flag wins over the file given with
`--config`, the file wins over the profile, the profile over the default.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import tyro
from pydantic import Field

from gsm8k_core.types import UsageError

DEFAULT_MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
DEFAULT_DATA = "openai/gsm8k"
EMBEDDED_MODEL = "embedded"
GENERATED_DATA = "generated"

BackendName = Literal["auto", "mlx", "torch"]
DeviceName = Literal["auto", "cpu", "cuda", "mps", "gpu"]
DtypeName = Literal["auto", "float32", "bfloat16"]


def flag(name: str) -> str:
    """The flag of a field: `max_samples` -> `--max-samples`."""
    return "--" + name.replace("_", "-")


def parse_duration(text: str) -> float:
    """Seconds from "7200", "90s", "120m" or "2h". Raises ValueError for anything else."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)([smh]?)", text.strip())
    if not found:
        raise ValueError("a time is a number of seconds, or a number with s, m or h, such as 90m")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def _checked_duration(text: str) -> str:
    parse_duration(text)
    return text


Duration = Annotated[str, pydantic.BeforeValidator(str), pydantic.AfterValidator(_checked_duration)]


def _one_line(error: pydantic.ValidationError) -> str:
    parts = []
    for item in error.errors():
        place = ".".join(str(piece) for piece in item["loc"])
        if item["type"] == "extra_forbidden":
            parts.append(f"there is no setting {place!r}")
        else:
            message = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            parts.append(f"{flag(place) if place else 'settings'} {message} (got {item['input']!r})")
    return "; ".join(parts)


class Settings(pydantic.BaseModel):
    """The base of every verb's settings: frozen, no unknown keys, a bad value is one clear line."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    config: Annotated[Path | None, Field(description="YAML file with these same keys; a flag wins over it")] = None
    json_: Annotated[
        bool, tyro.conf.arg(name="json"), Field(description="print one JSON object on stdout, all else on stderr")
    ] = False
    verbose: Annotated[bool, tyro.conf.arg(aliases=["-v"]), Field(description="show the traceback of an error")] = False

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except pydantic.ValidationError as error:
            raise UsageError(_one_line(error)) from error


class BackendSettings(Settings):
    """Where the arithmetic happens."""

    backend: Annotated[BackendName, Field(description="auto: mlx on Apple Silicon, torch elsewhere")] = "auto"
    device: Annotated[DeviceName, Field(description="cpu, cuda and mps are torch's; cpu and gpu are mlx's")] = "auto"
    dtype: Annotated[DtypeName, Field(description="compute precision; the weights that are trained stay float32")] = (
        "auto"
    )


class DataSettings(BackendSettings):
    """Which problems."""

    data: Annotated[
        str,
        Field(description="auto, openai/gsm8k, a JSONL file, a folder with train.jsonl and test.jsonl, or generated"),
    ] = "auto"
    data_config: Annotated[Literal["main", "socratic"], Field(description="which configuration of openai/gsm8k")] = (
        "main"
    )
    seed: Annotated[int, Field(ge=0, description="seeds the order of the rows and the generated problems")] = 0


class TrainConfig(DataSettings):
    """Fine-tune a model on GSM8K."""

    model: Annotated[str, Field(description="auto, a Hub id, a local folder, or embedded")] = "auto"
    profile: Annotated[
        Literal["auto", "standard", "demo"],
        Field(description="defaults for a 0.5B model, or for the small embedded one; auto goes by the model"),
    ] = "auto"
    max_samples: Annotated[int, Field(description="training rows to use, the first ones; -1: all", ge=-1)] = 1500
    batch_size: Annotated[int, Field(gt=0, description="rows in a micro-batch")] = 4
    gradient_accumulation_steps: Annotated[
        int, Field(gt=0, description="micro-batches in an update; an update is this many times --batch-size rows")
    ] = 8
    num_epochs: Annotated[int, Field(gt=0, description="passes over the rows")] = 3
    learning_rate: Annotated[float, Field(gt=0, lt=1, description="peak rate of AdamW")] = 3e-5
    max_length: Annotated[
        int, Field(ge=16, description="longest row in tokens; longer rows are left out, an answer is never cut")
    ] = 512
    drop_long: Annotated[bool, Field(description="train even when --max-length loses more than 5 % of the answers")] = (
        False
    )
    max_time: Annotated[
        Duration, Field(description="end the run, model saved, within this time: seconds, or 90m, or 2h")
    ] = "2h"
    output_dir: Annotated[
        Path | None, Field(description="the run's folder, new; default runs/<date>-<time>-<model>")
    ] = None
    save_steps: Annotated[
        int, Field(ge=0, description="save the model every so many updates, under checkpoints/; 0: only at the end")
    ] = 0
    no_wandb: Annotated[
        bool, Field(description="report nothing to Weights & Biases (also the default: metrics stay in the run folder)")
    ] = False
    annotations: Annotated[
        Literal["keep", "strip"], Field(description="train with GSM8K's <<48/2=24>> marks, or without them")
    ] = "keep"
    trainable: Annotated[
        Literal["all", "blocks"], Field(description="all weights, or only the transformer blocks (as mlx-lm does)")
    ] = "all"
    warmup_ratio: Annotated[float, Field(ge=0, lt=1, description="share of the updates with a rising rate")] = 0.03
    schedule: Annotated[Literal["linear", "constant"], Field(description="the rate after warm-up")] = "linear"
    weight_decay: Annotated[
        float, Field(ge=0, description="AdamW's decay, on matrices only, never on biases and norms")
    ] = 0.0
    adam_beta1: Annotated[float, Field(ge=0, lt=1, description="AdamW beta 1")] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1, description="AdamW beta 2")] = 0.999
    adam_epsilon: Annotated[float, Field(gt=0, description="AdamW epsilon")] = 1e-8
    max_grad_norm: Annotated[float, Field(gt=0, description="gradients are clipped to this norm")] = 1.0

    @property
    def update_size(self) -> int:
        """Rows in one update."""
        return self.batch_size * self.gradient_accumulation_steps

    @property
    def budget_seconds(self) -> float:
        return parse_duration(self.max_time)


class ScoreSettings(DataSettings):
    """Which problems are answered, and how."""

    max_samples: Annotated[int, Field(ge=-1, description="problems to use, the first ones; -1: all")] = -1
    all_: Annotated[bool, tyro.conf.arg(name="all"), Field(description="every problem, as --max-samples -1")] = False
    split: Annotated[Literal["test", "train"], Field(description="which problems")] = "test"
    max_new_tokens: Annotated[int, Field(gt=0, description="longest answer in tokens; beyond it, it is cut")] = 512
    eval_batch_size: Annotated[int, Field(gt=0, description="problems answered together")] = 64
    output_dir: Annotated[
        Path | None, Field(description="records go to its logs/; default: the model's run folder, else here")
    ] = None

    @property
    def num_problems(self) -> int | None:
        """How many problems, or None for all."""
        return None if self.all_ or self.max_samples < 0 else self.max_samples


class EvalConfig(ScoreSettings):
    """Score a model on the test problems, with every extraction rule over one set of generations."""

    model: Annotated[str, Field(description="a model folder, a run folder, a Hub id, embedded, or auto")] = "auto"


class CompareConfig(ScoreSettings):
    """Tell base from trained on the same problems; writes model_comparison.json."""

    base_model: Annotated[str, Field(description="the model before training; auto: the one that the run names")] = (
        "auto"
    )
    trained_model: Annotated[str, Field(description="the model after training: its folder, or its run folder")] = ""


# What suits the small embedded model on a CPU in ten minutes. A flag or a key of the file wins over these.
DEMO_PROFILE: Mapping[str, object] = {
    "max_samples": 480,
    "batch_size": 8,  # its problems are short: a micro-batch of 8 is as many tokens as one of 4 on GSM8K
    "gradient_accumulation_steps": 1,
    "num_epochs": 1,
    "learning_rate": 1e-4,
    "max_time": "10m",
}


def with_profile(config: TrainConfig, demo: bool, explicit: Collection[str]) -> TrainConfig:
    """The settings with the profile's defaults under what was given explicitly (field names)."""
    name = config.profile if config.profile != "auto" else ("demo" if demo else "standard")
    defaults = DEMO_PROFILE if name == "demo" else {}
    changes = {key: value for key, value in defaults.items() if key not in explicit}
    return TrainConfig(**{**dict(config), **changes, "profile": name})
