"""The rotary positions of a model as transformers reads them from config.json, whichever of its keys say so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gsm8k_core.types import DataError, PreflightError

PRETRAINED = "original_max_position_embeddings"
LONGEST = "max_position_embeddings"
NOT_SETTINGS = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
LARGEST = 1e30  # JSON can say 1e999, which is infinite
NUMBERS = (
    *(PRETRAINED, LONGEST, "rope_theta", "partial_rotary_factor", "factor", "low_freq_factor", "high_freq_factor"),
    *("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor", "short_factor", "long_factor"),
)
PHI3 = "phi3"  # whose class has its own ways: names for longrope, and the pretrained length beside the settings
PHI3_NAMES, PHI3_PRETRAINED = ("su", "yarn"), 4096


@dataclass(frozen=True, slots=True)
class Rope:
    """One kind of rotary positions."""

    kind: str  # default, linear, llama3, yarn, dynamic, longrope, ...
    base: float
    partial: float  # of a head's size that is turned
    settings: Mapping[str, Any]  # what the kind takes; the pretrained length is among them where it takes that

    @property
    def reach(self) -> int | None:
        """As many positions as have the frequencies of the first ones; None for all.

        Behind them, transformers takes other frequencies for all rows of the batch, as long as its longest is.
        """
        found = self.settings.get(PRETRAINED if self.kind == "longrope" else LONGEST)
        return int(found) if found and self.kind in ("longrope", "dynamic") else None


def rope_of(config: Mapping[str, Any], base: float = 10_000.0) -> Rope:
    """Of a config.json that says the same for all layers; `base` is its class's where no key says one."""
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, Mapping):
        raise DataError(f"config.json has rope_parameters {given!r}; it must be an object or null")
    return rope_from(given, config, base)


def rope_from(given: Mapping[str, Any], config: Mapping[str, Any], base: float) -> Rope:
    """Of one object with rope_type, rope_theta and the rest; what it leaves open, the rest of `config` says."""
    kind = str(given.get("rope_type", given.get("type")) or "default")
    pretrained = given.get(PRETRAINED, config.get(LONGEST))
    if config.get("model_type") == PHI3:
        kind = "longrope" if kind in PHI3_NAMES else kind
        pretrained = config.get(PRETRAINED, PHI3_PRETRAINED)
    for key, value in (*given.items(), (PRETRAINED, pretrained), (LONGEST, config.get(LONGEST))):
        _check(key, value)
    settings = {key: value for key, value in given.items() if key not in NOT_SETTINGS}
    if kind in ("llama3", "yarn", "longrope"):
        settings[PRETRAINED] = pretrained
    if kind in ("dynamic", "longrope"):
        settings[LONGEST] = config.get(LONGEST)
    partial = given.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    theta = given.get("rope_theta", config.get("rope_theta"))
    for key, value in (("partial_rotary_factor", partial), ("rope_theta", theta)):
        _check(key, value)
    return Rope(kind, float(base if theta is None else theta), float(1 if partial is None else partial), settings)


def _check(key: str, value: Any) -> None:
    """Raises DataError for a key of NUMBERS with what is neither a number nor a list of some."""
    if key not in NUMBERS:
        return
    numbers = value if isinstance(value, list) else [value]
    if not all(number is None or (isinstance(number, (int, float)) and abs(number) < LARGEST) for number in numbers):
        raise DataError(f"config.json has {key} {value!r} for its rotary positions; it must be a number")


def refuse_beyond(rope: Rope, longest: int) -> None:
    """Raises PreflightError where rows of `longest` tokens would be turned by other frequencies than short ones."""
    if rope.reach is not None and longest > rope.reach:
        raise PreflightError(
            f"config.json has rope_type {rope.kind}, whose frequencies are others behind {rope.reach:,} tokens, and up "
            f"to {longest:,} would be read; try --max-length {rope.reach}"
        )
