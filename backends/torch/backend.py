"""The PyTorch backend: the interface of gsm8k_core/backend.py over train.py and generate.py."""

from __future__ import annotations

import copy
import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from backends.torch import memory
from backends.torch.adapter import add_adapter, cast_frozen, without_adapter
from backends.torch.architectures import TYPES
from backends.torch.device import CAPABILITIES, MICRO_BATCH, choose_device, choose_dtype, devices_here
from backends.torch.generate import answer, check_decoding, generate, odds, score
from backends.torch.group import Command, TorchGroup, alone, gather, is_spread, local, sharding, to_numpy
from backends.torch.load import load
from backends.torch.loss import NO_ROW, LossModel, to_device
from backends.torch.memory import NO_MEMORY
from backends.torch.train import (
    check_restored,
    enable_checkpointing,
    everything,
    freeze,
    make_optimizer,
    restore,
    state_of,
    state_tensors,
    train,
    zeros,
)
from gsm8k_core.backend import Answering, Live, Pilot, ignore_token
from gsm8k_core.models.adapter import LoraSpec, lora_spec, write_adapter
from gsm8k_core.models.folder import SINGLE_FILE, ModelFolder, write_model_folder
from gsm8k_core.models.tensors import write_tensors
from gsm8k_core.ranks.together import together
from gsm8k_core.training.finite import check_weights, checked_state
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
    from backends.torch.shards import Shards
    from gsm8k_core.config.train import TrainConfig
    from gsm8k_core.models.rendering import Rendering
    from gsm8k_core.types import FloatArray


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
        self._shards: Shards | None = None
        with memory_error("torch", NO_MEMORY):
            self._model = self._open(folder, chosen.name)
        self._base = str(folder)  # what an adapter of this model says it belongs to
        self._spec: LoraSpec | None = None
        self._trained: dict[str, torch.nn.Parameter] = {}  # under Hugging Face's (PEFT's) names
        self._optimizer: torch.optim.AdamW | None = None
        self.group: TorchGroup | None = None
        self._cast: Any = None  # the weights in the compute dtype, made when first needed

    def _open(self, folder: Path, device: str) -> Any:
        """The model; each rank's part of it, where it is spread over ranks."""
        group = sharding()
        if group is None:
            model = load(folder, device)
            if model.config.model_type not in TYPES:
                check_decoding(model)
            return model
        from backends.torch.shards import Shards  # here, not above: nearly no run has any, and it takes long

        with group.in_turn(), alone():
            model = load(folder, device, on="cpu")
            if model.config.model_type not in TYPES:
                check_decoding(model)
            self._shards = Shards(model, group, device)
        return model

    @property
    def micro_batch_tokens(self) -> Choice:
        return MICRO_BATCH[self.choices["device"].name]

    def _compute_model(self) -> Any:
        """The model for generating and scoring: cast once, not in every forward as autocast would."""
        dtype = getattr(torch, self.choices["dtype"].name)
        if dtype == torch.float32 or self._shards is not None:  # a cast would be a second model, to be spread as well
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
            if self._spec is not None and not self._spec.dora and dtype != "float32" and self._shards is None:
                cast_frozen(self._model, getattr(torch, dtype))  # DoRA's norms are taken from the float32 weights
            self._optimizer = make_optimizer(self._trained, config)
            self._go_on_from(resume)
            steered = _Forgetting(pilot, self._forget)
            return train(
                self._model, self._optimizer, updates, config, steered, self, device, dtype, self._trained, self.group
            )

    def _go_on_from(self, resume: TrainState | None) -> None:
        """Weights and moments become those of `resume`, and on every rank rank 0's."""
        assert self._optimizer is not None
        follows = self.group is not None and self.group.rank > 0
        if resume is not None and any(map(is_spread, self._trained.values())):
            from backends.torch.shards import restore_spread

            with together(self.group):
                if not follows:
                    check_restored(self._trained, resume)
            restore_spread(self._trained, self._optimizer, resume, follows)
        elif resume is not None:
            restore(self._trained, self._optimizer, zeros(self._trained, resume.step) if follows else resume)
        if self.group is not None:  # of weights that are spread, each rank has read its part of the same files
            self.group.share(each for each in everything(self._trained, self._optimizer) if not is_spread(each))

    def _forget(self) -> None:
        self._cast = None

    def _prepare(self, config: TrainConfig) -> None:
        """Choose what is trained: an adapter, made now unless it is there, or the model's own weights."""
        with nullcontext() if self._shards is None else self._shards.chosen():
            self._choose_trained(config)

    def _choose_trained(self, config: TrainConfig) -> None:
        spec = lora_spec(config)
        if self._shards is not None and spec is not None and spec.dora:
            raise PreflightError("--method dora is not available with FSDP; try --method lora, or a launch without it")
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
                if is_spread(layer.weight):
                    from backends.torch.shards import copy_row

                    copy_row(layer.weight, token, like)
                else:
                    layer.weight[token] = layer.weight[like]

    def state(self) -> TrainState:
        if self._optimizer is None:
            raise RuntimeError("there is no state before train()")
        if self._shards is None or self._spec is not None:  # an adapter is whole on every rank
            with memory_error("torch", NO_MEMORY):
                return checked_state(state_of(self._trained, self._optimizer))
        with self._led(), self._shards.step(Command.STATE):
            state = state_of(self._trained, self._optimizer)
        return checked_state(state)  # here, not above: an error in there is one that leaves the other ranks waiting

    def choose_dtype(self, batch: Batch, config: TrainConfig) -> Choice:
        if self.choices["device"].name == "cpu" or self._shards is not None:  # to time it would take all ranks
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
        norms = torch.stack([local(p.grad).norm() for p in self._trained.values() if p.grad is not None])
        return bool(torch.isfinite(loss + norms.sum()).item())

    def rehearse(self, batch: Batch, config: TrainConfig, late: Callable[[], bool] = lambda: False) -> float:
        dtype, seconds = self.choices["dtype"].name, math.inf
        memory.forget_peak(self.choices["device"].name)
        with self._led():
            with nullcontext() if self._shards is None else self._shards.step(Command.PREPARE):
                if self._shards is not None:
                    self._shards.prepare(config.model_dump_json())
                model = self._ready(config)
            for _ in range(2):  # the first one makes what the others find
                start = time.perf_counter()
                with nullcontext() if self._shards is None else self._shards.step(Command.BACKWARD):
                    self._one(model, batch, dtype)
                seconds = min(seconds, time.perf_counter() - start)
                model.zero_grad()
                if late():
                    break
        return seconds

    def engine(self, name: str, longest: int) -> Answering:
        from backends.torch import vllm  # here, not above: nearly no run asks for it

        vllm.check(self.choices["device"].name, uses_dora=self._spec is not None and self._spec.dora)
        with memory_error("torch", NO_MEMORY):
            return vllm.VLLMEngine(self._folder, self._model, self._end_ids, longest)

    def peak_memory(self) -> int:
        return memory.peak(self.choices["device"].name)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        on_token: OnToken = ignore_token,
        keys: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, Completion]]:
        with self._led():
            yield from generate(self._compute_model(), prompts, sampling, self._end_ids, on_token, keys)

    def answer(
        self, incoming: Incoming, num_places: int, longest: int, on_token: OnToken = ignore_token
    ) -> Iterator[Sequence[tuple[int, Completion]]]:
        with self._led():
            yield from answer(self._compute_model(), incoming, num_places, self._end_ids, on_token)

    def score(self, batch: Batch) -> FloatArray:
        with self._led():
            return score(self._compute_model(), batch.tokens, int(self.micro_batch_tokens.name))

    def score_first(self, batch: Batch) -> FloatArray:
        model = self._compute_model()
        with self._led(), without_adapter(model):
            return score(model, batch.tokens, int(self.micro_batch_tokens.name))

    def odds(self, tokens: Sequence[int]) -> FloatArray:
        with self._led():
            return odds(self._compute_model(), tokens)

    def save(self, directory: Path, dtype: str = "float32") -> None:
        if self._spec is not None:
            values = {name: to_numpy(parameter) for name, parameter in self._trained.items()}
            check_weights(values)
            write_adapter(directory, values, self._spec, self._base, self._rendering)
            return
        if self._shards is None:
            state = {name: to_numpy(tensor) for name, tensor in self._weights()}
        else:
            with self._led(), self._shards.step(Command.WEIGHTS):
                state = {name: to_numpy(tensor) for name, tensor in self._weights()}
        check_weights(state)
        write_model_folder(
            self._folder,
            directory,
            lambda target: write_tensors(target / SINGLE_FILE, state, dtype),
            dtype,
            rendering=self._rendering,
        )

    def _weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The model's own tensors, each once."""
        tied = bool(self._model.config.tie_word_embeddings)
        every = self._model.state_dict().items()
        return ((name, tensor) for name, tensor in every if not (tied and name == "lm_head.weight"))

    # --- weights that are spread over ranks -----------------------------------------------------------------------

    @contextmanager
    def _led(self) -> Iterator[None]:
        """In here rank 0 computes with the weights; where they are spread, all ranks take part."""
        with nullcontext() if self._shards is None else self._shards.led(), memory_error("torch", NO_MEMORY):
            yield

    def lead(self, summon: Callable[[], None]) -> None:
        """Of rank 0: `summon` has the others serve, before it computes with weights that are spread."""
        assert self._shards is not None
        self._shards.summon = summon

    def serve(self) -> None:
        """Of a rank above 0: take part in what rank 0 computes with weights that are spread, until it is done."""
        if self._shards is None:
            raise RuntimeError("only weights that are spread over ranks need all of them; report this")
        shards, rehearsed = self._shards, []

        def prepare() -> None:
            from gsm8k_core.config.train import TrainConfig

            rehearsed[:] = [self._ready(TrainConfig.model_validate_json(shards.prepared()))]

        def backward() -> None:
            self._one(rehearsed[0], NO_ROW, self.choices["dtype"].name)
            rehearsed[0].zero_grad()

        def state() -> None:
            assert self._optimizer is not None
            gather(state_tensors(self._trained, self._optimizer))

        def weights() -> None:
            gather(tensor for _, tensor in self._weights())

        others = {Command.PREPARE: prepare, Command.BACKWARD: backward, Command.STATE: state, Command.WEIGHTS: weights}
        try:
            with memory_error("torch", NO_MEMORY):
                shards.serve(others)
        except OutOfMemoryError as error:  # rank 0 waits for this rank's part
            raise shards.lost(error) from error

    def close(self) -> None:
        self._model = self._optimizer = self._cast = self._shards = None
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
