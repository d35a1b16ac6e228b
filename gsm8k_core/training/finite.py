"""What is not finite, and where: words for an update that is not applied, and for weights that are not kept or taken.

An update costs one read of three numbers: its loss, the norm of its gradient, and a sum over the weights before it.
Only when one of them is not finite is the update computed again, micro-batch by micro-batch, to find out where.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gsm8k_core.types import Batch, DataError, DivergedError, TrainState, Update

if TYPE_CHECKING:
    from gsm8k_core.types import FloatArray

Finite = Mapping[str, bool]  # parameter name -> whether all of it is finite
# (place, micro-batch) -> its loss, and of each gradient whether its squared norm is finite: of large numbers, none is.
Recompute = Callable[[int, Batch], tuple[float, Finite]]

NOT_APPLIED = "the step was not applied"
ADVICE = "try a lower --learning-rate, or --dtype float32"
ALONE_FINITE = "the sum over the micro-batches, each of which is finite alone"
LATER = ("model.norm", "lm_head")  # what stands behind the blocks
_DIGITS = re.compile(r"(\d+)")
# Argmax of logits that are all NaN is 0, in torch and in MLX: decoded, such a model writes token 0 for ever.
LOGITS = (
    "the model's logits are not finite (NaN or infinity): its weights are damaged, or too large for the dtype; "
    "decoded, they would be nothing but token 0, which is Qwen's !!!!"
)


def logits_not_finite() -> DivergedError:
    """Raised by a backend that was asked for tokens."""
    return DivergedError(LOGITS, advice="try --dtype float32, or an earlier checkpoint")


def model_order(names: Iterable[str]) -> list[str]:
    """Parameter names from the embedding to the head, layer 2 before layer 10; the same on every backend."""
    return sorted(names, key=lambda name: (_behind(name), _parts(name)))


def _behind(name: str) -> int:
    return next((place for place, part in enumerate(LATER, 1) if part in name), 0)


def _parts(name: str) -> list[tuple[int, str]]:
    """Text and numbers, the numbers by size."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in _DIGITS.split(name)]


def not_finite(update: Update, loss: float, norm: float, weights: Finite, recompute: Recompute) -> DivergedError:
    """Why this update was not applied: the first bad tensor, and the rows of the micro-batch it came from.

    `weights` are those before the update, trained and frozen.
    """
    what = f"loss {loss}, gradient norm {norm}; {NOT_APPLIED}"
    if bad := _first(weights):
        advice = "the update before, or the model's folder, left it so; try an earlier checkpoint, or another model"
        return DivergedError(what, update=update.number, tensor=f"the weight {bad}", advice=advice, damaged=True)
    for place, batch in enumerate(update.micro_batches):
        part, gradients = recompute(place, batch)
        bad = _first(gradients)
        if not math.isfinite(part) or bad:
            tensor = "the loss" if not math.isfinite(part) else f"the gradient of {bad}"
            rows = batch.rows or update.rows
            return DivergedError(what, update=update.number, tensor=tensor, rows=rows, advice=ADVICE)
    return DivergedError(what, update=update.number, tensor=ALONE_FINITE, rows=update.rows, advice=ADVICE)


def not_finite_over_ranks(update: Update, loss: float, norm: float, weights: Finite) -> DivergedError:
    """The same where weights are spread over ranks, which do not compute an update again: no rows are named."""
    alone = replace(update, micro_batches=())
    error = not_finite(alone, loss, norm, weights, lambda place, batch: (0.0, {}))
    if error.damaged:
        return error
    what = "the loss or a gradient; with FSDP it is not known of which rows"
    said = f"loss {loss}, gradient norm {norm}; {NOT_APPLIED}"
    return DivergedError(said, update=update.number, tensor=what, advice=ADVICE)


def _first(finite: Finite) -> str | None:
    """The first bad name in the model's order, and how many follow it."""
    bad = model_order(name for name, good in finite.items() if not good)
    if not bad:
        return None
    return bad[0] + (f" (and of {len(bad) - 1} more)" if len(bad) > 1 else "")


# --- what is written ----------------------------------------------------------------------------------------


def _is_finite(array: FloatArray) -> bool:
    """Without another array of that size: NaN and infinity show in the least or the largest."""
    return not array.size or bool(math.isfinite(array.min()) and math.isfinite(array.max()))


def check_weights(arrays: Mapping[str, FloatArray], kind: str = "the weight") -> None:
    """Raises DivergedError before weights that are not finite are written anywhere."""
    if bad := _first({name: _is_finite(array) for name, array in arrays.items()}):
        advice = "go on from the newest checkpoint, which is whole"
        raise DivergedError("nothing was saved", tensor=f"{kind} {bad}", advice=advice, damaged=True)


def checked_state(state: TrainState) -> TrainState:
    """The state, for a checkpoint. Raises DivergedError when any of it is not finite."""
    check_weights(state.parameters)
    check_weights(state.first_moments, "the first moment of")
    check_weights(state.second_moments, "the second moment of")
    return state


def check_resumed(state: TrainState) -> None:
    """Raises DataError when a state to go on from is not finite: no update of it could be."""
    try:
        checked_state(state)
    except DivergedError as error:
        raise DataError(
            f"the checkpoint cannot be gone on from: {error.tensor} is not finite; take an earlier one"
        ) from None


def check_fit(wanted: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises DataError unless a state to go on from has the names and shapes of the parameters.

    Arrays of any framework: all that is asked of them is `shape`.
    """
    strange = set(wanted) ^ set(given) or {name for name in wanted if wanted[name].shape != given[name].shape}
    if strange:
        raise DataError(f"the checkpoint does not fit this model: {min(strange)} differs; resume with the run's model")
