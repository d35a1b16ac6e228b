"""W&B, trackio and TensorBoard behind one small interface, and the process that each of them runs in.

Nothing here runs in the training process: feed.py starts `python -m gsm8k_core.tracking.trackers` and writes JSON lines
to it (what to open, then the run's events), and reads JSON lines back. The end of its input means: close.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from gsm8k_core.processes import is_child_of
from gsm8k_core.types import StepEvent

GROUPS = {"update": "train", "dev": "dev"}  # event -> first part of its metrics' names
NOT_MEASURED = frozenset({"update", "total", "eta"})
ORPHAN_SECONDS = 30.0  # after the training process is gone, a tracker gets this long to finish
LONGEST_REASON = 4000


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a tracker is told before the first event."""

    id: str  # the same for the whole life of a run folder
    name: str
    project: str
    folder: str  # absolute
    settings: Mapping[str, Any]
    seconds: float  # what closing may take


class Tracker(Protocol):
    """One tracker."""

    def start(self, run: RunInfo) -> str:
        """Open it; returns where the run can be seen, for a person."""

    def event(self, event: StepEvent) -> None: ...

    def close(self) -> None: ...


def measures(event: StepEvent) -> dict[str, float]:
    """The numbers of an event under the names that every tracker and both backends share: train/loss, dev/accuracy."""
    group = GROUPS.get(event.name)
    if group is None:
        return {}
    return {
        f"{group}/{key}": float(value)
        for key, value in event.values.items()
        if key not in NOT_MEASURED
        and not (key == "loss" and "reward" in event.values)  # of a policy, it is no sign of progress
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    }


def step_of(event: StepEvent) -> int:
    update = event.values.get("update")
    return update if isinstance(update, int) else 0


class Wandb:
    """Weights & Biases. Online or offline as WANDB_MODE says; its own files go to the run folder."""

    def start(self, run: RunInfo) -> str:
        import wandb

        wanted = {
            "console": "off",
            "silent": True,
            "disable_git": True,
            "save_code": False,
            "x_disable_stats": True,
            "x_disable_meta": True,
            "x_save_requirements": False,
            "finish_timeout": max(1.0, run.seconds - 1),
            "finish_timeout_raises": True,
        }
        known = {key: value for key, value in wanted.items() if key in wandb.Settings.model_fields}
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            id=run.id,
            resume="allow",
            dir=run.folder,
            config=dict(run.settings),
            settings=wandb.Settings(**known),
        )
        # Not W&B's own step: that one must rise, and a run that goes on from a checkpoint repeats some updates.
        self._run.define_metric("*", step_metric="update")
        self._whole = False
        mode = self._run.settings.mode
        if mode == "offline":
            return f"offline; to send it later: wandb sync {Path(self._run.dir).parent}"
        return str(self._run.url or mode)

    def event(self, event: StepEvent) -> None:
        if numbers := measures(event):
            self._run.log({"update": step_of(event), **numbers})
        elif event.name == "end":
            self._whole = True
            self._run.summary["outcome"] = str(event.values.get("reason"))

    def close(self) -> None:
        self._run.finish(exit_code=0 if self._whole else 1)


class Trackio:
    """Hugging Face's trackio: a local dashboard, or a Space with TRACKIO_SPACE_ID."""

    def start(self, run: RunInfo) -> str:
        import trackio

        self._trackio = trackio
        trackio.init(
            project=run.project,
            name=f"{run.name}-{run.id}",
            resume="allow",
            config=dict(run.settings),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return f"to see it: trackio show --project {run.project}"

    def event(self, event: StepEvent) -> None:
        if numbers := measures(event):
            self._trackio.log(numbers, step=step_of(event))

    def close(self) -> None:
        self._trackio.finish()


class TensorBoard:
    """TensorBoard's event files, in the run folder. Needs neither torch nor TensorFlow."""

    def start(self, run: RunInfo) -> str:
        from tensorboard.summary import Writer

        folder = str(Path(run.folder) / "tensorboard")
        self._writer = Writer(folder)
        return f"to see it: tensorboard --logdir {folder}"

    def event(self, event: StepEvent) -> None:
        for name, value in measures(event).items():
            self._writer.add_scalar(name, value, step_of(event))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def serve(events: IO[bytes], tell: Callable[[Mapping[str, object]], None]) -> bool:
    """Run one tracker until the events end; False when it failed."""
    try:
        hello = json.loads(events.readline())
        module, name = hello["tracker"].split(":")
        tracker: Tracker = getattr(importlib.import_module(module), name)()
        tell({"ready": str(tracker.start(RunInfo(**hello["run"])))[:LONGEST_REASON]})
        for taken, line in enumerate(events, 1):
            values = json.loads(line)
            tracker.event(StepEvent(values.pop("event"), values))
            tell({"taken": taken})
        tracker.close()
    except BaseException as error:  # a library may raise anything, SystemExit included: all of it is told, none is ours
        tell({"failed": f"{type(error).__name__}: {error}"[:LONGEST_REASON]})
        return False
    tell({"closed": True})
    return True


def _own_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Both pipes under private numbers. A library that reads stdin finds its end; what it prints goes nowhere."""
    events, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    return events, answers


def _leave_when_orphaned(parent: int) -> None:
    while is_child_of(parent):
        time.sleep(1)
    time.sleep(ORPHAN_SECONDS)
    os._exit(1)


def main() -> None:
    events, answers = _own_pipes()
    threading.Thread(target=_leave_when_orphaned, args=(int(sys.argv[1]),), daemon=True).start()

    def tell(message: Mapping[str, object]) -> None:
        try:
            answers.write(json.dumps(message).encode() + b"\n")
        except OSError:  # the training process is gone
            os._exit(1)

    # Not sys.exit: a library's own exit handlers and threads could hang here for ever.
    os._exit(0 if serve(events, tell) else 1)


if __name__ == "__main__":
    main()
