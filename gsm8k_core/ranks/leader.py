"""The model on all ranks, as rank 0 has it: a backend like any other, that has the others do their part.

It tells them what it does itself: open, train, each update's rows and rate, close. Prompts are given out in pieces, so
that who is done early takes more; of a batch that is scored each rank gets some rows. Both may be asked for while the
model is trained, before any of its updates: that is how a recipe samples by the weights as they are then.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from gsm8k_core.backend import Answering, Backend, Group, Live, Pilot, Sharded, ignore_token
from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.problems.batching import over_ranks
from gsm8k_core.ranks import messages
from gsm8k_core.ranks.pieces import Work
from gsm8k_core.ranks.wire import Frame, SilentError, Wire
from gsm8k_core.training.finite import ADVICE, ALONE_FINITE, NOT_APPLIED
from gsm8k_core.training.measure import TIMED_TOKENS
from gsm8k_core.types import (
    Batch,
    Choice,
    Completion,
    DivergedError,
    GSM8KError,
    Incoming,
    OnToken,
    Orders,
    Outcome,
    PreflightError,
    RankLostError,
    Sampling,
    TrainState,
    Update,
    UpdateStats,
)

if TYPE_CHECKING:
    from gsm8k_core.config.train import TrainConfig
    from gsm8k_core.types import FloatArray

RANKS = "ranks"  # the choice of how many processes there are
ANSWER = 50.0  # seconds for a rank to say how its training ended, once that has
SOON = 3.0  # and for one to say why it has ended, where its end was seen by the engine


class Ranks:
    """The other ranks, as rank 0 has them."""

    def __init__(self, group: Group, lines: Sequence[Wire], launcher: str) -> None:
        self.group, self.lines = group, lines
        self.opened = 0  # models so far
        self.job = 0  # number of the last work, of whatever model: a line remembers what was cancelled
        rate = group.bandwidth()
        hosts = sorted({socket.gethostname(), *(line.host for line in lines)})
        spread = "; FSDP2: each has a part of the weights" if group.sharded else ""
        said = f"{launcher}, on {', '.join(hosts)}; {rate / 1e9:.2f} GB/s through a sum of gradients, measured{spread}"
        self.choice = Choice(str(group.size), said)

    def tell(self, kind: str, **values: Any) -> None:
        """The same to every rank."""
        for line in self.lines:
            line.send(kind, **values)

    def next_job(self) -> int:
        """The number of another piece of work."""
        self.job += 1
        return self.job

    def ready(self, kind: str, timeout: float | None = None) -> list[Frame]:
        """Every rank's answer. What is left of work that nobody waits for any more is dropped."""
        return [self.answer(line, kind, timeout) for line in self.lines]

    @staticmethod
    def answer(line: Wire, kind: str, timeout: float | None = None, **values: Any) -> Frame:
        """The next message of a rank that is of this kind, and has these values."""
        while (message := line.receive(timeout)).kind != kind or not values.items() <= message.values.items():
            messages.raise_if_ended(line.peer, message)
        return message

    @contextmanager
    def causes(self) -> Iterator[None]:
        """What ended another rank is raised, where in here the engine has seen its end first."""
        try:
            yield
        except GSM8KError:
            raise
        except Exception:
            if self.group.sharded:
                with suppress(SilentError):
                    self.ready("done", SOON)
            raise

    def open(
        self, name: str, folder: Path, device: str, dtype: str, rendering: Any, load: Callable[[], Backend]
    ) -> Leader:
        """The model in `folder` on every rank. Raises PreflightError where another rank has another model there."""
        ends = sorted(rendering.end_ids) if rendering else None
        self.opened += 1
        asked = {"name": name, "folder": str(folder.resolve()), "device": device, "dtype": dtype, "end_ids": ends}
        self.tell("open", model=(number := self.opened), **asked)
        backend = load()
        mine = ModelFolder(folder).hash
        for line, message in zip(self.lines, self.ready("ready"), strict=True):
            if (theirs := message.values["hash"]) != mine:
                raise PreflightError(
                    f"{line.peer} has another model in {folder} (sha256 {theirs[:12]}, and rank 0's is {mine[:12]}); "
                    "copy rank 0's there"
                )
        backend.group = self.group
        if self.group.sharded:
            cast("Sharded", backend).lead(partial(self.tell, "serve", model=number))
        backend.choices[RANKS] = self.choice
        return Leader(backend, self, number)


class Leader:
    """One model, loaded on every rank."""

    def __init__(self, backend: Backend, ranks: Ranks, number: int) -> None:
        self.name, self.capabilities, self.group = backend.name, backend.capabilities, backend.group
        self._backend, self._ranks, self._number = backend, ranks, number
        self.micro_batch_tokens, self.odds = backend.micro_batch_tokens, backend.odds
        self.save, self.state, self.rehearse = backend.save, backend.state, backend.rehearse  # it has all of it
        self.peak_memory = backend.peak_memory

    @property
    def choices(self) -> dict[str, Choice]:
        return self._backend.choices

    def _tell(self, kind: str, **values: Any) -> None:
        """The same of this model to every rank."""
        self._ranks.tell(kind, model=self._number, **values)

    # --- training -------------------------------------------------------------------------------------------------

    def train(
        self, updates: Iterable[Update], config: TrainConfig, pilot: Pilot, resume: TrainState | None = None
    ) -> Outcome:
        dtype = self.choices["dtype"].name
        step = resume.step if resume is not None else None
        self._tell("train", config=config.model_dump(mode="json"), step=step, dtype=dtype)
        try:
            outcome = self._backend.train(self._shares(updates, config, pilot), config, _Led(pilot, self), resume)
        except DivergedError as error:
            self._ranks.tell("stop")
            raise _best(error, self._ranks.ready("done", ANSWER)) from error
        except Exception as error:
            self._ranks.tell("stop")
            sharded = self._ranks.group.sharded
            if sharded and isinstance(error, RankLostError):
                raise  # the others wait for this rank's part, and say nothing any more
            # An error of ours says more than that another rank then waits for a sum; one of the engine's says nothing.
            ours = isinstance(error, GSM8KError)
            quiet = [RankLostError] if ours else [SilentError] if sharded else []
            with suppress(*quiet):
                self._ranks.ready("done", SOON if sharded and not ours else ANSWER)
            raise
        self._ranks.tell("stop")
        for line, message in zip(self._ranks.lines, self._ranks.ready("done", ANSWER), strict=True):
            messages.raise_failure(line.peer, message)
        return outcome

    def _shares(self, updates: Iterable[Update], config: TrainConfig, pilot: Pilot) -> Iterator[Update]:
        """Rank 0's rows of each update; the others get theirs, and the rate, as it comes up."""
        for update in updates:
            mine, *others = over_ranks(update, self._ranks.group.size, int(config.micro_batch_tokens))
            rate = pilot.rate(update.number)
            for line, share in zip(self._ranks.lines, others, strict=True):
                line.send("update", messages.arrays_of(share), rate=rate, **messages.update_values(share))
            yield mine

    def start_token(self, token: int, like: int) -> None:
        self._tell("start_token", token=token, like=like)
        self._backend.start_token(token, like)

    def choose_dtype(self, batch: Batch, config: TrainConfig) -> Choice:
        """Rank 0's choice, taken by all."""
        choice = self._backend.choose_dtype(batch, config)
        share = Update(0, 0, batch.rows, (batch,))
        for line in self._ranks.lines:
            values = {"model": self._number, "config": config.model_dump(mode="json"), "dtype": choice.name}
            line.send("dtype", messages.arrays_of(share), **values, **messages.update_values(share))
        return choice

    # --- answers --------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        on_token: OnToken = ignore_token,
        keys: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, Completion]]:
        drawn = messages.sampling_values(sampling)
        # So few tokens are asked for to see how long they take, and this rank's clock sees its own alone.
        alone = self._ranks.group.sharded  # with the others' weights
        if drawn is None or alone or sampling.max_new_tokens <= TIMED_TOKENS or len(prompts) < 2:
            yield from self._backend.generate(prompts, sampling, on_token, keys)
            return
        keys = keys if keys is not None else range(len(prompts))
        work = Work(prompts, keys, drawn, self._ranks.group.size, self._number, self._ranks.next_job())
        threads = [threading.Thread(target=work.hand_out, args=[line], daemon=True) for line in self._ranks.lines]
        for thread in threads:
            thread.start()
        try:
            yield from self._pieces(work, sampling, on_token, len(threads))
        finally:
            work.stop()
            self._ranks.tell("cancel", job=work.job)
            for thread in threads:
                thread.join()

    def _pieces(
        self, work: Work, sampling: Sampling, on_token: OnToken, at_work: int
    ) -> Iterator[tuple[int, Completion]]:
        """What this rank answers, and what comes from the others meanwhile and afterwards."""

        def theirs(wait: bool) -> Iterator[tuple[int, Completion]]:
            nonlocal at_work
            while at_work and (wait or not work.come.empty()):
                found = work.come.get()
                work.check()
                at_work -= found is None
                for place, token in found.written if found else ():
                    on_token(place, token)
                yield from found.answers if found else ()

        while (places := work.take()) is not None:

            def heard(index: int, token: int, places: Sequence[int] = places) -> None:
                work.check()  # what has failed there ends this piece at once
                on_token(places[index], token)

            prompts, keys = [work.prompts[place] for place in places], [work.keys[place] for place in places]
            with closing(self._backend.generate(prompts, sampling, heard, keys)) as answers:  # type: ignore[type-var]
                for index, completion in answers:
                    yield places[index], completion
                    yield from theirs(wait=False)
        yield from theirs(wait=True)

    def score(self, batch: Batch) -> FloatArray:
        return self._scored(batch, self._backend.score, first=False)

    def score_first(self, batch: Batch) -> FloatArray:
        return self._scored(batch, self._backend.score_first, first=True)

    def _scored(self, batch: Batch, own: Callable[[Batch], FloatArray], first: bool) -> FloatArray:
        """The rows that this rank scores itself, and those of the others behind them."""
        if len(batch.tokens) < 2 or self._ranks.group.sharded:
            return own(batch)
        job = self._ranks.next_job()
        mine, *others = _by_rows(batch, self._ranks.group.size)
        asked = list(zip(self._ranks.lines, others, strict=False))
        for line, part in asked:
            line.send("score", [part.tokens, part.labels], model=self._number, job=job, first=first)
        scores = [own(mine)]
        for line, _ in asked:
            message = self._ranks.answer(line, "answers", job=job)
            messages.raise_failure(line.peer, message)
            scores += message.arrays
        return np.concatenate(scores)

    def engine(self, name: str, longest: int) -> Answering:
        raise PreflightError(
            f"--rollout-engine {name} answers for one process; leave it out, and each rank samples itself"
        )

    def answer(
        self, incoming: Incoming, num_places: int, longest: int, on_token: OnToken = ignore_token
    ) -> Iterator[Sequence[tuple[int, Completion]]]:
        return self._backend.answer(incoming, num_places, longest, on_token)

    def close(self) -> None:
        self._tell("close")
        self._backend.close()


class _Led:
    """A pilot that is asked with the weights on all ranks."""

    def __init__(self, pilot: Pilot, leader: Live) -> None:
        self.rate, self._pilot, self._leader = pilot.rate, pilot, leader

    def after(self, stats: UpdateStats, live: Live) -> Orders:
        return self._pilot.after(stats, self._leader)


def _by_rows(batch: Batch, size: int) -> list[Batch]:
    """The batch's rows for so many ranks, evenly to within one; fewer parts where there are fewer rows."""
    ends = np.linspace(0, len(batch.tokens), min(size, len(batch.tokens)) + 1).round().astype(int)
    return [
        replace(
            batch,
            tokens=batch.tokens[start:end],
            labels=batch.labels[start:end],
            weights=None,
            rows=batch.rows[start:end],
        )
        for start, end in pairwise(ends)
    ]


def _best(own: DivergedError, answers: Sequence[Frame]) -> DivergedError:
    """Of all ranks' words for an update that was not applied, those that name the rows."""
    if own.tensor is None or own.tensor != ALONE_FINITE:
        return own
    for found in (message.values.get("error") or {} for message in answers):
        if found.get("tensor") not in (None, ALONE_FINITE):
            where = {"tensor": found["tensor"], "rows": found["rows"], "damaged": found["damaged"]}
            return DivergedError(NOT_APPLIED, update=own.update, advice=ADVICE, **where)
    return own
