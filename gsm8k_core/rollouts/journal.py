"""What `--recipe grpo` was answered, on disk, for a person: a run goes on without it, by its seed and its weights.

RUN/rollouts/rollout-000012.jsonl    the answers that the updates from 12 on are made of, a line each as in record.py,
                                     with the reward and the advantage; the newest KEPT files are kept, and none of
                                     later updates, which a run that went back to a checkpoint has given up
"""

from __future__ import annotations

import re
from pathlib import Path

from gsm8k_core.files import make_folder, refuse_links, write_bytes
from gsm8k_core.rollouts.group import Sampled
from gsm8k_core.rollouts.record import as_line
from gsm8k_core.scoring.verify import Mode
from gsm8k_core.types import StorageError

KEPT = 20  # files; 128 answers of 300 tokens are 400 KB
NAME = re.compile(r"rollout-([0-9]{6,})\.jsonl")


def write(rollouts: Path, sampled: Sampled, update: int, mode: Mode) -> None:
    """The answers of a rollout whose first update is number `update`, all at once. Raises StorageError."""
    lines = [
        as_line(answer, mode, reward=reward, advantage=advantage)
        for group in sampled.groups
        for answer, reward, advantage in zip(group.answers, group.rewards, group.advantages, strict=True)
    ]
    path = rollouts / f"rollout-{update:06d}.jsonl"
    refuse_links(rollouts, path)
    make_folder(rollouts)
    write_bytes(path, b"".join(lines))
    found = files(rollouts)
    later = [file for file in found if update_of(file) > update]
    for old in later + found[: len(found) - len(later)][:-KEPT]:
        try:
            old.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{old} cannot be removed ({error.strerror}); check its rights") from error


def files(rollouts: Path) -> list[Path]:
    """Those that are there, the oldest first."""
    return sorted((path for path in rollouts.glob("rollout-*") if NAME.fullmatch(path.name)), key=update_of)


def update_of(path: Path) -> int:
    """The first update that is made of a file's answers. Raises ValueError for another file."""
    found = NAME.fullmatch(path.name)
    if found is None:
        raise ValueError(f"{path} is no rollout's")
    return int(found[1])
