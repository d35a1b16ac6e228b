"""The tiny models of gsm8k_core.parity.tiny: `parity` measures with them too."""

from gsm8k_core.parity.tiny import (
    END_ID,
    KINDS,
    LONGROPE,
    SPECIAL,
    TEMPLATE,
    TEXT,
    TYPES,
    WORDS,
    make,
    make_rows,
    make_type,
    tokenizer_files,
    weights,
)

__all__ = [
    "END_ID",
    "KINDS",
    "LONGROPE",
    "SPECIAL",
    "TEMPLATE",
    "TEXT",
    "TYPES",
    "WORDS",
    "make",
    "make_rows",
    "make_type",
    "tokenizer_files",
    "weights",
]
