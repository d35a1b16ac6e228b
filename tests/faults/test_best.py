"""best/ says itself which model it is: no kill, and no end that follows it, gives it another one's name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gsm8k_core.training.best import read_label, write_label
from gsm8k_core.training.measure import DevResult
from tests.e2e.test_resume import data as data
from tests.e2e.test_resume import killed
from tests.e2e.test_resume import model as model
from tests.e2e.test_resume import train as train
from tests.fake_checkpoints import flip

MEASURED = ("--eval-steps", "2", "--eval-problems", "3", "--eval-max-new-tokens", "8", "--learning-rate", "0.01")


@contextmanager
def stopped_at_once(*unused: object) -> Iterator[Any]:
    """A signal that has come already: the run ends after its next update, without a measurement."""
    yield lambda: True


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


def test_a_kill_between_best_and_its_record_gives_no_model_anothers_name(
    run: Any, train: Any, tmp_path: Path, backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(tmp_path / "whole", "--backend", backend_name, *MEASURED).returncode == 0
    assert manifest(tmp_path / "whole")["best"] == {"update": 6}
    folder = killed(tmp_path / "whole", 2, tmp_path / "killed")
    # Killed when best/ was replaced, and before that was noted; then the run ends before it measures again.
    (folder / "run.json").write_text(json.dumps({**manifest(folder), "best": {"update": 2}}))
    monkeypatch.setattr("verbs.train.verb.stopping", stopped_at_once)
    done = run("train", "--resume", str(folder))
    assert done.returncode == 75, done.stderr
    assert f"{folder / 'best'} holds update 6, by its label: it is not update 2" in done.stdout
    assert "best" not in manifest(folder)["outcome"]
    label = read_label(folder / "best")
    assert label is not None
    assert (label.update, manifest(folder)["best"], label.fits(folder / "best")) == (6, {"update": 6}, True)
    monkeypatch.undo()
    assert run("train", "--resume", str(folder)).returncode == 0
    assert manifest(folder)["outcome"]["best"] == {
        **manifest(tmp_path / "whole")["outcome"]["best"],
        "folder": str(folder / "best"),
    }


@pytest.mark.parametrize(
    ("damage", "said"), [("none", ""), ("a bit", "is damaged"), ("no label", "has no label that can be read")]
)
def test_the_best_is_kept_over_a_resume_where_it_is_whole(
    run: Any, train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, said: str
) -> None:
    flags = ("--backend", "torch", *MEASURED[:-1], "1e-9")  # a rate that changes no answer: update 2 stays the best
    assert train(tmp_path / "whole", *flags).returncode == 0
    best = manifest(tmp_path / "whole")["best"]
    if damage == "none":  # its card tells of its own updates, and not of the run's
        export = ("export", tmp_path / "whole/best", "--to", "merged", "--output-dir", tmp_path / "out")
        assert run(*export).returncode == 0
        assert f"- trained: {best['update']} updates over " in (tmp_path / "out/README.md").read_text()
    folder = killed(tmp_path / "whole", 4, tmp_path / "killed")
    if damage == "a bit":
        flip(folder / "best/model.safetensors")
    if damage == "no label":
        (folder / "best/best.json").unlink()
    monkeypatch.setattr("verbs.train.verb.stopping", stopped_at_once)
    done = run("train", "--resume", str(folder))
    assert done.returncode == 75, done.stderr
    assert (f"{folder / 'best'} {said}: " in done.stdout) == bool(said)
    found = manifest(folder)["outcome"].get("best")
    assert (found and {"update": found["update"]}) == (None if said else best)


def test_a_label_is_of_these_files(tmp_path: Path) -> None:
    result = DevResult(1.5, 10, {"strict": 1}, 3, 2, 0.25, (True, False, False))
    (tmp_path / "model.safetensors").write_bytes(bytes(100))
    write_label(tmp_path, 4, result)
    label = read_label(tmp_path)
    assert label is not None
    best = {"update": 4, "result": json.loads(json.dumps(result.as_json()))}
    assert (label.names(best), label.names({**best, "update": 2}), label.fits(tmp_path)) == (True, False, True)
    flip(tmp_path / "model.safetensors")
    assert not label.fits(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"schema": 1, "update": "4", "result": {}, "sha256": {}}'])
def test_a_label_that_cannot_be_read_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "best.json").write_bytes(content)
    assert read_label(tmp_path) is None
