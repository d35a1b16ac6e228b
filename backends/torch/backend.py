"""The PyTorch backend: the interface of gsm8k_core/backend.py over train.py and generate.py."""

from __future__ import annotations

import copy
import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from backends.torch import memory
from backends.torch.adapter import add_adapter, cast_frozen
from backends.torch.architectures import TYPES
from backends.torch.device import CAPABILITIES, MICRO_BATCH, choose_device, choose_dtype, devices_here
from backends.torch.generate import answer, check_decoding, generate, odds, score
from backends.torch.load import load
from backends.torch.loss import LossModel, to_device
from backends.torch.train import enable_checkpointing, freeze, make_optimizer, restore, state_of, to_numpy, train
from gsm8k_core.backend import Live, Pilot, ignore_token
from gsm8k_core.models.adapter import LoraSpec, lora_spec, write_adapter
from gsm8k_core.models.folder import SINGLE_FILE, ModelFolder, write_model_folder
from gsm8k_core.models.tensors import write_tensors
from gsm8k_core.training.finite import check_weights
from gsm8k_core.training.memory import NOT_FINITE, OUT_OF_MEMORY, fastest, memory_error, time_each
from gsm8k_core.types import (
    Batch,
    Choice,
    Completion,
    Incoming,
    OnToken,
    Orders,
    Outcome,
    OutOfMemoryError,
    PreflightError,
    Sampling,
    TrainState,
    Update,
    UpdateStats,
)

if TYPE_CHECKING:
    from gsm8k_core.config.train import TrainConfig
    from gsm8k_core.models.rendering import Rendering
    from gsm8k_core.types import FloatArray

# How torch, Metal and CUDA's libraries say that memory ran out; torch.OutOfMemoryError is a RuntimeError. "Not enough
# memory" is Windows', "invalid buffer size" MPS's.
NO_MEMORY = (
    "out of memory",
    "allocate memory",
    "not enough memory",
    "insufficient memory",
    "invalid buffer size",
    "bad_alloc",
    "alloc_failed",
    "allocation_failed",
)


class _Forgetting:
    """A pilot whose updates make the weights that were cast for generating out of date."""

    def __init__(self, pilot: Pilot, forget: Callable[[], None]) -> None:
        self.rate, self._pilot, self._forget = pilot.rate, pilot, forget

    def after(self, stats: UpdateStats, live: Live) -> Orders:
        self._forget()
        try:
            return self._pilot.after(stats, live)
        finally:
            self._forget()


class TorchBackend:
    """One model on PyTorch."""

    name = "torch"
    capabilities = CAPABILITIES

    def __init__(self, folder: Path, device: str, dtype: str, rendering: Rendering | None = None) -> None:
        chosen = choose_device(device, devices_here())
        self.choices = {"device": chosen, "dtype": choose_dtype(dtype, chosen.name)}
        files = ModelFolder(folder).check()
        self._folder = folder
        self._rendering = rendering
        self._end_ids = frozenset(rendering.end_ids if rendering else files.end_ids)
        with memory_error("torch", NO_MEMORY):
            self._model = load(folder, chosen.name)
            if self._model.config.model_type not in TYPES:
                check_decoding(self._model)
        self._base = str(folder)  # what an adapter of this model says it belongs to
        self._spec: LoraSpec | None = None
        self._trained: dict[str, torch.nn.Parameter] = {}  # under Hugging Face's (PEFT's) names
        self._optimizer: torch.optim.AdamW | None = None
        self._cast: Any = None  # the weights in the compute dtype, made when first needed

    @property
    def micro_batch_tokens(self) -> Choice:
        return MICRO_BATCH[self.choices["device"].name]

    def _compute_model(self) -> Any:
        """The model for generating and scoring: cast once, not in every forward as autocast would."""
        dtype = getattr(torch, self.choices["dtype"].name)
        if dtype == torch.float32:
            return self._model.eval()
        if self._cast is None:
            # Parameters alone: rounded to bfloat16, RoPE's frequencies would turn by half a radian at position 300.
            cast = {
                id(p): torch.nn.Parameter(p.detach().to(dtype), requires_grad=False) for p in self._model.parameters()
            }
            self._cast = copy.deepcopy(self._model, cast)
        return self._cast.eval()

    def train(
        self, updates: Iterable[Update], config: TrainConfig, pilot: Pilot, resume: TrainState | None = None
    ) -> Outcome:
        device, dtype = self.choices["device"].name, self.choices["dtype"].name
        self._forget()
        with memory_error("torch", NO_MEMORY):
            self._prepare(config)
            if self._spec is not None and not self._spec.dora and dtype != "float32":
                cast_frozen(self._model, getattr(torch, dtype))  # DoRA's norms are taken from the float32 weights
            self._optimizer = make_optimizer(self._trained, config)
            if resume is not None:
                restore(self._trained, self._optimizer, resume)
            steered = _Forgetting(pilot, self._forget)
            return train(self._model, self._optimizer, updates, config, steered, self, device, dtype, self._trained)

    def _forget(self) -> None:
        self._cast = None

    def _prepare(self, config: TrainConfig) -> None:
        """Choose what is trained: an adapter, made now unless it is there, or the model's own weights."""
        spec = lora_spec(config)
        if self._spec is not None and spec != self._spec:
            raise PreflightError("this model already carries another adapter; open it again")
        if spec is None:
            freeze(self._model, config.trainable)
            self._trained = {name: p for name, p in self._model.named_parameters() if p.requires_grad}
        else:
            self._base = self._base if config.model == "auto" else config.model  # a rehearsal may know another name
            if self._spec is None:
                self._spec = spec
                self._trained = add_adapter(self._model, spec)

    def start_token(self, token: int, like: int) -> None:
        self._forget()
        with torch.no_grad():
            for layer in (self._model.get_input_embeddings(), self._model.get_output_embeddings()):
                layer.weight[token] = layer.weight[like]

    def state(self) -> TrainState:
        if self._optimizer is None:
            raise RuntimeError("there is no state before train()")
        with memory_error("torch", NO_MEMORY):
            return state_of(self._trained, self._optimizer)

    def choose_dtype(self, batch: Batch, config: TrainConfig) -> Choice:
        if self.choices["device"].name == "cpu":
            return self.choices["dtype"]
        with memory_error("torch", NO_MEMORY):
            return self.choose_among(("float32", "bfloat16"), batch, config)

    def choose_among(self, candidates: Sequence[str], batch: Batch, config: TrainConfig) -> Choice:
        """The fastest of `candidates` on one micro-batch, from now on the compute dtype."""
        model = self._ready(config)

        def step(dtype: str) -> str:
            try:
                with memory_error("torch", NO_MEMORY):
                    return "" if self._one(model, batch, dtype) else NOT_FINITE
            except OutOfMemoryError:
                return OUT_OF_MEMORY
            finally:
                model.zero_grad()

        self._cast = None
        self.choices["dtype"] = fastest(time_each(candidates, step))
        return self.choices["dtype"]

    def _ready(self, config: TrainConfig) -> LossModel:
        """The model as training computes with it."""
        self._prepare(config)
        enable_checkpointing(self._model, config)
        return LossModel(self._model).train()

    def _one(self, model: LossModel, batch: Batch, dtype: str) -> bool:
        """One micro-batch forward and backward; whether its loss and gradients are finite."""
        device = torch.device(self.choices["device"].name)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(**to_device(batch, device))
        loss.backward()
        norms = torch.stack([p.grad.norm() for p in self._trained.values() if p.grad is not None])
        return bool(torch.isfinite(loss + norms.sum()).item())

    def rehearse(self, batch: Batch, config: TrainConfig, late: Callable[[], bool] = lambda: False) -> float:
        dtype, seconds = self.choices["dtype"].name, math.inf
        memory.forget_peak(self.choices["device"].name)
        with memory_error("torch", NO_MEMORY):
            model = self._ready(config)
            for _ in range(2):  # the first one makes what the others find
                start = time.perf_counter()
                self._one(model, batch, dtype)
                seconds = min(seconds, time.perf_counter() - start)
                model.zero_grad()
                if late():
                    break
        return seconds

    def peak_memory(self) -> int:
        return memory.peak(self.choices["device"].name)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        on_token: OnToken = ignore_token,
        keys: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, Completion]]:
        with memory_error("torch", NO_MEMORY):
            yield from generate(self._compute_model(), prompts, sampling, self._end_ids, on_token, keys)

    def answer(
        self, incoming: Incoming, num_places: int, longest: int, on_token: OnToken = ignore_token
    ) -> Iterator[Sequence[tuple[int, Completion]]]:
        with memory_error("torch", NO_MEMORY):
            yield from answer(self._compute_model(), incoming, num_places, self._end_ids, on_token)

    def score(self, batch: Batch) -> FloatArray:
        with memory_error("torch", NO_MEMORY):
            return score(self._compute_model(), batch.tokens, int(self.micro_batch_tokens.name))

    def odds(self, tokens: Sequence[int]) -> FloatArray:
        with memory_error("torch", NO_MEMORY):
            return odds(self._compute_model(), tokens)

    def save(self, directory: Path, dtype: str = "float32") -> None:
        if self._spec is not None:
            values = {name: to_numpy(parameter) for name, parameter in self._trained.items()}
            check_weights(values)
            write_adapter(directory, values, self._spec, self._base, self._rendering)
            return
        tied = bool(self._model.config.tie_word_embeddings)
        state = {
            name: tensor.detach().cpu().contiguous().numpy()
            for name, tensor in self._model.state_dict().items()
            if not (tied and name == "lm_head.weight")
        }
        check_weights(state)
        write_model_folder(
            self._folder,
            directory,
            lambda target: write_tensors(target / SINGLE_FILE, state, dtype),
            dtype,
            rendering=self._rendering,
        )

    def close(self) -> None:
        self._model = self._optimizer = self._cast = None
        self._trained = {}
        gc.collect()  # hooks and modules know each other
        empty = {"cuda": torch.cuda.empty_cache, "mps": torch.mps.empty_cache}.get(self.choices["device"].name)
        if empty is not None:
            empty()


def open_backend(
    folder: Path, device: str = "auto", dtype: str = "auto", rendering: Rendering | None = None
) -> TorchBackend:
    """Load the model in `folder`. Raises PreflightError for a device or dtype that is not there."""
    return TorchBackend(folder, device, dtype, rendering)
