"""Which rank a process is: what a launcher sets, and what does not fit together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gsm8k_core.ranks import world
from gsm8k_core.ranks.meeting import JOIN
from gsm8k_core.ranks.world import Sharding, let_the_first_say_it, world_of
from gsm8k_core.types import UsageError

TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}


# What `accelerate launch` sets for a config file with fsdp_version: 2 and nothing else.
FSDP = {
    **TORCHRUN,
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_MIN_NUM_PARAMS": "100000000",
    "FSDP_FORWARD_PREFETCH": "false",
    "FSDP_USE_ORIG_PARAMS": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_SYNC_MODULE_STATES": "true",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "false",
}


def test_a_process_without_a_launcher_is_alone() -> None:
    assert world_of({}) is None
    assert world_of({"RANK": "0", "WORLD_SIZE": "1"}) is None
    assert world_of({"WORLD_SIZE": ""}) is None


def test_torchrun_and_accelerate_say_rank_and_size() -> None:
    found = world_of(TORCHRUN)
    assert found is not None
    assert (found.rank, found.size, found.engine, found.launcher) == (1, 4, "torch", "torchrun")
    assert (found.local_rank, found.local_size, found.host, found.leads) == (1, 2, "10.0.0.1", False)
    accelerated = world_of({**TORCHRUN, "ACCELERATE_MIXED_PRECISION": "no"})
    assert accelerated is not None
    assert accelerated.launcher == "accelerate launch"


def test_accelerate_says_that_weights_are_spread() -> None:
    assert world_of(TORCHRUN).shards is None  # type: ignore[union-attr]
    assert world_of(FSDP).shards == Sharding(reshards=True, in_turn=True)  # type: ignore[union-attr]
    other = {**FSDP, "FSDP_RESHARD_AFTER_FORWARD": "false", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}
    assert world_of(other).shards == Sharding(reshards=False, in_turn=False)  # type: ignore[union-attr]
    written = {**FSDP, "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
    assert world_of(written).shards is not None  # type: ignore[union-attr]


def test_mlx_launch_says_it_in_a_file(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(json.dumps([["10.0.0.1:5000"], ["10.0.0.2:5001"], ["10.0.0.2:5002"]]))
    found = world_of({"MLX_RANK": "2", "MLX_HOSTFILE": str(hosts)})
    assert found is not None
    assert (found.rank, found.size, found.engine, found.host) == (2, 3, "mlx", "10.0.0.1")
    assert (found.local_rank, found.local_size) == (1, 2)
    hosts.write_text("")  # mlx.launch -n 1
    assert world_of({"MLX_RANK": "0", "MLX_HOSTFILE": str(hosts)}) is None


def test_one_process_of_a_host_says_first_what_is_wrong_with_a_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert world.GRACE < JOIN  # or the first one would end because of the others
    waited: list[float] = []
    monkeypatch.setattr(world, "sleep", waited.append)
    hosts = tmp_path / "hosts"
    hosts.write_text(json.dumps([["10.0.0.1:5000"], ["10.0.0.2:5001"], ["10.0.0.2:5002"]]))
    mlx = [{"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)} for rank in range(3)]
    broken = {**TORCHRUN, "MASTER_PORT": "x"}
    for given in ({}, {**TORCHRUN, "LOCAL_RANK": "0"}, {**broken, "LOCAL_RANK": "0"}, mlx[0], mlx[1]):
        let_the_first_say_it(given)
        assert not waited
    for given in ({**TORCHRUN, "LOCAL_RANK": "1"}, {**broken, "LOCAL_RANK": "1"}, mlx[2]):
        let_the_first_say_it(given)
        assert waited.pop() == world.GRACE


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"WORLD_SIZE": "2"}, "torchrun"),
        ({**TORCHRUN, "RANK": "4"}, "RANK 4"),
        ({**TORCHRUN, "RANK": "x"}, "RANK=x is no number"),
        ({**TORCHRUN, "MASTER_PORT": ""}, "MASTER_ADDR and MASTER_PORT"),
        ({**TORCHRUN, "MASTER_PORT": "x"}, "MASTER_PORT=x is no number"),
        ({**TORCHRUN, "ACCELERATE_USE_FSDP": "true"}, "fsdp_version: 1 .* try fsdp_version: 2"),
        ({**FSDP, "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params: true .* try fsdp_offload_params: false"),
        ({**FSDP, "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, "try fsdp_state_dict_type: FULL_STATE_DICT"),
        ({**FSDP, "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, "fsdp_auto_wrap_policy: SIZE_BASED_WRAP"),
        ({**FSDP, "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "--gradient-checkpointing does that"),
        ({**FSDP, "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer"}, "leave it out"),
        ({**FSDP, "RANK": "0", "WORLD_SIZE": "1"}, "num_processes is 1"),
        ({**TORCHRUN, "ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not supported"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun is not supported"),
        ({"MLX_RANK": "0", "MLX_HOSTFILE": "/nowhere"}, "/nowhere"),
    ],
)
def test_what_does_not_fit_is_one_line(given: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        world_of(given)
    assert "\n" not in str(error.value)
