"""`plot`: the curves of one or many runs, as a sketch in the terminal and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gsm8k_core.config.diagnostics import PlotConfig
from gsm8k_core.report import policy
from gsm8k_core.report.curves import RunCurves, failed, read_runs, shown_loss
from gsm8k_core.report.figure import MOST_RUNS, check_picture, marks, save_picture, sketch
from gsm8k_core.rollouts.progress import said_of
from gsm8k_core.tracking.terminal import Terminal
from gsm8k_core.types import EXIT_OK, DataError, UsageError
from verbs import Context


def run(config: PlotConfig, context: Context) -> int:
    """The verb."""
    terminal = context.terminal
    if not config.runs:
        raise UsageError(
            "plot needs a run; python cli.py runs lists them, python cli.py plot runs/<your run> draws one"
        )
    if len(config.runs) > MOST_RUNS:
        raise UsageError(f"plot draws {MOST_RUNS} runs at most, and was given {len(config.runs)}")
    if config.output:
        check_picture(config.output)
    runs = read_runs(config.runs)
    drawn = [found for found in runs if found.curves]
    if not drawn:
        raise DataError(_nothing_to_draw(next((found for found in runs if found.failure), runs[0])))
    for remark in filter(None, map(_remark, runs)):
        terminal.say(remark)
    for line in sketch(drawn, config.smooth, terminal.room):
        terminal.verbatim(line)
    _table(drawn, terminal)
    if config.output:
        save_picture(drawn, config.output, config.smooth)
        terminal.say(f"written  {config.output}")
    else:
        terminal.say("for a picture, add --output curves.png")
    terminal.result(
        {"runs": [found.summary() for found in runs], "file": str(config.output) if config.output else None}
    )
    return EXIT_OK


def _nothing_to_draw(run: RunCurves) -> str:
    if run.failure:
        return (
            f"{run.name} {failed(run.failure)}; it has no update to draw: give another (python cli.py runs lists them)"
        )
    return f"{run.name} has no update to draw yet; try again when it has trained a little"


def _remark(run: RunCurves) -> str | None:
    """What the drawing does not show of a run."""
    left_out = "" if run.curves else "; it has no update and is left out"
    if run.phase:
        drawn = f"drawn is {said_of(run.phase)}, as its last training has no update"
        return f"{run.name} {failed(run.failure)}; {drawn}" if run.failure else f"{run.name}: {drawn}"
    if run.failure:
        return f"{run.name} {failed(run.failure)}{left_out}"
    return f"{run.name} has no update yet and is left out" if left_out else None


def _table(runs: Sequence[RunCurves], terminal: Terminal) -> None:
    if all(policy.REWARD in run.curves for run in runs):
        _reward_table(runs, terminal)
        return
    rows = []
    for mark, found in zip(marks(len(runs)), runs, strict=True):
        said = found.summary()
        losses: list[Any] = [said[key] for key in ("first_loss", "last_loss", "min_loss")]
        numbers = [shown_loss(loss) for loss in losses]
        rows.append([f"{mark} {found.name}", str(said["updates"]), *numbers, str(said["not_finite"])])
    bad = any(row[-1] != "0" for row in rows)
    columns = ["run, and its loss", "updates", "first", "last", "lowest", "NaN"]
    terminal.table(columns if bad else columns[:-1], rows if bad else [row[:-1] for row in rows])


def _reward_table(runs: Sequence[RunCurves], terminal: Terminal) -> None:
    rows = []
    for mark, found in zip(marks(len(runs)), runs, strict=True):
        values = found.curves[policy.REWARD].values
        numbers = [f"{value:.3f}" for value in (values[0], values[-1], max(values))]
        rows.append([f"{mark} {found.name}", str(len(values)), *numbers])
    terminal.table(["run, and its reward", "updates", "first", "last", "highest"], rows)
