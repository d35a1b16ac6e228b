"""Every package that is imported is declared in pyproject.toml, where whoever needs it installs it."""

from __future__ import annotations

import ast
import itertools
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OURS = {"backends", "benchmarks", "cli", "docs", "gsm8k_core", "gsm8k_finetune", "lock", "tests", "verbs"}
DISTRIBUTIONS = {"markdown_it": "markdown-it-py", "yaml": "pyyaml"}  # where the name to import is another one
ASKED_FOR_BY_NAME = {"playwright"}  # the Makefile installs it, for tests/page alone

# What a folder may import: what every install brings, and what these extras do.
EXTRAS = {
    "cli.py": {"mlx-cpu", "track", "bench"},
    "verbs": {"mlx-cpu", "track", "bench"},
    "backends": {"mlx-cpu", "track", "bench"},
    "gsm8k_core": {"mlx-cpu", "track", "bench"},
    "benchmarks": {"mlx-cpu", "bench"},
    "tests": {"mlx-cpu", "track", "bench", "dev"},
}


def imported(source: str) -> set[str]:
    """Distributions behind the absolute imports in `source`, those inside functions too; not ours, not Python's."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module).split(".")[0])
    strangers = found - OURS - sys.stdlib_module_names
    return {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in strangers}


def declared(extras: set[str]) -> set[str]:
    optional = itertools.chain.from_iterable(PROJECT["optional-dependencies"][extra] for extra in extras)
    return {canonicalize_name(Requirement(line).name) for line in (*PROJECT["dependencies"], *optional)}


def python_files(name: str) -> Iterator[Path]:
    path = ROOT / name
    yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]


@pytest.mark.parametrize("name", EXTRAS)
def test_what_is_imported_is_declared(name: str) -> None:
    files = list(python_files(name))
    assert files
    known = declared(EXTRAS[name]) | (ASKED_FOR_BY_NAME if name == "tests" else set())
    lacking = {
        f"{file.relative_to(ROOT)} imports {package}"
        for file in files
        for package in imported(file.read_text(encoding="utf-8")) - known
    }
    assert lacking == set()


def test_a_package_that_only_the_tests_have_is_found_in_the_product() -> None:
    """The control."""
    source = "import os, yaml\nfrom gsm8k_core import files\ndef f():\n    from scipy.stats import norm\n    import odd"
    assert imported(source) == {"pyyaml", "scipy", "odd"}
    assert imported(source) - declared(EXTRAS["gsm8k_core"]) == {"scipy", "odd"}
    assert imported(source) - declared(EXTRAS["tests"]) == {"odd"}


def test_what_the_makefile_installs_by_name_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"$(LOCKED) {name}" in makefile for name in ASKED_FOR_BY_NAME)
