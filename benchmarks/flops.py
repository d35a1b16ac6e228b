"""How many floating-point operations a step must have done, by formula, from the shapes that ran.

A product of (m, k) and (k, n) matrices counts 2 m k n. For each token the blocks cost 2 x (their matrix parameters),
and attention 4 x width x heads x head_dim a layer for the scores and their sums (Chowdhery et al. 2022, PaLM,
appendix B, which counts the whole square, causal or not). The backward pass computes each product's two gradients:
twice the forward pass where weights are trained, once where only what flows through is needed (an adapter's base, a
frozen head); Kaplan et al. 2020, section 2.1, has the same 2 + 4. Element-wise work, norms and the optimizer are left
out, as are the products of an adapter itself. Attention's whole square is what plain products compute; a fused causal
kernel skips up to half of it, which is at most a few percent of the count at GSM8K's lengths.

Axes: B rows, T tokens (the padded width).

`floors` is for machines that nobody has run yet: operations over the peak that the maker states.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.contenders import Step
from gsm8k_core.models.folder import ModelShape


def body_forward(shape: ModelShape, width: int) -> int:
    """FLOP of the blocks for one token in a row of `width`, forward."""
    return 2 * shape.block_parameters + shape.layers * 4 * width * shape.heads * shape.head_dim


def head_forward(shape: ModelShape) -> int:
    """FLOP of the head for one token, forward."""
    return 2 * shape.head_parameters


def update_flop(
    shape: ModelShape,
    batches: Iterable[Sequence[int]],
    num_targets: int,
    step: Step,
    *,
    method: str,
    trainable: str,
    device: str,
) -> int:
    """FLOP of one update whose micro-batches had the (B, T) in `batches`."""
    sizes = [(rows, width) for rows, width in batches]
    forward = sum(rows * width * body_forward(shape, width) for rows, width in sizes)
    everywhere = step.head == "all" or (step.head == "targets on cuda" and device != "cuda")
    head_rows = sum(rows * width for rows, width in sizes) if everywhere else num_targets
    head = head_rows * head_forward(shape)
    trains_body, trains_head = method == "full", method == "full" and trainable == "all"
    body_passes = 1 + (2 if trains_body else 1) + step.body_again
    head_passes = 1 + (2 if trains_head else 1) + step.head_again
    return forward * body_passes + head * head_passes


def generation_flop(shape: ModelShape, num_prompt: int, num_new: int) -> int:
    """FLOP of one answer: the prompt once (without the head, but for its last token), then token by token.

    A token attends to all before it; the mean width of a growing row is its middle.
    """
    prompt = num_prompt * body_forward(shape, num_prompt // 2) + head_forward(shape)
    steps = num_new * (body_forward(shape, num_prompt + num_new // 2) + head_forward(shape))
    return prompt + steps


# float32 TFLOPS of the whole GPU, as Apple announced them: M1 (November 2020), M1 Pro and M1 Max (October 2021),
# M2 (June 2022). Apple has stated none for later chips.
APPLE_TFLOPS = {"M1": 2.6, "M1 Pro": 5.2, "M1 Max": 10.4, "M2": 3.6}


def floors(gflop: float) -> dict[str, float]:
    """GPU -> the seconds that so much work cannot take less than, at the stated peak."""
    return {name: gflop / 1000 / tflops for name, tflops in APPLE_TFLOPS.items()}
