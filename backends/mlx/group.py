"""The ranks of a run in MLX: mx.distributed over whatever mlx.launch was told (ring, JACCL, NCCL)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping

import mlx.core as mx
import numpy as np

from gsm8k_core.ranks.world import World

PIECE_BYTES = 64 * 2**20  # that are summed at a time: few and large, and no second copy of all gradients
# mlx.distributed does not say which one it took; mlx.launch starts each with a variable of its own.
ENGINES = {"MLX_HOSTFILE": "ring", "MLX_IBV_DEVICES": "jaccl", "NCCL_HOST_IP": "nccl"}
NOT_YET = "Couldn't connect"  # the ring's words
MEASURED_BYTES, MEASURED_TIMES = 8 * 2**20, 3

Arrays = dict[str, mx.array]


class MLXGroup:
    """The ranks, joined. Each has the whole model."""

    sharded = False

    def __init__(self, world: World) -> None:
        """Raises RuntimeError when the engine cannot be joined."""
        self._group = mx.distributed.init(strict=True)
        self.rank, self.size = self._group.rank(), self._group.size()
        self.engine = next((name for variable, name in ENGINES.items() if variable in os.environ), "mpi")
        if (self.rank, self.size) != (world.rank, world.size):
            raise RuntimeError(f"mlx.distributed has rank {self.rank} of {self.size}, not {world.rank} of {world.size}")

    def _all_sum(self, array: mx.array) -> mx.array:
        return mx.distributed.all_sum(array, group=self._group)

    def first(self, data: bytes) -> bytes:
        length = self._from_first(np.array([len(data)], np.int32))[0]
        return (
            self._from_first(np.frombuffer(data.ljust(length, b"\0")[:length], np.uint8).astype(np.int32))
            .astype(np.uint8)
            .tobytes()
        )

    def _from_first(self, values: np.ndarray) -> np.ndarray:
        return np.array(self._all_sum(mx.array(values if self.rank == 0 else np.zeros_like(values))))

    def agree(self, code: int) -> list[int]:
        codes = np.zeros(self.size, np.int32)
        codes[self.rank] = code
        return [int(each) for each in np.array(self._all_sum(mx.array(codes)))]

    def mean(self, values: mx.array) -> mx.array:
        """The same numbers on every rank, whatever its own device rounds to."""
        return self._all_sum(values) / self.size

    def sum(self, loss: mx.array, gradients: Arrays, like: Mapping[str, mx.array]) -> tuple[mx.array, Arrays]:
        """Loss and gradients over all ranks, in pieces of PIECE_BYTES. `like` has a rank's names that has no rows."""
        own = {name: gradients.pop(name) if name in gradients else mx.zeros_like(array) for name, array in like.items()}
        total = self._all_sum(loss.reshape(1))[0]
        for names in _pieces(own):
            flat = mx.concatenate([own[name].reshape(-1) for name in names]) if len(names) > 1 else own[names[0]]
            summed = self._all_sum(flat)
            mx.eval(summed)  # in the same order on every rank, and a piece at a time
            parts = (
                mx.split(summed, np.cumsum([own[name].size for name in names])[:-1].tolist())
                if len(names) > 1
                else [summed]
            )
            for name, part in zip(names, parts, strict=True):
                own[name] = part.reshape(own[name].shape)
        return total, own

    def share(self, arrays: Arrays) -> Arrays:
        """Each array as rank 0 has it."""
        found = {}
        for name, array in arrays.items():
            found[name] = self._all_sum(array if self.rank == 0 else mx.zeros_like(array))
            mx.eval(found[name])
        return found

    def bandwidth(self) -> float:
        values = mx.zeros(MEASURED_BYTES // 4)
        mx.eval(values, self._all_sum(values))
        seconds = []
        for _ in range(MEASURED_TIMES):
            start = time.perf_counter()
            mx.eval(self._all_sum(values))
            seconds.append(time.perf_counter() - start)
        return MEASURED_BYTES / min(seconds)


def _pieces(arrays: Mapping[str, mx.array]) -> Iterator[list[str]]:
    """Names of neighbours, together as large as PIECE_BYTES at most, or of one larger array."""
    piece: list[str] = []
    held = 0
    for name, array in arrays.items():
        if piece and held + array.nbytes > PIECE_BYTES:
            yield piece
            piece, held = [], 0
        piece.append(name)
        held += array.nbytes
    if piece:
        yield piece


def join(world: World, device: str, timeout: float) -> MLXGroup:
    """Join the ranks. Raises RuntimeError when it cannot; MLX itself waits without an end, so the caller watches.

    Where a neighbour does not listen yet, the ring gives up after 31 s: it is asked again until `timeout` is over.
    """
    end = time.monotonic() + timeout
    while True:
        try:
            return MLXGroup(world)
        except RuntimeError as error:
            if NOT_YET not in str(error) or time.monotonic() > end:
                raise
