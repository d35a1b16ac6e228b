"""One look for the page, the plots and the benchmark's pictures: colours and fonts, each once.

The colours are Okabe and Ito's hues, told apart with any colour vision, dark enough for small text on the page's paper
(contrast 4.5 at least, tests/core/report); the second of each pair is for the dark page. No picture leaves a meaning to
colour alone: lines change their style as well, rows have marks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PAPER, INK, SOFT = ("#fdfdfc", "#14171a"), ("#1b1e22", "#e5e7ea"), ("#5a6068", "#a2a9b1")
LINE, STRONG, RAISED = ("#dcdfe2", "#2d3237"), ("#b9bec4", "#4b525a"), ("#f4f5f6", "#1d2125")
BASE = ("#6b7178", "#9aa1a9")  # the model before training, and what others made
SERIES = (  # trained models in their order; the first is "trained" where there is one
    ("#1d5fbf", "#82b1ff"),
    ("#b2430f", "#ffa06b"),
    ("#00755a", "#4cc9a3"),
    ("#9c3f7e", "#e29bc9"),
    ("#8a6200", "#e0b040"),
    ("#25738f", "#6cc3e0"),
)
TRAINED, LOST = SERIES[0], SERIES[1]
WASHES = {"won-wash": ("#e8f0fb", "#1a2a42"), "lost-wash": ("#fbece3", "#3a2519")}
MARK, FOCUS = ("#ffe9a3", "#5c4c12"), ("#1d5fbf", "#a9caff")
SANS = ("Segoe UI", "Roboto", "Helvetica Neue", "Liberation Sans", "DejaVu Sans", "sans-serif")
MONO = ("SF Mono", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "Liberation Mono", "monospace")
STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))  # with the colours, 30 that differ

KEYS = ("trained", *(f"trained-{number}" for number in range(2, len(SERIES) + 1)))  # of the page's columns


def variables() -> str:
    """The page's custom properties, light and dark."""
    colours: dict[str, tuple[str, str]] = {"paper": PAPER, "raised": RAISED, "ink": INK, "soft": SOFT, "line": LINE}
    colours |= {"strong": STRONG, "base": BASE, "won": TRAINED, "lost": LOST, "mark": MARK, "focus": FOCUS}
    colours |= dict(zip(KEYS, SERIES, strict=True)) | WASHES
    light, dark = (" ".join(f"--{name}: {pair[at]};" for name, pair in colours.items()) for at in (0, 1))
    fonts = f"--sans: system-ui, -apple-system, {_names(SANS)}; --mono: ui-monospace, {_names(MONO)};"
    models = "".join(f".{key} {{ --model: var(--{key}); }}\n" for key in ("base", *KEYS))
    return (
        f":root {{ color-scheme: light dark; {light} {fonts} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n{models}"
    )


def _names(fonts: tuple[str, ...]) -> str:
    return ", ".join(f'"{font}"' if " " in font else font for font in fonts)


def style(number: int) -> Mapping[str, Any]:
    """Of the curve of one run in a picture: its colour, and a line that shows what is under it."""
    return {"color": SERIES[number % len(SERIES)][0], "linestyle": STYLES[number % len(STYLES)]}


def picture(size: float = 10) -> dict[str, Any]:
    """matplotlib's settings. Fonts that are not installed are passed over without a word."""
    import logging

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    ink, soft = INK[0], SOFT[0]
    return {
        "font.family": [*SANS[:-1]],
        "font.size": size,
        "axes.titlesize": size + 1,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": STRONG[0],
        "axes.labelcolor": soft,
        "axes.titlecolor": ink,
        "text.color": ink,
        "xtick.color": soft,
        "ytick.color": soft,
        "grid.color": LINE[0],
        "figure.facecolor": PAPER[0],
        "axes.facecolor": PAPER[0],
        "savefig.facecolor": PAPER[0],
    }
