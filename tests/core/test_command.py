"""A hint names what this person types: the clone's command, or the installed one and what installs beside it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from gsm8k_core.command import as_typed

UV, PIPX = "uv-receipt.toml", "pipx_metadata.json"  # what each leaves in the environment that it made


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """`gsm8k` was typed; the environment it is in."""
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/gsm8k", "train"])
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "/my env/bin/python")
    return tmp_path


@pytest.mark.parametrize(
    ("said", "made_by", "shown"),
    [
        ("pip install --no-deps one==1", PIPX, "pipx runpip gsm8k-finetune install --no-deps one==1"),
        ("pip install --no-deps one==1", UV, "uv pip install --python '/my env/bin/python' --no-deps one==1"),
        ("pip install --no-deps one==1", "", "'/my env/bin/python' -m pip install --no-deps one==1"),
        (
            "pip install -e '.[mlx-cpu]' ('.[mlx-cuda]' elsewhere)",
            PIPX,
            "pipx runpip gsm8k-finetune install 'gsm8k-finetune[mlx-cpu]' ('gsm8k-finetune[mlx-cuda]' elsewhere)",
        ),
        ("pip install -c /a/constraints.txt -e .", PIPX, "pipx runpip gsm8k-finetune install gsm8k-finetune"),
        (
            "pip install --force-reinstall -c constraints.txt -e '.[mlx-cpu]' (Linux)",
            PIPX,
            "pipx reinstall gsm8k-finetune (Linux)",
        ),
        ("pip install --force-reinstall -c constraints.txt -e .", UV, "uv tool upgrade --reinstall gsm8k-finetune"),
        ("python cli.py runs; python cli.py plot", UV, "gsm8k runs; gsm8k plot"),
    ],
)
def test_an_installed_command_names_itself_and_what_installs_beside_it(
    installed: Path, said: str, made_by: str, shown: str
) -> None:
    if made_by:
        (installed / made_by).touch()
    assert as_typed(said) == shown
    assert as_typed(shown) == shown  # a line passes more than one place that words it


def test_without_pip_it_is_uv_that_installs(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert as_typed("pip install gguf") == "uv pip install --python '/my env/bin/python' gguf"


def test_from_a_clone_every_hint_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["cli.py", "train"])
    said = "pip install -c constraints.txt -e '.[track]'; python cli.py runs"
    assert as_typed(said) == said
