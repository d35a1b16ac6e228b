"""What samples of contenders say: rates, paired ratios, and whether a speed-up counts. Pure functions of the JSON.

A round runs every contender once, in turn, so a ratio is taken within a round, where the machine was the same. An
update whose shapes all ran before, in that order, is steady; the others are reported apart.

A speed-up counts only when the work was the same: the first losses agree to FIRST_LOSS nats per target, the other's
weights are no better on the held-out rows than by NLL nats per target, and no rate is above what the machine's own
matrix products reach.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.contenders import CONTENDERS, END_TO_END, GENERATE, contender_of
from benchmarks.flops import body_forward, generation_flop, update_flop
from benchmarks.job import GenerateSample, Score, TrainSample
from gsm8k_core.models.folder import ModelShape

SCHEMA = 1
# Nats per target. In float32 contenders agreed to 1e-4 (MLX's plain sums), torch's among each other to 1e-5. In
# bfloat16 each rounds at places of its own: on the same 8 rows ours and TRL's were 2.7e-3 and 4.3e-3 below float32's.
FIRST_LOSS = {"float32": 1e-3, "bfloat16": 5e-3}
NLL = 0.01  # nats per target
Sample = TrainSample | GenerateSample


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with where the middle 80 % lie."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        tenths = statistics.quantiles(values, n=10, method="inclusive")
        return cls(statistics.median(values), tenths[0], tenths[8])


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as fast (or as large) over the rounds that both ran."""

    median: float
    lowest: float
    highest: float
    rounds: int


@dataclass(frozen=True, slots=True)
class Run:
    """One results file, read."""

    record: Mapping[str, Any]
    samples: Mapping[str, Mapping[int, Sample]]  # contender -> round -> sample
    scores: Mapping[str, Score]

    @property
    def mode(self) -> str:
        return str(self.record["mode"])

    @property
    def config(self) -> Mapping[str, Any]:
        return dict(self.record["config"])

    @property
    def shape(self) -> ModelShape:
        return ModelShape(**self.record["model"]["shape"])

    def world(self, name: str) -> int:
        """How many processes a run of a contender has."""
        return int(self.record["contenders"][name].get("world", 1))

    def device(self, name: str) -> str:
        return str(self.record["contenders"][name]["device"])


def read(record: Mapping[str, Any]) -> Run:
    """A results file's content. Raises KeyError or ValueError for one of another form."""
    if record["schema"] != SCHEMA:
        raise ValueError(f"schema {record['schema']}, not {SCHEMA}")
    kind: type[Sample] = GenerateSample if record["mode"] == GENERATE else TrainSample
    samples: dict[str, dict[int, Sample]] = {}
    for entry in record["samples"]:
        samples.setdefault(entry["contender"], {})[entry["round"]] = kind.model_validate(entry["sample"])
    return Run(record, samples, {name: Score.model_validate(score) for name, score in record["scores"].items()})


# --- training ------------------------------------------------------------------------------------------------------


def steady(sample: TrainSample) -> list[int]:
    """Places of the updates whose very shapes, in their order, an earlier update had: nobody compiles anything there.

    A shape alone would not do: mlx-lm compiles one step for the first micro-batch of an update and one for the last.
    """
    seen: set[tuple[tuple[int, ...], ...]] = set()
    places = []
    for place, shapes in enumerate(sample.shapes):
        now = tuple(tuple(shape) for shape in shapes)
        if now in seen:
            places.append(place)
        seen.add(now)
    return places


def rows_of(run: Run, name: str, place: int) -> Mapping[str, int]:
    """rows, tokens (unpadded) and targets of a contender's update; every pass has the same ones."""
    updates: Sequence[Mapping[str, int]] = run.record["contenders"][name]["updates"]
    return updates[place % len(updates)]


def _per_second(run: Run, name: str, sample: TrainSample, places: Sequence[int], what: str) -> float | None:
    seconds = sum(sample.seconds[place] for place in places)
    return sum(rows_of(run, name, place)[what] for place in places) / seconds if seconds else None


def train_rate(run: Run, name: str, sample: TrainSample, what: str = "rows") -> float | None:
    """Examples (or tokens) a second over the steady updates; None without any. End to end: of the whole process."""
    if run.mode == END_TO_END:
        total = sum(rows_of(run, name, place)[what] for place in range(len(sample.seconds)))
        return total / sample.process_seconds if sample.process_seconds else None
    return _per_second(run, name, sample, steady(sample), what)


def first_pass_rate(run: Run, name: str, sample: TrainSample) -> float | None:
    """Examples a second over the updates that met a shape for the first time."""
    others = sorted(set(range(len(sample.seconds))) - set(steady(sample)))
    return _per_second(run, name, sample, others, "rows")


def flop(run: Run, name: str, sample: TrainSample, places: Sequence[int]) -> int:
    """By formula, of these updates."""
    config = run.config
    return sum(
        update_flop(
            run.shape,
            sample.shapes[place],
            rows_of(run, name, place)["targets"],
            contender_of(name).step,
            method=config["method"],
            trainable=config["trainable"],
            device=run.device(name),
        )
        for place in places
    )


def gflop_per_example(run: Run, name: str) -> float | None:
    """By formula, from the shapes that ran; None for another mode."""
    sample = next(iter(run.samples[name].values()))
    if not isinstance(sample, TrainSample):
        return None
    places = range(len(sample.seconds))
    return flop(run, name, sample, places) / sum(rows_of(run, name, place)["rows"] for place in places) / 1e9


def share(run: Run, name: str, sample: Sample) -> float | None:
    """Of the matrix-product rate that the same process measured, the faster: what the formula's GFLOP a second are.

    None end to end, and without a steady update.
    """
    if isinstance(sample, GenerateSample):
        prompts: Mapping[str, Any] = run.record["prompts"]
        each = zip(prompts["tokens"], sample.completions, strict=True)
        total = sum(generation_flop(run.shape, num_prompt, len(made)) for num_prompt, made in each)
        if CONTENDERS[name].ours:  # reads what all prompts begin with once
            shared = prompts["shared"]
            total -= (len(prompts["tokens"]) - 1) * shared * body_forward(run.shape, shared // 2)
        return total / 1e9 / sample.seconds / sample.gemm_rate
    places = [] if run.mode == END_TO_END else steady(sample)
    seconds = sum(sample.seconds[place] for place in places)
    rate = sample.gemm_rate * run.world(name)  # a process each
    return flop(run, name, sample, places) / 1e9 / seconds / rate if seconds else None


def busy_rounds(run: Run, name: str) -> list[int]:
    """The rounds of a contender in which the machine did something else, by the two matrix-product rates."""
    return [number for number, one in run.samples[name].items() if one.was_busy]


def update_spread(run: Run, name: str) -> Spread | None:
    """Examples a second of single steady updates, over all rounds."""
    values = [
        rows_of(run, name, place)["rows"] / sample.seconds[place]
        for sample in run.samples[name].values()
        if isinstance(sample, TrainSample)
        for place in steady(sample)
    ]
    return Spread.of(values) if values else None


# --- generation ----------------------------------------------------------------------------------------------------


def tokens_per_second(sample: GenerateSample) -> float:
    """New tokens, end tokens not counted."""
    return sum(map(len, sample.completions)) / sample.seconds


def texts(run: Run, name: str) -> str:
    """How the answers compare with the reference's: equal, parted at a gap below eps, parted beyond it."""
    found = run.record["texts"].get(name)
    if found is None:
        return "not compared"
    return f"{found['equal']} equal, {found['within_eps']} within eps, {found['beyond_eps']} beyond"


# --- both ----------------------------------------------------------------------------------------------------------


def rate(run: Run, name: str, sample: Sample) -> float | None:
    """What is compared: examples a second in training, new tokens a second in generation."""
    return tokens_per_second(sample) if isinstance(sample, GenerateSample) else train_rate(run, name, sample)


def ratio(run: Run, mine: str, other: str) -> Ratio | None:
    """Mine over the other's, round by round; None where no round has both."""
    found = []
    for number in sorted(run.samples[mine].keys() & run.samples[other].keys()):
        pair = [rate(run, name, run.samples[name][number]) for name in (mine, other)]
        if pair[0] is not None and pair[1]:  # a peer whose answers are all empty has a rate of 0
            found.append(pair[0] / pair[1])
    return Ratio(statistics.median(found), min(found), max(found), len(found)) if found else None


def peak(run: Run, name: str, sample: Sample) -> int | None:
    """On a CPU the process's; on a GPU, whose memory that need not hold, what the framework counted."""
    return sample.peak_rss if run.device(name) == "cpu" else sample.peak_framework


def memory_ratio(run: Run, mine: str, other: str) -> float | None:
    """Peak memory, mine over the other's: the median over the rounds, or of all samples.

    None where the two are not counted alike: on different devices, or on a GPU by two frameworks.
    """
    alike = CONTENDERS[mine].framework == CONTENDERS[other].framework or run.device(mine) == "cpu"
    if run.device(mine) != run.device(other) or not alike:
        return None
    peaks = {
        name: {number: size for number, one in run.samples[name].items() if (size := peak(run, name, one))}
        for name in (mine, other)
    }
    both = peaks[mine].keys() & peaks[other].keys()
    if both:
        return statistics.median(peaks[mine][number] / peaks[other][number] for number in both)
    if not (peaks[mine] and peaks[other]):
        return None
    return statistics.median(peaks[mine].values()) / statistics.median(peaks[other].values())


def objections(run: Run, mine: str, other: str) -> list[str]:
    """Why a speed-up of `mine` over `other` does not count; empty where it does."""
    found = [
        f"{name} is at {100 * largest:.0f} % of the measured matrix-product rate: the clock or the formula is wrong"
        for name in (mine, other)
        if (largest := max((share(run, name, one) or 0.0 for one in run.samples[name].values()), default=0.0)) > 1
    ]
    if run.mode == GENERATE:
        compared = run.record["texts"]
        found += [
            f"{name}'s texts are others ({texts(run, name)})"
            for name in (mine, other)
            if name not in compared or compared[name]["beyond_eps"]
        ]
        return found
    limit, firsts = FIRST_LOSS[run.config["dtype"]], []
    for name in (mine, other):
        one = next(iter(run.samples[name].values()))
        assert isinstance(one, TrainSample), "read() took it for one"
        firsts.append(one.first_loss)
        # Where it reports the loss that everyone is meant to have: wrong masks or sums would show there.
        if not CONTENDERS[name].differs and abs(one.losses[0] - one.first_loss) > limit:
            found.append(f"{name} reports {one.losses[0]:.4f} for its first loss, which is {one.first_loss:.4f}")
    if abs(firsts[0] - firsts[1]) > limit:
        found.append(f"the first losses are {firsts[0]:.4f} and {firsts[1]:.4f}")
    if mine not in run.scores or other not in run.scores:
        return [*found, "the weights were not scored"]
    nll = [run.scores[name].nll for name in (mine, other)]
    if nll[0] - nll[1] > NLL:
        found.append(f"its weights are worse: NLL {nll[0]:.4f} against {nll[1]:.4f}")
    return found
