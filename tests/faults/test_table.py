"""docs/reliability.md names each of the 31 faults once, later ones as H and a number, and only tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
TABLE = TESTS.parent / "docs" / "reliability.md"
ROW = re.compile(r"\| (H?[0-9]+[a-z]?) \|.*")
TEST = re.compile(r"`([\w/]+\.py)::(\w+)`")


def rows() -> dict[str, list[tuple[str, str]]]:
    """Number of the fault, as the table has it -> (file, test) of its row."""
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if ROW.fullmatch(line)]
    found = {line.split("|")[1].strip(): TEST.findall(line) for line in lines}
    assert len(found) == len(lines)
    return found


def names_in(file: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}


def test_each_fault_has_a_row_with_a_test() -> None:
    assert [number for number in rows() if number.isdecimal()] == [str(number) for number in range(1, 32)]
    assert [number for number, named in rows().items() if not named] == []


def test_each_test_that_is_named_exists() -> None:
    named = set(TEST.findall(TABLE.read_text(encoding="utf-8")))
    assert len(named) > 50
    assert [f"{file}::{name}" for file, name in sorted(named) if name not in names_in(TESTS / file)] == []
