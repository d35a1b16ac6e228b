"""A comparison as Markdown, for a pull request or a model card, with the Hub's model-index as front matter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gsm8k_core.files import write_bytes
from gsm8k_core.report.words import (
    Facts,
    between,
    bounds,
    calculator_line,
    caveats,
    headline,
    how,
    learned,
    overlap_line,
    p_value,
    percent,
    points,
    visible,
    without_secrets,
)
from gsm8k_core.scoring.answers import HEADLINE, labelled
from gsm8k_core.types import DataError, counted

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
REAL_DATA = "openai/gsm8k"
# What Markdown reads inside a line takes a backslash; < > & become entities. No escaped text begins a line.
_SPECIAL = re.compile(r"([\\`*_\[\]#|~$])")
_LINK = re.compile(r"(?i)\b(https?|ftp|mailto|javascript|data)(:)|(www)(\.)|(@)(?=\w)")


def write_card(path: Path, comparison: Mapping[str, Any], name: str, facts: Facts | None = None) -> None:
    """Writes `make_card`'s text whole or not at all."""
    write_bytes(path, make_card(comparison, name, facts).encode("utf-8", errors="replace"))


def make_card(comparison: Mapping[str, Any], name: str, facts: Facts | None = None) -> str:
    """The card of `name`, the trained model; what follows its front matter serves for a pull request."""
    try:
        return "\n".join([_front_matter(comparison, name), *_body(comparison, name, facts or Facts())]) + "\n"
    except (KeyError, TypeError) as error:
        raise DataError(
            f"the model card needs something that the comparison lacks ({error}); run compare again"
        ) from error


def escaped(text: object) -> str:
    """Text from outside as one line of Markdown that is read as text, in a paragraph and in a table."""
    line = " ".join(visible(str(text)).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = _SPECIAL.sub(r"\\\1", line)
    # GitHub links bare addresses and mentions: an empty comment between the parts keeps them text.
    return _LINK.sub(lambda found: "<!-- -->".join(part for part in found.groups("") if part) + _tail(found), line)


def _tail(found: re.Match[str]) -> str:
    return "<!-- -->" if found[0] == "@" else ""


def code(text: object) -> str:
    """Text from outside as inline code; the fence is longer than any row of backticks in it."""
    line = " ".join(visible(str(text)).split()).replace("|", "\\|")
    fence = "`" * (max((len(run) for run in re.findall(r"`+", line)), default=0) + 1)
    return f"{fence} {line} {fence}" if "`" in line else f"`{line}`" if line else ""


def _block(lines: Sequence[str]) -> list[str]:
    body = "\n".join(visible(without_secrets(line)) for line in lines)
    fence = "`" * max(3, max((len(run) for run in re.findall(r"`+", body)), default=0) + 1)
    return [f"{fence}sh", body, fence, ""]


# --- front matter -----------------------------------------------------------------------------------------------------


def _front_matter(comparison: Mapping[str, Any], name: str) -> str:
    """YAML as the Hub reads it. Values are shares of 1, as exact_match is in lm-eval."""
    trained, base = comparison["trained"], comparison["base"]
    data = _data_name(trained)
    meta: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if HUB_ID.fullmatch(str(base.get("model", ""))):
        meta["base_model"] = base["model"]
    if HUB_ID.fullmatch(data):
        meta["datasets"] = [data]
    meta["tags"] = ["gsm8k", "math", "grade-school-math", "gsm8k-finetune"]
    meta["metrics"] = ["exact_match"]
    result = {
        "task": {"type": "text-generation", "name": "Text generation"},
        "dataset": _dataset(trained, data),
        "metrics": [_metric(rule, score, trained) for rule, score in _ordered(trained["rules"])],
    }
    meta["model-index"] = [{"name": visible(name), "results": [result]}]
    return f"---\n{yaml.safe_dump(meta, sort_keys=False, allow_unicode=True, width=1000)}---\n"


def _data_name(summary: Mapping[str, Any]) -> str:
    """openai/gsm8k of `openai/gsm8k (main)`; any other name as it is."""
    name = str(summary.get("data", "unknown"))
    return REAL_DATA if name.split(" ")[0] == REAL_DATA else visible(name)


def _dataset(summary: Mapping[str, Any], data: str) -> dict[str, Any]:
    found = {"type": data, "name": "GSM8K" if data == REAL_DATA else data}
    if data == REAL_DATA:
        found["config"] = "socratic" if "socratic" in str(summary["data"]) else "main"
    return found | {"split": summary.get("split", "test"), "args": {"num_problems": summary["n"]}}


def _metric(rule: str, score: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    samples = summary.get("samples", 1)
    name = "exact match" if samples == 1 else f"exact match of maj@{samples}"
    votes = {} if samples == 1 else {"samples": samples}
    version = labelled(rule).removeprefix(rule)
    interval = [round(bound, 4) for bound in score["interval"]]
    return {
        "type": "exact_match",
        "name": f"{name}{how(summary)}{learned(summary)}, {rule} rule{version}",
        "value": round(score["accuracy"], 4),
        "verified": False,
        "args": {"rule": rule, "correct": score["correct"], "of": summary["n"], "interval": interval} | votes,
    }


def _ordered(rules: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(rules.items(), key=lambda item: item[0] not in HEADLINE)


# --- the text ---------------------------------------------------------------------------------------------------------


def _body(comparison: Mapping[str, Any], name: str, facts: Facts) -> list[str]:
    result, base, trained = headline(comparison), comparison["base"], comparison["trained"]
    lines = [
        f"# {escaped(name)}",
        "",
        f"**{result.title}.** {percent(result.base)} → {percent(result.trained)}, "
        f"{points(result.difference)} points ({bounds(result.difference_interval)}), {p_value(result.p)}.",
        "",
        f"{counted(result.n, 'problem')} of {escaped(trained.get('data', 'the data'))}, "
        f"{escaped(trained.get('split', 'test'))} split. Base: {code(base.get('model', 'base'))}. "
        f"{counted(result.won, 'problem')} won, {result.lost:,} lost, {result.both:,} solved by both, "
        f"{result.neither:,} by neither, under the {escaped(result.rule)} rule.",
        "",
    ]
    lines += [line for caveat in caveats(comparison, result) for line in (escaped(caveat), "")]
    if result.better == "base":
        lines += ["The base model was better on these problems. Keep the base.", ""]
    return [*lines, *_results(comparison), *_endings(comparison), *_how(comparison, facts)]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    marks = ["---", *["---:"] * (len(columns) - 1)]
    return [f"| {' | '.join(row)} |" for row in (columns, marks, *rows)] + [""]


def _score(score: Mapping[str, Any]) -> str:
    return f"{percent(score['accuracy'])} ({between(score['interval'])})"


def _results(comparison: Mapping[str, Any]) -> list[str]:
    base, trained, tests = comparison["base"]["rules"], comparison["trained"]["rules"], comparison["paired_by_rule"]
    rows = [
        [
            escaped(labelled(rule)),
            _score(base[rule]),
            _score(new),
            points(new["accuracy"] - base[rule]["accuracy"]),
            f"{tests[rule]['won']:,}",
            f"{tests[rule]['lost']:,}",
            p_value(tests[rule]["p"]),
        ]
        for rule, new in _ordered(trained)
    ]
    note = [f"{which}: {line}" for which in ("Base", "Trained") if (line := calculator_line(comparison[which.lower()]))]
    notes = ["With calculator. " + " ".join(escaped(line) for line in note), ""] if note else []
    columns = ["rule", "base (95 % interval)", "trained (95 % interval)", "points", "won", "lost", "p"]
    return ["## Results", "", *notes, *_table(columns, rows)]


def _endings(comparison: Mapping[str, Any]) -> list[str]:
    asked = {"stopped": "ended by themselves", "cut": "cut by the length limit", "no_answer": "hold no number"}
    models = comparison["base"], comparison["trained"]
    if any(model.get("at_answer") for model in models):
        asked["at_answer"] = "ended at their #### line"
    rows = [[words, *(f"{model[key]:,}" for model in models)] for key, words in asked.items()]
    rows += [["tokens on average", *(f"{model['mean_tokens']:.0f}" for model in models)]]
    return _table(["answers", "base", "trained"], rows)


def _how_often(summary: Mapping[str, Any]) -> str:
    samples = summary.get("samples", 1)
    return " once" if samples == 1 else f" {samples} times; the answer that the vote chose (maj@{samples}) is counted"


def _how(comparison: Mapping[str, Any], facts: Facts) -> list[str]:
    trained = comparison["trained"]
    kept = ("backend", "device", "dtype", "max_new_tokens")
    settings = {key.replace("_", " "): trained[key] for key in kept if key in trained} | dict(facts.settings)
    hashes = {f"{key} model": comparison[key]["hash"] for key in ("base", "trained") if "hash" in comparison[key]}
    tables = {"settings": settings, "versions": facts.versions, "sha256": hashes | dict(facts.hashes)}
    lines = [
        "## How it was measured",
        "",
        f"Both models answered the same problems{_how_often(trained)}. Each rule reads the same answers. Intervals of "
        "accuracies are Wilson's at 95 %, p is McNemar's exact two-sided test over the problems where the models "
        "differ.",
        "",
    ]
    for which in ("base", "trained"):
        if line := overlap_line(comparison[which]):
            lines += [f"{which.capitalize()}: {escaped(line)}", ""]
    for title, table in tables.items():
        if table:
            pairs = (f"{escaped(key)} {code(without_secrets(str(value)))}" for key, value in table.items())
            lines += [f"- {title}: {', '.join(pairs)}"]
    lines += [""]
    commands = list(facts.reproduce) or ([facts.command] if facts.command else [])
    return lines + (["Do it again:", "", *_block(commands)] if commands else [])
