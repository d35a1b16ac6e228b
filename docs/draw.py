"""Draw docs/architecture.svg from the imports themselves: `python docs/draw.py`. A test holds that it is up to date.

A box is a room: a package, or a file that stands alone. It shows the first sentence of the room's docstring, and how
many files it has. An arrow goes from a room to one that it imports; what follows from two other arrows is
left out, so the picture shows the order and not all of the 100 pairs.
"""

from __future__ import annotations

import ast
import sys
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("gsm8k_core", "backends", "verbs", "cli")
WIDTH, HEIGHT, GAP, ROW = 214, 96, 22, 140  # of a box, between two, and from one row to the next; pixels
MARGIN = 24
LINE = 33  # characters of a sentence in a box
MOST_LINES = 4

Edges = Mapping[str, set[str]]


@dataclass(slots=True)
class Room:
    """One box."""

    name: str
    sentence: str = ""
    files: int = 0
    imports: set[str] = field(default_factory=set)


def room_of(module: str, packages: Iterable[str]) -> str:
    """The longest package that holds a module; a module that stands directly in a layer is its own room."""
    holding = [package for package in packages if module == package or module.startswith(f"{package}.")]
    longest = max(holding, key=len, default=module)
    alone = longest == "gsm8k_core" and module != longest
    return module if alone else longest


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file, of the product."""
    found = {}
    for package in PACKAGES:
        single = root / f"{package}.py"
        for path in [single] if single.exists() else sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.Module, known: Iterable[str]) -> set[str]:
    """Our modules that a file imports, wherever in it."""
    names = set(known)
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & names) or {node.module}
    return found & names


def rooms(root: Path) -> dict[str, Room]:
    """Every room with what it imports, by name."""
    files = modules(root)
    packages = [name for name, path in files.items() if path.name == "__init__.py"]
    made: dict[str, Room] = {}
    for name, path in files.items():
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        room = made.setdefault(room_of(name, packages), Room(room_of(name, packages)))
        room.files += 1
        if name == room.name:
            room.sentence = " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split())
        room.imports |= {room_of(other, packages) for other in imported(tree, files)} - {room.name}
    made.pop("gsm8k_core", None)  # its __init__ holds the version and nothing else
    for room in made.values():
        room.imports.discard("gsm8k_core")
    return made


def reach(edges: Edges, start: str) -> set[str]:
    """All that can be got to from `start`."""
    seen: set[str] = set()
    left = list(edges[start])
    while left:
        name = left.pop()
        if name not in seen:
            seen.add(name)
            left += edges[name]
    return seen


def reduced(edges: Edges) -> dict[str, set[str]]:
    """The edges that no longer way implies (the transitive reduction of a graph without circles)."""
    implied = {name: set().union(*(reach(edges, other) for other in targets)) for name, targets in edges.items()}
    return {name: targets - implied[name] for name, targets in edges.items()}


def levels(edges: Edges) -> dict[str, int]:
    """The height of each room: one more than the highest that it imports. Raises ValueError for a circle."""
    found: dict[str, int] = {}
    while len(found) < len(edges):
        ready = [name for name, targets in edges.items() if name not in found and targets <= found.keys()]
        if not ready:
            raise ValueError(f"these rooms import one another in a circle: {sorted(set(edges) - set(found))}")
        for name in ready:
            found[name] = 1 + max((found[other] for other in edges[name]), default=-1)
    return found


def places(edges: Edges, level: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """The left upper corner of each box; a row is ordered by the middle of what each box in it points to."""
    rows = [sorted(name for name in level if level[name] == height) for height in range(max(level.values()) + 1)]
    widest = max(map(len, rows)) * (WIDTH + GAP) - GAP
    found: dict[str, tuple[int, int]] = {}
    for height, row in enumerate(rows):
        middle = {name: sum(found[to][0] for to in edges[name]) / max(len(edges[name]), 1) for name in row}
        left = MARGIN + (widest - len(row) * (WIDTH + GAP) + GAP) // 2
        for place, name in enumerate(sorted(row, key=lambda name: (middle[name], name))):
            found[name] = (left + place * (WIDTH + GAP), MARGIN + (len(rows) - 1 - height) * ROW)
    return found


def _box(room: Room, x: int, y: int) -> str:
    name = room.name.removeprefix("gsm8k_core.")
    lines = textwrap.wrap(room.sentence, LINE)
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], lines[MOST_LINES - 1][: LINE - 2] + " …"]
    size = f"{room.files} files" if room.files > 1 else "1 file"
    kind = "core" if room.name.startswith("gsm8k_core") else room.name.split(".")[0]
    text = "".join(f'<tspan x="{x + 8}" dy="13">{escape(line)}</tspan>' for line in lines)
    return (
        f'<g class="{kind}"><rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
        f'<text class="name" x="{x + 8}" y="{y + 17}">{escape(name)}</text>'
        f'<text class="size" x="{x + WIDTH - 8}" y="{y + HEIGHT - 6}" text-anchor="end">{size}</text>'
        f'<text x="{x + 8}" y="{y + 22}">{text}</text></g>'
    )


def _arrow(start: tuple[int, int], end: tuple[int, int]) -> str:
    x1, y1 = start[0] + WIDTH // 2, start[1] + HEIGHT
    x2, y2 = end[0] + WIDTH // 2, end[1]
    middle = (y1 + y2) // 2
    return f'<path d="M{x1} {y1} C{x1} {middle} {x2} {middle} {x2} {y2 - 5}" marker-end="url(#tip)"/>'


STYLE = """
text{font:11px system-ui,-apple-system,"Segoe UI",sans-serif;fill:#1d2430}
.name{font-weight:600;font-size:13px}.size{fill:#66707f;font-size:10px}
rect{fill:#eef3fb;stroke:#8aa4cc}.backends rect{fill:#fdf3e4;stroke:#d3a85f}
.verbs rect,.cli rect{fill:#ebf6ee;stroke:#7fb58f}
path{fill:none;stroke:#9aa3af;stroke-width:1.2}#tip path{fill:#9aa3af;stroke:none}
"""


def drawing(root: Path) -> str:
    """The whole picture, the same for the same imports. Raises ValueError where rooms import each other in a circle."""
    made = rooms(root)
    every = {name: room.imports for name, room in made.items()}
    level = levels(every)
    edges = reduced(every)
    at = places(edges, level)
    width = max(x for x, _ in at.values()) + WIDTH + MARGIN
    height = max(y for _, y in at.values()) + HEIGHT + MARGIN
    arrows = [_arrow(at[name], at[to]) for name in sorted(edges) for to in sorted(edges[name])]
    boxes = [_box(made[name], *at[name]) for name in sorted(made)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">',
            "<title>The rooms of the house: an arrow goes from a room to one that it imports</title>",
            f"<style>{STYLE.strip()}</style>",
            '<defs><marker id="tip" viewBox="0 0 6 6" refX="3" refY="3" markerWidth="6" markerHeight="6" orient="auto">'
            '<path d="M0 0 L6 3 L0 6 z"/></marker></defs>',
            f'<rect x="0" y="0" width="{width}" height="{height}" style="fill:#fff;stroke:none"/>',
            *arrows,
            *boxes,
            "</svg>\n",
        ]
    )


def main() -> None:
    """Write the picture beside this file."""
    target = ROOT / "docs" / "architecture.svg"
    target.write_text(drawing(ROOT), encoding="utf-8")
    print(f"{target.relative_to(ROOT)} is drawn")


if __name__ == "__main__":
    sys.exit(main())
