"""The training loop in PyTorch: Hugging Face's Trainer, fed one update at a time.

One DataLoader item is one update, a list of micro-batches that `training_step` accumulates; Trainer owns the
order of clip, step and schedule. Nothing is saved or logged by it.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from backends.torch.loss import LossModel, to_device
from gsm8k_core.backend import Live, Pilot
from gsm8k_core.models.adapter import draws_dropout, dropout_seed
from gsm8k_core.training.finite import check_fit, check_resumed, checked_state, not_finite
from gsm8k_core.types import Batch, DivergedError, Outcome, TrainState, Update, UpdateStats

if TYPE_CHECKING:
    from gsm8k_core.config.train import TrainConfig

MANY = 10**9
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


def restore(trained: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.AdamW, resume: TrainState) -> None:
    """Set weights and moments. Raises DataError when they do not fit the parameters, or are not finite."""
    check_resumed(resume)
    for part in (resume.parameters, resume.first_moments, resume.second_moments):
        check_fit(trained, part)
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(torch.from_numpy(resume.parameters[name]))
            optimizer.state[parameter] = {
                "step": torch.tensor(float(resume.step), device=parameter.device),
                "exp_avg": torch.empty_like(parameter).copy_(torch.from_numpy(resume.first_moments[name])),
                "exp_avg_sq": torch.empty_like(parameter).copy_(torch.from_numpy(resume.second_moments[name])),
            }


def state_of(trained: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.AdamW) -> TrainState:
    """Weights and moments; before the first step the moments are zero."""
    states = {name: optimizer.state.get(parameter, {}) for name, parameter in trained.items()}

    def moments(which: str) -> dict[str, Any]:
        return {name: to_numpy(state.get(which, torch.zeros_like(trained[name]))) for name, state in states.items()}

    step = max((int(state["step"]) for state in states.values() if state), default=0)
    parameters = {name: to_numpy(parameter) for name, parameter in trained.items()}
    return checked_state(TrainState(step, parameters, moments("exp_avg"), moments("exp_avg_sq")))


def to_numpy(tensor: torch.Tensor) -> Any:
    """A float32 array; on a CPU it shares the tensor's memory."""
    return tensor.detach().cpu().contiguous().numpy()


def any_sum(parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    """A number that is not finite when one of the weights is not; its value means nothing. Nobody waits for it."""
    return torch.stack([parameter.detach().sum() for parameter in parameters]).sum()


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
    ) -> None:
        super().__init__(model=model, args=args, optimizers=(optimizer, None))
        self.trained = trained
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
        # One context for the whole update: autocast keeps each weight that it has cast until the outermost one ends.
        with self.accelerator.autocast(), self.losses.one_update():
            for place, batch in enumerate(self.update.micro_batches):
                total += self._accumulate(model, place, batch, scale)
        if device.type == "mps" and self.update.number % EMPTY_CACHE_UPDATES == 0:
            torch.mps.empty_cache()
            if hasattr(torch.mps, "clear_graph_cache"):  # torch 2.13 has none
                torch.mps.clear_graph_cache()
        self.loss_sum = total
        return total

    def _accumulate(self, model: Any, place: int, batch: Batch, scale: float) -> torch.Tensor:
        """The loss of a micro-batch, times `scale`; its gradient is added."""
        device = self.args.device
        if draws_dropout(self.config):  # 9 ms on a CPU: torch notes where it was called from, for each kind of device
            torch.manual_seed(dropout_seed(self.config.seed, self.update.number, place))
        loss = model(**to_device(batch, device), scale=scale)
        with torch.autocast(device.type, enabled=False):
            self.accelerator.backward(loss)
        return loss.detach()

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = self._clipped(model)
        read = torch.stack([self.loss_sum, norm, any_sum(self.trained.values())])
        self.loss, self.norm, weights = read.tolist()  # the update's only wait for the device
        if not all(map(math.isfinite, (self.loss, self.norm, weights))):
            raise self._why(model)  # Trainer steps right after this: the weights stay as they were
        return norm

    def _clipped(self, model: Any) -> torch.Tensor:
        """Clip, and the norm before it. A GPU sums in a tree, and MPS has no float64: Trainer's own is right there."""
        given = [p for p in model.parameters() if p.grad is not None]
        if self.args.device.type != "cpu" or not given:
            norm: torch.Tensor = super()._clip_grad_norm(model)
            return norm
        norm = global_norm(p.grad for p in given if p.grad is not None)
        torch.nn.utils.clip_grads_with_norm_(given, self.config.max_grad_norm, norm)
        return norm

    def _why(self, model: Any) -> DivergedError:
        """The update once more, a micro-batch at a time, to find what is not finite in it."""
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

    def stats(self, pilot: Pilot) -> UpdateStats:
        """What the update just done reports."""
        update = self.update
        rate = pilot.rate(update.number)
        return UpdateStats(update.number, self.loss, update.num_targets, update.num_tokens, self.norm, rate)


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
) -> Outcome:
    """One segment over `updates`; see Backend.train. `trained` holds Hugging Face's (PEFT's) names."""
    rest = iter(updates)
    first = next(rest, None)
    if first is None:
        return Outcome("done", 0)
    enable_checkpointing(model, config)
    with tempfile.TemporaryDirectory() as folder, _precision(dtype):  # Trainer wants one; nothing is written there
        arguments = _arguments(folder, config, device, dtype)
        trainer = UpdateTrainer(LossModel(model), arguments, first, rest, config, pilot, optimizer, trained)
        ask = _AskPilot(trainer, pilot, live)
        trainer.add_callback(ask)
        trainer.train()
    return Outcome(ask.reason, trainer.update.number)
