"""A tiny model, a small GSM8K-like folder, and the command line as a person runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import cli
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("e2e") / "tiny-llama", "llama")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("e2e") / "data"
    folder.mkdir()
    for split, count in (("train", 60), ("test", 8)):
        rows = []
        for n in range(count):
            a, b = 2 + n % 4, 2 + n % 3
            question = f"Tom has {a} apples . he buys {b} more {split} {n} . how many ?"
            rows.append(
                {"question": question, "answer": f"he has {a} + {b} = <<{a}+{b}={a + b}>> {a + b} .\n#### {a + b}"}
            )
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@dataclass(frozen=True)
class Done:
    """What a call of the command line left: its exit code and what it printed."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], frameworks: None) -> Run:
    """`python cli.py ...` in an empty folder, without a Hub; in this process, where torch is loaded once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))

    def call(*arguments: object) -> Done:
        capfd.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        return Done(code, *capfd.readouterr())

    return call
