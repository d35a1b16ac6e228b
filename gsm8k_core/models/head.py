"""What stands between the product of a model's head and its logits: a division, a soft cap, mostly nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finish:
    """logits = cap x tanh(product / divisor / cap), or without a cap product / divisor."""

    divisor: float = 1.0
    cap: float | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the product is the logits."""
        return self.divisor == 1 and self.cap is None


PLAIN = Finish()
