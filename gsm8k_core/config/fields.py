"""What the settings of several verbs are made of: names, kinds of value with their checks, and base models.

Flags, YAML keys and JSON manifests are all made from these models: frozen, without unknown keys, and a bad value is
one line in our words.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pydantic
import tyro
from pydantic import Field

from gsm8k_core.config.brought import spelled, truth
from gsm8k_core.types import UsageError

AUTO = "auto"  # of a setting that is chosen by the machine, with a reason
DEFAULT_MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
DEFAULT_DATA = "openai/gsm8k"
EMBEDDED_MODEL = "embedded"
GENERATED_DATA = "generated"
LONGEST_ANSWER = 512  # tokens, where nobody says so
# A name, and no list of them: which there are is backends.PROVIDERS' to say, and another name is refused by it.
BackendName = Annotated[str, tyro.conf.arg(metavar="auto|NAME")]
DeviceName = Literal["auto", "cpu", "cuda", "mps", "gpu"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
SaveDtypeName = Literal["auto", "float32", "bfloat16", "float16"]


def flag(name: str) -> str:
    """The flag of a field: `max_samples` -> `--max-samples`."""
    return "--" + name.rstrip("_").replace("_", "-")


_AMOUNT = r"[0-9]{1,9}(?:\.[0-9]{1,6})?"
_TIMES = (
    rf"(?:({_AMOUNT}) ?(?:h|hr|hours?))? ?(?:({_AMOUNT}) ?(?:m|min|minutes?))? ?(?:({_AMOUNT}) ?(?:s|sec|seconds?))?"
)


def parse_duration(text: str) -> float:
    """Seconds from "7200", "90s", "120m", "2h", "1h30m" or "90 min". Raises ValueError for anything else."""
    plain = text.strip().lower()
    if re.fullmatch(_AMOUNT, plain):
        return float(plain)
    found = re.fullmatch(_TIMES, plain)
    if not found or not plain:
        raise ValueError("must be a number of seconds, or a number with s, m or h, such as 90m or 1h30m")
    return sum(float(amount) * seconds for amount, seconds in zip(found.groups(), (3600, 60, 1), strict=True) if amount)


def _checked_duration(text: str) -> str:
    if parse_duration(text) <= 0:
        raise ValueError("must be greater than zero")
    return text


def _checked_count(count: int) -> int:
    if count == 0 or count < -1:
        raise ValueError("must be greater than zero, or -1 for all")
    return count


Count = Annotated[int, pydantic.AfterValidator(_checked_count)]
Duration = Annotated[
    str, pydantic.BeforeValidator(str), pydantic.AfterValidator(_checked_duration), tyro.conf.arg(metavar="TIME")
]


def _auto_or(pattern: str, words: str) -> pydantic.AfterValidator:
    """`auto`, or a whole number that the pattern fits."""

    def checked(text: str) -> str:
        if text != AUTO and not re.fullmatch(pattern, text):
            raise ValueError(f"must be auto, or a whole number {words}")
        return text

    return pydantic.AfterValidator(checked)


_AutoOrWhole = Annotated[str, pydantic.BeforeValidator(str), tyro.conf.arg(metavar="auto|INT")]
Number = Annotated[_AutoOrWhole, _auto_or(r"[1-9][0-9]{0,8}", "greater than zero")]
Rounds = Annotated[_AutoOrWhole, _auto_or(r"[1-9]", "from 1 to 9")]
Steps = Annotated[_AutoOrWhole, _auto_or(r"0|[1-9][0-9]{0,8}", "from 0 on")]


def _checked_clip(text: str) -> str:
    parts = text.split(",")
    try:
        low, high = (float(part) for part in (parts * 2 if len(parts) == 1 else parts))
    except ValueError:
        raise ValueError("takes one number, or two with a comma between, such as 0.2,0.28") from None
    if not (0 < low < 1 and 0 < high < 100):
        raise ValueError("takes one number, or two such as 0.2,0.28: both above 0, the first below 1")
    return f"{low:g},{high:g}"


Clip = Annotated[str, pydantic.BeforeValidator(str), pydantic.AfterValidator(_checked_clip)]

TRACKERS = ("wandb", "trackio", "tensorboard")


def _checked_trackers(text: str) -> str:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if names in ([], ["none"]):
        return "none"
    if unknown := [name for name in names if name not in TRACKERS]:
        raise ValueError(f"takes {', '.join(TRACKERS)} with commas between, or none; not {', '.join(unknown)}")
    return ",".join(names)


Trackers = Annotated[str, pydantic.AfterValidator(_checked_trackers)]

LONGEST_SHOWN = 200  # characters of a value in an error
ALL_LINEAR = "all-linear"


def _checked_modules(text: str) -> str:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names or (ALL_LINEAR in names and len(names) > 1):
        raise ValueError(f"takes {ALL_LINEAR} alone, or names of layers with commas between, such as q_proj,v_proj")
    return ",".join(names)


Modules = Annotated[str, pydantic.AfterValidator(_checked_modules)]


def without_none(default: str) -> str:
    """What `--help` says of a default; nothing where there is none."""
    return "" if default in ("None", "", "''") else f"(default: {default})"


# Where it is used, the adapter's folder is what --model (or --trained-model) names.
AdapterBase = Annotated[
    str,
    tyro.conf.arg(metavar="MODEL", help_behavior_hint=without_none),
    Field(description="for an adapter: the model under it, instead of the one that its adapter_config.json names"),
]
OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint=without_none)]
OptionalFile = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint=without_none)]
OptionalDuration = Annotated[Duration | None, tyro.conf.arg(metavar="TIME", help_behavior_hint=without_none)]

# The start of pydantic's name for what is wrong -> our words; elsewhere its own are plain enough.
WORDS = {
    "int": "must be a whole number",
    "float": "must be a number",
    "finite": "must be a finite number",
    "bool": "must be true or false",
    "string_type": "must be a text",
    "path": "must be a path",
    "tuple": "must be a list",
    "dict": "must be an object",
    "model_type": "must be an object",
    "list": "must be a list",
}


def one_line(error: pydantic.ValidationError, name: Callable[[str], str] = flag, most: int | None = None) -> str:
    """What is wrong with some settings, `most` of it; `name` makes a field's name what the person wrote."""
    parts = []
    for item in error.errors()[:most]:
        place = ".".join(str(piece) for piece in item["loc"])
        if item["type"] == "extra_forbidden":
            parts.append(f"there is no setting {place!r}")
            continue
        message = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        message = message.replace("List should have at least 1 item after validation, not 0", "must not be empty")
        message = next((ours for kind, ours in WORDS.items() if item["type"].startswith(kind)), message)
        got = "nothing" if item["input"] is None else _shown(item["input"])
        parts.append(f"{name(place)} {message} (got {got})" if place else message)
    return "; ".join(parts)


def _shown(value: object) -> str:
    """A value in a message, which is one line."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return "a number too long to show"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


class Settings(pydantic.BaseModel):
    """The base of every verb's settings: frozen, no unknown keys, a bad value is one clear line."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # Headings of --help, each with its fields; what no heading names comes last.
    groups: ClassVar[tuple[tuple[str, tuple[str, ...]], ...]] = ()
    alternatives: ClassVar[tuple[tuple[str, ...], ...]] = ()  # fields that say the same thing: one of them is given

    config: Annotated[
        OptionalFile,
        Field(description="YAML file with these same keys, or a run's run.json (train); a flag wins over it"),
    ] = None
    print_config: Annotated[bool, Field(description="print the settings as YAML for --config, and do nothing else")] = (
        False
    )
    json_: Annotated[
        bool, tyro.conf.arg(name="json"), Field(description="print one JSON object on stdout, all else on stderr")
    ] = False
    verbose: Annotated[
        bool,
        tyro.conf.arg(aliases=["-v"]),
        Field(description="show the traceback of an error, and the figures behind a choice"),
    ] = False

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_numbers_and_any_spelling(cls, value: object, info: pydantic.ValidationInfo) -> object:
        annotation = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and annotation is not bool:
            if (word := truth(value, annotation)) is None:
                raise ValueError("must not be true or false")
            return word
        return spelled(value, annotation) if isinstance(value, str) else value

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except pydantic.ValidationError as error:
            raise UsageError(one_line(error)) from error


class BackendSettings(Settings):
    """Where the arithmetic happens."""

    backend: Annotated[BackendName, Field(description="mlx, torch, or auto: mlx on Apple Silicon, torch elsewhere")] = (
        "auto"
    )
    device: Annotated[DeviceName, Field(description="cpu, cuda and mps are torch's; cpu and gpu are mlx's")] = "auto"
    dtype: Annotated[DtypeName, Field(description="compute precision; the weights that are trained stay float32")] = (
        "auto"
    )


class ProblemSettings(Settings):
    """Which problems."""

    data: Annotated[
        str,
        Field(
            description="auto, openai/gsm8k or another Hub id (@REVISION pins it), a file of rows (JSONL, JSON array, "
            "parquet; .gz too), a folder with train and test, or generated; README lists the shapes of a row"
        ),
    ] = "auto"
    data_config: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9][\w.-]*$",
            max_length=96,
            description="which configuration of the data: main or socratic of openai/gsm8k, or another's folder",
        ),
    ] = "main"
    question_column: Annotated[
        str,
        tyro.conf.arg(metavar="NAME", help_behavior_hint=without_none),
        Field(description="the column with the question; default: found by its name"),
    ] = ""
    answer_column: Annotated[
        str,
        tyro.conf.arg(metavar="NAME", help_behavior_hint=without_none),
        Field(description="the column with the answer; default: found by its name"),
    ] = ""
    skip_bad_rows: Annotated[
        bool, Field(description="leave out rows that are empty or whose answer is no number, counted and named")
    ] = False
    seed: Annotated[
        int, Field(ge=0, lt=2**32, description="seeds the order of the rows and the generated problems")
    ] = 0


class ThinkingSettings(Settings):
    """What the chat template is, and whether the model thinks."""

    thinking: Annotated[
        Literal["auto", "off", "on"],
        Field(
            description="of a chat template with a switch for it (Qwen3, SmolLM3): whether the model thinks before it "
            "answers; auto: as it was trained, else off"
        ),
    ] = "auto"
    chat_template: Annotated[
        OptionalFile, Field(description="a Jinja chat template instead of the model's own; a trained model keeps it")
    ] = None


class PromptFlags(ThinkingSettings):
    """How a model is asked."""

    system_prompt: Annotated[
        str,
        tyro.conf.arg(metavar="TEXT", help_behavior_hint=without_none),
        Field(description="the instruction, instead of the usual one that asks for ####; a trained model keeps it"),
    ] = ""


class DrawSettings(Settings):
    """How a token is chosen."""

    temperature: Annotated[float, Field(ge=0, description="0 is greedy")] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1, description="keep the likeliest tokens up to this probability")] = 1.0
    top_k: Annotated[int, Field(ge=0, description="keep this many of the likeliest tokens; 0: all")] = 0


class DataSettings(ProblemSettings, BackendSettings):
    """Which problems, and where the arithmetic happens."""


class RowSettings(Settings):
    """How a problem becomes a training row."""

    max_length: Annotated[
        int, Field(ge=16, description="longest row in tokens; longer rows are left out, an answer is never cut")
    ] = 512
    annotations: Annotated[
        Literal["keep", "strip"], Field(description="train with GSM8K's <<48/2=24>> marks, or without them")
    ] = "keep"
