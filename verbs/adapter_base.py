"""The base under a run's adapter, held against the one that the run began with."""

from __future__ import annotations

from collections.abc import Callable

from gsm8k_core.models.find import Source
from gsm8k_core.training.runs import known_manifest, run_of_model
from gsm8k_core.types import DataError


def check_base(source: Source, asked: str, say: Callable[[str], None]) -> bool:
    """Whether the base of a run's adapter is another one than it was trained on; `asked` is --base-model.

    Raises DataError for another one that nobody asked for, and says of one that was: their sum was never trained.
    """
    folder = run_of_model(source.found)
    began = (known_manifest(folder) if folder else {}).get("model") or {}
    if not source.base or began.get("hash") in (None, source.base):
        return False
    name = began.get("name")
    if not asked:
        raise DataError(
            f"{name}, the base of {source.name}, is not what the run began with any more; "
            f"add --base-model {name} to take it all the same"
        )
    say(f"base     {asked} has other weights than {name}, which this adapter was trained on: the sum was never trained")
    return True
