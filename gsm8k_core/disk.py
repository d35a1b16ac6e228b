"""How long saving will take, from the size of what is saved and a sample written to the very disk."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
import time
from pathlib import Path

from gsm8k_core.lora import LoraSpec, target_modules
from gsm8k_core.model_folder import linear_layers, weight_files
from gsm8k_core.types import StorageError

SAMPLE_BYTES = 64 << 20
FLOAT32 = 4  # bytes


def saved_bytes(folder: Path, spec: LoraSpec | None) -> int:
    """Bytes of what is trained of the model in `folder`, in float32: the adapter `spec`, or the whole model."""
    from safetensors import safe_open

    shapes: dict[str, list[int]] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="numpy") as file:
            shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    if spec is None:
        return FLOAT32 * sum(math.prod(shape) for shape in shapes.values())
    targets = target_modules(spec, linear_layers(folder))
    return FLOAT32 * spec.rank * sum(sum(shapes[f"{name}.weight"]) for name in targets)


def write_seconds(folder: Path, num_bytes: int) -> float:
    """What writing and hashing so many bytes in `folder` may take. Raises StorageError where nothing can be written.

    A sample waits for the disk at its end as a whole save does, so it errs to the long side: 2.3 s for 540 MB where a
    checkpoint of 1.6 GB took 4.0 s.
    """
    try:
        size = min(SAMPLE_BYTES, shutil.disk_usage(folder).free // 4)  # the room is the run's, not the sample's
        sample = (os.urandom(1 << 20) * (SAMPLE_BYTES >> 20))[: max(size, 1)]
        began = time.monotonic()
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(sample)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(f"{folder} cannot be written ({error.strerror}); free some space") from error
    hashlib.sha256(sample)
    return (time.monotonic() - began) * num_bytes / len(sample)
