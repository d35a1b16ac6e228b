"""The page at `/`: base and trained beside each other. It loads nothing but the server's own answers.

What a model writes reaches the page as text and never as markup; the page's own style and script are allowed by their
sha256 and nothing else is.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class ChatPage:
    """The page, and the policy that goes with it in a header."""

    html: str
    policy: str


def make_page(needs_key: bool) -> ChatPage:
    """The same for every visitor: it asks the server which models there are."""
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("chat.css", "chat.js"))
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; connect-src 'self'; "
    policy += "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    template = environment.get_template("chat.html.j2")
    return ChatPage(template.render(style=Markup(style), script=Markup(script), needs_key=needs_key), policy)


def _hash(part: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() + "'"
