"""What `eval` and `compare` leave for a person: report.html, model_card.md, and the facts on them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gsm8k_core.command import typed
from gsm8k_core.config.fields import Settings, flag
from gsm8k_core.config.score import ScoreSettings
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.problems.generated import HELD_OUT
from gsm8k_core.report.card import write_card
from gsm8k_core.report.comparison import diagnosis_rows, steps_rows
from gsm8k_core.report.curves import METRICS, Curve, read_curves
from gsm8k_core.report.page import write_page
from gsm8k_core.report.words import Facts, own_answers
from gsm8k_core.rollouts.progress import PROGRESS, ROUNDS, Progress
from gsm8k_core.scoring.evaluate import problems_hash, summarise
from gsm8k_core.training.runs import code_hash, known_manifest, versions
from gsm8k_core.types import DataError, Problem

PAGE, CARD = "report.html", "model_card.md"
NO_MATTER = {"config", "json_", "verbose", "open_"}  # to any number
# What the page and the card take from the summaries, where nothing is `auto` any more.
SETTLED = {"model", "base_model", "trained_model", "data", "split", "backend", "device", "dtype", "max_new_tokens"}

Records = Sequence[Mapping[str, Any]]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Provenance:
    """How a result came about: the verb with its settings, what was given by hand, the problems, the run."""

    verb: str
    config: ScoreSettings
    explicit: Collection[str]
    problems: Sequence[Problem]
    run: Path | None  # of the model that is evaluated, or was trained

    def facts(self, summary: Mapping[str, Any]) -> Facts:
        """Everything that the page and the card tell of it. They take out what looks like a secret."""
        settings = self.config.model_dump(mode="json")
        asked = {name: settings[name] for name in self.explicit if name not in NO_MATTER}
        # What was chosen automatically is fixed, so that another machine chooses the same.
        fixed = {name: summary[name] for name in ("backend", "device", "dtype", "eval_batch_size") if name in summary}
        trained = training_command(self.run) if self.run else None
        again = command(self.verb, type(self.config), {**asked, **fixed})
        shown = {
            name.rstrip("_").replace("_", " "): str(value)
            for name, value in settings.items()
            if value is not None and value is not False and name not in NO_MATTER | SETTLED | {"output_dir"}
        }
        manifest = known_manifest(self.run) if self.run else {}
        trained_on = manifest.get("trained") or {}
        return Facts(
            command=command(self.verb, type(self.config), asked),
            settings=shown,
            versions=versions(),
            hashes={"problems": problems_hash(self.problems), "this code": code_hash()},
            reproduce=[trained, again] if trained else [again],
            rounds=manifest.get(ROUNDS, ()),
            own=own_answers(trained_on.get("own"), Progress.from_json(manifest.get(PROGRESS)).decided("verify")),
        )

    def curves(self, say: Say) -> dict[str, Curve] | None:
        """Of the training, where there was one and its file can be read."""
        if self.run is None or not (self.run / METRICS).is_file():
            return None
        try:
            return read_curves(self.run / METRICS)
        except DataError as error:
            say(f"no curves on the page: {error}")
            return None


def one_a_problem(summary: Mapping[str, Any], records: Records) -> dict[str, Any]:
    """The summary as the page and the paired test take it: counted over one answer a problem, that of the vote."""
    return {**summary, **summarise(records, HELD_OUT), "samples": summary.get("samples", 1)}


def command(verb: str, model: type[Settings], values: Mapping[str, object]) -> str:
    """The line that gives these settings, in the order of the verb's help."""
    words = [*typed().split(), verb]
    for name in model.model_fields:
        value = values.get(name)
        if value is True:
            words.append(flag(name))
        elif isinstance(value, list | tuple):
            words += [word for each in value for word in (flag(name), str(each))]
        elif value is not None and value is not False and value != "":
            words += [flag(name), str(value)]
    return shlex.join(words)


def training_command(run: Path) -> str | None:
    """The line that makes such a run again, from its manifest; None where that does not say."""
    config = known_manifest(run).get("config")
    if not config:
        return None
    default = TrainConfig().model_dump(mode="json")
    wanted = default.keys() & config.keys() - NO_MATTER - {"resume", "force"}
    return command("train", TrainConfig, {name: config[name] for name in wanted if config[name] != default[name]})


def write_one(
    made: Provenance, summary: Mapping[str, Any], records: Records, found: Mapping[str, Any], say: Say
) -> Path:
    """One model's page, beside its records; `found` is their breakdown."""
    path = Path(summary["records"]).parent / PAGE
    write_page(
        path,
        {"base": one_a_problem(summary, records)},
        records,
        curves=made.curves(say),
        facts=made.facts(summary),
        diagnosis=diagnosis_rows(found),
        steps=steps_rows(found),
    )
    return path


def write_several(
    made: Provenance,
    page: Path,
    comparison: Mapping[str, Any],
    records: Sequence[Records],
    runs: Sequence[Path | None],
    say: Say,
) -> None:
    """The page of several trained models; `records` are the base's and theirs, `runs` theirs."""
    facts = made.facts(comparison["base"])
    trained = [line for run in runs if run and (line := training_command(run))]
    write_page(
        page,
        comparison,
        *records,
        run_curves=[replace(made, run=run).curves(say) for run in runs],
        facts=replace(facts, reproduce=[*trained, *facts.reproduce]),
        diagnosis=joined([each["diagnosis"] for each in comparison["comparisons"]]),
        steps=joined([each["steps"] for each in comparison["comparisons"]]),
    )


def joined(tables: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One table of the base beside each trained model: its rows, with the trained models' counts as a list."""
    return [{**rows[0], "trained": [row["trained"] for row in rows]} for rows in zip(*tables, strict=True)]


def write_both(
    made: Provenance, folder: Path, comparison: Mapping[str, Any], records: tuple[Records, Records], say: Say
) -> tuple[Path, Path]:
    """The comparison's page and the trained model's card."""
    facts = made.facts(comparison["trained"])
    write_page(
        folder / PAGE,
        comparison,
        *records,
        curves=made.curves(say),
        facts=facts,
        diagnosis=comparison["diagnosis"],
        steps=comparison["steps"],
    )
    name = made.run.name if made.run else str(comparison["trained"]["model"])
    write_card(folder / CARD, comparison, name, facts)
    return folder / PAGE, folder / CARD
