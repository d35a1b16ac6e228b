"""The line about the step that is at work: on a terminal alone, one line, and gone when something else is shown."""

from __future__ import annotations

import io
import os
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.text import Text

from gsm8k_core import doing as line
from gsm8k_core.doing import WIPE, aside, doing, quiet, start
from gsm8k_core.tracking.region import Region
from gsm8k_core.tracking.terminal import Terminal


class Stream(io.StringIO):
    """stderr, as a terminal of 40 columns or none."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal

    def fileno(self) -> int:
        return 2


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Stream:
    stream = Stream(getattr(request, "param", True))
    monkeypatch.setattr(line, "sys", SimpleNamespace(stderr=stream))  # pytest sets sys.stderr anew before a test
    monkeypatch.setattr(line, "_step", "")
    monkeypatch.setattr(line, "_is_command", True)
    monkeypatch.setattr("os.get_terminal_size", lambda number: os.terminal_size((40, 24)))
    monkeypatch.setenv("TERM", "xterm")
    return stream


def test_each_step_takes_the_place_of_the_one_before(stderr: Stream) -> None:
    doing("reading the problems")
    doing("x" * 60)
    quiet()
    quiet()  # nothing is left to wipe
    first, second, last = stderr.getvalue().split(WIPE)[1:]
    assert first == "reading the problems ..."
    assert len(second) < 40
    assert second.endswith("x ...")
    assert last == ""


def test_a_line_that_is_said_stands_above_it(stderr: Stream, capsys: pytest.CaptureFixture[str]) -> None:
    doing("opening the model")
    Terminal(json_only=False).say("memory   enough")
    assert capsys.readouterr().out == "memory   enough\n"
    assert stderr.getvalue() == f"{WIPE}opening the model ...{WIPE}opening the model ..."
    quiet()
    with aside():
        pass
    assert stderr.getvalue().endswith(WIPE)


@pytest.mark.parametrize("stderr", [False], indirect=True)
def test_a_pipe_gets_none_of_it(stderr: Stream) -> None:
    doing("opening the model")
    with aside():
        quiet()
    assert stderr.getvalue() == ""


def test_a_program_that_calls_a_verb_is_told_nothing_until_the_command_line_starts(
    stderr: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "_is_command", False)
    doing("opening the model")
    assert stderr.getvalue() == ""
    start("starting eval")
    assert stderr.getvalue() == f"{WIPE}starting eval ..."


def test_nor_does_a_terminal_that_knows_no_codes(stderr: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    doing("opening the model")
    monkeypatch.setattr(line, "sys", SimpleNamespace(stderr=None))
    doing("and where there is no stderr at all")
    assert stderr.getvalue() == ""


def test_a_panel_has_the_terminal_to_itself(stderr: Stream) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=80, height=40)
    doing("opening the model")
    before = stderr.getvalue()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(line, "sys", sys)  # whose stderr the region takes
        with Region(screen, lambda columns, rows: [Text("panel")]):
            doing("hashing the model's files")
    assert stderr.getvalue() == before
    assert "hashing" not in screen.file.getvalue()  # type: ignore[attr-defined]
    stderr.rich_proxied_file = stderr  # type: ignore[attr-defined]
    doing("hashing the model's files")
    assert stderr.getvalue() == before


def test_a_terminal_that_is_gone_ends_nothing(stderr: Stream) -> None:
    doing("opening the model")
    stderr.close()
    doing("another step")
    quiet()
