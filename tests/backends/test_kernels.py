"""The header of MLX's kernels is compiled once; who cannot keep it builds them as before."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from backends.mlx import kernels

pytestmark = pytest.mark.skipif(os.name != "posix" or shutil.which("g++") is None, reason="there is no g++ here")
ASKED = ("-std=c++17", "-O3", "-Wall", "-fPIC", "-shared")  # by MLX 0.32


@pytest.fixture
def header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A header of MLX's name, and a PATH with the real g++ alone."""
    path = tmp_path / "lib/mlx/include" / kernels.HEADER
    path.parent.mkdir(parents=True)
    path.write_text("#pragma once\ninline int of_the_header() { return 7; }\n")
    (tmp_path / "mlx").mkdir()  # MLX keeps what it builds in such a folder
    (tmp_path / "mlx/kernel.cpp").write_text(
        f'#include "{kernels.HEADER}"\nint found() {{ return of_the_header(); }}\n'
    )
    places = [
        place for place in os.environ["PATH"].split(os.pathsep) if not (Path(place) / kernels.HEADER.parent).is_dir()
    ]
    monkeypatch.setenv("PATH", os.pathsep.join(places))
    monkeypatch.setenv("GSM8K_CACHE", str(tmp_path / "cache"))
    package = SimpleNamespace(submodule_search_locations=[str(tmp_path / "lib/mlx")])
    monkeypatch.setattr(kernels, "find_spec", lambda name: package)
    return path


def build(folder: Path, *flags: str) -> int:
    """What MLX runs for a kernel."""
    source, include = folder / "mlx/kernel.cpp", folder / "lib/mlx/include"
    command = ["g++", *flags, "-I", str(include), str(source), "-o", str(folder / "mlx/kernel.so")]
    return subprocess.run(command, capture_output=True, check=False).returncode


def test_the_header_is_read_once(header: Path, tmp_path: Path) -> None:
    kernels.build_quickly()
    assert build(tmp_path, *ASKED) == 0
    assert list(tmp_path.glob("cache/**/*.gch"))
    header.write_text("#error it was read again\n")
    assert build(tmp_path, *ASKED) == 0
    assert build(tmp_path, *ASKED, "-O0") != 0  # the control: with other flags it is read


def test_it_stands_on_the_path_once(header: Path) -> None:
    kernels.build_quickly()
    once = os.environ["PATH"]
    kernels.build_quickly()
    assert os.environ["PATH"] == once


def test_another_header_is_another_one(header: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.environ["PATH"]
    kernels.build_quickly()
    os.utime(header, ns=(1, 1))
    monkeypatch.setenv("PATH", before)
    kernels.build_quickly()
    assert len(list(tmp_path.glob("cache/*/*/g++"))) == 2


def test_without_a_cache_or_a_header_the_path_stays(header: Path, tmp_path: Path) -> None:
    before = os.environ["PATH"]
    (tmp_path / "cache").write_text("a file")
    kernels.build_quickly()
    assert os.environ["PATH"] == before
    (tmp_path / "cache").unlink()
    header.unlink()
    kernels.build_quickly()
    assert os.environ["PATH"] == before
    assert build(tmp_path, *ASKED) != 0
