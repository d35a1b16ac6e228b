"""What MLX offers, and the device, dtype and micro-batch that it takes when nobody says. Imports no mlx."""

from __future__ import annotations

from gsm8k_core.backend import Capabilities
from gsm8k_core.types import Choice, PreflightError

CAPABILITIES = Capabilities(
    devices=("cpu", "gpu"),
    dtypes=("float32", "bfloat16", "float16"),
    methods=("full", "lora", "dora", "qlora"),
)
MICRO_BATCH = {
    "cpu": Choice("1024", "on a CPU a few rows fill the cores, and more take memory"),
    "gpu": Choice("2048", "a GPU with shared memory; an estimate, not a measurement"),
}


def choose_device(asked: str, has_gpu: bool) -> Choice:
    """cpu or gpu. Raises PreflightError for what is not there."""
    if asked not in ("auto", *CAPABILITIES.devices):
        raise PreflightError(f"--device {asked} is torch's (mlx has cpu and gpu); try --backend torch or --device auto")
    if asked == "gpu" and not has_gpu:
        raise PreflightError("--device gpu: mlx finds no Metal or CUDA device here (it has cpu); try --device cpu")
    if asked != "auto":
        return Choice(asked, f"--device {asked}")
    return Choice("gpu", "mlx finds a GPU") if has_gpu else Choice("cpu", "mlx finds no GPU here")


def choose_dtype(asked: str, device: str) -> Choice:
    """The compute dtype on loading. Raises PreflightError for another dtype."""
    if asked == "float16" and device == "cpu":
        raise PreflightError("--dtype float16 is for a GPU (mlx on the CPU has float32, bfloat16); try --dtype float32")
    if asked not in ("auto", *CAPABILITIES.dtypes):
        raise PreflightError(
            f"--dtype {asked} is not mlx's (it has {', '.join(CAPABILITIES.dtypes)}); try --dtype float32"
        )
    if asked != "auto":
        return Choice(asked, f"--dtype {asked}")
    if device == "cpu":
        return Choice("float32", "mlx has no fast bfloat16 on a CPU")
    return Choice("float32", "every model alike, so that their scores can be compared; --dtype bfloat16 may be faster")
