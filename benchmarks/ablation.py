"""What each part of our training brings: all of them, all but one, and none, in interleaved rounds.

    python benchmarks/ablation.py OUT.jsonl BACKEND [--dtype bfloat16] [--method lora] [--rounds 3] [--data FOLDER]

On the CPU. Each run is a process of its own on the same rows, as `python cli.py benchmark train` runs them, with parts
of the program replaced by what a plain loop does. A run whose first loss is another is refused: it would be other work.
Each run adds a line to OUT, and a table goes to the terminal. Parts overlap where one stands on another, so their gains
do not add up: a head for every position leaves no gradient that comes with the loss, and that one alone is added in
place.

Axes: B rows, T tokens, N targets, V vocabulary.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == "__main__":  # a script's own folder is on the path, the checkout is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import train_throughput
from benchmarks.config import BenchmarkConfig
from benchmarks.job import TrainJob, TrainSample
from benchmarks.record import commit, own_name
from benchmarks.results import FIRST_LOSS
from benchmarks.tables import GIB
from benchmarks.work import EXACT, Lab, first_adapter, prepare
from gsm8k_core.config.fields import DEFAULT_DATA
from gsm8k_core.models.find import resolve_model
from gsm8k_core.problems import batching
from gsm8k_core.problems.data import load_data
from gsm8k_core.training.runs import host, versions
from gsm8k_core.types import EXIT_INTERRUPTED, IGNORE_INDEX, Choice, GSM8KError, PreflightError, StorageError

ALL, NONE = "all parts", "no part"
SAME_BLAS = 2.0  # between two processes' rates of matrix products; another BLAS is 25 times apart, noise 1.3
Patches = Sequence[Any]


def without_budget(job: TrainJob) -> Patches:
    """Rows by fours, sorted within the update."""
    size = job.config.batch_size
    return [mock.patch.object(batching, "budgeted", lambda rows, most: batching.micro_batches(rows, size))]


# --- torch -----------------------------------------------------------------------------------------------------------


def all_logits_torch(job: TrainJob) -> Patches:
    """Every position through the head, all logits kept for the backward pass: transformers' own loss."""
    import torch.nn.functional as F

    from backends.torch.loss import LossModel

    def forward(self: Any, tokens_BT: Any, positions_N: Any, targets_N: Any, weights_N: Any, scale: float = 1.0) -> Any:
        labels = tokens_BT.new_full((tokens_BT.numel(),), IGNORE_INDEX).index_copy_(0, positions_N, targets_N)
        logits_BTV = self.model(**self._inputs(tokens_BT), use_cache=False).logits
        return F.cross_entropy(logits_BTV.float().flatten(0, 1), labels, reduction="sum") * scale

    return [mock.patch.object(LossModel, "forward", forward)]


def kept_logits_torch(job: TrainJob) -> Patches:
    """Targets alone meet the head, in one piece, and autograd takes the gradient."""
    import torch
    import torch.nn.functional as F

    from backends.torch.loss import HeadLoss, finished

    def apply(
        hidden_NH: Any, weight_VH: Any, compute_VH: Any, targets_N: Any, scale_N: Any, in_place: bool, finish: Any
    ) -> Any:
        cast = compute_VH.dtype != weight_VH.dtype
        with torch.autocast(hidden_NH.device.type, compute_VH.dtype if cast else None, enabled=cast):
            logits_NV = F.linear(hidden_NH, weight_VH)
        return F.cross_entropy(finished(finish, logits_NV).float(), targets_N, reduction="none").dot(scale_N)

    return [mock.patch.object(HeadLoss, "apply", apply)]


def casts_torch(job: TrainJob) -> Patches:
    """Each weight cast for each micro-batch."""
    import torch

    from backends.torch.train import UpdateTrainer

    accumulate = UpdateTrainer._accumulate

    def cast_again(self: Any, *arguments: Any) -> Any:
        torch.clear_autocast_cache()
        self.losses._cast = None
        return accumulate(self, *arguments)

    return [mock.patch.object(UpdateTrainer, "_accumulate", cast_again)]


def gradients_torch(job: TrainJob) -> Patches:
    """Head and embedding hand autograd a new (V, H) for each micro-batch."""
    from backends.torch.loss import HeadLoss, LossModel

    apply = HeadLoss.apply
    return [
        mock.patch.object(LossModel, "_inputs", lambda self, tokens_BT: {"input_ids": tokens_BT}),
        mock.patch.object(HeadLoss, "apply", lambda *arguments: apply(*arguments[:5], False, *arguments[6:])),
    ]


def mask_torch(job: TrainJob) -> Patches:
    """An attention mask for right-padded rows, which takes SDPA off its causal path."""
    from backends.torch.loss import LossModel

    inputs = LossModel._inputs

    def masked(self: Any, tokens_BT: Any) -> dict[str, Any]:
        later_BT = tokens_BT.ne(batching.PAD_ID).long().flip(1).cummax(1).values  # a pad has none but pads after it
        return {**inputs(self, tokens_BT), "attention_mask": later_BT.flip(1)}

    return [mock.patch.object(LossModel, "_inputs", masked)]


def adamw_torch(job: TrainJob) -> Patches:
    """AdamW as torch chooses it on this device."""
    import torch

    class Plain(torch.optim.AdamW):
        def __init__(self, *arguments: Any, fused: bool | None = None, **named: Any) -> None:
            super().__init__(*arguments, **named)

    return [mock.patch.object(torch.optim, "AdamW", Plain)]


# --- MLX -------------------------------------------------------------------------------------------------------------


def all_logits_mlx(job: TrainJob) -> Patches:
    """Every position through the head, all logits kept for the backward pass: mlx-lm's loss."""
    import mlx.core as mx
    import mlx.nn as nn

    import backends.mlx.train as train
    from backends.mlx.loss import head, hidden_states

    def loss_sum(model: Any, tokens_BT: Any, positions_N: Any, targets_N: Any, weights_N: Any) -> Any:
        logits_BTV = head(model, hidden_states(model, tokens_BT))
        nothing = mx.zeros((tokens_BT.size,))
        weights = nothing.at[positions_N].add(weights_N)
        # A spare target is token 0 at position 0 with weight 0; position 0 predicts no target.
        targets = nothing.astype(targets_N.dtype).at[positions_N].add(targets_N)
        losses = nn.losses.cross_entropy(logits_BTV.reshape(-1, logits_BTV.shape[-1]), targets)
        return (losses * weights).sum()

    return [mock.patch.object(train, "loss_sum", loss_sum)]


def kept_logits_mlx(job: TrainJob) -> Patches:
    """Targets alone meet the head, in one piece, and the gradient is MLX's own."""
    import mlx.core as mx

    import backends.mlx.loss as loss

    def head_loss(module: Any, hidden_NH: Any, targets_N: Any, weights_N: Any, finish: Any = loss.PLAIN) -> Any:
        logits_NV = (module.as_linear if hasattr(module, "as_linear") else module)(hidden_NH)
        logits_NV = loss.finished(finish, logits_NV).astype(mx.float32)
        picked = mx.take_along_axis(logits_NV, targets_N[:, None], axis=-1)[:, 0]
        return ((mx.logsumexp(logits_NV, axis=-1) - picked) * weights_N).sum()

    return [mock.patch.object(loss, "head_loss", head_loss)]


def operations_mlx(job: TrainJob) -> Patches:
    """MLX's own exp, SiLU and attention."""
    import mlx.core as mx

    import backends.mlx.loss as loss
    import backends.mlx.train as train

    return [
        mock.patch.object(train, "whole_array_ops", nullcontext),
        mock.patch.object(loss, "_exp", mx.exp),
    ]


def traces_mlx(job: TrainJob) -> Patches:
    """No micro-batch is compiled."""
    import backends.mlx.backend as backend
    from backends.mlx.train import MicroBatch

    return [mock.patch.object(backend, "MicroBatch", lambda model, compiled: MicroBatch(model, compiled=False))]


def waits_mlx(job: TrainJob) -> Patches:
    """Nothing is launched before the update's one wait."""
    import mlx.core as mx

    def later(*arrays: Any) -> None:  # not a mock, which would keep every array that it was given
        return

    return [mock.patch.object(mx, "async_eval", later)]


def adamw_mlx(job: TrainJob) -> Patches:
    """AdamW is not compiled."""
    import mlx.core as mx

    from backends.mlx.train import AdamW

    def step(self: Any, gradients: Any, parameters: Any, factor: float, rate: float) -> Any:
        for optimizer in self._optimizers:
            optimizer.learning_rate = rate
        return self._eager(gradients, parameters, mx.array(factor))

    return [mock.patch.object(AdamW, "step", step)]


CASTS, IN_PLACE = "one cast of the weights an update", "gradients of head and embedding in place"
PARTS: Mapping[str, Mapping[str, Callable[[TrainJob], Patches]]] = {
    "torch": {
        "budget of padded tokens": without_budget,
        "head on the targets alone, in chunks": all_logits_torch,
        "head's gradient with the loss": kept_logits_torch,
        CASTS: casts_torch,
        IN_PLACE: gradients_torch,
        "no attention mask": mask_torch,
        "fused AdamW": adamw_torch,
    },
    "mlx": {
        "budget of padded tokens": without_budget,
        "head on the targets alone, in chunks": all_logits_mlx,
        "head's gradient with the loss": kept_logits_mlx,
        "exp, SiLU and attention of our own": operations_mlx,
        "compiled micro-batch": traces_mlx,
        "launched as each micro-batch is built": waits_mlx,
        "compiled AdamW": adamw_mlx,
    },
}


def parts_of(job: TrainJob) -> list[str]:
    """The parts that this job has: float32 casts nothing, and an adapter leaves head and embedding as they are."""
    lacking = {CASTS} if job.dtype == "float32" else set()
    lacking |= {IN_PLACE} if job.config.method != "full" else set()
    return [name for name in PARTS[job.framework] if name not in lacking]


def run_without(path: Path, part: str) -> None:
    """The child: train as benchmark's contender does, without this part."""
    job = TrainJob.model_validate_json(path.read_bytes())
    importlib.import_module(f"backends.{job.framework}")  # what has to be settled before the framework starts
    removed = parts_of(job) if part == NONE else [] if part == ALL else [part]
    with ExitStack() as stack:
        for name in removed:  # entered one by one: the next one may wrap what this one put there
            for patch in PARTS[job.framework][name](job):
                stack.enter_context(patch)
        train_throughput.main(path)


def measured(path: Path, job: TrainJob, part: str) -> TrainSample:
    """One run in a process of its own."""
    job.out.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--without", part, str(path)]
    done = subprocess.run(command, env={**os.environ, **EXACT}, capture_output=True, text=True, check=False)
    if done.returncode:
        words = done.stderr.strip().splitlines() or ["it said nothing"]
        raise PreflightError(f"without {part}: exit code {done.returncode}; {words[-1]}")
    return TrainSample.model_validate_json(job.out.read_bytes())


def make_job(asked: argparse.Namespace, scratch: Path) -> TrainJob:
    """What `benchmark train` gives our contender."""
    config = BenchmarkConfig(
        model=asked.model,
        data=asked.data,
        rounds=asked.rounds,
        rows=asked.rows,
        method=asked.method,
        dtype=asked.dtype,
        passes=2,
        held_out=0,
    )
    source = resolve_model(asked.model, print)
    work = prepare(config, source, load_data(asked.data, "main", config.seed, print))
    lab = Lab(config, work, scratch, first_adapter(config, source.folder, scratch))
    return lab.train_job(f"ours-{asked.backend}", Choice("cpu", "--device cpu"), None)


def seconds(sample: TrainSample) -> float:
    """Of the last pass, in which every shape ran before."""
    return sum(sample.seconds[len(sample.seconds) // 2 :])


def table(samples: Mapping[str, Sequence[TrainSample]]) -> list[str]:
    """Medians; times as long as with all parts, round by round."""
    lines = ["| without | times as long: median (range) | peak RSS |", "|---|---|---|"]
    for part, runs in samples.items():
        longer = [seconds(run) / seconds(base) for run, base in zip(runs, samples[ALL], strict=True)]
        name = {ALL: "nothing: all parts", NONE: "all of them"}.get(part, part)
        peak = statistics.median(run.peak_rss for run in runs) / GIB
        span = f"{statistics.median(longer):.2f} ({min(longer):.2f} - {max(longer):.2f})"
        lines.append(f"| {name} | {span} | {peak:.2f} GiB |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("backend", choices=PARTS)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--method", choices=("full", "lora"), default="full")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--data", default=DEFAULT_DATA, help="as for train: a folder needs no Hub")
    asked = parser.parse_args()
    where = {"host": host(), "versions": versions(), "commit": commit()}
    told = {name: value for name, value in vars(asked).items() if name not in ("out", "rounds")}
    told |= {"model": own_name(asked.model), "data": own_name(asked.data)}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        job, path = make_job(asked, Path(folder)), Path(folder) / "job.json"
        try:
            file = stack.enter_context(asked.out.open("a", encoding="utf-8"))
        except OSError as error:
            raise StorageError(f"{asked.out} cannot be written to ({error.strerror}); name another file") from error
        path.write_text(job.model_dump_json(), encoding="utf-8")
        samples: dict[str, list[TrainSample]] = {part: [] for part in (ALL, *parts_of(job), NONE)}
        for number in range(1, asked.rounds + 1):
            for part, runs in samples.items():
                runs.append(measured(path, job, part))
                line = {**where, **told, "round": number, "without": part, "sample": runs[-1].model_dump(mode="json")}
                file.write(json.dumps(line) + "\n")
                file.flush()
                print(f"round {number}  {part:<42} {seconds(runs[-1]):.2f} s", flush=True)
                if abs(runs[-1].first_loss - samples[ALL][0].first_loss) > FIRST_LOSS[asked.dtype]:
                    raise PreflightError(f"without {part} the first loss is {runs[-1].first_loss:.5f}: other work")
                rates = runs[-1].gemm_rate, samples[ALL][0].gemm_rate
                if max(rates) > SAME_BLAS * min(rates):
                    raise PreflightError(f"without {part} products ran at {rates[0]:.0f} GFLOPS, first {rates[1]:.0f}")
    print("\n".join(table(samples)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--without"]:
        run_without(Path(sys.argv[3]), sys.argv[2])
    else:
        try:
            main()
        except GSM8KError as error:
            print(f"ablation.py: {error}", file=sys.stderr)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            print("ablation.py: interrupted; the runs that ended are in the file", file=sys.stderr)
            sys.exit(EXIT_INTERRUPTED)
