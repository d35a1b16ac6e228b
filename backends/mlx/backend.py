"""The MLX backend: loading, and the interface of base.py over train.py and generate.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.mlx import blas

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

from backends.base import Capabilities, OnToken, Pilot, ignore_token  # noqa: E402
from backends.mlx.generate import generate, score  # noqa: E402
from backends.mlx.loss import head, hidden_states  # noqa: E402
from backends.mlx.train import train  # noqa: E402
from gsm8k_core.folders import read_json  # noqa: E402
from gsm8k_core.model_folder import (  # noqa: E402
    check_folder,
    end_token_ids,
    rope_theta,
    tied_head,
    with_both_rope_keys,
    write_model_folder,
)
from gsm8k_core.types import (  # noqa: E402
    Batch,
    Choice,
    Completion,
    DataError,
    Outcome,
    OutOfMemoryError,
    PreflightError,
    Sampling,
    Update,
)

if TYPE_CHECKING:
    from gsm8k_core.config import TrainConfig
    from gsm8k_core.types import FloatArray

CAPABILITIES = Capabilities(devices=("cpu", "gpu"), dtypes=("float32",))
SMALLER = "try a smaller --batch-size, --max-length or --eval-batch-size"
# Names that a Hugging Face folder may hold and the model does not need: a tied head, and saved RoPE tables.
_SPARE = ("lm_head.weight", "rotary_emb.inv_freq")


def choose_device(asked: str, has_gpu: bool) -> Choice:
    """cpu or gpu. Raises PreflightError for what is not there."""
    if asked not in ("auto", *CAPABILITIES.devices):
        raise PreflightError(f"--device {asked} is torch's (mlx has cpu and gpu); try --backend torch or --device auto")
    if asked == "gpu" and not has_gpu:
        raise PreflightError("--device gpu: mlx finds no Metal or CUDA device here (it has cpu); try --device cpu")
    if asked != "auto":
        return Choice(asked, f"--device {asked}")
    return Choice("gpu", "mlx finds a GPU") if has_gpu else Choice("cpu", "mlx finds no GPU here")


def choose_dtype(asked: str) -> Choice:
    """float32. Raises PreflightError for another dtype."""
    if asked not in ("auto", *CAPABILITIES.dtypes):
        raise PreflightError(f"--dtype {asked} is not available on mlx (it has float32); try --dtype float32")
    return Choice("float32", "the dtype that mlx has here" if asked == "auto" else f"--dtype {asked}")


def _weight_names(folder: Path) -> set[str]:
    names: set[str] = set()
    for path in folder.glob("model*.safetensors"):
        with safe_open(str(path), framework="numpy") as file:
            names |= set(file.keys())
    return names


def _load(folder: Path) -> Any:
    """The model in float32, with the RoPE base and the head of its folder whichever library wrote it."""
    config = read_json(folder / "config.json")
    # mlx-lm reads only the top-level rope_theta, and takes an absent tie_word_embeddings for true.
    settings = {**with_both_rope_keys(config), "tie_word_embeddings": tied_head(folder)}
    try:
        model, _ = load_model(folder, lazy=True, model_config=settings)
        plain = all(type(cache) is KVCache for cache in make_prompt_cache(model))
    except MemoryError:
        raise
    except Exception as error:  # mlx-lm raises many kinds, and all of them mean this folder
        raise DataError(f"mlx-lm cannot load {folder}: {error}; try --backend torch") from error
    if not plain or not hasattr(getattr(model, "model", None), "embed_tokens"):
        raise PreflightError(f"model type {config.get('model_type')} is not available on mlx here; try --backend torch")
    model.update(tree_map(lambda array: array.astype(mx.float32), model.parameters()))
    mx.eval(model.parameters())
    _check_loaded(model, config, folder)
    return model


def _check_loaded(model: nn.Module, config: dict[str, Any], folder: Path) -> None:
    """Refuse a model whose RoPE base or parameter names differ from the folder's."""
    asked = rope_theta(config)
    loaded = getattr(getattr(model.layers[0].self_attn, "rope", None), "base", None)
    if asked is not None and loaded is not None and float(loaded) != float(asked):
        raise DataError(f"{folder} has RoPE base {asked:g}, but mlx-lm loaded {loaded:g}; please report this")
    names = {name for name, _ in tree_flatten(model.parameters())}
    stored = _weight_names(folder)
    spare = _SPARE if tied_head(folder) else _SPARE[1:]
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
        has_gpu = mx.metal.is_available() or mx.cuda.is_available()
        chosen = choose_device(device, has_gpu)
        self.choices = {"device": chosen, "dtype": choose_dtype(dtype), "compile": COMPILER}
        check_folder(folder)
        mx.set_default_device(mx.gpu if chosen.name == "gpu" else mx.cpu)
        if chosen.name == "cpu":
            self.choices["blas"] = blas.rated(BLAS, blas.measure_gflops())
        self._folder = folder
        self._end_ids = frozenset(end_token_ids(folder))
        with _memory():
            self._model = _load(folder)

    def train(self, updates: Iterable[Update], config: TrainConfig, pilot: Pilot) -> Outcome:
        with _memory():
            return train(self._model, updates, config, pilot, self)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, on_token: OnToken = ignore_token
    ) -> Iterator[tuple[int, Completion]]:
        with _memory():
            yield from generate(self._model, prompts, sampling, self._end_ids, on_token)

    def score(self, batch: Batch) -> FloatArray:
        with _memory():
            return score(self._model, batch.tokens)

    def save(self, directory: Path) -> None:
        arrays = {name: np.array(array) for name, array in tree_flatten(self._model.parameters())}
        write_model_folder(
            self._folder,
            directory,
            lambda target: save_file(arrays, str(target / "model.safetensors"), metadata={"format": "pt"}),
        )


def open_backend(folder: Path, device: str = "auto", dtype: str = "auto") -> MLXBackend:
    """Load the model in `folder`. Raises PreflightError for a device or dtype that is not there."""
    return MLXBackend(folder, device, dtype)
