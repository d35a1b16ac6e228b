"""Settings of the verbs that talk to a person or a program: chat and serve."""

from __future__ import annotations

from typing import Annotated

import pydantic
import tyro
from pydantic import Field

from gsm8k_core.config.fields import (
    AUTO,
    LONGEST_ANSWER,
    BackendSettings,
    DrawSettings,
    Duration,
    Number,
    OptionalFile,
    without_none,
)
from gsm8k_core.config.score import UseCalculator

NONE = "none"
SYSTEM = "the system turn of a conversation that has none; auto: the one it was trained with; none: the template's own"


class TalkSettings(BackendSettings, DrawSettings):
    """Which model is talked to, beside which, and how it answers."""

    model: Annotated[
        str, Field(description="a model, run or adapter folder, a Hub id, or embedded; auto: the newest finished run")
    ] = AUTO
    base_model: Annotated[
        str, Field(description="the model beside it; auto: the one that its run began with; none: no other")
    ] = AUTO
    system: Annotated[str, Field(min_length=1, description=SYSTEM)] = AUTO
    calculator: UseCalculator = False
    max_new_tokens: Annotated[int, Field(gt=0, description="longest answer in tokens, where none is asked for")] = (
        LONGEST_ANSWER
    )


class ChatConfig(TalkSettings):
    """Talk to a model, turn by turn; /help lists its commands."""

    seed: Annotated[int, Field(ge=0, lt=2**32, description="with a temperature: the same seed, the same answers")] = 0


class ServeConfig(TalkSettings):
    """Serve a model to OpenAI's clients, and on a page to type into."""

    host: Annotated[
        str, Field(min_length=1, description="where it listens; elsewhere than on loopback it needs a key")
    ] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="0: any that is free")] = 8000
    api_key: Annotated[
        str,
        pydantic.BeforeValidator(str),  # a number in a YAML file is one, too; no error may show it
        tyro.conf.arg(metavar="KEY", help_behavior_hint=without_none),
        Field(
            description="what a client has to send; others can read it in the list of processes: better by file, or "
            "in GSM8K_API_KEY"
        ),
    ] = ""
    api_key_file: Annotated[OptionalFile, Field(description="a file whose only line is the key")] = None
    max_context: Annotated[
        Number, Field(description="tokens of a prompt and its answer; auto: what the model reads, 2048 at most")
    ] = AUTO
    eval_batch_size: Annotated[
        Number,
        Field(
            description="requests answered together; auto: as many as fit into half of the free memory at their "
            "longest, on a CPU 64 at most, elsewhere 512"
        ),
    ] = AUTO
    max_waiting: Annotated[
        int, Field(ge=0, description="requests that wait while all places are taken; one more gets a 429")
    ] = 64
    grace: Annotated[Duration, Field(description="how long running answers may go on when it is ended")] = "5s"
