"""Settings of `benchmark`; gsm8k_core/config/fields.py says how settings work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import pydantic
import tyro
from pydantic import Field

from benchmarks.contenders import ALL, AUTO, CONTENDERS, GENERATE
from gsm8k_core.config.fields import Duration, OptionalFile, Settings, parse_duration
from gsm8k_core.config.train import TrainConfig

MOST = 64  # processes of one machine
ModeName = Literal["train", "generate", "end-to-end", "report", "key-copies", "mac-report"]


def _checked_names(text: str) -> str:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if names in ([AUTO], [ALL]):
        return names[0]
    unknown = [name for name in names if name not in CONTENDERS] or ([] if names else [text])
    if unknown:
        listed = ", ".join(CONTENDERS)
        raise ValueError(f"takes {AUTO}, {ALL}, or names with commas between: {listed}; not {', '.join(unknown)}")
    return ",".join(names)


def _checked_worlds(text: str) -> str:
    counts = [each.strip() for each in text.split(",")] if text else []
    good = all(each.isdecimal() and 1 <= int(each) <= MOST for each in counts)
    if not good or (counts and "1" not in counts) or len(set(counts)) < len(counts):
        raise ValueError(
            f"takes counts of processes, each once, with commas between, 1 among them, such as 1,2; not {text}"
        )
    return ",".join(map(str, sorted({int(each) for each in counts})))


Contenders = Annotated[str, pydantic.AfterValidator(_checked_names)]


class BenchmarkConfig(Settings):
    """Measure speed and memory, MLX beside torch, or beside peers."""

    mode: Annotated[
        tyro.conf.Positional[ModeName],
        Field(
            description="train and generate: the steady rate; end-to-end: from the start of the process to the trained "
            "weights on disk; report: tables and plots from the results; key-copies: whether MLX's decoding writes "
            "keys and values in place; mac-report: doctor, parity and a short benchmark in one file"
        ),
    ] = "train"
    contenders: Annotated[
        Contenders,
        Field(
            description="auto: our backends on this machine's devices; all: also each peer that is installed and can "
            f"do the same work; or names with commas between, of {', '.join(CONTENDERS)}"
        ),
    ] = AUTO
    model: Annotated[str, Field(description="auto, a Hub id, a model folder, or embedded")] = "embedded"
    data: Annotated[
        str, Field(description="auto, openai/gsm8k, a folder with train.jsonl and test.jsonl, or generated")
    ] = "auto"
    device: Annotated[
        Literal["auto", "cpu"], Field(description="auto: the GPU where there is one; cpu: both on the CPU")
    ] = "auto"
    dtype: Annotated[
        Literal["float32", "bfloat16"], Field(description="compute precision, the same class for everyone")
    ] = "float32"
    rounds: Annotated[
        int, Field(gt=0, le=1000, description="rounds; in each one every contender runs once, in turn")
    ] = 5
    rows: Annotated[int, Field(gt=0, description="training rows")] = 80
    select: Annotated[
        Literal["first", "spread"],
        Field(
            description="first: the first training rows, a sample for the speed; spread: from the shortest to the "
            "longest in even steps, for the peak memory"
        ),
    ] = "first"
    update_size: Annotated[int, Field(gt=0, description="rows in an update")] = 8
    batch_size: Annotated[int, Field(gt=0, description="rows in a micro-batch")] = 4
    passes: Annotated[
        int, Field(gt=0, description="train: passes over the rows; the first one meets each shape for the first time")
    ] = 2
    world: Annotated[
        str,
        pydantic.AfterValidator(_checked_worlds),
        tyro.conf.arg(metavar="1,2,4", help_behavior_hint=""),
        Field(
            description="train, ours: each on so many processes, such as 1,2,4, by the backend's own launcher, and "
            "their efficiency against one; on a CPU the cores are shared out evenly"
        ),
    ] = ""
    order: Annotated[
        Literal["shared", "own"],
        Field(
            description="shared: the same rows in each update for everyone; own: the peers' updates after the first "
            "are random, as they are where the peer shuffles"
        ),
    ] = "shared"
    method: Annotated[Literal["full", "lora"], Field(description="train all weights, or a LoRA adapter")] = "full"
    trainable: Annotated[
        Literal["all", "blocks"], Field(description="all weights, or only the blocks (all that mlx-lm can train)")
    ] = "all"
    lora_rank: Annotated[int, Field(gt=0, le=1024, description="rank of the adapter")] = 16
    lora_alpha: Annotated[float, Field(gt=0, description="the adapter counts alpha / rank times")] = 32
    learning_rate: Annotated[float, Field(gt=0, lt=1, description="AdamW's rate, the same in every update")] = 1e-5
    max_length: Annotated[int, Field(ge=16, description="rows with more tokens are left out")] = 512
    held_out: Annotated[int, Field(ge=0, description="test rows that the trained weights are scored on; 0: none")] = 100
    problems: Annotated[int, Field(gt=0, description="generate: test problems, the first ones")] = 64
    max_new_tokens: Annotated[int, Field(gt=0, description="generate: longest answer in tokens")] = 200
    eval_batch_size: Annotated[
        int, Field(gt=0, description="generate: problems that a peer answers together; ours takes eval's default")
    ] = 16
    seed: Annotated[
        int, Field(ge=0, lt=2**32, description="seeds the order of the rows and the adapter's first values")
    ] = 0
    max_time: Annotated[
        Duration,
        Field(description="begin no round that would end later, by the longest one so far: seconds, 90m or 2h"),
    ] = "2h"
    results: Annotated[
        Path,
        tyro.conf.arg(metavar="FOLDER"),
        Field(
            description="where each run adds a JSON file of its own; report adds plots, and README.md beside the folder"
        ),
    ] = Path("benchmarks/results")
    output: Annotated[OptionalFile, Field(description="mac-report: the one file; default mac-report.json")] = None

    @pydantic.model_validator(mode="after")
    def _whole_updates(self) -> Self:
        if self.world and self.mode != "train":
            raise ValueError(f"--world {self.world} is for benchmark train, not {self.mode}")
        if self.mode == GENERATE:
            if self.method != "full":
                raise ValueError(f"generate answers with the model as it is; --method {self.method} is for training")
            return self
        named = [CONTENDERS[name] for name in self.contenders.split(",") if name in CONTENDERS]
        rows = self.batch_size * max((each.batch_times for each in named), default=1)
        if self.update_size % rows:
            raise ValueError(
                f"--update-size {self.update_size} must be a multiple of the rows in a micro-batch, {rows}: the peers "
                "have no smaller last micro-batch"
            )
        if self.rows < self.update_size:
            raise ValueError(f"--rows {self.rows} must be at least one update (--update-size {self.update_size})")
        if self.method != "full" and self.trainable != "all":
            raise ValueError(f"--trainable {self.trainable} is for --method full; an adapter trains itself alone")
        return self

    @property
    def worlds(self) -> list[int]:
        """The counts of processes, from the smallest; none: one process, as the others have."""
        return [int(each) for each in self.world.split(",") if each]

    @property
    def budget_seconds(self) -> float:
        return parse_duration(self.max_time)

    def prompts_together(self, ours: bool) -> int | None:
        """Prompts decoded at one time: a peer what was asked; ours as many as `eval` chooses there (None)."""
        return None if ours else self.eval_batch_size

    def train_config(self, batch_times: int = 1) -> TrainConfig:
        """What a contender is given: a constant rate, and the same step for everyone."""
        rows = self.batch_size * batch_times
        return TrainConfig(
            method=self.method,
            trainable=self.trainable,
            lora_rank=self.lora_rank,
            lora_alpha=self.lora_alpha,
            learning_rate=self.learning_rate,
            batch_size=rows,
            dtype=self.dtype,
            seed=self.seed,
            gradient_accumulation_steps=self.update_size // rows,
            schedule="constant",
            warmup_ratio=0.0,
            max_length=self.max_length,
        )
