"""A help text in groups: the entries of tyro's one box, put under headings in an order of our own."""

from __future__ import annotations

import re
from collections.abc import Sequence

CODES = re.compile(r"\x1b\[[0-9;]*m")
ENTRY = re.compile(r"^(?:│ |  )(-[A-Za-z-][^\s,]*)(?:, (--[^\s]+))?")  # what goes on below one is further in
BOX, PLAIN = re.compile(r"╭─ options ─+╮"), re.compile(r" options *")  # the latter where there are no such characters
REST = "other"
Groups = Sequence[tuple[str, Sequence[str]]]  # heading, flags


def regrouped(text: str, groups: Groups) -> str:
    """`text` with its options cut into one box a group; what no group names comes last. Colours stay."""
    lines = text.splitlines()
    plain = [CODES.sub("", line) for line in lines]
    top = next((at for at, line in enumerate(plain) if BOX.fullmatch(line) or PLAIN.fullmatch(line)), None)
    if top is None:  # another frame, or none: it is left as it is
        return text
    boxed = bool(BOX.fullmatch(plain[top]))
    first = top + 1 if boxed else top + 2  # under the plain one stand dashes
    last = max(at for at, line in enumerate(plain) if line.strip())
    end = next((at for at in range(first, len(plain)) if plain[at].startswith("╰")), last + 1)
    entries: dict[str, list[str]] = {}
    name = ""
    for at in range(first, end):
        if found := ENTRY.match(plain[at]):
            name = found[2] or found[1]
        entries.setdefault(name, []).append(lines[at])
    boxes = []
    named = {flag for _, flags in groups for flag in flags}
    for heading, flags in (*groups, (REST, [flag for flag in entries if flag not in named])):
        if body := [line for flag in flags for line in entries.get(flag, ())]:
            boxes += [_titled(lines[top], heading), *lines[top + 1 : first], *body, lines[end] if boxed else ""]
    return "\n".join([*lines[:top], *boxes, *lines[end + 1 :]])


def _titled(line: str, heading: str) -> str:
    """The first line under another heading, as wide as before."""
    before, _, after = line.partition("options")
    fill = "─" if "─" in after else " "
    more = len("options") - len(heading)
    return before + heading + (after.replace(fill, fill * (more + 1), 1) if more >= 0 else _shorter(after, fill, -more))


def _shorter(text: str, fill: str, count: int) -> str:
    place = text.rfind(fill * count)
    return text[:place] + text[place + count :] if place >= 0 else text
