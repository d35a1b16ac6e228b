"""`grade`: completions that any system made, scored under every rule. Needs no model and no framework."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gsm8k_core.config.score import GradeConfig
from gsm8k_core.report.comparison import accuracy, show_disagreements
from gsm8k_core.scoring.answers import asked_rules, judge_by, labelled
from gsm8k_core.scoring.completions import check_records, grade_rows, read_completions, summarise, write_records
from gsm8k_core.scoring.math_verify import judge_records, require
from gsm8k_core.tracking.terminal import Terminal
from gsm8k_core.types import EXIT_OK, UsageError, counted
from verbs import Context


def run(config: GradeConfig, context: Context) -> int:
    """The verb."""
    terminal = context.terminal
    if config.file is None:
        raise UsageError("grade needs a file of completions: python cli.py grade FILE.jsonl, or - to read stdin")
    if config.records is not None:
        check_records(config.records)
    names = asked_rules(config.rules)
    if config.slow_rules:
        require()
    records = grade_rows(read_completions(config.file))
    judge_by(names, records)
    if config.slow_rules:
        terminal.say(judge_records(records))
    summary = summarise(records)
    _show(terminal, summary)
    if config.records is not None:
        write_records(config.records, records)
        terminal.say(f"written  {config.records}: what each rule read in every row")
    terminal.result(summary | _named(config.records))
    return EXIT_OK


def _named(records: Path | None) -> dict[str, str]:
    return {"records": str(records)} if records else {}


def _show(terminal: Terminal, summary: dict[str, Any]) -> None:
    rules = summary["rules"]
    terminal.say(counted(summary["n"], "completion"))
    terminal.table(
        ["rule", "correct", "accuracy (95 % interval)", "nothing read"],
        [
            [labelled(name), str(rule["correct"]), accuracy(rule), str(rule["nothing_read"])]
            for name, rule in rules.items()
        ],
    )
    show_disagreements(terminal, summary["disagreements"], "row")
