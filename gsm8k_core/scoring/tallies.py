"""Counts over records: accuracy under each rule, several answers to one problem, and where two rules disagree.

Of several answers: their mean accuracy, the vote (maj@K) and the unbiased pass@k; with one answer a problem, everything
is the plain count. Of two rules: how often they judge differently, in which direction, and in which rows. A row's
verdicts split the rules into those that call it right and those that call it wrong; rows with the same split are kept
together, so each row's name is written once, and every cell of the matrix is read from the splits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import fmean, variance
from typing import Any

from gsm8k_core.scoring.answers import HEADLINE, version_of
from gsm8k_core.scoring.stats import majority, pass_at_k, percent, wilson

Record = Mapping[str, Any]
Counts = dict[str, dict[str, int]]
Splits = list[dict[str, list[Any]]]

VOTING_RULE = "robust"  # its numbers have one normal form
WIDTH = 80  # columns of a terminal


def rules_of(records: Sequence[Record]) -> list[str]:
    """The rules that every record was judged by, in their order."""
    shared = set.intersection(*(set(record["rules"]) for record in records)) if records else set()
    return [name for name in records[0]["rules"] if name in shared] if records else []


def by_problem(records: Sequence[Record]) -> list[list[Record]]:
    """The answers to each problem; they stand beside each other."""
    return [list(group) for _, group in groupby(records, key=lambda record: record["id"])]


def rates(records: Sequence[Record]) -> dict[str, dict[str, object]]:
    """The correct answers of each rule that judged them all, their share of all answers, and its interval."""
    groups = by_problem(records)
    num_samples = len(records) // len(groups)
    scores: dict[str, dict[str, object]] = {}
    for name in rules_of(records):
        correct = [_num_correct(group, name) for group in groups]
        total = sum(correct)
        low, high = wilson(total, len(records)) if num_samples == 1 else interval(correct, num_samples)
        scores[name] = {"correct": total, "accuracy": total / len(records), "interval": [low, high]}
        scores[name]["version"] = version_of(name)
    return scores


def interval(correct: Sequence[int], num_samples: int) -> tuple[float, float]:
    """95 % interval of the mean accuracy, for `correct` of `num_samples` answers to each problem.

    The answers to one problem are no independent ones, so Wilson's interval gets the effective sample size
    p (1 - p) / Var(p), between problems and answers. Source: Korn and Graubard, Survey Methodology 24 (1998).
    """
    n = len(correct)
    shares = [count / num_samples for count in correct]
    share = fmean(shares)
    spread = variance(shares) / n if n > 1 else 0.0
    effective: float = n if share in (0.0, 1.0) or n == 1 else n * num_samples
    if spread > 0:
        effective = min(max(share * (1 - share) / spread, n), n * num_samples)
    return wilson(sum(correct) * effective / (n * num_samples), effective)


def _num_correct(group: Sequence[Record], rule: str) -> int:
    return sum(bool(record["rules"][rule]["correct"]) for record in group)


# --- several answers to a problem -----------------------------------------------------------------------------


def voted(records: Sequence[Record]) -> list[dict[str, Any]]:
    """One record a problem: the first whose number the vote chose, with its `votes`. Paired tests and pages read these.

    The one answer of a problem is kept as it is. Where no answer has a number, it is the first one.
    """
    chosen = []
    for group in by_problem(records):
        answers = [record["rules"][VOTING_RULE]["extracted"] for record in group]
        winner = majority(answers)
        record = dict(group[answers.index(winner)])
        chosen.append(record | {"votes": answers.count(winner) if winner else 0} if len(group) > 1 else record)
    return chosen


def sample_summary(records: Sequence[Record]) -> dict[str, Any]:
    """maj@K under the voting rule and pass@1 to pass@K under the headline rules; nothing for one answer a problem."""
    groups = by_problem(records)
    num_samples = len(records) // len(groups)
    if num_samples == 1:
        return {}
    right = sum(record["rules"][VOTING_RULE]["correct"] for record in voted(records))
    vote = {"rule": VOTING_RULE, "correct": right, "accuracy": right / len(groups)}
    return {
        "answers": len(records),
        "majority": vote | {"interval": list(wilson(right, len(groups)))},
        "pass_at_k": {name: _passes([_num_correct(group, name) for group in groups], num_samples) for name in HEADLINE},
    }


def _passes(correct: Sequence[int], num_samples: int) -> dict[str, float]:
    """pass@k for each k, the mean over the problems."""
    counts = Counter(correct)
    return {
        str(k): sum(times * pass_at_k(num_samples, c, k) for c, times in counts.items()) / len(correct)
        for k in range(1, num_samples + 1)
    }


def sample_table(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]] | None:
    """Columns and rows for the terminal, or None for one answer a problem: powers of two as k, and the last."""
    if "pass_at_k" not in found:
        return None
    last = max(map(int, found["pass_at_k"][HEADLINE[0]]))
    shown = sorted({2**power for power in range(last.bit_length())} | {last})
    rows = [[f"pass@{k}", *(percent(found["pass_at_k"][name][str(k)]) for name in HEADLINE)] for k in shown]
    vote = percent(found["majority"]["accuracy"])
    rows.append([f"maj@{last}", *(vote if name == VOTING_RULE else "-" for name in HEADLINE)])
    return [f"{last} samples", *HEADLINE], rows


# --- two rules ------------------------------------------------------------------------------------------------


def splits(records: Sequence[Record]) -> Splits:
    """[{"right": rules, "wrong": rules, "rows": names}], the most frequent first; rows without dissent are left out."""
    found: dict[tuple[bool, ...], list[Any]] = {}
    names = rules_of(records)
    for record in records:
        verdicts = tuple(bool(record["rules"][name]["correct"]) for name in names)
        if any(verdicts) and not all(verdicts):
            found.setdefault(verdicts, []).append(record["row"] if "row" in record else record["id"])
    return [
        {
            "right": [name for name, correct in zip(names, verdicts, strict=True) if correct],
            "wrong": [name for name, correct in zip(names, verdicts, strict=True) if not correct],
            "rows": rows,
        }
        for verdicts, rows in sorted(found.items(), key=lambda item: -len(item[1]))
    ]


def matrix(names: Sequence[str], found: Splits) -> Counts:
    """[a][b]: how many rows rule a calls right and rule b wrong."""
    return {right: {wrong: len(rows_behind(found, right, wrong)) for wrong in names} for right in names}


def rows_behind(found: Splits, right: str, wrong: str) -> list[Any]:
    """The rows that one rule calls right and the other wrong."""
    return [row for split in found if right in split["right"] and wrong in split["wrong"] for row in split["rows"]]


def disagreement_summary(records: Sequence[Record]) -> dict[str, Any]:
    """{"disagreements": the matrix, "disagreement_rows": the splits}: what eval and grade write."""
    found = splits(records)
    return {"disagreements": matrix(rules_of(records), found), "disagreement_rows": found}


def disagreement_table(counts: Counts, room: int | None = None) -> tuple[list[str], list[list[str]]]:
    """Columns and rows for the terminal: rules by name where that fits in 80 columns, or in `room`, else by number."""
    names = list(counts)
    cells = [["-" if right == wrong else str(counts[right][wrong]) for wrong in names] for right in names]
    columns, labels = names, names
    widest = max(len(cell) for row in cells for cell in row)
    if max(map(len, names)) + sum(2 + max(len(name), widest) for name in names) > min(room or WIDTH, WIDTH):
        columns = [str(number) for number in range(1, len(names) + 1)]
        labels = [f"{number} {name}" for number, name in zip(columns, names, strict=True)]
    return ["", *columns], [[label, *row] for label, row in zip(labels, cells, strict=True)]


def agreed(counts: Counts) -> bool:
    """No row is judged differently by any two rules."""
    return not any(count for row in counts.values() for count in row.values())
