"""A computed floor for machines that nobody has run yet: operations over the peak that the maker states."""

from __future__ import annotations

# float32 TFLOPS of the whole GPU, as Apple announced them: M1 (November 2020), M1 Pro and M1 Max (October 2021),
# M2 (June 2022). Apple has stated none for later chips.
APPLE_TFLOPS = {"M1": 2.6, "M1 Pro": 5.2, "M1 Max": 10.4, "M2": 3.6}


def floors(gflop: float) -> dict[str, float]:
    """GPU -> the seconds that so much work cannot take less than, at the stated peak."""
    return {name: gflop / 1000 / tflops for name, tflops in APPLE_TFLOPS.items()}
