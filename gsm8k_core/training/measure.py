"""The model in training against the dev split: its loss and its answers on the way, and the guard at the end.

The rows are the same at every update, and the loss is over the very rows that are answered.

The guard asks whether the trained model is better than the one it was made of. Fine-tuning can make a model worse, and
a falling loss does not show it. So the base answers a few dev problems before the first update, and the model in
training answers the same ones after a quarter of the planned updates and at the end. They are compared problem by
problem with McNemar's exact test: what is not below stats.LEVEL is called not distinguishable, never better. Nothing
is chosen or deleted by it; it only says what was seen, and what to try.

Before that, the base's first tokens are timed. Where FEWEST answers of full length have no time, all answers get one
shorter end, the base's and the trained model's alike, as long as nearly every gold answer would not be cut there.
Where that does not fit either, the losses on the gold answers are compared, row by row, in the same way: it takes one
forward pass a row. A lower loss is no right answer, so each line says what was compared.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gsm8k_core.problems.batching import micro_batches
from gsm8k_core.scoring.answers import HEADLINE, HEADLINE_RULE, grade
from gsm8k_core.scoring.stats import LEVEL, mcnemar_exact
from gsm8k_core.scoring.timed import Deadline, TimeUp, checking
from gsm8k_core.types import Completion, Example, Problem, Sampling

if TYPE_CHECKING:
    from gsm8k_core.backend import Weights


SHARE = 0.05  # of the time that is left, for the base's answers; or
UPDATES = 2  # updates, if those take longer; and at most
MOST = 1 / 6  # of what is left: the trained model takes as long, twice
TIMED_TOKENS = 4  # of each answer, to see how long a token takes
CAREFUL = 0.8  # of the time is what a number of problems is chosen for
UNCUT = 0.9  # of the gold answers have to fit into a shorter end of all answers
FEWEST = 8  # problems; fewer can hardly show anything, even if all change
ROUND = 16  # problems in each round after the first, or as many as are answered together where that is more
QUARTER = 0.25  # of the planned updates
FEWEST_UPDATES = 8  # planned ones; a quarter of fewer is no time to look

BETTER, WORSE = "better", "worse"
ANSWERS, LOSS = "answers", "loss"  # what is compared


@dataclass(frozen=True, slots=True)
class DevResult:
    """Loss and answers on the dev rows, after one update."""

    loss: float  # nats per target
    num_targets: int
    num_correct: Mapping[str, int]  # by rule of answers.HEADLINE
    num_problems: int
    num_stopped: int  # answers that an end token closed; the others were cut
    seconds: float
    verdicts: tuple[bool, ...] = ()  # whether each answer is right, as `accuracy` counts; not in older checkpoints
    losses: tuple[float, ...] = ()  # of each row, nats per target; nor this

    @property
    def accuracy(self) -> float:
        """By the rule that decides everywhere, as a fraction."""
        return self.num_correct[HEADLINE_RULE] / self.num_problems

    @property
    def row_loss(self) -> float:
        """The mean of its rows' losses, which the guard compares; `loss` is that of their targets."""
        return math.fsum(self.losses) / len(self.losses)

    def better_than(self, other: DevResult) -> bool:
        """More accurate; of two as accurate, the one with the lower loss. The same is not better."""
        return (self.accuracy, -_or_inf(self.loss)) > (other.accuracy, -_or_inf(other.loss))

    def values(self) -> dict[str, object]:
        """The numbers of a `dev` event."""
        by_rule = {f"accuracy_{rule}": correct / self.num_problems for rule, correct in self.num_correct.items()}
        return {
            "loss": self.loss,
            "num_targets": self.num_targets,
            "accuracy": self.accuracy,
            "correct": self.num_correct[HEADLINE_RULE],
            "problems": self.num_problems,
            **by_rule,
            "stopped": self.num_stopped,
            "stopped_share": self.num_stopped / self.num_problems,
            "seconds": self.seconds,
        }

    def as_json(self) -> dict[str, object]:
        """For a checkpoint. JSON has no NaN: a loss that is not finite is null."""
        loss = self.loss if math.isfinite(self.loss) else None
        losses = [value if math.isfinite(value) else None for value in self.losses]
        lists = {"verdicts": list(self.verdicts), "losses": losses}
        return asdict(self) | {"loss": loss, "num_correct": dict(self.num_correct), **lists}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DevResult:
        loss = math.nan if values["loss"] is None else values["loss"]
        losses = tuple(math.nan if value is None else value for value in values.get("losses", ()))
        return cls(**{**values, "loss": loss, "verdicts": tuple(values.get("verdicts", ())), "losses": losses})


def joined(parts: Sequence[DevResult]) -> DevResult:
    """The result on the problems of all parts, which were measured one after another."""
    num_targets = sum(part.num_targets for part in parts)
    correct = {rule: sum(part.num_correct[rule] for part in parts) for rule in parts[0].num_correct}
    return DevResult(
        math.fsum(part.loss * part.num_targets for part in parts) / num_targets,
        num_targets,
        correct,
        sum(part.num_problems for part in parts),
        sum(part.num_stopped for part in parts),
        math.fsum(part.seconds for part in parts),
        tuple(right for part in parts for right in part.verdicts),
        tuple(loss for part in parts for loss in part.losses),
    )


def _or_inf(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


@dataclass(frozen=True, slots=True)
class AnswerTime:
    """Seconds that answers take, as their first tokens did."""

    begin: float  # a problem: its loss and its prompt
    token: float  # a token of one problem; 0 where none wrote more than one

    def longest(self, seconds: float, num_problems: int, least: int, most: int) -> int | None:
        """The longest end of every answer with which so many fit into `seconds`: `most` at most, or None below `least`.

        In tokens. That every answer goes on to its end is assumed, and not what happens.
        """
        left = seconds / num_problems - self.begin
        tokens = most if left >= self.token * most else int(left / self.token) if left > 0 else 0
        return tokens if tokens >= min(least, most) else None


@dataclass(frozen=True, slots=True)
class DevSet:
    """The dev rows to measure on: the first `eval_problems` of the split, tokenised, and as problems."""

    examples: Sequence[Example]
    problems: Sequence[Problem]
    decode: Callable[[Sequence[int]], str]
    batch_size: int  # rows scored together
    eval_batch_size: int  # problems answered together
    max_new_tokens: int
    clock: Callable[[], float] = time.monotonic
    heard: Callable[[str, str], None] = lambda problem, text: None  # gets each answer, with its problem's id

    def __post_init__(self) -> None:
        if not self.examples or [row.id for row in self.examples] != [problem.id for problem in self.problems]:
            raise ValueError("a dev set needs the same rows, one at least, as examples and as problems")

    def part(self, first: int, end: int) -> DevSet:
        """The same measurement on the problems from place `first` to before place `end`."""
        return replace(self, examples=self.examples[first:end], problems=self.problems[first:end])

    def measure(self, live: Weights, deadline: Deadline) -> DevResult | None:
        """Everything, or None when `deadline` came true before the end.

        It is asked before each batch that is scored and after each token that is written.
        """
        before, check = self.clock(), checking(deadline)
        try:
            loss, num_targets, losses = self._loss(live, check)
            num_correct, num_stopped, verdicts = self._answers(live, check)
        except TimeUp:
            return None
        seconds = self.clock() - before
        return DevResult(loss, num_targets, num_correct, len(self.problems), num_stopped, seconds, verdicts, losses)

    def score(self, live: Weights, deadline: Deadline) -> DevResult | None:
        """The losses alone, and no answer; None when `deadline` came true before the end."""
        before = self.clock()
        try:
            loss, num_targets, losses = self._loss(live, checking(deadline))
        except TimeUp:
            return None
        return DevResult(loss, num_targets, {}, len(self.problems), 0, self.clock() - before, (), losses)

    def time(self, live: Weights, deadline: Deadline, scored: DevResult) -> AnswerTime | None:
        """What TIMED_TOKENS of each answer took, `scored` added; None when `deadline` came true before the end.

        The first tokens of all come together, after the prompts were read.
        """
        stamps, count, check = [self.clock()], len(self.problems), checking(deadline)

        def heard(index: int, token: int) -> None:
            check()
            stamps.append(self.clock())

        try:
            for _ in self._generate(live, TIMED_TOKENS, heard):
                pass
        except TimeUp:
            return None
        prompts = stamps[min(count, len(stamps) - 1)] - stamps[0]
        more = len(stamps) - 1 - count
        token = (stamps[-1] - stamps[count]) / more if more > 0 else 0.0
        return AnswerTime((scored.seconds + prompts) / count, token)

    def _loss(self, live: Weights, check: Callable[..., None]) -> tuple[float, int, tuple[float, ...]]:
        """Nats per target, how many targets there are, and the same of each row, in order."""
        sums, num_targets, by_row = [], 0, dict[str, float]()
        for batch in micro_batches(self.examples, self.batch_size):
            check()
            picked_N = batch.at_targets(live.score(batch))
            sums.append(math.fsum(picked_N.tolist()))
            num_targets += batch.num_targets
            row_N = batch.targets().positions_N // batch.labels.shape[1]
            means_B = np.bincount(row_N, picked_N, len(batch.rows)) / np.bincount(row_N, minlength=len(batch.rows))
            by_row.update(zip(batch.rows, (-means_B).tolist(), strict=True))
        return -math.fsum(sums) / num_targets, num_targets, tuple(by_row[row.id] for row in self.examples)

    def _generate(
        self, live: Weights, max_new_tokens: int, on_token: Callable[..., None]
    ) -> Generator[tuple[int, Completion], None, None]:
        prompts = [row.tokens[: row.num_prompt] for row in self.examples]
        completions = live.generate(prompts, Sampling(max_new_tokens, self.eval_batch_size), on_token)
        try:
            yield from completions
        finally:
            # A generator left open would keep its cache, and the model in the mode it generates in.
            if close := getattr(completions, "close", None):
                close()

    def _answers(self, live: Weights, check: Callable[..., None]) -> tuple[dict[str, int], int, tuple[bool, ...]]:
        """How many are correct under each rule, how many were closed by an end token, and which are right."""
        check()
        correct, num_stopped, right = dict.fromkeys(HEADLINE, 0), 0, [False] * len(self.problems)
        with closing(self._generate(live, self.max_new_tokens, check)) as completions:
            for index, completion in completions:
                text = self.decode(completion.tokens)
                self.heard(self.problems[index].id, text)
                verdicts = grade(text, self.problems[index].answer)
                for rule in HEADLINE:
                    correct[rule] += verdicts[rule].correct
                right[index] = verdicts[HEADLINE_RULE].correct
                num_stopped += completion.finish_reason == "stop"
        return correct, num_stopped, tuple(right)


# --- the guard ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Guard:
    """What was measured so far. `base` None: nothing is compared, and `reason` says why."""

    base: DevResult | None = None
    quarter: tuple[int, DevResult] | None = None  # after which update, and what
    end: tuple[int, DevResult] | None = None
    reason: str = ""
    passed: bool = False  # the quarter had no time, and is not tried again
    by: str = ANSWERS  # what is compared
    max_new_tokens: int = 0  # the shared end of the answers, where time was short; 0: the evaluation's

    @property
    def num_problems(self) -> int:
        return self.base.num_problems if self.base else 0

    @property
    def seconds(self) -> float:
        """What measuring these problems once takes, by the newest time."""
        newest = self.end or self.quarter
        result = newest[1] if newest else self.base
        return result.seconds if result else 0.0

    @property
    def is_an_evaluation(self) -> bool:
        """Whether an evaluation of the dev split has what is compared."""
        return not self.max_new_tokens

    def seconds_of(self, num_problems: int, max_new_tokens: int) -> float:
        """What an evaluation may take; 0 where nothing here shows it."""
        if self.base is None or self.by == LOSS:
            return 0.0
        longer = max_new_tokens / self.max_new_tokens if self.max_new_tokens else 1.0
        return longer * self.seconds * num_problems / self.num_problems

    def measurement(self, dev: DevSet) -> Callable[[Weights, Deadline], DevResult | None]:
        """What measures a model as the base was."""
        part = dev.part(0, self.num_problems)
        if self.by == LOSS:
            return part.score
        return replace(part, max_new_tokens=self.max_new_tokens or dev.max_new_tokens).measure

    def due(self, update: int, total: int, last: bool) -> bool:
        """Whether to measure after this update: at the end, and once when a quarter of the plan is done."""
        if self.base is None:
            return False
        return last or (self._waits(total) and update >= QUARTER * total)

    def _waits(self, total: int) -> bool:
        """Whether the measurement after a quarter is still to come."""
        return self.quarter is None and not self.passed and total >= FEWEST_UPDATES

    def num_due(self, update: int, total: int) -> int:
        """How often it will be measured from this update on."""
        if self.base is None:
            return 0
        return 1 + (self._waits(total) and update < total)

    def seen(self, update: int, result: DevResult, last: bool) -> Guard:
        """With one more measurement, of the first problems of `result`."""
        return replace(self, end=(update, result)) if last else replace(self, quarter=(update, result))

    def against_base(self, result: DevResult) -> dict[str, object]:
        """The numbers of a `guard` event."""
        assert self.base is not None
        if self.by == LOSS:
            return self._against_loss(self.base, result)
        shared = min(self.num_problems, len(result.verdicts))  # fewer, where a resumed run asks for fewer
        base, now = self.base.verdicts[:shared], result.verdicts[:shared]
        won = sum(new and not old for old, new in zip(base, now, strict=True))
        lost = sum(old and not new for old, new in zip(base, now, strict=True))
        p = mcnemar_exact(won, lost)
        return {
            "problems": len(base),
            "base_correct": sum(base),
            "correct": sum(now),
            "won": won,
            "lost": lost,
            "p": p,
            "verdict": verdict(won, lost, p, len(base)),
            **self._how(),
        }

    def _against_loss(self, base: DevResult, result: DevResult) -> dict[str, object]:
        shared = min(len(base.losses), len(result.losses))
        pairs = list(zip(base.losses[:shared], result.losses[:shared], strict=True))
        won, lost = sum(new < old for old, new in pairs), sum(not new <= old for old, new in pairs)  # NaN is worse
        p = mcnemar_exact(won, lost)
        return {
            "problems": shared,
            "base_loss": math.fsum(old for old, _ in pairs) / shared,
            "loss": math.fsum(new for _, new in pairs) / shared,
            "won": won,
            "lost": lost,
            "p": p,
            "verdict": verdict(won, lost, p, shared),
            **self._how(),
        }

    def _how(self) -> dict[str, object]:
        """What is not as it is where there is time; nothing else, as in older runs."""
        if self.by == LOSS:
            return {"by": self.by}
        return {"max_new_tokens": self.max_new_tokens} if self.max_new_tokens else {}

    def as_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        measured = {name: getattr(self, name) for name in ("quarter", "end")}
        return {
            "base": self.base and self.base.as_json(),
            **{name: each and {"update": each[0], "result": each[1].as_json()} for name, each in measured.items()},
            "reason": self.reason,
            "passed": self.passed,
            "by": self.by,
            "max_new_tokens": self.max_new_tokens,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Guard:
        def read(name: str) -> tuple[int, DevResult] | None:
            each = values.get(name)
            return each and (int(each["update"]), DevResult.from_json(each["result"]))

        base = values["base"] and DevResult.from_json(values["base"])
        how = {name: values[name] for name in ("by", "max_new_tokens") if name in values}  # not in older runs
        return cls(base, read("quarter"), read("end"), values.get("reason", ""), values.get("passed", False), **how)

    def outcome(self) -> dict[str, Any]:
        """For run.json: what each measurement showed."""
        if self.base is None:
            return {"verdict": "not measured", "reason": self.reason}
        measured = {name: getattr(self, name) for name in ("quarter", "end")}
        found: dict[str, Any] = {
            name: each and {"update": each[0], **self.against_base(each[1])} for name, each in measured.items()
        }
        shown = {"correct": sum(self.base.verdicts)} if self.by == ANSWERS else {"loss": self.base.row_loss}
        base = {"problems": self.num_problems, **shown, "seconds": self.base.seconds, **self._how()}
        return {"base": base, **found, "verdict": found["end"]["verdict"] if self.end else "not measured"}


def verdict(won: int, lost: int, p: float, num_problems: int) -> str:
    """`better`, `worse`, or that so many problems cannot tell."""
    if p >= LEVEL:
        return f"not distinguishable at n = {num_problems}"
    return BETTER if won > lost else WORSE


def room_for_base(left: float, update: float) -> float:
    """Seconds for the base, where the budget still holds `left` and an update takes `update` of them."""
    return min(max(SHARE * left, UPDATES * update), MOST * left)


def measure_base(
    dev: DevSet, live: Weights, num_problems: int, seconds: float, interrupted: Callable[[], bool]
) -> Guard:
    """The base's answers to as many of the first `num_problems` dev problems as fit into `seconds`, FEWEST at least.

    Where those do not fit, its losses on as many. The first FEWEST show how fast it goes; then come rounds of ROUND,
    each only where it will fit. A round that ran out of time all the same is dropped whole: those that ended in time
    would be the short answers.
    """
    num_problems = min(num_problems, len(dev.problems))
    if num_problems < FEWEST:
        return Guard(reason=f"there are {num_problems} dev problems for it, and fewer than {FEWEST} show nothing")
    began = dev.clock()

    def left() -> float:
        return seconds - (dev.clock() - began)

    late: Deadline = lambda: left() <= 0 or interrupted()  # noqa: E731
    first, size = dev.part(0, FEWEST), max(ROUND, dev.eval_batch_size)
    scored = first.score(live, late) if left() > 0 else None
    times = first.time(live, late, scored) if scored is not None else None
    if times is not None:
        least = _quantile([len(row.tokens) - row.num_prompt for row in dev.examples[:num_problems]], UNCUT)
        cap = times.longest(CAREFUL * left(), FEWEST, least, dev.max_new_tokens)
        shorter = replace(dev, max_new_tokens=cap or 0)
        parts = (
            _in_rounds(lambda at, end: shorter.part(at, end).measure(live, late), [], num_problems, left, size)
            if cap
            else []
        )
        if parts:
            return Guard(base=joined(parts), max_new_tokens=0 if cap == dev.max_new_tokens else shorter.max_new_tokens)
    if interrupted():
        return Guard(reason="a signal came")
    if scored is None:
        share = f"{max(seconds, 0):.1f} s, its share of --max-time"
        return Guard(reason=f"its loss on {FEWEST} gold answers took longer than {share}; a longer one helps")
    parts = _in_rounds(lambda at, end: dev.part(at, end).score(live, late), [scored], num_problems, left, size)
    return Guard(base=joined(parts), by=LOSS)


def _in_rounds(
    measure: Callable[[int, int], DevResult | None],
    parts: list[DevResult],
    num_problems: int,
    left: Callable[[], float],
    size: int,
) -> list[DevResult]:
    """`parts`, and what `measure` gives of those after them, `size` in each round, as long as there is time."""
    done = sum(part.num_problems for part in parts)
    while done < num_problems:
        each = math.fsum(part.seconds for part in parts) / done if done else 0.0
        more = min(size if done else FEWEST, num_problems - done, int(left() / each) if each > 0 else size)
        result = measure(done, done + more) if more > 0 else None
        if result is None:
            break
        parts, done = [*parts, result], done + more
    return parts


def _quantile(values: Sequence[int], share: float) -> int:
    """The least value that `share` of all do not pass."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


# --- its words ------------------------------------------------------------------------------------------------


def base_line(guard: Guard) -> str:
    """One line on the base, or on why nothing is compared."""
    if guard.base is None:
        return (
            f"guard    the base is not measured, so nothing will be compared: {guard.reason} "
            "(--guard-problems 0 turns this off)"
        )
    seconds = f"({guard.base.seconds:.0f} s)"
    if guard.by == LOSS:
        return (
            f"guard    answers have no time; the base's loss on {guard.num_problems} gold answers of the dev split is "
            f"{guard.base.row_loss:.3f} {seconds}; the trained model's will be compared with it, row by row"
        )
    right = sum(guard.base.verdicts)
    cut = f", all answers cut at {guard.max_new_tokens} tokens since time is short" if guard.max_new_tokens else ""
    return (
        f"guard    the base answers {right} of {guard.num_problems} dev problems right {seconds}{cut}; "
        "the trained model will answer the same ones"
    )


def event_line(values: Mapping[str, Any]) -> str:
    """One line on a measurement."""
    when = "at the end" if values["when"] == "end" else f"after update {values['update']}"
    if values.get("by") == LOSS:
        return (
            f"guard    {when}: loss {values['loss']:.3f} on {values['problems']} gold answers, the base "
            f"{values['base_loss']:.3f} (lower on {values['won']}, higher on {values['lost']}, p = {values['p']:.2g}): "
            f"{values['verdict']}, by loss and not by answers"
        )
    cut = f", both cut at {values['max_new_tokens']} tokens" if values.get("max_new_tokens") else ""
    return (
        f"guard    {when}: {values['correct']} of {values['problems']} right, the base {values['base_correct']}{cut} "
        f"({values['won']} won, {values['lost']} lost, p = {values['p']:.2g}): {values['verdict']}"
    )


SOLVES = 0.10  # of the dev problems, by the base: from here on, its own answers are worth training on
RFT = "--recipe rft"  # what a person adds


def solves(guard: Guard) -> tuple[int, int] | None:
    """How many dev problems the base answered right, of how many; None where its answers were not looked at."""
    if guard.base is None or guard.by != ANSWERS:
        return None
    return sum(guard.base.verdicts), guard.num_problems


def recipe_line(guard: Guard) -> str:
    """Before sft, where the base solves SOLVES or more: what is published of that; else nothing.

    Source: a study of 388 checkpoints of Qwen2.5-1.5B-Instruct on GSM8K (docs/methods.md).
    """
    found = solves(guard)
    if found is None or found[0] < SOLVES * found[1]:
        return ""
    return (
        f"recipe   sft: the base solves {found[0]} of {found[1]} by itself; sft on GSM8K's answers took 15 points from "
        "Qwen2.5-1.5B-Instruct, and training on its own verified answers gave it 12 (docs/methods.md); to train on "
        f"this one's own verified answers, add {RFT}"
    )


def advice(
    found: str,
    *,
    adapter: bool,
    rate: float,
    budget: str,
    own: int | None = None,
    solved: tuple[int, int] | None = None,
) -> str:
    """What a person can try when the trained model was not better.

    `budget`: the --max-time that ended the run, empty where it did all of its updates; `own`: so many of its own
    answers it was trained on, None where it was not asked for any; `solved`: the base's, of the dev problems.
    """
    by_itself = f" (the base solves {solved[0]} of {solved[1]} dev problems by itself)" if solved else ""
    tries = [
        f"a longer --max-time than {budget}" if budget else "more --num-epochs",
        f"a lower rate (--learning-rate {rate / 3:.1g})",
        *([] if adapter else ["--method lora"]),
    ]
    if own is None:
        tries.append(
            f"training on the model's own verified answers, {RFT}, since GSM8K's terse ones often do not help a small "
            f"instruct model{by_itself}"
        )
    elif own:
        tries.append(f"more --samples, for more kept answers{by_itself}")
    else:
        tries.append(f"a larger --model, since none of this one's own answers was kept{by_itself}")
    more = [] if found == WORSE else ["more --guard-problems, to see a smaller difference"]
    return "try      " + "; ".join(tries + more)


def end_line(found: str, base: str, trained: str) -> str:
    """In plain words, for a trained model that was not better."""
    what = (
        "the base model is better than the trained one on these dev problems"
        if found == WORSE
        else "these dev problems do not show that the trained model is better than the base"
    )
    return f"guard    {what}; both are kept: the base {base}, the trained one {trained}"
