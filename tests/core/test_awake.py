"""`caffeinate` is held on a Mac for as long as a run lasts. A script of that name stands in for it here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gsm8k_core.clock import kept_awake
from tests.waiting import wait_for

SCRIPT = '#!/bin/sh\necho "$$ $@" > "$NOTE"\nexec sleep 3600\n'


@pytest.fixture
def note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the script notes its own pid and its arguments."""
    program = tmp_path / "bin" / "caffeinate"
    program.parent.mkdir()
    program.write_text(SCRIPT)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("NOTE", str(tmp_path / "note"))
    return tmp_path / "note"


def started(note: Path) -> int:
    """The script's pid, once it runs."""
    wait_for(lambda: note.exists() and note.read_text().endswith("\n"))
    return int(note.read_text().split()[0])


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_mac_is_kept_awake_until_the_end(note: Path) -> None:
    said: list[str] = []
    with kept_awake("Darwin", 4711, said.append):
        pid = started(note)
        assert note.read_text().split()[1:] == ["-i", "-w", "4711"]
        assert lives(pid)
        assert os.getpgid(pid) != os.getpgid(0)  # Ctrl-C does not reach it
    assert not lives(pid)
    assert said == []


def test_it_ends_with_an_error_too(note: Path) -> None:
    with pytest.raises(ValueError, match="no-such"), kept_awake("Darwin", 4711, print):
        int(f"no-such{started(note)}")
    assert not lives(started(note))


def test_elsewhere_nothing_is_started(note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr("gsm8k_core.clock.subprocess.Popen", lambda *given, **more: started.append(given))
    with kept_awake("Linux", 4711, print):
        assert started == []


def test_a_mac_without_it_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said: list[str] = []
    with kept_awake("Darwin", 4711, said.append):
        pass
    assert len(said) == 1
    assert "no caffeinate" in said[0]
