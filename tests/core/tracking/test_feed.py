"""Trackers: what they are told, and that none of them can hold up, end or change a run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from gsm8k_core.config.train import TrainConfig
from gsm8k_core.tracking.feed import (
    WAITING,
    TrackerLimits,
    Trackers,
    _secrets,
    check_trackers,
    installed,
    load_wandb_key,
    open_trackers,
)
from gsm8k_core.tracking.trackers import measures
from gsm8k_core.training.runs import Run, create
from gsm8k_core.types import StepEvent, UsageError
from tests import stub_sinks
from tests.waiting import CEILING, ends, wait_for

UPDATES = [
    StepEvent("update", {"update": n, "loss": 1.0 / n, "rate": 1e-4, "grad_norm": 2.0, "total": 9, "eta": 1.0})
    for n in range(1, 4)
]
EVENTS = [StepEvent("start", {"updates": 3}), *UPDATES, StepEvent("end", {"reason": "done", "update": 3})]
PATIENT = TrackerLimits(CEILING, CEILING)
SHORT = TrackerLimits(CEILING, 0.5)  # for one that never finishes


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return create(tmp_path / "run", {"config": {"seed": 3, "wandb_key_file": "/secret/place"}})


def opened(run: Run, monkeypatch: pytest.MonkeyPatch, stub: type, said: list[str], limits: TrackerLimits) -> Trackers:
    monkeypatch.setattr("gsm8k_core.tracking.feed.TRACKERS", {"wandb": f"tests.stub_sinks:{stub.__name__}"})
    return open_trackers(TrainConfig(report_to="wandb"), run, said.append, limits)


def test_every_event_arrives_in_order_under_its_name(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with opened(run, monkeypatch, stub_sinks.Good, said, PATIENT) as sinks:
        for event in EVENTS:
            sinks.event(event)
    kept = json.loads((run.folder / "stub.json").read_text())
    assert kept["settings"]["config"] == {"seed": 3}
    assert [(name, update) for name, update, _ in kept["events"]] == [
        ("start", None),
        ("update", 1),
        ("update", 2),
        ("update", 3),
        ("end", 3),
    ]
    assert kept["events"][2][2] == {"train/loss": 0.5, "train/rate": 1e-4, "train/grad_norm": 2.0}
    assert said == ["wandb    kept in stub.json"]
    report = {"where": "kept in stub.json", "events": 5, "taken": 5, "failure": None}
    assert json.loads((run.folder / "run.json").read_text())["trackers"] == {"wandb": report}


@pytest.mark.parametrize(
    ("stub", "limits", "failure"),
    [
        (stub_sinks.HangsOnStart, TrackerLimits(0.3, 0.1), "did not start within 0.3 s"),
        (stub_sinks.HangsOnEvent, SHORT, "did not finish within 0.5 s"),
        (stub_sinks.HangsOnClose, SHORT, "did not finish within 0.5 s"),
        (stub_sinks.Spins, SHORT, "did not finish within 0.5 s"),
        (stub_sinks.Asks, PATIENT, "EOFError: EOF when reading a line"),
        (stub_sinks.RaisesOnStart, PATIENT, "RuntimeError: no route to host"),
        (stub_sinks.RaisesOnEvent, PATIENT, "ValueError: bad value"),
        (stub_sinks.RaisesOnClose, PATIENT, "OSError: disk full"),
        (stub_sinks.Exits, PATIENT, "SystemExit: bye"),
        (stub_sinks.Dies, PATIENT, "its process ended (exit code 3)"),
    ],
)
def test_a_bad_tracker_is_ended_and_said_once(
    run: Run, monkeypatch: pytest.MonkeyPatch, stub: type, limits: TrackerLimits, failure: str
) -> None:
    said: list[str] = []
    sinks = opened(run, monkeypatch, stub, said, limits)
    process = sinks._feeds[0]._process
    assert process is not None
    wait_for(lambda: said or stub is stub_sinks.HangsOnStart)  # until it has started, or failed to
    ends(lambda: [sinks.event(event) for event in EVENTS])  # although some take nothing, for hours
    ends(sinks.close)
    assert process.poll() is not None
    assert said[-1] == f"wandb    off: {failure}; the run goes on, and metrics.jsonl has every event"
    assert [line for line in said if "off" in line] == said[-1:]
    assert run.manifest["trackers"]["wandb"]["failure"] == failure
    assert run.manifest["trackers"]["wandb"]["events"] == len(EVENTS)


def test_a_full_queue_drops_and_counts(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    sinks = opened(run, monkeypatch, stub_sinks.HangsOnEvent, said, SHORT)
    ends(lambda: [sinks.event(UPDATES[0]) for _ in range(10 * WAITING)])
    sinks.close()
    assert (run.manifest["trackers"]["wandb"]["events"], run.manifest["trackers"]["wandb"]["taken"]) == (10_000, 0)


def test_what_it_prints_goes_nowhere(
    run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with opened(run, monkeypatch, stub_sinks.Chatters, [], PATIENT) as sinks:
        for event in EVENTS:
            sinks.event(event)
    assert capfd.readouterr() == ("", "")
    assert run.manifest["trackers"]["wandb"]["taken"] == len(EVENTS)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_its_own_children_are_ended_with_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    sinks = opened(run, monkeypatch, stub_sinks.LeavesAChild, said, SHORT)
    sinks.event(UPDATES[0])
    file = run.folder / "stub.json"
    wait_for(lambda: file.exists() and file.read_text())
    child = psutil.Process(int(file.read_text()))
    sinks.close(at_once=True)
    wait_for(lambda: not is_alive(child))
    assert said == ["wandb    kept in stub.json"]  # ended with the run: nothing to say


def test_a_child_that_outlives_its_tracker_is_ended(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(run, monkeypatch, stub_sinks.EndsWithAChild, [], PATIENT) as sinks:
        sinks.event(UPDATES[0])
    assert run.manifest["trackers"]["wandb"]["failure"] is None
    pid = int((run.folder / "stub.json").read_text())
    wait_for(lambda: not (psutil.pid_exists(pid) and is_alive(psutil.Process(pid))))


def test_the_reserve_holds_what_is_left_of_the_start(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    with monkeypatch.context() as patch:
        patch.setattr("gsm8k_core.tracking.feed.time", SimpleNamespace(monotonic=lambda: now[0]))
        hangs = opened(run, monkeypatch, stub_sinks.HangsOnStart, [], TrackerLimits(start=30.0, close=7.0))
        assert hangs.reserve == 37.0
        now[0] += 12.0
        assert hangs.reserve == 25.0
        hangs.close(at_once=True)
    starts = opened(run, monkeypatch, stub_sinks.Good, said := [], TrackerLimits(start=CEILING, close=7.0))
    wait_for(lambda: said)
    assert starts.reserve == 7.0
    starts.close()


def test_passwords_where_wandb_looks_for_its_key_are_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password in-dot-netrc\n")
    (tmp_path / "_netrc").write_text("machine broken password\n")  # what cannot be read is W&B's to complain about
    (tmp_path / "other").write_text("machine a login b password in-other-netrc\nmachine c login d password short\n")
    found = _secrets({"NETRC": str(tmp_path / "other"), "WANDB_API_KEY": "in-environment", "PATH": "/bin"})
    assert sorted(found) == ["in-dot-netrc", "in-environment", "in-other-netrc"]


def test_what_cannot_be_started_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with opened(run, monkeypatch, stub_sinks.Good, said, SHORT) as sinks:
        sinks.event(UPDATES[0])
    assert "off: could not be started" in said[0]
    assert len(said) == 1


def test_measures_are_finite_numbers_without_the_plan() -> None:
    values = {"update": 4, "total": 9, "eta": 3.0, "loss": float("nan"), "accuracy": 0.5, "best": True, "why": "x"}
    assert measures(StepEvent("dev", values)) == {"dev/accuracy": 0.5}
    assert measures(StepEvent("save", {"update": 4})) == {}


def test_no_tracker_is_no_process(run: Run) -> None:
    with open_trackers(TrainConfig(report_to="wandb", no_wandb=True), run, print) as sinks:
        sinks.event(UPDATES[0])
    assert sinks.reserve == 0
    assert "trackers" not in run.manifest


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match=r"--report-to trackio needs the package trackio, .*pip install -e '\.\[track\]'"
    ):
        check_trackers(TrainConfig(report_to="trackio"), print)
    check_trackers(TrainConfig(report_to="wandb", no_wandb=True), print)


def test_a_folder_of_that_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no_such_tracker").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not installed("no_such_tracker")
    assert installed("json")


KEY = "local-0123456789abcdef0123456789abcdef01234567"


def key_file(tmp_path: Path, content: bytes, mode: int = 0o600) -> Path:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    "content",
    [
        "{key}",
        "\n  \r\n {key} \nother\n",
        "\ufeff{key}\r\n",
        "# my key\n\n{key}",
        "WANDB_API_KEY={key}",
        "\ufeff# of W&B\nexport WANDB_API_KEY='{key}'\n",
        'WANDB_API_KEY = "{key}"',
    ],
)
def test_the_key_is_the_first_line_that_says_anything(tmp_path: Path, content: str) -> None:
    said: list[str] = []
    assert load_wandb_key(key_file(tmp_path, content.format(key=KEY).encode()), said.append) == KEY
    assert said == []


def test_a_key_that_others_can_read_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    path = key_file(tmp_path, KEY.encode(), 0o644)
    assert load_wandb_key(path, said.append) == KEY
    assert said == [f"wandb    others can read {path}; chmod 600 {path}"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"\xef\xbb\xbf# only a comment\n", "is empty"),
        (b"s3cret key", "holds no W&B key"),
        (b"s3cret\x00", "holds no W&B key"),
        (b"s3cret-too-short", "holds no W&B key"),
        (b"HF_TOKEN=hf_s3cret0123456789abcdef0123456789abcdef", "holds no W&B key"),
        (b"WANDB_API_KEY='s3cret0123456789abcdef0123456789abcdef012", "holds no W&B key"),
        ("s3cret\u00e90123456789abcdef0123456789abcdef012".encode(), "holds no W&B key"),
        (b"s3cret\xff\xfe", "cannot be read"),
    ],
)
def test_a_bad_key_file_is_refused_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, says: str
) -> None:
    monkeypatch.setattr("gsm8k_core.tracking.feed.installed", lambda name: True)
    path = key_file(tmp_path, content)
    with pytest.raises(UsageError, match=says) as error:
        check_trackers(TrainConfig(report_to="wandb", wandb_key_file=path), print)
    assert "s3cret" not in str(error.value)
    assert str(path) in str(error.value)


def test_a_missing_key_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a file"):
        load_wandb_key(tmp_path / "gone", print)


@pytest.mark.parametrize("given", [KEY, f"WANDB_API_KEY={KEY}", f"export WANDB_API_KEY='{KEY}'", KEY * 20])
@pytest.mark.parametrize("settings", [{}, {"report_to": "wandb", "no_wandb": True}, {"report_to": "wandb"}])
def test_the_key_itself_is_refused_whatever_is_reported_to(given: str, settings: dict[str, object]) -> None:
    """The run folder keeps every setting, and the command: it must not get that far."""
    with pytest.raises(UsageError, match="not the key itself") as error:
        check_trackers(TrainConfig(wandb_key_file=Path(given), **settings), print)
    assert "0123" not in str(error.value)


def test_a_key_file_without_wandb_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    check_trackers(TrainConfig(wandb_key_file=tmp_path / "gone"), said.append)
    assert "--report-to wandb" in said[0]
    check_trackers(TrainConfig(wandb_key_file=tmp_path / "gone", no_wandb=True), said.append)
    assert len(said) == 1


def test_wandb_offline_for_real(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    said: list[str] = []
    with open_trackers(TrainConfig(report_to="wandb"), run, said.append, PATIENT) as sinks:
        for event in EVENTS:
            sinks.event(event)
    assert run.manifest["trackers"]["wandb"]["failure"] is None
    assert run.manifest["trackers"]["wandb"]["taken"] == len(EVENTS)
    (file,) = (run.folder / "wandb").glob("offline-run-*/*.wandb")
    assert said == [f"wandb    offline; to send it later: wandb sync {file.parent}"]
    content = file.read_bytes()
    for name in (b"train/loss", b"train/rate", b"train/grad_norm", b"outcome"):
        assert name in content
    assert not (tmp_path / ".netrc").exists()


def test_tensorboard_for_real(run: Run) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_trackers(TrainConfig(report_to="tensorboard"), run, print, PATIENT) as sinks:
        for event in EVENTS:
            sinks.event(event)
    assert run.manifest["trackers"]["tensorboard"]["taken"] == len(EVENTS)
    read = EventAccumulator(os.fspath(run.folder / "tensorboard"), {"tensors": 0})
    read.Reload()
    assert [event.step for event in read.Tensors("train/loss")] == [1, 2, 3]
