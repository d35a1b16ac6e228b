"""The card of an export: what compare wrote of the same weights, and what became of them, file by file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from gsm8k_core.report.card import HUB_ID, code, escaped
from gsm8k_core.report.words import visible
from gsm8k_core.types import counted

HERE = "## This export"
LIMITS = (
    "It was trained on grade-school word problems in English and nothing else, and answers other questions no better "
    "than its base. A number that it gives may be wrong although every line reads well: check what matters."
)


@dataclass(frozen=True, slots=True)
class Taken:
    """What is told of an export."""

    name: str
    what: str  # "a GGUF file, weights in q8_0"
    library: str  # as the Hub calls it: transformers, mlx, gguf
    hash: str  # of the model that it was made from
    manifest: Mapping[str, Any]  # run.json, empty where it is of no run
    updates: int | None  # that these weights have behind them; None where that is not known
    files: Mapping[str, str]  # name -> sha256
    versions: Mapping[str, str]


def make_export_card(taken: Taken, card: str | None) -> str:
    """`card` is compare's text of the very model that was exported; without one, there are no scores to show."""
    front, body = _parts(card) if card else ({}, "")
    if not body:
        body = (
            f"# {escaped(taken.name)}\n\nNot measured: `compare` has not been run on these weights, so nothing is "
            "known of whether they are better than their base.\n"
        )
    meta = {**_front(taken), **front, "library_name": taken.library}
    meta["tags"] = list(dict.fromkeys([*(front.get("tags") or ["gsm8k", "gsm8k-finetune"]), taken.library]))
    text = yaml.safe_dump(meta, sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{text}---\n{body.rstrip()}\n\n" + "\n".join(_section(taken, bool(card))) + "\n"


def _parts(card: str) -> tuple[dict[str, Any], str]:
    """Its front matter and the text; nothing where it is no card of ours."""
    pieces = card.split("---\n", 2)
    if len(pieces) != 3 or pieces[0]:
        return {}, ""
    try:
        front = yaml.safe_load(pieces[1])
    except (yaml.YAMLError, RecursionError):
        return {}, ""
    return (front, pieces[2]) if isinstance(front, dict) else ({}, "")


def _front(taken: Taken) -> dict[str, Any]:
    base = str((taken.manifest.get("model") or {}).get("name", ""))
    data = str((taken.manifest.get("data") or {}).get("name", "")).split(" ")[0]
    meta: dict[str, Any] = {"library_name": taken.library, "pipeline_tag": "text-generation"}
    if HUB_ID.fullmatch(base):
        meta["base_model"] = base
    if HUB_ID.fullmatch(data):
        meta["datasets"] = [data]
    return meta


def _section(taken: Taken, measured: bool) -> list[str]:
    lines = [HERE, "", f"{escaped(taken.what[:1].upper() + taken.what[1:])}."]
    if measured:
        lines[-1] += (
            " The scores above are of the model that it was made from; rounded weights answer otherwise at times."
        )
    lines += ["", f"- made from: {_sha256(taken.hash)}"]
    for key, what in (("model", "base"), ("data", "data")):
        found = taken.manifest.get(key) or {}
        if found.get("name"):
            lines += [f"- {what}: {code(found['name'])}{_digests(found.get('hash') or found.get('sha256'))}"]
    if taken.updates and (rows := _rows(taken.manifest)):
        lines += [f"- trained: {counted(taken.updates, 'update')} over {counted(rows, 'row')}"]
    lines += [
        f"- versions: {', '.join(f'{escaped(name)} {code(value)}' for name, value in taken.versions.items())}",
        "",
    ]
    lines += ["| file | sha256 |", "| --- | --- |"]
    lines += [f"| {code(visible(name))} | {code(digest)} |" for name, digest in taken.files.items()]
    return [*lines, "", "## Limits", "", LIMITS] if taken.manifest else lines


def _rows(manifest: Mapping[str, Any]) -> int | None:
    """The training rows; of --recipe rft those of its last training, the model's own answers among them."""
    rows: int | None = (manifest.get("trained") or {}).get("rows") or (manifest.get("rows") or {}).get("train")
    return rows


def _digests(found: object) -> str:
    """A model has one, data one a split."""
    if isinstance(found, Mapping):
        return "".join(f", sha256 of {escaped(str(split))} {code(digest)}" for split, digest in found.items())
    return f", {_sha256(found)}" if found else ""


def _sha256(digest: object) -> str:
    """Of an adapter, or of weights in few bits, a model has a short one, over the files that it is made of."""
    digits = len(str(digest))
    return f"{'' if digits == 64 else f'the first {digits} digits of a '}sha256 {code(digest)}"
