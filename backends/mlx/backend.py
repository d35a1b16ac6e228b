"""The MLX backend: loading, and the interface of base.py over train.py and generate.py."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.mlx import blas, environment

# float32 is float32: MLX would round products to TF32 on CUDA and on newer Macs. Read once, at the first product.
os.environ.setdefault("MLX_ENABLE_TF32", "0")
for name, value in environment.DARWIN.items():  # a verb without a parent, too; elsewhere nobody reads it
    os.environ.setdefault(name, value)
BLAS = blas.preload()  # before the first import of mlx, or it comes too late
COMPILER = blas.compiler()

import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402
import numpy as np  # noqa: E402
from mlx.utils import tree_flatten, tree_map  # noqa: E402
from mlx_lm.models.cache import KVCache, make_prompt_cache  # noqa: E402
from mlx_lm.utils import load_model  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

from backends.mlx import memory  # noqa: E402
from backends.mlx.adapter import add_adapter, from_mlx, to_mlx  # noqa: E402
from backends.mlx.blocks import wrapped_blocks  # noqa: E402
from backends.mlx.choose import CAPABILITIES, MICRO_BATCH, choose_device, choose_dtype  # noqa: E402
from backends.mlx.generate import generate, score  # noqa: E402
from backends.mlx.loss import head, hidden_states, target_positions  # noqa: E402
from backends.mlx.rehearse import rehearse  # noqa: E402
from backends.mlx.train import (  # noqa: E402
    AdamW,
    MicroBatch,
    check_fit,
    draws_dropout,
    freeze,
    global_norm,
    loss_scale,
    scaled_loss,
    set_working,
    train,
)
from gsm8k_core.backend import Pilot, ignore_token  # noqa: E402
from gsm8k_core.files import read_json  # noqa: E402
from gsm8k_core.models.adapter import LoraSpec, lora_spec, peft_name, write_adapter  # noqa: E402
from gsm8k_core.models.folder import (  # noqa: E402
    ModelFolder,
    rope_theta,
    weight_files,
    with_both_rope_keys,
    write_model_folder,
)
from gsm8k_core.training.finite import check_resumed, check_weights, checked_state  # noqa: E402
from gsm8k_core.training.memory import NOT_FINITE, OUT_OF_MEMORY, fastest, time_each  # noqa: E402
from gsm8k_core.types import (  # noqa: E402
    Batch,
    Choice,
    Completion,
    DataError,
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
    from gsm8k_core.types import FloatArray

SMALLER = "try a smaller --micro-batch-tokens, --max-length or --eval-batch-size"
# Names that a Hugging Face folder may hold and the model does not need: a tied head, and saved RoPE tables.
_SPARE = ("lm_head.weight", "rotary_emb.inv_freq")


@cache
def _gflops() -> float:
    """Measured once a process."""
    return blas.measure_gflops()


def check(device: str, dtype: str) -> None:
    """Raises PreflightError for a device or a dtype that is not there."""
    choose_dtype(dtype, choose_device(device, _has_gpu()).name)


def _has_gpu() -> bool:
    return bool(mx.metal.is_available() or mx.cuda.is_available())


def _weight_names(folder: Path) -> set[str]:
    names: set[str] = set()
    for path in folder.glob("model*.safetensors"):
        with safe_open(str(path), framework="numpy") as file:
            names |= set(file.keys())
    return names


def load(folder: Path) -> Any:
    """The model in float32, with the RoPE base and the head of its folder whichever library wrote it."""
    config = read_json(folder / "config.json")
    # mlx-lm reads only the top-level rope_theta, and takes an absent tie_word_embeddings for true.
    settings = {**with_both_rope_keys(config), "tie_word_embeddings": ModelFolder(folder).tied_head}
    try:
        model, _ = load_model(folder, lazy=True, model_config=settings)
        plain = all(type(cache) is KVCache for cache in make_prompt_cache(model))
    except MemoryError:
        raise
    except Exception as error:  # mlx-lm raises many kinds, and all of them mean this folder
        raise DataError(f"mlx-lm cannot load {folder}: {error}; try --backend torch") from error
    if not plain or not hasattr(getattr(model, "model", None), "embed_tokens"):
        raise PreflightError(f"model type {config.get('model_type')} is not available on mlx here; try --backend torch")
    cast(model, mx.float32)
    _check_loaded(model, config, folder)
    return model


def cast(model: Any, dtype: mx.Dtype) -> None:
    """Every floating-point parameter in `dtype`; packed 4-bit weights stay as they are."""
    model.update(tree_map(partial(_as, dtype), model.parameters()))
    mx.eval(model.parameters())


def _as(dtype: mx.Dtype, array: mx.array) -> mx.array:
    return array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) else array


def _check_loaded(model: nn.Module, config: dict[str, Any], folder: Path) -> None:
    """Refuse a model whose RoPE base or parameter names differ from the folder's."""
    asked = rope_theta(config)
    loaded = getattr(getattr(model.layers[0].self_attn, "rope", None), "base", None)
    if asked is not None and loaded is not None and float(loaded) != float(asked):
        raise DataError(f"{folder} has RoPE base {asked:g}, but mlx-lm loaded {loaded:g}; please report this")
    names = {name for name, _ in tree_flatten(model.parameters())}
    stored = _weight_names(folder)
    spare = _SPARE if ModelFolder(folder).tied_head else _SPARE[1:]
    strange = (names - stored) | {name for name in stored - names if not name.endswith(spare)}
    if strange:
        raise DataError(f"{folder}: mlx-lm names parameters differently ({min(strange)}, ...); try --backend torch")
    tokens = mx.arange(8)[None]
    theirs, ours = model(tokens), head(model, hidden_states(model, tokens))
    if not mx.allclose(theirs, ours, rtol=1e-4, atol=1e-4, equal_nan=True).item():
        # Some models scale or cap their logits after the head, which the loss here would leave out.
        raise PreflightError(f"model type {config.get('model_type')} is not available on mlx here; try --backend torch")


@contextmanager
def _memory() -> Iterator[None]:
    """MLX's several ways to say that memory ran out, as one error."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error).lower()
        if (
            not isinstance(error, MemoryError)
            and "malloc" not in text
            and "allocate" not in text
            and "memory" not in text
        ):
            raise
        raise OutOfMemoryError(f"mlx ran out of memory; {SMALLER} ({str(error)[:120]})") from error


class MLXBackend:
    """One model on MLX."""

    name = "mlx"
    capabilities = CAPABILITIES

    def __init__(self, folder: Path, device: str, dtype: str) -> None:
        chosen = choose_device(device, _has_gpu())
        self.choices = {"device": chosen, "dtype": choose_dtype(dtype, chosen.name), "compile": COMPILER}
        files = ModelFolder(folder).check(quantized=True)
        mx.set_default_device(mx.gpu if chosen.name == "gpu" else mx.cpu)
        if chosen.name == "cpu":
            self.choices["blas"] = blas.rated(BLAS, _gflops())
        self._folder = folder
        self._end_ids = frozenset(files.end_ids)
        self._base = str(folder)  # what an adapter of this model says it belongs to
        self._spec: LoraSpec | None = None
        self._masters: dict[str, mx.array] = {}  # what is trained, in float32
        self._optimizer: AdamW | None = None
        with _memory():
            self._model = load(folder)
            if self._dtype != mx.float32:
                cast(self._model, self._dtype)

    @property
    def micro_batch_tokens(self) -> Choice:
        return MICRO_BATCH[self.choices["device"].name]

    @property
    def _dtype(self) -> mx.Dtype:
        return getattr(mx, self.choices["dtype"].name)

    def train(
        self, updates: Iterable[Update], config: TrainConfig, pilot: Pilot, resume: TrainState | None = None
    ) -> Outcome:
        with _memory():
            self._prepare(config)
            self._optimizer = AdamW(config, self._masters)
            if resume is not None:
                self._restore(resume, self._optimizer)
            set_working(self._model, self._masters, self._dtype)
            with memory.limited(mx.device_info(), partial(self._predicted_peak, config), self.choices):
                step = self._micro_batch(config)
                name_of = peft_name if self._spec is not None else str
                outcome = train(
                    step, self._masters, self._optimizer, updates, config, pilot, self, self._dtype, name_of
                )
            self.choices["compile"] = Choice(COMPILER.name, f"{COMPILER.reason}; {step.num_traces} shapes traced")
            return outcome

    def _predicted_peak(self, config: TrainConfig) -> int:
        names = self.choices["dtype"].name, self.choices["device"].name
        return memory.own_peak(read_json(self._folder / "config.json"), config, *names)

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
        elif self._spec is None:
            self._spec, self._base = spec, self._base if config.model == "auto" else config.model
            self._masters = add_adapter(self._model, spec)

    def _whole(self) -> dict[str, mx.array]:
        """The whole model in float32: from memory, or in part from the folder again."""
        if self._dtype == mx.float32:
            return dict(tree_flatten(self._model.parameters())) | self._masters
        names = {name for name, _ in tree_flatten(self._model.parameters())}
        stored = {name: value for path in weight_files(self._folder) for name, value in mx.load(str(path)).items()}
        return {name: stored[name].astype(mx.float32) for name in names} | self._masters

    def _restore(self, resume: TrainState, optimizer: AdamW) -> None:
        check_resumed(resume)
        to_ours = to_mlx if self._spec else (lambda values: {name: mx.array(value) for name, value in values.items()})
        parameters = to_ours(resume.parameters)
        check_fit(self._masters, parameters)
        self._masters.update(parameters)
        optimizer.restore(resume.step, to_ours(resume.first_moments), to_ours(resume.second_moments))

    def _to_state(self, arrays: dict[str, mx.array]) -> dict[str, FloatArray]:
        mx.eval(arrays)
        if self._spec is not None:
            return from_mlx(arrays)
        return {name: np.asarray(array) for name, array in arrays.items()}

    def state(self) -> TrainState:
        if self._optimizer is None:
            raise RuntimeError("there is no state before train()")
        with _memory():
            first, second = (self._to_state(self._optimizer.moments(which)) for which in ("m", "v"))
            return checked_state(TrainState(self._optimizer.num_steps, self._to_state(self._masters), first, second))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        on_token: OnToken = ignore_token,
        keys: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, Completion]]:
        with _memory():
            yield from generate(self._model, prompts, sampling, self._end_ids, on_token, keys)

    def score(self, batch: Batch) -> FloatArray:
        with _memory():
            return score(self._model, batch.tokens)

    def save(self, directory: Path) -> None:
        if self._spec is not None:
            values = self._to_state(self._masters)
            check_weights(values)
            write_adapter(directory, values, self._spec, self._base)
            return
        arrays = {name: np.asarray(array) for name, array in self._whole().items()}
        check_weights(arrays)
        write_model_folder(
            self._folder,
            directory,
            lambda target: save_file(arrays, str(target / "model.safetensors"), metadata={"format": "pt"}),
        )

    def rehearse(self, batch: Batch, config: TrainConfig) -> float:
        with _memory():
            self._prepare(config)
            set_working(self._model, self._masters, self._dtype)
            return rehearse(self._micro_batch(config), batch, config)

    def _micro_batch(self, config: TrainConfig) -> MicroBatch:
        return MicroBatch(self._model, compiled=COMPILER.name == "compiled" and not draws_dropout(config))

    def choose_dtype(self, batch: Batch, config: TrainConfig) -> Choice:
        if self.choices["device"].name == "cpu":
            return self.choices["dtype"]
        with _memory():
            # float16 is Metal's: M1 and M2 have no bfloat16 products. A step that is not finite is never applied.
            more = ("float16",) if mx.metal.is_available() else ()
            return self.choose_among(("float32", "bfloat16", *more), batch, config)

    def choose_among(self, candidates: Sequence[str], batch: Batch, config: TrainConfig) -> Choice:
        """The fastest of `candidates` on one micro-batch, from now on the compute dtype."""
        self._prepare(config)
        parameters = self._model.parameters()  # in float32: a cast there and back would round them
        loss_and_grad = nn.value_and_grad(self._model, scaled_loss)

        def compute_in(dtype: str) -> None:
            self._model.update(tree_map(partial(_as, getattr(mx, dtype)), parameters))

        def step(dtype: str) -> str:
            compute_in(dtype)
            self._model.train()
            try:
                with _memory():
                    scale = loss_scale(getattr(mx, dtype), batch.num_targets)
                    loss, gradients = loss_and_grad(
                        self._model, scale, mx.array(batch.tokens), *target_positions(batch)
                    )
                    norm = global_norm({name: value.astype(mx.float32) for name, value in tree_flatten(gradients)})
                    return "" if mx.isfinite(loss + norm).item() else NOT_FINITE
            except OutOfMemoryError:
                return OUT_OF_MEMORY

        with wrapped_blocks(self._model, None, config.gradient_checkpointing):
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


def open_backend(folder: Path, device: str = "auto", dtype: str = "auto") -> MLXBackend:
    """Load the model in `folder`. Raises PreflightError for a device or dtype that is not there."""
    return MLXBackend(folder, device, dtype)
