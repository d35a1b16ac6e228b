"""A fake Hub and empty caches, for the tests of model and data sources."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import fake_hub
from tests.tiny import make

HUB_KEYS = (
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_TOKEN_PATH",
)


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches under tmp_path, no token, no Hub: nothing of this machine is read or written."""
    from huggingface_hub import constants

    for key in HUB_KEYS:
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("GSM8K_CACHE", str(tmp_path / "gsm8k"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: refused at once
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # huggingface_hub reads these when it is imported.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    return tmp_path


@pytest.fixture
def hub(caches: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A FakeHub with a tiny Qwen2 and a 20-row openai/gsm8k under the real names."""
    files = {fake_hub.REAL_MODEL: fake_hub.tiny_qwen2(), fake_hub.REAL_DATA: fake_hub.tiny_gsm8k()}
    with fake_hub.FakeHub(files) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A tiny random Qwen2 in a folder of its own."""
    return make(tmp_path / "tiny")
