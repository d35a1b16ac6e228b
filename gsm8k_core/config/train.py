"""Settings of `train`, and the profiles: defaults for the real model and for the small embedded one.

A flag wins over the file given with `--config`, the file wins over the profile, the profile over the default.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, ClassVar, Literal, Self

import pydantic
import tyro
from pydantic import Field

from gsm8k_core.config.fields import (
    ALL_LINEAR,
    AUTO,
    AdapterBase,
    Clip,
    Count,
    DataSettings,
    Duration,
    Modules,
    Number,
    OptionalPath,
    PromptFlags,
    Rounds,
    RowSettings,
    SaveDtypeName,
    Steps,
    Trackers,
    flag,
    parse_duration,
    without_none,
)

MethodName = Literal["full", "lora", "dora", "qlora"]
# What a recipe alone reads; a model's own answers are asked for by rft and grpo.
SAMPLED = ("samples", "sample_temperature", "sample_max_new_tokens", "calculator", "verify")
OF_RFT = ("rounds", "keep", "mix", "warm_start")
OF_GRPO = ("prompts_per_update", "updates_per_rollout", "loss", "clip", "kl", "overlong", "rollout_engine")
# What is no setting of grpo's: its updates are of other rows, and its rate has no end that it could fall to.
NOT_OF_GRPO = ("gradient_accumulation_steps", "rationales", "drop_long", "warmup_ratio", "schedule")
# Recipe -> what it does not read.
UNREAD: Mapping[str, tuple[str, ...]] = {
    "sft": (*SAMPLED, *OF_RFT, *OF_GRPO),
    "rft": OF_GRPO,
    "grpo": (*OF_RFT, *NOT_OF_GRPO),
}
# grpo's own defaults. The policy that is trained has to be the one that sampled, so the temperature is no choice.
GRPO_PROFILE: Mapping[str, object] = {
    "samples": 8,
    "sample_temperature": 1.0,
    "learning_rate": 1e-6,
    "schedule": "constant",
    "warmup_ratio": 0.0,
}
GRPO_WARMUP = 10  # updates; how many there will be is not known beforehand


# What suits the small embedded model on a CPU in ten minutes. A flag or a key of the file wins over these.
DEMO_PROFILE: Mapping[str, object] = {
    "max_samples": 400,
    "batch_size": 4,
    "gradient_accumulation_steps": 2,
    "num_epochs": 1,
    "learning_rate": 1e-4,
    "max_time": "10m",
}
DEMO_FLAGS = " ".join(f"{flag(name)} {value}" for name, value in DEMO_PROFILE.items())


# Updates; what `auto` means where there is time. With 25 a collapse wastes 25 updates at most, and a probe takes as
# long as 6 rows of an update (docs/training.md). It divides the other, so a checkpoint comes right after a probe.
SAVE_EVERY, PROBE_EVERY = 50, 25
SHARE = 0.05  # of the time, at most, for each of the two

# An adapter wants a higher rate: its B starts at zero, and its scale does not grow with the rank.
ADAPTER_RATE = 10


# --help's headings. A setting that is named nowhere stands under the last one.
GROUPS = tuple(
    (heading, tuple(names.split()))
    for heading, names in (
        ("the five that matter first", "model data max_time method output_dir"),
        ("this command", "resume force dry_run profile config print_config json_ verbose"),
        (
            "what is learned",
            "num_epochs batch_size gradient_accumulation_steps learning_rate schedule warmup_ratio weight_decay "
            "max_grad_norm trainable adam_beta1 adam_beta2 adam_epsilon seed",
        ),
        (
            "rows and prompts",
            "max_samples max_length drop_long annotations rationales data_config question_column answer_column "
            "skip_bad_rows system_prompt chat_template thinking",
        ),
        ("an adapter", "lora_rank lora_alpha lora_dropout target_modules base_model"),
        ("device, speed, memory", "backend device dtype micro_batch_tokens gradient_checkpointing"),
        ("looked at on the way", "eval_steps eval_problems eval_max_new_tokens guard_problems probe_steps"),
        (
            "saved and reported",
            "save_steps save_total_limit save_dtype report_to no_wandb wandb_project wandb_key_file",
        ),
        ("from the model's own answers", f"recipe {' '.join(SAMPLED)}"),
        ("--recipe rft", " ".join(OF_RFT)),
        ("--recipe grpo", " ".join(OF_GRPO)),
    )
)


class TrainConfig(DataSettings, RowSettings, PromptFlags):
    """Fine-tune a model on GSM8K."""

    groups: ClassVar[tuple[tuple[str, tuple[str, ...]], ...]] = GROUPS

    model: Annotated[str, Field(description="auto, a Hub id, a model, run or adapter folder, or embedded")] = "auto"
    base_model: AdapterBase = ""
    profile: Annotated[
        Literal["auto", "standard", "demo"],
        Field(
            description="defaults for a 0.5B model (those shown here), or for the small embedded one; auto goes by the "
            f"model; demo: {DEMO_FLAGS}"
        ),
    ] = "auto"
    recipe: Annotated[
        Literal["sft", "rft", "grpo"],
        Field(
            description="sft trains on the human answers; rft samples the model's own answers, keeps those that are "
            "verified (right number, no wrong step) and trains on them; grpo samples at every update, and reinforces "
            "the answers that are verified against those that are not: docs/methods.md"
        ),
    ] = "sft"
    samples: Annotated[
        int,
        Field(gt=0, le=256, description="rft: answers to a problem in a round, at most; grpo: in an update, default 8"),
    ] = 4
    sample_temperature: Annotated[
        float, Field(gt=0, le=10, description="rft: temperature of the sampled answers; grpo: always 1")
    ] = 0.8
    sample_max_new_tokens: Annotated[int, Field(gt=0, description="rft, grpo: longest sampled answer, in tokens")] = 320
    prompts_per_update: Annotated[
        int, Field(gt=0, le=4096, description="grpo: problems that an update asks, up to four times as many")
    ] = 16
    updates_per_rollout: Annotated[
        int, Field(gt=0, le=64, description="grpo: updates on the same answers, the later ones with --clip")
    ] = 1
    loss: Annotated[
        Literal["dapo", "dr_grpo", "grpo"],
        Field(description="grpo: what the sum over tokens is divided by: all of them, a constant, each answer's own"),
    ] = "dapo"
    clip: Annotated[Clip, Field(description="grpo: how far below and above 1 the ratio of a token's odds counts")] = (
        "0.2,0.28"
    )
    kl: Annotated[float, Field(ge=0, le=100, description="grpo: how strongly it is held near the first weights")] = 0.0
    overlong: Annotated[
        Literal["mask", "punish"],
        Field(description="grpo: an answer that is cut at its longest is not trained, or is, as a wrong one"),
    ] = "mask"
    rollout_engine: Annotated[
        Literal["backend", "vllm"],
        Field(description="grpo: what samples: the backend itself, or vLLM beside it on CUDA"),
    ] = "backend"
    rounds: Annotated[
        Rounds,
        Field(
            description="rft: rounds of sampling and training, each from the first weights on all that was kept so "
            "far; auto: 2 where each has time for 1,000 problems or all, else 1"
        ),
    ] = "auto"
    keep: Annotated[int, Field(gt=0, le=256, description="rft: answers kept a problem, each with other equations")] = 4
    mix: Annotated[
        Literal["auto", "own", "both"],
        Field(
            description="rft: train on own answers alone, or on the human ones as well; auto: after a warm start both, "
            "else human ones only where no own one was kept"
        ),
    ] = "auto"
    warm_start: Annotated[
        Literal["auto", "on", "off"],
        Field(
            description="rft: sft on the human answers first, for a quarter of the time; auto: where fewer than 10 % "
            "of the model's answers are verified"
        ),
    ] = "auto"
    calculator: Annotated[
        Literal["auto", "on", "off"],
        Field(
            description="rft, grpo: while sampling, write the result of each <<48/2=; it is read and never trained; "
            "auto: where the training rows have such marks"
        ),
    ] = "auto"
    verify: Annotated[
        Literal["auto", "steps", "gold"],
        Field(
            description="rft, grpo: what counts is number and steps, or the number alone; auto: steps, unless "
            "fewer than 30 % of the right answers hold a step that can be read"
        ),
    ] = "auto"
    rationales: Annotated[
        Count,
        Field(
            description="training rows that come with their steps, the first ones; of the others only the number is "
            "used, which rft alone can; -1: all"
        ),
    ] = -1
    max_samples: Annotated[Count, Field(description="training rows to use, the first ones; -1: all")] = 1500
    batch_size: Annotated[
        int, Field(gt=0, description="so many rows of --max-length fit into memory at once; see --micro-batch-tokens")
    ] = 4
    gradient_accumulation_steps: Annotated[
        int, Field(gt=0, description="an update is this many times --batch-size rows")
    ] = 8
    micro_batch_tokens: Annotated[
        Number,
        Field(
            description="most tokens computed at once, padding included, in rows of like length; changes no update; "
            "auto: what the device is fast with, and, but on CUDA, never more than --batch-size rows of --max-length"
        ),
    ] = "auto"
    num_epochs: Annotated[int, Field(gt=0, description="passes over the rows")] = 3
    learning_rate: Annotated[
        float,
        Field(
            gt=0,
            lt=1,
            description="peak rate of AdamW; grpo: 1e-6, reached after 10 updates and kept; when it is not given, an "
            "adapter takes ten times it",
        ),
    ] = 3e-5
    drop_long: Annotated[bool, Field(description="train even when --max-length loses more than 5 % of the answers")] = (
        False
    )
    max_time: Annotated[
        Duration,
        Field(
            description="end the run, model saved, within this time: seconds, 90m, 2h or 1h30m; with --resume, in all"
        ),
    ] = "2h"
    output_dir: Annotated[
        OptionalPath, Field(description="the run's folder, new; default runs/<date>-<time>-<model>")
    ] = None
    method: Annotated[
        MethodName, Field(description="full trains every weight; lora, dora and qlora (mlx only) train an adapter")
    ] = "full"
    lora_rank: Annotated[int, Field(gt=0, le=1024, description="rank of the adapter (PEFT's r)")] = 16
    lora_alpha: Annotated[float, Field(gt=0, description="the adapter counts alpha / rank times")] = 32
    lora_dropout: Annotated[float, Field(ge=0, lt=1, description="dropout before the adapter")] = 0.0
    target_modules: Annotated[
        Modules, Field(description="which linear layers get an adapter: all-linear, or q_proj,v_proj,...")
    ] = ALL_LINEAR
    gradient_checkpointing: Annotated[
        bool, Field(description="compute each block again in the backward pass: less memory, more time")
    ] = False
    save_steps: Annotated[
        Steps,
        Field(
            description="a checkpoint every so many updates; 0: only when the run is stopped early; auto: every "
            f"{SAVE_EVERY}, or more where that would take over 5 % of the time"
        ),
    ] = "auto"
    save_dtype: Annotated[
        SaveDtypeName,
        Field(
            description="the dtype of model/, each weight rounded once, at the end; checkpoints, best/ and an adapter "
            "stay float32; auto: the base's own"
        ),
    ] = "auto"
    save_total_limit: Annotated[int, Field(gt=0, description="checkpoints to keep, the newest ones")] = 2
    resume: Annotated[
        str,
        tyro.conf.arg(metavar="RUN", help_behavior_hint=without_none),
        Field(description="go on with a stopped run: its folder; without a value, --output-dir or the newest"),
    ] = ""
    force: Annotated[
        bool, Field(description="with --resume: accept changed settings that do not change what is learned")
    ] = False
    dry_run: Annotated[
        bool, Field(description="say what training would take in memory, time and disk, train nothing, leave no folder")
    ] = False
    eval_steps: Annotated[
        int, Field(ge=0, description="measure loss and accuracy on the dev split every so many updates; 0: never")
    ] = 0
    eval_problems: Annotated[int, Field(gt=0, description="dev problems, the first ones, always the same")] = 32
    eval_max_new_tokens: Annotated[int, Field(gt=0, description="longest answer to a dev problem, in tokens")] = 320
    guard_problems: Annotated[
        int,
        Field(
            ge=0,
            description="dev problems that the base answers first and the trained model at the end, as many as "
            "fit into 5 % of the time or two updates; with --eval-steps at most --eval-problems; 0: no such check",
        ),
    ] = 64
    probe_steps: Annotated[
        Steps,
        Field(
            description="look for NaN and collapse in a few short answers every so many updates; 0: never; auto: every "
            f"{PROBE_EVERY}, or more where that would take over 5 % of the time"
        ),
    ] = "auto"
    report_to: Annotated[
        Trackers, Field(description="also report to wandb, trackio or tensorboard; several with commas between")
    ] = "none"
    no_wandb: Annotated[bool, Field(description="report nothing to Weights & Biases, whatever --report-to says")] = (
        False
    )
    wandb_project: Annotated[str, Field(min_length=1, description="project name for wandb and trackio")] = (
        "gsm8k-finetune"
    )
    wandb_key_file: Annotated[
        OptionalPath, Field(description="file with the W&B key, instead of WANDB_API_KEY or wandb login")
    ] = None
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
    # Within these two, finite weights and a finite gradient give finite weights: below the one, 0 / 0 in float32, above
    # the other, a square that float32 does not hold.
    adam_epsilon: Annotated[float, Field(ge=1e-20, description="AdamW epsilon")] = 1e-8
    max_grad_norm: Annotated[float, Field(gt=0, le=1e12, description="gradients are clipped to this norm")] = 1.0

    @pydantic.model_validator(mode="after")
    def _one_kind_of_training(self) -> Self:
        if self.uses_adapter and self.trainable != "all":
            raise ValueError(f"--trainable {self.trainable} is for --method full; an adapter trains itself alone")
        return self

    @property
    def update_size(self) -> int:
        """Rows in one update; of grpo, answers that it asks for at first."""
        if self.recipe == "grpo":
            return self.prompts_per_update * self.samples
        return self.batch_size * self.gradient_accumulation_steps

    @property
    def trains_human_answers(self) -> bool:
        """Whether an answer that a person wrote may be trained: else its number alone counts."""
        own_alone = self.mix == "own" and self.warm_start == "off"
        return self.recipe == "sft" or (self.recipe == "rft" and not own_alone)

    @property
    def clip_range(self) -> tuple[float, float]:
        """How far below and above 1 a ratio counts."""
        low, high = map(float, self.clip.split(","))
        return low, high

    @property
    def save_every(self) -> int:
        """Updates from one checkpoint to the next, or more with `auto`; 0: none on the way."""
        return SAVE_EVERY if self.save_steps == AUTO else int(self.save_steps)

    @property
    def probe_every(self) -> int:
        """The same of probes."""
        return PROBE_EVERY if self.probe_steps == AUTO else int(self.probe_steps)

    @property
    def dev_problems(self) -> int:
        """How many dev problems are ever answered; the guard's are the first of them."""
        return self.eval_problems if self.eval_steps else self.guard_problems

    @property
    def trackers(self) -> tuple[str, ...]:
        """Where events go beside metrics.jsonl."""
        asked = () if self.report_to == "none" else tuple(self.report_to.split(","))
        return tuple(name for name in asked if not (self.no_wandb and name == "wandb"))

    @property
    def budget_seconds(self) -> float:
        return parse_duration(self.max_time)

    @property
    def uses_adapter(self) -> bool:
        """Whether an adapter is trained, and not the model itself."""
        return self.method != "full"


def with_profile(config: TrainConfig, demo: bool, explicit: Collection[str]) -> TrainConfig:
    """The settings with the profile's defaults under what was given explicitly (field names)."""
    name = config.profile if config.profile != "auto" else ("demo" if demo else "standard")
    defaults = dict(DEMO_PROFILE) if name == "demo" else {}
    if config.recipe == "grpo":
        defaults |= GRPO_PROFILE
    changes = {key: value for key, value in defaults.items() if key not in explicit}
    if config.uses_adapter and "learning_rate" not in explicit:
        rate = ADAPTER_RATE * float(str(changes.get("learning_rate", config.learning_rate)))
        changes["learning_rate"] = float(f"{rate:.12g}")  # 0.0003, not 0.00030000000000000003
    return TrainConfig(**{**dict(config), **changes, "profile": name})
