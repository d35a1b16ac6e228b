"""What the Hub answers of a repository, typed: a stranger's server may answer anything."""

from __future__ import annotations

from gsm8k_core.config.stored import Count, Stored


class File(Stored):
    """One file of a repository."""

    rfilename: str
    size: Count | None = None


class Repository(Stored):
    """The part of an answer that is read."""

    siblings: list[File]
