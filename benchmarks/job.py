"""What a contender's process is given and what it gives back, as JSON files: the same for all of them."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from gsm8k_core.config.train import TrainConfig
from gsm8k_core.types import Example

BUSY = 0.2  # the two rates of a sample are apart by more than that share of the faster: the machine was busy


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Row(_Frozen):
    """One row: the messages that a peer tokenises itself, and the tokens that must come out."""

    id: str
    messages: list[dict[str, str]]
    tokens: list[int]
    num_prompt: int

    @property
    def example(self) -> Example:
        return Example(self.id, tuple(self.tokens), self.num_prompt)


class Job(_Frozen):
    """What every contender is told."""

    contender: str
    framework: str
    model: Path
    device: str
    dtype: str
    out: Path  # where the sample goes


class TrainJob(Job):
    """Train on these updates, in this order, `passes` times."""

    updates: list[list[Row]]
    passes: int
    config: TrainConfig
    adapter: Path | None  # the adapter to begin with, in PEFT's layout: the same first values for everyone
    trained: Path | None  # where the trained tensors go, under Hugging Face's (PEFT's) names
    max_length: int


class GenerateJob(Job):
    """Answer these prompts, greedily."""

    prompts: list[list[int]]
    end_ids: list[int]
    max_new_tokens: int
    batch_size: int | None  # None: as many as `eval` chooses, for ours
    candidates: list[int]  # batch sizes to try, the fastest is the sample; empty: `batch_size` as it is


class ScoreJob(_Frozen):
    """Score held-out rows with the model's weights, those in `trained` in their place."""

    model: Path
    trained: Path | None
    method: str
    lora_scale: float
    rows: list[Row]
    out: Path


class TextsJob(_Frozen):
    """Compare each contender's answers with the reference's, by parity/texts.py, through float32 PyTorch on a CPU."""

    model: Path
    prompts: list[list[int]]
    end_ids: list[int]
    max_new_tokens: int
    dtype: str
    reference: str
    completions: dict[str, list[list[int]]]  # by contender; without the end token
    out: Path


class _Sample(_Frozen):
    """One run of one contender. The rate of matrix products is measured in its process, before and after its work."""

    gemm_gflops: float
    gemm_after: float | None = None  # None in the files of before 2026-11-29

    @property
    def gemm_rate(self) -> float:
        """The faster of both: the other one was measured in a slow moment."""
        return max(self.gemm_gflops, self.gemm_after or 0.0)

    @property
    def was_busy(self) -> bool:
        """Whether the machine did something else at one of the two times."""
        return min(self.gemm_gflops, self.gemm_after or self.gemm_gflops) < (1 - BUSY) * self.gemm_rate


class TrainSample(_Sample):
    """One training run of one contender."""

    seconds: list[float]  # of each update, the device waited for
    cpu: list[list[float]] = []  # of each update, each process's CPU seconds; empty in the files of before 2026-11-30
    load: float | None = None  # programs that wanted a core in the minute before, as the system counts them
    losses: list[float]  # as the contender reports them
    first_loss: float  # nats per target of the first update, pads left out, before any step
    shapes: list[list[list[int]]]  # of each update, the (B, T) of each micro-batch that ran
    load_seconds: float  # from the start of the process to the first update, less what is measured aside
    aside_seconds: float  # of measuring what no user would: the matrix-product rate, the first loss
    process_seconds: float | None = None  # from the start of the process to its end, less aside_seconds
    peak_rss: int  # bytes, of the process, before the weights are saved
    peak_framework: int | None  # bytes, as the framework counts them; None where it does not
    notes: dict[str, str] = {}


class GenerateSample(_Sample):
    """One generation run of one contender."""

    seconds: float
    warm_up_seconds: float
    batch_size: int
    tried: dict[int, float] = {}  # batch size -> tokens per second
    completions: list[list[int]]  # without the end token
    stopped: list[bool]  # ended by itself
    load_seconds: float
    peak_rss: int
    peak_framework: int | None
    notes: dict[str, str] = {}


class Score(_Frozen):
    """Negative log-likelihood of the supervised tokens of the held-out rows, summed; nats."""

    nll_sum: float
    num_targets: int

    @property
    def nll(self) -> float:
        return self.nll_sum / self.num_targets
