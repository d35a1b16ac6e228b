"""The run's events -> W&B, trackio, TensorBoard. None of them can hold up, end or change a run.

Each tracker lives in a process of its own (trackers.py) without a terminal. A thread feeds it from a short queue that
drops and counts; it has a time to start and a time to finish, and is ended when it takes longer.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import netrc
import os
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from gsm8k_core.config.train import TrainConfig
from gsm8k_core.files import WINDOWS
from gsm8k_core.processes import end
from gsm8k_core.tracking.trackers import RunInfo
from gsm8k_core.training.runs import Run
from gsm8k_core.types import StepEvent, StorageError, UsageError

Say = Callable[[str], None]

TRACKERS = {
    "wandb": "gsm8k_core.tracking.trackers:Wandb",
    "trackio": "gsm8k_core.tracking.trackers:Trackio",
    "tensorboard": "gsm8k_core.tracking.trackers:TensorBoard",
}
WAITING = 1000  # events that wait for a slow tracker; more are dropped
LONGEST_REASON = 300
LONGEST_KEY_FILE = 4096
SHORTEST_SECRET = 8  # a shorter password in netrc is a word that any message may hold
# A key, alone or as a shell or .env file sets it.
KEY = re.compile(r"""(?:(?:export\s+)?WANDB_API_KEY\s*=\s*)?(["']?)([A-Za-z0-9_-]{40,})\1""")
GIVEN_KEY = re.compile(r"""(?:export\s+)?(?:\w+\s*=\s*)?["']?\w[\w-]{31,}["']?""")  # a path has a / or a dot
SECRETS = ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "TRACKIO_WRITE_TOKEN")
TOLD = ("config", "model", "data", "rows", "plan", "choices", "versions", "host")  # parts of run.json a tracker gets


@dataclass(frozen=True, slots=True)
class TrackerLimits:
    """Seconds that a tracker may take."""

    start: float = 10.0
    close: float = 5.0


def check_trackers(config: TrainConfig, say: Say) -> None:
    """Refuse at the door, before there is a run folder: a tracker that is not installed, a key that cannot be read."""
    _refuse_key(config.wandb_key_file)  # first, whatever is reported to: the run folder keeps every setting
    for name in config.trackers:
        if not installed(name):
            raise UsageError(
                f"--report-to {name} needs the package {name}, which is not installed; pip install -e '.[track]'"
            )
    if config.wandb_key_file is None or config.no_wandb:
        return
    if "wandb" in config.trackers:
        load_wandb_key(config.wandb_key_file, say)
    else:
        say("wandb    --wandb-key-file is not used: nothing goes to W&B without --report-to wandb")


def installed(name: str) -> bool:
    """Whether a package is there. A folder of that name, such as W&B's own ./wandb, is no package: it has no origin."""
    found = importlib.util.find_spec(name)
    return found is not None and found.origin is not None


def _refuse_key(path: Path | None) -> None:
    if path is not None and GIVEN_KEY.fullmatch(str(path).strip()) and not os.path.exists(path):
        raise UsageError("--wandb-key-file takes the path of a file, not the key itself; write the key into a file")


def load_wandb_key(path: Path, say: Say) -> str:
    """W&B's key: the first line of the file that is not empty or a comment. It is never shown, whatever is wrong."""
    _refuse_key(path)
    advice = "give a file with the key on its first line, or run wandb login"
    if not os.path.isfile(path):
        raise UsageError(f"--wandb-key-file {path} is not a file; {advice}")
    try:
        with path.open(encoding="utf-8-sig") as file:
            if not WINDOWS and os.fstat(file.fileno()).st_mode & 0o077:  # there, the mode does not say who may read
                say(f"wandb    others can read {path}; chmod 600 {path}")
            lines = [line.strip() for line in file.read(LONGEST_KEY_FILE).splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--wandb-key-file {path} cannot be read ({type(error).__name__}); {advice}") from None
    line = next((line for line in lines if line and not line.startswith("#")), "")
    if not line:
        raise UsageError(f"--wandb-key-file {path} is empty; {advice}")
    if (key := KEY.fullmatch(line)) is None:
        raise UsageError(f"--wandb-key-file {path} holds no W&B key (40 letters and digits, or more); {advice}")
    return key[2]


def open_trackers(config: TrainConfig, run: Run, say: Say, limits: TrackerLimits | None = None) -> Trackers:
    """Start every tracker that is asked for, without waiting for one."""
    key = None
    if "wandb" in config.trackers and config.wandb_key_file is not None:
        with contextlib.suppress(UsageError):  # gone since check_trackers: W&B will say that it has no key
            key = load_wandb_key(config.wandb_key_file, lambda warning: None)
    limits = limits or TrackerLimits()
    info = _info(config, run, limits)
    feeds = [Feed(name, TRACKERS[name], info, _environment(name, key), say, limits) for name in config.trackers]
    return Trackers(feeds, run)


def _info(config: TrainConfig, run: Run, limits: TrackerLimits) -> RunInfo:
    name = run.folder.resolve().name
    settings = {part: run.manifest[part] for part in TOLD if part in run.manifest}
    if isinstance(settings.get("config"), Mapping):
        settings["config"] = {key: value for key, value in settings["config"].items() if key != "wandb_key_file"}
    # From the folder and its start, so that a run that is taken up again goes on in the same place.
    id = hashlib.sha256(f"{name}\0{run.manifest.get('started')}".encode()).hexdigest()[:10]
    return RunInfo(id, name, config.wandb_project, str(run.folder.resolve()), settings, limits.close)


def _environment(name: str, key: str | None) -> dict[str, str]:
    """The key reaches W&B's process through its environment, and no other process."""
    environment = dict(os.environ)
    if name != "wandb":
        environment.pop("WANDB_API_KEY", None)
    elif key:
        environment["WANDB_API_KEY"] = key
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    return environment


def _secrets(environment: Mapping[str, str]) -> list[str]:
    """What must not be shown: keys of the tracker's environment, and the passwords where W&B looks for its own."""
    found = [environment[key] for key in SECRETS if environment.get(key)]
    for place in filter(None, (environment.get("NETRC"), "~/.netrc", "~/_netrc")):
        with contextlib.suppress(OSError, ValueError, netrc.NetrcParseError):
            entries = netrc.netrc(os.path.expanduser(place)).hosts.values()
            found += [password for *_, password in entries if password and len(password) >= SHORTEST_SECRET]
    return sorted(set(found), key=len, reverse=True)  # one may be a part of another


class Trackers:
    """All trackers of a run; leaving the `with` closes them, a signal's way out at once."""

    def __init__(self, feeds: Sequence[Feed], run: Run | None = None) -> None:
        self._feeds, self._run = feeds, run

    @property
    def reserve(self) -> float:
        """Seconds that closing may take, for the run's budget; a tracker that has not started yet has time for that."""
        return max((feed.start_left() + feed.limits.close for feed in self._feeds), default=0.0)

    def event(self, event: StepEvent) -> None:
        for feed in self._feeds:
            feed.offer(event)

    def close(self, at_once: bool = False) -> None:
        """Let all finish at the same time, end those that do not, and note in run.json how it went."""
        for feed in self._feeds:
            feed.close(at_once)
        for feed in self._feeds:
            feed.wait()
        if self._feeds and self._run:
            with contextlib.suppress(StorageError):  # the run's own files say this, and better
                self._run.record(trackers={feed.name: feed.report() for feed in self._feeds})

    def __enter__(self) -> Trackers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(at_once=kind is not None and not issubclass(kind, Exception))


class Feed:
    """One tracker's process. `offer` never waits; two threads do the writing and the reading."""

    def __init__(
        self, name: str, tracker: str, run: RunInfo, environment: Mapping[str, str], say: Say, limits: TrackerLimits
    ) -> None:
        self.name, self.limits = name, limits
        self.offered = self.taken = 0
        self.where: str | None = None
        self.failure: str | None = None
        self._say = say
        self._secrets = _secrets(environment)
        self._changed = threading.Condition()  # guards everything below and above; never held while waiting for a pipe
        self._ready = self._closing = self._closed = False
        self._close_from = 0.0
        self._waiting = deque([_line({"tracker": tracker, "run": asdict(run)})])
        self._threads: list[threading.Thread] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._started = time.monotonic()
        self._open(environment)

    def _open(self, environment: Mapping[str, str]) -> None:
        # -P: no folder of the caller's is searched for modules. A session of its own: no terminal to ask on, no Ctrl-C.
        command = [sys.executable, "-P", "-m", "gsm8k_core.tracking.trackers", str(os.getpid())]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
            for work in (self._feed, self._listen):
                self._threads.append(threading.Thread(target=work, args=(self._process,), daemon=True))
                self._threads[-1].start()
        except (OSError, RuntimeError, ValueError) as error:
            self._fail(f"could not be started ({error})")

    def start_left(self) -> float:
        """Seconds that it may still take to start."""
        with self._changed:
            over = self._ready or self.failure is not None
            return 0.0 if over else max(0.0, self._started + self.limits.start - time.monotonic())

    def offer(self, event: StepEvent) -> None:
        """Queue an event; when the queue is full or the tracker has failed, it is counted and dropped."""
        line = _line({"event": event.name, **event.values})
        with self._changed:
            self.offered += 1
            if self.failure is None and not self._closing and len(self._waiting) < WAITING:
                self._waiting.append(line)
                self._changed.notify_all()

    def close(self, at_once: bool) -> None:
        """Ask it to finish; `wait` waits."""
        with self._changed:
            self._closing, self._close_from = True, time.monotonic()
            self._changed.notify_all()
        if at_once:
            self._fail("ended with the run", tell=False)

    def wait(self) -> None:
        """Until it has finished, or its time is over. A run shorter than its tracker's start waits for that, too."""
        with self._changed:
            over = self._wait_for(lambda: self._ready, self._started + self.limits.start)
            late = f"start within {self.limits.start:g} s"
            if over:
                over = self._wait_for(lambda: self._closed, self._close_from + self.limits.close)
                late = f"finish within {self.limits.close:g} s"
        if not over:
            self._fail(f"did not {late}")
        if self._process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
            end(self._process)  # even where it has ended: what it started may have stayed
        for thread in self._threads:
            thread.join(1)
        if self.failure is None and self.taken < self.offered:
            self._tell(f"{self.offered - self.taken} of {self.offered} events were dropped: it could not keep up")

    def report(self) -> dict[str, object]:
        """For run.json."""
        return {"where": self.where, "events": self.offered, "taken": self.taken, "failure": self.failure}

    def _feed(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        try:
            with process.stdin as pipe:
                while (line := self._next()) is not None:
                    pipe.write(line)
                    pipe.flush()
                    self._await_start()
        except OSError:
            return  # it is gone; _listen says so

    def _next(self) -> bytes | None:
        """The next line to write, or None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing or self.failure is not None)
            return self._waiting.popleft() if self._waiting else None

    def _await_start(self) -> None:
        with self._changed:
            started = self._wait_for(lambda: self._ready, self._started + self.limits.start)
        if not started:
            self._fail(f"did not start within {self.limits.start:g} s")

    def _wait_for(self, done: Callable[[], bool], until: float) -> bool:
        """False when the time is over first."""
        return self._changed.wait_for(lambda: done() or self.failure is not None, max(0.0, until - time.monotonic()))

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as pipe:
            for line in pipe:
                with contextlib.suppress(ValueError):  # a line that was cut off when its writer was ended
                    self._hear(json.loads(line))
        code: object = "unknown"
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(1)
        self._fail(f"its process ended (exit code {code})")

    def _hear(self, said: Mapping[str, Any]) -> None:
        with self._changed:
            self.taken = said.get("taken", self.taken)
            self._closed = self._closed or "closed" in said
            if "ready" in said:
                self._ready, self.where = True, self._clean(said["ready"])
                self._close_from = max(self._close_from, time.monotonic())
            self._changed.notify_all()
        if "ready" in said:
            self._tell(str(self.where))
        if "failed" in said:
            self._fail(str(said["failed"]))

    def _fail(self, reason: str, tell: bool = True) -> None:
        """End the tracker, once; the run goes on."""
        with self._changed:
            if self._closed or self.failure is not None:
                return
            self.failure = self._clean(reason)
            self._waiting.clear()
            self._changed.notify_all()
        if self._process:
            end(self._process)
        if tell:
            self._tell(f"off: {self.failure}; the run goes on, and metrics.jsonl has every event")

    def _clean(self, text: object) -> str:
        """One short line without a key in it."""
        whole = str(text)
        for secret in self._secrets:
            whole = whole.replace(secret, "***")
        return " ".join(whole[:LONGEST_REASON].split())

    def _tell(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # stdout is gone; the run finds that out by itself
            self._say(f"{self.name:<8} {text}")


def _line(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, default=str).encode() + b"\n"
