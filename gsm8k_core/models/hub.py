"""The Hugging Face Hub: what is cached, whether it answers, and downloads with their size announced first.

What is cached is used without the network. What is asked of the Hub before a download has a hard time limit,
even with a name server that hangs. HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are read at each call.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import math
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from gsm8k_core.clock import through_sleep
from gsm8k_core.doing import doing, quiet
from gsm8k_core.files import home_path, read_plain
from gsm8k_core.types import DataError, GSM8KError, StorageError, counted, first_line

if TYPE_CHECKING:
    import ssl

Kind = Literal["model", "dataset"]
Announce = Callable[[str], None]
T = TypeVar("T")

ANSWER_SECONDS = 20.0  # of a question that a person waits for
PROBE_SECONDS = 1.0  # with the start of Python and a busy machine, a refusal stays under two seconds
MAX_NAME_BYTES = 1 << 16  # of a file that holds one name, or one key
MAX_ANSWER_BYTES = 16 << 20
HUB = "https://huggingface.co"
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
_DOWNLOADS: list[float] = []  # seconds of each download of this process
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
    revision: str = ""  # the commit that was asked for; "": the newest


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
            return home_path(os.path.expandvars(chosen), key)
    return _hub_home() / "hub"


def _hub_home() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(caches, "huggingface")
    return home_path(os.path.expandvars(home), "HF_HOME")


def cached_snapshots(repo: str, kind: Kind) -> Iterator[Path]:
    """The cached versions of a repository, whole or not: the one called main first, then the newest."""
    folder = hub_cache() / f"{kind}s--{repo.replace('/', '--')}"
    try:
        main = read_plain(folder / "refs" / "main", MAX_NAME_BYTES).decode().strip()
        others = [path for path in (folder / "snapshots").iterdir() if path.is_dir()]
    except (OSError, ValueError, DataError):
        main, others = "", [path for path in folder.glob("snapshots/*") if path.is_dir()]
    yield from sorted(others, key=lambda path: (path.name != main, -path.stat().st_mtime))


def revision_of(path: Path) -> str:
    """The commit of a file in the Hub's cache; nothing where the path says none."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-2] else ""


def look_up(repo: str, kind: Kind, timeout: float = PROBE_SECONDS, *, revision: str = "") -> Listing:
    """The repository's files and their sizes, or Unavailable, within `timeout` seconds."""
    for key in filter(_is_on, OFFLINE_KEYS):
        raise Unavailable(f"{key} is set", f"unset {key}")
    doing(f"asking {shown_endpoint()} for {repo}")
    from http.client import HTTPException  # heavy, with urllib: a tenth of a second
    from urllib.error import HTTPError

    from gsm8k_core.models.repository import Repository  # it brings pydantic, which train's parent does without

    try:
        place = f"{repo}/revision/{revision}" if revision else repo
        info = _bounded(lambda: _ask(f"api/{kind}s/{place}?blobs=true", timeout), timeout)
        found = Repository.model_validate(info)
        return Listing(repo, kind, {file.rfilename: file.size or 0 for file in found.siblings}, revision)
    except HTTPError as error:
        raise _http_reason(error.code, kind) from None
    except (OSError, HTTPException) as error:
        raise Unavailable(f"the Hub could not be reached ({_reason(error)})") from None
    except (ValueError, RecursionError):  # no JSON, or no listing
        raise Unavailable(f"{shown_endpoint()} does not answer as a Hub does", "check HF_ENDPOINT") from None


def _is_on(key: str) -> bool:
    return (os.environ.get(key) or "").upper() in ("1", "ON", "YES", "TRUE")


def download(listing: Listing, names: Sequence[str], announce: Announce) -> Path:
    """Downloads these files of the repository into the Hub's cache; returns their folder."""
    from huggingface_hub import snapshot_download  # heavy: a third of a second

    size = sum(listing.files[name] for name in names)
    quiet()  # the library draws bars of its own
    announce(f"downloading {listing.repo} from {shown_endpoint()}: {human_size(size)} in {counted(len(names), 'file')}")
    began = through_sleep()
    try:
        return Path(
            snapshot_download(
                listing.repo,
                repo_type=listing.kind,
                allow_patterns=list(names),
                cache_dir=hub_cache(),
                endpoint=endpoint(),
                revision=listing.revision or None,
            )
        )
    except Exception as error:  # whatever the network library raises
        raise _download_error(listing, error) from None
    finally:
        _DOWNLOADS.append(through_sleep() - began)


def check_push(repo: str) -> None:
    """Raises DataError where nothing could be uploaded to `repo`: no connection, no key, or another's name."""
    if (key := next((key for key in OFFLINE_KEYS if _is_on(key)), None)) is not None:
        raise DataError(f"--push {repo}: {key} is set; unset {key}")
    if _token() is None:
        raise DataError(f"--push {repo} needs a key of the Hub; log in with `hf auth login`, or set HF_TOKEN")
    try:
        _bounded(lambda: _ask("api/whoami-v2", ANSWER_SECONDS), ANSWER_SECONDS)
    except Unavailable as error:
        raise DataError(f"--push {repo}: {error}; {error.advice}") from None
    except Exception as error:  # whatever the network library raises
        status = getattr(error, "code", None)
        what = (
            "the Hub does not know this key"
            if status in (401, 403)
            else f"the Hub could not be reached ({_reason(error)})"
        )
        raise DataError(f"--push {repo}: {what}; log in with `hf auth login`") from None


def upload(folder: Path, repo: str, announce: Announce) -> str:
    """The repository's address, after its folder there became `folder`; a new one is private. Raises DataError."""
    from huggingface_hub import HfApi  # heavy: a third of a second

    announce(f"pushing  {folder} to {shown_endpoint()}/{repo}")
    api = HfApi(endpoint=endpoint(), token=_token())
    try:
        api.create_repo(repo, private=True, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload by gsm8k-finetune")
    except Exception as error:  # whatever the network library raises
        status = getattr(getattr(error, "response", None), "status_code", None)
        what = _http_reason(status, "model") if isinstance(status, int) and status >= 400 else _reason(error)
        raise DataError(f"{repo} was not uploaded: {what}") from None
    return f"{shown_endpoint()}/{repo}"


def seconds_downloading() -> float:
    """What this process has spent on downloads: a time budget does not count it."""
    return math.fsum(_DOWNLOADS)


def _download_error(listing: Listing, error: Exception) -> GSM8KError:
    if isinstance(error, OSError) and error.errno in CANNOT_WRITE:
        where = f"{hub_cache()}: {error.strerror}"
        return StorageError(f"{listing.repo} was not downloaded: {where}; set HF_HOME to another disk")
    cause: BaseException | None = error  # huggingface_hub wraps the Hub's answer in errors of its own
    while cause is not None:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int) and status >= 400:
            reason = _http_reason(status, listing.kind)
            return DataError(f"{listing.repo} was not downloaded: {reason}; {reason.advice}")
        cause = cause.__cause__
    return DataError(
        f"{listing.repo} was not downloaded whole ({_reason(error)}); what has come is kept: run the same command again"
    )


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


def _ask(path: str, timeout: float) -> Any:
    """One request, and nothing else: huggingface_hub itself would first ask for a list of known agents."""
    from urllib.request import Request, urlopen

    if not endpoint().startswith(("http://", "https://")):
        raise ValueError("not a web address")
    request = Request(f"{endpoint()}/{path}", headers={"User-Agent": "gsm8k-finetune"})
    if token := _token():
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    with urlopen(request, timeout=timeout, context=_trust()) as response:
        return json.loads(response.read(MAX_ANSWER_BYTES))


def _trust() -> ssl.SSLContext:
    """The system's certificates, as huggingface_hub takes them: python.org's Python for macOS has none."""
    import ssl

    if importlib.util.find_spec("truststore") is None:
        return ssl.create_default_context()
    import truststore

    return truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _token() -> str | None:
    """The person's Hub token, from where huggingface_hub keeps it. It goes to the Hub and nowhere else."""
    for key in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if token := "".join((os.environ.get(key) or "").split()):
            return token
    path = Path(os.environ.get("HF_TOKEN_PATH") or _hub_home() / "token")
    try:
        return "".join(read_plain(path, MAX_NAME_BYTES).decode().split()) or None
    except (OSError, ValueError, DataError):
        return None


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
    return isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError)


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


def _reason(error: Exception) -> str:
    """In plain words: without a number, and without the frame that urllib puts around it."""
    bare = re.sub(r"<urlopen error ([^<>]*)>", r"\1", re.sub(r"\[Errno -?\d+\] ", "", first_line(error)))
    return _without_secrets(bare)[:160]


def _without_secrets(text: str) -> str:
    return re.sub(r"//[^/@\s]+@", "//", re.sub(r"(?i)hf_\w+|bearer\s+\S+", "[token]", text))
