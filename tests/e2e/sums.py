"""Sums that a tiny model can learn, for the recipes that train on its own answers: its rows, its flags, its runs."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

import backends
from tests import tiny

FORMS = ("Tom has {a} apples and buys {b} more .", "how many ? {a} and {b} .", "he has {a} , each day gives {b} .")
LONGEST = 12  # tokens of an answer
COMMON = f"--device cpu --dtype float32 --max-time 9h --probe-steps 0 --eval-max-new-tokens {LONGEST}"
QUICKEST = "mlx" if backends.installed("mlx") else "torch"  # for a model of this size
BOTH = pytest.mark.skipif(
    not all(backends.installed(name) for name in backends.PROVIDERS), reason="needs both backends"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("sums") / "tiny", "llama")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sums up to 10, each in three forms: 80 train problems and 4 of the dev split."""
    rows = [
        {"question": form.format(a=a, b=b), "answer": f"{a} + {b} = {a + b}\n#### {a + b}"}
        for form in FORMS
        for a in range(2, 9)
        for b in range(2, 11 - a)
    ]
    random.Random(0).shuffle(rows)
    folder = tmp_path_factory.mktemp("sums") / "data"
    folder.mkdir()
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@dataclass
class Finished:
    """A run, and copies of its folder as kill -9 would have left it, by what had just been written."""

    folder: Path
    killed: dict[str, Path] = field(default_factory=dict)

    @property
    def manifest(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "run.json").read_text())
        return found

    @property
    def weights(self) -> dict[str, Any]:
        (file,) = (self.folder / "model").glob("*.safetensors")
        return load_file(file)
