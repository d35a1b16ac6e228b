"""What the contenders of a benchmark are given, and the processes that they run in."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import backends
from benchmarks.config import BenchmarkConfig
from benchmarks.contenders import CONTENDERS, END_TO_END, GENERATE, Hardware, contender_of, parts_of
from benchmarks.job import GenerateJob, Job, Row, Score, ScoreJob, TextsJob, TrainJob
from benchmarks.scaling import command, full_input, threads_each
from gsm8k_core.machine import ROOT
from gsm8k_core.models.adapter import LoraSpec, first_values, lora_spec, target_modules, write_adapter
from gsm8k_core.models.find import Source
from gsm8k_core.models.folder import ModelFolder, weight_files
from gsm8k_core.models.rendering import Rendering
from gsm8k_core.models.tensors import read_tensors
from gsm8k_core.problems.batching import make_updates
from gsm8k_core.problems.data import DataSet
from gsm8k_core.problems.prompts import make_examples, messages, prompt_tokens
from gsm8k_core.processes import end_in_order
from gsm8k_core.tracking.terminal import printable
from gsm8k_core.training.runs import versions
from gsm8k_core.types import Choice, DataError, Problem

SCRIPTS = ROOT / "benchmarks"
PACKAGES = ("mlx", "mlx_lm", "torch", "transformers", "accelerate", "trl", "datasets")
CUDA_WHEELS = ("mlx_cuda_13", "mlx_cuda_12", "mlx_cuda")
CANDIDATES = (16, 32, 64)  # batch sizes that a peer may choose from
# float32 is float32 for everyone: both frameworks may round its products to TF32 otherwise.
EXACT = {"NVIDIA_TF32_OVERRIDE": "0", "MLX_ENABLE_TF32": "0", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class ContenderFailed(Exception):
    """One contender's process ended without a sample; the others go on."""


def hardware() -> Hardware:
    """This machine, without importing a framework."""
    here = backends.detect()
    installed = frozenset(name for name in PACKAGES if importlib.util.find_spec(name) is not None)
    apple = here.system == "Darwin" and here.machine == "arm64"
    devices = {"metal", "mps"} if apple else {"cuda"} if here.cuda else set()
    if here.cuda and versions(*CUDA_WHEELS).keys() & set(CUDA_WHEELS):
        devices.add("mlx-cuda")
    return Hardware(platform.system(), platform.machine(), installed, frozenset(devices))


@dataclass(frozen=True, slots=True)
class Work:
    """The rows or prompts of a whole benchmark, and the plan of its updates."""

    source: Source
    ours: list[list[Row]]  # updates
    peers: list[list[Row]]
    held_out: list[Row]
    prompts: list[list[int]]
    end_ids: list[int]

    @property
    def num_shared(self) -> int:
        """Tokens that every prompt begins with."""
        places = zip(*self.prompts, strict=False)
        return sum(1 for _ in itertools.takewhile(lambda tokens: len(set(tokens)) == 1, places))

    def updates(self, name: str) -> list[list[Row]]:
        return self.ours if contender_of(name).ours else self.peers


def prepare(config: BenchmarkConfig, source: Source, data: DataSet) -> Work:
    """Tokenise once; core's own batching says which rows an update holds. Raises DataError where there are too few."""
    rendering = source.model.rendering
    ends = rendering.end_ids
    if config.mode == GENERATE:
        prompts = [list(prompt) for prompt in prompt_tokens(rendering, data.test[: config.problems])]
        if not prompts:
            raise DataError(f"{data.name} has no test problems to answer; give a folder with a test.jsonl")
        return Work(source, [], [], [], prompts, sorted(ends))
    if config.select == "spread":
        every = _rows(rendering, data.train, len(data.train), config.max_length)
        rows = _evenly(sorted(every, key=lambda row: len(row.tokens)), config.rows)
    else:
        rows = _rows(rendering, data.train, config.rows, config.max_length)
    whole = len(rows) // config.update_size * config.update_size
    if not whole:
        raise DataError(
            f"{len(rows)} rows of at most {config.max_length} tokens make no update of {config.update_size}; give more "
            "--max-length, more --rows or fewer --update-size"
        )
    ours = _plan(config, rows[:whole])
    held_out = _rows(rendering, data.test, config.held_out, config.max_length)
    return Work(source, ours, _peers_plan(config, ours), held_out, [], sorted(ends))


def _rows(rendering: Rendering, problems: Sequence[Problem], count: int, max_length: int) -> list[Row]:
    """The first `count` rows that are short enough."""
    found: list[Row] = []
    for start in range(0, len(problems), 256):
        part = problems[start : start + 256]
        for problem, example in zip(part, make_examples(rendering, part), strict=True):
            if len(found) < count and len(example.tokens) <= max_length:
                found.append(
                    Row(
                        id=problem.id,
                        messages=messages(problem, with_answer=True),
                        tokens=list(example.tokens),
                        num_prompt=example.num_prompt,
                    )
                )
        if len(found) == count:
            break
    return found


def _evenly(rows: Sequence[Row], count: int) -> list[Row]:
    """`count` of them in even steps, the first and the last with them; all where there are no more."""
    places = np.unique(np.linspace(0, len(rows) - 1, count).round().astype(int)) if rows else []
    return [rows[place] for place in places]


def _plan(config: BenchmarkConfig, rows: Sequence[Row]) -> list[list[Row]]:
    by_id = {row.id: row for row in rows}
    updates = make_updates(
        [row.example for row in rows],
        batch_size=config.batch_size,
        update_size=config.update_size,
        num_epochs=1,
        seed=config.seed,
    )
    return [[by_id[name] for name in update.rows] for update in updates]


def _peers_plan(config: BenchmarkConfig, ours: Sequence[Sequence[Row]]) -> list[list[Row]]:
    if config.order == "shared":
        return [list(update) for update in ours]
    rest = [row for update in ours[1:] for row in update]
    order = np.random.default_rng([config.seed, 1]).permutation(len(rest))
    shuffled = [rest[place] for place in order]
    size = config.update_size
    return [list(ours[0]), *(shuffled[start : start + size] for start in range(0, len(shuffled), size))]


def first_adapter(config: BenchmarkConfig, folder: Path, scratch: Path) -> Path | None:
    """The adapter that everyone begins with, or None for full fine-tuning."""
    spec: LoraSpec | None = lora_spec(config.train_config())
    if spec is None:
        return None
    weights = {name: value for path in weight_files(folder) for name, value in read_tensors(path).items()}
    modules = target_modules(spec, ModelFolder(folder).linear_layers)
    directory = scratch / "adapter"
    values = first_values(spec, {module: weights[f"{module}.weight"].astype(np.float32) for module in modules})
    write_adapter(directory, values, spec, str(folder))
    return directory


# --- processes -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lab:
    """Runs the scripts of benchmarks/, one process at a time."""

    config: BenchmarkConfig
    work: Work
    scratch: Path
    adapter: Path | None

    def sample(self, name: str, device: Choice, batch_size: int | None, trained: Path | None) -> dict[str, Any]:
        """One run of one contender: its sample as JSON. Raises ContenderFailed."""
        generates = self.config.mode == GENERATE
        job = self._generate(name, device, batch_size) if generates else self.train_job(name, device, trained)
        start, load = time.monotonic(), _load()
        if self.config.world:
            found = run_script("train_throughput.py", job, job.out, self._placed(name, device))
        else:
            found = run_script("eval_throughput.py" if generates else "train_throughput.py", job, job.out)
        if not generates:
            found["process_seconds"] = time.monotonic() - start - found["aside_seconds"]
            found["load"] = load
        return found

    def _placed(self, name: str, device: Choice) -> Placed:
        threads = threads_each(device.name, self.config.worlds, os.cpu_count() or 1)
        return Placed(contender_of(name).framework, parts_of(name)[1], threads)

    def train_job(self, name: str, device: Choice, trained: Path | None) -> TrainJob:
        """What a contender's training is told."""
        config = self.config
        return TrainJob(
            contender=contender_of(name).name,
            framework=contender_of(name).framework,
            model=self.work.source.folder,
            device=device.name,
            dtype=config.dtype,
            out=self.scratch / "sample.json",
            updates=self.work.updates(name),
            passes=1 if config.mode == END_TO_END else config.passes,
            config=config.train_config(contender_of(name).batch_times),
            adapter=self.adapter,
            trained=trained,
            max_length=config.max_length,
        )

    def _generate(self, name: str, device: Choice, batch_size: int | None) -> Job:
        config, contender = self.config, CONTENDERS[name]
        tries = list(CANDIDATES) if contender.best_batch and batch_size is None else []
        return GenerateJob(
            contender=name,
            framework=contender.framework,
            model=self.work.source.folder,
            device=device.name,
            dtype=config.dtype,
            out=self.scratch / "sample.json",
            prompts=self.work.prompts,
            end_ids=self.work.end_ids,
            max_new_tokens=config.max_new_tokens,
            batch_size=batch_size or config.prompts_together(contender.ours),
            candidates=tries,
        )

    def score(self, trained: Path | None) -> Score:
        """The weights on the held-out rows, by the one scorer."""
        config = self.config
        job = ScoreJob(
            model=self.work.source.folder,
            trained=trained,
            method=config.method,
            lora_scale=config.lora_alpha / config.lora_rank,
            rows=self.work.held_out,
            out=self.scratch / "score.json",
        )
        return Score.model_validate(run_script("score_weights.py", job, job.out))

    def texts(self, reference: str, completions: Mapping[str, list[list[int]]]) -> dict[str, Any]:
        """Each contender's answers against the reference's."""
        job = TextsJob(
            model=self.work.source.folder,
            prompts=self.work.prompts,
            end_ids=self.work.end_ids,
            max_new_tokens=self.config.max_new_tokens,
            dtype=self.config.dtype,
            reference=reference,
            completions=dict(completions),
            out=self.scratch / "texts.json",
        )
        return run_script("compare_texts.py", job, job.out)


def _load() -> float | None:
    if hasattr(os, "getloadavg"):
        return os.getloadavg()[0]
    return None


@dataclass(frozen=True, slots=True)
class Placed:
    """The processes of one run, and the environment of each."""

    framework: str
    world: int
    environment: Mapping[str, str]


ALONE = Placed("", 1, {})
LAUNCHER_SECONDS = 35.0  # for a launcher to end its ranks: torchrun, the slower one, gives them 30
# The last line of a rank's exception, or one that it says as it ends; torchrun's own exception says nothing of why.
ERROR = re.compile(r"(\[rank\d+\]: )?(error|[\w.]*(?<!\bChildFailed)(Error|Exception)): .")


def run_script(script: str, job: Any, out: Path, placed: Placed = ALONE) -> dict[str, Any]:
    """Run one script of benchmarks/ in a process of its own, or several, and read what it wrote.

    Raises ContenderFailed.
    """
    out.unlink(missing_ok=True)
    path = out.with_suffix(".job.json")
    path.write_text(job.model_dump_json(), encoding="utf-8")
    log = out.with_suffix(".log")
    with ExitStack() as held:
        said = held.enter_context(log.open("wb"))
        child = subprocess.Popen(
            command(placed.framework, placed.world, [str(SCRIPTS / script), str(path)]),
            stdin=held.enter_context(full_input()) if placed.world > 1 else subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env={**os.environ, **EXACT, **placed.environment},
            cwd=ROOT,
            start_new_session=placed.world > 1,
        )
        try:
            code = child.wait()
        except BaseException:  # Ctrl-C: a launcher does not get it, a child alone in a terminal does
            if placed.world > 1:
                end_in_order(child, LAUNCHER_SECONDS)  # torchrun's ranks have sessions of their own: it has to end them
            child.kill()
            child.wait()
            raise
    if code or not out.is_file():
        said_last = last_words(log.read_text(encoding="utf-8", errors="replace"), placed.world)
        why = "killed by the system: out of memory?" if code == -9 else f"exit code {code}"
        raise ContenderFailed(f"{why}; {printable(said_last)[:300]}")
    found: dict[str, Any] = json.loads(out.read_bytes())
    return found


def last_words(said: str, world: int) -> str:
    """The line that says why a run of so many processes failed: its last, or, above a launcher's, the last error."""
    lines = said.strip().splitlines() or ["it said nothing"]
    errors = [line for line in lines if ERROR.match(line)] if world > 1 else []
    return (errors or lines)[-1]
