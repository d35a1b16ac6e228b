"""A live model that only saves, what finds its checkpoints again, and two ways to damage a file."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from gsm8k_core.files import new_folder, write_json
from gsm8k_core.training.checkpoints import Checkpoint, _seal, newest, write
from gsm8k_core.types import TrainState

ODD = [-0.0, 1e-45, -np.inf, np.nan, 3.4e38, 0.1]  # a denormal, the largest, what print would round


def arrays(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "layers.0.w": rng.standard_normal((3, 2), dtype=np.float32),
        "norm": np.array(ODD, np.float32),
        "gate": np.array(seed, np.float32),
    }


class FakeLive:
    """A live model; it saves as a backend does, in two shards or as an adapter."""

    def __init__(self, seed: int = 0, files: tuple[str, ...] = ("model-1.safetensors", "model-2.safetensors")) -> None:
        self.files = files
        self.now = TrainState(seed + 7, arrays(seed), arrays(seed + 1), arrays(seed + 2))
        self.frozen = {"embed": np.ones((2, 2), np.float32)}

    def save(self, directory: Path) -> None:
        with new_folder(directory) as folder:
            write_json(folder / "config.json", {"model_type": "fake"})
            tensors = {**self.now.parameters, **self.frozen}
            for index, file in enumerate(self.files):
                names = sorted(tensors)[index :: len(self.files)]
                save_file({name: tensors[name] for name in names}, str(folder / file))

    def state(self) -> TrainState:
        return self.now

    def change(self, **changes: Any) -> FakeLive:
        self.now = dataclasses.replace(self.now, **changes)
        return self


def save(folder: Path, update: int, live: FakeLive | None = None, **values: Any) -> Path:
    given = {"elapsed": 1.5, "events": [], "losses": [0.25, 0.1], "facts": {}, **values}
    return write(folder, live or FakeLive(update), update=update, **given)


def find(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    said: list[str] = []
    return newest(folder, said.append), said


def found(folder: Path) -> Checkpoint:
    """The newest checkpoint, where nothing is to be said."""
    checkpoint, said = find(folder)
    assert checkpoint is not None
    assert said == []
    return checkpoint


def same(one: Mapping[str, np.ndarray], two: Mapping[str, np.ndarray]) -> bool:
    return {name: (array.shape, array.dtype, array.tobytes()) for name, array in one.items()} == {
        name: (array.shape, array.dtype, array.tobytes()) for name, array in two.items()
    }


def same_state(one: TrainState, two: TrainState) -> bool:
    parts = ("parameters", "first_moments", "second_moments")
    return one.step == two.step and all(same(getattr(one, part), getattr(two, part)) for part in parts)


def rewrite(folder: Path, **changes: Any) -> None:
    """Change checkpoint.json as its own writer would, seal and all."""
    values = {**json.loads((folder / "checkpoint.json").read_text()), **changes}
    write_json(folder / "checkpoint.json", {**values, "sha256": _seal(values)})


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip(path: Path, bit: int = 77) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
