"""The table of model types in docs/devices.md says what the code claims, and of each type what was measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from backends.mlx.architectures import TYPES as ON_MLX
from backends.torch.architectures import TYPES as ON_TORCH

ROOT = Path(__file__).parents[2]
TYPE = re.compile(r"`(\w+)`")


def rows(text: str) -> dict[str, list[str]]:
    """Model type -> the other cells of its row."""
    section = text.split("\n## Which models\n")[1].split("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "|" in line]
    return {TYPE.fullmatch(row[0])[1]: row[1:] for row in cells if TYPE.fullmatch(row[0])}  # type: ignore[index]


def claimed(text: str) -> tuple[set[str], set[str]]:
    """The types that the table claims for torch, and for MLX."""
    found = rows(text)
    on_torch, on_mlx = (
        {kind for kind, cells in found.items() if cells[column].split(",")[0] == "yes"} for column in (1, 2)
    )
    return on_torch, on_mlx


@pytest.fixture(scope="module")
def page() -> str:
    return (ROOT / "docs" / "devices.md").read_text(encoding="utf-8")


def test_the_table_claims_what_the_code_claims(page: str) -> None:
    assert claimed(page) == (set(ON_TORCH), set(ON_MLX))
    assert "[docs/devices.md](docs/devices.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_control_a_type_too_many_is_seen(page: str) -> None:
    more = page.replace("| `llama` |", "| `phi` | Phi-2 | yes | yes | |\n| `llama` |")
    assert claimed(more) == ({*ON_TORCH, "phi"}, {*ON_MLX, "phi"})
