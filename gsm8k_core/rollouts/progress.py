"""Where a run of `--recipe rft` stands, and what it decided: kept in run.json, so that it goes on as it was planned."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import Field

from gsm8k_core.config.stored import Count, Seconds, Stored
from gsm8k_core.scoring.verify import Mode
from gsm8k_core.types import Choice

PROGRESS, POLICY = "rft", "grpo"  # the manifest's keys, of the one recipe and of the other
ROUNDS = "rollouts"  # the manifest's key of the rounds' counts
BASE = "base"  # the base's first answers, which say whether it needs a warm start
OPEN = "open"  # of whether sampling pays: not known, since the time was too short to find out
TAKEN_UP = 2  # times the --max-time that was too short for it: with less, what there is gets the time
MOST = 9  # rounds
LAST = "last"  # the training that makes the run's model, whatever its round
NAMES = r"^(base|warm|(sample|train)-[0-9]{1,2})$"
Name = Annotated[str, Field(pattern=NAMES)]
# What each decision may be.
DECIDED = {
    "rounds": f"[1-{MOST}]",
    "together": "[1-9][0-9]{0,3}",
    "verify": "steps|gold",
    "warm": "on|off",
    "calculator": "on|off",
    "pays": f"yes|no|{OPEN}",
}
Words = Annotated[str, Field(max_length=100_000)]


class _Decision(Stored):
    name: Words
    reason: Words


class _Phase(Stored):
    name: Name
    began: Seconds
    end: Seconds
    budget: Seconds


class StoredProgress(Stored):
    """A Progress in run.json, typed."""

    done: list[Name]
    decisions: dict[Words, _Decision]
    phase: _Phase | None
    elapsed: Seconds
    together: Annotated[int, Field(ge=1, le=4096)] | None = None
    updates: dict[Name, Count] = Field(default_factory=dict)
    left_open: Seconds | None = None
    clearing: bool = False

    @pydantic.field_validator("decisions")
    @classmethod
    def _known(cls, decisions: dict[str, _Decision]) -> dict[str, _Decision]:
        for name, decision in decisions.items():
            if not re.fullmatch(DECIDED.get(name, ".*"), decision.name, re.DOTALL):
                raise ValueError(f"{name} cannot be {decision.name[:40]!r}")
        return decisions

    @pydantic.model_validator(mode="after")
    def _counted(self) -> StoredProgress:
        for name in self.done:
            if name.startswith(("warm", "train")) and name not in self.updates:
                raise ValueError(f"updates lacks those of {name}, which is done")
        return self


A_ROUND = re.compile("round-[1-9][0-9]?")  # its folder under rollouts/; what is called otherwise is a person's


def folder_of(name: str) -> str:
    """Of a phase, under rollouts/: a round's sampling and training share one."""
    kind, _, number = name.partition("-")
    return f"round-{number}" if number else kind


def round_folders(rollouts: Path) -> list[Path]:
    """Those that are there."""
    return sorted(path for path in rollouts.glob("round-*") if A_ROUND.fullmatch(path.name) and path.is_dir())


def training_phases() -> list[str]:
    """Those that train a model which only samples, the last one first."""
    return [*(f"train-{number}" for number in range(MOST, 0, -1)), "warm"]


def said_of(name: str) -> str:
    """A phase in words."""
    kind, _, number = name.partition("-")
    work = {"sample": "sampling", "train": "training"}
    known = {BASE: "the base's first answers", LAST: "the last training"}
    return f"the {work[kind]} of round {number}" if number else known.get(kind, "the warm start")


@dataclass(frozen=True, slots=True)
class Timed:
    """The phase that was begun last: from when to when, in seconds of the run, under which --max-time."""

    name: str
    began: float
    end: float
    budget: float


@dataclass(frozen=True, slots=True)
class Progress:
    """What is done, and what was decided, each with its reason."""

    done: tuple[str, ...] = ()  # base, warm, sample-1, train-1, ...
    decisions: Mapping[str, Choice] = field(default_factory=dict)
    phase: Timed | None = None
    elapsed: float = 0.0  # seconds of the run when this was written
    together: int | None = None  # answers decoded at once, where memory was short for more
    updates: Mapping[str, int] = field(default_factory=dict)  # of each training phase that is done
    left_open: float | None = None  # the --max-time, in seconds, that was too short to say whether sampling pays
    clearing: bool = False  # whether it was taken up, and what had followed may still be on the disk

    def decided(self, name: str) -> str | None:
        """What was decided; None where that is still to come."""
        return self.decisions[name].name if name in self.decisions else None

    @property
    def mode(self) -> Mode:
        """By what answers are verified."""
        return "gold" if self.decided("verify") == "gold" else "steps"

    @property
    def sampling(self) -> bool:
        """Whether the phase that was begun last asks the model."""
        return self.phase is not None and self.phase.name.startswith((BASE, "sample"))

    def with_decision(self, name: str, choice: Choice) -> Progress:
        return replace(self, decisions={**self.decisions, name: choice})

    def with_done(self, name: str, updates: int | None = None) -> Progress:
        more = {} if updates is None else {name: updates}
        return replace(self, done=(*self.done, name), phase=None, updates={**self.updates, **more})

    @property
    def enough(self) -> float | None:
        """The --max-time, in seconds, that takes up what a shorter one left open; None where nothing is known of it.

        Later phases have had more time, which was not for that. An older version noted the newest one alone.
        """
        if self.decided("pays") != OPEN:
            return None
        known = self.left_open or (self.phase and self.phase.budget)
        return TAKEN_UP * known if known else None

    def taken_up(self, budget: float) -> Progress:
        """With a --max-time of `budget` seconds: without what a shorter one left open, and all that followed it.

        A warm start that had an update stays; one that had none is decided anew. Itself where nothing is to change.
        """
        if self.enough is None or budget < self.enough:
            return self
        warm = self.updates.get("warm")
        again = {"pays", "rounds", "verify"} | ({"warm"} if warm == 0 else set())
        decisions = {name: choice for name, choice in self.decisions.items() if name not in again}
        done, updates = (("warm",), {"warm": warm}) if warm else ((), {})
        return replace(self, done=done, updates=updates, decisions=decisions, phase=None, left_open=None, clearing=True)

    def as_json(self) -> dict[str, Any]:
        """For run.json."""
        decisions = {name: asdict(choice) for name, choice in self.decisions.items()}
        return {
            "done": list(self.done),
            "decisions": decisions,
            "phase": self.phase and asdict(self.phase),
            "elapsed": self.elapsed,
            "together": self.together,
            "updates": dict(self.updates),
            "left_open": self.left_open,
            "clearing": self.clearing,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any] | None) -> Progress:
        """Of a manifest that was checked; a run that has just begun has none."""
        if not values:
            return cls()
        phase = values["phase"] and Timed(**{name: values["phase"][name] for name in Timed.__slots__})
        decisions = {name: Choice(each["name"], each["reason"]) for name, each in values["decisions"].items()}
        return cls(
            tuple(values["done"]),
            decisions,
            phase,
            values["elapsed"],
            values.get("together"),
            values.get("updates", {}),
            values.get("left_open"),
            values.get("clearing", False),
        )
