"""Settings of the verbs that have a model answer, or judge answers: eval, compare, generate, harness and grade."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pydantic
import tyro
from pydantic import Field

from gsm8k_core.config.fields import (
    AUTO,
    LONGEST_ANSWER,
    AdapterBase,
    BackendSettings,
    Count,
    DataSettings,
    DrawSettings,
    Number,
    OptionalDuration,
    OptionalFile,
    OptionalPath,
    PromptFlags,
    Settings,
    ThinkingSettings,
    without_none,
)

SlowRules = Annotated[
    bool, Field(description="judge by math-verify, too, in a process of its own; it needs the extra bench")
]

# Which there are is scoring's to say, and another name is refused there.
ListedRules = Annotated[
    str,
    tyro.conf.arg(metavar="all|NAME,NAME"),
    Field(
        description="judge by these: openai, strict, flexible, cot, qwen-math, verl, inspect, robust, and of older "
        "versions robust-v1; eval and compare always show strict, flexible and robust"
    ),
]

UseCalculator = Annotated[
    bool,
    Field(
        description="where an answer says <<48/2=, a calculator writes 24>>, not the model; "
        "scores are then said to be with calculator"
    ),
]

# How many are answered at once follows a GPU's free memory, and in half precision that can change a text.
SAME_SEED = "the same seed draws the same answers; on a GPU in half precision only at one --eval-batch-size N"
TOGETHER = "{} answered together; auto: 64 on a CPU, elsewhere as many as fit into half of the free memory, 512 at most"


class ScoreSettings(DataSettings, DrawSettings, PromptFlags):
    """Which problems are answered, and how."""

    alternatives: ClassVar[tuple[tuple[str, ...], ...]] = (("max_samples", "all_"),)

    max_samples: Annotated[Count, Field(description="problems to use, the first ones; -1: all")] = -1
    all_: Annotated[bool, tyro.conf.arg(name="all"), Field(description="every problem, as --max-samples -1")] = False
    split: Annotated[Literal["test", "train"], Field(description="which problems")] = "test"
    max_new_tokens: Annotated[int, Field(gt=0, description="longest answer in tokens; beyond it, it is cut")] = (
        LONGEST_ANSWER
    )
    eval_batch_size: Annotated[Number, Field(description=TOGETHER.format("problems"))] = AUTO
    sample_seed: Annotated[int, Field(ge=0, lt=2**32, description=f"with --temperature: {SAME_SEED}")] = 0
    samples: Annotated[
        int, Field(gt=0, le=256, description="answers to each problem; from 2 on, also maj@K and pass@K")
    ] = 1
    shots: Annotated[int, Field(ge=0, le=64, description="solved train problems before each question")] = 0
    shot_annotations: Annotated[
        Literal["keep", "strip"], Field(description="show GSM8K's <<48/2=24>> marks in the shots, or leave them out")
    ] = "keep"
    stop_at_answer: Annotated[
        bool, Field(description="end an answer after its whole #### line as well; faster, and other texts than without")
    ] = False
    calculator: UseCalculator = False
    max_time: Annotated[
        OptionalDuration,
        Field(description="end within this time (90s, 10m), on a random sample of the problems; compare: both models"),
    ] = None
    rules: ListedRules = "all"
    slow_rules: SlowRules = False
    output_dir: Annotated[
        OptionalPath, Field(description="records go to its logs/; default: the model's run folder, else here")
    ] = None

    @property
    def num_problems(self) -> int | None:
        """How many problems, or None for all."""
        return None if self.all_ or self.max_samples < 0 else self.max_samples


class EvalConfig(ScoreSettings):
    """Score a model on the test problems, under every extraction rule."""

    model: Annotated[str, Field(description="auto, a Hub id, a model, run or adapter folder, or embedded")] = "auto"
    base_model: AdapterBase = ""
    check_batching: Annotated[
        bool, Field(description="answer the first 32 problems again, one by one, and list where the texts part")
    ] = False
    repeat: Annotated[
        int,
        Field(
            gt=0,
            le=1000,
            description="with --temperature: evaluate so many times, each with the next --sample-seed: the spread",
        ),
    ] = 1


def _as_list(value: object) -> object:
    """A name alone is a list of one."""
    return ((value,) if value else ()) if isinstance(value, str) else value


class CompareConfig(ScoreSettings):
    """Tell base from trained: numbers, report.html and model_card.md."""

    alternatives = (*ScoreSettings.alternatives, ("trained_model",))  # those of a flag stand for the file's

    base_model: Annotated[
        str,
        Field(
            description="the model before training; auto: the one that the run or the adapter names; an adapter whose "
            "own base is not on this machine is opened on it"
        ),
    ] = "auto"
    trained_model: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(metavar="MODEL", help_behavior_hint=""),
        pydantic.BeforeValidator(_as_list),
        Field(description="the model after training: its folder, or its run folder; given again, one more on the page"),
    ] = ()
    open_: Annotated[
        bool, tyro.conf.arg(name="open"), Field(description="open report.html in the browser at the end")
    ] = False


class GenerateConfig(BackendSettings, DrawSettings, PromptFlags):
    """Answer a question, a file of questions, or what you type."""

    question: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(metavar="[QUESTION]", help_behavior_hint=without_none),
        Field(description="the question; without one, each line of stdin (-) is one, or you are asked"),
    ] = ""
    model: Annotated[
        str, Field(description="a model, run or adapter folder, a Hub id, or embedded; auto: the newest finished run")
    ] = "auto"
    base_model: AdapterBase = ""
    file: Annotated[OptionalFile, Field(description="a question on each line, or .jsonl with question; - is stdin")] = (
        None
    )
    annotations: Annotated[Literal["show", "hide"], Field(description="GSM8K's <<48/2=24>> marks in the answers")] = (
        "show"
    )
    calculator: UseCalculator = False
    max_new_tokens: Annotated[int, Field(gt=0, description="longest answer in tokens")] = LONGEST_ANSWER
    seed: Annotated[int, Field(ge=0, lt=2**32, description=SAME_SEED)] = 0
    eval_batch_size: Annotated[Number, Field(description=TOGETHER.format("questions"))] = AUTO


class HarnessConfig(BackendSettings, ThinkingSettings):
    """Run tasks of lm-eval, its prompts and scores, on either backend."""

    model: Annotated[
        str,
        tyro.conf.arg(help_behavior_hint=without_none),
        Field(description="a model, run or adapter folder, a Hub id, or embedded"),
    ] = ""
    base_model: AdapterBase = ""
    tasks: Annotated[
        str, Field(min_length=1, description="lm-eval's tasks, or YAML files of tasks, with commas between")
    ] = "gsm8k"
    limit: Annotated[Count, Field(description="problems of each task, the first ones; -1: all")] = -1
    num_fewshot: Annotated[
        int | None,
        tyro.conf.arg(metavar="INT", help_behavior_hint=without_none),
        Field(ge=0, description="worked examples before each problem; default: the task's own number"),
    ] = None
    apply_chat_template: Annotated[
        bool, Field(description="put the prompt into the model's chat template, worked examples as earlier turns")
    ] = False
    data: Annotated[
        OptionalPath,
        Field(description="a folder with train.jsonl and test.jsonl, for GSM8K's tasks; default: the Hub"),
    ] = None
    gen_kwargs: Annotated[
        str,
        tyro.conf.arg(help_behavior_hint=without_none),
        Field(description="over the task's own, as lm-eval takes them: max_gen_toks=64,temperature=0.7,do_sample=true"),
    ] = ""
    eval_batch_size: Annotated[int, Field(gt=0, description="prompts answered together")] = 16
    seed: Annotated[int, Field(ge=0, lt=2**32, description="seeds what is sampled, where a task samples")] = 0
    records: Annotated[
        OptionalPath, Field(description="write each answer and its scores to this .jsonl file, which must be new")
    ] = None


class GradeConfig(Settings):
    """Score anyone's completions under every extraction rule."""

    file: Annotated[
        tyro.conf.Positional[Path | None],
        tyro.conf.arg(metavar="[FILE]", help_behavior_hint=without_none),
        Field(description='JSONL, a line each: {"completion": text, "gold": number or GSM8K answer}; - is stdin'),
    ] = None
    records: Annotated[
        OptionalPath, Field(description="write what each rule read in every row to this file, which must be new")
    ] = None
    rules: ListedRules = "all"
    slow_rules: SlowRules = False
