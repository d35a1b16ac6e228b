"""A rank above 0: it does what rank 0 tells it, and decides nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from gsm8k_core.backend import Backend, Group, Live, Sharded
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.ranks import messages
from gsm8k_core.ranks.wire import END, FAILED, Frame, Wire
from gsm8k_core.types import (
    Batch,
    Choice,
    DeviceLostError,
    DivergedError,
    GSM8KError,
    Orders,
    OutOfMemoryError,
    PreflightError,
    RankLostError,
    TrainState,
    Update,
    UpdateStats,
)

SAID = 2.0  # seconds for the word of a rank 0 that has ended to be read: it is sent before the engine's lines close
# (backend's name, folder, device, dtype, what has `end_ids` or None)
Open = Callable[[str, Path, str, str, Any], Backend]
TELL = 0.25  # seconds from one word of what was written to the next: rank 0 may have to end it then


@dataclass(frozen=True, slots=True)
class Ends:
    """Where an answer ends: all that a rank which saves nothing needs of a rendering."""

    end_ids: frozenset[int]


class _Cancelled(Exception):
    """Rank 0 no longer waits for these answers."""


def follow(line: Wire, group: Group, open_backend: Open) -> int:
    """Do what rank 0 says until it ends; returns its exit code. An error goes to rank 0, and ends this rank."""
    rank = _Follower(line, group, open_backend)
    group.bandwidth()
    try:
        while (message := line.receive()).kind != END:
            rank.do(message)
        return int(message.values["code"])
    except GSM8KError as error:
        line.send(FAILED, error=messages.error_values(error))
        return error.exit_code
    except Exception as error:
        line.send(FAILED, error={"text": f"unexpected {type(error).__name__}: {error}", "code": 1})
        if (code := _ended(line)) is not None:  # what failed here is the engine, which waited for a rank that has ended
            return code
        raise


def _ended(line: Wire) -> int | None:
    """The exit code that rank 0 ended with, where it did so and said why."""
    with suppress(RankLostError):
        while (message := line.receive(SAID)).kind != END:
            pass
        return int(message.values["code"])
    return None


@dataclass(frozen=True, slots=True)
class _Model:
    """One that rank 0 opened, as this rank has it."""

    backend: Any
    folder: ModelFolder


class _Follower:
    def __init__(self, line: Wire, group: Group, open_backend: Open) -> None:
        self._line, self._group, self._open = line, group, open_backend
        self._models: dict[int, _Model] = {}  # by rank 0's numbers

    def do(self, message: Frame) -> None:
        """One thing that rank 0 says between two trainings. What came too late for a training means nothing."""
        values, kind = message.values, message.kind
        if kind == "open":
            self._load(values)
        elif kind == "close":
            self._models.pop(values["model"]).backend.close()
        elif kind in ("start_token", "dtype", "train"):
            backend = self._models[values["model"]].backend
            if kind == "start_token":
                backend.start_token(values["token"], values["like"])
            elif kind == "dtype":
                self._take_dtype(backend, message)
            else:
                self._train(backend, values)
        else:
            self._compute(message)

    def _load(self, values: dict[str, Any]) -> None:
        folder = Path(values["folder"])
        if not folder.is_dir():
            raise PreflightError(f"there is no model in {folder} on this host; copy rank 0's there, or share the disk")
        ends, files = values["end_ids"], ModelFolder(folder)
        rendering = Ends(frozenset(ends)) if ends is not None else None
        backend = self._open(values["name"], folder, values["device"], values["dtype"], rendering)
        backend.group = self._group
        self._models[values["model"]] = _Model(backend, files)
        self._line.send("ready", hash=files.hash)

    def _take_dtype(self, backend: Any, message: Frame) -> None:
        if self._group.sharded:  # to look at it would take all ranks
            backend.choices["dtype"] = Choice(message.values["dtype"], "rank 0's")
        elif backend.choices["dtype"].name != message.values["dtype"]:
            batch = messages.update_of(message).micro_batches[0]
            backend.choose_among((message.values["dtype"],), batch, TrainConfig(**message.values["config"]))

    def _train(self, backend: Backend, values: dict[str, Any]) -> None:
        backend.choices["dtype"] = Choice(values["dtype"], "rank 0's")
        resume = TrainState(values["step"], {}, {}, {}) if values["step"] is not None else None
        pilot = _Told(self._line, self._compute)
        failure = None
        try:
            backend.train(pilot.updates(), TrainConfig(**values["config"]), pilot, resume)
        except DeviceLostError:
            raise
        except (DivergedError, OutOfMemoryError) as error:  # all ranks have one; rank 0 says how it goes on
            failure = messages.error_values(error)
        if not pilot.stopped:
            pilot.wait_for_stop()
        self._line.send("done", error=failure)

    # --- what is asked of the weights as they are now, also while they are trained ------------------------------------

    def _compute(self, message: Frame) -> bool:
        """Whether it was answers, scores or this rank's part of the weights that rank 0 wants: then it has them."""
        if message.kind == "serve":
            cast("Sharded", self._models[message.values["model"]].backend).serve()
            return True
        work = {"generate": self._generate, "score": self._score}.get(message.kind)
        if work is None:
            return False
        answered: dict[str, Any] = {"job": message.values["job"], "error": None}
        try:
            work(self._models[message.values["model"]], message, answered)
        except DeviceLostError:
            raise
        except (DivergedError, OutOfMemoryError) as error:
            answered["error"] = messages.error_values(error)
        self._line.send("answers", answered.pop("arrays", ()), **answered)
        return True

    def _generate(self, model: _Model, message: Frame, answered: dict[str, Any]) -> None:
        values, told = message.values, _Telling(self._line, message.values["job"])
        answered["answers"] = answers = []
        try:
            told.check()
            sampling = messages.sampling_of(values["sampling"], lambda: model.folder.tokenizer)
            with closing(model.backend.generate(values["prompts"], sampling, told, values["keys"])) as found:
                for index, completion in found:
                    answers.append((index, messages.completion_values(completion)))
            told.send()
        except _Cancelled:
            pass

    def _score(self, model: _Model, message: Frame, answered: dict[str, Any]) -> None:
        score = model.backend.score_first if message.values["first"] else model.backend.score
        tokens, labels = message.arrays
        answered["arrays"] = [score(Batch(tokens, labels))]


class _Telling:
    """An on_token: rank 0 hears of each token, and this rank of whether it still waits."""

    def __init__(self, line: Wire, job: int) -> None:
        self._line, self._job = line, job
        self._tokens: list[tuple[int, int]] = []
        self._sent = time.monotonic()

    def __call__(self, index: int, token: int) -> None:
        self.check()
        self._tokens.append((index, token))
        if time.monotonic() - self._sent >= TELL:
            self.send()

    def check(self) -> None:
        if self._line.cancelled >= self._job:
            raise _Cancelled

    def send(self) -> None:
        self._line.send("written", job=self._job, tokens=self._tokens)
        self._tokens, self._sent = [], time.monotonic()


class _Told:
    """The pilot of a rank above 0: everything it answers has come from rank 0."""

    def __init__(self, line: Wire, compute: Callable[[Frame], bool]) -> None:
        self._line, self._compute = line, compute
        self._rate = 0.0
        self._next: Update | None = None
        self.stopped = False

    def updates(self) -> Iterator[Update]:
        """This rank's rows, update by update, until rank 0 stops; before each it may want answers and scores."""
        while True:
            if self._next is None and not self.stopped:
                self._listen()
            if self._next is None:
                return
            update, self._next = self._next, None
            yield update

    def rate(self, update: int) -> float:
        return self._rate

    def after(self, stats: UpdateStats, live: Live) -> Orders:
        self._listen()
        return Orders(stop="stopped" if self.stopped else None)

    def wait_for_stop(self) -> None:
        """After a training that ended early here, as it did on every rank."""
        while not self.stopped:
            self._listen()

    def _listen(self) -> None:
        """Do what rank 0 asks for between two updates, until it sends the next one or stops."""
        while True:
            message = self._line.receive()
            if message.kind == "update":
                self._next, self._rate = messages.update_of(message), message.values["rate"]
                return
            if message.kind == "stop":
                self.stopped, self._next = True, None
                return
            if message.kind == END:
                raise SystemExit(int(message.values["code"]))
            if not self._compute(message):  # to leave it out might have rank 0 wait without an end
                raise RuntimeError(f"told to {message.kind} in the middle of a training; report this")
