"""What is read back from a file that a stranger may have written: its types are checked once, where it is read.

Every room says what its own files hold, in a class made from `Stored`; keys that it does not name are left as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import pydantic
from pydantic import Field

from gsm8k_core.config.fields import one_line
from gsm8k_core.types import DataError

T = TypeVar("T", bound=pydantic.BaseModel)

LONGEST = 600  # characters of what is wrong
Count = Annotated[int, Field(ge=0, lt=2**53)]  # beyond it, JSON's readers differ
Size = Annotated[int, Field(ge=1, lt=2**31)]  # of a model, or a part of it
Seconds = Annotated[float, Field(ge=0, lt=1e12)]


class Stored(pydantic.BaseModel):
    """The base: no text is taken for a number, no number is infinite, and other keys do no harm."""

    model_config = pydantic.ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)


def stored(kind: type[T], values: Mapping[str, Any], where: object, advice: str) -> T:
    """The values as `kind` has them. Raises DataError with the file, the key, what it should be and what it is."""
    try:
        return kind.model_validate(values)
    except pydantic.ValidationError as error:
        wrong = " ".join(one_line(error, str, most=1).split())  # a key of a stranger's may hold line ends
        raise DataError(f"{where}: {wrong[:LONGEST]}; {advice}") from None
