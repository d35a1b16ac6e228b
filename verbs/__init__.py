"""What each verb of the command line does: wiring between core and a backend, one file a verb.

Every file has `run(config, context) -> exit code`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gsm8k_core.tracking import Terminal
from gsm8k_core.types import Choice
from verbs.child import Link


@dataclass(frozen=True, slots=True)
class Context:
    """What a verb gets beside its settings."""

    terminal: Terminal
    explicit: frozenset[str]  # names of the fields that were given by flag or file
    elapsed: Callable[[], float]  # seconds since the process began
    link: Link = field(default_factory=Link)  # to the process that watches over this one


def process_clock() -> Callable[[], float]:
    """Seconds since this process began, by a clock that never jumps."""
    import psutil  # here, not above: only a verb that runs needs it

    already = max(0.0, time.time() - psutil.Process().create_time())
    start = time.monotonic() - already
    return lambda: time.monotonic() - start


def say_choices(terminal: Terminal, choices: Mapping[str, Choice]) -> None:
    """What was chosen, each with its reason."""
    for name, chosen in choices.items():
        terminal.say(f"{name:<8} {chosen.name}: {chosen.reason}")
