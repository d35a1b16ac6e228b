"""The training loop in PyTorch: Hugging Face's Trainer, fed one update at a time.

One DataLoader item is one update, a list of micro-batches that `training_step` accumulates; Trainer owns the
order of clip, step and schedule. Nothing is saved or logged by it.
"""

from __future__ import annotations

import math
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from backends.torch.group import TorchGroup, alone, is_spread, local, to_numpy
from backends.torch.loss import NO_ROW, SHARDS, LossModel, to_device
from backends.torch.memory import NO_MEMORY
from gsm8k_core.backend import Live, Pilot
from gsm8k_core.models.adapter import draws_dropout, dropout_seed
from gsm8k_core.ranks.together import together
from gsm8k_core.training.finite import check_fit, check_resumed, not_finite, not_finite_over_ranks
from gsm8k_core.training.memory import memory_error
from gsm8k_core.types import (
    Batch,
    DivergedError,
    Outcome,
    OutOfMemoryError,
    PreflightError,
    TrainState,
    Update,
    UpdateStats,
)

if TYPE_CHECKING:
    from gsm8k_core.config.train import TrainConfig

MANY = 10**9
_RUN, _TRAINS = threading.Lock(), threading.Lock()  # a whole run, and the training in it
# MPS keeps memory and graph of every shape that it has seen. TrainingArguments.torch_empty_cache_steps acts only in
# Trainer's own training_step.
EMPTY_CACHE_UPDATES = 4


def freeze(model: Any, trainable: str) -> None:
    """Leave gradients on for everything, or for the transformer blocks only."""
    model.requires_grad_(trainable == "all")
    if trainable == "blocks":
        model.get_decoder().layers.requires_grad_(True)


def make_optimizer(trained: Mapping[str, torch.nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; each update sets its rate."""
    parameters = list(trained.values())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=1.0,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=True,
    )


def check_restored(trained: Mapping[str, torch.nn.Parameter], resume: TrainState) -> None:
    """Raises DataError when weights and moments do not fit the parameters, or are not finite."""
    check_resumed(resume)
    for part in (resume.parameters, resume.first_moments, resume.second_moments):
        check_fit(trained, part)


def restore(trained: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.AdamW, resume: TrainState) -> None:
    """Set weights and moments. Raises DataError when they do not fit the parameters, or are not finite."""
    check_restored(trained, resume)
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(torch.from_numpy(resume.parameters[name]))
            optimizer.state[parameter] = {
                "step": torch.tensor(float(resume.step), device=parameter.device),
                "exp_avg": torch.empty_like(parameter).copy_(torch.from_numpy(resume.first_moments[name])),
                "exp_avg_sq": torch.empty_like(parameter).copy_(torch.from_numpy(resume.second_moments[name])),
            }


def state_tensors(trained: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.AdamW) -> Iterator[torch.Tensor]:
    """Of each parameter its weights and both moments, in one order on every rank; before the first step, zeros."""
    for parameter in trained.values():
        state = optimizer.state.get(parameter, {})
        yield parameter
        for which in ("exp_avg", "exp_avg_sq"):
            yield state[which] if which in state else torch.zeros_like(parameter)


def state_of(trained: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.AdamW) -> TrainState:
    """Weights and moments, not checked. Tensors that are spread are gathered in the order of `state_tensors`."""
    steps = (int(state["step"]) for state in optimizer.state.values() if state)
    arrays = map(to_numpy, state_tensors(trained, optimizer))
    found = {name: (next(arrays), next(arrays), next(arrays)) for name in trained}
    parts = ({name: found[name][part] for name in found} for part in range(3))
    return TrainState(max(steps, default=0), *parts)


def zeros(trained: Mapping[str, torch.nn.Parameter], step: int) -> TrainState:
    """A state of the right shapes after `step` steps, for weights and moments that come from rank 0."""
    empty = {name: np.zeros(tuple(parameter.shape), np.float32) for name, parameter in trained.items()}
    return TrainState(step, empty, empty, empty)


def everything(trained: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.AdamW) -> Iterator[torch.Tensor]:
    """Weights, and moments where there are any, in one order on every rank."""
    for parameter in trained.values():
        yield parameter
        state = optimizer.state.get(parameter, {})
        yield from (state[which] for which in ("exp_avg", "exp_avg_sq") if which in state)


def any_sum(parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    """A number that is not finite when one of the weights is not; its value means nothing. Nobody waits for it."""
    return torch.stack([local(parameter.detach()).sum() for parameter in parameters]).sum()


def global_norm(gradients: Iterable[torch.Tensor]) -> torch.Tensor:
    """The Euclidean norm over all gradients, as a float32 number: each last axis in float32, the rest in float64.

    torch's CPU reduction adds float32 one after another: of a 28-million-element gradient the norm came out 2e-4 low.
    """
    rows = [torch.linalg.vector_norm(gradient.float(), dim=-1).double().reshape(-1) for gradient in gradients]
    return torch.linalg.vector_norm(torch.cat(rows)).float()


def _finite(tensors: Mapping[str, torch.Tensor]) -> dict[str, bool]:
    return {name: bool(torch.isfinite(tensor).all()) for name, tensor in tensors.items()}


class _AskPilot(TrainerCallback):
    """Reports each update to the pilot and passes its order on to Trainer."""

    def __init__(self, trainer: UpdateTrainer, pilot: Pilot, live: Live) -> None:
        self.trainer, self.pilot, self.live, self.reason = trainer, pilot, live, "done"

    def on_step_end(self, args: Any, state: Any, control: Any, **unused: Any) -> Any:
        stop = self.pilot.after(self.trainer.stats(self.pilot), self.live).stop
        if stop is not None:
            self.reason = stop
            control.should_training_stop = True
        return control


class _Stream(IterableDataset[Any]):
    """Updates as they are made; Trainer looks for keys in each item, so each travels in a dict."""

    def __init__(self, updates: Iterator[Update]) -> None:
        self._updates = updates

    def __iter__(self) -> Iterator[dict[str, Update]]:
        return ({"update": update} for update in self._updates)


class UpdateTrainer(Trainer):
    """A Trainer whose step is one update of gsm8k_core/backend.py."""

    def __init__(
        self,
        model: LossModel,
        args: TrainingArguments,
        first: Update,
        rest: Iterator[Update],
        config: TrainConfig,
        pilot: Pilot,
        optimizer: torch.optim.AdamW,
        trained: Mapping[str, torch.nn.Parameter],
        group: TorchGroup | None,
    ) -> None:
        super().__init__(model=model, args=args, optimizers=(optimizer, None))
        self.trained, self.group, self.shards = trained, group, vars(model.model).get(SHARDS)
        self.remove_callback(PrinterCallback)
        self.first, self.rest, self.config, self.pilot = first, rest, config, pilot
        self.update, self.losses = first, model
        self.loss = self.norm = math.nan
        self.loss_sum = torch.zeros(())  # of the update at hand, still on the device

    def get_train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(_Stream(chain([self.first], self.rest)), batch_size=None)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], None]:
        samples = list(islice(epoch_iterator, num_batches))
        if not samples:
            self.control.should_training_stop = True
        return samples, None

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Trainer wants one. It would ask for a rate before the pilot saw the last update: see training_step."""
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda done: 1.0)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        model.train()
        self.update, device = inputs["update"], self.args.device
        # Here, and not by the scheduler: after each update the pilot may plan anew.
        for group in self.optimizer.param_groups:
            group["lr"] = self.pilot.rate(self.update.number)
        scale = 1 / max(self.update.num_targets, 1)
        total = torch.zeros((), device=device)
        with self._on_all_ranks(), memory_error("torch", NO_MEMORY):
            # One context for the whole update: autocast keeps each weight that it has cast until the outermost ends.
            with self.accelerator.autocast(), self.losses.one_update():
                for place, batch in enumerate(self._micro_batches()):
                    total += self._accumulate(model, place, batch, scale)
            if self.group is not None and device.type == "cuda":
                torch.cuda.synchronize()  # what fails on the device, fails here
        if self.group is not None:
            total = self.group.sum(total, [p for p in self.trained.values() if not is_spread(p)])
        if device.type == "mps" and self.update.number % EMPTY_CACHE_UPDATES == 0:
            torch.mps.empty_cache()
            if hasattr(torch.mps, "clear_graph_cache"):  # torch 2.13 has none
                torch.mps.clear_graph_cache()
        self.loss_sum = total
        return total

    def _micro_batches(self) -> Sequence[Batch]:
        """Of this rank; as many on each, where weights are spread and each forward needs all ranks."""
        own = self.update.micro_batches
        if self.shards is None or self.group is None:
            return own
        return [*own, *[NO_ROW] * (max(self.group.agree(len(own))) - len(own))]

    @contextmanager
    def _on_all_ranks(self) -> Iterator[None]:
        """An error in here is every rank's. With weights that are spread, one without memory ends the run instead.

        The other ranks are in the middle of a gather then, and hear of nothing else.
        """
        if self.shards is None:
            with together(self.group):
                yield
            return
        try:
            yield
        except OutOfMemoryError as error:
            raise self.shards.lost(error) from error

    def _accumulate(self, model: Any, place: int, batch: Batch, scale: float) -> torch.Tensor:
        """The loss of a micro-batch, times `scale`; its gradient is added."""
        device = self.args.device
        if draws_dropout(self.config):  # 9 ms on a CPU: torch notes where it was called from, for each kind of device
            first = batch.rows[0] if batch.rows else str(place)
            torch.manual_seed(dropout_seed(self.config.seed, self.update.number, first))
        loss = model(**to_device(batch, device), scale=scale)
        with torch.autocast(device.type, enabled=False):
            self.accelerator.backward(loss)
        return loss.detach()

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = self._clipped(model)
        weights_sum = any_sum(self.trained.values())
        if self.group is not None:
            weights_sum = self.group.mean(weights_sum)
        read = torch.stack([self.loss_sum, norm, weights_sum])
        self.loss, self.norm, weights = read.tolist()  # the update's only wait for the device
        if not all(map(math.isfinite, (self.loss, self.norm, weights))):
            raise self._why(model)  # Trainer steps right after this: the weights stay as they were
        return norm

    def _clipped(self, model: Any) -> torch.Tensor:
        """Clip, and the norm before it. A GPU sums in a tree, and MPS has no float64: Trainer's own is right there."""
        given = [p for p in model.parameters() if p.grad is not None]
        on_cpu = self.args.device.type == "cpu"
        if not given or (self.group is None and not on_cpu):
            norm: torch.Tensor = super()._clip_grad_norm(model)
            return norm
        gradients = [local(p.grad) for p in given if p.grad is not None]
        if any(map(is_spread, given)):
            norm = self.group.norm(global_norm(gradients))
            # As clip_grads_with_norm_ does, on this rank's parts: a spread tensor and a plain number do not mix.
            torch._foreach_mul_(gradients, (self.config.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
            return norm
        norm = global_norm(gradients) if on_cpu else torch.nn.utils.get_total_norm(gradients)
        if self.group is not None:
            norm = self.group.mean(norm)
        torch.nn.utils.clip_grads_with_norm_(given, self.config.max_grad_norm, norm)
        return norm

    def _why(self, model: Any) -> DivergedError:
        """The update once more, a micro-batch at a time, to find what is not finite in it."""
        if self.shards is not None:
            return self._why_spread(model)
        scale = 1 / max(self.update.num_targets, 1)

        def recompute(place: int, batch: Batch) -> tuple[float, dict[str, bool]]:
            model.zero_grad()
            with self.accelerator.autocast(), self.losses.one_update():
                loss = self._accumulate(model, place, batch, scale).item()
            given = {name: p.grad for name, p in self.trained.items() if p.grad is not None}
            return loss, _finite({name: gradient.square().sum() for name, gradient in given.items()})

        ours = set(map(id, self.trained.values()))
        every = {
            name.replace(".base_layer.", "."): p
            for name, p in self.losses.model.named_parameters()
            if id(p) not in ours
        }
        error = not_finite(self.update, self.loss, self.norm, _finite({**self.trained, **every}), recompute)
        model.zero_grad()
        return error

    def _why_spread(self, model: Any) -> DivergedError:
        """The same on every rank, of weights that are spread: which of them was bad before, and else no more."""
        names = [*self.trained, *(name for name, p in self.losses.model.named_parameters() if not p.requires_grad)]
        named = {**dict(self.losses.model.named_parameters()), **self.trained}
        bad = torch.stack([(~torch.isfinite(local(named[name].detach())).all()).float() for name in names])
        finite = dict(zip(names, (self.group.mean(bad) == 0).tolist(), strict=True))
        model.zero_grad()
        return not_finite_over_ranks(self.update, self.loss, self.norm, finite)

    def stats(self, pilot: Pilot) -> UpdateStats:
        """What the update just done reports."""
        update = self.update
        rate = pilot.rate(update.number)
        return UpdateStats(update.number, self.loss, update.num_targets, update.num_tokens, self.norm, rate)


@contextmanager
def one_run() -> Iterator[None]:
    """A run, from before its folder is claimed to its end. Raises PreflightError where another is at work."""
    if _TRAINS.locked():  # that of somebody who trains without a run
        raise _another()
    with _only_one(_RUN):
        yield


@contextmanager
def _only_one(lock: threading.Lock) -> Iterator[None]:
    """Trainer takes its precision from the process: a second training in another thread would change the first's."""
    if not lock.acquire(blocking=False):
        raise _another()
    try:
        yield
    finally:
        lock.release()


def _another() -> PreflightError:
    return PreflightError(
        "another training is at work in this process, and PyTorch's Trainer has its settings from the process; "
        "train one after the other, or each in a process of its own"
    )


@contextmanager
def _precision(dtype: str) -> Iterator[None]:
    """Only we choose the precision: a variable that a launcher left would win over TrainingArguments."""
    name = "ACCELERATE_MIXED_PRECISION"
    before = os.environ.get(name)
    os.environ[name] = "bf16" if dtype == "bfloat16" else "no"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def enable_checkpointing(model: Any, config: TrainConfig) -> None:
    """Compute each block again in the backward pass, where the run asks for it."""
    if config.gradient_checkpointing:
        # transformers renamed it in 5.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})


def _arguments(folder: str, config: TrainConfig, device: str, dtype: str) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=folder,
        num_train_epochs=1,
        max_steps=MANY,  # the stream of updates ends the run
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,  # accumulated inside training_step
        max_grad_norm=config.max_grad_norm,
        bf16=dtype == "bfloat16",
        use_cpu=device == "cpu",
        seed=config.seed,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        logging_nan_inf_filter=False,  # the default logs a NaN loss as 0.0 and goes on
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # two would become DataParallel
    return arguments


def train(
    model: Any,
    optimizer: torch.optim.AdamW,
    updates: Iterable[Update],
    config: TrainConfig,
    pilot: Pilot,
    live: Live,
    device: str,
    dtype: str,
    trained: Mapping[str, torch.nn.Parameter],
    group: TorchGroup | None = None,
) -> Outcome:
    """One segment over `updates`; see Backend.train. `trained` holds Hugging Face's (PEFT's) names."""
    rest = iter(updates)
    first = next(rest, None)
    if first is None:
        return Outcome("done", 0)
    enable_checkpointing(model, config)
    with (
        _only_one(_TRAINS),
        tempfile.TemporaryDirectory() as folder,  # Trainer wants one; nothing is written there
        _precision(dtype),
        alone(),
    ):
        arguments = _arguments(folder, config, device, dtype)
        trainer = UpdateTrainer(LossModel(model), arguments, first, rest, config, pilot, optimizer, trained, group)
        ask = _AskPilot(trainer, pilot, live)
        trainer.add_callback(ask)
        trainer.train()
    return Outcome(ask.reason, trainer.update.number)
