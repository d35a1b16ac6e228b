"""Variables that PyTorch reads once, when it starts: set for the training process by its parent. Imports no torch."""

from __future__ import annotations

# By default MPS hands out up to 1.7 times what Metal recommends, which is more than the machine has: a job that is too
# large then swaps until the Mac stands still. At 1.0 it gets an error, and the run goes on with smaller micro-batches.
# The low one, from which cached blocks are given back, must not be above the high one.
DARWIN = {"PYTORCH_MPS_HIGH_WATERMARK_RATIO": "1.0", "PYTORCH_MPS_LOW_WATERMARK_RATIO": "0.8"}
