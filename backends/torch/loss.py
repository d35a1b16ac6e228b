"""The loss of base.py in PyTorch.

Axes: B rows, T tokens, N targets, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from gsm8k_core.types import IGNORE_INDEX, Batch


def to_device(batch: Batch, device: torch.device) -> dict[str, torch.Tensor | None]:
    """A micro-batch as LossModel's arguments."""
    weights = None if batch.weights is None else torch.from_numpy(batch.weights).to(device)
    return {
        "tokens_BT": torch.from_numpy(batch.tokens).to(device, torch.long),
        "labels_BT": torch.from_numpy(batch.labels).to(device, torch.long),
        "weights_BT": weights,
    }


class LossModel(nn.Module):
    """Body, head and loss in one forward: autocast and DDP's hooks sit on the module that Trainer wraps."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tokens_BT: torch.Tensor, labels_BT: torch.Tensor, weights_BT: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Sum of weight x -log p over the targets, in nats. Divided by the caller, once."""
        targets_BT = F.pad(labels_BT[:, 1:], (0, 1), value=IGNORE_INDEX)
        supervised_BT = targets_BT != IGNORE_INDEX
        # Right-padded rows need no mask under causal attention; without one, SDPA takes its causal path.
        output = self.model(input_ids=tokens_BT, logits_to_keep=supervised_BT, use_cache=False)
        logits_NV = output.logits.float()
        nll_N = F.cross_entropy(logits_NV, targets_BT[supervised_BT], reduction="none")
        if weights_BT is None:
            return nll_N.sum()
        weights_N = F.pad(weights_BT[:, 1:], (0, 1))[supervised_BT]
        return (nll_N * weights_N).sum()
