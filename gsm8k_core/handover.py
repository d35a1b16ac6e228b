"""Rungs 7 to 9 of the parity ladder: what one side wrote, another goes on from.

7, an adapter is opened by the other. 8, a run that was stopped goes on from its checkpoint on the disk. 9, a run
goes on from the other's state.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gsm8k_core import checkpoints
from gsm8k_core.adapters import CONFIG
from gsm8k_core.folders import read_json, write_json
from gsm8k_core.models import resolve_model
from gsm8k_core.sides import (
    METHODS,
    MIXED,
    NATS,
    RATE,
    Bench,
    Live,
    Measured,
    Run,
    Side,
    copied,
    curve_gap,
    largest,
    most,
    nothing,
    real_scores,
    settings,
    trained,
    weights_gap,
)
from gsm8k_core.types import PreflightError, TrainState

if TYPE_CHECKING:
    from gsm8k_core.types import FloatArray

ADAPTER_UPDATES = 3
ADAPTER_RATE = 1e-2  # so that B grows away from zero within them
ALL_UPDATES, KILLED_AT = 8, 4  # three updates are an epoch: killed in the middle of one
DROPOUT = 0.1


def adapters(bench: Bench) -> Iterator[Measured]:
    """An adapter trained and saved on one side, opened on the other as `eval` does. Control: alpha doubled."""
    updates = bench.updates(ADAPTER_UPDATES)
    for method in ("lora", "dora"):
        for maker, opener in (bench.sides, bench.sides[::-1]):
            folder = bench.scratch / f"{method} of {maker.name}"
            right = trained(maker, bench, updates, settings(method), _Saved(bench, folder), rate=ADAPTER_RATE).found
            found = _merged_scores(opener, bench, folder)
            wrong = _merged_scores(opener, bench, _alpha_doubled(folder))
            yield Measured(_way(method, maker, opener), NATS, largest(right, found), largest(right, wrong))


class _Saved:
    """Saves the adapter to `folder`; returns the scores that it had while it lived."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self._bench, self._folder = bench, folder

    def __call__(self, live: Live) -> FloatArray:
        live.save(self._folder)
        return real_scores(live, self._bench.examples[:4])


def _merged_scores(side: Side, bench: Bench, adapter: Path) -> FloatArray:
    source = resolve_model(str(adapter), lambda line: None)
    if source.choice.name != "adapter":
        raise PreflightError(f"what training saved in {adapter} is not an adapter ({source.choice.reason})")
    try:
        return side.ask(source.folder, lambda model: real_scores(model, bench.examples[:4]))
    finally:
        shutil.rmtree(source.folder)  # merged into the cache, and nobody else's


def _alpha_doubled(adapter: Path) -> Path:
    other = adapter.with_name(f"{adapter.name}, alpha doubled")
    shutil.copytree(adapter, other)
    config = read_json(other / CONFIG)
    write_json(other / CONFIG, {**config, "lora_alpha": 2 * config["lora_alpha"]})
    return other


def _way(method: str, maker: Side, opener: Side) -> str:
    return f"{method}, {maker.name} -> {opener.name}"


def resumed(bench: Bench) -> Iterator[Measured]:
    """Killed, read back from the disk and gone on with, against never stopped.

    Controls: the moments forgotten; with dropout, another seed for it. The smaller figure.
    """
    updates = bench.updates(ALL_UPDATES)
    left = updates[KILLED_AT:]
    for method in METHODS:
        dropout = 0.0 if method == "full" else DROPOUT
        config = settings(method, lora_dropout=dropout)
        for side in bench.sides:
            folder = bench.scratch / f"checkpoints {method} {side.name}"
            whole = trained(side, bench, updates, config, copied)
            trained(side, bench, updates[:KILLED_AT], config, _Checkpointed(folder))
            state = _read_back(folder)
            rest = trained(side, bench, left, config, copied, state)
            wrong = [trained(side, bench, left, config, copied, _forgotten(state))]
            if dropout:
                reseeded = settings(method, lora_dropout=dropout, seed=1)
                wrong.append(trained(side, bench, left, reseeded, copied, state))
            control = min(_apart(whole, run) for run in wrong)
            yield Measured(f"{method}, {side.name}", MIXED, _apart(whole, rest), control, alone=side is bench.reference)


class _Checkpointed:
    """Writes a checkpoint, as a run does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, live: Live) -> None:
        checkpoints.write(self._folder, live, update=KILLED_AT, elapsed=0.0, events=[], losses=[], facts={})


def _read_back(folder: Path) -> TrainState:
    complaints: list[str] = []
    found = checkpoints.newest(folder, complaints.append)
    if found is None:
        raise PreflightError(f"the checkpoint that was just written cannot be read: {'; '.join(complaints)}")
    return found.state()


def _forgotten(state: TrainState) -> TrainState:
    zeros = {name: np.zeros_like(array) for name, array in state.parameters.items()}
    return replace(state, first_moments=zeros, second_moments=zeros)


def _apart(whole: Run[TrainState], rest: Run[TrainState]) -> float:
    """Zero only when losses and weights are equal to the last bit: the larger of both gaps, losses in nats."""
    return most(curve_gap(whole.losses, rest.losses), weights_gap(whole.found, rest.found, RATE * ALL_UPDATES))


def moved(bench: Bench) -> Iterator[Measured]:
    """The first updates on one side, the rest on the other, against all on the first. Control: moments forgotten."""
    updates = bench.updates(ALL_UPDATES)
    left = updates[KILLED_AT:]
    for method in METHODS:
        config = settings(method)
        for first, then in (bench.sides, bench.sides[::-1]):
            whole = trained(first, bench, updates, config, copied, at=KILLED_AT)
            rest = trained(then, bench, left, config, nothing, whole.found)
            forgot = trained(then, bench, left, config, nothing, _forgotten(whole.found))
            error, control = curve_gap(whole.losses, rest.losses), curve_gap(whole.losses, forgot.losses)
            yield Measured(_way(method, first, then), NATS, error, control)
