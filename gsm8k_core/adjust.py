"""What a run changed about itself when something failed: kept in its manifest, replayed when it goes on.

Two things can be changed. The rate, after a loss or a gradient that was not finite: half of it, once in a run. And the
padded tokens of a micro-batch, after memory ran out: half of them, as often as there is something to halve; the rows
of an update stay what they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from gsm8k_core.plan import PlanEvent, changed
from gsm8k_core.types import Choice

RATE_FACTOR = 0.5
ADJUSTMENTS = "adjustments"  # the manifest's key


@dataclass(frozen=True, slots=True)
class Adjustment:
    """One change: from the update after `update` on."""

    what: Literal["rate", "micro_batch_tokens"]
    update: int
    value: float  # of the rate: what it is multiplied by; else padded tokens
    why: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def recorded(manifest: Mapping[str, Any]) -> list[Adjustment]:
    """Those of a run, oldest first."""
    return [Adjustment(**values) for values in manifest.get(ADJUSTMENTS, ())]


def halved(adjustments: Iterable[Adjustment]) -> Adjustment | None:
    """The last change of the rate, if there was one."""
    return next((one for one in reversed(list(adjustments)) if one.what == "rate"), None)


def planned(events: Sequence[PlanEvent], adjustments: Sequence[Adjustment]) -> list[PlanEvent]:
    """The plan of a checkpoint, with the last change of the rate where the checkpoint was written before it."""
    change = halved(adjustments)
    if change is None or any(event.rate_factor == change.value for event in events):
        return list(events)
    return changed(events, change.update, rate_factor=change.value)


def smaller(tokens: int, widest: int, update_size: int) -> int | None:
    """Half the padded tokens of a micro-batch, or None where each micro-batch is one row already.

    `widest` is the padded width of the longest row: a micro-batch of it alone is the smallest peak there is. An update
    of `update_size` rows never filled more than that many of it, so that is what is halved.
    """
    filled = min(tokens, widest * update_size)
    return max(filled // 2, widest) if filled > widest else None


def as_choice(tokens: int, why: str) -> Choice:
    """The padded tokens of a micro-batch after memory ran out."""
    return Choice(str(tokens), f"padded tokens at most in a micro-batch; {why}")
