"""PyTorch through Hugging Face's Trainer: CUDA, CPU and MPS. Importing this package imports no torch.

It settles what has to be settled before torch starts: what MPS reads once from the environment.
"""

from __future__ import annotations

import os

from backends import left_open

# By default MPS hands out up to 1.7 times what Metal recommends, which is more than the machine has: a job that is too
# large then swaps until the Mac stands still. At 1.0 it gets an error, and the run goes on with smaller micro-batches.
# The low one, from which cached blocks are given back, must not be above the high one.
DARWIN = {"PYTORCH_MPS_HIGH_WATERMARK_RATIO": "1.0", "PYTORCH_MPS_LOW_WATERMARK_RATIO": "0.8"}

os.environ.update(left_open(DARWIN, os.environ))  # elsewhere, too, where nobody reads it
