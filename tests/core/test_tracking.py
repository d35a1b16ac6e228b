"""Events on disk are strict JSON; nothing that a model says steers the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gsm8k_core.tracking import MetricsFile, Terminal, clock, printable
from gsm8k_core.types import StepEvent


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


def test_control_characters_are_replaced() -> None:
    assert printable("a\x1b[31mb\n\x07c") == "a\N{REPLACEMENT CHARACTER}[31mb\n\N{REPLACEMENT CHARACTER}c"


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
