"""Training watched on a terminal of 80 columns: the panel, Ctrl-C, a kill, and the first sign of life."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backends import installed
from tests.core.tracking.screen import screen

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a pseudo-terminal is POSIX'")
ROOT = Path(__file__).resolve().parents[2]


class Watched:
    """A command on a terminal of its own."""

    def __init__(self, arguments: list[object], folder: Path, columns: int, stdout: int | None = None) -> None:
        import fcntl
        import termios

        self.master, slave = os.openpty()
        self._slave = slave
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        self.modes = termios.tcgetattr(slave)
        environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "CI")}
        environment |= {"TERM": "xterm", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(ROOT / "cli.py"), *map(str, arguments)]
        streams = {"stdin": slave, "stdout": slave if stdout is None else stdout, "stderr": slave}
        self.process = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **streams)  # type: ignore[call-overload]
        self.text, self._came = "", threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                part = os.read(self.master, 65536)
            except OSError:
                part = b""
            with self._came:
                self.text += part.decode(errors="replace").replace("\r\n", "\n")
                self._came.notify_all()
            if not part:
                return

    def wait_for(self, there: Callable[[str], bool]) -> None:
        with self._came:
            self._came.wait_for(lambda: there(self.text) or self.process.poll() is not None)
            assert there(self.text), self.text[-3000:]

    def ended(self) -> int:
        import termios

        code = self.process.wait()
        assert termios.tcgetattr(self._slave) == self.modes
        os.close(self._slave)  # then the reader sees the end
        self._reader.join()
        return code


@contextmanager
def watched(arguments: list[object], folder: Path, columns: int = 80, stdout: int | None = None) -> Iterator[Watched]:
    there = Watched(arguments, folder, columns, stdout)
    try:
        yield there
    finally:
        if there.process.poll() is None:
            os.killpg(there.process.pid, signal.SIGKILL)
            there.process.wait()
        os.close(there.master)


def arguments(model: Path, data: Path, *more: object) -> list[object]:
    small = ["--batch-size", 2, "--gradient-accumulation-steps", 1, "--guard-problems", 0, "--save-steps", 0]
    backend = "mlx" if installed("mlx") else "torch"  # the one that starts in half the time
    given = ["train", "--backend", backend, "--model", model, "--data", data, "--output-dir", "run", *small]
    return [*given, "--learning-rate", "1e-3", *more]


def test_a_run_shows_its_panel_and_leaves_the_terminal_as_it_was(tmp_path: Path, model: Path, data: Path) -> None:
    more = ["--num-epochs", 1, "--probe-steps", 5, "--eval-steps", 10, "--eval-problems", 2]
    with watched(arguments(model, data, *more), tmp_path) as there:
        code = there.ended()
    assert code == 0, there.text
    assert "starting train ..." in there.text[:200]
    steps = ["starting train", "reading the problems", "importing ", "loading the tokenizer", "opening the model"]
    places = [there.text.index(f"{step} ..." if step[-1] != " " else step) for step in steps]
    assert places == sorted(places)
    lines = screen(there.text, 80)
    panel = max(at for at, line in enumerate(lines) if line.startswith("training "))
    assert sum(line.startswith("training ") for line in lines) == 1  # every other one was drawn over
    shown = "\n".join(lines[panel:])
    for part in ("budget ", "updates ", "loss ", "dev ", "GiB at the peak", "tokens/s", "asked ", "done after"):
        assert part in shown, part
    assert all(any(line.startswith(what) for line in lines[:panel]) for what in ("plan ", "dev      update 10"))
    assert not [line for line in lines if line.endswith(" ...") and "loading" in line]  # what was at work is gone


def test_a_run_that_is_stopped_leaves_the_terminal_as_it_was(tmp_path: Path, model: Path, data: Path) -> None:
    """A kill leaves no more than this does: `screen` raises for a code that would stay in force."""
    with watched(arguments(model, data, "--num-epochs", 5000), tmp_path) as there:
        there.wait_for(lambda text: "tokens/s" in text)
        there.process.send_signal(signal.SIGINT)
        code = there.ended()
    lines = screen(there.text, 80)
    assert code == 75
    assert sum(line.startswith("training ") for line in lines) == 1
    assert any("stopped by a signal" in line for line in lines)
