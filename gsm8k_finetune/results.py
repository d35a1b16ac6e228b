"""What the calls return: plain facts by name, the files they come from, and a small table for a notebook."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gsm8k_core.files import MAX_LINES_BYTES, read_plain
from gsm8k_core.report.curves import newest_training
from gsm8k_core.report.page import environment
from gsm8k_core.report.words import headline
from gsm8k_core.scoring.answers import HEADLINE_RULE
from gsm8k_core.training.runs import read_manifest
from gsm8k_core.types import DataError


def _shown(name: str, **values: Any) -> str:
    """One of the notebook's tables; everything from outside goes through Jinja's escaping."""
    return environment().get_template("notebook.html.j2").render(kind=name, **values)


def _lines(path: Path) -> list[dict[str, Any]]:
    """A file's objects. The last line of one that is written now may be half there, and is left out."""
    try:
        text = read_plain(path, MAX_LINES_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    whole, _, _ = text.rpartition("\n")
    try:
        return [json.loads(line) for line in whole.split("\n") if line]  # U+2028 in a text ends no line
    except ValueError:
        raise DataError(f"{path} holds a line that is not JSON") from None


@dataclass(frozen=True)
class TrainedRun:
    """A run's folder. `str(run)` is its path, so it goes wherever a model or a run is asked for."""

    folder: Path

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def manifest(self) -> Mapping[str, Any]:
        """run.json as it is now; empty where it cannot be read."""
        return read_manifest(self.folder) or {}

    @property
    def status(self) -> str:
        """done, stopped, failed or running."""
        return str(self.manifest.get("status", "damaged"))

    @property
    def outcome(self) -> Mapping[str, Any]:
        """How it ended: reason, updates, seconds, losses, and the guard's verdict."""
        return dict(self.manifest.get("outcome") or {})

    @property
    def verdict(self) -> str:
        """The guard's: better, worse, not distinguishable at n = N, or not measured."""
        return str((self.outcome.get("guard") or {}).get("verdict", "not measured"))

    @property
    def model(self) -> Path:
        """The trained model's folder."""
        return self.folder / "model"

    @property
    def events(self) -> list[dict[str, Any]]:
        """metrics.jsonl: updates, evaluations on the way, probes; of rft, of the newest training that has an update."""
        return _lines(newest_training(self.folder)[0])

    @property
    def losses(self) -> list[float]:
        """The loss of each update, in nats per target."""
        return [event["loss"] for event in self.events if event["event"] == "update"]

    @property
    def updates(self) -> int:
        """How many updates were made."""
        return len(self.losses)

    def _repr_html_(self) -> str:
        return _shown("run", run=self)


@dataclass(frozen=True)
class Scores:
    """One model's evaluation. `summary` is the JSON object of `eval --json`."""

    summary: Mapping[str, Any]

    @property
    def n(self) -> int:
        """Problems."""
        return int(self.summary["n"])

    @property
    def rules(self) -> Mapping[str, Mapping[str, Any]]:
        """By rule: correct, accuracy (a fraction) and its 95 % interval."""
        return dict(self.summary["rules"])

    @property
    def accuracy(self) -> Mapping[str, float]:
        """By rule, as a fraction."""
        return {name: rule["accuracy"] for name, rule in self.rules.items()}

    @property
    def page(self) -> Path:
        """The report page."""
        return Path(self.summary["page"])

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """One a problem and sample: question, gold, completion, each rule's verdict."""
        return _lines(Path(self.summary["records"]))

    def _repr_html_(self) -> str:
        return _shown("scores", scores=self, decides=HEADLINE_RULE)


@dataclass(frozen=True)
class Comparison:
    """Base against trained. `content` is model_comparison.json; shares and differences are fractions."""

    content: Mapping[str, Any]

    @property
    def base(self) -> Scores:
        return Scores(self.content["base"])

    @property
    def trained(self) -> Scores:
        return Scores(self.content["trained"])

    @property
    def better(self) -> str:
        """trained, base, or neither: what so many problems cannot tell."""
        return headline(self.content).better

    @property
    def difference(self) -> float:
        """Trained minus base, by the rule that decides."""
        return float(self.content["paired"]["difference"])

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, of the difference."""
        low, high = self.content["paired"]["interval"]
        return float(low), float(high)

    @property
    def won(self) -> int:
        """Problems that the trained model alone solves."""
        return int(self.content["paired"]["won"])

    @property
    def lost(self) -> int:
        """Problems that the base alone solves."""
        return int(self.content["paired"]["lost"])

    @property
    def p(self) -> float:
        """McNemar's exact test."""
        return float(self.content["paired"]["p"])

    @property
    def page(self) -> Path:
        """report.html."""
        return Path(self.content["page"])

    def _repr_html_(self) -> str:
        return _shown("comparison", found=self, headline=headline(self.content), tests=self.content["paired_by_rule"])
