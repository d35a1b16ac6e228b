"""One look: every colour can be read on the page's paper, and no other file of the report has one of its own."""

from __future__ import annotations

import re

import pytest

from gsm8k_core.report import look, page

COLOUR = re.compile(r"#[0-9a-f]{3,6}\b")


def contrast(one: str, other: str) -> float:
    """Source: WCAG 2.2, relative luminance and contrast ratio."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("place", [0, 1])
def test_every_colour_of_words_can_be_read(place: int) -> None:
    for pair in (look.INK, look.SOFT, look.BASE, *look.SERIES):
        assert contrast(pair[place], look.PAPER[place]) >= 4.5, pair
    assert contrast(look.STRONG[place], look.PAPER[place]) < 4.5  # the control: lines need less


def test_the_page_takes_its_colours_from_one_place() -> None:
    for name in ("report.css", "parts.css", "problems.css"):
        screen = (page.TEMPLATES / name).read_text(encoding="utf-8").partition("@media print")[0]
        assert COLOUR.findall(screen) == [], name  # paper of a printer is white
    style = str(page._style())
    used = set(re.findall(r"var\(--([\w-]+)", style))
    assert used <= set(re.findall(r"--([\w-]+):", style))


def test_pictures_have_the_pages_first_colours() -> None:
    bars = pytest.importorskip("benchmarks.bars")
    assert look.style(0)["color"] == look.TRAINED[0] == bars.OURS
    assert look.BASE[0] == bars.PEERS
    assert look.picture()["figure.facecolor"] == look.PAPER[0]
    assert f"--trained: {look.TRAINED[0]};" in look.variables()
