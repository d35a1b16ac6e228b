"""`benchmark`: contenders side by side, the report of what they did, or one file about a Mac."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.config import BenchmarkConfig
from benchmarks.key_copies import key_copies
from benchmarks.mac_report import mac_report
from benchmarks.report import write_report
from benchmarks.rounds import Rounds
from gsm8k_core.types import EXIT_OK
from verbs import Context
from verbs.train.signals import wanted


def run(config: BenchmarkConfig, context: Context) -> int:
    """The verb."""
    if config.mode == "report":
        written = write_report(config.results)
        context.terminal.say("\n".join(f"written  {path}" for path in written))
        context.terminal.result({"written": [str(path) for path in written]})
        return EXIT_OK
    if config.mode == "key-copies":
        return key_copies(config, context)
    with _as_ctrl_c():
        return mac_report(config, context) if config.mode == "mac-report" else Rounds(config, context).run()


@contextmanager
def _as_ctrl_c() -> Iterator[None]:
    """Each stopping signal ends what is at work as well, and the scratch folder, which holds weights, goes."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in wanted()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
