"""report.html: one file that shows a comparison, or one model, to a person. It loads nothing from anywhere.

Everything from outside (questions, model text, names, commands) reaches the page through Jinja's escaping, after
`visible` made control characters something to be seen; or through JSON whose < > & are escaped. The page's own style
and scripts are allowed by their sha256 and nothing else is.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from gsm8k_core.files import write_bytes
from gsm8k_core.report import charts, words
from gsm8k_core.report.curves import Curve
from gsm8k_core.report.words import Facts, Headline, visible
from gsm8k_core.scoring.answers import HEADLINE, HEADLINE_RULE, OLDER, version_of
from gsm8k_core.scoring.diagnose import CATEGORIES
from gsm8k_core.types import DataError

TEMPLATES = Path(__file__).parent / "templates"
LONGEST_TEXT = 8000  # characters of one answer that are shown; records.jsonl holds all
LONGEST_ANSWER = 48  # of an extracted answer
_FILTERS = ("percent", "between", "bounds", "points", "p_value", "without_secrets", "calculator_line", "overlap_line")
ENDINGS = {"stop": "ended by itself", "length": "cut", "complete": "ended at its #### line"}

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the page."""

    key: str  # base and trained, or model where there is one; it names the colour
    summary: Mapping[str, Any]
    records: Sequence[Record]


def write_page(
    path: Path,
    comparison: Mapping[str, Any],
    base_records: Sequence[Record],
    trained_records: Sequence[Record] | None = None,
    *,
    curves: Mapping[str, Curve] | None = None,
    diagnosis: Sequence[Mapping[str, Any]] | None = None,
    steps: Sequence[Mapping[str, Any]] | None = None,
    facts: Facts | None = None,
) -> None:
    """Writes the page whole or not at all. The arguments are `render_page`'s."""
    page = render_page(
        comparison, base_records, trained_records, curves=curves, diagnosis=diagnosis, steps=steps, facts=facts
    )
    write_bytes(path, page.encode("utf-8", errors="replace"))


def render_page(
    comparison: Mapping[str, Any],
    base_records: Sequence[Record],
    trained_records: Sequence[Record] | None = None,
    *,
    curves: Mapping[str, Curve] | None = None,
    diagnosis: Sequence[Mapping[str, Any]] | None = None,
    steps: Sequence[Mapping[str, Any]] | None = None,
    facts: Facts | None = None,
) -> str:
    """The page as text.

    comparison: model_comparison.json; for one model `{"base": its summary}` with no `trained_records`.
    curves: what `read_curves` returns. diagnosis: `{"category", "base", "trained"}` each, counted in answers.
    steps: `{"steps", "n", "base", "trained"}` each, the last two counted in right answers.
    """
    try:
        models = _models(comparison, base_records, trained_records)
        result = words.headline(comparison) if len(models) == 2 else None
        view = _view(comparison, models, result)
        view |= {"charts": charts.draw(curves or {}), "facts": _facts(facts or Facts(), models)}
        view |= {"diagnosis": _rows(diagnosis, models, "category"), "steps": _rows(steps, models, "steps", "n")}
        view |= {"rounds": facts.rounds if facts else (), "own": facts.own if facts else ""}
        return environment().get_template("report.html.j2").render(view)
    except (KeyError, TypeError, IndexError, AttributeError, jinja2.UndefinedError) as error:
        missing = f"{type(error).__name__}: {error}"
        raise DataError(
            f"the report page needs something that the comparison or the records lack ({missing}); run compare again"
        ) from error


def _models(comparison: Mapping[str, Any], base: Sequence[Record], trained: Sequence[Record] | None) -> list[Column]:
    if trained is None:
        models = [Column("model", comparison["base"], base)]
    else:
        models = [Column("base", comparison["base"], base), Column("trained", comparison["trained"], trained)]
    for model in models:
        ids = [record["id"] for record in model.records]
        if len(ids) != model.summary["n"] or ids != [record["id"] for record in base]:
            raise DataError(
                f"the records ({model.key}) are not over the comparison's {model.summary['n']} problems, in "
                "their order; run compare again"
            )
    return models


def environment() -> jinja2.Environment:
    def shown(value: object) -> object:
        return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value

    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {name: getattr(words, name) for name in _FILTERS}
    found.filters["count"] = lambda number: f"{number:,}"
    return found


def _own(*names: str) -> Markup:
    """A part of the page that is ours: its style or a script."""
    return Markup("".join((TEMPLATES / name).read_text(encoding="utf-8") for name in names))


def _hash(part: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() + "'"


def _view(comparison: Mapping[str, Any], models: Sequence[Column], result: Headline | None) -> dict[str, Any]:
    style, early, script = _own("report.css", "problems.css"), _own("early.js"), _own("report.js")
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(early)} {_hash(script)}; "
    policy += "img-src 'none'; base-uri 'none'; form-action 'none'"
    rules = sorted(models[0].summary["rules"], key=lambda name: name not in HEADLINE)
    rule = result.rule if result else (HEADLINE_RULE if HEADLINE_RULE in rules else rules[0])
    intervals = [bound for model in models for name in rules for bound in model.summary["rules"][name]["interval"]]
    return {
        "style": style,
        "early": early,
        "script": script,
        "policy": policy,
        "models": models,
        "result": result,
        "rule": rule,
        "n": models[0].summary["n"],
        "votes": models[0].summary.get("samples", 1),
        "how": words.how(models[0].summary) + words.learned(models[0].summary),
        "rules": rules,
        "rule_rows": _rule_rows(comparison, models, rules),
        "scale": charts.scale(intervals),
        "endings": _endings(models),
        "held_out": _held_out(models, rule),
        "matrices": [{"model": model, "rows": _matrix(model.records, rules)} for model in models],
        "problems": list(_problems(models, rules, rule)),
        "data": _data(models, rules, rule),
    }


def _rule_rows(comparison: Mapping[str, Any], models: Sequence[Column], rules: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for name in rules:
        scores = [model.summary["rules"][name] for model in models]
        row = {"name": name, "version": None if name in OLDER else version_of(name), "scores": scores}
        if len(models) == 2:
            row |= {"difference": scores[1]["accuracy"] - scores[0]["accuracy"]}
            row |= {"test": comparison["paired_by_rule"][name]}
        rows.append(row)
    return rows


def _endings(models: Sequence[Column]) -> list[dict[str, Any]]:
    """How answers ended, a row a question."""
    limits = {str(model.summary["max_new_tokens"]) for model in models if "max_new_tokens" in model.summary}
    asked = {
        "stopped": "Ended by themselves",
        "at_answer": "Ended at their #### line",
        "cut": f"Cut at {' / '.join(sorted(limits))} tokens" if limits else "Cut by the length limit",
        "no_answer": "Hold no number at all",
    }
    if not any(model.summary.get("at_answer") for model in models):
        del asked["at_answer"]
    return [{"name": name, "counts": [model.summary[key] for model in models]} for key, name in asked.items()]


def _held_out(models: Sequence[Column], rule: str) -> dict[str, Any] | None:
    """Generated problems from templates that training never shows."""
    parts = [model.summary.get("held_out_templates") for model in models]
    if not all(parts):
        return None
    return {"n": parts[0]["n"], "scores": [part["rules"][rule] for part in parts if part]} if parts[0] else None


def _matrix(records: Sequence[Record], rules: Sequence[str]) -> list[dict[str, Any]]:
    """How many answers the row's rule counts as right and the column's does not."""
    right = {name: [bool(record["rules"][name]["correct"]) for record in records] for name in rules}
    return [
        {
            "name": row,
            "cells": [
                None if row == column else sum(a and not b for a, b in zip(right[row], right[column], strict=True))
                for column in rules
            ],
        }
        for row in rules
    ]


def _rows(
    given: Sequence[Mapping[str, Any]] | None, models: Sequence[Column], *names: str
) -> list[dict[str, Any]] | None:
    """A table that someone else counted: its label, and a count a model."""
    if not given:
        return None
    kinds = {label: place for place, label in enumerate(CATEGORIES.values())}
    return [
        {"label": str(row[names[0]]), "n": row[names[1]] if len(names) > 1 else models[0].summary["n"]}
        | {"counts": [row[key] for key in ("base", "trained")[: len(models)]], "kind": kinds.get(row[names[0]])}
        for row in given
    ]


def _facts(facts: Facts, models: Sequence[Column]) -> dict[str, Any]:
    hashes = {model.key: model.summary["hash"] for model in models if "hash" in model.summary}
    kept = ("data", "split", "backend", "device", "dtype", "max_new_tokens")
    settings = {name.replace("_", " "): str(models[0].summary[name]) for name in kept if name in models[0].summary}
    if reused := {model.key: model.summary["reused"] for model in models if model.summary.get("reused")}:
        counts = ", ".join(f"{count} of the {key}'s" for key, count in reused.items())
        settings["reused answers"] = f"{counts}: given in an earlier evaluation, decoded and graded again"
    tables = {"settings": settings | dict(facts.settings), "hashes": hashes | dict(facts.hashes)}
    return {"command": facts.command, "reproduce": facts.reproduce, "versions": facts.versions, **tables}


# --- the problems -----------------------------------------------------------------------------------------------------


def outcome(right: Sequence[bool]) -> str:
    """The name of a row's flip, or of its verdict where there is one model."""
    if len(right) == 1:
        return "right" if right[0] else "wrong"
    base, trained = right
    return ("both" if trained else "lost") if base else ("won" if trained else "neither")


def _problems(models: Sequence[Column], rules: Sequence[str], rule: str) -> Iterator[dict[str, Any]]:
    for number, records in enumerate(zip(*(model.records for model in models), strict=True), start=1):
        first, verdicts = records[0], [record["rules"][rule] for record in records]
        yield {
            "number": number,
            "id": first["id"],
            "question": first["question"],
            "answer": first["answer"],
            "gold": first["gold"],
            "outcome": outcome([bool(verdict["correct"]) for verdict in verdicts]),
            "verdicts": [{"text": _clip(verdict["extracted"]), "correct": verdict["correct"]} for verdict in verdicts],
            "texts": [_text(record, rules) for record in records],
        }


def _text(record: Record, rules: Sequence[str]) -> dict[str, Any]:
    """One model's answer, with the rules that read the same out of it together."""
    groups: dict[tuple[str | None, bool], list[str]] = {}
    for name in rules:
        verdict = record["rules"][name]
        groups.setdefault((_clip(verdict["extracted"]), bool(verdict["correct"])), []).append(name)
    text = record["completion"]
    return {
        "text": text[:LONGEST_TEXT],
        "more": max(0, len(text) - LONGEST_TEXT),
        "tokens": record["tokens"],
        **_wrong(record),
        "ending": ENDINGS.get(record["finish_reason"], record["finish_reason"]),
        "found": [{"text": read, "correct": right, "rules": ", ".join(by)} for (read, right), by in groups.items()],
    }


def _wrong(record: Record) -> dict[str, Any]:
    """What went wrong in one answer: the category in words, and the first claim that is no true sum."""
    found = record["diagnosis"]
    kind = CATEGORIES[found["category"]] if found["category"] != "correct" else None
    besides = found["category"] not in ("correct", "arithmetic_slip")  # the answer does not hang on that sum alone
    return {"wrong": kind, "slip": found["slip"], "besides": besides}


def _clip(extracted: str | None) -> str | None:
    if extracted is None or len(extracted) <= LONGEST_ANSWER:
        return extracted
    return f"{extracted[:LONGEST_ANSWER]}\N{HORIZONTAL ELLIPSIS}"


def _data(models: Sequence[Column], rules: Sequence[str], rule: str) -> Markup:
    """What the filters need: for each problem, model and rule, twice the answer's place plus right or not.

    Then, for each model, whether it was cut, whether it holds no number, and the place of its category.
    """
    kinds = list(CATEGORIES)
    places: dict[str | None, int] = {None: 0}
    rows = []
    for records in zip(*(model.records for model in models), strict=True):
        verdicts = []
        for record in records:
            found = [record["rules"][name] for name in rules]
            answers = [_clip(verdict["extracted"]) for verdict in found]
            shown = [None if answer is None else visible(answer) for answer in answers]
            numbers = [places.setdefault(answer, len(places)) for answer in shown]
            verdicts.append([2 * place + bool(v["correct"]) for place, v in zip(numbers, found, strict=True)])
        cut = [int(record["finish_reason"] == "length") for record in records]
        silent = [int(record["rules"].get("robust", {"extracted": ""})["extracted"] is None) for record in records]
        rows.append([verdicts, cut, silent, [kinds.index(record["diagnosis"]["category"]) for record in records]])
    value = {"rules": rules, "rule": rule, "models": [model.key for model in models]}
    return for_script(value | {"answers": list(places), "rows": rows})


def for_script(value: object) -> Markup:
    """JSON that can stand in a script element: json.dumps alone leaves </script> and <!-- as they are."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
