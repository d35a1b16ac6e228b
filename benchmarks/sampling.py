"""What drawing, shared prompts and forced tokens cost: python benchmarks/sampling.py draw|decode|share|force

    draw    milliseconds a token to pick from logits of 64 rows, greedy beside drawn, at two sizes of vocabulary
    decode  tokens a second of a whole step at 64 rows, drawn over greedy
    share   eight answers to each of some prompts of 90 tokens, each prompt read once, over each read eight times
    force   three tokens behind 150 cached ones read together, beside one a step among 64 rows (torch)

All kinds take turns in one process; a figure is the median of the rounds, a ratio that of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

if __name__ == "__main__":  # a script's own folder is on the path, the checkout is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

import backends
from gsm8k_core.models.find import resolve_model
from gsm8k_core.problems.generated import generate_problems
from gsm8k_core.scoring.sampling import uniforms
from gsm8k_core.types import Sampling

ROWS = 64
TOKENS = 10  # of each row, in decode
KINDS = {
    "greedy": {"temperature": 0.0},
    "temperature 1": {"temperature": 1.0},
    "temperature 0.8": {"temperature": 0.8},
    "top-p 0.95": {"temperature": 1.0, "top_p": 0.95},
    "top-k 50": {"temperature": 1.0, "top_k": 50},
}
Seconds = dict[str, list[float]]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}  # the latter where others work on the same cores
clock = CLOCKS["wall"]


def interleaved(runs: dict[str, Callable[[], float]], rounds: int, warm_up: int = 1) -> Seconds:
    """Each run's figures, round by round; the rounds before them are not counted."""
    found: Seconds = {name: [] for name in runs}
    for number in range(warm_up + rounds):
        for name, run in runs.items():
            figure = run()
            if number >= warm_up:
                found[name].append(figure)
    return found


def table(title: str, unit: str, found: Seconds, base: str, digits: int = 3) -> None:
    """Medians, and each round's ratio to `base` in the same round."""
    print(f"\n{title}\n| | {unit} | times {base}: median (range) |\n|---|---|---|")
    for name, figures in found.items():
        ratios = [own / other for own, other in zip(figures, found[base], strict=True)]
        shown = f"{median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"
        print(f"| {name} | {median(figures):.{digits}f} | {shown} |", flush=True)


def timed(run: Callable[[], object]) -> float:
    start = clock()
    run()
    return clock() - start


def zipf(vocabulary: int) -> np.ndarray:
    """Logits whose odds fall with the 1.5th power of the rank: 2 to 3 nats, and a long tail; (ROWS, V)."""
    rng = np.random.default_rng(0)
    logits_BV = np.tile(-1.5 * np.log(np.arange(1, vocabulary + 1)), (ROWS, 1)) + rng.normal(size=(ROWS, vocabulary))
    return np.ascontiguousarray(rng.permuted(logits_BV, axis=1).astype(np.float32))


def pickers(name: str, logits_BV: np.ndarray) -> dict[str, Callable[[], float]]:
    """For each kind, the milliseconds a token that picking takes, the numbers of the draw included."""
    sampler = importlib.import_module(f"backends.{name}.sampling")
    if name == "torch":
        import torch

        logits: Any = torch.from_numpy(logits_BV)
        array = torch.from_numpy

        def greedy() -> object:
            return logits.max(dim=-1)

        def finish(found: Any) -> object:
            return found
    else:
        import mlx.core as mx

        logits, array, finish = mx.array(logits_BV), mx.array, mx.eval

        def greedy() -> object:
            return mx.argmax(logits, axis=-1), logits.max(axis=-1)

    def drawn(sampling: Sampling) -> object:
        u_B3 = array(uniforms(0, range(ROWS), [3] * ROWS))
        return finish(sampler.draw(logits, sampling, u_B3))

    def run(values: dict[str, float]) -> Callable[[], float]:
        sampling = Sampling(1, ROWS, **values)  # type: ignore[arg-type]
        pick = (lambda: finish(greedy())) if sampling.temperature == 0 else (lambda: drawn(sampling))
        return lambda: 1000 * timed(pick) / ROWS

    return {kind: run(values) for kind, values in KINDS.items()}


def draw(names: Sequence[str], rounds: int) -> None:
    for vocabulary in (49_152, 151_936):
        for name in names:
            found = interleaved(pickers(name, zipf(vocabulary)), rounds)
            table(f"{name}, {vocabulary} tokens, {ROWS} rows", "ms a token", found, "greedy")


class Decoding:
    """A model that never ends an answer, so that every kind does the same work."""

    def __init__(self, name: str, model: str) -> None:
        source = resolve_model(model, lambda line: None)
        self._backend: Any = backends.open(name, source.folder, "cpu", "float32")
        self._backend._end_ids = frozenset()
        texts = (problem.question + " " + problem.answer for problem in generate_problems(0, 1, 64)[1])
        encoded = (source.model.tokenizer.encode(text) for text in texts)
        self.prompts = [tuple(getattr(ids, "ids", ids)) for ids in encoded]

    def rate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> tuple[float, float]:
        """Tokens a second behind each row's first one; seconds in all."""
        stamps: list[float] = []
        start = clock()
        for _ in self._backend.generate(prompts, sampling, lambda index, token: stamps.append(clock())):
            pass
        return (len(stamps) - len(prompts)) / (stamps[-1] - stamps[len(prompts) - 1]), clock() - start


def decode(name: str, rounds: int, model: str) -> None:
    decoding = Decoding(name, model)
    prompts = [prompt[:12] for prompt in decoding.prompts]

    def run(values: dict[str, float]) -> Callable[[], float]:
        sampling = Sampling(TOKENS, ROWS, **values)  # type: ignore[arg-type]
        return lambda: decoding.rate(prompts, sampling)[0]

    found = interleaved({kind: run(KINDS[kind]) for kind in ("greedy", "temperature 1", "top-p 0.95")}, rounds)
    table(f"{name}, {model}, {ROWS} rows", "tokens/s", found, "greedy", 1)


def share(name: str, rounds: int, model: str, num_prompts: int) -> None:
    decoding = Decoding(name, model)
    decoding.rate([(1, 2, 3)], Sampling(2, 1))  # what a first call makes
    prompts = [(prompt * 3)[:90] for prompt in decoding.prompts[:num_prompts] for _ in range(8)]
    sampling = Sampling(120, ROWS, temperature=0.8)
    owner: Any = importlib.import_module("gsm8k_core.scoring.writing")
    ours = owner.first_alike

    def together() -> float:
        return decoding.rate(prompts, sampling)[1]

    def one_by_one() -> float:
        owner.first_alike = lambda prompts: list(range(len(prompts)))
        try:
            return together()
        finally:
            owner.first_alike = ours

    found = interleaved({"read for each answer": one_by_one, "read once": together}, rounds, warm_up=0)  # long runs
    table(f"{name}, {model}, {num_prompts} prompts of 90 tokens, 8 answers of 120 each", "s", found, "read once", 1)


def force(rounds: int, model: str) -> None:
    """Reading three tokens takes three places of a step, one after the other, or a forward pass of their own."""
    import torch

    from backends.torch.generate import _Decoder
    from backends.torch.seats import Seat

    decoding = Decoding("torch", model)
    module = decoding._backend._compute_model()
    prefix = _Decoder(module, 1)
    prompt = (decoding.prompts[0] * 10)[:150]
    prefix.prefill(slice(0, 1), [prompt])

    def together(num_rows: int) -> Callable[[], float]:
        desk = _Decoder(module, num_rows)
        rows = [[*prompt, 5, 6, 7]] * num_rows
        return lambda: timed(lambda: desk.prefill(slice(0, num_rows), rows, prefix, 150))

    def step(num_rows: int) -> Callable[[], float]:
        decoder = _Decoder(module, num_rows)
        seats = [Seat(number, 0, prompt, 0, Sampling(1, 1), written=[5]) for number in range(num_rows)]
        for row in range(num_rows):
            decoder.copy(prefix, 0, row, 150)
        return lambda: timed(lambda: decoder.step(seats))

    runs = {f"a step of {count} rows": step(count) for count in (ROWS, ROWS - 16)}
    runs |= {f"3 tokens of {count} rows together": together(count) for count in (1, 2, 4, 8)}
    with torch.no_grad():
        found = interleaved(runs, rounds)
    table(f"torch, {model}, 150 cached", "s", found, f"a step of {ROWS} rows")
    place = (median(found[f"a step of {ROWS} rows"]) - median(found[f"a step of {ROWS - 16} rows"])) / 16
    print(f"\none more row in a step: {1000 * place:.1f} ms; three tokens one a step: {3000 * place:.1f} ms a row")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("draw", "decode", "share", "force"))
    parser.add_argument("--backend", action="append", choices=sorted(backends.PROVIDERS))
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=8, help="in share; eight answers to each")
    parser.add_argument("--clock", default="wall", choices=sorted(CLOCKS))
    options = parser.parse_args()
    global clock
    clock = CLOCKS[options.clock]
    names = options.backend or [name for name in backends.PROVIDERS if backends.installed(name)]
    if options.what == "draw":
        draw(names, options.rounds)
    elif options.what == "force":
        force(options.rounds, options.model)
    else:
        for name in names:
            if options.what == "decode":
                decode(name, options.rounds, options.model)
            else:
                share(name, options.rounds, options.model, options.prompts)


if __name__ == "__main__":
    main()
