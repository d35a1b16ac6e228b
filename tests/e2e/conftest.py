"""A tiny model, a small GSM8K-like folder, and the command line as a person runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import cli
from gsm8k_core.clock import RunClock
from gsm8k_core.models import hub
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


def starts_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that is called in this process starts with the call: a worker may be older than a --max-time."""

    def clock() -> RunClock:
        before = hub.seconds_downloading()  # of other tests
        return RunClock(left_out=lambda: hub.seconds_downloading() - before)

    monkeypatch.setattr("verbs.process_clock", clock)


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run looks at itself as always and does less of it: together 0.4 of its work here.

    A file that is about what is seen has a fixture of this name that leaves all as it is.
    """
    monkeypatch.setattr("gsm8k_core.training.health.PROBE_TOKENS", 8)
    monkeypatch.setattr("gsm8k_core.training.budget.SLOWDOWN_BLOCKS", 1)


@pytest.fixture
def from_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """See starts_now. A file with a clock of its own has a fixture of this name that leaves that one."""
    starts_now(monkeypatch)


@pytest.fixture
def run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    frameworks: None,
    brief: None,
    from_now: None,
) -> Run:
    """`python cli.py ...` in an empty folder, without a Hub; in this process, where torch is loaded once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))

    def call(*arguments: object) -> Done:
        capfd.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        return Done(code, *capfd.readouterr())

    return call
