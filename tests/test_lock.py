"""The lock of hashes: what is not in it is not installed, and pip checks what is."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import lock

ROOT = Path(__file__).resolve().parents[1]


def reported(name: str, version: str, **download: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "version": version}, "download_info": download}


def test_every_pinned_version_has_its_hashes() -> None:
    wanted = set(lock.pinned((ROOT / "constraints.txt").read_text()).items())
    assert wanted == set(lock.locked((ROOT / "hashes.txt").read_text()))
    assert len(wanted) > 100


def test_what_pip_would_install_gets_the_hashes_of_the_lock() -> None:
    hashes = lock.locked(f"Jinja2==3.1.6 --hash=sha256:{'0' * 64} --hash=sha256:{'1' * 64}\n")
    here = reported("gsm8k", "1", dir_info={"editable": True})
    report = {"install": [here, reported("jinja2", "3.1.6"), reported("torch", "2.13.0+cpu")]}
    checked, unchecked = lock.requirements(report, hashes)
    assert checked == [f"jinja2==3.1.6 --hash=sha256:{'0' * 64} --hash=sha256:{'1' * 64}"]
    assert unchecked == ["torch==2.13.0+cpu"]
    with pytest.raises(
        SystemExit, match=r"jinja2 3.1.7: not among the files that were tested .* nothing was installed"
    ):
        lock.requirements({"install": [reported("Jinja2", "3.1.7")]}, hashes)


def wheel(folder: Path) -> Path:
    """An empty package `apple`, as small as pip takes it."""
    path = folder / "apple-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("apple-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: apple\nVersion: 1\n")
        file.writestr("apple-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("apple-1.dist-info/RECORD", "")
    return path


@pytest.mark.parametrize("right", [True, False])
def test_another_file_than_the_tested_one_is_not_installed(right: bool, tmp_path: Path) -> None:
    tested = wheel(tmp_path).read_bytes() if right else bytes(wheel(tmp_path).stat().st_size)
    digest = hashlib.sha256(tested).hexdigest()
    (tmp_path / "hashes.txt").write_text(f"apple==1 --hash=sha256:{digest}\n")
    code = f"import lock, pathlib; lock.BUILD = (); lock.HASHES = pathlib.Path({str(tmp_path / 'hashes.txt')!r})\n"
    target = str(tmp_path / "target")
    code += "lock.install('apple')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PIP_TARGET": target, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == right, done.stderr
    assert (Path(target) / "apple-1.dist-info").is_dir() == right
    assert ("DO NOT MATCH THE HASHES" in done.stderr) == (not right)
