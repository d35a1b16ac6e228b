"""What a person types to start this program, in every hint: `python cli.py`, or `gsm8k` where it is installed.

An installed one often has an environment of its own (pipx, uv): there a bare `pip install` would reach another Python,
so a hint that installs something names what installs into this one.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path

SOURCE = "python cli.py"  # from a clone; what our messages are written with
INSTALLED = "gsm8k"  # pyproject.toml's script
PACKAGE = "gsm8k-finetune"  # and its name
INSTALLS = re.compile(
    r"(?<!-m )(?<!uv )pip install (?P<again>--force-reinstall )?(?:-c \S+ )?"
    r"(?P<project>-e (?:'\.(?P<extra>\[[\w-]+\])'|\.(?![\w/])))?"
)
EXTRA = re.compile(r"'\.(\[[\w-]+\])'")


def typed() -> str:
    """The one that started this process."""
    return INSTALLED if Path(sys.argv[0]).stem == INSTALLED else SOURCE


def typed_verb() -> str:
    """The verb that was typed; nothing where this process was started in another way."""
    verb = sys.argv[1] if len(sys.argv) > 1 and Path(sys.argv[0]).stem in (INSTALLED, "cli") else ""
    return verb if verb.isalpha() else ""


def as_typed(text: str) -> str:
    """A message with the commands in it as this person types them."""
    if typed() == SOURCE:
        return text
    return EXTRA.sub(rf"'{PACKAGE}\1'", INSTALLS.sub(_installs, text)).replace(SOURCE, typed())


def _installs(found: re.Match[str]) -> str:
    """`pip install ...` for the environment of this process; the project has no folder there, but a name."""
    by_uv, by_pipx = (Path(sys.prefix, name).is_file() for name in ("uv-receipt.toml", "pipx_metadata.json"))
    if found["again"] and found["project"] and (by_uv or by_pipx):
        return f"{'uv tool upgrade --reinstall' if by_uv else 'pipx reinstall'} {PACKAGE}"
    python = shlex.quote(sys.executable)
    if by_pipx:
        install = f"pipx runpip {PACKAGE} install"
    elif not by_uv and importlib.util.find_spec("pip"):
        install = f"{python} -m pip install"
    else:
        install = f"uv pip install --python {python}"
    extra = found["extra"]
    project = "" if not found["project"] else f"'{PACKAGE}{extra}'" if extra else PACKAGE
    return f"{install} {found['again'] or ''}{project}"
