"""What a person sees of a training run while it goes on: a panel made of the run's events, drawn by region.py.

FIGURES says what is shown, in order: a label, the event it is of, and its text; a figure whose event has not come, or
has not that value, is left out. So a method that reports another number adds one line there, and nothing else.
"""

from __future__ import annotations

import math
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import TracebackType
from typing import Any

from rich.text import Text

from gsm8k_core.doing import quiet
from gsm8k_core.tracking.region import Region
from gsm8k_core.tracking.terminal import Terminal, can_draw, clock, printable
from gsm8k_core.types import StepEvent

NARROWEST, LOWEST = 60, 12  # columns and rows of a terminal that it fits; a bar stands on a smaller one
WIDE = 120  # columns from which the answers stand beside the figures
FIGURES_WIDTH = 74  # columns that they have there
LABEL = 9  # columns, as everywhere
CELL = 36  # columns of a figure that shares its line
SHORT = 600.0  # seconds of a budget that whole minutes are too coarse for
SMOOTHED = 0.9  # of the mean so far in each smoothed loss
BARS, PLAIN_BARS = "▁▂▃▄▅▆▇█", ".:-=+*#@"  # of the sparkline, the lowest first
FULL, EMPTY = ("━", "─"), ("#", "-")  # of a bar; the second where a terminal has no such characters
ROLLOUT = "rollout"  # an event for a person alone: how far the answers are that the next update is made of
ASKED = 2  # questions that are shown with their answers
ANSWER_LINES = 2  # of an answer

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: shown once `event` came with all that `text` reads of it."""

    label: str
    event: str
    text: Callable[[Values], str]


def _per_second(values: Values) -> str:
    if "training_speed" in values:  # a policy's: its seconds are the rollout's, too
        sampled = f"{values['sampling_speed']:,.0f} sampled, " if "sampling_speed" in values else ""
        return f"{sampled}{values['training_speed']:,.0f} trained tokens/s"
    return f"{values['num_tokens'] / max(values['seconds'], 1e-9):,.0f} tokens/s, {values['seconds']:.1f} s each"


def _rollout(values: Values) -> str:
    speed = f"{values['sampling_speed']:,.0f} tokens/s"
    return f"{values['answered']} of {values['of']} answers for update {values['update']}, {speed}"


def _dev(values: Values) -> str:
    return f"{values['correct']} of {values['problems']} right at {values['update']}"


FIGURES = (
    Figure("answers", ROLLOUT, _rollout),
    Figure("dev", "dev", _dev),
    Figure("dev loss", "dev", lambda values: f"{values['loss']:.3f}"),
    Figure("guard", "guard", lambda values: f"{_dev(values)}, the base {values['base_correct']}"),
    Figure("solved", "update", lambda values: f"{values['solve_rate']:.0%}"),
    Figure("speed", "update", _per_second),
    Figure("memory", "memory", lambda values: f"{values['peak'] / 2**30:.1f} GiB at the peak"),
    Figure("gradient", "update", lambda values: f"norm {values['grad_norm']:.3g}"),
    Figure("rate", "update", lambda values: f"{values['rate']:.3g}"),
    Figure("trained", "setting", lambda values: f"{millions(values['trained'])} parameters"),
    Figure("saved", "save", lambda values: f"{clock(values['age'])} ago, at {values['update']}"),
)


@dataclass(slots=True)
class Setting:
    """What the panel knows before the first event."""

    title: str
    asked: int  # updates of the whole run, as asked for
    total: int  # as planned
    done: int = 0
    budget: float = 0.0  # seconds
    losses: Sequence[float] = ()  # of the updates that are done
    trained: int | None = None  # parameters
    questions: Sequence[tuple[str, str]] = ()  # of the probe, with the gold number
    base: Mapping[int, str] = field(default_factory=dict)  # what the base answered to them, where it was asked


class Panel:
    """Takes the run's events; inside its `with`, what the terminal says stands above it."""

    def __init__(
        self,
        terminal: Terminal,
        setting: Setting,
        elapsed: Callable[[], float],  # seconds of the run
        peak: Callable[[], int],  # bytes; asked with each update, in the thread that trains
        stopping: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._terminal, self._setting, self._elapsed, self._peak = terminal, setting, elapsed, peak
        self._stopping, self._clock = stopping, clock
        self._bars, self._mark = _marks(getattr(terminal.console.file, "encoding", None) or "utf-8")
        self._seen: dict[str, dict[str, Any]] = {}  # by event, its newest values
        self._losses = list(setting.losses)
        self._old: dict[int, tuple[str, str]] = {at: ("base", text) for at, text in setting.base.items()}
        self._new: dict[int, tuple[str, str]] = {}
        self._region = Region(terminal.console, self.lines, clock)
        if setting.trained is not None:
            self._seen["setting"] = {"trained": setting.trained}

    @classmethod
    def fits(cls, terminal: Terminal) -> bool:
        """Whether the terminal has room for it, and knows the codes."""
        console = terminal.console
        if console.quiet or not can_draw(console) or console.legacy_windows:
            return False
        return console.width >= NARROWEST and console.height >= LOWEST

    def __enter__(self) -> Panel:
        quiet()
        self._terminal.region = self._region
        self._region.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._region.__exit__(kind, error, trace)
        self._terminal.region = None

    @property
    def draws(self) -> int:
        return self._region.draws

    def hear(self, event: StepEvent) -> None:
        """Take an event, and show it soon."""
        values: dict[str, Any] = dict(event.values)
        with self._region.lock:
            self._seen[event.name] = {**values, "at": self._clock()}
            if event.name == "update":
                self._losses.append(values.get("reward", values["loss"]))  # a policy's loss says nothing
                self._seen["memory"] = {"peak": self._peak()}
                self._seen.pop(ROLLOUT, None)  # its answers are this update's
            elif event.name == "probe" and "texts" in values:
                self._take_answers(values)
            if "total" in values:
                self._setting.total = values["total"]
            self._region.draw()

    def _take_answers(self, values: Values) -> None:
        for at, text in enumerate(values["texts"][: len(self._setting.questions)]):
            self._old.setdefault(at, (f"at {values['update']}", text))
            self._new[at] = (f"at {values['update']}", text)

    # --- what is drawn ----------------------------------------------------------------------------------------

    def lines(self, columns: int, rows: int) -> list[Text]:
        """The panel for so many columns, in `rows` lines at most: what matters least is left out first."""
        wide = columns >= WIDE
        width = FIGURES_WIDTH if wide else columns
        head = self._head(width)
        figures = self._figures(width)
        answers = self._answers(columns - FIGURES_WIDTH - 2 if wide else columns)
        if wide:
            return _beside([*head, *figures], answers, width + 2)[:rows]
        room = rows - len(head) - len(figures)
        return [*head, *figures, *answers[: max(room, 0)]][:rows]

    def _head(self, width: int) -> list[Text]:
        update, setting = self._seen.get("update", {}), self._setting
        done, total, now = update.get("update", setting.done), setting.total, self._elapsed()
        ends = f"all {total} updates fit" if total > 1 else "the one update fits"
        if total < setting.asked:
            ends = f"will stop at update {total} of {setting.asked}"
        if self._stopping():
            ends = "stopping after this update; again: at once"
        minutes = f"{now / 60:.0f} of {setting.budget / 60:.0f} min"
        if setting.budget < SHORT:
            minutes = f"{clock(now)} of {clock(setting.budget)}"
        minutes += f", {ends}"
        to_go = f", {clock(update['eta'])} to go" if "eta" in update else ""
        updates = f"{done} of {total}{to_go}"
        length = max(8, min(24, width - LABEL - 2 - max(len(minutes), len(updates))))
        lines = [
            _line("training", setting.title, style="bold"),
            self._bar("budget", now / max(setting.budget, 1e-9), minutes, length),
            self._bar("updates", done / max(total, 1), updates, length),
        ]
        if self._losses:
            lines.append(self._loss("reward" if "reward" in update else "loss", width))
        return lines

    def _bar(self, label: str, share: float, words: str, length: int) -> Text:
        filled = round(max(0.0, min(1.0, share)) * length)
        text = _line(label, self._mark[0] * filled, style="green")
        text.append(self._mark[1] * (length - filled), style="dim")
        return text.append(f"  {words}")

    def _loss(self, label: str, width: int) -> Text:
        said = f"{self._losses[-1]:.3f}, smoothed {smoothed(self._losses):.3f}  "
        room = max(0, min(32, width - LABEL - len(said)))
        return _line(label, said).append(sparkline(self._losses, room, self._bars), style="cyan")

    def _figures(self, width: int) -> list[Text]:
        """Two in a line where both are short enough, else each in its own."""
        found = []
        for figure in FIGURES:
            try:
                found.append((figure.label, figure.text(self._values(figure.event))))
            except (KeyError, TypeError):  # its event has not come, or without this value
                continue
        lines: list[Text] = []
        open_ = False  # whether the last line has room for another one
        for label, text in found:
            short = len(text) <= CELL - LABEL - 1
            if open_ and short:
                lines[-1].append(" " * (CELL - lines[-1].cell_len)).append(f"{label:<{LABEL}}", "dim").append(text)
                open_ = False
                continue
            lines.append(_line(label, text))
            open_ = short and width >= 2 * CELL
        return lines

    def _values(self, event: str) -> Values:
        values = self._seen.get(event, {})
        return {**values, "age": self._clock() - values["at"]} if "at" in values else values

    def _answers(self, width: int) -> list[Text]:
        """What made a probe warn, then each question with its old answer and its new one."""
        probe = self._seen.get("probe", {})
        lines = [
            line
            for warning in probe.get("warnings", ())
            for line in _quoted("warning", f"update {probe['update']}: {warning}", width, "bold red")
        ]
        if (telling := probe.get("telling")) is not None and lines:
            lines += _quoted("it wrote", probe["texts"][telling], width)
        for at, (question, gold) in enumerate(self._setting.questions[:ASKED]):
            if at not in self._new and at not in self._old:
                continue
            lines.append(_line("asked", f"gold {gold}: {_flat(question)}", style="italic"))
            told = [self._old.get(at), self._new.get(at)]
            for name, text in dict.fromkeys(filter(None, told)):
                lines += _quoted(f" {name}", text, width)
        return lines


def smoothed(losses: Sequence[float]) -> float:
    """The exponential moving average, freed of its start as Adam's moments are."""
    mean = weight = 0.0
    for loss in losses[-100:]:  # what came before counts 1 part in 37,000
        mean, weight = SMOOTHED * mean + (1 - SMOOTHED) * loss, SMOOTHED * weight + (1 - SMOOTHED)
    return mean / weight


def sparkline(values: Sequence[float], width: int, bars: str = BARS) -> str:
    """All values in `width` characters at most, each the mean of as many as it stands for."""
    width = min(width, len(values))
    if width < 1:
        return ""
    cuts = [len(values) * place // width for place in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
    if not all(map(math.isfinite, means)):
        return ""
    low, high = min(means), max(means)
    scale = (len(bars) - 1) / (high - low) if high > low else 0.0
    return "".join(bars[round((mean - low) * scale)] for mean in means)


def millions(count: int) -> str:
    """134.5 million, 460,800."""
    return f"{count / 1e6:.1f} million" if count >= 1_000_000 else f"{count:,}"


def _marks(encoding: str) -> tuple[str, tuple[str, str]]:
    try:
        (BARS + "".join(FULL)).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return PLAIN_BARS, EMPTY
    return BARS, FULL


def _line(label: str, text: str, style: str = "") -> Text:
    return Text().append(f"{label:<{LABEL}}", "dim").append(printable(text).replace("\n", " "), style or None)


def _flat(text: str) -> str:
    return " ".join(printable(text).split())


def _quoted(label: str, text: str, width: int, style: str = "") -> list[Text]:
    """A model's words, or others, in ANSWER_LINES at most."""
    room = max(width - LABEL, 8)
    lines = textwrap.wrap(
        _flat(text) or "(nothing)", room, max_lines=ANSWER_LINES, placeholder=" ...", break_on_hyphens=False
    )
    return [_line(name, part, style) for name, part in zip([label, *[""] * ANSWER_LINES], lines, strict=False)]


def _beside(left: Sequence[Text], right: Sequence[Text], width: int) -> list[Text]:
    """Two blocks side by side, the first `width` columns wide."""
    lines = []
    for at in range(max(len(left), len(right))):
        line = left[at].copy() if at < len(left) else Text()
        line.truncate(width, overflow="ellipsis", pad=True)
        lines.append(line.append_text(right[at]) if at < len(right) else line)
    return lines
