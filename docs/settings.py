"""docs/settings.md from the settings themselves: every flag of every verb, with its default and what it says.

python docs/settings.py writes it; a test holds it up to date.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cli  # noqa: E402
from gsm8k_core.config.fields import Settings, flag  # noqa: E402

FILE = ROOT / "docs" / "settings.md"
TITLES = {
    "Settings": "Every verb",
    "BackendSettings": "Where the arithmetic happens",
    "ProblemSettings": "Which problems",
    "ThinkingSettings": "Thinking and templates",
    "PromptFlags": "How a model is asked",
    "DrawSettings": "How a token is chosen",
    "RowSettings": "How a problem becomes a training row",
    "ScoreSettings": "What is answered, and how",
    "TalkSettings": "A model that is talked to",
}
HEAD = """# Every setting

<!-- made by `python docs/settings.py` from gsm8k_core/config: what is written by hand here is lost -->

A setting is a flag (`--max-time 2h`), a key of the YAML file that `--config` names (`max_time: 2h`), and an argument of
`gsm8k_finetune`'s calls (`max_time="2h"`). A flag wins over the file, the file over the default
(of `train`: over its profile's). What several verbs share stands once; each verb's own settings follow.
"""


def text() -> str:
    """The whole page."""
    verbs = {verb: cli._settings(verb) for verb in cli.VERBS}
    owners: dict[type[Settings], list[str]] = {}
    for verb, model in verbs.items():
        for owner in {_owner(model, name) for name in model.model_fields}:
            owners.setdefault(owner, []).append(verb)
    shared = [owner for owner in owners if len(owners[owner]) > 1 or owner.__name__ in TITLES]
    shared.sort(key=lambda owner: list(TITLES).index(owner.__name__) if owner.__name__ in TITLES else len(TITLES))
    parts = [HEAD]
    for owner in shared:
        used = sorted(owners[owner], key=list(verbs).index)
        whose = "" if len(used) == len(verbs) else f"{', '.join(f'`{verb}`' for verb in used)}.\n\n"
        parts.append(f"## {TITLES.get(owner.__name__, owner.__name__)}\n\n{whose}{_table(owner)}")
    for verb, model in verbs.items():
        own = [name for name in model.model_fields if _owner(model, name) not in shared]
        if own:
            parts.append(f"## {verb}\n\n{(model.__doc__ or '').splitlines()[0]}\n\n{_rows(model, own)}")
    return "\n".join(parts)


def _owner(model: type[Settings], name: str) -> type[Settings]:
    """The class that a setting is written in."""
    return next(each for each in model.__mro__ if name in vars(each).get("__annotations__", {}))


def _table(owner: type[Settings]) -> str:
    return _rows(owner, [name for name in owner.model_fields if _owner(owner, name) is owner])


def _rows(model: type[Settings], names: list[str]) -> str:
    lines = ["| setting | takes | default | |", "|---|---|---|---|"]
    for name in names:
        field = model.model_fields[name]
        told = [each for each in field.metadata if type(each).__name__ == "_ArgConfig"]
        metavar = next((each.metavar for each in told if each.metavar), None)
        positional = metavar if metavar and metavar.startswith("[") else None
        called = positional or flag(name)
        takes = "" if positional else metavar or _takes(field.annotation)
        cells = (f"`{called}`", takes, _default(field.default), field.description or "")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _takes(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if get_origin(kind) in (Union, types.UnionType):
        return ", ".join(_takes(each) for each in get_args(kind) if each is not type(None))
    names = {bool: "", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
    return names.get(kind, "a list")


def _default(value: object) -> str:
    if value is None or value in ("", ()):
        return ""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else f"`{value}`"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
    print(f"{FILE.relative_to(ROOT)} is written")
