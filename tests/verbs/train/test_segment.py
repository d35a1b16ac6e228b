"""What a segment writes at its end, and what a kill in the middle of it leaves."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gsm8k_core.config.train import TrainConfig
from gsm8k_core.training.runs import Run
from verbs.train.segment import Segment


def segment_of(run: Run, weights: str, updates: int = 3) -> Segment:
    """At its end, with a backend that writes `weights`."""

    def save(folder: Path, dtype: str) -> None:
        folder.mkdir()
        (folder / "model.safetensors").write_text(weights)

    segment = object.__new__(Segment)
    parts: dict[str, Any] = {
        "run": run,
        "job": SimpleNamespace(config=TrainConfig()),
        "model": SimpleNamespace(backend=SimpleNamespace(save=save), choices={}),
        "pilot": SimpleNamespace(losses=[1.0] * updates),
    }
    for name, value in parts.items():
        setattr(segment, name, value)
    return segment


@pytest.mark.parametrize("renamed", [False, True])
def test_a_kill_between_two_saves_leaves_weights_that_are_called_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renamed: bool
) -> None:
    """Before the new model/ has its name, and before run.json has the save's."""
    (tmp_path / "metrics.jsonl").touch()
    run = Run(tmp_path, {})
    segment_of(run, "first").save_model()
    first = json.loads((tmp_path / "run.json").read_text())
    assert (first["model_update"], len(first["model_save"])) == (3, 32)
    rename = os.rename

    def killed(source: Path, target: Path) -> None:
        if target != run.model or renamed:
            rename(source, target)
        if target == run.model:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            segment_of(run, "second").save_model()
    left = json.loads((tmp_path / "run.json").read_text())
    assert (left["model_update"], left["model_save"]) == (None, None)
    segment_of(run, "second").save_model()
    second = json.loads((tmp_path / "run.json").read_text())
    assert second["model_update"] == 3
    assert second["model_save"] not in (None, first["model_save"])


def test_the_same_weights_saved_again_keep_the_name_of_their_save_and_so_their_scores(tmp_path: Path) -> None:
    """Of a run that went on and took no update. The controls: others after as many updates, and after more."""
    (tmp_path / "metrics.jsonl").touch()

    def saved(weights: str, updates: int = 3) -> Any:
        segment_of(Run(tmp_path, json.loads(path.read_text())), weights, updates).save_model()
        return json.loads(path.read_text())["model_save"]

    path = tmp_path / "run.json"
    path.write_text("{}")
    first = saved("first")
    assert saved("first") == first
    names = [first, saved("other"), saved("first"), saved("first", 4)]
    assert len({*names, None}) == 5
    (tmp_path / "model" / "config.json").touch()  # a person's
    assert saved("first", 4) not in names
