"""Records -> what a person reads on the terminal, and model_comparison.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gsm8k_core.report.words import bound, calculator_line, headline, how, names, pairs
from gsm8k_core.scoring import tallies
from gsm8k_core.scoring.answers import HEADLINE, HEADLINE_RULE, labelled
from gsm8k_core.scoring.diagnose import CATEGORIES, category_rows, compare_breakdowns, step_rows
from gsm8k_core.scoring.stats import LEVEL, cannot_show, holm, paired, percent, smallest_effect
from gsm8k_core.tracking.terminal import Terminal
from gsm8k_core.types import counted

Records = Sequence[Mapping[str, Any]]
Rows = list[dict[str, Any]]


# --- what is written --------------------------------------------------------------------------------------------------


def make_comparison(
    base: Mapping[str, Any], trained: Mapping[str, Any], base_records: Records, trained_records: Records
) -> dict[str, Any]:
    """The content of model_comparison.json; both record lists are over the same problems, in order.

    Every share and difference is a fraction. `paired` also holds the smallest difference that as many problems show,
    with as many changed answers as these; None where they can show none.
    """
    tests = {name: _paired(name, base_records, trained_records) for name in base["rules"]}
    found = compare_breakdowns(base_records, trained_records)
    test = tests[HEADLINE_RULE]
    paired_test = {"rule": HEADLINE_RULE, **test, "smallest_effect": smallest_effect(base["n"], _changed(test))}
    models = {"base": dict(base), "trained": dict(trained)}
    return {
        "schema": 1,
        **models,
        "verdict": verdict({**models, "paired": paired_test}),
        "overlap": {which: model.get("overlap") for which, model in models.items()},
        "paired": paired_test,
        "paired_by_rule": tests,
        "diagnosis": diagnosis_rows(found["base"], found["trained"]),
        "steps": steps_rows(found["base"], found["trained"]),
        "breakdown": found,
    }


def make_comparisons(
    base: Mapping[str, Any], trained: Sequence[Mapping[str, Any]], base_records: Records, records: Sequence[Records]
) -> dict[str, Any]:
    """The content of model_comparison.json for several trained models: schema 2.

    Each of `comparisons` is what make_comparison says of that model, less the base; its `paired` holds `p_holm` too,
    the p corrected for as many tests as there are models, by which its verdict is made.
    """
    single = [make_comparison(base, one, base_records, own) for one, own in zip(trained, records, strict=True)]
    corrected = holm([each["paired"]["p"] for each in single])
    for each, p in zip(single, corrected, strict=True):
        each["paired"] = {**each["paired"], "p_holm": p}
        each["verdict"] = verdict(each)
    parts = [{key: part for key, part in each.items() if key not in ("schema", "base")} for each in single]
    correction = {"method": "holm", "tests": len(single), "level": LEVEL}
    return {"schema": 2, "base": dict(base), "correction": correction, "comparisons": parts}


def _paired(name: str, base_records: Records, trained_records: Records) -> dict[str, Any]:
    base, trained = ([bool(r["rules"][name]["correct"]) for r in rows] for rows in (base_records, trained_records))
    result = paired(base, trained)
    return {
        "won": result.won,
        "lost": result.lost,
        "both": result.both,
        "neither": result.neither,
        "p": result.p,
        "difference": result.difference,
        "interval": list(result.interval),
    }


def _changed(test: Mapping[str, Any]) -> float:
    """The share of problems on which the models differ; one of them where they differ on none."""
    n = sum(test[key] for key in ("won", "lost", "both", "neither"))
    return float(max(1, test["won"] + test["lost"]) / n)


def diagnosis_rows(base: Mapping[str, Any], trained: Mapping[str, Any] | None = None) -> Rows:
    """Of one or two breakdowns: how many answers each category has, as the page takes it."""
    models = _by_model(base, trained)
    return [
        {"category": label} | {model: one["categories"][name] for model, one in models.items()}
        for name, label in CATEGORIES.items()
    ]


def steps_rows(base: Mapping[str, Any], trained: Mapping[str, Any] | None = None) -> Rows:
    """Of one or two breakdowns: how many problems of each number of steps are right, as the page takes it."""
    models = _by_model(base, trained)
    return [
        {"steps": row["steps"], "n": row["n"]} | {model: one["by_steps"][at]["count"] for model, one in models.items()}
        for at, row in enumerate(base["by_steps"])
    ]


def _by_model(base: Mapping[str, Any], trained: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    return {"base": base} if trained is None else {"base": base, "trained": trained}


# --- what is said -----------------------------------------------------------------------------------------------------


def accuracy(score: Mapping[str, Any]) -> str:
    """31.5 % (27.1 to 36.2)."""
    low, high = score["interval"]
    return f"{percent(score['accuracy'])} ({100 * low:.1f} to {100 * high:.1f})"


def show_scores(terminal: Terminal, summary: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """One model's tables; `found` is its breakdown."""
    rules = summary["rules"]
    rows = [[labelled(name), str(rules[name]["correct"]), accuracy(rules[name])] for name in rules]
    terminal.table(["rule", "correct", f"accuracy{how(summary)} (95 % interval)"], rows)
    terminal.say(_endings(summary))
    _show_thoughts(terminal, summary)
    _show_calculator(terminal, summary)
    _show_held_out(terminal, summary)
    _show_samples(terminal, summary)
    show_disagreements(terminal, summary["disagreements"], "answer")
    _show_breakdowns(terminal, {"answers": found})


def show_disagreements(terminal: Terminal, counts: tallies.Counts, what: str) -> None:
    """The matrix, or that there is nothing to show; `what` names a row: row, answer."""
    if tallies.agreed(counts):
        terminal.say(f"The rules give the same verdict on every {what}.")
        return
    terminal.say(f"\n{what.capitalize()}s that the rule on the left calls right and the one above calls wrong:")
    terminal.table(*tallies.disagreement_table(counts, terminal.room))


def _endings(summary: Mapping[str, Any]) -> str:
    early = f"{summary['at_answer']} after their #### line, " if summary.get("at_answer") else ""
    share = percent(summary["ended_share"])  # of the answers, which are several a problem with --samples
    return (
        f"{counted(summary['n'], 'problem')}: {counted(summary['stopped'], 'answer')} ({share}) ended by themselves, "
        f"{early}"
        f"{summary['cut']} cut at {summary['max_new_tokens']} tokens, {summary['no_answer']} without a number; "
        f"{summary['mean_tokens']:.0f} tokens on average"
    )


def _show_thoughts(terminal: Terminal, summary: Mapping[str, Any]) -> None:
    if found := summary.get("thoughts"):
        never = f"; {found['unclosed']} never closed, and so without an answer" if found["unclosed"] else ""
        terminal.say(
            f"Thoughts, which no rule reads: in {counted(found['answers'], 'answer')}, "
            f"{found['mean_tokens']:.0f} tokens on average{never}"
        )


def _show_calculator(terminal: Terminal, summary: Mapping[str, Any]) -> None:
    if line := calculator_line(summary):
        terminal.say(line)


def _show_held_out(terminal: Terminal, summary: Mapping[str, Any]) -> None:
    apart = summary.get("held_out_templates")
    if apart:
        scores = ", ".join(f"{name} {accuracy(apart['rules'][name])}" for name in HEADLINE)
        terminal.say(f"of these, {apart['n']} from templates that training never shows: {scores}")


def _show_samples(terminal: Terminal, summary: Mapping[str, Any]) -> None:
    """maj@K and pass@k, where several answers to a problem were drawn."""
    if found := tallies.sample_table(summary):
        terminal.table(*found)


def verdict(comparison: Mapping[str, Any]) -> str:
    """What the paired test says, in words."""
    result = headline(comparison)
    corrected = "" if result.corrected is None else f" ({result.corrected:.2g} corrected)"
    counts = f"{result.won} won, {result.lost} lost, p = {result.p:.2g}{corrected} by the {result.rule} rule"
    return f"{result.title[0].lower()}{result.title[1:]}: {counts}"


def difference(comparison: Mapping[str, Any]) -> str:
    """How much better, in points, with the interval."""
    result = headline(comparison)
    low, high = (bound(each, "+") for each in result.difference_interval)
    return f"the difference is {100 * result.difference:+.1f} points (95 % interval {low} to {high})"


def show_comparison(terminal: Terminal, comparison: Mapping[str, Any]) -> None:
    """Base against trained: a line a rule, what went wrong, and what the paired test says."""
    base, trained, tests = comparison["base"]["rules"], comparison["trained"]["rules"], comparison["paired_by_rule"]
    rows = [
        [
            labelled(name),
            accuracy(base[name]),
            accuracy(trained[name]),
            f"{100 * test['difference']:+.1f}",
            _p(test["p"]),
        ]
        for name, test in tests.items()
    ]
    columns = [f"{which}{how(comparison[which])}" for which in ("base", "trained")]
    terminal.table(["rule", *columns, "points", "p"], rows)
    for which in ("base", "trained"):
        terminal.say(f"{which}: {_endings(comparison[which])}")
        _show_thoughts(terminal, comparison[which])
        _show_calculator(terminal, comparison[which])
        _show_held_out(terminal, comparison[which])
        _show_samples(terminal, comparison[which])
    _show_breakdowns(terminal, {which: comparison["breakdown"][which] for which in ("base", "trained")})
    terminal.say(f"\n{verdict(comparison)}")
    terminal.say(difference(comparison))
    n = comparison["base"]["n"]
    known = cannot_show(n, _changed(comparison["paired"]))
    if headline(comparison).better == "neither" and known != cannot_show(n):  # the latter was said before the run
        terminal.say(known)


def show_comparisons(terminal: Terminal, comparison: Mapping[str, Any]) -> None:
    """The base beside several trained models: one table, what went wrong, and each one's verdict."""
    found = pairs(comparison)
    named = [f"{number} {name}" for number, name in enumerate(names(comparison), start=1)]
    rule = found[0]["paired"]["rule"]
    rows = [["base", accuracy(comparison["base"]["rules"][rule]), "", "", "", "", ""]]
    for name, each in zip(named, found, strict=True):
        test = each["paired"]
        counts = [f"{100 * test['difference']:+.1f}", str(test["won"]), str(test["lost"])]
        rows.append([name, accuracy(each["trained"]["rules"][rule]), *counts, _p(test["p"]), _p(test["p_holm"])])
    terminal.table(["model", f"accuracy{how(comparison['base'])}", "points", "won", "lost", "p", "corrected"], rows)
    for name, summary in (("base", comparison["base"]), *zip(named, (each["trained"] for each in found), strict=True)):
        terminal.say(f"{name}: {_endings(summary)}")
        _show_thoughts(terminal, summary)
        _show_calculator(terminal, summary)
        _show_held_out(terminal, summary)
        _show_samples(terminal, summary)
    columns = ["base", *map(str, range(1, len(found) + 1))]
    breakdowns = [found[0]["breakdown"]["base"], *(each["breakdown"]["trained"] for each in found)]
    wrong = [
        [label, *(str(one["categories"][name]) for one in breakdowns)]
        for name, label in CATEGORIES.items()
        if any(one["categories"][name] for one in breakdowns)
    ]
    terminal.say("")
    terminal.table(["what went wrong", *columns], wrong)
    terminal.say("")
    for name, each in zip(named, found, strict=True):
        terminal.say(f"{name}: {verdict(each)}")
    terminal.say(f"each p is corrected for {len(found)} tests by Holm's method, and the verdicts go by that")


def _p(p: float) -> str:
    return "<0.0001" if p < 0.0001 else f"{p:.2g}"


def _show_breakdowns(terminal: Terminal, found: Mapping[str, Mapping[str, Any]]) -> None:
    """What went wrong, without what never happened, and the accuracy by the gold's number of steps."""
    kinds = category_rows(*found.values())[: len(CATEGORIES)]  # what comes after them, _endings says
    terminal.say("")
    terminal.table(["what went wrong", *found], [row for row in kinds if any(cell[:2] != "0 " for cell in row[1:])])
    if steps := step_rows(*found.values()):
        terminal.say("\nAccuracy by the number of steps in the reference answer, by the robust rule:")
        terminal.table(["steps", "problems", *found], steps)
