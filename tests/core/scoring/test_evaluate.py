"""Evaluation over a fake `generate`: records, resuming, reuse, and the paired comparison."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gsm8k_core.report.comparison import make_comparison, verdict
from gsm8k_core.scoring.evaluate import Generate, Key, Request, begun, calculated, completion_of, summarise
from gsm8k_core.scoring.evaluate import evaluate as evaluate_with
from gsm8k_core.types import Completion, DataError, Problem, StorageError

PROBLEMS = [Problem(f"test-{n}", f"what is {n}?", f"so {n}\n#### {n}", str(n)) for n in range(6)]
KEY = Key("hash", "data", "prompt", 64, 8, "fake", "cpu", "float32", "code", "versions")


class Model:
    """Answers right up to a number, and counts what it was asked."""

    def __init__(self, right_below: int = 99, dies_after: int = 99) -> None:
        self.right_below, self.dies_after, self.asked = right_below, dies_after, 0

    def __call__(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        for index in reversed(range(len(requests))):
            if self.asked == self.dies_after:
                raise KeyboardInterrupt
            self.asked += 1
            gold = int(requests[index].problem.gold) + requests[index].sample % 3  # of three samples, one is right
            yield index, Completion((1, gold if gold < self.right_below else gold + 1), "stop")


def decode(tokens: Sequence[int]) -> str:
    return f"#### {tokens[1]}"


def evaluate(problems: Sequence[Problem], generate: Generate, key: Key, logs: Path, **more: Any) -> Any:
    return evaluate_with(problems, generate, decode, key, logs, **more)


def test_records_come_back_in_the_order_of_the_problems(tmp_path: Path) -> None:
    records, path, reused = evaluate(PROBLEMS, Model(right_below=4), KEY, tmp_path)
    assert [record["id"] for record in records] == [problem.id for problem in PROBLEMS]
    assert [record["rules"]["strict"]["correct"] for record in records] == [True] * 4 + [False] * 2
    assert (reused, len(path.read_text().splitlines())) == (0, 6)


def test_what_the_calculator_wrote_is_counted_and_no_answer_without_it_is_reused(tmp_path: Path) -> None:
    def forcing(requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        for index in range(len(requests)):
            places = ((1, 2, 5), (), (0,))[index % 3]
            yield index, Completion((1, 2, 3, 4, 5, 6), "stop", end_token=9, forced=places)

    evaluate(PROBLEMS, Model(), KEY, tmp_path)
    key = replace(KEY, calculator=True)
    records, _, reused = evaluate(PROBLEMS, forcing, key, tmp_path)
    assert (reused, calculated(records)) == (0, {"results": 6, "answers": 4, "of": 6})
    assert completion_of(records[0]) == Completion((1, 2, 3, 4, 5, 6), "stop", 9, (1, 2, 5))
    again, path, reused = evaluate(PROBLEMS, Model(), key, tmp_path)
    assert (reused, again) == (6, records)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {"forced": [6]}) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"records\.jsonl:1: damaged record"):
        evaluate(PROBLEMS, Model(), key, tmp_path)


def test_a_killed_evaluation_goes_on_and_ends_with_the_same_score(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        evaluate(PROBLEMS, Model(dies_after=4), KEY, tmp_path)
    path = next(tmp_path.glob("*/records.jsonl"))
    path.write_bytes(path.read_bytes()[:-5])  # the kill tore the last line
    model = Model()
    records, _, reused = evaluate(PROBLEMS, model, KEY, tmp_path)
    assert (reused, model.asked) == (3, 3)
    assert records == evaluate(PROBLEMS, Model(), KEY, tmp_path / "whole")[0]


def test_a_killed_sampled_evaluation_goes_on_in_the_midst_of_a_problem(tmp_path: Path) -> None:
    key = replace(KEY, samples=4, temperature=1.0)
    with pytest.raises(KeyboardInterrupt):
        evaluate(PROBLEMS, Model(dies_after=10), key, tmp_path)
    model = Model()
    records, _, reused = evaluate(PROBLEMS, model, key, tmp_path)
    assert (reused, model.asked) == (10, 14)
    assert [(record["id"], record["sample"]) for record in records[:5]] == [
        *(("test-0", n) for n in range(4)),
        ("test-1", 0),
    ]
    assert records == evaluate(PROBLEMS, Model(), key, tmp_path / "whole")[0]


def test_a_second_evaluation_of_the_same_key_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    class Meddled(Model):
        def __call__(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
            with pytest.raises(StorageError, match="in use by another evaluation"):
                evaluate(PROBLEMS, Model(), KEY, tmp_path)
            evaluate(PROBLEMS, Model(), replace(KEY, model="other"), tmp_path)
            yield from super().__call__(requests)

    _, path, reused = evaluate(PROBLEMS, Meddled(), KEY, tmp_path)
    assert (reused, len(path.read_text().splitlines())) == (0, 6)
    assert evaluate(PROBLEMS, Model(), KEY, tmp_path)[2] == 6


@pytest.mark.parametrize(
    ("there", "fit", "chosen"),
    [
        ({}, 128, None),
        ({512: 0}, 512, None),  # it ran out of memory, and left a file without an answer
        ({512: 0, 128: 6}, 512, 128),
        ({512: 0, 128: 2}, 512, 128),
        ({512: 2, 128: 6}, 512, 128),  # nothing is left to answer
        ({512: 6, 128: 2}, 128, 512),
        ({512: 2}, 128, None),  # it would not fit now
        ({512: 2, 64: 2}, 128, 64),
        ({512: 2, 128: 2}, 512, 512),
        ({512: 6, 128: 6}, 128, 128),
    ],
)
def test_the_size_of_an_evaluation_that_is_there(
    tmp_path: Path, there: dict[int, int], fit: int, chosen: int | None
) -> None:
    for size, answers in there.items():
        with suppress(KeyboardInterrupt):
            evaluate(PROBLEMS, Model(dies_after=answers), replace(KEY, batch_size=size), tmp_path)
    found = begun(replace(KEY, batch_size=fit), tmp_path, (fit, 512, 256, 128, 64), len(PROBLEMS))
    assert (found.batch_size if found else None) == chosen


def test_a_record_holds_the_tokens(tmp_path: Path) -> None:
    records, _, _ = evaluate(PROBLEMS[:1], Model(), KEY, tmp_path)
    assert completion_of(records[0]) == Completion((1, 0), "stop")


def test_a_finished_evaluation_is_not_asked_again(tmp_path: Path) -> None:
    evaluate(PROBLEMS, Model(), KEY, tmp_path)
    model, told = Model(), list[int]()
    _, _, reused = evaluate(PROBLEMS, model, KEY, tmp_path, progress=lambda done, right: told.append(done))
    assert (reused, model.asked) == (6, 0)
    assert told == [6]  # or a bar would stand at 0 of 6


def meddle(path: Path, **changes: Any) -> None:
    """Has every record say something else."""
    records = [json.loads(line) | changes for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_what_a_reused_record_says_is_not_believed(tmp_path: Path) -> None:
    first, path, _ = evaluate(PROBLEMS, Model(right_below=2), KEY, tmp_path)
    before, said = path.read_bytes(), []
    right = {name: verdict | {"correct": True} for name, verdict in first[0]["rules"].items()}
    meddle(path, rules=right, completion="#### 5", gold="5", tokens=99, diagnosis={})
    records, _, reused = evaluate(PROBLEMS, Model(), KEY, tmp_path, say=said.append)
    assert (records, reused, path.read_bytes()) == (first, 6, before)
    assert said == [f"records  6 of 6 in {path} said otherwise than their tokens do; they were graded again"]
    assert evaluate(PROBLEMS, Model(), KEY, tmp_path, say=said.append)[0] == first
    assert len(said) == 1


@pytest.mark.parametrize(
    "changes",
    [{"token_ids": "1"}, {"token_ids": [1.5]}, {"token_ids": [-1, 2]}, {"finish_reason": "won"}],
)
def test_tokens_that_are_none_are_a_damaged_record(tmp_path: Path, changes: dict[str, Any]) -> None:
    _, path, _ = evaluate(PROBLEMS, Model(), KEY, tmp_path)
    meddle(path, **changes)
    said = rf"records\.jsonl:1: {next(iter(changes))}.*; remove the file to evaluate again"
    with pytest.raises(DataError, match=said):
        evaluate(PROBLEMS, Model(), KEY, tmp_path)


@pytest.mark.parametrize("field", list(Key.__slots__))
def test_anything_else_in_the_key_is_asked_again(tmp_path: Path, field: str) -> None:
    evaluate(PROBLEMS, Model(), KEY, tmp_path)
    other = replace(KEY, **{field: "other" if isinstance(getattr(KEY, field), str) else 3})
    assert evaluate(PROBLEMS, Model(), other, tmp_path)[2] == 0


def test_the_summary_counts_endings_and_holds_intervals(tmp_path: Path) -> None:
    records, _, _ = evaluate(PROBLEMS, Model(right_below=3), KEY, tmp_path)
    records[0] |= {"finish_reason": "length", "template": "kept"}
    summary = summarise(records, frozenset({"kept"}))
    assert (summary["n"], summary["stopped"], summary["cut"], summary["no_answer"]) == (6, 5, 1, 0)
    assert summary["rules"]["strict"]["accuracy"] == 0.5
    low, high = summary["rules"]["strict"]["interval"]
    assert 0 < low < 0.5 < high < 1
    assert summary["held_out_templates"]["n"] == 1


def test_the_comparison_counts_wins_and_losses_by_problem(tmp_path: Path) -> None:
    base, _, _ = evaluate(PROBLEMS, Model(right_below=2), KEY, tmp_path)
    trained, _, _ = evaluate(PROBLEMS, Model(right_below=5), replace(KEY, model="b"), tmp_path)
    made = make_comparison(summarise(base, frozenset()), summarise(trained, frozenset()), base, trained)
    assert made["paired"] == made["paired"] | {"rule": "flexible", "won": 3, "lost": 0, "p": 0.25}
    assert verdict(made) == "not distinguishable at n = 6: 3 won, 0 lost, p = 0.25 by the flexible rule"
    json.dumps(made, allow_nan=False)
