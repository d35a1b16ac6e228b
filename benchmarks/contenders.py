"""Who is measured against whom: what each contender needs, where it makes sense, and what its step computes.

What each runs is in train_throughput.py and eval_throughput.py; this is all that the command line and the tables know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from gsm8k_core.types import Choice, PreflightError

AUTO, ALL = "auto", "all"
TRAIN, GENERATE, END_TO_END = "train", "generate", "end-to-end"
Framework = Literal["mlx", "torch"]


@dataclass(frozen=True, slots=True)
class Step:
    """What a training step computes beside one forward and one backward pass; flops.py counts by it."""

    head: Literal["targets", "all", "targets on cuda"] = "all"  # rows that go through the head
    body_again: bool = False  # the blocks a second time in the backward pass (gradient checkpointing)
    head_again: bool = False  # the head a second time in the backward pass


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to do the same work."""

    name: str
    framework: Framework
    needs: tuple[str, ...]  # packages
    modes: tuple[str, ...]
    what: str  # one line for the tables
    ours: bool = False
    step: Step = field(default_factory=Step)
    differs: str = ""  # what cannot be made the same in training
    differs_in_bfloat16: str = ""  # and there besides
    best_batch: bool = False  # generation: it measures some batch sizes first and takes the fastest
    batch_times: int = 1  # training: rows in a micro-batch, times --batch-size


_MLX, _TORCH = ("mlx", "mlx_lm"), ("torch", "transformers", "accelerate")
_EVERY, _TRAINING = (TRAIN, GENERATE, END_TO_END), (TRAIN, END_TO_END)

SIGN = " x"  # in the name of a run on several processes
CONTENDERS: Mapping[str, Contender] = {
    each.name: each
    for each in (
        Contender("ours-mlx", "mlx", _MLX, _EVERY, "this project on MLX", ours=True, step=Step(head="targets")),
        Contender("ours-torch", "torch", _TORCH, _EVERY, "this project on torch", ours=True, step=Step(head="targets")),
        Contender(
            "mlx-lm",
            "mlx",
            _MLX,
            _EVERY,
            "mlx_lm.lora as shipped (AdamW with bias correction); batch_generate at the given batch size",
            differs="no clipping; each padded row trains one pad token; mean of micro-batch means; trains blocks only",
            differs_in_bfloat16="its weights are bfloat16 as well",
        ),
        Contender(
            "mlx-lm-double",
            "mlx",
            _MLX,
            _TRAINING,
            "mlx_lm.lora with twice --batch-size rows in a micro-batch",
            differs="as mlx-lm",
            batch_times=2,
        ),
        Contender(
            "trl",
            "torch",
            (*_TORCH, "trl", "datasets"),
            _TRAINING,
            "TRL SFTTrainer as shipped: gradient checkpointing on, chunked head",
            step=Step(head="targets on cuda", body_again=True, head_again=True),
        ),
        Contender(
            "trl-best",
            "torch",
            (*_TORCH, "trl", "datasets"),
            _TRAINING,
            "TRL SFTTrainer tuned: no gradient checkpointing, rows of an update sorted by length",
            step=Step(head="targets on cuda", head_again=True),
        ),
        Contender("hf", "torch", _TORCH, _EVERY, "transformers Trainer as shipped; generate at the given batch size"),
        Contender(
            "mlx-lm-best", "mlx", _MLX, (GENERATE,), "batch_generate at its own best batch size", best_batch=True
        ),
        Contender(
            "hf-best",
            "torch",
            _TORCH,
            (GENERATE,),
            "generate at its own best batch size, prompts sorted by length",
            best_batch=True,
        ),
    )
}


def name_of(name: str, world: int) -> str:
    """A contender's name on so many processes: "ours-mlx x2"."""
    return f"{name}{SIGN}{world}"


def parts_of(run: str) -> tuple[str, int]:
    """The contender's own name in the name of a run, and how many processes that says."""
    name, _, world = run.partition(SIGN)
    return name, int(world or 1)


def contender_of(run: str) -> Contender:
    """Who is behind the name of a run."""
    return CONTENDERS[parts_of(run)[0]]


@dataclass(frozen=True, slots=True)
class Hardware:
    """What the list goes by; detected once, faked in tests."""

    system: str  # platform.system(): Linux, Darwin, Windows
    machine: str  # platform.machine(): arm64, x86_64, aarch64
    installed: frozenset[str]  # packages that can be imported
    devices: frozenset[str] = frozenset()  # of metal, mps, cuda, mlx-cuda; a CPU is always there


def device_of(framework: str, here: Hardware, asked: str) -> str:
    """The device that a framework computes on, in the words of that backend's --device."""
    if asked == "cpu":
        return "cpu"
    if framework == "mlx":
        return "gpu" if here.devices & {"metal", "mlx-cuda"} else "cpu"
    return next((name for name in ("cuda", "mps") if name in here.devices), "cpu")


def missing(contender: Contender, here: Hardware) -> list[str]:
    """The packages it lacks."""
    return [package for package in contender.needs if package not in here.installed]


def choose(mode: str, asked: str, here: Hardware, device: str, trainable: str, method: str) -> dict[str, Choice]:
    """Who runs, in order, each with its device as `name` and the reason. A pure function.

    Raises PreflightError for a contender that was named and cannot run here, or when nobody can.
    """
    if asked in (AUTO, ALL):
        absent = left_out(mode, asked, here, trainable, method)
        wanted = [each for each in _candidates(mode, asked) if each.name not in absent]
    else:
        wanted = [CONTENDERS[name] for name in asked.split(",")]
    for each in wanted:
        _refuse(each, mode, here, trainable, method)
    if not wanted:
        raise PreflightError("no contender is installed here; pip install -e . (and '.[mlx-cpu]' on Linux)")
    return {each.name: Choice(device_of(each.framework, here, device), _reason(each, here, device)) for each in wanted}


def _candidates(mode: str, asked: str) -> list[Contender]:
    """Who belongs to `auto` or `all`; nobody where names were asked for."""
    able = [each for each in CONTENDERS.values() if mode in each.modes and each.batch_times == 1]
    return [each for each in able if asked == ALL or (asked == AUTO and each.ours)]


def left_out(mode: str, asked: str, here: Hardware, trainable: str, method: str) -> dict[str, str]:
    """Who would belong to `auto` or `all` and is not among them, with the reason."""
    found = {}
    for each in _candidates(mode, asked):
        lacking = missing(each, here)
        needs = f"needs {' and '.join(lacking)}, not installed" if lacking else None
        if reason := needs or _obstacle(each, trainable, method, mode):
            found[each.name] = reason
    return found


def _refuse(each: Contender, mode: str, here: Hardware, trainable: str, method: str) -> None:
    if mode not in each.modes:
        offered = ", ".join(name for name, other in CONTENDERS.items() if mode in other.modes)
        raise PreflightError(f"{each.name} has no {mode} (it has {', '.join(each.modes)}); {mode} has {offered}")
    if lacking := missing(each, here):
        extra = "bench" if each.framework == "torch" else "mlx-cpu"
        what = f"{each.name} needs {' and '.join(lacking)}, not installed here"
        raise PreflightError(f"{what}; pip install -c constraints.txt -e '.[{extra}]'")
    if obstacle := _obstacle(each, trainable, method, mode):
        raise PreflightError(f"{each.name} {obstacle}")


def _obstacle(each: Contender, trainable: str, method: str, mode: str) -> str | None:
    if not each.ours and each.framework == "mlx" and mode != GENERATE and (method, trainable) == ("full", "all"):
        return "cannot train embeddings and the final norm; compare with --trainable blocks, or --method lora"
    return None


def _reason(each: Contender, here: Hardware, asked: str) -> str:
    device = device_of(each.framework, here, asked)
    if asked == "cpu":
        return "--device cpu"
    if device == "cpu":
        return f"{each.framework} finds no GPU on this {here.system} {here.machine}"
    return {"gpu": "Metal" if "metal" in here.devices else "MLX's CUDA build", "mps": "MPS", "cuda": "CUDA"}[device]


def pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """What is compared: each of ours with every peer of its framework, and ours with each other, MLX over torch."""
    names = [name for name in names if name in CONTENDERS]  # on several processes, a run is held against itself on one
    ours = [name for name in names if CONTENDERS[name].ours]
    found = [
        (mine, peer)
        for mine in ours
        for peer in names
        if not CONTENDERS[peer].ours and CONTENDERS[peer].framework == CONTENDERS[mine].framework
    ]
    return found + ([("ours-mlx", "ours-torch")] if len(ours) == 2 else [])
