"""Results files -> a plot beside each, and the README.md above them. From the JSON alone: nothing is measured here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.bars import Bars, save_bars
from benchmarks.contenders import GENERATE
from benchmarks.flops import APPLE_TFLOPS, floors
from benchmarks.results import Run, gflop_per_example, peak, rate, read
from benchmarks.tables import GIB, Table, heading, summary, tables, work
from gsm8k_core.files import read_json, write_bytes
from gsm8k_core.types import DataError, GSM8KError

BEGIN = "<!-- made by `python cli.py benchmark report` from results/*.json: what is written by hand here is lost -->"
MAC_CONTENDERS = ("ours-mlx", "ours-torch", "mlx-lm")  # what a Mac would run first
INTRODUCTION = (
    "Every number on this page is made from the files in `results/`; each holds its machine, versions, commit,",
    "settings and every single measurement. One process for each contender and round, rounds interleaved, the same",
    "rows in the same order, the same optimizer and precision, the device waited for before the clock is read.",
)


def write_report(results: Path) -> list[Path]:
    """A PNG for each run into `results`, and README.md into the folder above; returns what was written.

    Raises DataError where there is no result, or one that this version cannot read.
    """
    runs = [(path, _read(path)) for path in sorted(results.glob("*.json"))]
    if not runs:
        raise DataError(f"{results} holds no results; python cli.py benchmark train makes one")
    readme = results.parent / "README.md"
    if readme.exists() and not readme.read_text(encoding="utf-8", errors="replace").startswith(BEGIN):
        raise DataError(
            f"{readme} was written by somebody else and stays; move {results} into a folder of its own, as benchmarks/"
        )
    parts, pictures = [BEGIN, "", "# Benchmarks", "", *INTRODUCTION, ""], []
    if (short := summary([run for _, run in runs])).rows:
        parts += [short.markdown()]
    for path, run in runs:
        picture = path.with_suffix(".png")
        save_bars(bars(run), picture)
        pictures.append(picture)
        shown = Path(os.path.relpath(picture, readme.parent)).as_posix()
        parts += [f"## {path.stem}", "", origin(run), "", f"![{heading(run)}]({shown})", ""]
        parts += [table.markdown() for table in tables(run)]
    if floor := floor_table([run for _, run in runs]):
        parts += ["## Computed, not measured", "", floor.markdown()]
    write_bytes(readme, ("\n".join(parts).rstrip() + "\n").encode())
    return [readme, *pictures]


def _read(path: Path) -> Run:
    try:
        run = read(read_json(path))
        for line in (heading, origin, tables):  # what they name has to be there
            line(run)
        return run
    except (KeyError, ValueError, TypeError, ArithmeticError, GSM8KError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} is not a result of this version ({reason}); move it to another folder") from error


def origin(run: Run) -> str:
    """When, with what, from which commit."""
    commit = run.record["commit"]
    where = f"commit {commit['hash'][:12]}{', changed since' if commit['changed'] else ''}" if commit else "no commit"
    versions = ", ".join(f"{name} {version}" for name, version in run.record["versions"].items())
    return f"{run.record['started']}, {where}; {versions}."


def bars(run: Run) -> Bars:
    """The picture of a run: the median rate of each contender, with every round as a dot; memory where none has one."""
    unit = "new tokens a second" if run.mode == GENERATE else "examples a second"
    rates = {name: [rate(run, name, one) for one in each.values()] for name, each in run.samples.items()}
    known = {name: [value for value in values if value is not None] for name, values in rates.items()}
    found = {name: values for name, values in known.items() if values}
    if not found:
        unit = "GiB of peak memory"
        sizes = {name: [peak(run, name, one) for one in each.values()] for name, each in run.samples.items()}
        found = {name: [size / GIB for size in known if size] for name, known in sizes.items() if any(known)}
    return Bars(heading(run), unit, found)


def floor_table(runs: Sequence[Run]) -> Table | None:
    """What training on Apple's GPUs cannot be faster than, from the shapes that ran here; None without a training."""
    rows: dict[str, tuple[str, ...]] = {}  # the first run of the same work is enough
    for run in runs:
        for name in run.samples:
            gflop = gflop_per_example(run, name)
            if gflop is not None and run.config["dtype"] == "float32" and name in MAC_CONTENDERS:
                seconds = (f"{each:.3g}" for each in floors(gflop).values())
                rows.setdefault(f"{work(run)}: {name}", (f"{gflop:.3g}", *seconds))
    notes = (
        "Nothing here was run. It is GFLOP per example, counted from the shapes that ran on the machines above, over "
        "the GPU's float32 peak as Apple states it (attention's whole square; a causal kernel skips a few percent).",
    )
    columns = ("work", "GFLOP/example", *(f"{name}: {peak:g} TFLOPS" for name, peak in APPLE_TFLOPS.items()))
    lines = tuple((what, *cells) for what, cells in rows.items())
    return Table("Seconds an example, at least, on Metal and MPS", columns, lines, notes) if rows else None
