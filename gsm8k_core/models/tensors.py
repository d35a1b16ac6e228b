"""Weights in safetensors files: looked at, read and written by numpy alone, in each dtype they are stored in."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsm8k_core.files import advice
from gsm8k_core.types import DataError

if TYPE_CHECKING:
    import numpy.typing as npt

STORED_DTYPES = {  # safetensors' name -> numpy's
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "U32": "<u4",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
SAVED_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # ours -> safetensors'
HALF_LARGEST = 65504.0


class NumberTooLarge(DataError):
    """A weight that a narrower dtype does not hold."""


def check_safetensors(path: Path) -> set[str]:
    """The tensors' names. DataError when the file is not whole; reads the header, not the numbers."""
    from safetensors import SafetensorError, safe_open  # heavy: loads numpy

    try:
        with path.open("rb"):  # safetensors says of a denied file that there is none
            pass
        with safe_open(path, framework="numpy") as file:
            names = set(file.keys())
    except PermissionError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {advice(error, '')}") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is cut short or damaged ({_size(path)}; {error}); copy or download it again") from None
    if not names:
        raise DataError(f"{path} holds no weights; copy or download it again")
    return names


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies in a safetensors file, and how its numbers are written there."""

    dtype: str  # safetensors' name
    shape: tuple[int, ...]
    begin: int  # from the start of the file
    end: int


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file, from its header. Raises DataError for a kind of number not read here."""
    check_safetensors(path)
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        if entry["dtype"] not in STORED_DTYPES:
            raise DataError(f"{path} holds {name} as {entry['dtype']}, which is not read here; save it as float32")
        begin, end = entry["data_offsets"]
        found[name] = StoredTensor(entry["dtype"], tuple(entry["shape"]), 8 + size + begin, 8 + size + end)
    return found


def read_tensor(path: Path, tensor: StoredTensor) -> npt.NDArray[Any]:
    """A tensor of the file: uint32 as it is, any other as float32. numpy has no bfloat16."""
    import numpy as np  # here, not above: most who ask about a folder read no weights

    with path.open("rb") as file:
        file.seek(tensor.begin)
        content = file.read(tensor.end - tensor.begin)
    values = np.frombuffer(content, STORED_DTYPES[tensor.dtype]).reshape(tensor.shape)
    return values if tensor.dtype == "U32" else float32_of(values, tensor.dtype)


def read_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Every tensor of a safetensors file, as read_tensor gives it."""
    return {name: read_tensor(path, tensor) for name, tensor in stored_tensors(path).items()}


def write_tensors(path: Path, tensors: Mapping[str, npt.NDArray[Any]], dtype: str = "float32") -> None:
    """Write float32 tensors as a safetensors file, each number rounded to `dtype`, to the nearest, ties to even.

    Raises NumberTooLarge for one that float16 does not hold.
    """
    from safetensors.numpy import save_file  # heavy: loads numpy

    if dtype == "float32":
        save_file(dict(tensors), str(path), metadata={"format": "pt"})
        return
    from safetensors import TensorSpec, serialize_file

    arrays = {name: rounded(array, dtype, name) for name, array in tensors.items()}  # alive until they are written
    entries = {
        name: TensorSpec(dtype=dtype, shape=list(array.shape), data_ptr=array.ctypes.data, data_len=array.nbytes)
        for name, array in arrays.items()
    }
    serialize_file(entries, str(path), metadata={"format": "pt"})


def rounded(array: npt.NDArray[Any], dtype: str, name: str = "a weight") -> npt.NDArray[Any]:
    """float32 numbers in `dtype`: float16 as numpy's, bfloat16 as its bits in uint16."""
    import numpy as np  # here, not above: most who ask about a folder read no weights

    values = np.ascontiguousarray(array, np.float32)
    if dtype == "bfloat16":
        bits = values.view(np.uint32)
        return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype("<u2")
    if dtype == "float32":
        return values
    largest = float(np.abs(values).max(initial=0.0))
    if largest > HALF_LARGEST:
        raise NumberTooLarge(f"{name} holds {largest:g}, and float16 ends at {HALF_LARGEST:,.0f}")
    return values.astype("<f2")


def float32_of(stored: npt.NDArray[Any], kind: str) -> npt.NDArray[Any]:
    import numpy as np

    if kind == "BF16":  # the upper half of a float32
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float32, copy=False)


def _size(path: Path) -> str:
    return f"{path.stat().st_size} bytes" if path.is_file() else "missing"
