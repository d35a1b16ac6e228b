"""`benchmark`: contenders side by side, the report of what they did, or one file about a Mac."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.config import BenchmarkConfig
from benchmarks.mac_report import mac_report
from benchmarks.report import write_report
from benchmarks.rounds import Rounds
from gsm8k_core.types import EXIT_OK
from verbs import Context


def run(config: BenchmarkConfig, context: Context) -> int:
    """The verb."""
    if config.mode == "report":
        written = write_report(config.results)
        context.terminal.say("\n".join(f"written  {path}" for path in written))
        context.terminal.result({"written": [str(path) for path in written]})
        return EXIT_OK
    if config.mode == "mac-report":
        return mac_report(config, context)
    with _sigterm_as_ctrl_c():
        return Rounds(config, context).run()


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """So that the contender at work ends as well, and the scratch folder, which holds weights, goes."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
