"""What of a model can be written in few bits: matrices whose rows are whole blocks; the others stay float."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gsm8k_core.models.folder import weight_files
from gsm8k_core.models.tensors import stored_tensors
from gsm8k_core.types import DataError

GROUP = 64  # numbers that share a scale in what mlx-lm quantises here


@dataclass(frozen=True, slots=True)
class Blocks:
    """How many of a model's matrices, and of the numbers in them, have rows of whole blocks."""

    size: int  # numbers in a block
    matrices: int
    whole: int
    share_left: float  # of the numbers, those in the other matrices

    @staticmethod
    def of(shapes: Iterable[tuple[int, ...]], size: int) -> Blocks:
        """Of the matrices that are asked for in few bits."""
        numbers = [(math.prod(shape), shape[-1] % size == 0) for shape in shapes]
        left = sum(count for count, whole in numbers if not whole)
        total = sum(count for count, _ in numbers)
        return Blocks(size, len(numbers), sum(whole for _, whole in numbers), left / total if total else 0.0)

    def refuse_none(self, model: Path, kind: str, instead: str) -> None:
        """Raises DataError where nothing could be written as it was asked for: the file would have another's name."""
        if not self.whole:
            raise DataError(
                f"no matrix of {model} has rows of whole blocks of {self.size}, so all of it would stay float and "
                f"nothing be {kind}; {instead}"
            )

    def line(self, float_dtype: str) -> str:
        """What stays float, in numbers; nothing where all is in few bits."""
        left = self.matrices - self.whole
        if not left:
            return ""
        which = f"{left} of {self.matrices} matrices ({100 * self.share_left:.1f} % of the weights)"
        stay, whose = ("stays", "its") if left == 1 else ("stay", "their")
        return f"{which} {stay} {float_dtype}, as {whose} rows are no whole blocks of {self.size}"


def matrices_in(folder: Path) -> list[tuple[int, ...]]:
    """The shapes of a model folder's matrices, which mlx-lm quantises where it can."""
    found = (stored.shape for path in weight_files(folder) for stored in stored_tensors(path).values())
    return [shape for shape in found if len(shape) == 2]
