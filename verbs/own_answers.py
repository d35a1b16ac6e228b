"""`inspect --run`: how many of a run's own answers were kept or rewarded, why the others were not, and some to read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.text import Text

from gsm8k_core.config.stored import Count, Stored, stored
from gsm8k_core.doing import quiet
from gsm8k_core.files import refuse_links
from gsm8k_core.rollouts import journal
from gsm8k_core.rollouts.progress import POLICY, PROGRESS, ROUNDS, Progress, folder_of
from gsm8k_core.rollouts.record import BACK, RECORDS, SELECTED, chain_of, content_of
from gsm8k_core.scoring.claims import find_claims
from gsm8k_core.scoring.stats import percent
from gsm8k_core.scoring.thinking import split
from gsm8k_core.scoring.verify import Mode, Verification, chain
from gsm8k_core.tracking.terminal import Terminal, clock, printable
from gsm8k_core.training.runs import ROLLOUTS, known_manifest
from gsm8k_core.types import EXIT_OK, DataError, FinishReason, GSM8KError, StorageError, UsageError

WIDTH = 80
MOST_REASONS = 8  # kinds of refusal that are shown; run.json has all
RIGHT, WRONG, KEPT, REFUSED = "green", "bold red", "bold black on green", "bold white on red"


class _Shown(Stored):
    """What of a line of records.jsonl is shown."""

    id: str
    sample: Count
    question: str
    gold: str
    completion: str
    finish_reason: FinishReason
    verified: bool
    reason: str
    gold_right: bool


class _Rewarded(_Shown):
    """A line of one of grpo's rollouts."""

    token_ids: list[Count]
    reward: float
    advantage: float


class _Selected(Stored):
    """A line of selected.jsonl."""

    id: str
    sample: Count
    chain: list[str]


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer with its verdict."""

    row: _Shown
    verdict: Verification
    label: str  # kept, or why not
    kept: bool


def show_run(folder: Path, show: int, terminal: Terminal) -> int:
    """The verb. Raises UsageError for a run without answers of its own, DataError for files that no run writes."""
    manifest = known_manifest(folder)
    progress, rounds = Progress.from_json(manifest.get(PROGRESS)), manifest.get(ROUNDS, [])
    if not rounds and (found := journal.files(folder / ROLLOUTS)):
        return _show_policy(found, folder, Progress.from_json(manifest.get(POLICY)), show, terminal)
    if not rounds:
        raise UsageError(
            f"{folder} holds no answers of the model's own; give the folder of a run of train --recipe rft whose first "
            "round is done, or of --recipe grpo (python cli.py runs lists runs)"
        )
    for name, choice in progress.decisions.items():
        terminal.say(f"{name:<8} {choice.name}: {choice.reason}", WIDTH)
    terminal.say("")
    _table(rounds, terminal)
    _reasons(rounds, terminal)
    judge, left_out = _Judge(progress.mode, _keep(manifest), _with_human(manifest)), list[GSM8KError]()
    for counts in rounds if show else ():
        try:
            _show_round(folder / ROLLOUTS, int(counts["round"]), judge, show, terminal)
        except (DataError, StorageError) as error:
            left_out.append(_leave_out(error, terminal))
    decisions = {name: asdict(choice) for name, choice in progress.decisions.items()}
    reasons = list(map(str, left_out))
    terminal.result({"run": str(folder), "decisions": decisions, "rounds": rounds, "left_out": reasons})
    return EXIT_OK


def _show_policy(found: Sequence[Path], folder: Path, progress: Progress, show: int, terminal: Terminal) -> int:
    """Of a run of --recipe grpo: what its newest rollouts were, and answers of the last one, group by group."""
    refuse_links(folder / ROLLOUTS, *found)
    for name, choice in progress.decisions.items():
        terminal.say(f"{name:<8} {choice.name}: {choice.reason}", WIDTH)
    terminal.say("")
    columns, counts, newest = ["from update", "problems", "mixed", "answers", "rewarded", "cut", "tokens"], [], []
    left_out = list[GSM8KError]()
    for path in found:
        try:
            newest = list(_lines(path, _Rewarded))
        except (DataError, StorageError) as error:
            left_out.append(_leave_out(error, terminal))
            continue
        counts.append({"update": journal.update_of(path), **_counts(newest)})
    if not counts:
        raise left_out[-1]
    terminal.table(columns, [[f"{value:,.0f}" for value in each.values()] for each in counts])
    terminal.say(
        f"mixed: problems whose answers differ in reward, the only ones that are trained; tokens: of an answer. The "
        f"newest {journal.KEPT} rollouts are kept",
        WIDTH,
    )
    coloured = terminal.console.color_system is not None and not terminal.console.no_color
    groups = _groups(newest)
    # A group that says something first; then, those that are all alike.
    for group in sorted(groups, key=lambda group: len({row.reward for row in group}) == 1)[:show]:
        for row in group:
            verdict = _verdict(row, progress.mode)
            label = f"reward {row.reward:g}, advantage {row.advantage:+.2f}"
            label += "" if row.reward else f": {verdict.reason}"
            answer = _Answer(row, verdict, label, kept=bool(row.reward))
            _show(answer, f"update {counts[-1]['update']}", coloured, terminal)
    decisions = {name: asdict(choice) for name, choice in progress.decisions.items()}
    reasons = list(map(str, left_out))
    terminal.result({"run": str(folder), "decisions": decisions, "rollouts": counts, "left_out": reasons})
    return EXIT_OK


def _leave_out(error: GSM8KError, terminal: Terminal) -> GSM8KError:
    """Say of a file that cannot be shown why, so that the others are."""
    terminal.say(f"left out {error}", WIDTH)
    return error


def _groups(rows: Sequence[_Rewarded]) -> list[list[_Rewarded]]:
    """The answers to each problem, in the order in which they were asked."""
    groups: dict[str, list[_Rewarded]] = {}
    for row in rows:
        groups.setdefault(row.id, []).append(row)
    return list(groups.values())


def _counts(rows: Sequence[_Rewarded]) -> dict[str, float]:
    groups = _groups(rows)
    return {
        "problems": len(groups),
        "mixed": sum(len({row.reward for row in group}) > 1 for group in groups),
        "answers": len(rows),
        "rewarded": sum(row.reward > 0 for row in rows),
        "cut": sum(row.finish_reason == "length" for row in rows),
        "tokens": sum(len(row.token_ids) for row in rows) / max(len(rows), 1),
    }


def _table(rounds: Sequence[Mapping[str, Any]], terminal: Terminal) -> None:
    columns = ["round", "asked", "answers", "verified", "kept", "new", "slips", "solves", "tokens/row", "time"]
    rows = []
    for each in rounds:
        cost = f"{each['tokens'] / each['kept']:,.0f}" if each["kept"] else "-"
        solves = "-" if each["rate"] is None else percent(each["rate"])
        names = ("round", "asked", "answered", "verified", "kept", "new_chains", "wrong_step")
        rows.append([*(f"{each[name]:,}" for name in names), solves, cost, clock(each["seconds"])])
    terminal.table(columns, rows)
    terminal.say(
        "solves: one answer to each problem; new: kept with equations that the human answer lacks; slips: the number "
        "is right, a step is not; tokens/row: written for each kept one",
        WIDTH,
    )


def _reasons(rounds: Sequence[Mapping[str, Any]], terminal: Terminal) -> None:
    found: dict[str, int] = {}
    for each in rounds:
        for reason, count in each["refused"].items():
            found[reason] = found.get(reason, 0) + count
    if found:
        ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
        terminal.say("")
        terminal.table(["refused", "answers"], [[name, f"{count:,}"] for name, count in ordered[:MOST_REASONS]])


def _keep(manifest: Mapping[str, Any]) -> int | None:
    keep = manifest.get("config", {}).get("keep")
    return keep if isinstance(keep, int) else None


def _with_human(manifest: Mapping[str, Any]) -> bool:
    """Whether an answer may be left out for the human one's equations; of a run that is not done, it may."""
    return bool((manifest.get("trained") or {}).get("mix", "both") == "both")


def _show_round(rollouts: Path, number: int, judge: _Judge, show: int, terminal: Terminal) -> None:
    folder = rollouts / folder_of(f"sample-{number}")
    refuse_links(rollouts, folder, folder / RECORDS, folder / SELECTED)
    coloured = terminal.console.color_system is not None and not terminal.console.no_color
    selected: dict[str, list[_Selected]] = {}
    for row in _lines(folder / SELECTED, _Selected):
        selected.setdefault(row.id, []).append(row)
    left = {True: show, False: show}
    for row in _lines(folder / RECORDS, _Shown):
        answer = judge(row, selected.get(row.id, []))
        if left[answer.kept]:
            left[answer.kept] -= 1
            _show(answer, f"round {number}", coloured, terminal)
        if not any(left.values()):
            return


def _lines(path: Path, kind: type[Any]) -> Iterator[Any]:
    try:
        content = content_of(path)
    except FileNotFoundError:
        raise DataError(f"{path} is gone; {BACK}") from None
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            yield stored(kind, json.loads(line), f"{path}:{number}", BACK)
        except (ValueError, RecursionError):
            raise DataError(f"{path}:{number}: damaged record; {BACK}") from None


def _verdict(row: _Shown, mode: Mode) -> Verification:
    """What the run found, by the row's own answer line: the record has its number alone.

    The claims are those of the answer as it was judged, behind its thought where it has one, and stand as in the whole
    text. A record of an older version has the verdict by steps, whatever the run went by.
    """
    answer = split(row.completion).answer
    found, before = tuple(find_claims(answer)), row.completion.rfind(answer)
    verified = row.verified if mode == "steps" else row.gold_right
    # Without a place, it stood in pieces between thoughts.
    claims = tuple(replace(each, start=each.start + before, end=each.end + before) for each in found if before >= 0)
    return Verification(verified, "" if verified else row.reason, chain(found), claims, row.gold_right)


@dataclass(frozen=True, slots=True)
class _Judge:
    """Says of an answer whether it was kept, or why not."""

    mode: Mode
    keep: int | None  # answers that a problem may have, at most
    human: bool  # whether the human answer is trained on as well, so that its equations are known

    def __call__(self, row: _Shown, selected: Sequence[_Selected]) -> _Answer:
        """`selected` are the kept answers of the same problem."""
        verdict = _verdict(row, self.mode)
        if any(each.sample == row.sample for each in selected):
            return _Answer(row, verdict, "kept", kept=True)
        equations = list(chain_of(verdict, row.completion))
        if verdict.reason:
            reason = verdict.reason
        elif any(each.chain == equations for each in selected):
            reason = "verified, and not kept: a kept answer has the same equations"
        elif self.keep is not None and len(selected) >= self.keep:
            reason = f"verified, and not kept: there are {len(selected)} that are less alike (--keep)"
        else:
            reason = "verified, and not kept: longer than --max-length"
            reason += ", or of the human answer's equations" if self.human else ""
        return _Answer(row, verdict, reason, kept=False)


def _show(answer: _Answer, of: str, coloured: bool, terminal: Terminal) -> None:
    row = answer.row
    terminal.say(f"\n{row.id}, {of}, sample {row.sample}, gold {row.gold}: {row.question}", WIDTH)
    text = Text(printable(row.completion))
    if coloured:
        for claim in answer.verdict.claims:
            text.stylize(RIGHT if claim.right else WRONG, claim.start, claim.start + len(claim.expression))
    label = Text(printable(answer.label), KEPT if answer.kept else REFUSED) if coloured else Text(f"[{answer.label}]")
    with suppress(OSError, SystemExit):  # the reader went away (`| head`): rich makes SystemExit of it
        quiet()
        terminal.console.print(text, soft_wrap=False)
        terminal.console.print(label, soft_wrap=False)
