"""`train --recipe grpo`: the model that is trained asked for the answers that it is trained on, and what that shows.

The stream of updates is gsm8k_core/rollouts/policy.py's; here it gets its model, its clock, its signals and its place
in run.json. What is decided once in a run is kept there, so that a run that goes on asks and judges in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import backends
from gsm8k_core.backend import Answering, Backend
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.rollouts import journal
from gsm8k_core.rollouts.group import Sampled, read_sampled
from gsm8k_core.rollouts.objective import Objective
from gsm8k_core.rollouts.policy import Policy, PolicySettings, Score
from gsm8k_core.rollouts.progress import POLICY, Progress
from gsm8k_core.rollouts.record import Rollout
from gsm8k_core.rollouts.watch import STOP_WORSE, Figures, reason_to_end
from gsm8k_core.rollouts.wave import Ask
from gsm8k_core.tracking.panel import ROLLOUT
from gsm8k_core.training.measure import ANSWERS, WORSE, Guard
from gsm8k_core.training.pilot import RunPilot
from gsm8k_core.training.rollout_pace import RolloutPace
from gsm8k_core.training.runs import Run
from gsm8k_core.types import (
    Choice,
    Completion,
    DeviceLostError,
    OnToken,
    OutOfMemoryError,
    StepEvent,
    Update,
    UsageError,
)
from verbs import Context
from verbs.train.model import OpenModel, first_weights
from verbs.train.sampler import TOGETHER, Sampler, choose_verify
from verbs.train.start import Job

KEPT = "policy"  # a checkpoint's


@dataclass(slots=True)
class PolicyRun:
    """The updates of one segment."""

    job: Job
    model: OpenModel
    run: Run
    context: Context
    elapsed: Callable[[], float]  # seconds of the whole run
    interrupted: Callable[[], bool]
    hear: Callable[[StepEvent], None] = lambda event: None  # told of each answer, for a person alone
    pilot: RunPilot[Any] | None = None
    sampler: Sampler = field(init=False)
    progress: Progress = field(init=False)
    policy: Policy = field(init=False)
    pace: RolloutPace = field(init=False)
    answers: Answering = field(init=False)  # the model itself, or an engine beside it
    first: Backend | None = None  # the first weights, where they are a model of their own
    trained: dict[int, int] = field(default_factory=dict)  # padded tokens of each update of this process

    def __post_init__(self) -> None:
        config, self.answers = self.job.config, self.model.backend
        self.progress = Progress.from_json(self.run.manifest.get(POLICY))
        self.sampler = Sampler(
            self.job, self.context.terminal, self.elapsed, self.interrupted, lambda: self.progress.mode
        )
        self.pace = RolloutPace(config.updates_per_rollout, self._asked_in, self.model.update_seconds)
        self.policy = Policy(
            settings_of(config, self.model.micro_batch_tokens),
            self.sampler.problems,
            self.sampler.prompts,
            self._answer,
            self.model.backend.score,
            self.sampler.decode,
            lambda answer: float(answer.verified(self.progress.mode)),
            elapsed=self.elapsed,
            late=self._late,
            looked=self._look,
            rolled=self._rolled,
            first=self._first(),
        )
        self._go_on()

    def _first(self) -> Score | None:
        """What scores by the first weights: an adapter is switched off for it, the whole model needs a second one."""
        if not self.job.config.kl:
            return None
        if self.job.config.uses_adapter:
            score: Score = self.model.backend.score_first
            return score
        where = "in each rank's memory" if backends.is_shared() else "in memory"
        self.context.terminal.say(f"kl       {self.job.config.kl:g}: the first weights are held {where} as well")
        self.first = first_weights(self.job, self.model)
        return self.first.score

    def close(self) -> None:
        """Let go of what is no part of the model."""
        if self.first is not None:
            self.first.close()
            self.first = None

    def _go_on(self) -> None:
        """What the checkpoint kept of the updates before."""
        kept = (self.job.checkpoint.facts.get(KEPT) or {}) if self.job.checkpoint else {}
        self.policy.history = [Figures.from_json(values) for values in kept.get("history", ())]
        if rollout := kept.get("rollout"):
            vocabulary = self.job.source.model.vocabulary
            self.policy.sampled = read_sampled(
                rollout, self.sampler.problems, self.sampler.decode, vocabulary, self.policy.reward
            )

    # --- what is decided once ---------------------------------------------------------------------------------

    def _decide(self, name: str, choice: Choice) -> None:
        if self.progress.decided(name) is None:
            self.progress = self.progress.with_decision(name, choice)
            self._record()
            self.context.terminal.say(f"{name:<8} {choice.name}: {choice.reason}")

    def _record(self) -> None:
        self.run.record(**{POLICY: self.progress.as_json()})

    def decide(self) -> None:
        """Before the first update of a segment. Raises UsageError for a calculator that cannot be."""
        self._decide("calculator", self.sampler.choose_calculator())
        self.sampler.calculator = self.progress.decided("calculator") == "on"
        if self.sampler.calculator and self.job.config.rollout_engine != "backend":
            raise UsageError(
                "--rollout-engine: this run samples with the calculator, which no engine has; leave it out"
            )
        self._decide("together", self.sampler.choose_together(self.model))
        self.sampler.together = self.progress.together or int(self.progress.decided("together") or TOGETHER)
        if killed_by := self.context.link.killed_by:
            self._halve(f"the training process {killed_by}")
            self.context.link.killed_by = ""  # said once: a later segment of this process was not killed again

    def _look(self, answers: Sequence[Rollout]) -> None:
        """The run's first answers say by what all are verified."""
        self._decide("verify", choose_verify(self.job.config, answers))

    # --- the stream -------------------------------------------------------------------------------------------

    def updates(self, pilot: RunPilot[Any]) -> Iterator[Update]:
        """Those that are left, made as they are asked for."""
        self.pilot = pilot
        self.decide()
        if (engine := self.job.config.rollout_engine) != "backend":
            self.answers = self.model.backend.engine(engine, self.job.longest_sampled)
        for update in self.policy.updates(pilot.asked):
            self.trained[update.number] = update.num_tokens
            yield update

    def _answer(self, block: Sequence[Ask], on_token: OnToken) -> list[Completion]:
        """The answers to some requests; with half as many at once where memory runs out."""
        began, tokens = self.elapsed(), 0
        while True:
            try:
                found: dict[int, Completion] = {}
                with closing(self.sampler.generate(self.answers, block, on_token)) as completions:  # type: ignore[type-var]
                    for place, completion in completions:
                        found[place], tokens = completion, tokens + len(completion.tokens)
                        self._tell(len(found), len(block), tokens / max(self.elapsed() - began, 1e-9))
                return [found[place] for place in range(len(block))]
            except OutOfMemoryError as error:
                if self.sampler.together == 1 or isinstance(error, DeviceLostError):
                    raise
                self._halve(str(error))

    def _tell(self, answered: int, asked: int, speed: float) -> None:
        update = len(self.policy.history) + 1
        self.hear(StepEvent(ROLLOUT, {"update": update, "answered": answered, "of": asked, "sampling_speed": speed}))

    def _rolled(self, sampled: Sampled) -> None:
        journal.write(self.run.rollouts, sampled, len(self.policy.history) + 1, self.progress.mode)

    def _halve(self, why: str) -> None:
        self.sampler.halve(why)
        self.progress = replace(self.progress, together=self.sampler.together)
        self._record()

    def _late(self) -> bool:
        """Whether a rollout at hand is to be left: a signal came, or its update would not end in time."""
        assert self.pilot is not None
        update = len(self.policy.history) + 1
        return self.interrupted() or self.elapsed() + self.pace.rest > self.pilot.latest_end(update)

    # --- what it shows ----------------------------------------------------------------------------------------

    def _asked_in(self, update: int) -> tuple[int, float]:
        found = self.policy.history[update - 1]
        return found.asked, found.sampling_seconds

    def values(self, update: int, seconds: float) -> Mapping[str, object]:
        """What an update's event says of the policy; rates in tokens a second."""
        found = self.policy.history[update - 1]
        training = max(seconds - found.sampling_seconds, 1e-9)
        values: dict[str, object] = {
            "reward": found.reward,
            "solve_rate": found.solve_rate,
            "mixed": found.mixed,
            "length": found.length,
            "cut": found.cut,
            "entropy": found.entropy,
            "clipped": found.clipped,
            "asked": found.asked,
            "training_speed": self.trained[update] / training,
        }
        if found.asked:
            values["sampling_speed"] = found.tokens / max(found.sampling_seconds, 1e-9)
        if found.kl is not None:
            values["kl"] = found.kl
        return values

    def stops(self, guard: Guard) -> str | None:
        """A reason to end the run: the guard's after a quarter, or the policy's own figures."""
        looked = guard.quarter if guard.by == ANSWERS else None  # gold answers get less likely as its own get likelier
        if looked is not None and guard.against_base(looked[1])["verdict"] == WORSE:
            return STOP_WORSE
        return reason_to_end(self.policy.history)

    def kept(self, update: int) -> dict[str, Any]:
        """For a checkpoint after `update`."""
        return {KEPT: self.policy.kept(update)}


def settings_of(config: TrainConfig, micro_batch_tokens: int) -> PolicySettings:
    """What the settings say of an update."""
    low, high = config.clip_range
    objective = Objective(config.loss, low, high, config.kl, config.sample_max_new_tokens)
    return PolicySettings(
        config.prompts_per_update,
        config.samples,
        config.updates_per_rollout,
        config.overlong,
        objective,
        micro_batch_tokens,
        config.seed,
    )
