"""What all ranks do, or none of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gsm8k_core.types import DeviceLostError, GSM8KError, OutOfMemoryError, RankLostError

if TYPE_CHECKING:
    from gsm8k_core.backend import Group

DEVICE_LOST = 100  # DeviceLostError has OutOfMemoryError's exit code


@contextmanager
def together(group: Group | None) -> Iterator[None]:
    """An error inside, on any rank, leaves the block on every rank: one would wait for the others' sum for ever.

    On the rank that it happened to, it is itself (RankLostError for one that is none of ours); on the others it is one
    of the same exit code.
    """
    if group is None:
        yield
        return
    try:
        yield
    except Exception as error:
        group.agree(_code(error))
        if isinstance(error, GSM8KError):
            raise
        # As an error of ours: what another rank says of it then is not taken for the cause.
        what = f"unexpected {type(error).__name__}: {error}"
        raise RankLostError(f"rank {group.rank} failed in this update: {what}") from error
    codes = group.agree(0)
    if failed := [rank for rank, code in enumerate(codes) if code]:
        raise _error(failed[0], codes[failed[0]])


def _code(error: Exception) -> int:
    if isinstance(error, DeviceLostError):
        return DEVICE_LOST
    return error.exit_code if isinstance(error, GSM8KError) else 1


def _error(rank: int, code: int) -> GSM8KError:
    if code == DEVICE_LOST:
        return DeviceLostError(f"rank {rank} lost its device")
    if code == OutOfMemoryError.exit_code:
        return OutOfMemoryError(f"rank {rank} ran out of memory")
    return RankLostError(f"rank {rank} failed in this update; what it wrote above says why")
