"""The commands of the workflows and of docs/devices.md are ones that there are; nobody may have run them yet."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import cli
from gsm8k_core.types import UsageError

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
DEVICES = (ROOT / "docs" / "devices.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))
VARIABLES = set(re.findall(r"^#   ([A-Z_]+)=", MAKEFILE, re.MULTILINE))


def complaints(script: str) -> list[str]:
    """What is wrong with the `make` and `cli.py` commands of a shell script."""
    return [wrong for line in script.splitlines() if (wrong := _complaint(shlex.split(line, comments=True)))]


def _complaint(words: list[str]) -> str:
    if words[:1] == ["make"]:
        unknown = [word for word in words[1:] if word.partition("=")[0] not in TARGETS | VARIABLES]
        return f"make has no {', '.join(unknown)}" if unknown or not words[1:] else ""
    if "cli.py" in words:
        try:
            cli.parse(words[words.index("cli.py") + 1 :])
        except UsageError as error:
            return str(error)
    if "-c" in words and "pip" in words and not (ROOT / words[words.index("-c") + 1]).is_file():
        return "there is no such file of constraints"
    return ""


def steps(workflow: Any) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        yield from job["steps"]


@pytest.fixture(scope="module", params=WORKFLOWS, ids=lambda path: path.name)
def workflow(request: pytest.FixtureRequest) -> Any:
    return yaml.safe_load(request.param.read_text(encoding="utf-8"))


def test_there_are_workflows_for_linux_a_mac_and_windows(workflow: Any) -> None:
    systems = [str(job["runs-on"]).partition("-")[0] for job in workflow["jobs"].values()]
    assert systems == ["ubuntu", "macos", "windows"]


def test_every_command_of_a_workflow_is_one(workflow: Any) -> None:
    scripts = [step["run"] for step in steps(workflow) if "run" in step]
    assert len(scripts) > 8
    assert [wrong for script in scripts for wrong in complaints(script)] == []
    whole = "\n".join(scripts)
    for needed in ("make test", "make mac-report", "cli.py doctor", "--device mps", "cli.py train", "cli.py eval"):
        assert needed in whole


def test_every_command_of_the_page_on_devices_is_one() -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", DEVICES, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    assert [wrong for block in blocks for wrong in complaints(block)] == []
    assert "nobody has run it yet" in DEVICES
    assert "(docs/devices.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("make tset", "make has no tset"),
        ("make", "make has no "),
        ("python cli.py dctor", "there is no verb 'dctor'"),
        ("python cli.py parity --devise mps", "parity has no flag --devise"),
        ("python cli.py train --save-steps often", "--save-steps must be auto, or a whole number"),
        ("pip install -c nothing.txt -e .", "there is no such file"),
    ],
)
def test_control_a_command_that_is_none_is_found(script: str, found: str) -> None:
    (wrong,) = complaints(script)
    assert wrong.startswith(found)


def test_workflows_may_read_and_no_more_and_name_versions_and_ends(workflow: Any) -> None:
    assert workflow["permissions"] == {"contents": "read"}
    assert all("permissions" not in job and job["timeout-minutes"] <= 180 for job in workflow["jobs"].values())
    used = [step["uses"] for step in steps(workflow) if "uses" in step]
    assert used
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+\.\d+\.\d+", each) for each in used), used
    for step in steps(workflow):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
        assert "secrets." not in str(step)


def test_every_python_that_the_project_takes_is_tested_on_linux(workflow: Any) -> None:
    versions = workflow["jobs"]["linux"]["strategy"]["matrix"]["python"]
    assert versions == ["3.11", "3.12", "3.13", "3.14"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == ">=3.11,<3.15"


def test_the_report_is_kept_whatever_failed_before_it(workflow: Any) -> None:
    mac = workflow["jobs"]["mac"]["steps"]
    after = mac[[step.get("name") for step in mac].index("make test") + 1 :]
    assert [step["if"] for step in after] == ["${{ !cancelled() }}"] * 5
    assert after[-1]["with"]["path"] == "mac-report.json"
