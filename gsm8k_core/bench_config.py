"""Settings of the verbs that need the extra `bench`; config.py says how settings work."""

from __future__ import annotations

from typing import Annotated

import tyro
from pydantic import Field

from gsm8k_core.config import BackendSettings
from gsm8k_core.settings import Count, OptionalPath, without_none


class HarnessConfig(BackendSettings):
    """Run tasks of lm-eval, its prompts and scores, on either backend."""

    model: Annotated[
        str,
        tyro.conf.arg(help_behavior_hint=without_none),
        Field(description="a model, run or adapter folder, a Hub id, or embedded"),
    ] = ""
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
