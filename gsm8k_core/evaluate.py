"""Problems + a `generate` function -> a record per problem -> accuracy under every rule.

Records are appended as completions finish. A stopped evaluation goes on where it was, a finished one is
reused; both only under the same key.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gsm8k_core import disagreements
from gsm8k_core.answers import RULES, grade
from gsm8k_core.folders import write_json
from gsm8k_core.stats import wilson
from gsm8k_core.types import Completion, DataError, Problem, StorageError

Generate = Callable[[Sequence[Problem]], Iterator[tuple[int, Completion, str]]]
HEADLINE_RULE = "flexible"  # the rule of the paired test


@dataclass(frozen=True, slots=True)
class Key:
    """What decides the completions; an evaluation is reused only where all of it is the same."""

    model: str  # folder hash
    data: str  # problems_hash
    prompt: str
    max_new_tokens: int
    backend: str
    device: str
    dtype: str
    code: str  # runs.code_hash
    versions: str  # of the frameworks

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def problems_hash(problems: Sequence[Problem]) -> str:
    """sha256 over ids, questions and answers, in order."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(json.dumps([problem.id, problem.question, problem.answer]).encode())
    return digest.hexdigest()


def make_record(problem: Problem, completion: Completion, text: str) -> dict[str, Any]:
    """One line of records.jsonl."""
    rules = {name: asdict(verdict) for name, verdict in grade(text, problem.answer).items()}
    return {
        "id": problem.id,
        "question": problem.question,
        "gold": problem.gold,
        "answer": problem.answer,
        "template": problem.template,
        "completion": text,
        "rules": rules,
        "tokens": len(completion.tokens),
        "finish_reason": completion.finish_reason,
    }


def _read_records(path: Path, wanted: frozenset[str]) -> dict[str, dict[str, Any]]:
    """Finished records by id. A last line that a kill cut short is cut off the file."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    records = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            record = json.loads(line)
            if record["id"] in wanted:
                records[record["id"]] = record
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}:{number}: damaged record; remove the file to evaluate again") from error
    return records


def evaluate(
    problems: Sequence[Problem],
    generate: Generate,
    key: Key,
    logs: Path,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[list[dict[str, Any]], Path, int]:
    """Records in the order of `problems`, their file, and how many of them were there before."""
    folder = logs / f"eval-{key.digest()[:12]}"
    path = folder / "records.jsonl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "key.json", asdict(key))
        records = _read_records(path, frozenset(problem.id for problem in problems))
        reused = len(records)
        left = [problem for problem in problems if problem.id not in records]
        with path.open("a", encoding="utf-8") as file:
            for index, completion, text in generate(left) if left else ():
                record = make_record(left[index], completion, text)
                file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
                file.flush()
                records[record["id"]] = record
                progress(len(records))
    except OSError as error:
        raise StorageError(f"{folder} cannot be written ({error.strerror}); give another --output-dir") from error
    return [records[problem.id] for problem in problems], path, reused


def _rates(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, object]]:
    scores: dict[str, dict[str, object]] = {}
    for name in RULES:
        correct = sum(record["rules"][name]["correct"] for record in records)
        low, high = wilson(correct, len(records))
        scores[name] = {"correct": correct, "accuracy": correct / len(records), "interval": [low, high]}
    return scores


def summarise(records: Sequence[Mapping[str, Any]], held_out: frozenset[str]) -> dict[str, Any]:
    """Counts and accuracies, also apart for problems from templates that training never shows."""
    summary: dict[str, Any] = {
        "n": len(records),
        "rules": _rates(records),
        "stopped": sum(record["finish_reason"] == "stop" for record in records),
        "cut": sum(record["finish_reason"] == "length" for record in records),
        "no_answer": sum(record["rules"]["robust"]["extracted"] is None for record in records),
        "mean_tokens": sum(record["tokens"] for record in records) / len(records),
        **disagreements.summary(records),
    }
    apart = [record for record in records if record["template"] in held_out]
    if apart:
        summary["held_out_templates"] = {"n": len(apart), "rules": _rates(apart)}
    return summary
