"""What run.json and a checkpoint's facts hold, typed: whoever moves a run folder can have changed them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from gsm8k_core.config.stored import Count, Seconds, Stored, stored
from gsm8k_core.rollouts.group import StoredSampled
from gsm8k_core.rollouts.progress import StoredProgress
from gsm8k_core.rollouts.tally import StoredTally
from gsm8k_core.rollouts.watch import StoredFigures
from gsm8k_core.training.plan import Adjusted

ADVICE = "bring the file back, or start a new run"
Factor = Annotated[float, Field(gt=0, le=1)]
Words = Annotated[str, Field(max_length=100_000)]


class _Choice(Stored):
    name: Words
    reason: Words


class _Named(Stored):
    """The model or the data: what it was called, its hash, and the commit of a repository on the Hub."""

    name: Words | None = None
    hash: Words | None = None
    revision: Words = ""


class _Preflight(Stored):
    looked_at: Count = 0


class _Rows(Stored):
    """The training rows."""

    train: Count | None = None
    preflight: _Preflight | None = None


class _Result(Stored):
    """A measurement on the dev rows: measure.DevResult."""

    loss: float | None
    num_targets: Count
    num_correct: dict[str, Count]
    num_problems: Annotated[int, Field(ge=1, lt=2**53)]
    num_stopped: Count
    seconds: Seconds
    verdicts: list[bool] = Field(default_factory=list)


class _Measured(Stored):
    update: Count
    result: _Result


class _Guard(Stored):
    base: _Result | None
    quarter: _Measured | None = None
    end: _Measured | None = None
    reason: Words = ""
    passed: bool = False


class _Adjustment(Stored):
    what: Annotated[str, Field(pattern=f"^({'|'.join(get_args(Adjusted))})$")]
    update: Count
    value: Annotated[float, Field(gt=0, lt=2**53)] | Literal["float32"]
    why: Words

    @model_validator(mode="after")
    def _is_of_its_kind(self) -> _Adjustment:
        if isinstance(self.value, str) != (self.what == "dtype"):
            raise ValueError(f"of the {self.what} has a value of another kind: {self.value!r}")
        return self


class _Event(Stored):
    """plan.PlanEvent."""

    update: Count
    total: Count
    rate_factor: Factor = 1.0


class _Outcome(Stored):
    updates: Count = 0
    seconds: Seconds = 0.0
    reason: Words | None = None


class _Best(Stored):
    update: Count


class _Base(Stored):
    hash: Words


class _Trained(Stored):
    """The rows of the last training of an rft run."""

    rows: Count
    own: Count  # of those, answers of the model's own
    mix: Words = ""


class _Manifest(Stored):
    status: Words = ""
    pid: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    started: Words = ""
    config: dict[str, Any] = Field(default_factory=dict)
    choices: dict[str, _Choice] = Field(default_factory=dict)
    hashes: dict[str, Words] | None = None
    model: _Named | None = None
    data: _Named | None = None
    rows: _Rows | None = None
    prompt: dict[str, Any] | None = None
    outcome: _Outcome | None = None
    best: _Best | None = None
    model_update: Count | None = None  # that model/ is of
    model_save: Words | None = None  # which save of it; none while one takes the place of another
    base: _Base | None = None
    guard: _Guard | None = None
    adjustments: list[_Adjustment] = Field(default_factory=list)
    segments: list[dict[str, Any]] = Field(default_factory=list)
    rft: StoredProgress | None = None
    grpo: StoredProgress | None = None
    rollouts: list[StoredTally] = Field(default_factory=list)
    trained: _Trained | None = None


class _BestFact(Stored):
    update: Count
    result: _Result


class _Policy(Stored):
    """Of --recipe grpo: what each update showed, and the rollout that a checkpoint stands in the middle of."""

    history: list[StoredFigures]
    rollout: StoredSampled | None


class _Facts(Stored):
    config: dict[str, Any]
    hashes: dict[str, Words]
    best: _BestFact | None = None
    guard: _Guard | None = None
    policy: _Policy | None = None


class _Events(Stored):
    events: list[_Event]


def check_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Raises DataError for a value of run.json that is not what a run writes there."""
    stored(_Manifest, manifest, path, ADVICE)


def update_of_model(manifest: Mapping[str, Any]) -> int | None:
    """The update that a run's model/ is of; None while one takes the place of another."""
    ended = (manifest.get("outcome") or {}).get("updates")  # all that a run of an older version says
    update: int | None = manifest.get("model_update", ended)
    return update


def check_facts(path: Path, facts: Mapping[str, Any], events: Iterable[Mapping[str, object]]) -> None:
    """The same for what a checkpoint.json at `path` says of the run."""
    stored(_Facts, facts, f"{path}: facts", ADVICE)
    stored(_Events, {"events": [dict(event) for event in events]}, path, ADVICE)
