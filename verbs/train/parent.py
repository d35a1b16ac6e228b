"""The parent of a training process: a device's driver, or the system, can end that one without a word.

`python cli.py train` starts itself again and waits. When the child was killed, or has no memory left, another one goes
on from the newest checkpoint with half the padded tokens in a micro-batch; where it was asking its model, with half as
many answers at once. The child has a process group of its own, so what a terminal sends reaches the parent alone, and
each signal is passed on once. No framework is imported here.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import backends
from gsm8k_core.command import as_typed
from gsm8k_core.doing import quiet
from gsm8k_core.ranks.world import SETS as LAUNCHERS
from gsm8k_core.types import OutOfMemoryError, counted
from verbs import process_clock
from verbs.link import VARIABLE
from verbs.train.signals import wanted

MOST_RESTARTS = 3  # in a row without a new checkpoint, a new phase or a new block of answers
KILLED = ("SIGKILL", "SIGABRT", "SIGSEGV", "SIGBUS")
NO_CHILD = ("--help", "-h", "--dry-run", "--print-config")


def supervises(arguments: Sequence[str]) -> bool:
    """Whether this command line gets a parent: a training run that no launcher started, and that is no child itself."""
    if os.name != "posix" or arguments[:1] != ["train"] or set(arguments) & set(NO_CHILD):
        return False
    return not {*LAUNCHERS, VARIABLE} & os.environ.keys()


@dataclass(slots=True)
class _Told:
    """What the children said so far."""

    run: Path | None = None
    seconds: float | None = None  # that the run had taken before this parent
    flags: list[str] = field(default_factory=list)  # of the command line, that a resumed run has to get again
    downloaded: float = 0.0  # seconds that the children spent downloading, which do not count
    final: bool = False  # the child's end is not to be tried again
    phase: str = ""  # of --recipe rft: which one it is in
    place: str = ""  # and where that keeps its checkpoints, inside the run
    answers: int | None = None  # where it asks its model: so many answers of whole blocks are there

    def read(self, ours: socket.socket) -> None:
        """All that waits in the socket."""
        ours.setblocking(False)
        text = b""
        with contextlib.suppress(BlockingIOError):
            while part := ours.recv(65536):
                text += part
        for line in text.splitlines():
            for name, value in json.loads(line).items():
                if name == "downloaded":
                    self.downloaded += value
                else:
                    setattr(self, name, Path(value) if name == "run" else value)


def supervise(arguments: Sequence[str]) -> int:
    """Run the command line in a child, and again while that helps; returns the exit code."""
    elapsed, told, killed_by = process_clock(), _Told(), ""
    failures = 0
    reached: tuple[str, str, int | None] = ("", "", None)
    with _forwarding() as child:
        while True:
            child.stopping = bool(child.pending)
            link = {"before": elapsed() - told.downloaded, "seconds": told.seconds, "killed_by": killed_by}
            code = child.run(_command(arguments, told), link, told)
            killed_by = _reason(code, told)
            if not killed_by or child.stopping:
                return _passed_on(code)
            before, reached = reached, (_newest(told), told.phase, told.answers)
            failures = failures + 1 if reached == before else 0
            if failures >= MOST_RESTARTS or (told.run is None and failures > 1):
                _say(f"error: the training process {killed_by} again and again; {_advice(told.run)}")
                return OutOfMemoryError.exit_code
            _say(f"the training process {killed_by}; going on {_where(told)}")


def _reason(code: int, told: _Told) -> str:
    """How a child ended that another one may do better than; or nothing."""
    if code < 0 and signal.Signals(-code).name in KILLED:
        return f"was killed by {signal.Signals(-code).name} (most often: no memory was left)"
    if code == OutOfMemoryError.exit_code and told.run is not None and not told.final:
        return "ran out of memory"
    return ""


def _passed_on(code: int) -> int:
    """A child's exit code as our own. What a signal ended by default ends the parent in the same way."""
    if code < 0:
        if signal.Signals(-code).name in KILLED:
            return OutOfMemoryError.exit_code
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def _newest(told: _Told) -> str:
    """The name of the newest checkpoint that a child goes on from, whole or not; the child checks it."""
    if told.run is None or told.answers is not None:
        return ""
    return max((path.name for path in (told.run / told.place).glob("checkpoints/update-*")), default="")


def _where(told: _Told) -> str:
    """From where the next child goes on, and with what that takes less memory."""
    if told.answers is not None:
        there = f"{counted(told.answers, 'answer')} {'is' if told.answers == 1 else 'are'} there"
        return f"with {told.phase}, where {there}, with half as many at once"
    of = f" of {told.phase}" if told.phase else ""
    return f"from {_newest(told) or 'the beginning'}{of} with half the padded tokens in a micro-batch"


def _command(arguments: Sequence[str], told: _Told) -> list[str]:
    """This very command line; once there is a run, one that goes on with it."""
    start = sys.orig_argv[1 : len(sys.orig_argv) - len(arguments)]
    going_on = ["train", "--resume", str(told.run), *told.flags] if told.run else list(arguments)
    return [sys.executable, *start, *going_on]


def _advice(run: Path | None) -> str:
    less = "--micro-batch-tokens 256, --gradient-checkpointing, --method lora, or a smaller --max-length"
    resume = f"; its checkpoints are kept: python cli.py train --resume {run}" if run else ""
    return f"close other programs, or try {less}{resume}"


def _say(line: str) -> None:
    quiet()
    with contextlib.suppress(OSError):
        # A child that was killed leaves the cursor at the end of its last line.
        lead = "\n" if os.isatty(2) else ""
        os.write(2, f"{lead}{as_typed(line)}\n".encode())


@dataclass(slots=True)
class _Child:
    """The process that trains, and the signals on their way to it."""

    process: subprocess.Popen[bytes] | None = None
    pending: list[int] = field(default_factory=list)
    stopping: bool = False  # a signal asked for the end

    def run(self, command: list[str], link: dict[str, Any], told: _Told) -> int:
        """Start it, wait for it, and read what it said; returns Popen's returncode."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                environment = os.environ | backends.environment(sys.platform, os.environ)
                environment[VARIABLE] = json.dumps({**link, "descriptor": theirs.fileno()})
                self.process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], process_group=0)
            for number in self.pending:
                self.process.send_signal(number)
            self.pending.clear()
            code = self.process.wait()
            self.process = None  # a signal that comes now is for the next one
            told.read(ours)
        return code

    def pass_on(self, number: int, frame: object) -> None:
        self.stopping = True
        if self.process is None:
            self.pending.append(number)
        else:
            self.process.send_signal(number)

    def pause(self, number: int, frame: object) -> None:
        """Ctrl-Z reaches the parent alone: both stop, and both go on with `fg`."""
        if self.process is not None:
            self.process.send_signal(signal.SIGSTOP)
        before = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTSTP])
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, before)
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def _forwarding() -> Iterator[_Child]:
    """A child that gets each of the stopping signals once, and Ctrl-Z with its parent."""
    child = _Child()
    handlers: dict[int, Callable[[int, object], None]] = dict.fromkeys(wanted(), child.pass_on)
    if signal.getsignal(signal.SIGTSTP) is not signal.SIG_IGN:
        handlers[signal.SIGTSTP] = child.pause
    old = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield child
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
