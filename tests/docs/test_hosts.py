"""Which hosts our files name: places to read, and the tests' own. Packages are asked for by name alone, so that a
mirror, a proxy or a private index serves them as well."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TO_READ = {"git-lfs.github.com", "github.com", "huggingface.co", "pytorch.org", "reviews.llvm.org", "www.w3.org"}
IN_TESTS = {"127.0.0.1", "example.com", "evil.example", "localhost"}
URL = re.compile(r"https?://(?:[^\s/@'\"]*@)?([A-Za-z0-9.-]+)")


def hosts(text: str) -> set[str]:
    return {host for host in URL.findall(text) if "." in host}


def our_files() -> list[Path]:
    places = [
        ROOT / name for name in ("backends", "benchmarks", "docs", "gsm8k_core", "tests", "verbs", ".ci", ".github")
    ]
    files = [path for place in places for path in place.rglob("*")] + list(ROOT.glob("*"))
    return [path for path in files if path.is_file() and path.suffix not in (".png", ".pyc", ".jsonl")]


def test_no_file_names_another_host() -> None:
    files = our_files()
    assert len(files) > 200
    named = {path: hosts(path.read_text(encoding="utf-8")) for path in files}
    assert {path: found for path, found in named.items() if found - TO_READ - IN_TESTS} == {}


def test_a_registrys_host_would_be_found() -> None:
    text = 'curl "https://' + "registry.packages.dev/x.tgz" + '"; git clone https://me:pw@' + "git.dev/y"
    assert hosts(text) - TO_READ - IN_TESTS == {"registry.packages.dev", "git.dev"}
