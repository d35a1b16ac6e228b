"""The answers of a round on disk: one line each, written as it ends, judged anew when it is read until all are there.

RUN/rollouts/round-1/
    key.json         what decides the answers: the weights that gave them, the problems, how they were drawn
    records.jsonl    one answer a line, in the order in which they ended
    selected.jsonl   the answers that are kept, of all rounds so far; written when the round has been sampled
    round.json       its counts (tally.py); its being there says that no answer is to follow

Of a line that is read again only what was drawn is believed: the text is decoded and the verdict made anew. Of a round
that is done the verdict is believed as well, and what was kept: a later version may judge otherwise, or take other
equations for the same, and what was trained on stays what it was. Its equations are read anew, as the human answers'
are: the two are only compared in what a later round keeps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from gsm8k_core.config.stored import Count, Seconds, Stored, stored
from gsm8k_core.files import MAX_LINES_BYTES, read_plain, write_bytes
from gsm8k_core.rollouts.wave import Ask
from gsm8k_core.scoring.evaluate import StoredAnswer, drawn
from gsm8k_core.scoring.thinking import split
from gsm8k_core.scoring.verify import Mode, Verification, verify
from gsm8k_core.types import Completion, DataError, Problem, StorageError

KEY, RECORDS, SELECTED, ROUND = "key.json", "records.jsonl", "selected.jsonl", "round.json"
AGAIN = "remove its folder to sample that round again"
BACK = "bring the file back, or start a new run"  # of a round that is closed: its weights may be gone


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled answer, judged."""

    problem: Problem
    sample: int
    completion: Completion
    text: str
    seconds: float  # of the whole run, when it ended
    verdict: Verification  # with its steps

    @property
    def ask(self) -> Ask:
        """The request that it answers."""
        return Ask(self.problem.id, self.sample)

    def verified(self, mode: Mode) -> bool:
        """Whether it may be trained on; `gold`: whatever its steps are."""
        return self.verdict.verified if mode == "steps" else self.verdict.gold_right

    def refusal(self, mode: Mode) -> str:
        """Why not, in plain words; nothing where it may be."""
        return "" if self.verified(mode) else self.verdict.reason

    @property
    def wrong_step(self) -> bool:
        """Whether its number is right and one of its steps is not."""
        return self.verdict.gold_right and any(not claim.right for claim in self.verdict.claims)

    @property
    def chain(self) -> tuple[str, ...]:
        """See chain_of."""
        return chain_of(self.verdict, self.text)


class _Line(StoredAnswer):
    """What of a line of records.jsonl is used again."""

    seconds: Seconds

    @property
    def said_right(self) -> bool:
        """Whether it is believed that the answer may be trained on."""
        return False

    def settled(self, rollout: Rollout) -> Rollout:
        """The answer as it was judged now."""
        return rollout


class _Judged(_Line):
    """The same of a round that is done."""

    verified: bool | None = None
    reason: str | None = None
    gold_right: bool | None = None

    @property
    def said_right(self) -> bool:
        return bool(self.verified or self.gold_right)

    def settled(self, rollout: Rollout) -> Rollout:
        """The answer with the verdict of its line, where that has one."""
        if self.verified is None or self.reason is None or self.gold_right is None:
            return rollout
        found = replace(rollout.verdict, verified=self.verified, reason=self.reason, gold_right=self.gold_right)
        return replace(rollout, verdict=found)


class _Selected(Stored):
    """A line of selected.jsonl."""

    id: str
    sample: Count


class _Key(Stored):
    """key.json."""

    weights: str
    data: str
    tokenizer: str
    prompt: str
    temperature: float
    max_new_tokens: Count
    samples: Count
    seed: int
    calculator: bool


Decode = Callable[[Sequence[int]], str]


def chain_of(verdict: Verification, text: str) -> tuple[str, ...]:
    """An answer's equations, by which two are one; of an answer without any, its words."""
    return verdict.chain or (" ".join(text.split()),)


def judged(problem: Problem, sample: int, completion: Completion, decode: Decode, seconds: float) -> Rollout:
    """An answer with its text and its verdict."""
    text = decode(completion.tokens)
    verdict = verify(split(text).answer, completion.finish_reason, problem.answer)
    return Rollout(problem, sample, completion, text, seconds, verdict)


def as_line(rollout: Rollout, mode: Mode, **more: object) -> bytes:
    """A line of records.jsonl; what a person reads, and what is used again. `more` is written as well."""
    completion, verdict = rollout.completion, rollout.verdict
    values = {
        "id": rollout.problem.id,
        "sample": rollout.sample,
        "question": rollout.problem.question,
        "gold": rollout.problem.gold,
        "completion": rollout.text,
        "verified": rollout.verified(mode),
        "reason": rollout.refusal(mode),
        "gold_right": verdict.gold_right,
        "chain": list(verdict.chain),
        **drawn(completion),
        "seconds": round(rollout.seconds, 3),
        **more,
    }
    return (json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "backslashreplace")


def content_of(path: Path) -> bytes:
    """All of a file of a round. Raises FileNotFoundError, and StorageError where the system does not give it."""
    try:
        return read_plain(path, MAX_LINES_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror}); check the disk and its rights") from error


def read_key(path: Path, advice: str) -> dict[str, Any] | None:
    """key.json; None where there is none. Raises DataError with `advice`, and StorageError."""
    try:
        return stored(_Key, json.loads(content_of(path)), path, advice).model_dump()
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        raise DataError(f"{path} is damaged; {advice}") from None


def read_records(
    path: Path, problems: Mapping[str, Problem], decode: Decode, vocabulary: int, done: bool = False
) -> list[Rollout]:
    """The answers of a round, in the order in which they ended; a torn last line is left out.

    `done`: no answer is to follow, and each is kept or not as its line says. Raises DataError for a line that no run
    writes: of an unknown problem, a token that the model does not have. Raises StorageError for a file that the system
    does not give.
    """
    try:
        content = content_of(path)
    except FileNotFoundError:
        content = b""
    whole = content[: content.rfind(b"\n") + 1]
    found: dict[Ask, Rollout] = {}
    kind, advice = (_Judged, BACK) if done else (_Line, AGAIN)
    for number, line in enumerate(whole.splitlines(), start=1):
        where = f"{path}:{number}"
        try:
            row = stored(kind, json.loads(line), where, advice)
            completion = _completion_of(row, problems, vocabulary)
        except (ValueError, RecursionError) as error:
            why = str(error) if isinstance(error, _Unwritten) else "damaged record"
            raise DataError(f"{where}: {why}; {advice}") from None
        rollout = row.settled(judged(problems[row.id], row.sample, completion, decode, row.seconds))
        if rollout.ask in found:
            raise DataError(f"{where}: {row.id}, sample {row.sample} is there twice; {advice}")
        found[rollout.ask] = rollout
    return list(found.values())


def read_selected(path: Path, answers: Iterable[Rollout]) -> dict[str, list[Rollout]]:
    """Those of `answers` that a round which is done says are kept, by problem, in the order in which they were taken.

    Raises DataError where it is gone, or names an answer that is not there, twice, or without an end.
    """
    try:
        lines = content_of(path).splitlines()
    except FileNotFoundError:
        raise DataError(f"{path} is gone; {BACK}") from None
    left = {each.ask: each for each in answers if each.completion.end_token is not None}
    found: dict[str, list[Rollout]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = stored(_Selected, json.loads(line), f"{path}:{number}", BACK)
        except (ValueError, RecursionError):
            raise DataError(f"{path}:{number}: damaged record; {BACK}") from None
        kept = left.pop(Ask(row.id, row.sample), None)
        if kept is None:
            raise DataError(f"{path}:{number}: {_short(row.id)}, sample {row.sample} cannot be kept (again); {BACK}")
        found.setdefault(row.id, []).append(kept)
    return found


def last_seconds(path: Path) -> float:
    """When the last answer ended, in seconds of the run; 0 where there is none that can be read."""
    try:
        lines = content_of(path).splitlines()
    except FileNotFoundError:
        return 0.0
    for line in reversed(lines):
        try:
            return stored(_Line, json.loads(line), path, AGAIN).seconds
        except (ValueError, RecursionError, DataError):
            continue  # torn, where a kill came; a damaged one is said when the round is read
    return 0.0


SHOWN = 60  # characters of a value that does not fit


class _Unwritten(ValueError):
    """A record of the right types that no run writes."""


def _short(value: object) -> str:
    """As much of a stranger's value as a line has room for."""
    text = repr(value)  # a line end is written out
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _completion_of(row: _Line, problems: Mapping[str, Problem], vocabulary: int) -> Completion:
    if row.id not in problems:
        raise _Unwritten(f"{_short(row.id)} is no problem of this run")
    try:
        completion = row.completion
    except ValueError as error:
        raise _Unwritten(str(error)) from None
    if (highest := max(completion.ids, default=0)) >= vocabulary:
        raise _Unwritten(f"token {_short(highest)}, and the model knows only {vocabulary}")
    if row.finish_reason == "stop" and row.end_token is None:
        raise _Unwritten("finish_reason is stop, and there is no end token")
    if row.said_right and row.finish_reason != "stop":
        raise _Unwritten(f"verified or gold_right, and finish_reason is {row.finish_reason}")
    return completion


class Appender:
    """records.jsonl, open at its end: an answer is on the disk's way before the next one is asked about."""

    def __init__(self, path: Path, kept: Iterable[Rollout], mode: Callable[[], Mode]) -> None:
        """Begins with `kept`, and nothing else. `mode`: by what an answer is verified when it is written.

        Raises StorageError.
        """
        content = b"".join(as_line(each, mode()) for each in kept)
        if not path.exists() or read_plain(path, MAX_LINES_BYTES) != content:
            write_bytes(path, content)
        self._path, self._mode = path, mode
        try:
            self._file: IO[bytes] = path.open("ab")
        except OSError as error:
            raise _not_written(path, error) from error

    def __call__(self, rollout: Rollout) -> None:
        try:
            self._file.write(as_line(rollout, self._mode()))
            self._file.flush()
        except OSError as error:
            raise _not_written(self._path, error) from error

    def close(self) -> None:
        """Each line was flushed when it was written; one that could not be is tried once more."""
        try:
            self._file.close()
        except OSError as error:
            raise _not_written(self._path, error) from error


def _not_written(path: Path, error: OSError) -> StorageError:
    return StorageError(f"{path} cannot be written ({error.strerror}); free some space, then --resume the run")
