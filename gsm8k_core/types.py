"""The nouns that every part shares, and the exceptions with their exit codes.

    GSM8KError
    |-- UsageError        2   a flag, a value or a combination that cannot work
    |-- PreflightError    3   this machine, or what is installed on it, cannot do it
    |-- DataError         4   problems, prompts or a model folder that cannot be used
    |-- DivergedError     5   loss, gradient, weights or logits are not finite
    |   `-- CollapsedError    a probe found that the model answers nothing any more
    |-- OutOfMemoryError  6   the device ran out of memory
    |   `-- DeviceLostError   and takes nothing more from this process
    |-- StorageError      7   a folder that cannot be written, or that another run holds
    `-- RankLostError     8   another process that shares this run is gone, or does not answer

Axes: B rows, T tokens, N targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:  # `--help` stays fast: numpy costs more than everything else in this package
    import numpy as np
    import numpy.typing as npt

    IntArray: TypeAlias = npt.NDArray[np.int32]
    FloatArray: TypeAlias = npt.NDArray[np.float32]

IGNORE_INDEX = -100
SHOWN_ROWS = 4  # ids in one line of an error
OnToken = Callable[[int, int], None]  # called with (index of the prompt, token) as each token is written
Incoming = Callable[[int], Sequence["Query"]]  # how many places are free -> the prompts that take them now, or none
FinishReason = Literal["stop", "length", "complete"]  # an end token, --max-new-tokens, or Sampling.complete
Complete = Callable[[Sequence[int]], bool]  # asked with an answer's tokens so far after each: nothing is to follow
Force = Callable[[Sequence[int]], Sequence[int]]  # an answer's tokens so far -> those that come next, or none: draw

EXIT_OK = 0
EXIT_STOPPED = 75
EXIT_INTERRUPTED = 130


class GSM8KError(Exception):
    """An error that a person can act on: one line, one exit code, no traceback without -v."""

    exit_code = 1


def counted(count: int, noun: str) -> str:
    """1 answer, 2 answers, 1,319 answers."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def first_line(error: Exception) -> str:
    """Of another library's error, whose words may go on for pages; its kind, where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class UsageError(GSM8KError):
    exit_code = 2


class PreflightError(GSM8KError):
    exit_code = 3


class DataError(GSM8KError):
    exit_code = 4


class DivergedError(GSM8KError):
    """The step of `update` was not applied; weights and moments are those of the update before."""

    exit_code = 5

    def __init__(
        self,
        what: str,
        *,
        update: int | None = None,
        tensor: str | None = None,
        rows: Sequence[str] = (),
        advice: str = "",
        damaged: bool = False,
    ) -> None:
        """`tensor` is what is not finite, in words; `rows` are the Example ids that it was found with.

        `damaged`: the weights or moments themselves are the trouble, and so they are in any dtype.
        """
        self.update, self.tensor, self.rows, self.damaged = update, tensor, tuple(rows), damaged
        place = "" if update is None else f"update {update}: "
        first = f"first not finite: {tensor}{_among(self.rows)}" if tensor else ""
        super().__init__(place + "; ".join(filter(None, (what, first, advice))))


def _among(rows: Sequence[str]) -> str:
    """` (rows a, b and 3 more)`; nothing without rows."""
    more = f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else ""
    return f" (rows {', '.join(rows[:SHOWN_ROWS])}{more})" if rows else ""


class CollapsedError(DivergedError):
    """A probe after `update`, which was applied, found nothing but token 0 (`damaged`), or logits that are not finite.

    The weights are as they are: half the rate does not mend them. The logits may be finite in another dtype.
    """


class OutOfMemoryError(GSM8KError):
    exit_code = 6


class DeviceLostError(OutOfMemoryError):
    """A kernel took too long, and the device takes nothing more from this process: another one has to go on."""


class StorageError(GSM8KError):
    exit_code = 7


class RankLostError(GSM8KError):
    exit_code = 8


@dataclass(frozen=True, slots=True)
class Choice:
    """Something that was chosen automatically, with its reason; printed and kept in the manifest."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Problem:
    """One word problem. `answer` is GSM8K's text: steps, then a last line `#### N`."""

    id: str  # stable: "<split>-<row number in its file, from 0>"
    question: str
    answer: str
    gold: str  # N as a plain decimal string: no commas, no currency sign
    template: str | None = None  # generated problems only: the template's name


@dataclass(frozen=True, slots=True)
class Example:
    """A tokenised training row: `tokens[:num_prompt]` is the prompt, the rest is supervised, but for `forced`."""

    id: str
    tokens: tuple[int, ...]
    num_prompt: int
    # Positions in `tokens`, behind the prompt, that the model never chose: they are read and never trained.
    forced: tuple[int, ...] = ()

    @property
    def num_targets(self) -> int:
        """Supervised tokens. The first token of a row is never a target; a prompt is never empty."""
        return len(self.tokens) - self.num_prompt - len(self.forced)


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """The N targets of a micro-batch, row by row: what the loss is the sum over, and nothing else of the batch is."""

    positions_N: IntArray  # (N,) int32: which row of the (B x T, H) hidden states predicts it, the one before its own
    targets_N: IntArray  # (N,) int32: the token to predict
    weights_N: FloatArray  # (N,) float32: 1 where the batch has no weights


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A micro-batch, right-padded."""

    tokens: IntArray  # (B, T) int32
    labels: IntArray  # (B, T) int32, unshifted; IGNORE_INDEX on prompt, forced tokens and padding
    weights: FloatArray | None = None  # (B, T) float32 per target; None = 1
    rows: tuple[str, ...] = ()  # Example ids, where they are known

    def targets(self) -> Targets:
        """What is trained on here, and from where it is predicted: the only place where the mask is made.

        A target is a label at position t >= 1 that is not IGNORE_INDEX. It is predicted from the positions before it,
        so by what stands at t - 1.
        """
        import numpy as np  # here, not above: `--help` reads this file

        row_N, before_N = np.nonzero(self.labels[:, 1:] != IGNORE_INDEX)  # row by row
        positions_N = (row_N * self.labels.shape[1] + before_N).astype(np.int32)
        targets_N = self.labels[row_N, before_N + 1]
        weights_N = np.ones(len(row_N), np.float32) if self.weights is None else self.weights[row_N, before_N + 1]
        return Targets(positions_N, targets_N, weights_N)

    def at_targets(self, scores_BT: FloatArray) -> FloatArray:
        """Of what `score` returns, (B, T-1), the values of the targets, (N,), in their order."""
        row_N, before_N = divmod(self.targets().positions_N, self.labels.shape[1])
        picked_N: FloatArray = scores_BT[row_N, before_N]
        return picked_N

    @property
    def num_targets(self) -> int:
        return len(self.targets().targets_N)


@dataclass(frozen=True, slots=True)
class Totals:
    """What an update holds over all ranks."""

    num_targets: int
    num_tokens: int  # padded


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """One optimizer step: its rows, already cut into micro-batches. Of several ranks, one's own rows, perhaps none."""

    number: int  # from 1, over the whole run
    epoch: int  # from 0
    rows: tuple[str, ...]  # Example ids
    micro_batches: tuple[Batch, ...]
    totals: Totals | None = None  # over all ranks, where there are several

    @property
    def num_targets(self) -> int:
        """Of the whole update, whoever computes it: the loss is divided by it."""
        return self.totals.num_targets if self.totals else sum(batch.num_targets for batch in self.micro_batches)

    @property
    def num_tokens(self) -> int:
        """Padded tokens that are really computed, on all ranks together."""
        return self.totals.num_tokens if self.totals else sum(batch.tokens.size for batch in self.micro_batches)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are drawn; the end token is not counted. Temperature 0 is greedy.

    What `force` gives is written whatever the model says, one token after the other: each counts, and may end the
    answer, as a drawn one does. It is asked on the host, never in the middle of what it gave.
    """

    max_new_tokens: int
    batch_size: int  # prompts decoded together; changes speed and memory, not the text
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    seed: int = 0
    complete: Complete | None = None  # end an answer there, too
    force: Force | None = None  # asked after each token, and after the last of those it gave; what it gives is written

    @property
    def manner(self) -> tuple[float, float, int, int]:
        """All that the draw of one token goes by, beside the logits and the key."""
        if self.temperature == 0:
            return (0.0, 1.0, 0, 0)
        return (self.temperature, self.top_p, self.top_k, self.seed)

    def ended(self, written: Sequence[int]) -> FinishReason | None:
        """Why an answer of these tokens, none of them an end token, goes no further; None where it does."""
        if self.complete is not None and self.complete(written):
            return "complete"
        return "length" if len(written) >= self.max_new_tokens else None


@dataclass(frozen=True, slots=True)
class Query:
    """One prompt of those that come while others are answered. `sampling` is its own, but for the batch's size."""

    number: int  # another one for each
    prompt: Sequence[int]
    sampling: Sampling
    key: int  # of what is drawn


@dataclass(frozen=True, slots=True)
class Completion:
    """One generated answer: token ids without the end token."""

    tokens: tuple[int, ...]
    finish_reason: FinishReason
    end_token: int | None = None  # the end token that was written, by the model or by Sampling.force; None without one
    forced: tuple[int, ...] = ()  # which of `tokens`, by place, Sampling.force wrote; the model drew the others

    @property
    def ids(self) -> tuple[int, ...]:
        """All that was written: `tokens`, and the end token where there is one."""
        return self.tokens if self.end_token is None else (*self.tokens, self.end_token)

    @property
    def num_forced_runs(self) -> int:
        """How often Sampling.force gave something: its tokens that stand together are one."""
        places = set(self.forced)
        return sum(place - 1 not in places for place in places)


@dataclass(frozen=True, slots=True)
class UpdateStats:
    """What a backend reports after each update."""

    update: int
    loss: float  # nats per target, over the whole update
    num_targets: int
    num_tokens: int  # padded tokens
    grad_norm: float  # before clipping, of the gradient of `loss`
    rate: float


@dataclass(frozen=True, slots=True, eq=False)
class TrainState:
    """What an update needs from those before it: float32 arrays under Hugging Face's names (adapters: PEFT's)."""

    step: int  # AdamW steps applied so far: t of the bias correction
    parameters: Mapping[str, FloatArray]  # those that are trained
    first_moments: Mapping[str, FloatArray]  # AdamW's m, the same names and shapes
    second_moments: Mapping[str, FloatArray]  # AdamW's v


@dataclass(frozen=True, slots=True)
class Orders:
    """The pilot's answer after an update. `stop` is the reason to end this segment, or None."""

    stop: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """Why a segment of training ended: "done", or the reason that the pilot gave, and after which update."""

    reason: str
    update: int


@dataclass(frozen=True, slots=True)
class StepEvent:
    """One line of metrics.jsonl: `{"event": name, **values}`."""

    name: str
    values: Mapping[str, object] = field(default_factory=dict)
