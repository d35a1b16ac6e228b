"""What scripts make of the code and of a real run is up to date: docs/settings.md, docs/terminal.svg, docs/page.png."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import cli
from docs import pictures, settings
from gsm8k_core.config.fields import flag

ROOT = Path(__file__).parents[2]


def test_the_settings_are_those_of_the_config() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == settings.text(), "a setting changed: run python docs/settings.py"
    for verb in cli.VERBS:
        for name, field in cli._settings(verb).model_fields.items():
            metavar = next((each.metavar for each in field.metadata if getattr(each, "metavar", None)), "")
            called = metavar if metavar.startswith("[") else flag(name)  # what has no flag stands under its place
            assert f"| `{called}` |" in page, (verb, name)
    assert "| `--max-time` | TIME | `2h` |" in page


def test_control_another_default_changes_the_page(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    field = cli._settings("plot").model_fields["smooth"]
    monkeypatch.setattr(field, "default", 7)
    assert "| `7` |" in settings.text() != (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")


def test_the_terminal_is_its_log_as_a_picture_that_loads_nothing() -> None:
    log = pictures.LOG.read_text(encoding="utf-8")
    drawn = pictures.PICTURE.read_text(encoding="utf-8")
    assert drawn == pictures.terminal(log), "run python docs/pictures.py"
    assert len(log.splitlines()) == 15
    assert max(map(len, log.splitlines())) <= pictures.COLUMNS
    assert not re.search(r"url\((?!#)|@import|<script|<image", drawn)
    words = "".join(ElementTree.fromstring(drawn).itertext()).replace("\N{NO-BREAK SPACE}", " ")
    for line in log.splitlines():
        assert line.strip() in words


def test_the_readme_leads_with_both_pictures_and_they_are_small() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    places = [readme.index(part) for part in ("docs/page.png", "docs/terminal.svg", "## Try it")]
    assert places == sorted(places)
    drawn = pictures.PAGE.read_bytes()
    assert drawn.startswith(b"\x89PNG")
    assert len(drawn) <= pictures.MOST_BYTES == 200_000
