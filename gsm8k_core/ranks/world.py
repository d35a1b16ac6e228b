"""Which of how many processes this one is, as its launcher says in the environment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import sleep

from gsm8k_core.types import UsageError

GRACE = 30.0  # seconds in which the first rank of a host starts and fails; less than meeting.JOIN, which ends it, too
SETS = ("RANK", "WORLD_SIZE", "MLX_RANK")  # variables that say a launcher started this process


@dataclass(frozen=True, slots=True)
class Sharding:
    """How each rank holds a part of the weights only: FSDP2, as accelerate's config file says."""

    reshards: bool = True  # a block's weights are let go after its forward pass, and gathered again for its backward
    in_turn: bool = True  # the ranks of a host open the model one after another, as host memory may hold one

    @property
    def said(self) -> str:
        """As accelerate's config file says it."""
        return f"reshard_after_forward {self.reshards}, cpu_ram_efficient_loading {self.in_turn}".lower()


@dataclass(frozen=True, slots=True)
class World:
    """A place among the processes that share a run."""

    rank: int  # from 0
    size: int
    engine: str  # the backend whose engine the launcher starts: torch or mlx
    launcher: str  # what a person typed
    local_rank: int = 0  # among those of this host
    local_size: int = 1
    host: str = ""  # of rank 0, as the launcher names it; empty: it names none
    shards: Sharding | None = None  # None: each rank holds the whole model

    @property
    def reason(self) -> str:
        """Why the backend is the engine's, for a person."""
        return f"{self.launcher} starts it"

    @property
    def leads(self) -> bool:
        return self.rank == 0


def world_of(given: Mapping[str, str]) -> World | None:
    """The world of a process with this environment; None for one that is alone.

    Raises UsageError for variables that do not fit together, and for a launcher or a mode that is not supported.
    """
    if given.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("1", "true"):
        raise UsageError("DeepSpeed is not supported; start it with accelerate launch --multi_gpu, or torchrun")
    if given.get("MLX_RANK"):
        return _of_mlx(given)
    if given.get("RANK") or given.get("WORLD_SIZE"):
        return _of_torch(given)
    if any(_number(given, name) > 1 for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")):
        raise UsageError("mpirun is not supported; start it with torchrun, accelerate launch or mlx.launch")
    return None


def let_the_first_say_it(given: Mapping[str, str]) -> None:
    """What is wrong with a command line is wrong on every rank; where ranks know their place, a host's first says it.

    The others wait for their launcher, which ends all when one has failed. Were another one to fail first, the launcher
    would end the first one before that has printed its line. Whoever is still there after GRACE seconds, or gets a
    Ctrl-C, says it, too: the fault is its own.
    """
    try:
        world = world_of(given)
        waits = world is not None and world.local_rank > 0
    except UsageError:  # the variables themselves are what is wrong
        waits = given.get("LOCAL_RANK", "0") != "0"
    if waits:
        with suppress(KeyboardInterrupt):
            sleep(GRACE)


def _of_torch(given: Mapping[str, str]) -> World | None:
    size = _number(given, "WORLD_SIZE", 1)
    shards = _shards(given)
    if size <= 1 and shards is not None:
        raise UsageError("FSDP spreads a model over two processes or more: num_processes is 1; leave FSDP out of it")
    if size <= 1:
        return None
    rank = _number(given, "RANK", -1)
    if not 0 <= rank < size or not given.get("MASTER_ADDR") or not _number(given, "MASTER_PORT"):
        raise UsageError(
            f"WORLD_SIZE is {size} and RANK {given.get('RANK', 'not set')}; torchrun sets both, "
            f"MASTER_ADDR and MASTER_PORT: start it with torchrun --nproc-per-node {size}, or unset WORLD_SIZE for a "
            "run alone"
        )
    launcher = "accelerate launch" if "ACCELERATE_MIXED_PRECISION" in given else "torchrun"
    local = _number(given, "LOCAL_RANK", 0), _number(given, "LOCAL_WORLD_SIZE", 1)
    return World(rank, size, "torch", launcher, *local, host=given["MASTER_ADDR"], shards=shards)


# What accelerate's config file says of FSDP that is done, by the variable that it becomes; other values are refused.
# `accelerate launch` sets most of them by itself.
FSDP: dict[str, tuple[str, ...]] = {
    "FSDP_VERSION": ("2",),
    "FSDP_RESHARD_AFTER_FORWARD": ("true", "false"),
    "FSDP_CPU_RAM_EFFICIENT_LOADING": ("true", "false"),
    "FSDP_AUTO_WRAP_POLICY": ("transformer_based_wrap",),
    "FSDP_STATE_DICT_TYPE": ("full_state_dict",),
    "FSDP_OFFLOAD_PARAMS": ("false",),
    "FSDP_ACTIVATION_CHECKPOINTING": ("false",),
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": ("false",),
    "FSDP_TRANSFORMER_CLS_TO_WRAP": (),
    "FSDP_IGNORED_MODULES": (),
}
INSTEAD = {
    "FSDP_VERSION": "FSDP2 is, of a torch of today",
    "FSDP_AUTO_WRAP_POLICY": "each block of the model is a group of its own",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "each block of the model is a group of its own",
    "FSDP_STATE_DICT_TYPE": "a checkpoint is whole, and goes on with any number of ranks",
    "FSDP_ACTIVATION_CHECKPOINTING": "--gradient-checkpointing does that",
}


def _shards(given: Mapping[str, str]) -> Sharding | None:
    """What the launcher says of FSDP. Raises UsageError for what is not done, by its name in the config file."""
    if given.get("ACCELERATE_USE_FSDP", "false").lower() not in ("1", "true"):
        return None
    for name, known in FSDP.items():
        value = given.get(name, "" if name != "FSDP_VERSION" else "1")
        if value.lower() not in ("", "none", *known):
            asked = f"{name.lower()}: {value}"
            why = f" ({INSTEAD[name]})" if name in INSTEAD else ""
            right = known[0].upper() if known and "_" in known[0] else "".join(known[:1])
            hint = f"try {name.lower()}: {right}" if known else "leave it out"
            raise UsageError(f"{asked} of accelerate's config is not supported{why}; {hint}")
    said = {name: given.get(name, "true").lower() != "false" for name in FSDP}
    return Sharding(said["FSDP_RESHARD_AFTER_FORWARD"], said["FSDP_CPU_RAM_EFFICIENT_LOADING"])


def _of_mlx(given: Mapping[str, str]) -> World | None:
    rank, hosts = _number(given, "MLX_RANK", 0), _hosts(given)
    size = len(hosts) or _number(given, "MLX_WORLD_SIZE", 1)
    if size <= 1:
        return None
    if not 0 <= rank < size:
        raise UsageError(f"MLX_RANK is {rank}, and its hostfile has {size}; start it with mlx.launch -n {size}")
    mine = hosts[rank] if hosts else ""
    local = [each for each in range(len(hosts)) if hosts[each] == mine] or [rank]
    first = hosts[0] if hosts else given.get("NCCL_HOST_IP", "")
    return World(rank, size, "mlx", "mlx.launch", local.index(rank), len(local), first)


def _hosts(given: Mapping[str, str]) -> list[str]:
    """The address of each rank, as the ring's hostfile has it: [["10.0.0.1:32323"], ...]. JACCL's has no addresses."""
    name = given.get("MLX_HOSTFILE") or given.get("MLX_IBV_DEVICES")
    if not name:
        return []
    try:
        rows = json.loads(Path(name).read_text(encoding="utf-8") or "[]")
        if given.get("MLX_HOSTFILE"):
            return [str(row[0]).rsplit(":", 1)[0] for row in rows]
        coordinator = given.get("MLX_JACCL_COORDINATOR", "").rsplit(":", 1)[0]
        return [coordinator, *(f"rank {rank}" for rank in range(1, len(rows)))]
    except (OSError, ValueError, LookupError, TypeError):
        raise UsageError(
            f"{name}, which mlx.launch names, is no list of hosts; start it with mlx.launch -n 2"
        ) from None


def _number(given: Mapping[str, str], name: str, otherwise: int = 0) -> int:
    text = given.get(name) or str(otherwise)
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{name}={text} is no number; torchrun, accelerate launch and mlx.launch set it") from None
