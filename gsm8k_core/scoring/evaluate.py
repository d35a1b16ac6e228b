"""Problems + a `generate` function -> a record per answer -> accuracy under every rule.

Records are appended as completions finish. A stopped evaluation goes on where it was, a finished one is
reused; both only under the same key. Of a record that is reused only the tokens are believed, and which of them the
calculator wrote: they are decoded and graded again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import pydantic
from filelock import FileLock, Timeout

from gsm8k_core.config.stored import Count, Stored, stored
from gsm8k_core.files import (
    MAX_LINES_BYTES,
    read_json,
    read_plain,
    refuse_links,
    remove_leftovers,
    write_bytes,
    write_json,
)
from gsm8k_core.scoring import tallies
from gsm8k_core.scoring.answers import HEADLINE_RULE, RULES_HERE, grade
from gsm8k_core.scoring.diagnose import diagnosis_json
from gsm8k_core.scoring.sampling import noise_key
from gsm8k_core.scoring.thinking import count_tokens, split
from gsm8k_core.types import Completion, DataError, FinishReason, Problem, StorageError

STOP_RULE = "end-tokens"  # an answer ends before the first of ModelFolder.end_ids, and at no text
ANSWER_LINE = "answer-line"  # or after its whole `#### N` line
RECORDS = "records.jsonl"
WRITTEN = re.compile(r"records\.jsonl|(key|summary)\.json|report\.html")  # under a temporary name first
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Request:
    """One answer that is wanted: the problem, and which of its samples."""

    problem: Problem
    sample: int

    @property
    def key(self) -> int:
        """Of its noise: the same whatever else is asked, in whatever order."""
        return noise_key(self.problem.id, self.sample)


Generate = Callable[[Sequence[Request]], Iterator[tuple[int, Completion]]]
Decode = Callable[[Sequence[int]], str]
Name = tuple[str, int]  # problem id, sample
TokenId = Annotated[int, pydantic.Field(ge=0, lt=1 << 31)]


@dataclass(frozen=True, slots=True)
class Key:
    """What decides the completions; an evaluation is reused only where all of it is the same."""

    model: str  # folder hash
    data: str  # problems_hash
    prompt: str  # prompts.Shots.prompt_name, of the rendering's own
    max_new_tokens: int
    batch_size: int  # rounding differs between sizes, and in bfloat16 that changes texts
    backend: str
    device: str
    dtype: str
    code: str  # runs.code_hash
    versions: str  # of the frameworks
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0  # of the noise
    samples: int = 1
    stop: str = STOP_RULE
    calculator: bool = False
    rules: str = RULES_HERE  # they decide no text, but what is said of it

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def problems_hash(problems: Sequence[Problem]) -> str:
    """sha256 over ids, questions and answers, in order."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(json.dumps([problem.id, problem.question, problem.answer]).encode())
    return digest.hexdigest()


def make_record(
    problem: Problem, completion: Completion, text: str, sample: int = 0, decode: Decode | None = None
) -> dict[str, Any]:
    """One line of records.jsonl: what was asked and answered, what each rule read, what went wrong.

    `decode` made the text; with it, the tokens of a thought are counted.
    """
    rules = {name: asdict(verdict) for name, verdict in grade(text, problem.answer).items()}
    record = {
        "id": problem.id,
        "sample": sample,
        "question": problem.question,
        "gold": problem.gold,
        "answer": problem.answer,
        "template": problem.template,
        "completion": text,
        "rules": rules,
        "tokens": len(completion.tokens),
        **drawn(completion),
    }
    if decode is not None and (thought := split(text)).end:
        record["thought"] = {"tokens": count_tokens(completion.tokens, thought.end, decode), "closed": thought.closed}
    return record | {"diagnosis": diagnosis_json(record)}


def drawn(completion: Completion) -> dict[str, Any]:
    """What is kept of an answer, to be used again: see StoredAnswer. Its text and verdict are made anew of it."""
    return {
        "token_ids": list(completion.tokens),
        "finish_reason": completion.finish_reason,
        "end_token": completion.end_token,
        "forced": list(completion.forced),
    }


def completion_of(record: Mapping[str, Any]) -> Completion:
    """What was generated for a record."""
    return Completion(tuple(record["token_ids"]), record["finish_reason"], record["end_token"], tuple(record["forced"]))


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The folder's lock: of two processes in one file, one would cut off the line that the other is writing."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise StorageError(
            f"{folder} is in use by another evaluation of the same model, problems and settings; "
            "wait for it and run this again (its answers are then reused), or give another --output-dir"
        ) from None
    try:
        yield
    finally:
        lock.release()


class StoredAnswer(Stored):
    """What of a line of records.jsonl is used again."""

    id: str
    sample: Count
    token_ids: list[TokenId]
    finish_reason: FinishReason
    end_token: TokenId | None
    forced: list[Count]

    @property
    def completion(self) -> Completion:
        """Raises ValueError for forced places that the answer does not have, or that are not in order."""
        if self.forced != sorted(set(self.forced)) or max(self.forced, default=-1) >= len(self.token_ids):
            raise ValueError("forced places that the answer does not have")
        return Completion(tuple(self.token_ids), self.finish_reason, self.end_token, tuple(self.forced))


def _read_records(path: Path, wanted: Mapping[Name, Request], decode: Decode, say: Say) -> dict[Name, dict[str, Any]]:
    """Finished records by name, graded again; the file is made to say the same. A torn last line is cut off it."""
    content = read_plain(path, MAX_LINES_BYTES) if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    records: dict[Name, dict[str, Any]] = {}
    lines, changed = [], 0
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = json.loads(line)
            kept = stored(StoredAnswer, row, f"{path}:{number}", "remove the file to evaluate again")
            request = wanted.get((kept.id, kept.sample))
            if request is not None:
                completion = kept.completion
                record = make_record(request.problem, completion, decode(completion.tokens), request.sample, decode)
                changed += record != row
                records[request.problem.id, request.sample] = record
        except (ValueError, OverflowError, RecursionError) as error:  # a token number that no tokenizer has, too
            raise DataError(f"{path}:{number}: damaged record; remove the file to evaluate again") from error
        lines.append(line + b"\n" if request is None else _line(record))
    if changed:
        say(f"records  {changed} of {len(lines)} in {path} said otherwise than their tokens do; they were graded again")
    if changed or len(whole) < len(content):
        write_bytes(path, b"".join(lines))
    return records


def _line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "backslashreplace")


def records_of(key: Key, logs: Path) -> Path:
    """Where the answers under a key are."""
    return logs / f"eval-{key.digest()[:12]}" / RECORDS


def begun(key: Key, logs: Path, sizes: Sequence[int], wanted: int) -> Key | None:
    """The same with the batch size of an evaluation that is there: one with all `wanted` answers, else one with some.

    The first of `sizes` that is. `key` has the most that fit now: a larger one is read, and never gone on with.
    """
    keys = [(replace(key, batch_size=size), _num_lines(replace(key, batch_size=size), logs)) for size in sizes]
    whole = (each for each, lines in keys if lines >= wanted)
    some = (each for each, lines in keys if lines and each.batch_size <= key.batch_size)
    return next(whole, None) or next(some, None)


def answered_before(logs: Path, model: str, data: str) -> bool:
    """Whether some of a model's answers to these problems lie there, under whatever other settings."""
    for path in logs.glob("eval-*/key.json"):
        with suppress(DataError, OSError):  # of a key or records that are gone, nothing is reused
            key = read_json(path)
            if (key.get("model"), key.get("data")) == (model, data) and (path.parent / RECORDS).stat().st_size:
                return True
    return False


def _num_lines(key: Key, logs: Path) -> int:
    """How many answers are there under a key; the file is made before the first."""
    path = records_of(key, logs)
    return read_plain(path, MAX_LINES_BYTES).count(b"\n") if path.is_file() else 0


def evaluate(
    problems: Sequence[Problem],
    generate: Generate,
    decode: Decode,
    key: Key,
    logs: Path,
    progress: Callable[[int, int], None] = lambda done, right: None,
    say: Say = lambda line: None,
) -> tuple[list[dict[str, Any]], Path, int]:
    """Records in the order of `problems`, each's samples together; their file; how many were there before."""
    path = records_of(key, logs)
    folder = path.parent
    requests = {(problem.id, sample): Request(problem, sample) for problem in problems for sample in range(key.samples)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        refuse_links(folder, path, folder / ".lock")
        with _held(folder):
            remove_leftovers(folder, WRITTEN)
            write_json(folder / "key.json", asdict(key))
            records = _read_records(path, requests, decode, say)
            reused = len(records)
            num_right = sum(record["rules"][HEADLINE_RULE]["correct"] for record in records.values())
            left = [request for name, request in requests.items() if name not in records]
            if not left:
                progress(len(records), num_right)
            with path.open("ab") as file:
                for index, completion in generate(left) if left else ():
                    text = decode(completion.tokens)
                    record = make_record(left[index].problem, completion, text, left[index].sample, decode)
                    file.write(_line(record))
                    file.flush()
                    records[record["id"], record["sample"]] = record
                    num_right += record["rules"][HEADLINE_RULE]["correct"]
                    progress(len(records), num_right)
    except OSError as error:
        raise StorageError(f"{folder} cannot be written ({error.strerror}); give another --output-dir") from error
    return [records[name] for name in requests], path, reused


def calculated(records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """What the calculator did: in how many answers it wrote a result, and how many results."""
    counts = [completion_of(record).num_forced_runs for record in records]
    return {"results": sum(counts), "answers": sum(map(bool, counts)), "of": len(records)}


def thoughts(records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """In how many answers there was one, with how many tokens on average, and how many were never closed."""
    found = [record["thought"] for record in records if "thought" in record]
    if not found:
        return None
    tokens = sum(thought["tokens"] for thought in found) / len(found)
    return {"answers": len(found), "mean_tokens": tokens, "unclosed": sum(not each["closed"] for each in found)}


def summarise(records: Sequence[Mapping[str, Any]], held_out: frozenset[str]) -> dict[str, Any]:
    """Counts and accuracies, also apart for problems from templates that training never shows.

    `n` counts problems; with several samples all other counts are over the answers, and an accuracy is their mean.
    """
    n = len(tallies.by_problem(records))
    # A row behind a disagreement is one answer.
    named = records if n == len(records) else [{**each, "row": f"{each['id']}/{each['sample']}"} for each in records]
    summary: dict[str, Any] = {
        "n": n,
        "samples": len(records) // n,
        "rules": tallies.rates(records),
        "stopped": sum(record["finish_reason"] == "stop" for record in records),
        "ended_share": sum(record["finish_reason"] == "stop" for record in records) / len(records),
        "cut": sum(record["finish_reason"] == "length" for record in records),
        "at_answer": sum(record["finish_reason"] == "complete" for record in records),
        "no_answer": sum(record["rules"]["robust"]["extracted"] is None for record in records),
        "mean_tokens": sum(record["tokens"] for record in records) / len(records),
        "thoughts": thoughts(records),
        **tallies.sample_summary(records),
        **tallies.disagreement_summary(named),
    }
    apart = [record for record in records if record["template"] in held_out]
    if apart:
        summary["held_out_templates"] = {"n": len(tallies.by_problem(apart)), "rules": tallies.rates(apart)}
    return summary
