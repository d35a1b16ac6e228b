"""What one benchmark run says, as tables of text; the terminal shows the narrow ones, README.md the whole."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.contenders import END_TO_END, GENERATE, contender_of, pairs
from benchmarks.job import BUSY, GenerateSample, TrainSample
from benchmarks.results import (
    FIRST_LOSS,
    NLL,
    Run,
    Sample,
    Spread,
    busy_rounds,
    first_pass_rate,
    gflop_per_example,
    memory_ratio,
    objections,
    rate,
    ratio,
    share,
    texts,
    train_rate,
    update_spread,
)
from benchmarks.scaling import NOTES, scaled
from gsm8k_core.parity.texts import EPS
from gsm8k_core.types import counted

GIB = 1 << 30
NONE = "-"
MEDIANS = "Medians of the single rounds' ratios; peak memory is the process's on a CPU, the framework's own on a GPU."


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under a title; notes below it. `narrow`: places of the columns that a terminal has room for."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    narrow: tuple[int, ...] = ()

    def for_terminal(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows of the narrow table."""
        places = self.narrow or tuple(range(len(self.columns)))
        return [self.columns[place] for place in places], [[row[place] for place in places] for row in self.rows]

    def markdown(self) -> str:
        lines = [f"### {self.title}", "", _line(self.columns), _line(["---"] * len(self.columns))]
        lines += [_line([cell.replace("|", "\\|") for cell in row]) for row in self.rows]
        return "\n".join([*lines, "", *self.notes, ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def tables(run: Run) -> list[Table]:
    """A row for each contender, then a row for each pair."""
    names = _names(run)
    first = _generation(run, names) if run.mode == GENERATE else _training(run, names)
    if run.config.get("world"):
        return [first, _scaling(run)]
    return [first, _pairs(run, names)] if pairs(names) else [first]


def _names(run: Run) -> list[str]:
    """The contenders that have a sample, in their order."""
    return [name for name in run.record["contenders"] if name in run.samples]


def work(run: Run) -> str:
    """One line: what was done."""
    config = run.config
    if run.mode == GENERATE:
        what = f"{len(run.record['prompts']['tokens'])} problems of {run.record['data']}, "
        what += f"{config['max_new_tokens']} new tokens, "
        what += f"peers at B = {config['eval_batch_size']}"
    else:
        alone = ", blocks alone" if config["trainable"] == "blocks" else ""
        what = f"{config['method']}{alone}, {_num_rows(run)} rows of {run.record['data']} in updates of "
        what += f"{config['update_size']}, B = {config['batch_size']}"
        what += "" if config["order"] == "shared" else ", peers in their own order"
        what += ", rows of every length" if config.get("select") == "spread" else ""
    return f"{run.mode}: {run.record['model']['name']}, {config['dtype']}, {what}"


def _num_rows(run: Run) -> int:
    """Rows of one pass: whole updates."""
    contenders = run.record["contenders"].values()
    return max((sum(update["rows"] for update in each["updates"]) for each in contenders), default=0)


def heading(run: Run) -> str:
    """One line: what was done, how often, on what."""
    host = run.record["host"]
    rounds = max((len(each) for each in run.samples.values()), default=0)
    return f"{work(run)}; {counted(rounds, 'round')}; {host['cpu']}, {host['cores']} cores, {host['system']}"


def _training(run: Run, names: Sequence[str]) -> Table:
    columns = (
        "contender",
        "device",
        "examples/s (p10 - p90)",
        "tokens/s",
        "first pass",
        "peak RSS",
        "framework's peak",
        "GFLOP/example",
        "of GEMM rate",
        "first loss",
        "NLL",
    )
    if run.mode == END_TO_END:
        rates = "examples/s and tokens/s: from the start of the process to the trained weights on disk, one pass."
    else:
        rates = (
            "examples/s and tokens/s (unpadded): updates whose shapes all ran before, single ones in brackets; first "
            "pass: examples/s of the others."
        )
    notes = [rates, "Peak RSS is the process's, the framework's peak what it counts itself; they do not compare."]
    if (base := run.scores.get("base")) is not None:
        notes.append(
            f"NLL: nats per target ({base.num_targets:,} targets in test rows); before training {base.nll:.4f}."
        )
    rows = tuple(_training_row(run, name) for name in names)
    notes += [*_busy(run, names), *_failures(run)]
    return Table(heading(run), columns, rows, tuple(notes), narrow=(0, 2, 5, 8, 10))


def _training_row(run: Run, name: str) -> tuple[str, ...]:
    samples = [one for one in run.samples[name].values() if isinstance(one, TrainSample)]
    rates = _known(train_rate(run, name, one) for one in samples)
    spread = update_spread(run, name) if run.mode != END_TO_END else Spread.of(rates)
    score = run.scores.get(name)
    examples = f"{statistics.median(rates):.3g}" if rates else "no steady update"
    gflop = gflop_per_example(run, name)
    return (
        name,
        run.device(name),
        f"{examples} ({spread.p10:.3g} - {spread.p90:.3g})" if spread else examples,
        _median((train_rate(run, name, one, "tokens") for one in samples), ".0f"),
        _median((first_pass_rate(run, name, one) for one in samples), ".3g"),
        *_memory(samples),
        f"{gflop:.3g}" if gflop is not None else NONE,
        _median(map(_hundredths, (share(run, name, one) for one in samples)), ".0f", " %"),
        f"{samples[0].first_loss:.4f}",
        f"{score.nll:.4f}" if score else NONE,
    )


def _memory(samples: Sequence[Sample]) -> tuple[str, str]:
    rss = (one.peak_rss / GIB for one in samples)
    own = (None if one.peak_framework is None else one.peak_framework / GIB for one in samples)
    return _median(rss, ".2f", " GiB"), _median(own, ".2f", " GiB")


def _generation(run: Run, names: Sequence[str]) -> Table:
    columns = (
        "contender",
        "device",
        "batch",
        "tokens/s (p10 - p90)",
        "problems/s",
        "peak RSS",
        "framework's peak",
        "of GEMM rate",
        "texts",
    )
    rows = []
    for name in names:
        samples = [one for one in run.samples[name].values() if isinstance(one, GenerateSample)]
        spread = Spread.of(_known(rate(run, name, one) for one in samples))
        rows.append(
            (
                name,
                run.device(name),
                str(samples[0].batch_size),
                f"{spread.median:.4g} ({spread.p10:.4g} - {spread.p90:.4g})",
                _median((len(one.completions) / one.seconds for one in samples), ".3g"),
                *_memory(samples),
                _median(map(_hundredths, (share(run, name, one) for one in samples)), ".1f", " %"),
                texts(run, name),
            )
        )
    notes = (
        f"texts: against {run.record.get('reference', 'nobody')}'s; two that part are within eps where both tokens' "
        f"float32 log-probabilities are closer than {EPS[run.config['dtype']]:g} nats. "
        "tokens/s: new tokens without end tokens.",
        *_busy(run, names),
        *_failures(run),
    )
    return Table(heading(run), columns, tuple(rows), notes, narrow=(0, 2, 3, 5, 7))


def summary(runs: Sequence[Run]) -> Table:
    """Every pair of every run in one table."""
    rows = [
        (work(run), _machine(run, mine), f"{mine} / {other}", *_compared(run, mine, other))
        for run in runs
        for mine, other in pairs(_names(run))
    ]
    columns = ("work", "machine", "pair", "peak memory", "times as fast: median (range)")
    notes = (f"{MEDIANS} The tables below say more.",)
    return Table("In short", columns, tuple(rows), notes)


def _compared(run: Run, mine: str, other: str) -> tuple[str, str]:
    """Memory and speed, mine over the other's, or why there is no ratio."""
    found, reasons = ratio(run, mine, other), objections(run, mine, other)
    if found is None:
        speed = "no rate" if run.mode == GENERATE else "no steady update"
    elif reasons:
        speed = f"does not count: {'; '.join(reasons)}"
    elif found.rounds == 1:
        speed = f"{found.median:.2f} (1 round)"
    else:
        speed = f"{found.median:.2f} ({found.lowest:.2f} - {found.highest:.2f}, {counted(found.rounds, 'round')})"
    memory = memory_ratio(run, mine, other)
    return NONE if memory is None else f"{memory:.2f}", speed


def _pairs(run: Run, names: Sequence[str]) -> Table:
    training = run.mode != GENERATE  # what differs, differs in training
    rows = [
        (f"{mine} / {other}", *_compared(run, mine, other), _differs(run, other) if training else NONE)
        for mine, other in pairs(names)
    ]
    nats = FIRST_LOSS[run.config["dtype"]]
    condition = (
        f"A speed-up counts only where the first losses agree to {nats:g} nats per target, and the NLL is no more than "
        f"{NLL:g} above the other's."
    )
    columns = ("pair, round by round", "peak memory", "times as fast: median (range)", "what is not the same")
    notes = (MEDIANS, condition) if training else (MEDIANS,)
    return Table("Pairs", columns, tuple(rows), notes, narrow=(0, 1, 2))


def _scaling(run: Run) -> Table:
    """What more processes are worth."""
    rows = []
    for each in scaled(run):
        wall, cpu = (_efficiency(values) if each.counts else "does not count" for values in (each.wall, each.cpu))
        tokens = NONE if each.tokens is None else f"{each.tokens:.0f}"
        rows.append((each.name, str(each.world), tokens, wall, cpu, f"{each.apart:.1e}"))
    loads = [one.load for of in run.samples.values() for one in of.values() if isinstance(one, TrainSample)]
    known = _known(loads)
    busy = f"Load before the runs: {min(known):.1f} to {max(known):.1f} on {run.record['host']['cores']} cores."
    columns = ("contender", "processes", "tokens/s", "efficiency", "by CPU time", "loss apart")
    notes = (*NOTES, *([busy] if known else []), f"Threads of each process: {run.record['threads']}.")
    return Table("Processes", columns, tuple(rows), notes)


def _efficiency(values: Sequence[float]) -> str:
    if not values:
        return "no steady update"
    median = statistics.median(values)
    return f"{median:.2f}" if len(values) == 1 else f"{median:.2f} ({min(values):.2f} - {max(values):.2f})"


def _machine(run: Run, name: str) -> str:
    host = run.record["host"]
    return f"{host['cpu']}, {host['cores']} cores; {run.device(name)}"


def _differs(run: Run, other: str) -> str:
    contender = contender_of(other)
    also = contender.differs_in_bfloat16 if run.config["dtype"] == "bfloat16" else ""
    return "; ".join(filter(None, (contender.differs, also))) or NONE


def _busy(run: Run, names: Sequence[str]) -> list[str]:
    """Where the two matrix-product rates of a sample, before and after, are far apart."""
    return [
        f"The machine was busy while {name} ran (round {', '.join(map(str, found))}): its matrix-product rates before "
        f"and after are more than {100 * BUSY:.0f} % apart, and the faster one counts."
        for name in names
        if (found := busy_rounds(run, name))
    ]


def _failures(run: Run) -> list[str]:
    return [f"{name} failed: {why}" for name, why in run.record["failures"].items()]


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _hundredths(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _median(values: Iterable[float | None], form: str, unit: str = "") -> str:
    known = _known(values)
    return f"{statistics.median(known):{form}}{unit}" if known else NONE
