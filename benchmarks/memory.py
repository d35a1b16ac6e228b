"""What training really takes: one process a point, on the longest rows, into a JSON line each.

    python benchmarks/memory.py OUT.jsonl BACKEND MODEL METHOD DTYPE TOKENS [--gradient-checkpointing] [--data FOLDER]

A point is an update of one short row, which makes the moments, then one of two full micro-batches of the longest
GSM8K rows within TOKENS padded tokens: weights, moments, the sum of the gradients and the activations are there
together, as in every later update. It reports the peak of the process (ru_maxrss), what it held before the model was
loaded, and MLX's own peak. `gsm8k_core/training/memory.py` is held to these figures; docs/memory.md shows them.

MODEL: embedded, or a folder. Axes: B rows, T tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if __name__ == "__main__":  # a script's own folder is on the path, the checkout is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import backends
from gsm8k_core.config.fields import DEFAULT_DATA
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.models.find import resolve_model
from gsm8k_core.problems.batching import budgeted, by_length, pad
from gsm8k_core.problems.data import load_data
from gsm8k_core.problems.prompts import make_examples
from gsm8k_core.training.memory import peak_rss
from gsm8k_core.types import Batch, Example, Orders, Update


class _Pilot:
    """A constant rate; the loop alone is measured."""

    def rate(self, update: int) -> float:
        return 1e-5

    def after(self, stats: Any, live: Any) -> Orders:
        return Orders()


def updates(rows: list[Example], max_tokens: int) -> tuple[Update, Update]:
    """A short one, then two micro-batches of the longest rows, each as full as `max_tokens` lets it be."""
    longest = by_length(rows)
    fullest = sorted(budgeted(longest[:256], max_tokens), key=lambda batch: -batch.tokens.size)[:2]
    return Update(1, 0, ("short",), (pad([longest[-1]]),)), Update(2, 0, ("long",), tuple(fullest))


def shape(batch: Batch) -> list[int]:
    return list(batch.tokens.shape)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("out", "backend", "model", "method", "dtype"):
        parser.add_argument(name)
    parser.add_argument("tokens", type=int)
    parser.add_argument("--data", default=DEFAULT_DATA, help="as for train: a folder needs no Hub")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    asked = parser.parse_args()
    source = resolve_model(asked.model, lambda line: None)
    problems = load_data(asked.data, "main", 0, lambda line: None, splits=("train",)).train
    rows = make_examples(source.model.rendering, problems)
    rows = [row for row in rows if len(row.tokens) <= 512]
    first, second = updates(rows, asked.tokens)
    backends.check(asked.backend, "cpu", asked.dtype, asked.method)  # imports the framework
    before = peak_rss()
    backend = backends.open(asked.backend, source.folder, "cpu", asked.dtype)
    loaded = peak_rss()
    config = TrainConfig(method=asked.method, gradient_checkpointing=asked.gradient_checkpointing, dtype=asked.dtype)
    begun = time.monotonic()
    backend.train(iter([first, second]), config, _Pilot())
    point = {
        **{name: value for name, value in vars(asked).items() if name not in ("out", "data")},
        "shapes": [shape(batch) for batch in second.micro_batches],
        "targets": [batch.num_targets for batch in second.micro_batches],
        "imports": before,
        "loaded": loaded,
        "rss": peak_rss(),
        "own": _own_peak(asked.backend),
        "seconds": time.monotonic() - begun,
    }
    with Path(asked.out).open("a", encoding="utf-8") as file:
        file.write(json.dumps(point) + "\n")
    print(SimpleNamespace(**point))


def _own_peak(backend: str) -> int | None:
    if backend != "mlx":
        return None
    import mlx.core as mx

    return int(mx.get_peak_memory())


if __name__ == "__main__":
    main()
