"""report.html: one file that shows a comparison, or one model, to a person. It loads nothing from anywhere.

Everything from outside (questions, model text, names, commands) reaches the page through Jinja's escaping, after
`visible` made control characters something to be seen; or through JSON whose < > & are escaped. The page's own style
and scripts are allowed by their sha256 and nothing else is.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from gsm8k_core.files import write_bytes
from gsm8k_core.report import agreement, charts, examples, look, words
from gsm8k_core.report.curves import Curve
from gsm8k_core.report.words import Facts, Headline, visible
from gsm8k_core.scoring.answers import HEADLINE, HEADLINE_RULE, OLDER, version_of
from gsm8k_core.scoring.diagnose import CATEGORIES
from gsm8k_core.types import DataError, counted

TEMPLATES = Path(__file__).parent / "templates"
LONGEST_TEXT = 8000  # characters of one answer that are shown; records.jsonl holds all
LONGEST_ANSWER = 48  # of an extracted answer
_FILTERS = ("percent", "between", "bounds", "points", "p_value", "without_secrets", "calculator_line")
ENDINGS = {"stop": "ended by itself", "length": "cut", "complete": "ended at its #### line"}

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the page."""

    key: str  # base and trained, or model where there is one; it names the colour
    label: str  # base and trained; of several trained models, each one's short name
    summary: Mapping[str, Any]
    records: Sequence[Record]

    @property
    def name(self) -> str:
        return words.short_model(str(self.summary.get("model", self.key)))

    @property
    def title(self) -> str:
        """The label as the head of a column."""
        return self.label.capitalize() if self.label in ("base", "trained", "model") else self.label


def write_page(path: Path, comparison: Mapping[str, Any], *records: Sequence[Record], **more: Any) -> None:
    """Writes the page whole or not at all. The arguments are `render_page`'s."""
    write_bytes(path, render_page(comparison, *records, **more).encode("utf-8", errors="replace"))


def render_page(
    comparison: Mapping[str, Any],
    *records: Sequence[Record],
    curves: Mapping[str, Curve] | None = None,
    run_curves: Sequence[Mapping[str, Curve] | None] = (),
    diagnosis: Sequence[Mapping[str, Any]] | None = None,
    steps: Sequence[Mapping[str, Any]] | None = None,
    facts: Facts | None = None,
) -> str:
    """The page as text.

    comparison: model_comparison.json; for one model `{"base": its summary}`. records: the base's and each trained
    model's, or the one model's. curves: what `read_curves` returns; run_curves: of each trained model, where there are
    several. diagnosis: `{"category", "base", "trained"}` each, counted in answers. steps: `{"steps", "n", "base",
    "trained"}` each, the last two counted in right answers. With several trained models, `trained` is a list.
    """
    try:
        models = _models(comparison, records)
        view = _view(comparison, models)
        view |= {"charts": _charts(models, curves, run_curves), "facts": _facts(facts or Facts(), models)}
        view |= {"wrong": _wrong_rows(diagnosis, models), "steps": _step_rows(steps, models)}
        view |= {"rounds": facts.rounds if facts else (), "own": facts.own if facts else ""}
        return environment().get_template("report.html.j2").render(view)
    except (KeyError, TypeError, IndexError, AttributeError, jinja2.UndefinedError) as error:
        missing = f"{type(error).__name__}: {error}"
        raise DataError(
            f"the report page needs something that the comparison or the records lack ({missing}); run compare again"
        ) from error


def _models(comparison: Mapping[str, Any], records: Sequence[Sequence[Record]]) -> list[Column]:
    base = records[0]
    if len(records) == 1:
        models = [Column("model", "model", comparison["base"], base)]
    else:
        trained = [pair["trained"] for pair in words.pairs(comparison)]
        labels = ["trained"] if len(trained) == 1 else words.names(comparison)
        models = [Column("base", "base", comparison["base"], base)]
        models += [Column(*column) for column in zip(look.KEYS, labels, trained, records[1:], strict=False)]
    for model in models:
        ids = [record["id"] for record in model.records]
        if len(ids) != model.summary["n"] or ids != [record["id"] for record in base]:
            raise DataError(
                f"the records ({model.label}) are not over the comparison's "
                f"{counted(model.summary['n'], 'problem')}, in their order; run compare again"
            )
    return models


def _charts(
    models: Sequence[Column], curves: Mapping[str, Curve] | None, several: Sequence[Mapping[str, Curve] | None]
) -> list[charts.Chart]:
    if not several:
        return charts.draw(curves or {})
    return charts.draw_runs(
        [(model.key, model.label, each or {}) for model, each in zip(models[1:], several, strict=True)]
    )


@cache
def environment() -> jinja2.Environment:
    """Ours, with its filters; a template is compiled once a process."""

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
    found.filters["counted"] = counted
    return found


def _own(*names: str) -> Markup:
    """A part of the page that is ours: its style or a script."""
    return Markup("".join((TEMPLATES / name).read_text(encoding="utf-8") for name in names))


def _hash(part: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() + "'"


def _style() -> Markup:
    return Markup(look.variables()) + _own("report.css", "parts.css", "problems.css")


def _view(comparison: Mapping[str, Any], models: Sequence[Column]) -> dict[str, Any]:
    style, early, script = _style(), _own("early.js"), _own("report.js")
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(early)} {_hash(script)}; "
    policy += "img-src 'none'; base-uri 'none'; form-action 'none'"
    pairs = words.pairs(comparison) if len(models) > 1 else []
    results = [words.headline(pair) for pair in pairs]
    rules = sorted(models[0].summary["rules"], key=lambda name: name not in HEADLINE)
    rule = results[0].rule if results else (HEADLINE_RULE if HEADLINE_RULE in rules else rules[0])
    best = max(range(len(models)), key=lambda at: (at > 0, models[at].summary["rules"][rule]["accuracy"], -at))
    groups = agreement.group([model.records for model in models], rules)
    numbers = numbered([record["id"] for record in models[0].records])
    shown = [models[0], models[best]] if len(models) > 1 else list(models)
    return {
        "style": style,
        "early": early,
        "script": script,
        "policy": policy,
        "models": models,
        "results": results,
        "result": results[0] if len(results) == 1 else None,
        "caveats": _caveats(pairs, results, models, rule),
        "rule": rule,
        "n": models[0].summary["n"],
        "data_name": words.short_data(str(models[0].summary.get("data", "GSM8K"))),
        "votes": models[0].summary.get("samples", 1),
        "how": words.how(models[0].summary) + ("" if results else words.learned(models[0].summary)),
        "rules": rules,
        "groups": groups,
        "rule_rows": _rule_rows(pairs, models, groups),
        "scale": charts.scale([bound for model in models for row in rules for bound in _interval(model, row)]),
        "endings": _endings(models),
        "matrices": [{"model": model, "rows": agreement.matrix(model.records, groups)} for model in models],
        "cards": examples.choose([model.records for model in shown], rule),
        "shown": shown,
        "overlaps": _overlaps(models),
        "problems": list(_problems(models, rules, rule, numbers)),
        "data": _data(models, rules, rule),
    }


def _interval(model: Column, rule: str) -> Sequence[float]:
    found: Sequence[float] = model.summary["rules"][rule]["interval"]
    return found


def _caveats(
    pairs: Sequence[Mapping[str, Any]], results: Sequence[Headline], models: Sequence[Column], rule: str
) -> list[str]:
    if len(pairs) == 1:
        return words.caveats(pairs[0], results[0])
    said = words.never_shown([(model.label, model.summary) for model in models], rule)
    corrected = (
        f"Each p is corrected for {len(pairs)} tests (Holm), and decides; the intervals are each model's own."
        if pairs
        else ""
    )
    drawn = words.sample(models[-1].summary)  # the same problems for all
    return [line[0].upper() + line[1:] for line in (said, drawn, corrected) if line]


def _overlaps(models: Sequence[Column]) -> list[str]:
    """Whether the problems were trained on, once for all models of which the same is known."""
    found: dict[str, list[str]] = {}
    for model in models:
        if line := words.overlap_line(model.summary):
            found.setdefault(line, []).append(model.label)
    if len(found) == 1:
        return list(found)
    return [f"{', '.join(labels).capitalize()}: {line}" for line, labels in found.items()]


def numbered(ids: Sequence[str]) -> list[int]:
    """The number of each problem on the page: that of its id, test-17, where all have one; else its place."""
    found = [re.fullmatch(r"[A-Za-z]+-([0-9]{1,9})", name) for name in ids]
    numbers = [int(match[1]) for match in found if match]
    return numbers if len(set(numbers)) == len(ids) else list(range(1, len(ids) + 1))


def _rule_rows(
    pairs: Sequence[Mapping[str, Any]], models: Sequence[Column], groups: agreement.Groups
) -> list[dict[str, Any]]:
    rows = []
    for group in groups:
        scores = [model.summary["rules"][group[0]] for model in models]
        named = [{"name": name, "version": None if name in OLDER else version_of(name)} for name in group]
        row = {"names": group, "named": named, "scores": scores, "none": not any(each["correct"] for each in scores)}
        if len(pairs) == 1:
            row |= {"difference": scores[1]["accuracy"] - scores[0]["accuracy"]}
            row |= {"test": pairs[0]["paired_by_rule"][group[0]]}
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


def _counts(row: Mapping[str, Any], models: Sequence[Column]) -> list[int]:
    """Of a row that someone else counted, a number a model."""
    trained = row["trained"] if len(models) > 1 else []
    return [row["base"], *(trained if isinstance(trained, list) else [trained])]


def _step_rows(given: Sequence[Mapping[str, Any]] | None, models: Sequence[Column]) -> list[dict[str, Any]] | None:
    """By the number of steps: how many problems there are, and how many each model has right."""
    if not given:
        return None
    return [{"label": str(row["steps"]), "n": row["n"], "counts": _counts(row, models)} for row in given]


def _wrong_rows(given: Sequence[Mapping[str, Any]] | None, models: Sequence[Column]) -> dict[str, Any] | None:
    """What went wrong, the most frequent first, as bars; the labels of what never did."""
    if not given:
        return None
    kinds = {label: place for place, label in enumerate(CATEGORIES.values())}
    rows: list[dict[str, Any]] = [
        {"label": str(row["category"]), "kind": kinds.get(row["category"]), "counts": _counts(row, models)}
        for row in given
        if row["category"] != CATEGORIES["correct"]
    ]
    seen = sorted((row for row in rows if any(row["counts"])), key=lambda row: -sum(row["counts"]))
    most = max((max(row["counts"]) for row in seen), default=1)
    for row in seen:
        row["bars"] = [{"count": count, "width": f"{100 * count / most:.2f}%"} for count in row["counts"]]
    return {"rows": seen, "never": [row["label"] for row in rows if not any(row["counts"])]}


def _facts(facts: Facts, models: Sequence[Column]) -> dict[str, Any]:
    hashes = {model.label: model.summary["hash"] for model in models if "hash" in model.summary}
    kept = ("data", "split", "backend", "device", "dtype", "max_new_tokens")
    settings = {model.label: str(model.summary["model"]) for model in models if "model" in model.summary}
    settings |= {name.replace("_", " "): str(models[0].summary[name]) for name in kept if name in models[0].summary}
    if reused := {model.label: model.summary["reused"] for model in models if model.summary.get("reused")}:
        counts = ", ".join(f"{count} of the {key}'s" for key, count in reused.items())
        settings["reused answers"] = f"{counts}: given in an earlier evaluation, decoded and graded again"
    tables = {"settings": settings | dict(facts.settings), "hashes": hashes | dict(facts.hashes)}
    return {"command": facts.command, "reproduce": facts.reproduce, "versions": facts.versions, **tables}


# --- the problems -----------------------------------------------------------------------------------------------------


def outcome(right: Sequence[bool]) -> str:
    """The name of a row's flip, from base to the first trained model, or of its verdict where there is one model."""
    if len(right) == 1:
        return "right" if right[0] else "wrong"
    base, trained = right
    return ("both" if trained else "lost") if base else ("won" if trained else "neither")


def _problems(
    models: Sequence[Column], rules: Sequence[str], rule: str, numbers: Sequence[int]
) -> Iterator[dict[str, Any]]:
    for number, records in zip(numbers, zip(*(model.records for model in models), strict=True), strict=True):
        first, verdicts = records[0], [record["rules"][rule] for record in records]
        yield {
            "number": number,
            "id": first["id"],
            "question": first["question"],
            "answer": first["answer"],
            "gold": first["gold"],
            "outcome": outcome([bool(verdict["correct"]) for verdict in verdicts[:2]]),
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
        "pieces": examples.pieces(record, LONGEST_TEXT),
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
    value = {"rules": rules, "rule": rule, "models": [visible(model.label) for model in models]}
    return for_script(value | {"answers": list(places), "rows": rows})


def for_script(value: object) -> Markup:
    """JSON that can stand in a script element: json.dumps alone leaves </script> and <!-- as they are."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
