"""Events on disk are strict JSON; nothing that a model says steers the terminal."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from gsm8k_core.tracking.table import table
from gsm8k_core.tracking.terminal import MetricsFile, Screen, Steps, Terminal, clock, printable, wrapped
from gsm8k_core.types import StepEvent, StorageError, counted


def test_each_event_is_one_line_of_strict_json(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics(StepEvent("update", {"update": 1, "loss": 0.5}))
    metrics(StepEvent("update", {"update": 2, "loss": float("nan")}))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()  # readable before it is closed
    metrics.close()

    def refuse(name: str) -> None:
        raise ValueError(name)

    events = [json.loads(line, parse_constant=refuse) for line in lines]
    assert events[0] == {"event": "update", "update": 1, "loss": 0.5}
    assert events[1]["loss"] == "nan"


@pytest.mark.skipif(os.name != "posix", reason="an open file cannot be removed there")
@pytest.mark.parametrize("phase", ["", "rollouts/warm"])
def test_a_file_that_is_gone_is_said_with_the_run_that_goes_on(phase: str, tmp_path: Path) -> None:
    path = tmp_path / phase / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    metrics = MetricsFile(path, tmp_path) if phase else MetricsFile(path)
    path.unlink()
    with pytest.raises(StorageError, match=rf"go on from what is saved with: .* --resume {re.escape(str(tmp_path))}$"):
        metrics(StepEvent("update", {"update": 1, "loss": 0.5}))
    metrics.close()


def test_control_characters_are_replaced() -> None:
    assert printable("a\x1b[31mb\n\x07c") == "a\N{REPLACEMENT CHARACTER}[31mb\n\N{REPLACEMENT CHARACTER}c"


def test_tabs_and_spaces_of_any_width_are_text() -> None:
    kept = "1\N{NO-BREAK SPACE}000\t\N{NARROW NO-BREAK SPACE}\N{IDEOGRAPHIC SPACE}"
    assert printable(kept) == kept
    assert printable("\N{LINE SEPARATOR}\N{RIGHT-TO-LEFT OVERRIDE}") == 2 * "\N{REPLACEMENT CHARACTER}"


def test_a_long_line_goes_on_under_its_words() -> None:
    assert wrapped("model    one two three", 16) == "model    one two\n         three"
    assert wrapped("short\n\n  and indented", 16) == "short\n\n  and indented"


def test_a_path_and_a_command_are_never_broken() -> None:
    path = "runs/" + "x" * 30
    assert wrapped(f"model    in {path}", 20).splitlines()[-1].strip() == path
    command = "python cli.py compare --trained-model runs/a"
    assert wrapped(f"next     {command}; more", 20).splitlines()[1] == f"         {command};"


def test_lines_are_broken_for_a_terminal_and_whole_in_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    line = "model    " + "word " * 40 + "end"
    Terminal(json_only=False).say(line)
    assert capsys.readouterr().out == line + "\n"
    monkeypatch.setenv("COLUMNS", "80")
    Terminal(json_only=False).say(line)
    assert 70 < max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_a_table_has_no_spaces_at_the_ends_of_lines(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal(json_only=False).table(["run", "loss"], [["a", "1.5"], ["a longer one", ""]])
    said = capsys.readouterr().out + table(["run", "loss"], [["one two three ab four five", "1.5"]], 16).plain
    assert "three ab\nfour five" in said
    assert [line for line in said.splitlines() if line != line.rstrip()] == []


COMPARED = [["openai v1", "0.0 % (0.0 to 13.8)", "+0.0"], ["a longer rule", "1.0 % (0.0 to 13.8)", ""]]


@pytest.mark.parametrize(
    ("room", "shown"),
    [
        (None, ["rule                          base  points", "openai v1      0.0 % (0.0 to 13.8)    +0.0"]),
        (37, ["rule                     base  points", "openai    0.0 % (0.0 to 13.8)    +0.0", "v1"]),
        (36, ["rule", "openai v1", "  base    0.0 % (0.0 to 13.8)", "  points  +0.0", "a longer rule"]),
        (24, ["rule", "openai v1", "  base", "    0.0 % (0.0 to 13.8)", "  points  +0.0", "a longer rule"]),
    ],
)
def test_a_table_keeps_its_first_column_and_each_number(room: int | None, shown: list[str]) -> None:
    assert table(["rule", "base", "points"], COMPARED, room).plain.splitlines()[: len(shown)] == shown


def test_what_was_said_in_full_is_said_in_short(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(json_only=False)
    for _ in range(2):
        terminal.say_again("all of it", "short")
    assert capsys.readouterr().out == "all of it\nshort\n"


@pytest.mark.parametrize(("count", "text"), [(0, "0 answers"), (1, "1 answer"), (1319, "1,319 answers")])
def test_one_is_not_many(count: int, text: str) -> None:
    assert counted(count, "answer") == text


def test_json_mode_keeps_stdout_for_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(json_only=True)
    terminal.say("for a person [bold]")
    terminal.result({"a": 1})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"a": 1}
    assert err == "for a person [bold]\n"


@pytest.mark.parametrize(("seconds", "text"), [(9.4, "9 s"), (65, "1 min 05 s"), (3720, "1 h 02 min"), (-3, "0 s")])
def test_times_read_well(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize("width", [80, 40])
def test_on_a_terminal_the_bar_and_the_lines_share_one_console(width: int) -> None:
    from rich.console import Console

    terminal = Terminal(json_only=False)
    out = io.StringIO()
    terminal.console = Console(file=out, force_terminal=True, width=width, color_system=None)
    with terminal.progress("update", 300) as steps:
        terminal.say("plan")
        steps.advance("loss 3.832  0.3 s, 34 s to go, budget 1 h 59 min", done=32)
    assert "\r\x1b[2Kplan" in out.getvalue()  # the bar was wiped before the line
    drawn = out.getvalue().rpartition("\x1b[2K")[2]
    assert drawn.startswith("update ")  # and has room for its name and its numbers beside a long note
    assert " 32/300 loss 3.832 " in drawn


def test_a_bar_whose_terminal_is_gone_raises_nothing_at_its_end() -> None:
    """An error from there would end the run before its model is saved."""

    class Gone(io.StringIO):
        closed_now = False

        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            if self.closed_now:
                raise OSError(5, "Input/output error")
            return super().write(text)

        def flush(self) -> None:
            self.write("")

    terminal = Gone()
    with Steps("update", 3, Console(file=terminal, force_terminal=True)) as steps:
        steps.advance("", done=1)
        terminal.closed_now = True
        steps.advance("", done=2)
        steps.resize(5)
    with pytest.raises(OSError, match="Input/output"):
        terminal.write("")


def test_a_plain_line_has_the_time_of_day_and_the_time_since(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([100.0, 160.0, 160.0, 220.0, 220.0])
    # Its own alone: a server of another test may be at work in this process, and has the process's.
    own = SimpleNamespace(monotonic=lambda: next(now), strftime=lambda form: "14:03:21")
    monkeypatch.setattr("gsm8k_core.tracking.terminal.time", own)
    steps = Steps("problem", 12, Console(stderr=True))  # two of the twelve were there before
    steps.advance(f"1 right (33.3 %), {steps.left(3)} to go", done=3)
    steps.advance(f"2 right (50.0 %), {steps.left(4)} to go", done=4)
    assert capsys.readouterr().err.splitlines() == [
        "problem 3/12  14:03:21 after 1 min 00 s  1 right (33.3 %), 9 min 00 s to go",
        "problem 4/12  14:03:21 after 2 min 00 s  2 right (50.0 %), 8 min 00 s to go",
    ]


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("FORCE_COLOR", "1")])
def test_where_no_bar_can_be_drawn_there_are_lines(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A terminal that knows no codes, and a file that gets colours."""
    monkeypatch.setenv(name, value)
    terminal, out = Terminal(json_only=False), io.StringIO()
    terminal.console = Console(file=out, force_terminal=True)
    with Steps("problem", 2, terminal.console) as steps:
        steps.advance("1 right")
    assert out.getvalue().startswith("problem 1/2  ")
    with terminal.progress("row", 2) as steps:
        steps.advance("")
    assert capsys.readouterr().err.startswith("row 1/2  ")


class Dumb(io.StringIO):
    """A terminal of 36 columns that knows no codes."""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 77


@pytest.mark.parametrize(("columns", "widest"), [("", 36), ("30", 30)])
def test_a_terminal_without_codes_has_its_own_width(columns: str, widest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr("os.get_terminal_size", lambda number: os.terminal_size((36 if number == 77 else 99, 24)))
    terminal, out = Terminal(json_only=False), Dumb()
    terminal.console = Screen(file=out, highlight=False, soft_wrap=True)
    terminal.say("model    " + "word " * 20)
    terminal.table(["rule", "base", "points"], COMPARED)
    with Steps("update", 2, terminal.console) as steps:
        steps.advance("loss 3.832  0.3 s, 34 s to go, budget 1 h 59 min")
    lines = out.getvalue().splitlines()
    assert widest - 9 < max(map(len, lines)) <= widest
    assert {"a longer rule", "  points  +0.0"} <= set(lines)
    assert any(line.startswith("update 1/2  loss ") for line in lines)  # the times had no room
    terminal.console.size = (20, 10)
    assert terminal.room == 20


def test_a_bar_of_what_goes_on_begins_where_it_is() -> None:
    terminal = Terminal(json_only=False)
    out = io.StringIO()
    terminal.console = Screen(file=out, force_terminal=True, width=80)
    with terminal.progress("update", 300, done=120):
        pass
    assert "\x1b[?25" not in out.getvalue()  # the cursor stays: a kill would leave it hidden
    assert "120/300" in out.getvalue()
    assert "  0/300" not in out.getvalue()


def test_a_table_after_lines_that_could_not_be_written_raises_nothing() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    terminal = Terminal(json_only=False)
    terminal.console.file = Full()
    terminal.say("a line")
    terminal.table(["rule", "right"], [["robust", "1"]])
    terminal.say("another")
