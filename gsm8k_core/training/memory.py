"""What training takes of a machine, before a model is loaded and in its first seconds: memory, precision, disk.

The memory, from config.json, the method and the longest rows:

    process      the interpreter, the framework's code, tokenizer and rows
    weights      what is loaded, in the dtype of the products where it is not trained
    states       of what is trained: AdamW's two moments and the gradient, float32; beside half-precision products the
                 float32 weights, and in the gradient's dtype another gradient
    activations  what a micro-batch keeps for its backward pass: per block and token about 12 x hidden and
                 4 x intermediate numbers, and the attention's scores where a backend keeps them
    logits       of one chunk of targets, three times

Where weights are spread over ranks (FSDP), a rank has its part of weights and states, in float32, and beside them what
is gathered at one time: embedding and head with their gradient, and two blocks with that of one.

What differs between backends and devices is Costs: theirs, measured (docs/memory.md). All sizes in bytes.
Then: what this process may take and took, and what a container allows; which compute dtype a device is fast in, from
one measured micro-batch in each; how long saving will take, from a sample written to the very disk.

Axes: B rows, T tokens of the longest row, N = B x T.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gsm8k_core.command import typed_verb
from gsm8k_core.config.fields import AUTO
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.models.adapter import LoraSpec, lora_spec, target_modules
from gsm8k_core.models.folder import ModelFolder, ModelShape, shape_of, weight_files
from gsm8k_core.models.hub import human_size
from gsm8k_core.training.hold import ELSEWHERE
from gsm8k_core.types import Choice, DeviceLostError, OutOfMemoryError, StorageError, first_line

MARGIN = 1.15  # the prediction was within 15 % of what was measured
TIGHT = 1.3
STEP_TOKENS = 64  # the budget is lowered in such steps
PER_BLOCK_HIDDEN, PER_BLOCK_INNER = 12, 4
ADAM_BYTES, FLOAT32 = 8, 4  # a parameter
QUANTISED_BYTES = 0.63  # 4-bit weights with their scales, a parameter
ON_A_CPU, DEV_ON_A_CPU = 64, 16
AT_ONCE = tuple(2**power for power in range(9, -1, -1))  # 512 at most: an estimate for big GPUs, not a measurement
HALF = 0.5  # of what is free: the rest is for what is not reckoned, and on a Mac for everything else that runs
LESS = "--method lora, --gradient-checkpointing, or a smaller --max-length"


@dataclass(frozen=True, slots=True)
class Costs:
    """What a backend takes on a kind of device. Measured, in units of the formula."""

    process: int  # bytes before a model is there
    chunk: int  # bytes of float32 logits that are there at one time
    frozen_chunk: int  # the same where the head is not trained
    activations: float = 1.0  # times the formula, where the model is trained
    adapted: float = 1.0  # the same where an adapter is
    scores: float = 0.0  # float32 numbers kept for each head, token and token that it attends to
    again: float = 1.0  # blocks whose activations are there at one time, with --gradient-checkpointing
    half_bytes: int = 2  # of an activation with half-precision products; torch's autocast keeps some in float32
    ranks: int = 1  # that weights, gradients and moments are spread over
    working_copy: bool = False  # half-precision products get a copy of the trained weights, and gradients of their own


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """What a device has. `limit` is more than `free` where the system makes room for who asks: a Mac's does."""

    device: str
    free: int
    limit: int
    costs: Costs
    tokens: Choice  # padded tokens in a micro-batch that the device is fast with
    reason: str  # where the figures are from
    caps_alone: bool = False  # whether memory alone caps a micro-batch: --batch-size does not
    most: Choice | None = None  # padded tokens in a micro-batch that the device is right with, where more are wrong


@dataclass(frozen=True, slots=True)
class Model:
    """The sizes that decide."""

    shape: ModelShape
    num_parameters: int
    num_trained: int


def model_of(body: Mapping[str, Any], config: TrainConfig) -> Model | None:
    """From a model's config.json; None for a model whose sizes have other names."""
    try:
        shape = shape_of(body)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    heads = 1 if body.get("tie_word_embeddings", True) else 2
    every = shape.block_parameters + heads * shape.head_parameters
    spec = lora_spec(config)
    trained = every if spec is None else adapter_parameters(shape, spec)
    return Model(shape, every, shape.block_parameters if config.trainable == "blocks" else trained)


def adapter_parameters(shape: ModelShape, spec: LoraSpec) -> int:
    """Numbers of an adapter over all blocks."""
    attention, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sizes = {
        "q_proj": (attention, shape.hidden),
        "k_proj": (kv, shape.hidden),
        "v_proj": (kv, shape.hidden),
        "o_proj": (shape.hidden, attention),
        "gate_proj": (shape.inner, shape.hidden),
        "up_proj": (shape.inner, shape.hidden),
        "down_proj": (shape.hidden, shape.inner),
    }
    return shape.layers * adapter_size(
        spec, [size for name, size in sizes.items() if not spec.targets or name in spec.targets]
    )


def adapter_size(spec: LoraSpec, sizes: Iterable[Sequence[int]]) -> int:
    """Numbers in A (r, in), B (out, r) and, for DoRA, m (out,), over linear layers of these sizes (out, in)."""
    return sum(spec.rank * (rows + columns) + (rows if spec.dora else 0) for rows, columns in sizes)


@dataclass(frozen=True, slots=True)
class Need:
    """The predicted peak, in its parts."""

    process: int
    weights: int
    states: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.process + self.weights + self.states + self.activations + self.logits

    def as_json(self) -> dict[str, int]:
        names = ("process", "weights", "states", "activations", "logits")
        return {name: getattr(self, name) for name in names} | {"total": self.total}


def predict(model: Model, config: TrainConfig, dtype: str, costs: Costs, tokens: int, widest: int) -> Need:
    """The peak of an update whose micro-batches hold at most `tokens` padded tokens, or one row of `widest`."""
    shape, filled = model.shape, max(min(tokens, config.update_size * widest), widest)  # an update holds no more
    size = 4 if dtype == "float32" else 2
    adapted = config.uses_adapter
    copied = size == 2 and (costs.working_copy or adapted)
    each = ADAM_BYTES + 4 + (4 if adapted else 0) + (size * (2 if adapted else 1) if copied else 0)
    each_kept = 4 if size == 4 else costs.half_bytes
    per_token = (PER_BLOCK_HIDDEN * shape.hidden + PER_BLOCK_INNER * shape.inner) * each_kept
    per_token += int(costs.scores * 4 * shape.heads * widest)
    factor = costs.adapted if adapted else costs.activations
    blocks: float = shape.layers
    kept = 0
    if config.gradient_checkpointing:
        blocks, kept = costs.again, filled * shape.layers * shape.hidden * size
    chunk = costs.frozen_chunk if adapted else costs.chunk
    states = each * model.num_trained
    if costs.ranks > 1:  # an adapter is whole on every rank
        each = ADAM_BYTES + FLOAT32
        states = (each + FLOAT32) * model.num_trained if adapted else each * model.num_trained // costs.ranks
    return Need(
        costs.process,
        _weights(model, config, size, costs),
        states,
        kept + int(factor * blocks * filled * per_token),
        3 * min(chunk, 4 * filled * shape.vocabulary),
    )


def _weights(model: Model, config: TrainConfig, size: int, costs: Costs) -> int:
    """Of what is loaded. An adapter's own are among the states."""
    if costs.ranks > 1:
        gradients = 0 if config.uses_adapter else 1
        root = model.num_parameters - model.shape.block_parameters
        gathered = (1 + gradients) * root + (2 + gradients) * model.shape.block_parameters // model.shape.layers
        return FLOAT32 * (model.num_parameters // costs.ranks + gathered)
    if config.method == "qlora":
        return int(QUANTISED_BYTES * model.num_parameters)
    if config.uses_adapter:
        return model.num_parameters * size
    whole = model.num_parameters * 4 + (model.num_parameters * size if size < 4 else 0)
    return 2 * whole if config.kl else whole  # the first weights beside those that are trained


@dataclass(frozen=True, slots=True)
class Plan:
    """What fits."""

    model: Model
    need: Need
    tokens: Choice  # padded tokens at most in a micro-batch
    memory: DeviceMemory
    widest: int
    moments: int  # bytes of AdamW's moments, which a rehearsal has not made

    @property
    def fits(self) -> bool:
        return self.need.total * MARGIN <= self.memory.free

    @property
    def tight(self) -> bool:
        """Whether the prediction alone is not enough: one real micro-batch is worth its time."""
        return self.need.total * TIGHT > self.memory.free

    def line(self) -> str:
        """For a person."""
        tight = "" if self.fits else "; close other programs: that is tight"
        return (
            f"about {human_size(self.need.total)} of {human_size(self.memory.free)} ({self.memory.reason}) with "
            f"{self.tokens.name} padded tokens in a micro-batch{tight}"
        )

    def settled(self, config: TrainConfig, dtype: str, tokens: Choice) -> Plan:
        """The same with the dtype that was chosen on loading, and the micro-batches that will be made."""
        need = predict(self.model, config, dtype, self.memory.costs, int(tokens.name), self.widest)
        return replace(self, need=need, tokens=tokens)

    def as_json(self) -> dict[str, Any]:
        return {"predicted": self.need.as_json(), "free": self.memory.free, "tokens": int(self.tokens.name)}


def plan(
    model: Model, config: TrainConfig, dtype: str, memory: DeviceMemory, wanted: Choice, widest: int, asked: bool
) -> Plan:
    """The largest budget of padded tokens up to `wanted` that fits; one that was `asked` for stays.

    Raises OutOfMemoryError where not even one row of `widest` tokens does.
    """

    def need(tokens: int) -> Need:
        return predict(model, config, dtype, memory.costs, tokens, widest)

    least = need(widest)
    if least.total > MARGIN * memory.limit:  # the formula may be wrong by that; a trial decides what is in between
        raise OutOfMemoryError(
            f"training needs about {human_size(least.total)} for one row of {widest} tokens, and there are "
            f"{human_size(memory.limit)} ({memory.reason}); try {_less(model, config, dtype, memory, widest)}"
        )
    first, moments = int(wanted.name), ADAM_BYTES * model.num_trained
    if not config.uses_adapter:
        moments //= memory.costs.ranks
    budgets = range(first, widest, -STEP_TOKENS)
    fitting = (tokens for tokens in budgets if need(tokens).total * MARGIN <= memory.free)
    tokens = first if asked else next(fitting, min(first, widest))
    if tokens == first:
        return Plan(model, need(first), wanted, memory, widest, moments)
    why = f"{first} would take about {human_size(need(first).total)} of {human_size(memory.free)}"
    lowered = Choice(str(tokens), f"padded tokens at most in a micro-batch; {why}")
    return Plan(model, need(tokens), lowered, memory, widest, moments)


def sampling_bytes(shape: ModelShape, dtype: str, answers: int, tokens: int) -> int:
    """What so many answers take that are decoded at once, of at most `tokens` tokens, their prompts counted in.

    Keys and values of every position, and the logits of one step three times in float32.
    """
    size = 4 if dtype == "float32" else 2
    keys = 2 * shape.layers * shape.kv_heads * shape.head_dim * tokens * size
    return answers * (keys + 3 * 4 * shape.vocabulary)


def evaluated_at_once(asked: str, body: Mapping[str, Any], memory: DeviceMemory, dtype: str, tokens: int) -> Choice:
    """How many problems are answered at once where nothing is trained, each of `tokens` tokens with its prompt.

    64 rows fill the products of a CPU's few cores, and so an evaluation there does not depend on what else runs. A
    GPU's step costs almost the same for few rows and for many: as many as fit into HALF of what is free.
    """
    if asked != AUTO:
        return Choice(asked, f"--eval-batch-size {asked}")
    if memory.device == "cpu":
        return Choice(str(ON_A_CPU), "problems at once; on a CPU that fills the cores")
    model = model_of(body, TrainConfig())
    if model is None:
        return Choice(str(ON_A_CPU), "problems at once; of this model's sizes nothing is known")
    there = memory.costs.process + _weights(model, TrainConfig(), FLOAT32, memory.costs)

    def need(answers: int) -> int:
        return int(MARGIN * (there + sampling_bytes(model.shape, dtype, answers, tokens)))

    answers = next((size for size in AT_ONCE if need(size) <= HALF * memory.free), AT_ONCE[-1])
    why = f"about {human_size(need(answers))} of {human_size(memory.free)} ({memory.reason})"
    return Choice(str(answers), f"problems at once, {AT_ONCE[0]} at most and in half of the memory: {why}")


def answers_at_once(plan: Plan, config: TrainConfig, dtype: str, tokens: int, wanted: int) -> Choice:
    """How many answers to sample at once: `wanted`, or half, and so on, until they fit beside the training's states."""
    model, free = plan.model, plan.memory.free
    costs, size = plan.memory.costs, 4 if dtype == "float32" else 2
    there = costs.process + _weights(model, config, size, costs) + plan.moments

    def need(answers: int) -> int:
        return there + sampling_bytes(model.shape, dtype, answers, tokens)

    answers = wanted
    while answers > 1 and need(answers) * MARGIN > free:
        answers //= 2
    why = f"{wanted} would take about {human_size(need(wanted))}: " if answers < wanted else ""
    return Choice(str(answers), f"{why}about {human_size(need(answers))} of {human_size(free)} while sampling")


def dev_at_once(plan: Plan | None, config: TrainConfig, dtype: str, tokens: int, problems: int) -> Choice:
    """How many of the dev problems are answered at once beside a training, in the guard's rounds as well."""
    if plan is None or plan.memory.device == "cpu":
        why = (
            "dev problems at once: reading their prompts cannot be interrupted, and is to take no longer than an update"
        )
        return Choice(str(DEV_ON_A_CPU), why)
    found = answers_at_once(plan, config, dtype, tokens, min(problems, AT_ONCE[0]))
    return Choice(found.name, f"dev problems at once; {found.reason}")


def _less(model: Model, config: TrainConfig, dtype: str, memory: DeviceMemory, widest: int) -> str:
    """What to type so that it fits, with what it would take; else all that may help."""
    if config.resume:
        return "closing other programs; a run that goes on keeps its method"
    changes: list[dict[str, Any]] = [{"gradient_checkpointing": True}, {"method": "lora"}]
    changes.append({"method": "lora", "gradient_checkpointing": True})
    words = {"gradient_checkpointing": "--gradient-checkpointing", "method": "--method lora"}
    for change in changes:
        changed = config.model_copy(update=change)
        if changed == config:
            continue
        smaller = replace(model, num_trained=_trained(model, changed))
        total = predict(smaller, changed, dtype, memory.costs, widest, widest).total
        if total * MARGIN <= memory.free:
            return f"{' '.join(words[name] for name in change)} (about {human_size(total)})"
    return f"{LESS}, a smaller model, or close other programs"


def _trained(model: Model, config: TrainConfig) -> int:
    spec = lora_spec(config)
    return model.num_trained if spec is None else adapter_parameters(model.shape, spec)


# --- what there is --------------------------------------------------------------------------------------------


CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
NO_LIMIT = 2**60  # version 1 writes a huge number where there is none


def system_memory(cgroups: Path = CGROUPS, own: Path = OWN_GROUPS) -> tuple[int, int, str]:
    """Bytes that this process may hold now, what it holds included; all that there is; and where that is from."""
    import psutil  # type: ignore[import-untyped]  # here, not above: only who asks needs it

    now, held = psutil.virtual_memory(), int(psutil.Process().memory_info().rss)
    free, total, reason = int(now.available) + held, int(now.total), "free on this machine"
    for limit, used in container_limits(cgroups, own):
        if limit < total:
            total, reason = limit, "the container's limit"
        free = min(free, limit - used + held)
    return max(free, 0), total, reason


def peak_rss() -> int:
    """Bytes that this process held at its peak. The kernel counts in KiB on Linux, in bytes on macOS."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource  # here, not above: Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def container_limits(cgroups: Path, own: Path) -> Iterator[tuple[int, int]]:
    """(limit, used) in bytes of each control group that this process is in and that has a limit, versions 1 and 2."""
    try:
        lines = own.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return  # not Linux
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root, names = cgroups, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root, names = cgroups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root) and (found := _limit(folder, *names)) is not None:
                yield found


def _limit(folder: Path, limit: str, used: str) -> tuple[int, int] | None:
    try:
        most = (folder / limit).read_text(encoding="ascii").strip()
        now = int((folder / used).read_text(encoding="ascii"))
        pages = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return None
    if most == "max" or int(most) >= NO_LIMIT:
        return None
    return int(most), max(now - int(pages.get("inactive_file", 0)), 0)  # pages of files are given back when asked for


SMALLER = {
    "train": "try a smaller --micro-batch-tokens or --max-length",
    "": "try a smaller --micro-batch-tokens, --max-length or --eval-batch-size",  # called by another program
}
# How CUDA and Metal say that they take nothing more from this process: the one's context is gone, the other ignores it.
LOST = ("launch timed out", "prior/excessive gpu errors")
# How they say that their watchdog ended a kernel, and Metal of what was queued behind it. Smaller micro-batches have
# shorter ones.
VICTIM = ("victim of gpu error", "innocent victim", "innocentvictim")
TOO_LONG = ("caused gpu timeout", "caused gpu hang", "impacting interactivity", *VICTIM, *LOST)


def smaller() -> str:
    """What takes less memory, by the flags that the verb has which was typed."""
    return SMALLER.get(typed_verb(), "try a smaller --eval-batch-size or --max-new-tokens")


@contextmanager
def memory_error(framework: str, words: Collection[str]) -> Iterator[None]:
    """While inside, a framework's several ways to say that memory ran out are one error.

    They are MemoryError, and any RuntimeError that has one of `words` (lower case) in it. A kernel that the system's
    watchdog ended is the same error, as the same mends it.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error).lower()
        what = f"{framework} ran out of memory"
        if any(word in text for word in TOO_LONG):
            what = f"the system ended a kernel of {framework} that took too long"
        elif not isinstance(error, MemoryError) and not any(word in text for word in words):
            raise
        kind = DeviceLostError if any(word in text for word in LOST) else OutOfMemoryError
        raise kind(f"{what}; {smaller()} ({first_line(error)[:160]})") from error


# --- the compute dtype ----------------------------------------------------------------------------------------

PROBE_SECONDS = 10.0
# Another dtype is taken only where it is clearly faster: float32 is what every other figure is compared with.
FASTER = 1.1
TIMED = "one micro-batch, forward and backward"
NOT_FINITE, OUT_OF_MEMORY = "not finite", "out of memory"


def gflops(product: Callable[[], object], size: int, rounds: int = 4) -> float:
    """The rate of `product`, of two square matrices of that size, in GFLOPS: the best of `rounds`.

    It must wait for its device.
    """
    best = math.inf
    for _ in range(rounds):
        start = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def time_each(
    candidates: Sequence[str], step: Callable[[str], str], clock: Callable[[], float] = time.perf_counter
) -> dict[str, float | str]:
    """Seconds of one micro-batch in each dtype, or the word for why it is out.

    `step` computes it once, forward and backward, and returns that word, or nothing; a RuntimeError of it is what a
    device says that lacks a kernel for a dtype. A candidate runs twice and the second time counts, because the first
    compiles; but nothing begins that would not end within PROBE_SECONDS if it took as long as the slowest so far: a
    slow device is measured less, and not for minutes.
    """
    found: dict[str, float | str] = {}
    began, slowest = clock(), 0.0
    for dtype in candidates:
        if found and clock() - began + slowest > PROBE_SECONDS:
            break
        start = clock()
        reason = _tried(step, dtype)
        found[dtype] = reason or clock() - start
        if not reason and 2 * clock() - start - began <= PROBE_SECONDS:
            start = clock()
            found[dtype] = _tried(step, dtype) or clock() - start
        slowest = max(slowest, clock() - start)
    return found


def _tried(step: Callable[[str], str], dtype: str) -> str:
    try:
        return step(dtype)
    except RuntimeError as error:
        return f"fails ({first_line(error)[:160]})"


def fastest(found: Mapping[str, float | str]) -> Choice:
    """The dtype to take, with the figures. float32, the first candidate, is taken when nothing is clearly faster."""
    said = ", ".join(f"{dtype} {value if isinstance(value, str) else _ms(value)}" for dtype, value in found.items())
    timed = {dtype: value for dtype, value in found.items() if not isinstance(value, str)}
    best = min(timed, key=lambda dtype: timed[dtype], default="float32")
    if "float32" in timed and timed["float32"] < FASTER * timed[best]:
        best = "float32"
    return Choice(best, f"{TIMED}: {said}")


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


# --- the disk -------------------------------------------------------------------------------------------------

SAMPLE_BYTES = 64 << 20


def saved_bytes(folder: Path, spec: LoraSpec | None) -> int:
    """Bytes of what is trained of the model in `folder`, in float32: the adapter `spec`, or the whole model."""
    from safetensors import safe_open

    shapes: dict[str, list[int]] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="numpy") as file:
            shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    if spec is None:
        return FLOAT32 * sum(math.prod(shape) for shape in shapes.values())
    targets = target_modules(spec, ModelFolder(folder).linear_layers)
    return FLOAT32 * adapter_size(spec, [shapes[f"{name}.weight"] for name in targets])


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes that a run writes, and what is free where it writes them."""

    model: int  # weights of the final model, or of the adapter
    checkpoint: int
    least: int  # the final model and one checkpoint: without it, a run could end with nothing
    needed: int  # the most that it ever has: models, checkpoints that are kept, and one more while it is written
    free: int
    folder: Path  # the nearest that is there

    def line(self) -> str:
        """For a person."""
        return (
            f"about {human_size(self.needed)} ({human_size(self.model)} the model, "
            f"{human_size(self.checkpoint)} a checkpoint); {human_size(self.free)} free in {self.folder}"
        )

    def as_json(self) -> dict[str, Any]:
        names = ("needed", "least", "model", "checkpoint", "free")
        return {name: getattr(self, name) for name in names} | {"folder": str(self.folder)}

    def check(self, elsewhere: str = ELSEWHERE) -> None:
        """Raises StorageError where there is no room for what a run leaves in any case."""
        if self.least > self.free:
            raise StorageError(
                f"{self.folder} has {human_size(self.free)} free, and the model with one checkpoint takes "
                f"{human_size(self.least)}; free {human_size(self.least - self.free)}, or {elsewhere}"
            )


def room_for(config: TrainConfig, model: int, num_trained: int, files: int, base: int, folder: Path) -> Room:
    """What a run in `folder` takes, by bytes of its weights, of the files beside them in each copy, and of base/."""
    checkpoint = model + ADAM_BYTES * num_trained
    copies = 2 if config.uses_adapter else 1  # mlx-adapter/ as well
    num_models = copies + (1 if config.eval_steps else 0)
    num_checkpoints = config.save_total_limit + 1 if config.save_every else 1
    least = base + copies * (model + files) + checkpoint + files
    needed = base + num_models * (model + files) + num_checkpoints * (checkpoint + files)
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return Room(model, checkpoint, least, needed, shutil.disk_usage(place).free, place)


def write_seconds(folder: Path, num_bytes: int) -> float:
    """What writing and hashing so many bytes in `folder` may take. Raises StorageError where nothing can be written.

    A sample waits for the disk at its end as a whole save does, so it errs to the long side: 2.3 s for 540 MB where a
    checkpoint of 1.6 GB took 4.0 s. No more is written than will be.
    """
    try:
        # The room is the run's, not the sample's.
        size = max(1, min(SAMPLE_BYTES, num_bytes, shutil.disk_usage(folder).free // 4))
        sample = (os.urandom(1 << 20) * (1 + (size >> 20)))[:size]
        began = time.monotonic()
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(sample)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(f"{folder} cannot be written ({error.strerror}); free some space") from error
    hashlib.sha256(sample)
    return (time.monotonic() - began) * num_bytes / len(sample)
