"""Trackers that behave, and trackers that do everything a tracker must not do. Each runs in a process of its own."""

from __future__ import annotations

import hashlib
import json
import netrc
import os
import subprocess
import sys
import time
from pathlib import Path

from gsm8k_core.tracking.trackers import RunInfo, measures
from gsm8k_core.types import StepEvent

AGES = 100_000.0


class Good:
    """Keeps what it gets in stub.json."""

    def start(self, run: RunInfo) -> str:
        self.file = Path(run.folder) / "stub.json"
        self.kept: dict[str, object] = {"run": run.name, "settings": run.settings, "events": []}
        return "kept in stub.json"

    def event(self, event: StepEvent) -> None:
        self.kept["events"] += [[event.name, event.values.get("update"), measures(event)]]  # type: ignore[operator]

    def close(self) -> None:
        self.file.write_text(json.dumps(self.kept))


class HangsOnStart(Good):
    def start(self, run: RunInfo) -> str:
        time.sleep(AGES)
        return ""


class HangsOnEvent(Good):
    def event(self, event: StepEvent) -> None:
        time.sleep(AGES)


class HangsOnClose(Good):
    def close(self) -> None:
        time.sleep(AGES)


class Spins(Good):
    def event(self, event: StepEvent) -> None:
        while True:
            pass


class Asks(Good):
    """Prints a prompt and waits for an answer, on the terminal where there is one."""

    def start(self, run: RunInfo) -> str:
        try:
            with open("/dev/tty") as terminal:
                terminal.readline()
        except OSError:
            return input("wandb: Enter your choice: ")
        raise AssertionError("it has a terminal")


class RaisesOnStart(Good):
    def start(self, run: RunInfo) -> str:
        raise RuntimeError("no route\nto host")


class RaisesOnEvent(Good):
    def event(self, event: StepEvent) -> None:
        if event.name == "update":
            raise ValueError("bad value")


class RaisesOnClose(Good):
    def close(self) -> None:
        raise OSError("disk full")


class Exits(Good):
    def start(self, run: RunInfo) -> str:
        sys.exit("bye")


class Dies(Good):
    def event(self, event: StepEvent) -> None:
        os._exit(3)


class Chatters(Good):
    """Prints far more than a pipe holds."""

    def event(self, event: StepEvent) -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.write("chatter " * 100_000)
            stream.flush()
        super().event(event)


class LeavesAChild(Good):
    """Hangs, with a child of its own that hangs as well."""

    def event(self, event: StepEvent) -> None:
        child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({AGES})"])
        self.file.write_text(str(child.pid))
        time.sleep(AGES)


class EndsWithAChild(Good):
    """Ends as it should, and leaves a child of its own that does not."""

    def close(self) -> None:
        child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({AGES})"])
        self.file.write_text(str(child.pid))


class Leaks(Good):
    """Says the key that it was given, everywhere it can."""

    def key(self) -> str:
        return os.environ["WANDB_API_KEY"]

    def start(self, run: RunInfo) -> str:
        key = self.key()
        for stream in (sys.stdout, sys.stderr):
            print(key, file=stream, flush=True)
        time.sleep(1)  # long enough to be seen in the list of processes
        raise RuntimeError(f"key {key} with hash {hashlib.sha256(key.encode()).hexdigest()[:8]} is refused")


class LeaksNetrc(Leaks):
    """The key comes from where `wandb login` keeps it."""

    def key(self) -> str:
        found = netrc.netrc(os.path.expanduser("~/.netrc")).authenticators("api.wandb.ai")
        assert found
        return found[2]
