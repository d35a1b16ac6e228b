"""A computed floor for machines that nobody has run yet: operations over the peak that the maker states."""

from __future__ import annotations

# float32 TFLOPS of the whole GPU, as Apple announced them: M1 (November 2020), M1 Pro and M1 Max (October 2021),
# M2 (June 2022). Apple has stated none for later chips.
APPLE_TFLOPS = {"M1, 8 cores": 2.6, "M1 Pro, 16 cores": 5.2, "M1 Max, 32 cores": 10.4, "M2, 10 cores": 3.6}


def floors(gflop: float) -> list[tuple[str, str, str, str]]:
    """For each GPU: its name, its peak, the work, and the seconds that the work cannot take less than."""
    return [
        (name, f"{tflops:g}", f"{gflop:.0f}", f"{gflop / 1000 / tflops:.3f}") for name, tflops in APPLE_TFLOPS.items()
    ]
