"""metrics.jsonl where a run goes on from an earlier update: what came later is made again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gsm8k_core.files import MAX_LINES_BYTES, read_plain, write_bytes
from gsm8k_core.types import StorageError


def cut_metrics(path: Path, update: int) -> int:
    """Takes from metrics.jsonl what comes after `update`, ends of the run and what is no event.

    Gives how many events were of a later update: those are made again, and nothing else is.
    """
    try:
        content = read_plain(path, MAX_LINES_BYTES)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror}); check the run's folder") from error
    later = [(line, _is_later(line, update)) for line in content.splitlines()]
    new = b"".join(line + b"\n" for line, is_later in later if is_later is False)
    if new != content:
        write_bytes(path, new)
    return sum(is_later is True for _, is_later in later)


def _is_later(line: bytes, update: int) -> bool | None:
    """Whether an event is of a later update; None for the end of a run, and for what is no event."""
    try:
        event: Any = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str) or event["event"] == "end":
        return None
    number = event.get("update")
    return isinstance(number, int | float) and number > update
