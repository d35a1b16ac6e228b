"""The files of docs/launch, read by the launchers' own parsers: what they start is a command of ours that fits."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import cli
from backends import installed
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.ranks.world import world_of

LAUNCH = Path(__file__).parents[2] / "docs" / "launch"
GIVES = 30  # seconds that torchrun gives what it ends


def accelerate(arguments: list[str]) -> tuple[Any, TrainConfig]:
    """What `accelerate launch ARGUMENTS` gives torchrun, and what it starts."""
    if not installed("torch"):
        pytest.skip("backend torch is not installed here")
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils import prepare_multi_gpu_env

    found = launch_command_parser().parse_args(arguments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("accelerate.utils.launch.is_port_in_use", lambda *unused: False)  # by someone else's training
        prepare_multi_gpu_env(found)
    assert Path(found.training_script).name == "cli.py"
    assert found.multi_gpu
    settings, _ = cli.parse(found.training_script_args)
    assert isinstance(settings, TrainConfig)
    return found, settings


def test_each_pod_is_given_its_place_and_what_it_mounts() -> None:
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    name, spec = job["metadata"]["name"], job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert (service["kind"], job["kind"], spec["completionMode"]) == ("Service", "Job", "Indexed")
    assert service["spec"]["selector"] == {"job-name": name}  # as the Job labels its pods
    assert service["spec"]["clusterIP"] == "None"  # or the pods had no names
    assert service["spec"]["publishNotReadyAddresses"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert pod["terminationGracePeriodSeconds"] > GIVES
    assert spec["backoffLimit"] == 0  # one pod alone has nobody to meet
    assert container["command"] == ["bash", "-c"]
    (line,) = container["args"]
    for index in range(spec["completions"]):
        words = shlex.split(line.replace("$JOB_COMPLETION_INDEX", str(index)))
        assert words[:3] == ["exec", "accelerate", "launch"]
        found, settings = accelerate(words[3:])
        assert int(found.node_rank) == index
        assert int(found.nnodes) == spec["completions"] == spec["parallelism"]
        assert int(found.nproc_per_node) == container["resources"]["limits"]["nvidia.com/gpu"]
        assert found.rdzv_endpoint == f"{name}-0.{pod['subdomain']}:29500"
        (mount,) = container["volumeMounts"]
        assert [mount["name"]] == [volume["name"] for volume in pod["volumes"]]
        for path in (settings.model, settings.data, str(settings.output_dir)):
            assert path.startswith(f"{mount['mountPath']}/")


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
@pytest.mark.parametrize("there", [False, True])
def test_each_node_of_slurm_starts_its_part_and_a_second_time_goes_on(there: bool, tmp_path: Path) -> None:
    script = LAUNCH / "slurm.sh"
    asked = dict(
        line.removeprefix("#SBATCH --").split("=", 1)
        for line in script.read_text().splitlines()
        if line.startswith("#SBATCH")
    )
    number, seconds = asked["signal"].split("@")
    assert (number, int(seconds) > GIVES) == ("TERM", True)
    programs = {
        "scontrol": 'echo "first"; echo "second"',
        "srun": 'for each in 0 1; do SLURM_NODEID=$each "$@"; done',
        "accelerate": 'printf "%s\\n" "$@" >> said; echo "--" >> said',
    }
    for name, does in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    run = tmp_path / "run"
    if there:
        run.mkdir()
        (run / "run.json").touch()
    given = {"SLURM_NNODES": asked["nodes"], "SLURM_JOB_NODELIST": "first,second", "OUTPUT": str(run)}
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    flags = ["--max-samples", "7"]
    subprocess.run(["bash", script, *flags], cwd=tmp_path, env={**os.environ, **given, **path}, check=True)
    nodes = (tmp_path / "said").read_text().split("\n--\n")[:-1]
    assert len(nodes) == int(asked["nodes"]) == 2
    for number_of, words in enumerate(nodes):
        launch, *rest = words.split("\n")
        assert launch == "launch"
        found, settings = accelerate(rest)
        assert (int(found.node_rank), int(found.nnodes)) == (number_of, 2)
        assert int(found.nproc_per_node) == int(asked["gres"].removeprefix("gpu:"))
        assert (found.rdzv_endpoint, asked["ntasks-per-node"]) == ("first:29500", "1")
        assert settings.resume == (str(run) if there else TrainConfig().resume)
        assert settings.max_samples == (TrainConfig().max_samples if there else 7)
        assert there or str(settings.output_dir) == str(run)


def test_accelerates_own_file_starts_one_process_for_each_gpu_of_one_host() -> None:
    if not installed("torch"):
        pytest.skip("backend torch is not installed here")
    from accelerate.commands.config.config_args import load_config_from_file

    found = load_config_from_file(str(LAUNCH / "accelerate.yaml"))
    assert (found.num_machines, found.machine_rank, found.num_processes, found.use_cpu) == (1, 0, 4, False)
    assert found.distributed_type == "MULTI_GPU"
    assert found.mixed_precision == "no"  # --dtype decides


def test_the_macs_of_the_hostfile_are_a_ring(tmp_path: Path) -> None:
    if not installed("mlx"):
        pytest.skip("backend mlx is not installed here")
    from mlx._distributed_utils.common import Hostfile

    hosts = Hostfile.from_file(LAUNCH / "hosts.json").hosts
    ring = tmp_path / "ring.json"
    ring.write_text(json.dumps([[f"{address}:32323" for address in host.ips] for host in hosts]))
    world = world_of({"MLX_RANK": "1", "MLX_HOSTFILE": str(ring)})
    assert world is not None
    assert (world.rank, world.size, world.host, world.local_size) == (1, 2, "10.0.0.1", 1)
