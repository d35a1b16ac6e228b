"""math-verify, in a process of its own that is killed when it hangs: its time-out, an alarm, can be missed by C code.

One worker judges many rows, a JSON line each way; after a hang or a crash the next row gets a new one.
Only with the extra `bench`; `missing()` says what to install where it is not there.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from gsm8k_core.problems.gold import gold_of
from gsm8k_core.processes import end
from gsm8k_core.scoring.answers import Verdict
from gsm8k_core.scoring.thinking import split
from gsm8k_core.types import PreflightError, counted

NAME = "math-verify"
INSTALL = "pip install -c constraints.txt -e '.[bench]'"
LIMIT = 5.0  # seconds a row
START_LIMIT = 60.0  # seconds until a new worker has imported SymPy
# -P: the folder of the script has a types.py, which would hide the standard one.
WORKER = (sys.executable, "-P", str(Path(__file__).with_name("math_verify_worker.py")))


def missing() -> str | None:
    """Why math-verify cannot be used here; None where it can."""
    if sys.platform == "win32":
        return "math-verify can hang, and is ended through a pipe that Windows cannot wait for; leave it out there"
    if importlib.util.find_spec("math_verify"):
        return None
    return f"math-verify is not installed; {INSTALL}"


def require() -> None:
    """Raises PreflightError where math-verify cannot be used: it was asked for."""
    if reason := missing():
        raise PreflightError(f"--slow-rules: {reason}")


class MathVerify:
    """`with MathVerify() as rule: rule.judge(completion, answer)`. `hung` and `crashed` count the rows lost so."""

    def __init__(self, limit: float = LIMIT, command: Sequence[str] = WORKER) -> None:
        if tuple(command) == WORKER and (reason := missing()):
            raise PreflightError(reason)
        self._limit, self._command = limit, command
        self._worker: subprocess.Popen[bytes] | None = None
        self.hung = self.crashed = 0

    def __enter__(self) -> MathVerify:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def judge(self, completion: str, answer: str) -> Verdict:
        """A row that cannot be judged in time, or that breaks the worker, reads nothing and is wrong."""
        gold, completion = gold_of(answer), split(completion).answer
        try:
            answered = self._ask({"completion": completion, "gold": gold})
        except TimeoutError:
            self.hung += 1
        except (OSError, ValueError):
            self.crashed += 1
        else:
            return Verdict(answered["extracted"], answered["correct"] is True)
        self._stop()
        return Verdict(None, correct=False)

    def _ask(self, row: dict[str, str]) -> dict[str, Any]:
        self._worker = self._worker or self._started()
        if self._worker.stdin is None:
            raise OSError("the worker has no stdin")
        # A worker reads its whole line before it works, so this write waits for nothing.
        self._worker.stdin.write(json.dumps(row).encode() + b"\n")
        self._worker.stdin.flush()
        answered = json.loads(self._line(self._worker, self._limit))
        return dict(answered)

    def _started(self) -> subprocess.Popen[bytes]:
        """A worker that said it is ready. One that cannot start is an error: no row would be judged."""
        worker = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._worker = worker
        try:
            self._line(worker, START_LIMIT)
        except (OSError, TimeoutError) as error:
            self._stop()
            raise PreflightError(f"math-verify does not start ({error}); {INSTALL}") from None
        return worker

    @staticmethod
    def _line(worker: subprocess.Popen[bytes], limit: float) -> bytes:
        if worker.stdout is None:
            raise OSError("the worker has no stdout")
        end, line = time.monotonic() + limit, b""
        with selectors.DefaultSelector() as selector:
            selector.register(worker.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise TimeoutError(f"no answer within {limit} s")
                part = os.read(worker.stdout.fileno(), 65536)
                if not part:
                    raise OSError("the worker ended")
                line += part
        return line

    def _stop(self) -> None:
        worker, self._worker = self._worker, None
        if worker is None:
            return
        end(worker)
        worker.wait()
        for pipe in (worker.stdin, worker.stdout):
            with contextlib.suppress(OSError):
                if pipe:
                    pipe.close()


def judge_records(records: Sequence[dict[str, Any]], limit: float = LIMIT) -> str:
    """Adds math-verify's verdict to each record; the sentence says what happened, or what is missing."""
    if reason := missing():
        return reason
    start = time.monotonic()
    with MathVerify(limit) as rule:
        for record in records:
            record["rules"][NAME] = asdict(rule.judge(record["completion"], record["gold"]))
    lost = f", {rule.hung} stopped after {limit:g} s, {rule.crashed} broke it" if rule.hung + rule.crashed else ""
    return f"math-verify judged {counted(len(records), 'row')} in {time.monotonic() - start:.0f} s{lost}"
