"""The Hugging Face Hub: what is cached, whether it answers, and downloads with their size announced first.

What is cached is used without the network. What is asked of the Hub before a download has a hard time limit,
even with a name server that hangs. HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are read at each call.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from gsm8k_core.types import DataError, StorageError

Kind = Literal["model", "dataset"]
Announce = Callable[[str], None]
T = TypeVar("T")

PROBE_SECONDS = 1.2
HUB = "https://huggingface.co"
PROBE_REPO = "Qwen/Qwen2.5-0.5B-Instruct"
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
OFFLINE_KEYS = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


class Unavailable(Exception):
    """The Hub did not give what was asked: `str()` is the reason, `advice` what a person can do."""

    def __init__(self, reason: str, advice: str = "go online") -> None:
        super().__init__(reason)
        self.advice = advice


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository on the Hub."""

    repo: str
    kind: Kind
    files: Mapping[str, int]  # path in the repository -> bytes


def is_hub_id(reference: str) -> bool:
    """Whether it can be a repository's name: `name` or `owner/name`."""
    return bool(re.fullmatch(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?", reference, re.ASCII)) and not (
        ".." in reference or "--" in reference
    )


def looks_like_path(reference: str) -> bool:
    """Whether a person meant a place on this machine, be it there or not."""
    return reference.startswith((".", "/", "~")) or "\\" in reference or reference.count("/") > 1


def endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def hub_cache() -> Path:
    """Where huggingface_hub keeps what it downloads."""
    for key in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if chosen := os.environ.get(key):
            return Path(os.path.expandvars(chosen)).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(caches, "huggingface")
    return Path(os.path.expandvars(home)).expanduser() / "hub"


def cached_snapshots(repo: str, kind: Kind) -> Iterator[Path]:
    """The cached versions of a repository, whole or not: the one called main first, then the newest."""
    folder = hub_cache() / f"{kind}s--{repo.replace('/', '--')}"
    try:
        main = (folder / "refs" / "main").read_text().strip()
        others = [path for path in (folder / "snapshots").iterdir() if path.is_dir()]
    except OSError:
        main, others = "", [path for path in folder.glob("snapshots/*") if path.is_dir()]
    yield from sorted(others, key=lambda path: (path.name != main, -path.stat().st_mtime))


def hub_reachable(timeout: float = PROBE_SECONDS) -> str | None:
    """None when the Hub answers, else the reason why not, within `timeout` seconds."""
    try:
        look_up(PROBE_REPO, "model", timeout)
    except Unavailable as error:
        return str(error)
    return None


def look_up(repo: str, kind: Kind, timeout: float = PROBE_SECONDS) -> Listing:
    """The repository's files and their sizes, or Unavailable, within `timeout` seconds."""
    for key in OFFLINE_KEYS:
        if (os.environ.get(key) or "").upper() in ("1", "ON", "YES", "TRUE"):
            raise Unavailable(f"{key} is set", f"unset {key}")
    from huggingface_hub import HfApi  # heavy: a third of a second
    from huggingface_hub.errors import HfHubHTTPError

    def ask() -> Listing:
        api = HfApi(endpoint=endpoint())
        info = (api.model_info if kind == "model" else api.dataset_info)(
            repo, timeout=timeout, files_metadata=True
        )
        return Listing(repo, kind, {file.rfilename: file.size or 0 for file in info.siblings or []})

    try:
        return _bounded(ask, timeout)
    except HfHubHTTPError as error:
        raise _http_reason(error.response.status_code, kind) from None
    except Unavailable:
        raise
    except Exception as error:  # whatever the network library raises: there is one answer to it
        raise Unavailable(f"the Hub could not be reached ({_first_line(error)})") from None


def download(listing: Listing, names: Sequence[str], announce: Announce) -> Path:
    """Downloads these files of the repository into the Hub's cache; returns their folder."""
    from huggingface_hub import snapshot_download  # heavy: a third of a second
    from huggingface_hub.errors import HfHubHTTPError

    size = sum(listing.files[name] for name in names)
    announce(f"downloading {listing.repo} from {shown_endpoint()}: {human_size(size)} in {len(names)} files")
    again = "what has come is kept; run the same command again, or work without the Hub (--model embedded)"
    try:
        return Path(
            snapshot_download(
                listing.repo,
                repo_type=listing.kind,
                allow_patterns=list(names),
                cache_dir=hub_cache(),
                endpoint=endpoint(),
            )
        )
    except HfHubHTTPError as error:
        reason = _http_reason(error.response.status_code, listing.kind)
        raise DataError(f"{listing.repo} was not downloaded: {reason}; {reason.advice}") from None
    except Exception as error:  # whatever the network library raises: there is one answer to it
        if isinstance(error, OSError) and error.errno in CANNOT_WRITE:
            raise StorageError(
                f"{listing.repo} was not downloaded: "
                f"{hub_cache()}: {error.strerror}; set HF_HOME to another disk"
            ) from None
        raise DataError(f"{listing.repo} was not downloaded whole ({_first_line(error)}); {again}") from None


def local_path(reference: str) -> Path | None:
    """The existing file or folder that the reference names, or None."""
    text = os.path.expanduser(reference)
    return Path(text) if reference.strip() and os.path.exists(text) else None


def human_size(size: int) -> str:
    """988097824 -> "988 MB"."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} bytes"


def _bounded(work: Callable[[], T], seconds: float) -> T:
    """A socket's time limit does not cover the name look-up; waiting for a daemon thread covers all."""
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors and not _is_timeout(errors[0]):
        raise errors[0]
    if not results:
        raise Unavailable(f"the Hub did not answer in {seconds:g} s")
    return results[0]


def _is_timeout(error: Exception) -> bool:
    return "Timeout" in type(error).__name__


def _http_reason(status: int, kind: Kind) -> Unavailable:
    if status == 404:
        return Unavailable(f"the Hub has no such {kind} (404)", "check the name")
    if status in (401, 403):
        return Unavailable(
            f"the Hub refused it ({status}: it is private, gated, or has another name)",
            "check the name, or log in with `hf auth login`",
        )
    return Unavailable(f"the Hub answered with an error ({status})", "try later")


def shown_endpoint() -> str:
    """The Hub's address without a user name or password in it."""
    return _without_secrets(endpoint())


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return _without_secrets(re.sub(r"\[Errno -?\d+\] ", "", line))[:160]


def _without_secrets(text: str) -> str:
    return re.sub(r"//[^/@\s]+@", "//", re.sub(r"(?i)hf_\w+|bearer\s+\S+", "[token]", text))
