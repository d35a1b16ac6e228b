"""A report page as a browser takes it."""

from __future__ import annotations

from html.parser import HTMLParser


class Read(HTMLParser):
    """The tags of a page, its words, and the attributes that load or run something."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.words = ""
        self.live: list[tuple[str, str, str | None]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.live += [
            (tag, name, value)
            for name, value in attributes
            if name.startswith("on") or (name in {"src", "href", "action"} and not (value or "").startswith("#"))
        ]

    def handle_data(self, data: str) -> None:
        self.words += data
