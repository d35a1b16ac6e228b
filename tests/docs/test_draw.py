"""The drawing of the house is what the imports are, and says so when rooms stand in a circle."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from docs import draw

ROOT = Path(__file__).parents[2]


def house(root: Path, **files: str) -> Path:
    """A small house: `gsm8k_core__a__b="import ..."` is gsm8k_core/a/b.py."""
    for package in draw.PACKAGES:
        (root / package).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = root / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
    return root


def test_the_drawing_is_up_to_date() -> None:
    drawn = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    assert drawn == draw.drawing(ROOT), "the imports changed: run python docs/draw.py and look at the picture"


def test_it_is_a_picture_with_a_box_for_each_room() -> None:
    picture = ElementTree.fromstring(draw.drawing(ROOT))
    boxes = picture.findall("{http://www.w3.org/2000/svg}g")
    assert len(boxes) == len(draw.rooms(ROOT)) > 10


def test_a_room_imports_what_its_files_import(tmp_path: Path) -> None:
    root = house(
        tmp_path,
        gsm8k_core__low__one="",
        gsm8k_core__high__two="def f():\n    from gsm8k_core.low import one\n    from gsm8k_core import alone",
        gsm8k_core__alone="",
    )
    found = draw.rooms(root)
    assert found["gsm8k_core.high"].imports == {"gsm8k_core.low", "gsm8k_core.alone"}
    assert found["gsm8k_core.low"].imports == set()


def test_another_import_changes_the_drawing(tmp_path: Path) -> None:
    before = draw.drawing(house(tmp_path, gsm8k_core__a__x="", gsm8k_core__b__y=""))
    after = draw.drawing(house(tmp_path, gsm8k_core__b__y="import gsm8k_core.a.x"))
    assert before != after


def test_a_circle_is_refused_by_name(tmp_path: Path) -> None:
    root = house(tmp_path, gsm8k_core__a__x="import gsm8k_core.b.y", gsm8k_core__b__y="import gsm8k_core.a.x")
    with pytest.raises(ValueError, match=r"circle: \['gsm8k_core.a', 'gsm8k_core.b'\]"):
        draw.drawing(root)


def test_an_arrow_that_follows_from_two_others_is_left_out() -> None:
    assert draw.reduced({"c": {"b", "a"}, "b": {"a"}, "a": set()}) == {"c": {"b"}, "b": {"a"}, "a": set()}
