"""Records -> what a person reads and model_comparison.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gsm8k_core import disagreements
from gsm8k_core.answers import HEADLINE, RULES
from gsm8k_core.evaluate import HEADLINE_RULE
from gsm8k_core.stats import paired
from gsm8k_core.tracking import Terminal, counted

SIGNIFICANT = 0.05


def percent(score: Mapping[str, Any]) -> str:
    """31.5 % (27.1 to 36.2)."""
    low, high = score["interval"]
    return f"{100 * score['accuracy']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def show_scores(terminal: Terminal, summary: Mapping[str, Any]) -> None:
    """One model's table."""
    rows = [[name, str(summary["rules"][name]["correct"]), percent(summary["rules"][name])] for name in RULES]
    terminal.table(["rule", "correct", "accuracy (95 % interval)"], rows)
    terminal.say(_endings(summary))
    _show_held_out(terminal, summary)
    terminal.table(*disagreements.table(summary["disagreements"]))


def _endings(summary: Mapping[str, Any]) -> str:
    return (
        f"{counted(summary['n'], 'problem')}: {counted(summary['stopped'], 'answer')} ended at an end token, "
        f"{summary['cut']} cut at {summary['max_new_tokens']} tokens, {summary['no_answer']} without a number; "
        f"{summary['mean_tokens']:.0f} tokens on average"
    )


def _show_held_out(terminal: Terminal, summary: Mapping[str, Any]) -> None:
    apart = summary.get("held_out_templates")
    if apart:
        scores = ", ".join(f"{name} {percent(apart['rules'][name])}" for name in HEADLINE)
        terminal.say(f"of these, {apart['n']} from templates that training never shows: {scores}")


def make_comparison(
    base: Mapping[str, Any], trained: Mapping[str, Any],
    base_records: Sequence[Mapping[str, Any]], trained_records: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """The content of model_comparison.json; both record lists are over the same problems, in order."""
    tests = {}
    for name in RULES:
        result = paired(
            [record["rules"][name]["correct"] for record in base_records],
            [record["rules"][name]["correct"] for record in trained_records],
        )
        tests[name] = {"won": result.won, "lost": result.lost, "p": result.p}
    return {
        "schema": 1,
        "base": dict(base),
        "trained": dict(trained),
        "paired": {"rule": HEADLINE_RULE, **tests[HEADLINE_RULE]},
        "paired_by_rule": tests,
    }


def verdict(comparison: Mapping[str, Any]) -> str:
    """What the paired test says, in words."""
    test, n = comparison["paired"], comparison["base"]["n"]
    counts = f"{test['won']} won, {test['lost']} lost, p = {test['p']:.2g} by the {test['rule']} rule"
    if test["p"] >= SIGNIFICANT:
        return f"not distinguishable at n = {n}: {counts}"
    return f"the {'trained' if test['won'] > test['lost'] else 'base'} model is better: {counts}"


def show_comparison(terminal: Terminal, comparison: Mapping[str, Any]) -> None:
    """Base against trained, a line a rule."""
    base, trained = comparison["base"]["rules"], comparison["trained"]["rules"]
    rows = []
    for name in RULES:
        difference = 100 * (trained[name]["accuracy"] - base[name]["accuracy"])
        rows.append([name, percent(base[name]), percent(trained[name]), f"{difference:+.1f}"])
    terminal.table(["rule", "base", "trained", "points"], rows)
    for which in ("base", "trained"):
        terminal.say(f"{which}: {_endings(comparison[which])}")
        _show_held_out(terminal, comparison[which])
    terminal.say(verdict(comparison))
