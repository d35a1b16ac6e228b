"""The rungs of the parity ladder: what the reference and the candidate compute from the same things.

0 to 6: batches, scores, losses, gradients, one step, a curve, texts. 7: an adapter is opened by the other. 8: a run
that was stopped goes on from its checkpoint on the disk. 9: a run goes on from the other's state. 10: gradients with a
vocabulary of the real size, over which a sum is long. Rung 11 is policy.py's.

Each yields an error (candidate against reference) and a control: the same figure where the candidate is made to do
one named thing wrong. The gradient is read from AdamW's first moment: after one update from zero moments,
m = (1 - beta1) x gradient.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gsm8k_core.files import read_json, write_json
from gsm8k_core.models.adapter import CONFIG
from gsm8k_core.models.adapter import B as LORA_B
from gsm8k_core.models.find import resolve_model
from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.parity import tiny
from gsm8k_core.parity.bench import (
    METHODS,
    MIXED,
    NATS,
    OF_RMS,
    RATE,
    STEPS,
    UPDATES,
    Bench,
    Implementation,
    Measurement,
    Stretch,
    copied,
    curve_gap,
    largest,
    most,
    nothing,
    real_scores,
    settings,
    trained,
    weights_gap,
    worst,
)
from gsm8k_core.parity.texts import AnswerPair, Difference, differences
from gsm8k_core.training import checkpoints
from gsm8k_core.types import IGNORE_INDEX, Batch, Completion, PreflightError, Sampling, TrainState, Update

if TYPE_CHECKING:
    from gsm8k_core.backend import Live, Weights
    from gsm8k_core.config.train import TrainConfig
    from gsm8k_core.types import FloatArray


UNCLIPPED = 1e9  # a gradient norm that none is above
ADAPTER_UPDATES = 3
ADAPTER_RATE = 1e-2  # so that B grows away from zero within them
ALL_UPDATES, KILLED_AT = 8, 4  # three updates are an epoch: killed in the middle of one
DROPOUT = 0.1
VOCABULARY, LEFT_OUT = 151_936, 16_384  # Qwen2.5's, and the part of it that the control does not know

Texts = dict[int, Completion]


def identical_batches(bench: Bench) -> Iterator[Measurement]:
    """Made twice, updates are the same element by element; other micro-batches hold the same rows."""
    first, again, single, other = (
        bench.updates(12),
        bench.updates(12),
        bench.updates(12, batch_size=1),
        bench.updates(12, seed=1),
    )
    differ = sum(not _same(a, b) for a, b in zip(first, again, strict=True))
    recut = sum(_rows(a) != _rows(b) for a, b in zip(first, single, strict=True))
    control = sum(_rows(a) != _rows(b) for a, b in zip(first, other, strict=True))
    yield Measurement("", UPDATES, differ + recut, control)


def _same(a: Update, b: Update) -> bool:
    pairs = list(zip(a.micro_batches, b.micro_batches, strict=True))
    equal = all(np.array_equal(x.tokens, y.tokens) and np.array_equal(x.labels, y.labels) for x, y in pairs)
    return equal and (a.number, a.rows) == (b.number, b.rows)


def _rows(update: Update) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Tokens and labels of each row without its padding, in an order that does not depend on the cut."""
    found = []
    for batch in update.micro_batches:
        for tokens, labels in zip(batch.tokens, batch.labels, strict=True):
            end = int(np.flatnonzero(labels != IGNORE_INDEX)[-1]) + 1
            found.append((tuple(tokens[:end].tolist()), tuple(labels[:end].tolist())))
    return sorted(found)


def scores(bench: Bench) -> Iterator[Measurement]:
    """log p of every real token of a padded batch. Control: ten times the RoPE base."""
    right = bench.reference.ask(bench.folder, lambda model: real_scores(model, bench.examples[:4]))
    found = bench.candidate.ask(bench.folder, lambda model: real_scores(model, bench.examples[:4]))
    wrong = bench.candidate.ask(bench.wrong_rope, lambda model: real_scores(model, bench.examples[:4]))
    yield Measurement("", NATS, largest(right, found), largest(right, wrong))


def losses(bench: Bench) -> Iterator[Measurement]:
    """Loss and target count of one update. Controls: a pad counted, a mean of means; the smaller figure."""
    update = replace(bench.uneven_update, number=1)
    means = [replace(update, number=3 + at, micro_batches=(batch,)) for at, batch in enumerate(update.micro_batches)]
    asked = [update, replace(pad_counted(update), number=2), *means]
    config = settings("full")
    right = trained(bench.reference, bench, asked[:1], config, nothing, rate=0).stats[1]
    found = trained(bench.candidate, bench, asked, config, nothing, rate=0)
    of_means = sum(found.losses[mean.number] for mean in means) / len(means)
    miscounted = abs(found.stats[1].num_targets - right.num_targets) + abs(right.num_targets - update.num_targets)
    error = abs(found.losses[1] - right.loss) + miscounted
    control = min(abs(found.losses[2] - right.loss), abs(of_means - right.loss))
    yield Measurement("", NATS, error, control, f"targets counted differently: {miscounted}" if miscounted else "")


def pad_counted(update: Update) -> Update:
    """The peers' bug: the first pad after the end of a row is trained."""
    return replace(update, micro_batches=tuple(_with_pad(batch) for batch in update.micro_batches))


def _with_pad(batch: Batch) -> Batch:
    labels = batch.labels.copy()
    for row in range(len(labels)):
        after = int(np.flatnonzero(labels[row] != IGNORE_INDEX)[-1]) + 1
        if after < labels.shape[1]:
            labels[row, after] = batch.tokens[row, after]
    return Batch(batch.tokens, labels)


def gradients(bench: Bench) -> Iterator[Measurement]:
    """Every tensor's gradient, over micro-batches of several widths. Control: a pad counted."""
    update = replace(bench.uneven_update, number=1)
    for method in bench.gradients:
        config = settings(method, max_grad_norm=UNCLIPPED)
        start = None if method in ("full", "blocks") else _adapter_start(bench, config)
        right = trained(bench.reference, bench, [update], config, Gradient(config), start, rate=0).found
        compare = Gradient(config, right)
        error, name = trained(bench.candidate, bench, [update], config, compare.worst, start, rate=0).found
        wrong = [pad_counted(update)]
        control, _ = trained(bench.candidate, bench, wrong, config, compare.worst, start, rate=0).found
        yield Measurement(method, OF_RMS, error, control, f"worst: {name}")


class Gradient:
    """Reads the gradient of the first update; `worst` compares it at once, so that only one other is kept."""

    def __init__(self, config: TrainConfig, right: Mapping[str, FloatArray] | None = None) -> None:
        self._part, self._right = 1 - config.adam_beta1, right or {}

    def __call__(self, live: Live) -> dict[str, FloatArray]:
        return {name: moment / self._part for name, moment in live.state().first_moments.items()}

    def worst(self, live: Live) -> tuple[float, str]:
        return worst(self._right, self(live))


def _adapter_start(bench: Bench, config: TrainConfig) -> TrainState:
    """The adapter before its first update, but with a random B: where B is zero, A has no gradient."""
    state = trained(bench.reference, bench, bench.updates(1), config, copied, rate=0).found
    rng = np.random.default_rng(0)
    parameters = dict(state.parameters)
    for name in sorted(name for name in parameters if name.endswith(LORA_B)):
        parameters[name] = rng.normal(0, 0.05, parameters[name].shape).astype(np.float32)
    zeros = {name: np.zeros_like(array) for name, array in parameters.items()}
    return TrainState(0, parameters, zeros, zeros)


def one_step(bench: Bench) -> Iterator[Measurement]:
    """Weights and moments after one clipped step. Controls: no bias correction; no clipping."""
    updates = bench.updates(1)
    config = settings("full", max_grad_norm=0.1, weight_decay=0.1)
    start = trained(bench.reference, bench, updates, config, copied, rate=0).found
    right = trained(bench.reference, bench, updates, config, copied).found
    found = trained(bench.candidate, bench, updates, config, copied).found
    unclipped = trained(bench.candidate, bench, updates, settings("full", max_grad_norm=UNCLIPPED), copied).found
    biased = replace(found, parameters=_without_correction(start, found, config))
    yield Measurement("weights", STEPS, weights_gap(right, found, RATE), weights_gap(right, biased, RATE))
    error, name = worst(_moments(right), _moments(found))
    control, _ = worst(_moments(right), _moments(unclipped))
    yield Measurement("moments", OF_RMS, error, control, f"worst: {name}")


def _without_correction(start: TrainState, end: TrainState, config: TrainConfig) -> dict[str, FloatArray]:
    """The weights that MLX's default would give: its moments, not divided by 1 - beta."""
    weights = {}
    for name, before in start.parameters.items():
        kept = before * (1 - RATE * config.weight_decay) if before.ndim >= 2 else before
        step = end.first_moments[name] / (np.sqrt(end.second_moments[name]) + config.adam_epsilon)
        weights[name] = (kept - RATE * step).astype(np.float32)
    return weights


def _moments(state: TrainState) -> dict[str, FloatArray]:
    first = {f"m of {name}": array for name, array in state.first_moments.items()}
    return first | {f"v of {name}": array for name, array in state.second_moments.items()}


def curve(bench: Bench) -> Iterator[Measurement]:
    """Twenty updates with accumulation over uneven rows. Control: beta2 0.99."""
    updates = bench.updates(20)
    scale = RATE * len(updates)
    for method in ("full", "lora"):
        right = trained(bench.reference, bench, updates, settings(method), copied)
        found = trained(bench.candidate, bench, updates, settings(method), copied)
        other = trained(bench.candidate, bench, updates, settings(method, adam_beta2=0.99), copied)
        control = curve_gap(right.losses, other.losses)
        yield Measurement(f"{method}, loss", NATS, curve_gap(right.losses, found.losses), control)
        control = weights_gap(right.found, other.found, scale)
        yield Measurement(f"{method}, weights", STEPS, weights_gap(right.found, found.found, scale), control)


# --- rung 6: texts --------------------------------------------------------------------------------------------


def greedy(bench: Bench) -> Iterator[Measurement]:
    """Greedy texts of both, and of batches against one by one; the figure is the largest gap where they part.

    The token that the reference rejected is at most its second, so its top-2 gap is no larger than this one.
    Controls: ten times the RoPE base; padding that the model sees.
    """
    longest = max(map(len, bench.prompts)) + 8  # even the longest prompt gets some
    padded = [[0] * (longest - len(prompt)) + list(prompt) for prompt in bench.prompts]
    single, together = Sampling(bench.max_new_tokens, 1), Sampling(bench.max_new_tokens, 4)

    def answers(model: Weights) -> list[Texts]:
        return [
            dict(model.generate(prompts, sampling))
            for prompts, sampling in ((bench.prompts, together), (bench.prompts, single), (padded, single))
        ]

    right = bench.reference.ask(bench.folder, lambda model: dict(model.generate(bench.prompts, single)))
    batched, alone, seen = bench.candidate.ask(bench.folder, answers)
    wrong = bench.candidate.ask(bench.wrong_rope, lambda model: dict(model.generate(bench.prompts, together)))
    compared = [(right, batched), (right, wrong), (alone, batched), (alone, seen)]
    across, across_control, batches, batches_control = bench.reference.ask(
        bench.folder, lambda model: [parted(model, bench, *pair) for pair in compared]
    )
    yield _texts("both", bench, across, across_control)
    yield _texts("batched, one by one", bench, batches, batches_control)


def parted(model: Weights, bench: Bench, right: Texts, found: Texts) -> list[Difference]:
    """Where the texts of the bench's prompts part, by the log-probabilities of `model`."""
    pairs = [
        AnswerPair(str(index), prompt, index, right[index], found[index]) for index, prompt in enumerate(bench.prompts)
    ]
    return differences(pairs, model, Sampling(bench.max_new_tokens, 1), ModelFolder(bench.folder).end_ids)


def _texts(variant: str, bench: Bench, found: list[Difference], control: list[Difference]) -> Measurement:
    gaps = [max((each.gap for each in some), default=0.0) for some in (found, control)]
    places = ", ".join(f"prompt {each.id} at token {each.position} ({each.gap:.1e} nats)" for each in found)
    note = f"{len(found)} of {len(bench.prompts)} texts part: {places}" if found else ""
    return Measurement(variant, NATS, gaps[0], gaps[1], note)


# --- rungs 7 to 9: what one wrote, the other goes on from -----------------------------------------------------


def adapters(bench: Bench) -> Iterator[Measurement]:
    """An adapter trained and saved by one, opened by the other as `eval` does. Control: alpha doubled."""
    updates = bench.updates(ADAPTER_UPDATES)
    for method in ("lora", "dora"):
        for maker, opener in (bench.both, bench.both[::-1]):
            folder = bench.scratch / f"{method} of {maker.name}"
            right = trained(maker, bench, updates, settings(method), _Saved(bench, folder), rate=ADAPTER_RATE).found
            found = _merged_scores(opener, bench, folder)
            wrong = _merged_scores(opener, bench, _alpha_doubled(folder))
            yield Measurement(_way(method, maker, opener), NATS, largest(right, found), largest(right, wrong))


class _Saved:
    """Saves the adapter to `folder`; returns the scores that it had while it lived."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self._bench, self._folder = bench, folder

    def __call__(self, live: Live) -> FloatArray:
        live.save(self._folder)
        return real_scores(live, self._bench.examples[:4])


def _merged_scores(one: Implementation, bench: Bench, adapter: Path) -> FloatArray:
    source = resolve_model(str(adapter), lambda line: None)
    if source.choice.name != "adapter":
        raise PreflightError(f"what training saved in {adapter} is not an adapter ({source.choice.reason})")
    try:
        return one.ask(source.folder, lambda model: real_scores(model, bench.examples[:4]))
    finally:
        shutil.rmtree(source.folder)  # merged into the cache, and nobody else's


def _alpha_doubled(adapter: Path) -> Path:
    other = adapter.with_name(f"{adapter.name}, alpha doubled")
    shutil.copytree(adapter, other)
    config = read_json(other / CONFIG)
    write_json(other / CONFIG, {**config, "lora_alpha": 2 * config["lora_alpha"]})
    return other


def _way(method: str, maker: Implementation, opener: Implementation) -> str:
    return f"{method}, {maker.name} -> {opener.name}"


def resumed(bench: Bench) -> Iterator[Measurement]:
    """Killed, read back from the disk and gone on with, against never stopped.

    Controls: the moments forgotten; with dropout, another seed for it. The smaller figure.
    """
    updates = bench.updates(ALL_UPDATES)
    left = updates[KILLED_AT:]
    for method in METHODS:
        dropout = 0.0 if method == "full" else DROPOUT
        config = settings(method, lora_dropout=dropout)
        for one in bench.both:
            folder = bench.scratch / f"checkpoints {method} {one.name}"
            whole = trained(one, bench, updates, config, copied)
            trained(one, bench, updates[:KILLED_AT], config, _Checkpointed(folder))
            state = _read_back(folder)
            rest = trained(one, bench, left, config, copied, state)
            wrong = [trained(one, bench, left, config, copied, _forgotten(state))]
            if dropout:
                reseeded = settings(method, lora_dropout=dropout, seed=1)
                wrong.append(trained(one, bench, left, reseeded, copied, state))
            control = min(_apart(whole, run) for run in wrong)
            yield Measurement(
                f"{method}, {one.name}", MIXED, _apart(whole, rest), control, alone=one is bench.reference
            )


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


def _apart(whole: Stretch[TrainState], rest: Stretch[TrainState]) -> float:
    """Zero only when losses and weights are equal to the last bit: the larger of both gaps, losses in nats."""
    return most(curve_gap(whole.losses, rest.losses), weights_gap(whole.found, rest.found, RATE * ALL_UPDATES))


def moved(bench: Bench) -> Iterator[Measurement]:
    """The first updates by one, the rest by the other, against all on the first. Control: moments forgotten."""
    updates = bench.updates(ALL_UPDATES)
    left = updates[KILLED_AT:]
    for method in METHODS:
        config = settings(method)
        for first, then in (bench.both, bench.both[::-1]):
            whole = trained(first, bench, updates, config, copied, at=KILLED_AT)
            rest = trained(then, bench, left, config, nothing, whole.found)
            forgot = trained(then, bench, left, config, nothing, _forgotten(whole.found))
            error, control = curve_gap(whole.losses, rest.losses), curve_gap(whole.losses, forgot.losses)
            yield Measurement(_way(method, first, then), NATS, error, control)


# --- rung 10: a real vocabulary ---------------------------------------------------------------------------------------


def vocabulary(bench: Bench) -> Iterator[Measurement]:
    """Every tensor's gradient in one layer under a random head with Qwen2.5's vocabulary, over which the loss sums.

    Control: the last part of the vocabulary is left out of the sum; seen in the tensors that have no row for a token.
    """
    kind = read_json(bench.folder / "config.json")["model_type"]
    sizes = {"vocab_size": VOCABULARY, "num_hidden_layers": 1, "hidden_size": 32}
    whole = tiny.make(bench.scratch / "vocabulary", kind, **sizes)
    update = bench.uneven_update
    asked = [replace(update, number=1, micro_batches=update.micro_batches[:1])]
    config = settings("full", max_grad_norm=UNCLIPPED)
    look = Gradient(config)
    right = trained(bench.reference, replace(bench, folder=whole), asked, config, look, rate=0).found
    found = trained(bench.candidate, replace(bench, folder=whole), asked, config, look, rate=0).found
    error, name = worst(right, found)
    cut = tiny.cut(whole, bench.scratch / "vocabulary, cut", VOCABULARY - LEFT_OUT)
    wrong = trained(bench.candidate, replace(bench, folder=cut), asked, config, look, rate=0).found
    alike = {key for key in right if right[key].shape == wrong[key].shape}
    control, _ = worst({key: right[key] for key in alike}, {key: wrong[key] for key in alike})
    yield Measurement("", OF_RMS, error, control, f"worst: {name}")
