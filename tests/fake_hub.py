"""A Hugging Face Hub on loopback: enough of its API for look-ups and downloads, and of its ways to fail.

with FakeHub({("model", "owner/name"): tiny_qwen2()}) as hub:
    ...  # HF_ENDPOINT=hub.url
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import unquote, urlsplit

import pytest

from gsm8k_core.models import hub as hub_source
from tests.tiny import make

KEY = "hf_a_key_that_the_fake_hub_knows"
REVISION = "0123456789abcdef0123456789abcdef01234567"
REAL_MODEL = ("model", "Qwen/Qwen2.5-0.5B-Instruct")
REAL_DATA = ("dataset", "openai/gsm8k")

Repositories = Mapping[tuple[str, str], Mapping[str, bytes]]


class FakeHub:
    """Serves `repositories`: (model or dataset, owner/name) -> file name -> content."""

    def __init__(self, repositories: Repositories) -> None:
        self.repositories = repositories
        self.status: int | None = None  # answer every request with this error
        self.silent = False  # answer nothing, until it is stopped
        self.cut: int | None = None  # close the connection after so many bytes of a file
        self.file_status: int | None = None  # answer every file with this error, as for a gated repository
        self.moved: str | None = None  # redirect every look-up to this address
        self.page: bytes | None = None  # answer every look-up with this, as a captive network does
        self.requests: list[str] = []
        self.tokens: list[str | None] = []
        self.pushed: dict[str, dict[str, bytes]] = {}  # repository -> what was uploaded there
        self.private: dict[str, bool] = {}  # repository that was made -> whether nobody else sees it
        self._stopped = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("_Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # a client that gave up waiting is no error here
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """From here on, connections are refused."""
        if not self._stopped.is_set():
            self._stopped.set()
            self._server.shutdown()
            self._server.server_close()

    def silence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """From here on nothing is answered, and the product waits as long as it does for a person."""
        self.silent = True
        monkeypatch.setattr(hub_source.look_up, "__defaults__", (hub_source.PROBE_SECONDS,))

    def wait(self) -> None:
        self._stopped.wait()

    def find(self, kind: str, path: str) -> tuple[str, Mapping[str, bytes], str] | None:
        """(name, files, the rest of the path) of the repository that the path starts with."""
        for (found_kind, name), files in self.repositories.items():
            if found_kind == kind and (path == name or path.startswith(name + "/")):
                return name, files, path[len(name) + 1 :]
        return None


@dataclass
class Waits:
    """What was waited for: questions, with the seconds that each may take, and sleeps between tries."""

    questions: list[float] = field(default_factory=list)
    sleeps: list[float] = field(default_factory=list)


@contextmanager
def waits() -> Iterator[Waits]:
    """Counts, inside the block, what the product waits for. Each question is still asked; no sleep is slept."""
    found, ask = Waits(), hub_source._ask

    def noted(path: str, timeout: float) -> Any:
        found.questions.append(timeout)
        return ask(path, timeout)

    with mock.patch.object(hub_source, "_ask", noted), mock.patch("time.sleep", found.sleeps.append):
        yield found


class _Sender(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _body(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        parts = []  # a body of unknown length comes in chunks, each with its size before it
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(status)
        standing = {"Content-Length": str(len(body)), "Connection": "close"}  # so that stop() is the end
        for name, value in {**standing, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])


class _Handler(_Sender):
    hub: FakeHub  # of the server that it answers for

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.requests.append(f"{self.command} {path}")
        self.hub.tokens.append(self.headers.get("Authorization"))
        if self.hub.silent:
            self.hub.wait()
            return
        if self.hub.status:
            self._send(self.hub.status, json.dumps({"error": "refused"}).encode())
        elif path == "api/whoami-v2":
            known = self.headers.get("Authorization") == f"Bearer {KEY}"
            self._send(200 if known else 401, b'{"name": "me"}' if known else b"{}")
        elif path.startswith("api/") and self.hub.moved:
            self._send(302, b"", {"Location": self.hub.moved + self.path})
        elif path.startswith("api/") and self.hub.page is not None:
            self._send(200, self.hub.page)
        elif path.startswith("api/"):
            kind, _, name = path.removeprefix("api/").partition("/")
            self._api(kind, name)
        elif path.startswith("datasets/"):
            self._file("dataset", path.removeprefix("datasets/"))
        else:
            self._file("model", path)

    def do_POST(self) -> None:
        """What an upload asks for: a repository, how each file is to come, and the commit that holds them all."""
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.requests.append(f"POST {path}")
        body = self._body()
        if self.hub.status:
            self._send(self.hub.status, json.dumps({"error": "refused"}).encode())
        elif path == "api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.hub.private[name] = asked.get("visibility") == "private"
            self._send(200, json.dumps({"url": f"{self.hub.url}/{name}", "name": name}).encode())
        elif path == "api/validate-yaml":  # of the card's front matter
            self._send(200, b'{"errors": [], "warnings": []}')
        elif path.endswith("/preupload/main"):
            modes = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._send(200, json.dumps({"files": modes}).encode())
        else:
            name = path.removeprefix("api/models/").removesuffix("/commit/main")
            files = self.hub.pushed.setdefault(name, {})
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            done = {"commitUrl": f"{self.hub.url}/{name}/commit/{REVISION}", "commitOid": REVISION, "success": True}
            self._send(200, json.dumps(done).encode())

    def _api(self, kinds: str, path: str) -> None:
        found = self.hub.find(kinds.removesuffix("s"), path)
        if not found:
            self._send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
            return
        name, files, rest = found
        self._send(200, json.dumps(_tree(files) if rest.startswith("tree/") else _info(name, files)).encode())

    def _file(self, kind: str, path: str) -> None:
        found = self.hub.find(kind, path)
        name = found[2].split("/", 2)[2] if found and found[2].startswith("resolve/") else ""
        if self.hub.file_status:
            self._send(self.hub.file_status, b"")
            return
        if not found or name not in found[1]:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        content = found[1][name]
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        headers = {"ETag": f'"{_blob_id(content)}"', "X-Repo-Commit": REVISION}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206 if start else 200, content[start:], headers, self.hub.cut)


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _info(name: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    siblings = [{"rfilename": path, "size": len(content)} for path, content in files.items()]
    return {"id": name, "sha": REVISION, "private": False, "gated": False, "siblings": siblings}


def _tree(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    return [
        {"type": "file", "path": path, "size": len(content), "oid": _blob_id(content)}
        for path, content in files.items()
    ]


def tiny_qwen2() -> dict[str, bytes]:
    """A random Qwen2 as the files of its folder, with decoys that nobody may download."""
    with tempfile.TemporaryDirectory() as folder:
        files = {path.name: path.read_bytes() for path in make(Path(folder), "qwen2").iterdir()}
    decoys = {
        "README.md": b"# Tiny",
        "pytorch_model.bin": b"a pickle",
        "modeling_tiny.py": b"raise SystemExit",
    }
    return {**files, **decoys}


def tiny_gsm8k(config: str = "main", rows: int = 20) -> dict[str, bytes]:
    """`rows` problems as openai/gsm8k's files: two thirds train, the rest test."""
    sums = [f"{n} + 2 = <<{n}+2={n + 2}>>{n + 2}\n#### {n + 2}" for n in range(rows)]
    problems = [
        {"question": f"Tom has {n} apples and buys 2. How many?", "answer": answer} for n, answer in enumerate(sums)
    ]
    cut = 2 * rows // 3
    return {
        "README.md": b"# A tiny data set\n",
        f"{config}/train-00000-of-00001.parquet": _parquet(problems[:cut]),
        f"{config}/test-00000-of-00001.parquet": _parquet(problems[cut:]),
    }


def _parquet(rows: list[dict[str, str]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()
