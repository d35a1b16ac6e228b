"""Two processes train what one does: the same losses within rung 5's tolerance, whoever goes on with a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import backends
from benchmarks.scaling import free_ports
from gsm8k_core.parity import ladder
from gsm8k_core.parity.bench import NATS
from gsm8k_core.ranks.world import World
from gsm8k_core.training import checkpoints
from tests import tiny
from tests.backends import ranks_program as program
from tests.launched import launch
from tests.waiting import CEILING, ends

CURVE = next(rung for rung in ladder.RUNGS if rung.name == "curve").tolerances[NATS]
NORM = 8e-7  # relative; measured: 8.5e-8 on torch with FSDP, 1.6e-7 on MLX
# What is compared; torch draws dropout for a whole micro-batch at once.
EQUAL = {"torch": ("full", "lora"), "mlx": ("full", "lora", "dropout"), "torch FSDP": ("full", "lora")}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """What one process of a backend finds, with its checkpoints in a folder; once for each backend."""

    @cache
    def find(name: str) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp(f"{name}-alone")
        model = tiny.make(folder / "tiny")
        found: dict[str, Any] = {"name": name, "folder": folder}
        for case in EQUAL[name]:
            backend = backends.open(name, model, "cpu", "float32")
            found[case] = program.train(backend, case, program.updates(), keep=folder / f"{name} alone {case}").stats
            found[f"{case} texts"] = program.texts(backend)
        found["policy"] = program.policy(backends.open(name, model, "cpu", "float32"))
        return found

    return find


@pytest.fixture(scope="module")
def together(alone: Callable[[str], dict[str, Any]]) -> Callable[[str], tuple[dict[str, Any], object]]:
    """What two processes of a backend find, by the way, and say; with the checkpoints of one. Launched once."""

    @cache
    def find(name: str) -> tuple[dict[str, Any], object]:
        folder, ways = alone(name)["folder"], {way: cases for way, cases in EQUAL.items() if way.split()[0] == name}
        said = launch(name, 2, [program.__file__, str(folder), json.dumps(ways)], folder).communicate(timeout=CEILING)
        found = folder / "found.json"
        return (json.loads(found.read_text()) if found.exists() else {}), said

    return find


@pytest.fixture(scope="module", params=list(EQUAL))
def found(
    request: pytest.FixtureRequest,
    alone: Callable[[str], dict[str, Any]],
    together: Callable[[str], tuple[dict[str, Any], object]],
) -> dict[str, Any]:
    """What two processes found, and one alone."""
    name, *spread = request.param.split()
    if not backends.installed(name):
        pytest.skip(f"backend {name} is not installed here")
    both, said = together(name)
    assert request.param in both, said
    more = {"way": request.param, "cases": EQUAL[request.param], "spread": bool(spread)}
    return {**alone(name), **more, "together": both[request.param]}


def gap(one: list[list[float]], other: list[list[float]]) -> float:
    """The largest difference of two loss curves."""
    assert len(one) == len(other)
    return max(abs(a[0] - b[0]) for a, b in zip(one, other, strict=True))


def norm_gap(one: list[list[float]], other: list[list[float]]) -> float:
    """The same of their gradients' norms, relative: AdamW hides a factor of all gradients from the losses."""
    return max(abs(a[3] - b[3]) / a[3] for a, b in zip(one, other, strict=True))


def test_two_processes_give_the_losses_of_one(found: dict[str, Any]) -> None:
    together = found["together"]
    for case in found["cases"]:
        assert gap(found[case], together[case]) <= CURVE
        assert norm_gap(found[case], together[case]) <= NORM
        assert [row[1] for row in found[case]] == [row[1] for row in together[case]]  # targets, of all ranks
        assert [row[4] for row in found[case]] == [row[4] for row in together[case]]  # each rate is rank 0's
    assert gap(found["full"][: program.HALF], together["control"]) > 10 * CURVE  # a mean of the ranks' means


def test_two_processes_go_on_with_what_one_saved(found: dict[str, Any]) -> None:
    for case in found["cases"]:
        assert gap(found[case][program.HALF :], found["together"][f"{case} resumed"]) <= CURVE


def test_one_process_of_either_backend_goes_on_with_what_two_saved(found: dict[str, Any]) -> None:
    for case in ("full", "lora"):
        kept = checkpoints.newest(found["folder"] / f"{found['way']} together {case}", print)
        assert kept is not None
        for name in filter(backends.installed, backends.PROVIDERS):
            backend = backends.open(name, Path(found["folder"]) / "tiny", "cpu", "float32")
            rest = program.train(backend, case, program.updates()[program.HALF :], kept.state()).stats
            assert gap(found[case][program.HALF :], rest) <= CURVE


def test_two_processes_share_the_answers(found: dict[str, Any]) -> None:
    for case in found["cases"]:
        assert found[f"{case} texts"].keys() == found["together"][f"{case} texts"].keys()
    assert found["full texts"] == found["together"]["full texts"]
    own, every = found["together"]["own"], len(program.prompts())
    # Rank 0's part of them; with weights that are spread it writes all, and the other gives its part of those.
    assert own == every if found["spread"] else 0 < own < every


def test_each_rank_of_fsdp_holds_half_of_weights_and_moments(found: dict[str, Any]) -> None:
    part = {case: found["together"].get(f"{case} parts") for case in ("full", "lora")}
    if found["name"] == "mlx":
        assert part == {"full": None, "lora": None}  # it knows of no parts
        return
    half = pytest.approx(0.5 if found["spread"] else 1.0, abs=0.01)
    assert part["full"]["trained"] == half
    assert part["lora"]["frozen"] == half
    assert part["lora"]["trained"] == 1  # an adapter is small, and whole on every rank


def test_a_token_starts_as_another_in_what_all_ranks_save(found: dict[str, Any]) -> None:
    (path,) = (found["folder"] / f"{found['way']} together started").glob("*.safetensors")
    weights = load_file(path)
    token, like = program.STARTED
    embedding = weights["model.embed_tokens.weight"]
    for rows in (embedding, weights.get("lm_head.weight", embedding)):  # tied, it has no weights of its own
        assert np.array_equal(rows[token], rows[like])
        assert not np.array_equal(rows[token + 1], rows[like])


def test_a_recipe_that_samples_by_the_weights_it_trains_gets_the_updates_of_one_process(found: dict[str, Any]) -> None:
    """The same answers, with what was forced in them, scored alike: before the first update and between all others."""
    alone, together = found["policy"], found["together"]["policy"]
    assert len(alone["parts"]) == program.ASKED
    forced = 0
    for ours, theirs in zip(together["parts"], alone["parts"], strict=True):
        for (rows, tokens, weights), (known, ids, by) in zip(ours, theirs, strict=True):
            assert (rows, tokens) == (known, ids)
            assert np.allclose(weights, by, atol=1e-4)
            forced += sum(8 in row for row in ids)
    assert forced > 20
    assert gap(alone["stats"], together["stats"]) <= CURVE
    for ours, theirs in zip(together["figures"], alone["figures"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert alone["figures"][-1]["kl"] > 2e-4
    if not found["spread"]:  # then no answer has a way to go
        assert gap(alone["stats"][:1], found["together"]["policy control"]["stats"]) > 10 * CURVE


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> int:
    """A free port, where a launcher would say that the ranks of torch find one another."""
    if not backends.installed("torch"):
        pytest.skip("backend torch is not installed here")
    port = free_ports(1)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    return port


def test_a_ring_whose_neighbour_comes_late_is_joined_again(monkeypatch: pytest.MonkeyPatch) -> None:
    if not backends.installed("mlx"):
        pytest.skip("backend mlx is not installed here")
    import mlx.core as mx

    errors = [RuntimeError("[ring] Couldn't connect (error: 111)")] * 2
    ring = SimpleNamespace(rank=lambda: 1, size=lambda: 2)

    def init(strict: bool) -> SimpleNamespace:
        if errors:
            raise errors.pop()
        return ring

    monkeypatch.setattr(mx.distributed, "init", init)
    world = World(1, 2, "mlx", "mlx.launch")
    assert backends.join(world, "cpu", CEILING).rank == 1
    assert not errors
    errors[:] = [RuntimeError("[ring] Couldn't connect (error: 111)")] * 2
    with pytest.raises(RuntimeError, match="connect"):
        backends.join(world, "cpu", -1.0)  # the time is over
    assert len(errors) == 1
    errors[:] = [RuntimeError("[ring] The hostfile is broken")]
    with pytest.raises(RuntimeError, match="hostfile"):
        backends.join(world, "cpu", CEILING)


def test_a_sum_waits_longer_than_a_rank_that_joins(place: int) -> None:
    import torch
    import torch.distributed as dist

    backends.join(World(0, 1, "torch", "torchrun"), "cpu", 20.0)
    try:
        assert dist.group.WORLD is not None
        assert dist.group.WORLD._get_backend(torch.device("cpu")).options._timeout.total_seconds() == 3600
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("agents", [False, True])
def test_a_rank_that_does_not_come_ends_the_wait(place: int, agents: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as dist

    if agents:  # torchrun has the store: to reach it shows no other rank
        held = dist.TCPStore("127.0.0.1", place, is_master=True, wait_for_workers=False)
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(RuntimeError, match=r"(?i)timed? ?out"):
        ends(lambda: backends.join(World(0, 2, "torch", "torchrun"), "cpu", 10.0 if agents else 1.0))
    assert not dist.is_initialized()
    if agents:
        assert held.check(["ranks/rank 0"])


def test_ranks_of_one_host_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.torch.memory.system_memory", lambda: (1000, 2000, "free on this machine"))
    alone = backends.device_memory("torch", "cpu")
    monkeypatch.setattr(backends, "_here", 4)
    shared = backends.device_memory("torch", "cpu")
    assert (alone.free, shared.free) == (1000, 250)
    assert shared.reason.endswith("over 4 ranks")
