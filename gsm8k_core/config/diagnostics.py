"""Settings of the verbs that look at what is there: doctor, inspect, parity, plot and runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field

from gsm8k_core.config.fields import (
    AdapterBase,
    BackendName,
    Count,
    DeviceName,
    OptionalPath,
    ProblemSettings,
    PromptFlags,
    RowSettings,
    Settings,
    without_none,
)


class PlotConfig(Settings):
    """Draw loss, rate, gradient norm and dev accuracy of one or many runs."""

    runs: Annotated[
        tyro.conf.Positional[tuple[Path, ...]],
        tyro.conf.arg(metavar="[RUN ...]", help_behavior_hint=""),
        Field(description="run folders, or their metrics.jsonl files"),
    ] = ()
    output: Annotated[
        OptionalPath, Field(description="also draw a picture into this .png or .svg file (an old one is replaced)")
    ] = None
    smooth: Annotated[int, Field(ge=1, description="mean over so many updates; 1: every update as it was")] = 1


class RunsConfig(Settings):
    """List the runs under a folder, newest first."""

    folder: Annotated[
        tyro.conf.Positional[Path], tyro.conf.arg(metavar="[FOLDER]"), Field(description="where to look")
    ] = Path("runs")


class InspectConfig(ProblemSettings, RowSettings, PromptFlags):
    """Look at training rows without a model: lengths, lost answers."""

    model: Annotated[
        str, Field(description="auto, a Hub id, embedded, or a folder; only its tokenizer is read, never its weights")
    ] = "auto"
    base_model: AdapterBase = ""
    split: Annotated[Literal["train", "test"], Field(description="which problems")] = "train"
    max_samples: Annotated[Count, Field(description="problems to use, the first ones; -1: all")] = -1
    show: Annotated[
        int,
        Field(
            ge=0,
            description="rows to show, the first ones, masked and trained tokens apart; with --run, so many answers "
            "that were kept and so many that were refused, of each round",
        ),
    ] = 3
    run: Annotated[
        OptionalPath, Field(description="a run of train --recipe rft: show what it kept of its own answers, and why")
    ] = None


class DoctorConfig(Settings):
    """Say what this machine can do, and how to mend what is wrong."""

    output_dir: Annotated[OptionalPath, Field(description="where runs would go; default runs/")] = None


class ParityConfig(Settings):
    """Check that training is right here, rung by rung, against torch."""

    model: Annotated[
        str,
        tyro.conf.arg(help_behavior_hint=without_none),
        Field(description="also check this model, named as for train; without it, two tiny random ones"),
    ] = ""
    base_model: AdapterBase = ""
    data: Annotated[str, Field(description="problems for --model's rows, as for train")] = "auto"
    backend: Annotated[
        BackendName, Field(description="what is checked: mlx, torch, or auto: mlx if installed, else torch on a GPU")
    ] = "auto"
    device: Annotated[
        DeviceName, Field(description="where; mps is the self-check against pytorch#177116 and pytorch#153957")
    ] = "auto"
