"""best/: the model with the best dev result so far, and in it the label that says which one it is.

The label lies beside the weights and comes and goes with them, so that it cannot be another model's, whenever a
process was killed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic

from gsm8k_core.files import file_hash, read_json, sync, write_json
from gsm8k_core.training.measure import DevResult
from gsm8k_core.types import DataError

LABEL = "best.json"
SCHEMA = 1


class Label(pydantic.BaseModel):
    """best/best.json: the update, its dev result, and sha256 of every file that was saved with it."""

    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    schema_: Literal[1] = pydantic.Field(alias="schema")
    update: int
    result: dict[str, Any]
    sha256: dict[str, str]

    def names(self, best: Mapping[str, Any]) -> bool:
        """Whether it is of the update and the result that a checkpoint calls the best."""
        return (self.update, self.result) == (best["update"], best["result"])

    def fits(self, folder: Path) -> bool:
        """Whether the files are those that were labelled, to the last bit."""
        return self.sha256 == _hashes(folder)


def write_label(folder: Path, update: int, result: DevResult) -> None:
    """Labels the model in `folder`, which is whole. Raises StorageError."""
    values = {"schema": SCHEMA, "update": update, "result": result.as_json(), "sha256": _hashes(folder)}
    write_json(folder / LABEL, values)
    sync(folder)


def read_label(folder: Path) -> Label | None:
    """The label of a best/; None where there is none, or none that can be read."""
    try:
        return Label.model_validate(read_json(folder / LABEL))
    except (DataError, pydantic.ValidationError):
        return None


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: file_hash(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name != LABEL}
