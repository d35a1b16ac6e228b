"""The panel of a run: what it shows, that lines stand above it, what it costs, and what it leaves behind."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from gsm8k_core.tracking import panel, region
from gsm8k_core.tracking.panel import ROLLOUT, Figure, Panel, Setting, smoothed, sparkline
from gsm8k_core.tracking.region import Region
from gsm8k_core.tracking.terminal import Terminal
from gsm8k_core.types import StepEvent
from tests.core.tracking.screen import screen

QUESTIONS = [("Natalia sold clips to 48 of her friends. How many?", "72"), ("Weng earns $12 an hour. How much?", "10")]
UPDATE = {"num_tokens": 3300, "grad_norm": 1.23, "rate": 2.9e-5, "seconds": 10.0, "eta": 4740.0, "total": 610}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(region, "TICK", 3600.0)  # the thread is out of the way: what is drawn is counted
    return Clock()


@contextmanager
def watched(
    width: int, clock: Clock, height: int = 40, **changes: Any
) -> Iterator[tuple[Panel, Terminal, io.StringIO]]:
    terminal, out = Terminal(json_only=False), io.StringIO()
    terminal.console = Console(file=out, force_terminal=True, width=width, height=height)
    values: dict[str, Any] = {"budget": 7200.0, "trained": 134515008, "questions": QUESTIONS, "base": {0: "48 clips"}}
    setting = Setting("SmolLM2-135M-Instruct on gsm8k, full, sft", 640, 640, **(values | changes))
    with Panel(terminal, setting, clock, lambda: 2 << 30, clock=clock) as shown:
        yield shown, terminal, out


def hear(shown: Panel, name: str, **values: Any) -> None:
    shown.hear(StepEvent(name, values))


def train(shown: Panel, clock: Clock, updates: int, first: int = 1, seconds: float = 10.0) -> None:
    for update in range(first, first + updates):
        clock.now += seconds
        hear(shown, "update", **UPDATE, update=update, loss=3.0 / update, elapsed=clock.now)


@pytest.mark.parametrize("width", [80, 140])
def test_it_shows_what_a_person_asks_and_fits(width: int, clock: Clock) -> None:
    with watched(width, clock) as (shown, _, out):
        train(shown, clock, 246)
        hear(shown, "dev", update=200, loss=0.61, correct=12, problems=32)
        hear(shown, "save", update=200, folder="x", seconds=3.0)
        clock.now += 42.0
        warnings = ["53% of an answer is one token in a row: the model is collapsing"]
        texts = ["24 + 48 = 72", "12 / 60 = 0.2", "!!!! !!!!", ""]
        hear(shown, "probe", update=225, warnings=warnings, telling=2, texts=texts)
    lines = screen(out.getvalue(), width)
    text = "\n".join(lines)
    assert max(map(len, lines)) < width
    for part in (
        "42 of 120 min, will stop at update 610 of 640",
        "246 of 610, 1 h 19 min to go",
        "0.012, smoothed",
        "12 of 32 right at 200",
        "330 tokens/s",
        "2.0 GiB at the peak",
        "134.5 million parameters",
        "gradient norm 1.23",
        "42 s ago, at 200",
        "one token in a row",
        "it wrote !!!! !!!!",
        " base    48 clips",
        " at 225  24 + 48 = 72",
    ):
        assert part in text, part
    assert "reward" not in text  # a figure whose value no event has
    assert len(lines) <= 14 if width == 140 else len(lines) <= 24  # answers beside the figures, or below


def test_a_policy_has_no_loss_to_show_and_two_speeds(clock: Clock) -> None:
    policy = {**UPDATE, "reward": 0.25, "solve_rate": 0.5, "sampling_speed": 300.0, "training_speed": 5000.0}
    with watched(80, clock) as (shown, _, out):
        for update in (1, 2):
            clock.now += 10
            hear(shown, "update", **policy, update=update, loss=0.001, elapsed=clock.now)
    text = "\n".join(screen(out.getvalue(), 80))
    assert "loss" not in text
    assert "reward   0.250, smoothed 0.250" in text
    assert "300 sampled, 5,000 trained tokens/s" in text
    assert "330 tokens/s" not in text


def test_a_rollout_shows_how_far_it_is_until_its_update_has_come(clock: Clock) -> None:
    values = {"update": 3, "answered": 96, "of": 128, "sampling_speed": 240.2}
    with watched(80, clock) as (shown, _, out):
        train(shown, clock, 2)
        clock.now += 1
        hear(shown, ROLLOUT, **values)
        before = "\n".join(screen(out.getvalue(), 80))
        train(shown, clock, 1, first=3)
        clock.now += 1
        hear(shown, "memory", peak=1 << 30)
    assert "answers  96 of 128 answers for update 3, 240 tokens/s" in before
    assert "for update 3" not in "\n".join(screen(out.getvalue(), 80))


def test_a_file_with_forced_colours_has_no_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(json_only=False)
    terminal.console = Console(file=io.StringIO(), force_terminal=True, width=80, height=40)
    assert Panel.fits(terminal)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not Panel.fits(terminal)


def test_another_figure_is_one_line(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    more = Figure("kl", "update", lambda values: f"{values['kl']:.2f} nats")
    monkeypatch.setattr(panel, "FIGURES", (*panel.FIGURES, more))
    with watched(80, clock) as (shown, _, out):
        hear(shown, "update", **UPDATE, update=1, loss=1.0, elapsed=1.0, kl=0.25)
        clock.now += 1
        hear(shown, "update", **UPDATE, update=2, loss=1.0, elapsed=2.0, kl=0.5)
    assert "kl       0.50 nats" in "\n".join(screen(out.getvalue(), 80))


def test_lines_stand_above_it_whoever_says_them(clock: Clock) -> None:
    streams = (sys.stdout, sys.stderr)
    with watched(80, clock) as (shown, terminal, out):
        train(shown, clock, 3)
        terminal.say("plan     updates are slower than thought")
        print("a library's own words")
        assert sys.stdout.writable() == streams[0].writable()
        assert sys.stdout.buffer is streams[0].buffer
        sys.stderr.write("half a ")
        train(shown, clock, 3, first=4)
        sys.stderr.write("line\n")
        terminal.say("health   update 5: fine")
    lines = screen(out.getvalue(), 80)
    said = [line for line in lines if line.startswith(("plan", "a library", "half a", "health"))]
    assert said[:1] + said[-1:] == lines[:1] + lines[1:2]  # what went to the true streams is not in `out`
    assert sum(line.startswith("training") for line in lines) == 1
    assert lines[2].startswith("training")
    assert (sys.stdout, sys.stderr) == streams


def test_a_thousand_events_in_a_second_are_drawn_a_few_times(clock: Clock) -> None:
    with watched(80, clock) as (shown, _, _):
        before = shown.draws
        train(shown, clock, 1000, seconds=0.001)
        assert shown.draws - before <= 1.0 / region.LEAST
        clock.now += region.LEAST
        train(shown, clock, 1, first=1001)
        assert shown.draws - before >= 2


@pytest.mark.parametrize("narrower", [60, 100])
def test_a_resize_wipes_no_line_of_anybody(narrower: int, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    with watched(80, clock) as (shown, terminal, out):
        terminal.say("before")
        train(shown, clock, 2)
        terminal.console.width = narrower
        train(shown, clock, 2, first=3)
        terminal.say("after")
        train(shown, clock, 2, first=5)
    lines = screen(out.getvalue(), 200)  # a screen on which nothing is ever broken
    assert [line for line in lines if line in ("before", "after")] == ["before", "after"]
    assert sum(line.startswith("training") for line in lines) == (2 if narrower < 80 else 1)
    last = lines[max(at for at, line in enumerate(lines) if line.startswith("training")) :]
    assert max(map(len, last)) < narrower


def test_it_never_is_higher_than_the_screen(clock: Clock) -> None:
    """Lines that have left the screen cannot be drawn over."""
    with watched(80, clock, height=12) as (shown, _, out):
        train(shown, clock, 2)
        hear(shown, "probe", update=2, warnings=[], texts=["a " * 200, "b " * 200, "", ""])
    assert len(screen(out.getvalue(), 80)) <= 12 - region.MARGIN + 1
    console = _terminal(80, 12).console
    with Region(console, lambda columns, rows: [Text("x")] * 50, clock):
        pass
    assert console.file.getvalue().count("x") == 2 * (12 - region.MARGIN)  # type: ignore[attr-defined]
    assert Panel.fits(_terminal(60, 12))
    assert not Panel.fits(_terminal(59, 12))
    quiet = _terminal(80, 24)
    quiet.console.quiet = True
    assert not Panel.fits(quiet)  # of a call from Python
    assert not Panel.fits(_terminal(60, 11))


def _terminal(width: int, height: int) -> Terminal:
    terminal = Terminal(json_only=False)
    terminal.console = Console(file=io.StringIO(), force_terminal=True, width=width, height=height)
    return terminal


def test_an_error_leaves_the_streams_and_the_line_as_they_were(clock: Clock) -> None:
    streams = (sys.stdout, sys.stderr)
    with suppress(KeyboardInterrupt), watched(80, clock) as (shown, terminal, out):
        train(shown, clock, 2)
        raise KeyboardInterrupt
    assert (sys.stdout, sys.stderr) == streams
    assert not terminal.is_drawn
    assert out.getvalue().endswith("\n")
    screen(out.getvalue(), 80)  # raises for a hidden cursor, or another mode


def test_a_terminal_that_is_gone_ends_nothing(clock: Clock) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    terminal = Terminal(json_only=False)
    terminal.console = Console(file=Gone(), force_terminal=True, width=80, height=40)
    with Panel(terminal, Setting("x", 10, 10, budget=60.0), clock, lambda: 0, clock=clock) as shown:
        train(shown, clock, 2)
        terminal.say("a line")
    with pytest.raises(OSError, match="Input/output"):
        Gone().write("")


def test_it_goes_on_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ages, ages while an update takes a minute."""
    monkeypatch.setattr(region, "TICK", 0.001)
    monkeypatch.setattr(region, "LEAST", 0.0)
    import threading

    drawn = threading.Semaphore(0)

    def lines(columns: int, rows: int) -> list[Text]:
        drawn.release()
        return [Text("x")]

    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=40)
    with Region(console, lines):
        for _ in range(5):
            drawn.acquire()
    assert threading.active_count() == 1 or not any(t.name == "panel" for t in threading.enumerate())


def test_a_run_that_goes_on_shows_what_was_before(clock: Clock) -> None:
    with watched(80, clock, done=300, losses=[3.0, 2.0, 1.0], base={}) as (_, _, out):
        pass
    text = "\n".join(screen(out.getvalue(), 80))
    assert "300 of 640" in text
    assert "0 of 120 min" in text
    with watched(80, clock, budget=300.0) as (_, _, out):
        clock.now += 18.0
    assert "18 s of 5 min 00 s, all 640 updates fit" in "\n".join(screen(out.getvalue(), 80))
    assert "loss     1.000" in text


@pytest.mark.parametrize(
    ("values", "width", "line"),
    [([1.0, 2.0, 3.0], 8, "▁▅█"), ([2.0] * 5, 3, "▁▁▁"), ([], 5, ""), ([1.0, float("nan")], 5, ""), ([1.0], 0, "")],
)
def test_a_sparkline(values: list[float], width: int, line: str) -> None:
    assert sparkline(values, width) == line


def test_a_smoothed_loss_is_a_mean_from_the_first_on() -> None:
    assert smoothed([2.0]) == pytest.approx(2.0)
    assert smoothed([2.0, 1.0]) == pytest.approx((0.9 * 0.1 * 2.0 + 0.1 * 1.0) / 0.19)


def test_a_terminal_without_such_characters_gets_plain_ones(clock: Clock) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    terminal = Terminal(json_only=False)
    terminal.console = Console(file=out, force_terminal=True, width=80, height=40)
    with Panel(terminal, Setting("x", 10, 10, budget=60.0), clock, lambda: 0, clock=clock) as shown:
        train(shown, clock, 5)
    out.flush()
    assert b"##" in out.buffer.getvalue()  # type: ignore[attr-defined]
