"""The command line against a Hub on loopback: the real names cold, cached and offline; a given name that fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from gsm8k_core.models import hub as hub_source
from tests import fake_hub
from tests.core.conftest import HUB_KEYS
from tests.e2e.conftest import Done, Run
from tests.waiting import wait_for

QWEN, GSM8K = fake_hub.REAL_MODEL[1], fake_hub.REAL_DATA[1]


@pytest.fixture
def hub(run: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_hub.FakeHub]:
    """A fake Hub in the place of the real one, for the command line that `run` calls."""
    from huggingface_hub import constants

    for key in HUB_KEYS:
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # read from the environment when it is imported
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    files = {fake_hub.REAL_MODEL: fake_hub.tiny_qwen2(), fake_hub.REAL_DATA: fake_hub.tiny_gsm8k()}
    with fake_hub.FakeHub(files) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def train(run: Run, folder: str, *arguments: object) -> Done:
    return run("train", "--backend", "torch", "--dtype", "float32", "--output-dir", folder, *arguments)


def manifest(folder: Path) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads((folder / "run.json").read_text())
    return found


def test_the_real_names_cold_then_cached_then_without_a_hub(run: Run, hub: fake_hub.FakeHub, tmp_path: Path) -> None:
    for folder, source in (("cold", "hub"), ("cached", "cache"), ("offline", "cache")):
        if folder == "offline":
            hub.stop()
        asked = len(hub.requests)
        done = train(run, folder)
        assert done.returncode == 0, done.stderr
        written = manifest(tmp_path / folder)
        assert (written["model"]["name"], written["model"]["source"]) == (QWEN, source)
        assert (written["data"]["name"], written["data"]["source"]) == (GSM8K, source)
        assert written["config"]["profile"] == "standard"
        assert written["rows"]["train"] == 13
        said = done.stdout + done.stderr
        assert "DEMO" not in said
        for name in (QWEN, GSM8K):
            assert (f"downloading {name} from {hub.url}: " in said) == (source == "hub")
        if source == "cache":
            assert len(hub.requests) == asked


REFUSALS = {
    "unauthorised": ("status", 401, "refused it (401"),
    "unknown": ("status", 404, "no such model (404)"),
    "silent": ("silent", True, f"did not answer in {hub_source.PROBE_SECONDS:g} s"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_given_name_that_cannot_be_had(
    case: str, run: Run, hub: fake_hub.FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attribute, value, reason = REFUSALS[case]
    if case == "silent":
        hub.silence(monkeypatch)
    setattr(hub, attribute, value)
    with fake_hub.waits() as waited:
        done = train(run, "out", "--model", "some/model")
        wait_for(lambda: waited.questions)
    assert (len(waited.questions), waited.sleeps) == (1, [])  # it is waited for once
    assert done.returncode == 4
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert reason in error
    assert "'some/model'" in error
    assert "give a folder's path, embedded, or " in error
    assert "Traceback" not in done.stderr
    assert case == "silent" or hub.requests == ["GET api/models/some/model"]
    assert not (tmp_path / "out").exists()
