"""Imports go one way, and each framework stays in its own folder."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ["gsm8k_core", "backends", "verbs", "cli"]  # each imports itself and what stands before it
FRAMEWORKS = {"torch": {"torch"}, "mlx": {"mlx", "mlx_lm"}}


def python_files(layer: str) -> list[Path]:
    single = ROOT / f"{layer}.py"
    return [single] if single.exists() else sorted((ROOT / layer).rglob("*.py"))


def imports(source: str) -> set[str]:
    """Top-level names of the absolute imports in `source`, inside functions and TYPE_CHECKING included."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module).split(".")[0])
    return found


def breaches(files: list[Path], forbidden: set[str]) -> list[str]:
    return [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        for name in sorted(imports(file.read_text(encoding="utf-8")) & forbidden)
    ]


def test_finds_imports_wherever_they_stand() -> None:
    source = "import torch.nn as nn\ndef f():\n    from mlx import core\nfrom . import torchish\nimport numpy"
    assert imports(source) == {"torch", "mlx", "numpy"}


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_go_one_way(layer: str) -> None:
    files = python_files(layer)
    assert files
    above = {*LAYERS[LAYERS.index(layer) + 1 :], "tests", "benchmarks"}
    assert breaches(files, above) == []


def test_frameworks_are_imported_only_by_their_backend() -> None:
    neutral = [file for layer in LAYERS for file in python_files(layer)]
    neutral = [file for file in neutral if file.parent.parent != ROOT / "backends"]
    assert ROOT / "backends" / "__init__.py" in neutral
    assert breaches(neutral, set.union(*FRAMEWORKS.values())) == []


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_backend_never_imports_the_other_framework(name: str) -> None:
    files = sorted((ROOT / "backends" / name).rglob("*.py"))
    assert files
    others = set.union(*(packages for other, packages in FRAMEWORKS.items() if other != name))
    assert breaches(files, others) == []
