"""How each backend's libraries say that the device had no room, or no time: the run goes on with half the tokens.

The texts are theirs: MLX's allocators and command buffers, torch's allocators, cuBLAS, cuDNN, cuFFT and the drivers.
"""

from __future__ import annotations

import importlib

import pytest

from gsm8k_core.training.memory import memory_error
from gsm8k_core.training.plan import after_failure
from gsm8k_core.types import DeviceLostError, OutOfMemoryError

METAL = "[METAL] Command buffer execution failed: "
KERNEL = "kIOGPUCommandBufferCallbackError"
ROOM = {
    "mlx": (
        "[malloc] Unable to allocate 9 bytes.",
        "[metal::malloc] Attempting to allocate 9 bytes which is greater than the maximum allowed buffer size of 8",
        "[metal::malloc] Resource limit (499000) exceeded.",
        f"{METAL}Insufficient Memory (00000008:{KERNEL}OutOfMemory).",
        "cudaMallocAsync(&data, size, stream) failed: out of memory",
        "cublasLtCreate(&storage.handle) failed with code: 3.",
        "cudnnCreate(&handle_) failed: CUDNN_STATUS_ALLOC_FAILED.",
        "graph.execute() failed: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED.",
    ),
    "torch": (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "cuFFT error: CUFFT_ALLOC_FAILED",
        "MPS backend out of memory (MPS allocated: 5.56 GB, other allocations: 1.10 GB, max allowed: 6.80 GB).",
        "Invalid buffer size: 9.75 GB",  # MPS, of one array
        f"Insufficient Memory (00000008:{KERNEL}OutOfMemory)",
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.",
        "[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.",  # Windows
        "std::bad_alloc",
    ),
}
LOST = (
    "CUDA error: the launch timed out and was terminated",
    "cudaStreamSynchronize(stream) failed: the launch timed out and was terminated",
    f"{METAL}Ignored (for causing prior/excessive GPU errors) (00000004:{KERNEL}SubmissionsIgnored).",
)
TIME = (
    f"{METAL}Caused GPU Timeout Error (00000002:{KERNEL}Timeout).",
    f"{METAL}Caused GPU Hang Error (00000003:{KERNEL}Hang).",
    f"{METAL}Impacting Interactivity (0000000e:{KERNEL}ImpactingInteractivity).",
    f"{METAL}Discarded (victim of GPU error/recovery) (00000005:{KERNEL}InnocentVictim).",
    f"{METAL}Innocent Victim (00000005:{KERNEL}InnocentVictim).",
    *LOST,
)
NEITHER = (
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: device-side assert triggered",
    "CUDA error: misaligned address",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb)`",
    "CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasGemmEx( handle, opa, opb)`",
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED",
    f"{METAL}Caused GPU Address Fault Error (0000000b:{KERNEL}PageFault).",
    "[load] Failed to create memoryview for read",
    "The operator 'aten::x' is not currently implemented for the MPS device.",
    "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)",
    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!",
)


def raised(backend_name: str, text: str) -> Exception:
    words = importlib.import_module(f"backends.{backend_name}.backend").NO_MEMORY
    with pytest.raises(Exception) as caught, memory_error(backend_name, words):  # noqa: PT011
        raise RuntimeError(text)
    return caught.value


def half(error: Exception) -> float | str | None:
    assert isinstance(error, OutOfMemoryError)
    usual = {"adjustments": (), "begun": 0, "done": 3, "tokens": 1024, "widest": 128, "update_size": 8}
    change = after_failure(error, **usual, dtype="float32")  # type: ignore[arg-type]
    return None if change is None else change.value


def test_no_room_is_half_the_tokens(backend_name: str) -> None:
    for text in ROOM[backend_name]:
        error = raised(backend_name, text)
        assert half(error) == 512, text
        assert str(error).startswith(f"{backend_name} ran out of memory; try a smaller --micro-batch-tokens"), text


def test_a_kernel_that_took_too_long_is_half_the_tokens(backend_name: str) -> None:
    for text in TIME:
        error = raised(backend_name, text)
        assert half(error) == 512, text
        said = f"the system ended a kernel of {backend_name} that took too long; try a smaller --micro-batch-tokens"
        assert str(error).startswith(said), text
        assert isinstance(error, DeviceLostError) == (text in LOST), text


def test_control_another_failure_is_neither(backend_name: str) -> None:
    for text in NEITHER:
        assert type(raised(backend_name, text)) is RuntimeError, text
