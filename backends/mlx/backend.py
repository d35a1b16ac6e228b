"""The MLX backend: the interface of gsm8k_core/backend.py over train.py and generate.py."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map

from backends.mlx import BLAS, COMPILER, memory
from backends.mlx.adapter import add_adapter, from_mlx, to_mlx, without_adapter
from backends.mlx.architectures import refuse_long_rows
from backends.mlx.device import CAPABILITIES, choose_device, choose_dtype, fast_tokens, has_gpu, measure_gflops, rated
from backends.mlx.fast_exp import whole_array_ops
from backends.mlx.generate import answer, generate, odds, score
from backends.mlx.group import MLXGroup
from backends.mlx.load import cast, in_order_of_files, load, to_dtype
from backends.mlx.loss import target_positions
from backends.mlx.memory import NO_MEMORY
from backends.mlx.train import (
    AdamW,
    MicroBatch,
    checkpointed_blocks,
    freeze,
    global_norm,
    loss_scale,
    scaled_loss,
    set_working,
    train,
)
from gsm8k_core.backend import Answering, Pilot, ignore_token
from gsm8k_core.models.adapter import LoraSpec, draws_dropout, lora_spec, peft_name, write_adapter
from gsm8k_core.models.folder import EMBEDDING, HEAD, SINGLE_FILE, ModelFolder, weight_files, write_model_folder
from gsm8k_core.models.tensors import write_tensors
from gsm8k_core.training.finite import check_fit, check_resumed, check_weights, checked_state
from gsm8k_core.training.memory import NOT_FINITE, OUT_OF_MEMORY, fastest, memory_error, time_each
from gsm8k_core.types import (
    Batch,
    Choice,
    Completion,
    Incoming,
    OnToken,
    Outcome,
    OutOfMemoryError,
    PreflightError,
    Sampling,
    TrainState,
    Update,
)

if TYPE_CHECKING:
    from gsm8k_core.config.train import TrainConfig
    from gsm8k_core.models.rendering import Rendering
    from gsm8k_core.types import FloatArray


class MLXBackend:
    """One model on MLX."""

    name = "mlx"
    capabilities = CAPABILITIES

    def __init__(self, folder: Path, device: str, dtype: str, rendering: Rendering | None = None) -> None:
        chosen = choose_device(device, has_gpu())
        self.choices = {"device": chosen, "dtype": choose_dtype(dtype, chosen.name), "compile": COMPILER}
        files = ModelFolder(folder).check(quantized=True)
        mx.set_default_device(mx.gpu if chosen.name == "gpu" else mx.cpu)
        if chosen.name == "cpu":
            self.choices["blas"] = rated(BLAS, measure_gflops())
        self._folder = folder
        self._rendering = rendering
        self._end_ids = frozenset(rendering.end_ids if rendering else files.end_ids)
        self._config = files.config
        self._base = str(folder)  # what an adapter of this model says it belongs to
        self._spec: LoraSpec | None = None
        self._masters: dict[str, mx.array] = {}  # what is trained, in float32
        self._optimizer: AdamW | None = None
        self.group: MLXGroup | None = None
        self._started: list[tuple[int, int]] = []  # tokens whose rows are another's: the folder says otherwise
        with memory_error("mlx", NO_MEMORY):
            self._model = load(folder)
            if self._dtype != mx.float32:
                cast(self._model, self._dtype)

    @property
    def micro_batch_tokens(self) -> Choice:
        return fast_tokens(self.choices["device"].name)

    @property
    def _dtype(self) -> mx.Dtype:
        return getattr(mx, self.choices["dtype"].name)

    def train(
        self, updates: Iterable[Update], config: TrainConfig, pilot: Pilot, resume: TrainState | None = None
    ) -> Outcome:
        with memory_error("mlx", NO_MEMORY):
            self._prepare(config)
            self._optimizer = AdamW(config, self._masters)
            if resume is not None and (self.group is None or self.group.rank == 0):
                self._restore(resume, self._optimizer)
            if self.group is not None:
                self._share(self.group, self._optimizer, resume.step if resume else 0)
            set_working(self._model, self._masters, self._dtype)
            with memory.limited(mx.device_info(), partial(self._predicted_peak, config), self.choices):
                step = self._micro_batch(config)
                name_of = peft_name if self._spec is not None else str
                outcome = train(
                    step,
                    self._masters,
                    self._optimizer,
                    self._within_window(updates),
                    config,
                    pilot,
                    self,
                    self._dtype,
                    name_of,
                    self.group,
                )
            self.choices["compile"] = Choice(COMPILER.name, f"{COMPILER.reason}; {step.num_traces} shapes traced")
            return outcome

    def _refuse_longer(self, longest: int) -> None:
        refuse_long_rows(self._config, longest)

    def _within_window(self, updates: Iterable[Update]) -> Iterator[Update]:
        for update in updates:
            self._refuse_longer(max((batch.tokens.shape[1] for batch in update.micro_batches), default=0))
            yield update

    def _predicted_peak(self, config: TrainConfig) -> int:
        names = self.choices["dtype"].name, self.choices["device"].name
        return memory.own_peak(self._config, config, *names)

    def engine(self, name: str, longest: int) -> Answering:
        raise PreflightError(f"--rollout-engine {name} is for torch on CUDA; leave it out: mlx samples itself")

    def peak_memory(self) -> int:
        return memory.peak(self.choices["device"].name)

    def _prepare(self, config: TrainConfig) -> None:
        """Choose what is trained: an adapter, made now unless it is there, or the model's own weights."""
        spec = lora_spec(config)
        if self._spec is not None and spec != self._spec:
            raise PreflightError("this model already carries another adapter; open it again")
        if spec is None:
            if any(isinstance(module, nn.QuantizedLinear) for module in self._model.modules()):
                raise PreflightError("--method full cannot train 4-bit weights; try --method lora")
            freeze(self._model, config.trainable)
            trained = {name for name, _ in tree_flatten(self._model.trainable_parameters())}
            whole = self._whole()
            self._masters = {name: whole[name] for name in sorted(trained)}
        else:
            self._base = self._base if config.model == "auto" else config.model  # a rehearsal may know another name
            if self._spec is None:
                self._spec = spec
                self._masters = add_adapter(self._model, spec)

    def _whole(self) -> dict[str, mx.array]:
        """The whole model in float32: from memory, or in part from the folder again."""
        if self._dtype == mx.float32:
            return dict(tree_flatten(self._model.parameters())) | self._masters
        names = {name for name, _ in tree_flatten(self._model.parameters())}
        stored = {name: value for path in weight_files(self._folder) for name, value in mx.load(str(path)).items()}
        for name in [name for name in stored if name.endswith((EMBEDDING, HEAD))]:
            for token, like in self._started:
                stored[name][token] = stored[name][like]
        ours = in_order_of_files({name: stored[name] for name in names})
        return {name: array.astype(mx.float32) for name, array in ours.items()} | self._masters

    def start_token(self, token: int, like: int) -> None:
        self._started.append((token, like))
        layers = [self._model.model.embed_tokens, *([self._model.lm_head] if "lm_head" in self._model else [])]
        for layer in layers:
            layer.weight[token] = layer.weight[like]

    def _restore(self, resume: TrainState, optimizer: AdamW) -> None:
        check_resumed(resume)
        to_ours = to_mlx if self._spec else _from_files
        parameters = to_ours(resume.parameters)
        check_fit(self._masters, parameters)
        self._masters.update(parameters)
        optimizer.restore(resume.step, to_ours(resume.first_moments), to_ours(resume.second_moments))

    def _share(self, group: MLXGroup, optimizer: AdamW, step: int) -> None:
        """Go on from rank 0's weights and moments."""
        self._masters.update(group.share(self._masters))
        if step:
            optimizer.restore(step, *(group.share(optimizer.moments(which)) for which in ("m", "v")))

    def _to_state(self, arrays: dict[str, mx.array]) -> dict[str, FloatArray]:
        mx.eval(arrays)
        if self._spec is not None:
            return from_mlx(arrays)
        return {name: np.ascontiguousarray(np.asarray(array)) for name, array in in_order_of_files(arrays).items()}

    def state(self) -> TrainState:
        if self._optimizer is None:
            raise RuntimeError("there is no state before train()")
        with memory_error("mlx", NO_MEMORY):
            first, second = (self._to_state(self._optimizer.moments(which)) for which in ("m", "v"))
            return checked_state(TrainState(self._optimizer.num_steps, self._to_state(self._masters), first, second))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        on_token: OnToken = ignore_token,
        keys: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, Completion]]:
        self._refuse_longer(max(map(len, prompts), default=0) + sampling.max_new_tokens)
        with memory_error("mlx", NO_MEMORY):
            yield from generate(self._model, prompts, sampling, self._end_ids, on_token, keys)

    def answer(
        self, incoming: Incoming, num_places: int, longest: int, on_token: OnToken = ignore_token
    ) -> Iterator[Sequence[tuple[int, Completion]]]:
        self._refuse_longer(longest)
        with memory_error("mlx", NO_MEMORY):
            yield from answer(self._model, incoming, num_places, self._end_ids, on_token)

    def score(self, batch: Batch) -> FloatArray:
        self._refuse_longer(batch.tokens.shape[1])
        with memory_error("mlx", NO_MEMORY):
            return score(self._model, batch.tokens, int(self.micro_batch_tokens.name))

    def score_first(self, batch: Batch) -> FloatArray:
        with without_adapter(self._model):
            return self.score(batch)

    def odds(self, tokens: Sequence[int]) -> FloatArray:
        self._refuse_longer(len(tokens))
        with memory_error("mlx", NO_MEMORY):
            return odds(self._model, tokens)

    def save(self, directory: Path, dtype: str = "float32") -> None:
        if self._spec is not None:
            values = self._to_state(self._masters)
            check_weights(values)
            write_adapter(directory, values, self._spec, self._base, self._rendering)
            return
        whole = in_order_of_files(self._whole())
        arrays = {name: np.ascontiguousarray(np.asarray(array)) for name, array in whole.items()}
        check_weights(arrays)
        write_model_folder(
            self._folder,
            directory,
            lambda target: write_tensors(target / SINGLE_FILE, arrays, dtype),
            dtype,
            rendering=self._rendering,
        )

    def rehearse(self, batch: Batch, config: TrainConfig, late: Callable[[], bool] = lambda: False) -> float:
        seconds = math.inf
        memory.forget_peak()
        with memory_error("mlx", NO_MEMORY):
            self._refuse_longer(batch.tokens.shape[1])
            self._prepare(config)
            set_working(self._model, self._masters, self._dtype)
            step = self._micro_batch(config)
            with checkpointed_blocks(self._model, config.gradient_checkpointing), whole_array_ops(self._model):
                self._model.train()
                for _ in range(2):  # the first one is traced
                    start = time.perf_counter()
                    mx.eval(step(batch, 1.0))
                    seconds = min(seconds, time.perf_counter() - start)
                    if late():
                        break
        return seconds

    def _micro_batch(self, config: TrainConfig) -> MicroBatch:
        return MicroBatch(self._model, compiled=COMPILER.name == "compiled" and not draws_dropout(config))

    def choose_dtype(self, batch: Batch, config: TrainConfig) -> Choice:
        if self.choices["device"].name == "cpu":
            return self.choices["dtype"]
        with memory_error("mlx", NO_MEMORY):
            # float16 is Metal's: M1 and M2 have no bfloat16 products. A step that is not finite is never applied.
            more = ("float16",) if mx.metal.is_available() else ()
            return self.choose_among(("float32", "bfloat16", *more), batch, config)

    def choose_among(self, candidates: Sequence[str], batch: Batch, config: TrainConfig) -> Choice:
        """The fastest of `candidates` on one micro-batch, from now on the compute dtype."""
        self._prepare(config)
        parameters = self._model.parameters()  # in float32: a cast there and back would round them
        loss_and_grad = nn.value_and_grad(self._model, scaled_loss)

        def compute_in(dtype: str) -> None:
            self._model.update(tree_map(partial(to_dtype, getattr(mx, dtype)), parameters))

        def step(dtype: str) -> str:
            compute_in(dtype)
            self._model.train()
            try:
                with memory_error("mlx", NO_MEMORY):
                    scale = loss_scale(getattr(mx, dtype), batch.num_targets)
                    loss, gradients = loss_and_grad(
                        self._model, scale, mx.array(batch.tokens), *target_positions(batch)
                    )
                    norm = global_norm({name: value.astype(mx.float32) for name, value in tree_flatten(gradients)})
                    return "" if mx.isfinite(loss + norm).item() else NOT_FINITE
            except OutOfMemoryError:
                return OUT_OF_MEMORY

        with checkpointed_blocks(self._model, config.gradient_checkpointing):
            choice = fastest(time_each(candidates, step))
        self.choices["dtype"] = choice
        compute_in(choice.name)
        mx.eval(self._model.parameters())
        return choice

    def close(self) -> None:
        self._model = self._optimizer = None
        self._masters = {}
        gc.collect()  # modules and compiled functions know each other
        mx.clear_cache()


def _from_files(values: Mapping[str, FloatArray]) -> dict[str, mx.array]:
    """Under the same names, as MLX has them."""
    return in_order_of_files({name: mx.array(value) for name, value in values.items()})


def open_backend(
    folder: Path, device: str = "auto", dtype: str = "auto", rendering: Rendering | None = None
) -> MLXBackend:
    """Load the model in `folder`. Raises PreflightError for a device or dtype that is not there."""
    return MLXBackend(folder, device, dtype, rendering)
