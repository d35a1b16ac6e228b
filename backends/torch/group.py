"""The ranks of a run in PyTorch: torch.distributed, gloo on the CPU and NCCL between GPUs.

Gradients are summed here, once an update (with FSDP: see shards.py), and not by DDP: the head's and the embedding's are
added in place (loss.py), where DDP's hooks do not see them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from enum import IntEnum
from typing import Any

import torch
import torch.distributed as dist

from gsm8k_core.ranks.world import World

PIECE_BYTES = 64 * 2**20  # that are summed at a time: few and large, and no second copy of all gradients
MEASURED_BYTES, MEASURED_TIMES = 8 * 2**20, 3
SUM = timedelta(hours=1)  # a sum's limit: a slow rank is no lost one, which gsm8k_core/ranks/wire.py finds much sooner

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_USE_FSDP")
SETS = ("TORCHELASTIC_", "GROUP_", "ROLE_", "FSDP_")  # what others of a launcher's variables begin with

_joined: TorchGroup | None = None


class Command(IntEnum):
    """What rank 0 has the other ranks do with it where weights are spread (shards.py)."""

    END = 0
    FORWARD = 1
    BACKWARD = 2  # forward and backward
    STATE = 3  # gather what is trained, with its moments
    WEIGHTS = 4  # gather the model
    PREPARE = 5  # choose what is trained


class TorchGroup:
    """The ranks, joined. `device` is where the gradients are."""

    def __init__(self, world: World, device: str, timeout: float) -> None:
        """Raises RuntimeError when a rank does not come within `timeout` seconds."""
        self.rank, self.size = world.rank, world.size
        self.sharded = world.shards is not None
        self.reshards = world.shards is not None and world.shards.reshards
        self._in_turn = world.shards is not None and world.shards.in_turn
        self._turn, self._turns = world.local_rank, world.local_size
        if device == "cuda":
            torch.cuda.set_device(world.local_rank)
        self._device = torch.device(device if device == "cuda" else "cpu")
        self.engine = "nccl" if device == "cuda" else "gloo"
        engines = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        dist.init_process_group(
            engines, rank=world.rank, world_size=world.size, timeout=SUM, store=_assembled(world, timeout)
        )
        first = torch.zeros(1, device=self._device)  # NCCL connects at the first sum: here, where the caller watches
        dist.all_reduce(first)
        first.item()

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """In here one rank of each host after the other, where the launcher asks for that. Every rank calls it."""
        if not self._in_turn:
            yield
            return
        for turn in range(max(self.agree(self._turns))):
            if turn == self._turn:
                yield
            self.agree(0)

    def command(self, mine: Command | None = None) -> Command:
        """Rank 0's command, on every rank: those that serve wait for it here."""
        told = torch.tensor([0 if mine is None else mine.value])
        dist.broadcast(told, src=0)
        return Command(int(told))

    def first(self, data: bytes) -> bytes:
        length = torch.tensor([len(data)])
        dist.broadcast(length, src=0)
        held = bytearray(data.ljust(int(length), b"\0")[: int(length)])
        content = torch.frombuffer(held, dtype=torch.uint8).clone()
        dist.broadcast(content, src=0)
        return content.numpy().tobytes()

    def agree(self, code: int) -> list[int]:
        codes = torch.zeros(self.size, dtype=torch.int64)
        codes[self.rank] = code
        dist.all_reduce(codes)
        return [int(each) for each in codes]

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The same numbers on every rank, whatever its own device rounds to."""
        on_host = values.detach().to(self._device)
        dist.all_reduce(on_host)
        return on_host.to(values.device) / self.size

    def norm(self, own: torch.Tensor) -> torch.Tensor:
        """The Euclidean norm over all ranks, by those of their own parts."""
        squares = self.mean(own.double().square()) * self.size
        return squares.sqrt().float()

    @torch.no_grad()
    def sum(self, loss: torch.Tensor, parameters: Sequence[torch.nn.Parameter]) -> torch.Tensor:
        """The loss over all ranks; each parameter's gradient becomes the sum, in pieces of PIECE_BYTES."""
        for parameter in parameters:
            if parameter.grad is None:  # no rows here
                parameter.grad = torch.zeros_like(parameter)
        total = loss.detach().reshape(1).clone()
        self._sum([total])
        for piece in _pieces([parameter.grad for parameter in parameters if parameter.grad is not None]):
            self._sum(piece)
        return total[0]

    def _sum(self, piece: Sequence[torch.Tensor]) -> None:
        if len(piece) == 1 and piece[0].is_contiguous() and piece[0].device == self._device:
            dist.all_reduce(piece[0])
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in piece]).to(self._device)
        dist.all_reduce(flat)
        parts = flat.to(piece[0].device).split([tensor.numel() for tensor in piece])
        for tensor, part in zip(piece, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    @torch.no_grad()
    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        """Each tensor becomes rank 0's."""
        for tensor in tensors:
            copy = tensor.detach().to(self._device).contiguous()
            dist.broadcast(copy, src=0)
            tensor.copy_(copy)

    def bandwidth(self) -> float:
        values = torch.zeros(MEASURED_BYTES // 4, device=self._device)
        dist.all_reduce(values)
        seconds = []
        for _ in range(MEASURED_TIMES):
            start = time.perf_counter()
            dist.all_reduce(values)
            values[0].item()  # waits for the device
            seconds.append(time.perf_counter() - start)
        return MEASURED_BYTES / min(seconds)


def is_spread(tensor: torch.Tensor) -> bool:
    """Whether each rank has a part of it (a DTensor: looked for by what it can do, as its package takes long)."""
    return hasattr(tensor, "full_tensor")


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor that is spread over the ranks; else all of it."""
    part: torch.Tensor = tensor.to_local() if is_spread(tensor) else tensor  # type: ignore[operator]
    return part


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor. One that is spread is gathered: every rank has to ask for it."""
    full: torch.Tensor = tensor.full_tensor() if is_spread(tensor) else tensor  # type: ignore[operator]
    return full


def gather(tensors: Iterable[torch.Tensor]) -> None:
    """Take part in gathering these, for rank 0 to have them."""
    for tensor in tensors:
        whole(tensor)


def to_numpy(tensor: torch.Tensor) -> Any:
    """All of a tensor as a float32 array; on a CPU it shares the tensor's memory. Gathered as by `whole`."""
    return whole(tensor.detach()).cpu().contiguous().numpy()


def _pieces(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Neighbours of one dtype, together as large as PIECE_BYTES at most, or one larger tensor."""
    piece: list[torch.Tensor] = []
    held = 0
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if piece and (held + size > PIECE_BYTES or tensor.dtype != piece[0].dtype):
            yield piece
            piece, held = [], 0
        piece.append(tensor)
        held += size
    if piece:
        yield piece


@contextmanager
def alone() -> Iterator[None]:
    """Trainer trains, and transformers loads, as one process: what a launcher says of others is ours to act on."""
    names = [name for name in os.environ if name in LAUNCHED or name.startswith(SETS)]
    before = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(before)


def _assembled(world: World, timeout: float) -> dist.Store:
    """The store in which the ranks find one another, once all of them are there.

    It is torchrun's own where that has one, and else rank 0's. Raises RuntimeError after `timeout` seconds.
    """
    end = time.monotonic() + timeout
    store, _, _ = next(dist.rendezvous("env://", world.rank, world.size, timeout=timedelta(seconds=timeout)))
    store = dist.PrefixStore("ranks", store)
    store.set(f"rank {world.rank}", "here")
    left = timedelta(seconds=max(end - time.monotonic(), 1))
    store.wait([f"rank {rank}" for rank in range(world.size)], left)
    return store


def join(world: World, device: str, timeout: float) -> TorchGroup:
    """Join the ranks. Raises RuntimeError when one does not come."""
    global _joined
    found = "cuda" if device in ("auto", "cuda") and torch.cuda.is_available() else "cpu"
    _joined = TorchGroup(world, found, timeout)
    return _joined


def sharding() -> TorchGroup | None:
    """The ranks that this process has joined, where a model's weights are spread over them."""
    return _joined if _joined is not None and _joined.sharded else None
