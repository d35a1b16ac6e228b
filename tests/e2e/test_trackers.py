"""Training with trackers: a bad one changes nothing, and the key of W&B is nowhere to be found afterwards."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from gsm8k_core.tracking import feed
from gsm8k_core.tracking.feed import TrackerLimits, installed
from tests.e2e.conftest import Run
from tests.waiting import CEILING

SHORT = (
    "--batch-size",
    4,
    "--gradient-accumulation-steps",
    1,
    "--num-epochs",
    1,
    "--learning-rate",
    1e-2,
    "--dtype",
    "float32",
    "--backend",
    "torch",
    "--max-samples",
    12,
)
CANARY = "canary0123456789abcdef0123456789abcdef42"


class Feed(feed.Feed):
    """With time enough, except for a stub that never does what it is given time for."""

    def __init__(self, name: str, sink: str, *more: Any) -> None:
        start = 1.0 if sink.endswith("HangsOnStart") else CEILING
        close = 0.5 if sink.endswith("HangsOnEvent") else CEILING
        super().__init__(name, sink, *more[:-1], TrackerLimits(start, close))


def use(stubs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "gsm8k_core.tracking.feed.TRACKERS", {name: f"tests.stub_sinks:{stub}" for name, stub in stubs.items()}
    )
    monkeypatch.setattr("gsm8k_core.tracking.feed.installed", lambda name: True)
    monkeypatch.setattr("gsm8k_core.tracking.feed.Feed", Feed)


def events(folder: Path) -> list[tuple[object, ...]]:
    """What the clock has no part in."""
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [tuple(event.get(key) for key in ("event", "update", "loss", "grad_norm", "rate")) for event in read]


def test_bad_trackers_leave_the_run_as_it_is(
    run: Run, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("train", "--model", model, "--data", data, *SHORT)
    assert run(*arguments, "--output-dir", "plain").returncode == 0
    for number, stubs in enumerate([("HangsOnEvent", "Asks", "Good"), ("HangsOnStart", "RaisesOnStart", "Dies")]):
        names = ("wandb", "trackio", "tensorboard")
        use(dict(zip(names, stubs, strict=True)), monkeypatch)
        done = run(*arguments, "--report-to", ",".join(names), "--output-dir", f"with-{number}")
        assert done.returncode == 0, done.stderr
        assert events(tmp_path / f"with-{number}") == events(tmp_path / "plain")
        assert "Traceback" not in done.stdout + done.stderr
        manifest = json.loads((tmp_path / f"with-{number}/run.json").read_text())
        assert manifest["status"] == "done"
        for name, stub in zip(names, stubs, strict=True):
            failure = manifest["trackers"][name]["failure"]
            assert (failure is None) == (stub == "Good"), failure
            assert done.stdout.count(f"{name:<8} off: ") == (stub != "Good")


def test_no_wandb_wins(run: Run, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use({"wandb": "RaisesOnStart", "tensorboard": "Good"}, monkeypatch)
    arguments = ("--report-to", "wandb,tensorboard", "--no-wandb", "--wandb-key-file", "gone", "--output-dir", "out")
    done = run("train", "--model", model, "--data", data, *SHORT, *arguments)
    assert done.returncode == 0, done.stderr
    assert list(json.loads((tmp_path / "out/run.json").read_text())["trackers"]) == ["tensorboard"]
    kept = json.loads((tmp_path / "out/stub.json").read_text())
    assert kept["settings"]["model"]["name"] == str(model)
    assert next(event for event in kept["events"] if event[0] == "update")[2]["train/loss"] > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--report-to", "mlflow"), "--report-to takes wandb, trackio, tensorboard"),
        (("--report-to", "trackio"), "pip install -e '.[track]'"),
        (("--report-to", "wandb", "--wandb-key-file", "gone"), "--wandb-key-file gone is not a file"),
    ],
)
def test_what_cannot_work_is_refused_before_there_is_a_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    monkeypatch.setattr("gsm8k_core.tracking.feed.installed", lambda name: name != "trackio")
    done = run("train", "--model", "embedded", "--output-dir", "out", *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tracked", [(), ("--report-to", "wandb", "--no-wandb"), ("--report-to", "wandb")])
def test_a_key_in_place_of_its_file_goes_nowhere(
    run: Run, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracked: tuple[str, ...]
) -> None:
    use({"wandb": "Good"}, monkeypatch)
    arguments = ("--wandb-key-file", CANARY, "--output-dir", "out", "-v")
    done = run("train", "--model", model, "--data", data, *SHORT, *tracked, *arguments)
    assert done.returncode == 2
    assert "takes the path of a file, not the key itself" in done.stderr
    assert CANARY not in done.stdout + done.stderr
    assert not (tmp_path / "out").exists()


@contextmanager
def command_lines() -> Iterator[list[str]]:
    """Every argument list that this process and its children have while the block runs."""
    seen: dict[str, None] = {}
    over = threading.Event()

    def watch() -> None:
        me = psutil.Process()
        while not over.is_set():
            for process in [me, *me.children(recursive=True)]:
                try:
                    seen[Path(f"/proc/{process.pid}/cmdline").read_bytes().decode().replace("\0", " ")] = None
                except OSError:
                    continue
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    lines: list[str] = []
    try:
        yield lines
    finally:
        over.set()
        thread.join()
        lines += seen


def _content(path: Path) -> bytes:
    """Nothing for what W&B's own service took away since it was listed."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="argument lists are read from /proc")
@pytest.mark.parametrize("tracker", ["wandb offline", "Leaks", "LeaksNetrc"])
def test_the_key_is_nowhere(
    run: Run, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: str
) -> None:
    """Real W&B where it is installed, and stubs that say their key everywhere they can."""
    if tracker.startswith("Leaks"):
        use({"wandb": tracker}, monkeypatch)
    elif not installed("wandb"):
        pytest.skip("wandb is not installed")
    else:
        monkeypatch.setattr(
            "gsm8k_core.tracking.feed.TrackerLimits", functools.partial(TrackerLimits, CEILING, CEILING)
        )
    (tmp_path / "home").mkdir()
    for name, value in {"WANDB_MODE": "offline", "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    of_netrc = tracker == "LeaksNetrc"
    key = tmp_path / ("home/.netrc" if of_netrc else "key-file")
    key.write_text(f"machine api.wandb.ai login user password {CANARY}\n" if of_netrc else f"\n{CANARY}\n")
    key.chmod(0o600)
    named = () if of_netrc else ("--wandb-key-file", key)
    arguments = ("--report-to", "wandb", *named, "--output-dir", "out", "-v")
    with command_lines() as lines:
        done = run("train", "--model", model, "--data", data, *SHORT, *arguments)
    assert done.returncode == 0, done.stderr
    failure = json.loads((tmp_path / "out/run.json").read_text())["trackers"]["wandb"]["failure"]
    if tracker.startswith("Leaks"):  # the control: the key has reached the tracker, and what it says of it is masked
        digest = hashlib.sha256(CANARY.encode()).hexdigest()[:8]
        assert failure == f"RuntimeError: key *** with hash {digest} is refused"
    else:
        assert failure is None
        assert list((tmp_path / "out/wandb").glob("offline-run-*/*.wandb"))
    assert any("gsm8k_core.tracking.trackers" in line for line in lines)
    assert "WANDB_API_KEY" not in os.environ
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path != key]
    found = [str(path) for path in files if CANARY.encode() in _content(path)]
    found += [line for line in [*lines, done.stdout, done.stderr] if CANARY in line]
    assert found == []
    print(
        f"searched {len(files)} files, {sum(path.stat().st_size for path in files)} bytes, {len(lines)} argument lists"
    )
