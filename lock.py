"""Install what was tested and no other file: the versions of constraints.txt, the sha256 of hashes.txt.

    python lock.py install TARGET...   what pip would install for these, each file checked by pip against its hash
    python lock.py write               ask the package index for the hashes of all that constraints.txt names

Runs in the environment that it installs into, with nothing but pip. pip cannot ask hashes of an editable project, so
it is asked first what it would install (a dry run), then to install just that with `--require-hashes`, and last to
link the project itself, whose build tools are then there. PyTorch's own builds (versions such as 2.13.0+cpu, from
TORCH_INDEX) are not on the index that the hashes come from: they are named and not checked.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
CONSTRAINTS, HASHES = ROOT / "constraints.txt", ROOT / "hashes.txt"
BUILD = ("hatchling", "editables")  # what links the project, which is done without an environment of its own
# The platforms of constraints.txt: Python 3.11 to 3.14, Linux (glibc) and macOS (arm64).
PYTHONS = re.compile(r"-(py3|py2\.py3|cp31[1-4])-|-cp3\d+-abi3-")
PLATFORMS = re.compile(r"-any\.whl$|manylinux[^-]*_(x86_64|aarch64)\.whl$|macosx[^-]*_(arm64|universal2)\.whl$")
SOURCES = (".tar.gz", ".zip")  # of a package without a wheel
HEADER = """\
# The sha256 of every file that constraints.txt may install. Written by `python lock.py write`; checked by the set-up.
"""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(text: str) -> dict[str, str]:
    """Version by name, of lines `name==version`, with or without a marker."""
    return {canonical(name): version for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.M)}


def locked(text: str) -> dict[tuple[str, str], list[str]]:
    """Hashes by name and version, of lines `name==version --hash=sha256:... --hash=...`."""
    lines = re.findall(r"^([\w.-]+)==(\S+)((?: --hash=sha256:[0-9a-f]{64})+)$", text, re.M)
    return {(canonical(name), version): hashes.split() for name, version, hashes in lines}


def requirements(report: dict[str, Any], hashes: dict[tuple[str, str], list[str]]) -> tuple[list[str], list[str]]:
    """(lines with hashes, PyTorch's own builds) for pip's report of what it would install.

    Raises SystemExit where a file is not in the lock.
    """
    checked, unchecked, missing = [], [], []
    for item in report["install"]:
        if "dir_info" in item["download_info"]:  # the project itself
            continue
        name, version = canonical(item["metadata"]["name"]), item["metadata"]["version"]
        if name == "torch" and "+" in version:
            unchecked.append(f"{name}=={version}")
        elif (name, version) in hashes:
            checked.append(" ".join([f"{name}=={version}", *hashes[name, version]]))
        else:
            missing.append(f"{name} {version}")
    if missing:
        sys.exit(
            f"{', '.join(missing)}: not among the files that were tested (hashes.txt); nothing was installed. "
            "If you changed constraints.txt: python lock.py write"
        )
    return checked, unchecked


def pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "install", "-qq", *arguments], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def install(*targets: str) -> None:
    hashes = locked(HASHES.read_text())
    with tempfile.TemporaryDirectory() as folder:
        report, lines = Path(folder) / "report.json", Path(folder) / "requirements.txt"
        pip("--dry-run", "--report", str(report), *BUILD, *targets)
        checked, unchecked = requirements(json.loads(report.read_text()), hashes)
        for target in unchecked:
            print(f"{target} is PyTorch's own build: its hash is not checked")
            pip("--no-deps", target)
        lines.write_text("\n".join(checked))
        if checked:
            # A constraint without a hash would be refused in this mode; the lines are pinned themselves.
            os.environ.pop("PIP_CONSTRAINT", None)
            pip("--no-deps", "--require-hashes", "-r", str(lines))
    if "-e" in targets:
        pip("--no-deps", "--no-build-isolation", "-e", ".")


def files_of(name: str, version: str) -> list[str]:
    """The hashes of the files of that version for our platforms: wheels, or its source where there are none."""
    from pip._internal.models.index import PyPI

    request = urllib.request.Request(
        f"{PyPI.simple_url}/{name}/", headers={"Accept": "application/vnd.pypi.simple.v1+json"}
    )
    with urllib.request.urlopen(request, context=ssl.create_default_context()) as answer:
        files = {file["filename"]: file["hashes"]["sha256"] for file in json.load(answer)["files"]}
    ours = {f: h for f, h in files.items() if f.endswith((".whl", *SOURCES)) and _version(f, name) == version}
    wheels = [h for f, h in ours.items() if PYTHONS.search(f) and PLATFORMS.search(f)]
    return sorted(wheels or ours.values())


def _version(file: str, name: str) -> str:
    """Of a file's name: what stands behind the project's."""
    rest = file[len(name) + 1 :]
    return next((rest.removesuffix(kind) for kind in SOURCES if file.endswith(kind)), rest.split("-")[0])


def write() -> None:
    lines = []
    for name, version in sorted(pinned(CONSTRAINTS.read_text()).items()):
        hashes = files_of(name, version)
        if not hashes:
            sys.exit(f"{name} {version}: the package index has no file of it for our platforms")
        lines.append(" ".join([f"{name}=={version}", *(f"--hash=sha256:{value}" for value in hashes)]))
    HASHES.write_text(HEADER + "\n".join(lines) + "\n")
    print(f"{len(lines)} packages")


if __name__ == "__main__":
    command, *rest = sys.argv[1:] or [""]
    {"install": install, "write": write}.get(command, lambda *unused: sys.exit(__doc__))(*rest)
