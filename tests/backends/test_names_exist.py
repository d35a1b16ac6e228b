"""Every name of a framework that our source writes out is there in the installed version, on whatever device it is for.

What only a Mac or a GPU would run is run nowhere here, so a name that is not there would be met by the first person
with such a device.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "mlx")  # a backend is called as its framework's package
PLACES = ("gsm8k_core", "backends", "verbs", "benchmarks")
ASKING = {"hasattr", "getattr"}


def sources() -> list[Path]:
    return [ROOT / "cli.py", *(path for place in PLACES for path in sorted((ROOT / place).rglob("*.py")))]


def aliases(tree: ast.AST, package: str) -> dict[str, str]:
    """Local name -> the module or object of `package` that an import gave it, wherever in the file it stands."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.split(".")[0]
                found[alias.asname or whole] = whole
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return {name: whole for name, whole in found.items() if whole.split(".")[0] == package}


def chain(node: ast.expr) -> list[str]:
    """["torch", "mps", "empty_cache"] of torch.mps.empty_cache; nothing where it does not begin with a name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return [node.id, *reversed(parts)] if isinstance(node, ast.Name) else []


def asked_for(function: ast.AST) -> set[str]:
    """What a function asks for with hasattr, or with getattr, before it is used."""
    found = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ASKING:
            owner, name = chain(node.args[0]) or [ast.unparse(node.args[0])], node.args[1]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                found.add(".".join([*owner, name.value]))
    return found


def named(source: str, package: str) -> Iterator[list[str]]:
    """Each whole chain of attributes that begins with the package, those apart that its function asks for."""
    tree = ast.parse(source)
    known = aliases(tree, package)

    def walk(node: ast.AST, asked: set[str]) -> Iterator[list[str]]:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            asked = asked | asked_for(node)
        parts = chain(node) if isinstance(node, ast.Attribute) else []
        if parts and parts[0] in known:
            if not any(".".join(parts[:end]) in asked for end in range(2, len(parts) + 1)):
                yield [*known[parts[0]].split("."), *parts[1:]]
            return
        for child in ast.iter_child_nodes(node):
            yield from walk(child, asked)

    yield from walk(tree, set())
    yield from (whole.split(".") for whole in known.values())


def missing(parts: list[str]) -> str:
    """The first part of a chain that is not there, with all before it; or nothing."""
    found: Any = importlib.import_module(parts[0])
    for end, part in enumerate(parts[1:], start=2):
        if not hasattr(found, part):
            try:
                importlib.import_module(".".join(parts[:end]))
            except ImportError:
                return ".".join(parts[:end])
        found = getattr(found, part)
    return ""


def absent(source: str, package: str) -> set[str]:
    return {name for parts in named(source, package) if (name := missing(parts))}


def test_every_name_of_a_framework_is_there(backend_name: str) -> None:
    found = {}
    for path in sources():
        if names := absent(path.read_text(encoding="utf-8"), backend_name):
            found[path.relative_to(ROOT).as_posix()] = names
    assert found == {}


def test_the_names_of_the_devices_are_among_them() -> None:
    """The walk sees what it is for: names of MPS, CUDA and Metal, written in our source."""
    every = {
        ".".join(parts)
        for path in sources()
        for package in PACKAGES
        for parts in named(path.read_text(encoding="utf-8"), package)
    }
    seen = {"torch.mps.empty_cache", "torch.cuda.max_memory_reserved", "torch.backends.mps.is_available"}
    assert seen | {"mlx.core.device_info", "mlx.core.metal.is_available"} <= every


TORCHS = [
    ("torch.mps.clear_graphs()", {"torch.mps.clear_graphs"}),
    ("def f():\n    return torch.cuda.nothing.more", {"torch.cuda.nothing"}),
    ("import torch.nn.functional as F\nF.no_such_loss(1)", {"torch.nn.functional.no_such_loss"}),
    ("from torch import nothing_there", {"torch.nothing_there"}),
    ("if hasattr(torch.mps, 'gone'):\n    f = torch.mps.gone", {"torch.mps.gone"}),  # in no function
    ("def f():\n    hasattr(torch, 'gone')\ndef g():\n    torch.gone()", {"torch.gone"}),  # asked for elsewhere
    ("def f():\n    if hasattr(torch.mps, 'gone'):\n        torch.mps.gone()", set()),
    ("def f():\n    getattr(torch, 'gone', print)()\n    torch.gone()", set()),
    ("torch.backends.mps.is_available()\ntorch.float32.itemsize", set()),
    ("def f():\n    return mine.torch.whatever", set()),
]
MLXS = [
    (
        "mx.fast.no_such_kernel(1)\nmx.metal.is_available()\nmx.gone()",
        {"mlx.core.fast.no_such_kernel", "mlx.core.gone"},
    ),
    ("def f():\n    mx.cuda.gone if hasattr(mx.cuda, 'gone') else mx.fast.rms_norm", set()),
]


def test_control_a_name_that_is_not_there_is_found(backend_name: str) -> None:
    begin, cases = {"torch": ("import torch", TORCHS), "mlx": ("import mlx.core as mx", MLXS)}[backend_name]
    for source, found in cases:
        assert absent(f"{begin}\n{source}", backend_name) == found, source
