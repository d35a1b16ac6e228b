"""The README's two pictures, each of a real run.

python docs/pictures.py                   docs/terminal.svg from docs/terminal.log, the log of that run
python docs/pictures.py page REPORT.html  docs/page.png: the top of a report page, by Playwright and a Chromium
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from gsm8k_core.report import look  # noqa: E402

LOG, PICTURE, PAGE = DOCS / "terminal.log", DOCS / "terminal.svg", DOCS / "page.png"
COLUMNS, MOST_BYTES = 80, 200_000
SIZE = {"width": 1280, "height": 1790}  # of the page, from its top: verdict, bars, examples


def terminal(log: str) -> str:
    """The log as a picture: commands bold, the verdict in the page's blue; no font and nothing else is loaded."""
    lines = log.rstrip("\n").splitlines()
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w", encoding="utf-8"), force_terminal=True)  # noqa: SIM115
    for before, line in zip(["", *lines], lines, strict=False):
        asked = line.startswith("$ ") or before.endswith("\\")
        strong = "bold" if asked else "bold blue" if line.startswith("the trained model") else ""
        console.print(Text(line, style=strong), soft_wrap=True)
    paper, ink = _rgb(look.PAPER[1]), _rgb(look.INK[1])
    plain = [ink] * 4 + [_rgb(look.TRAINED[1])] + [ink] * 3
    theme = TerminalTheme(paper, ink, plain, plain)
    picture = console.export_svg(title="gsm8k-finetune", theme=theme, unique_id="terminal", font_aspect_ratio=0.61)
    picture = re.sub(r"@font-face \{.*?\}|<!--.*?-->", "", picture, flags=re.DOTALL)
    picture = picture.replace("Fira Code", look.MONO[-3]).replace('xmlns="', 'role="img" xmlns="', 1)
    return "\n".join(line.rstrip() for line in picture.splitlines() if line.strip()) + "\n"


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def page(report: Path) -> None:
    """The top of a report page as a PNG of MOST_BYTES at most."""
    from PIL import Image  # matplotlib's
    from playwright.sync_api import sync_playwright  # here, not above: `make test-page` brings it

    arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        opened = browser.new_page(viewport=SIZE)
        opened.goto(report.resolve().as_uri())
        opened.screenshot(path=PAGE)
        browser.close()
    with Image.open(PAGE) as drawn:
        drawn.convert("RGB").quantize(128).save(PAGE, optimize=True)
    if PAGE.stat().st_size > MOST_BYTES:
        raise SystemExit(f"{PAGE} is over {MOST_BYTES} bytes; make SIZE smaller")


if __name__ == "__main__":
    if sys.argv[1:2] == ["page"]:
        page(Path(sys.argv[2]))
    else:
        PICTURE.write_text(terminal(LOG.read_text(encoding="utf-8")), encoding="utf-8")
