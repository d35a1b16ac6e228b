"""The run's only decision maker: the rate of each update, when to evaluate, save and stop, and what follows a failure.

The rate depends on update numbers and the plan only, never on a clock. What the clock changes is the plan, by an
event that the checkpoint keeps, so that a run can be replayed.

The budget, in words. It ends when the process does: with a checkpoint, where fewer updates were done than asked for, a
last evaluation and the final model. budget.py says how many updates fit and when the plan is changed for that. Whatever
was planned, an update is begun only when it leaves time for all that must follow it, even if it is as slow as the
slowest of the last ones; the first, if it is as slow as its rehearsal. A first probe is taken to need as long as
PROBE_AS_ROWS rows of an update; it ends after twice that or FIRST_PROBE of what is left, and where it had no time,
there is none in this process. A checkpoint is taken to need as long as the longest one so far, `save_reserve` before
there is one; the final model `reserve`, or as long as the longest save of a best model if that was more. What was
measured in an earlier process is measured again.

Checkpoints on the way and probes come every so many updates. With `auto`, each of the two takes at most SHARE of the
time since this pilot began, counted when one is due, but for the first probe, whose cost nobody knows: a fast machine
has fewer of them. A checkpoint that is due waits until it has its share, and for the next probe, so that it was looked
at; where probes are so dear that this would take longer than its own share does, it is written without. Checkpoints
change no weight, so a clock may decide when there is one; what it holds is a function of its update. Those of a stop
and of a failure are always written, and the probe of the end is made.

An evaluation gets what is left after all of that and one save of a best model, on the way only half of it: what it
will cost is not known beforehand, and it must not eat up the training. One that did not fit is not tried again with
as little time or less. One that a signal ends is not made up for when the run goes on: its weights are gone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from gsm8k_core.clock import NOTICED
from gsm8k_core.config.fields import AUTO
from gsm8k_core.config.train import SHARE, TrainConfig
from gsm8k_core.scoring.timed import Deadline
from gsm8k_core.training.budget import CALIBRATION, DOUBT, Pace, Times, replan
from gsm8k_core.training.measure import DevResult, Guard
from gsm8k_core.training.plan import Adjustment, Change, PlanEvent, after_failure, planned_rate, with_event
from gsm8k_core.training.rollout_pace import RolloutPace
from gsm8k_core.types import GSM8KError, Orders, StepEvent, UpdateStats

STOP_BUDGET = "budget"
STOP_INTERRUPTED = "interrupted"
SHARE_ON_THE_WAY = 0.5
# The last measurement is to be had, and answers may get longer: so much of what one took, or of the budget, is spare.
SPARE_OF_IT, SPARE_OF_ALL = 0.25, 0.01
PROBE_AS_ROWS = 6  # measured: docs/training.md
FIRST_PROBE = 0.1

Live = TypeVar("Live")  # the weights in training: only handed on, so core needs to know nothing of them
Save = Callable[[int, Live], Path]
Evaluate = Callable[[Live, Deadline], DevResult | None]
Probe = Callable[[int, Live, Deadline], StepEvent | None]


@dataclass(frozen=True, slots=True)
class Hooks(Generic[Live]):
    """The functions that the pilot calls. None: the run has nothing to measure with, and does not."""

    emit: Callable[[StepEvent], None]
    elapsed: Callable[[], float]  # seconds of the whole run, earlier processes included
    interrupted: Callable[[], bool]
    save: Save[Live]  # a checkpoint
    keep_best: Callable[[int, Live, DevResult], Path]
    slept: Callable[[], float] = lambda: 0.0  # seconds of `elapsed` in which the machine slept
    evaluate: Evaluate[Live] | None = None  # the dev problems
    answer: Evaluate[Live] | None = None  # the guard's problems
    # Gives its event, or None where the deadline came first; or raises CollapsedError.
    probe: Probe[Live] | None = None
    # What an update event says beside the rest, from its number and its seconds.
    more: Callable[[int, float], Mapping[str, object]] = lambda update, seconds: {}
    stops: Callable[[Guard], str | None] = lambda guard: None  # a reason of the recipe's own to end the run


@dataclass(frozen=True, slots=True)
class Past:
    """What the run brings along: what its checkpoint and its manifest say, and what is known before it trains here."""

    events: Sequence[PlanEvent]
    losses: Sequence[float] = ()  # this, `best` and `guard` are those of RunPilot.as_json() in the checkpoint
    best: Mapping[str, Any] | None = None
    guard: Guard = field(default_factory=Guard)
    adjustments: Sequence[Adjustment] = ()
    tokens: Sequence[int] = ()  # padded, of each update from the run's first on; as many as are known
    micro_batch_tokens: int = 0  # padded tokens at most in a micro-batch
    widest: int = 0  # padded tokens of the longest row
    dtype: str = "float32"  # of the products
    rehearsed: float = 0.0  # seconds that a padded token took in a rehearsal; 0: there was none
    reserve: float = 0.0  # seconds that the final model is thought to take
    save_reserve: float = 0.0  # seconds that the first checkpoint is thought to take
    pace: RolloutPace | None = None  # of updates whose tokens are not known beforehand

    def __post_init__(self) -> None:
        numbers = [event.update for event in self.events]
        if not numbers or numbers[0] != 0 or numbers != sorted(numbers):
            raise ValueError(f"a plan begins at update 0 and goes forward, not {numbers}")


class RunPilot(Generic[Live]):
    """Steers one run, or what is left of it."""

    def __init__(self, config: TrainConfig, hooks: Hooks[Live], past: Past) -> None:
        self._config, self._hooks, self._past, self._events = config, hooks, past, tuple(past.events)
        self.losses, self.guard = list(past.losses), past.guard
        self.best = None if past.best is None else (int(past.best["update"]), DevResult.from_json(past.best["result"]))
        self._evaluate = hooks.evaluate if config.eval_steps else None
        self._probe = hooks.probe if config.probe_every else None
        self._pace = past.pace or Pace(past.tokens, past.rehearsed)
        # Before the first evaluation, its problems are thought to take as long as the base's did.
        evaluation = self.guard.seconds_of(config.eval_problems, config.eval_max_new_tokens)
        self._devs, self._probes = Times(guess=evaluation), Times()
        self._guess_probe(len(self.losses) + 1)
        self._saves, self._keeps = Times(guess=past.save_reserve), Times(guess=past.reserve)
        self._too_short = 0.0  # the longest time that was not enough for an evaluation
        self._fits = True  # whether the last one that was due had enough
        self._began = hooks.elapsed()
        self._owed = False  # whether a checkpoint waits for its share of the time, or for a probe
        self._saved = 0  # the update of the newest checkpoint of this process
        # The newest measurement, and after which update: the guard's own (True), where it is cut as no evaluation is.
        self._newest: dict[bool, tuple[int, DevResult]] = {}
        self._told = False  # whether it was said how long all of it would take
        self._before, self._slept_before = hooks.elapsed(), hooks.slept()
        self._slept_said = 0.0

    @property
    def total(self) -> int:
        """Updates in the whole run, as planned now."""
        return self._events[-1].total

    @property
    def asked(self) -> int:
        """Updates in the whole run, as asked for."""
        return self._events[0].total

    @property
    def events(self) -> tuple[PlanEvent, ...]:
        """The plan and its changes."""
        return self._events

    def rate(self, update: int) -> float:
        return planned_rate(update, self._events, self._config)

    def as_json(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that another pilot goes on from here."""
        best = self.best and {"update": self.best[0], "result": self.best[1].as_json()}
        events = [event.as_json() for event in self._events]
        return {"events": events, "losses": list(self.losses), "best": best, "guard": self.guard.as_json()}

    def begin(self) -> bool:
        """Before the first update of this process: plan by the rehearsal; whether that update is to be.

        It is not where there is no time for it, nor after what ended the run before its model was written.

        Its warm-up belongs to what will be trained, so a plan that is far too large is not left until it was measured.
        The plan keeps CALIBRATION updates at least, since one that was rehearsed too slow has to be able to grow.
        """
        done, before = len(self.losses), self._hooks.elapsed()
        left = self._config.budget_seconds - before
        if self._past.rehearsed and done < self.asked and self._needed(done, self.total) > DOUBT * left:
            found = replan(done, self.total, self.asked, left=left, needed=lambda n: self._needed(done, n), unsure=0.0)
            self._change(done, min(max(found if found < self.total else 0, done + CALIBRATION), self.total))
        self._before, self._slept_before = before, self._hooks.slept()
        return not _is_final(self._stop(done))

    def after(self, stats: UpdateStats, live: Live) -> Orders:
        """Report the update, plan anew where the clock asks for it, evaluate and save what is due, and end in time."""
        update = stats.update
        now, seconds = self._note_time(update)
        self._guess_probe(update)
        self.losses.append(stats.loss)
        self._plan(update)
        self._hooks.emit(StepEvent("update", self._values(stats, seconds, now)))
        # In this order: nothing that a probe ends is kept, and a checkpoint holds the best of its own update as well.
        stop = self._stop(update)
        last = update >= self.asked or _is_final(stop)
        looked = self._probe is not None and (last or self._probe_is_due(update))
        if self._probe and looked:
            self._look(update, live, self._probe)
        self._measure(update, live, last)
        if update < self.total and self._save_is_due(update, looked):
            self._save(update, live)
        # What was just done took longer than thought, or showed something.
        if stop is None and _is_final(stop := self._stop(update)):
            self._measure(update, live, last=True)
        if stop == STOP_BUDGET:  # a few updates early, where one was slow: going on takes more time, or another plan
            self._change(update, update)
        if stop and self._saved != update:
            self._save(update, live)
        self._before, self._slept_before = self._hooks.elapsed(), self._hooks.slept()
        return Orders(stop=stop)

    def latest_end(self, update: int) -> float:
        """When `update` has to be done for all that must follow it to have time, in seconds of the run."""
        return self._config.budget_seconds - sum(self.kept_after(update).values())

    def kept_after(self, update: int) -> dict[str, float]:
        """The seconds that all that must follow `update` has to have, by what it is."""
        return {"the last measurement": self._last_measurement(spare=True), "saving": self._ending(update)}

    def left_early(self, live: Live) -> str:
        """End the run where the next update was not made, since a signal came or it had no time; gives the reason."""
        update, stop = len(self.losses), STOP_INTERRUPTED if self._hooks.interrupted() else STOP_BUDGET
        if update == len(self._past.losses):  # nothing is new in this process
            return stop
        if stop == STOP_BUDGET:
            if self._probe:
                self._look(update, live, self._probe)
            self._measure(update, live, last=True)
            self._change(update, update)
        if self._saved != update:
            self._save(update, live)
        return stop

    def after_failure(self, error: GSM8KError) -> Change | None:
        """What to change after `error` ended the training before its next update was done; None: the run ends, too."""
        past = self._past
        return after_failure(
            error,
            adjustments=past.adjustments,
            begun=len(past.losses),
            done=len(self.losses),
            tokens=past.micro_batch_tokens,
            widest=past.widest,
            update_size=self._config.update_size,
            dtype=past.dtype,
        )

    def _note_time(self, update: int) -> tuple[float, float]:
        """The time, and the seconds of this update."""
        now, asleep = self._hooks.elapsed(), self._hooks.slept() - self._slept_before
        seconds = now - self._before
        self._pace.add(update, max(seconds - asleep, 0.0))
        unsaid = self._hooks.slept() - self._slept_said  # in an evaluation or a save, too
        if unsaid >= NOTICED:
            self._slept_said += unsaid
            left = self._config.budget_seconds - now
            self._hooks.emit(StepEvent("slept", {"update": update, "seconds": unsaid, "left": left}))
        return now, seconds

    def _plan(self, update: int) -> None:
        """Fit the number of updates to the budget, and say once how long all of them would take."""
        left, asked = self._config.budget_seconds - self._hooks.elapsed(), self.asked
        if update >= asked:
            return
        early = self._pace.num < CALIBRATION
        if early and self._needed(update, min(update + 2 * CALIBRATION, asked)) <= left:
            return
        total = replan(
            update,
            self.total,
            asked,
            left=left,
            needed=lambda number: self._needed(update, number),
            unsure=max(self._pace.doubt(update + 1), 0.0),
        )
        if early and total > self.total:
            total = self.total  # to plan for less is safe at once; for more, only what was measured a few times
        if not self._told:
            self._told = True
            whole = self._hooks.elapsed() + self._needed(update, asked, spare=False)  # the work: what is spare is none
            enough = self._needed(update, asked) <= left
            values = {"update": update, "seconds": whole, "asked": asked, "total": total, "enough": enough}
            self._hooks.emit(StepEvent("estimate", values))
        self._change(update, total)

    def _change(self, update: int, total: int) -> None:
        """Let the run have `total` updates from now on, and record that."""
        if total != self.total:
            values = {"update": update, "total": total, "before": self.total, "asked": self.asked}
            self._events = tuple(with_event(self._events, update, total=total))
            self._hooks.emit(StepEvent("plan", values))

    def _values(self, stats: UpdateStats, seconds: float, now: float) -> dict[str, object]:
        return {
            "update": stats.update,
            "loss": stats.loss,
            "num_targets": stats.num_targets,
            "num_tokens": stats.num_tokens,
            "grad_norm": stats.grad_norm,
            "rate": stats.rate,
            "seconds": seconds,
            "elapsed": now,
            "eta": self._to_go(stats.update),
            "total": self.total,
            **self._hooks.more(stats.update, seconds),
        }

    def _to_go(self, update: int) -> float:
        """Seconds to the end of the process.

        Where the budget ends the run, the plan may still grow until an update is left unused: the middle of both ends.
        """
        as_planned, whole = (self._needed(update, total, spare=False) for total in (self.total, self.asked))
        left = self._config.budget_seconds - self._hooks.elapsed()
        grown = min(left - self._pace.seconds(update + 1, update + 1), whole)
        # What is passed already still has its model to save.
        return min((as_planned + max(as_planned, grown)) / 2, max(left, self._ending(update)))

    def _needed(self, update: int, total: int, spare: bool = True) -> float:
        """Seconds to the end of the process if the run ends after `total`, with all that is due from `update` on."""
        config, seconds = self._config, self._pace.seconds(update + 1, total)
        ahead, first, last = seconds, update, total - 1
        seconds += self._on_the_way(self._saves, config.save_steps, _due(config.save_every, first, last), ahead)
        if self._evaluate and self._fits:
            every = self._config.eval_steps
            num_devs = _due(every, update, total) + (total % every > 0)
            seconds += (num_devs - 1) * self._devs.mean + num_devs * self._keeps.total / max(self._devs.num, 1)
        if self._hooks.answer:
            seconds += max(self.guard.num_due(update, total) - 1, 0) * self.guard.seconds
        if self._probe:
            num_probes = _due(config.probe_every, first, last)
            seconds += self._on_the_way(self._probes, config.probe_steps, num_probes, ahead) + self._probes.mean
        return seconds + self._last_measurement(spare) + self._ending(total)

    def _on_the_way(self, times: Times, steps: str, number: int, ahead: float) -> float:
        """Seconds that `number` more of these take; with `auto`, what their share of `ahead` more seconds holds."""
        seconds = times.mean * number
        return seconds if steps != AUTO else min(seconds, max(SHARE * (self._here() + ahead) - times.total, 0.0))

    def _here(self) -> float:
        """Seconds since this pilot began."""
        return self._hooks.elapsed() - self._began

    def _until_share(self, times: Times) -> float:
        """Seconds until these are within their share of the time, with one more; 0 or less: they are."""
        return (times.total + times.most) / SHARE - self._here()

    def _has_share(self, times: Times) -> bool:
        return self._until_share(times) <= 0

    def _probe_is_due(self, update: int) -> bool:
        """Whether a probe comes on the way, after this update."""
        config = self._config
        return update % config.probe_every == 0 and (config.probe_steps != AUTO or self._has_share(self._probes))

    def _save_is_due(self, update: int, looked: bool) -> bool:
        """Whether a checkpoint comes on the way, after an update that was `looked` at by a probe or not."""
        config = self._config
        due = config.save_every > 0 and update % config.save_every == 0
        if config.save_steps != AUTO:
            return due
        self._owed = self._owed or due
        waits = self._probe is not None and config.probe_steps == AUTO
        waits = waits and self._until_share(self._probes) <= self._saves.most / SHARE  # no longer than for itself
        return self._owed and self._has_share(self._saves) and (looked or not waits)

    def _look(self, update: int, live: Live, probe: Probe[Live]) -> None:
        """Ask the probe, unless the run is to end or there is no time for it."""
        before = self._hooks.elapsed()
        ends = self._config.budget_seconds - self._last_measurement(True) - self._ending(update)
        if self._hooks.interrupted() or before + self._probes.most > ends:
            return
        if not self._probes.num:
            ends = min(ends, before + max(2 * self._probes.guess, FIRST_PROBE * (ends - before)))
        event = probe(update, live, lambda: self._hooks.elapsed() >= ends)
        self._probes.add(self._hooks.elapsed() - before)
        if event is None:
            self._probe = None
        self._hooks.emit(event or StepEvent("probe_skipped", {"update": update, "reason": STOP_BUDGET}))

    def _guess_probe(self, update: int) -> None:
        """What a probe is thought to take before there was one."""
        average = self._pace.seconds(update, update)
        self._probes.guess = average * PROBE_AS_ROWS / self._config.update_size

    def _measure(self, update: int, live: Live, last: bool) -> None:
        """The evaluation and the guard's measurement that are due: one measurement, where both are."""
        due = self._evaluate is not None and (update % self._config.eval_steps == 0 or last)
        guarded = self._hooks.answer is not None and self.guard.due(update, self.total, last)
        measure = self._evaluate if due else self._hooks.answer if guarded else None
        if measure is None:
            return
        if due and guarded and not self.guard.is_an_evaluation:
            self._measure_as(update, live, last, self._evaluate, due=True, guarded=False)
            measure, due = self._hooks.answer, False
        self._measure_as(update, live, last, measure, due, guarded)

    def _measure_as(
        self, update: int, live: Live, last: bool, measure: Evaluate[Live] | None, due: bool, guarded: bool
    ) -> None:
        """One measurement: an evaluation (`due`), the guard's (`guarded`), or both in one."""
        assert measure is not None
        room, own = self._room(update, last), not due and not self.guard.is_an_evaluation
        at, newest = self._newest.get(own, (0, None))
        again = newest if at == update else None  # the same weights, just before a stop
        result = again or self._try(live, measure, room, self._devs if due else None)
        if result is None:
            self._skip(update, room, due)
            return
        self._newest[own] = (update, result)
        if guarded:
            self.guard = self.guard.seen(update, result, last)
            when = "end" if last else "quarter"
            self._hooks.emit(StepEvent("guard", {"update": update, "when": when, **self.guard.against_base(result)}))
        if due and not again:
            self._fits = True
            self._hooks.emit(StepEvent("dev", {"update": update, **result.values()}))
            if self.best is None or result.better_than(self.best[1]):
                self._keep(update, live, result)

    def _skip(self, update: int, room: float, due: bool) -> None:
        """Note a measurement that was not made, or not to its end."""
        reason = STOP_INTERRUPTED if self._hooks.interrupted() else STOP_BUDGET
        if due and reason == STOP_BUDGET:
            self._fits, self._too_short = False, max(self._too_short, room)
        if not due:
            self.guard = replace(self.guard, passed=True)
        self._hooks.emit(StepEvent("dev_skipped" if due else "guard_skipped", {"update": update, "reason": reason}))

    def _try(self, live: Live, measure: Evaluate[Live], room: float, times: Times | None) -> DevResult | None:
        before = self._hooks.elapsed()
        known = times is not None and (room <= self._too_short or room < times.least)
        if self._hooks.interrupted() or known or room <= 0:
            return None
        result = measure(live, lambda: self._hooks.interrupted() or self._hooks.elapsed() - before >= room)
        if result is not None and times is not None:
            times.add(self._hooks.elapsed() - before)
        return result

    def _room(self, update: int, last: bool) -> float:
        """Seconds that an evaluation may take now. One batch or one token past it takes no longer than an update."""
        keep = self._keeps.most if self._evaluate else 0.0
        room = self._config.budget_seconds - self._hooks.elapsed() - keep - self._ending(update)
        return room if last else SHARE_ON_THE_WAY * (room - self._pace.longest)

    def _ending(self, update: int) -> float:
        """Seconds that have to be left for saving where training ends after `update`."""
        return max(self._past.reserve, self._keeps.longest) + (self._saves.most if update < self.asked else 0.0)

    def _last_measurement(self, spare: bool) -> float:
        """Seconds that the measurement at the end is expected to take, or has to have."""
        expected = self.guard.seconds if self._hooks.answer else 0.0
        if self._evaluate and self._fits:
            expected = self._devs.mean + (0.0 if self.guard.is_an_evaluation else expected)
        least = SPARE_OF_ALL * self._config.budget_seconds if expected else 0.0
        return expected + spare * max(SPARE_OF_IT * expected, least)

    def _keep(self, update: int, live: Live, result: DevResult) -> None:
        before = self._hooks.elapsed()
        folder = self._hooks.keep_best(update, live, result)
        self._keeps.add(self._hooks.elapsed() - before)
        self.best = (update, result)
        self._hooks.emit(StepEvent("best", {"update": update, "accuracy": result.accuracy, "folder": str(folder)}))

    def _save(self, update: int, live: Live) -> None:
        before = self._hooks.elapsed()
        folder = self._hooks.save(update, live)
        seconds = self._hooks.elapsed() - before
        self._saves.add(seconds)
        self._saved, self._owed = update, False
        self._hooks.emit(StepEvent("save", {"update": update, "folder": str(folder), "seconds": seconds}))

    def _stop(self, update: int) -> str | None:
        if update >= self.asked:
            return None
        if self._hooks.interrupted():
            return STOP_INTERRUPTED
        if (why := self._hooks.stops(self.guard)) is not None:
            return why
        next_one = self._pace.at_most(update + 1) + self._last_measurement(spare=True) + self._ending(update + 1)
        if update >= self.total or self._hooks.elapsed() + next_one > self._config.budget_seconds:
            return STOP_BUDGET
        return None


def _is_final(stop: str | None) -> bool:
    """Whether the run ends with it for good, so that its last measurement is due: not where a signal stops it."""
    return stop not in (None, STOP_INTERRUPTED)


def _due(every: int, first: int, last: int) -> int:
    """How many numbers from `first` to `last` are multiples of `every`; none of 0."""
    return max(last // every - (first - 1) // every, 0) if every else 0
