"""mlx-lm's affine quantisation, undone: a quantised folder becomes a float32 one, once, in the cache.

A quantised layer X is stored as X.weight, X.scales and X.biases. A row of X.weight is one little-endian stream of
whole numbers q, each `bits` wide, in uint32; `group_size` of them in a row share a scale s and a bias b, and the
weights are s x q + b. The product and the sum are rounded to float32 one after the other, as MLX does on the CPU.

Axes: W words of 32 bits, G groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gsm8k_core.files import read_json
from gsm8k_core.models.folder import QUANTISED_KEYS, ModelFolder, affine, weight_files, write_config, write_model_folder
from gsm8k_core.models.store import made_once, short_hash
from gsm8k_core.models.tensors import read_tensors
from gsm8k_core.types import DataError

if TYPE_CHECKING:
    import numpy.typing as npt

    from gsm8k_core.types import FloatArray

    Array = npt.NDArray[Any]
    Words = npt.NDArray[np.uint32]

VERSION = 1  # raise it when the folder that is written changes
BITS = (2, 3, 4, 5, 6, 8)  # the widths that MLX has


def is_quantized(model: ModelFolder) -> bool:
    """Whether it is a model folder with mlx-lm's affine quantisation."""
    return (model.path / "config.json").is_file() and affine(model.config) is not None


def widths(model: ModelFolder) -> str:
    """What a person calls the quantisation: 4-bit, or 4-bit and 6-bit."""
    settings = affine(model.config) or {}
    layers = [value for value in settings.values() if isinstance(value, dict)]
    return " and ".join(sorted({f"{layer.get('bits')}-bit" for layer in (settings, *layers)}))


def dequantized_folder(folder: Path) -> Path:
    """The same model in float32, from the cache or made now. Raises DataError for what is not mlx-lm's affine."""
    name = short_hash(f"{ModelFolder(folder).hash} {VERSION}")
    return made_once("dequantized", name, lambda target: write_model_folder(folder, target, partial(_write, folder)))


def cached_base(source: Path, quantize: Callable[[Path], None]) -> Path:
    """The 4-bit form of the model in `source`, from the cache, or written now by `quantize` (into a new folder)."""
    return made_once("quantized", short_hash(f"{ModelFolder(source).hash} {VERSION}"), quantize, quantized=True)


def dequantize(weight: Words, scales: Array, biases: Array, bits: int, group_size: int) -> FloatArray:
    """The float32 weights of a layer: weight (..., W) uint32, scales and biases (..., G), of any float type."""
    whole = type(bits) is int and bits in BITS and type(group_size) is int and group_size > 0
    if not whole:
        raise DataError(f"{bits!r} bits in groups of {group_size!r} are not MLX's ({', '.join(map(str, BITS))} bits)")
    fits = weight.ndim > 0 and weight.shape[-1] * 32 == scales.shape[-1] * group_size * bits
    if not fits or scales.shape != biases.shape or scales.shape[:-1] != weight.shape[:-1] or group_size % 8:
        raise DataError(
            f"weights of shape {weight.shape} with scales {scales.shape} and biases {biases.shape} "
            f"are not {bits} bits in groups of {group_size}"
        )
    groups = _unpack(weight, bits).reshape(*scales.shape, group_size)
    groups *= scales[..., None].astype(np.float32)
    groups += biases[..., None].astype(np.float32)
    return groups.reshape(*scales.shape[:-1], -1)


def _unpack(words: Words, bits: int) -> FloatArray:
    """The whole numbers in a stream, as float32. It repeats after so many words that a number ends with a word."""
    period = bits // math.gcd(bits, 32)
    words = words.reshape(*words.shape[:-1], -1, period)
    numbers = np.empty((*words.shape[:-1], period * 32 // bits), np.float32)
    for index in range(numbers.shape[-1]):
        word, shift = divmod(index * bits, 32)
        number = words[..., word] >> np.uint32(shift)
        if shift + bits > 32:  # its upper bits are in the next word
            number |= words[..., word + 1] << np.uint32(32 - shift)
        numbers[..., index] = number & np.uint32((1 << bits) - 1)
    return numbers.reshape(*words.shape[:-2], -1)


def _write(source: Path, folder: Path) -> None:
    from safetensors.numpy import save_file  # here, not above: only a quantised model needs it

    config = read_json(source / "config.json")
    settings = affine(config)
    if settings is None:
        raise DataError(f"{source / 'config.json'} describes no quantisation of mlx-lm's (affine); give its own folder")
    write_config(folder, {key: value for key, value in config.items() if key not in QUANTISED_KEYS}, "float32")
    tensors: dict[str, Array] = {}
    for path in weight_files(source):
        tensors |= read_tensors(path)
    for layer in sorted(name.removesuffix(".scales") for name in tensors if name.endswith(".scales")):
        try:
            tensors[f"{layer}.weight"] = _layer(tensors, layer, settings.get(layer, settings))
        except DataError as error:
            raise DataError(f"{source}: {layer}: {error}; convert the model again with mlx_lm.convert -q") from None
    if packed := sorted(name for name, array in tensors.items() if array.dtype == np.uint32):
        raise DataError(f"{source}: {packed[0]} has no scales; convert the model again with mlx_lm.convert -q")
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})


def _layer(tensors: dict[str, Array], layer: str, settings: object) -> FloatArray:
    if not isinstance(settings, dict) or settings.get("mode", "affine") != "affine":
        raise DataError(f"its quantisation is {settings!r}, and only the affine one is read here")
    parts = [tensors.pop(f"{layer}.{part}", None) for part in ("weight", "scales", "biases")]
    weight, scales, biases = parts
    if weight is None or scales is None or biases is None or weight.dtype != np.uint32:
        raise DataError("it is not stored as uint32 weights with scales and biases")
    return dequantize(weight, scales, biases, settings.get("bits"), settings.get("group_size"))  # type: ignore[arg-type]
