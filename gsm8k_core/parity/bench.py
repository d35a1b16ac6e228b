"""The two that the parity ladder compares: how one is asked, how its training is watched, how figures differ.

A model is opened for one question and let go of. Differences are taken in float64.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from gsm8k_core.config.train import TrainConfig
from gsm8k_core.files import read_json
from gsm8k_core.models.folder import ROPE_BY_LAYER, Config, rope_theta, with_both_rope_keys
from gsm8k_core.problems.batching import make_updates, pad
from gsm8k_core.types import (
    IGNORE_INDEX,
    DataError,
    Example,
    Orders,
    PreflightError,
    TrainState,
    Update,
    UpdateStats,
)

if TYPE_CHECKING:
    from gsm8k_core.backend import Backend, Live, Weights
    from gsm8k_core.types import FloatArray

Found = TypeVar("Found")

RATE = 1e-3
LORA_RANK = 4
METHODS = ("full", "lora", "dora")
# Units. A step is rate x updates: as far as AdamW moves a weight whose gradient keeps its sign. "mixed" is the larger
# of a gap in nats and one in steps: it counts whether that is zero.
NATS, STEPS, OF_RMS, UPDATES, MIXED = "nats", "steps", "of rms", "updates", "mixed"


@dataclass(frozen=True, slots=True)
class Implementation:
    """One of the two that are compared."""

    name: str  # "torch", or its device where both are torch
    open: Callable[[Path], Backend]

    def ask(self, folder: Path, question: Callable[[Backend], Found]) -> Found:
        """Opens the model, asks it, and keeps nothing of it: two at once might not fit."""
        return question(self.open(folder))


@dataclass(frozen=True)
class Bench:
    """What is measured with what."""

    reference: Implementation
    candidate: Implementation
    folder: Path  # the model
    examples: Sequence[Example]
    prompts: Sequence[Sequence[int]]
    scratch: Path
    batch_size: int = 3
    update_size: int = 9
    max_new_tokens: int = 24
    gradients: Sequence[str] = ("full", "blocks", "lora", "dora")  # of which ways to train

    @property
    def both(self) -> tuple[Implementation, Implementation]:
        return self.reference, self.candidate

    def updates(self, count: int, batch_size: int | None = None, seed: int = 0) -> list[Update]:
        """The first `count` updates, of micro-batches of uneven rows."""
        endless = make_updates(
            self.examples,
            batch_size=batch_size or self.batch_size,
            update_size=self.update_size,
            num_epochs=count,
            seed=seed,
        )
        return list(islice(endless, count))

    @cached_property
    def uneven_update(self) -> Update:
        """An update with padding, and with unlike numbers of targets in its micro-batches: controls need both."""
        for update in self.updates(12):
            unlike = len({batch.num_targets for batch in update.micro_batches}) > 1
            if unlike and any((batch.labels[:, -1] == IGNORE_INDEX).any() for batch in update.micro_batches):
                return update
        raise DataError("the rows are all of one length, and parity needs uneven ones; try another --data")

    @cached_property
    def wrong_rope(self) -> Path:
        """The model with ten times its RoPE base. Its weights are linked, its config is written anew."""
        wrong = self.scratch / "wrong-rope"
        wrong.mkdir()
        for path in self.folder.iterdir():
            if path.is_file() and path.name != "config.json":
                _link(path.resolve(), wrong / path.name)
        changed = _ten_times_base(read_json(self.folder / "config.json"))
        (wrong / "config.json").write_text(json.dumps(changed), encoding="utf-8")
        return wrong


def _ten_times_base(config: Config) -> Config:
    layered = config.get("rope_parameters")
    if layered and all(isinstance(rope, dict) for rope in layered.values()):
        wrong = {kind: {**rope, "rope_theta": 10 * rope.get("rope_theta", 10_000.0)} for kind, rope in layered.items()}
        return {**config, "rope_parameters": wrong}
    base = rope_theta(config) or 10_000.0  # transformers' own default
    if config.get("model_type") in ROPE_BY_LAYER:  # in the older way to write it
        near = config.get("rope_local_base_freq") or 10_000.0
        return {**config, "rope_theta": 10 * base, "rope_local_base_freq": 10 * near}
    both = with_both_rope_keys({**config, "rope_theta": base})
    rope = both.get("rope_parameters")
    if not rope or "rope_theta" not in rope:
        raise PreflightError(f"model type {config.get('model_type')} has no single RoPE base; try another --model")
    return {**both, "rope_theta": 10 * base, "rope_parameters": {**rope, "rope_theta": 10 * base}}


def _link(path: Path, link: Path) -> None:
    """The same file under another name: a model folder may hold no symbolic link that leads out of it."""
    try:
        os.link(path, link)
    except OSError:  # another disk, or one without hard links
        shutil.copyfile(path, link)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One comparison."""

    variant: str
    unit: str
    error: float
    control: float
    note: str = ""
    alone: bool = False  # the reference with itself: the candidate took no part


# --- training, watched --------------------------------------------------------------------------------------------


class Recorder(Generic[Found]):
    """A pilot with a constant rate. Keeps the figures, and what `look` finds after update `at`."""

    def __init__(self, rate: float, at: int, look: Callable[[Live], Found]) -> None:
        self.stats: list[UpdateStats] = []
        self.found: list[Found] = []
        self._rate, self._at, self._look = rate, at, look

    def rate(self, update: int) -> float:
        return self._rate

    def after(self, stats: UpdateStats, live: Live) -> Orders:
        self.stats.append(stats)
        if stats.update == self._at:
            self.found.append(self._look(live))
        return Orders()


@dataclass(frozen=True, slots=True)
class Stretch(Generic[Found]):
    """A stretch of training: its figures by update, and what was found on the way."""

    stats: Mapping[int, UpdateStats]
    found: Found

    @property
    def losses(self) -> dict[int, float]:
        return {number: stats.loss for number, stats in self.stats.items()}


def trained(
    one: Implementation,
    bench: Bench,
    updates: Sequence[Update],
    config: TrainConfig,
    look: Callable[[Live], Found],
    resume: TrainState | None = None,
    *,
    rate: float = RATE,
    at: int | None = None,
) -> Stretch[Found]:
    """A freshly opened model over `updates`, looked at after update `at`, by default the last.

    At rate 0 each update's figures are those of the first weights.
    """
    recorder = Recorder(rate, updates[-1].number if at is None else at, look)
    one.ask(bench.folder, lambda model: model.train(updates, config, recorder, resume))
    return Stretch({stats.update: stats for stats in recorder.stats}, recorder.found[0])


def copied(live: Live) -> TrainState:
    """The state as it is now, in arrays of its own."""
    state = live.state()
    parts = (state.parameters, state.first_moments, state.second_moments)
    return TrainState(state.step, *({name: np.array(array) for name, array in part.items()} for part in parts))


def nothing(live: Live) -> None:
    """For runs whose losses are enough."""


def settings(method: str, **changes: Any) -> TrainConfig:
    """The training settings of a rung. `blocks` is full fine-tuning of the transformer blocks."""
    if method == "blocks":
        return TrainConfig(trainable="blocks", **changes)
    return TrainConfig(**{"method": method, "lora_rank": LORA_RANK, "lora_alpha": 2 * LORA_RANK, **changes})


# --- figures ------------------------------------------------------------------------------------------------------


def rms(array: FloatArray) -> float:
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))


def real_scores(model: Weights, examples: Sequence[Example]) -> FloatArray:
    """log p of every token of a padded batch that is not padding."""
    batch = pad(examples)
    lengths = np.array([len(example.tokens) for example in examples])
    return model.score(batch)[np.arange(1, batch.tokens.shape[1])[None] < lengths[:, None]]


def largest(right: FloatArray, found: FloatArray) -> float:
    return float(np.abs(right.astype(np.float64) - found).max())


def curve_gap(right: Mapping[int, float], found: Mapping[int, float]) -> float:
    """The largest difference over the updates that both have."""
    return most(*(abs(right[number] - found[number]) for number in right.keys() & found.keys()))


def most(*figures: float) -> float:
    """The largest, or NaN where one is NaN: Python's max would drop it, and a broken device would pass."""
    return float(np.max(figures))


def weights_gap(right: TrainState, found: TrainState, scale: float) -> float:
    """The rms of all differences between the weights, over `scale` (rate x updates)."""
    return _overall([right.parameters[name] - found.parameters[name] for name in right.parameters]) / scale


def _overall(arrays: Sequence[FloatArray]) -> float:
    total = sum(float(np.square(array, dtype=np.float64).sum()) for array in arrays)
    return float(np.sqrt(total / sum(array.size for array in arrays)))


def worst(right: Mapping[str, FloatArray], found: Mapping[str, FloatArray]) -> tuple[float, str]:
    """The largest rms difference of a tensor over that tensor's rms, and which tensor it is."""
    figures = []
    for name in right.keys() | found.keys():
        if name not in right or name not in found:
            figures.append((1.0, f"{name}, which only one of them trains"))
            continue
        apart, scale = rms(right[name] - found[name]), rms(right[name])
        figures.append((apart / scale if scale else float(apart > 0), name))
    return max(figures, key=lambda figure: (math.isnan(figure[0]), *figure))
