"""What is said of a test's problems: of a run, of one that was trained further, of an older one, of a foreign model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gsm8k_core.config.fields import DEFAULT_DATA, ProblemSettings
from gsm8k_core.models.find import Source
from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.problems.overlap import Questions
from gsm8k_core.report.words import but, overlap_line
from gsm8k_core.types import Choice, Problem
from verbs.overlap import before_training, of_model, with_base

HERE = Choice("folder", "")
ASKED = [Problem("test-0", "Ann has 3 pens?", "#### 1", "1"), Problem("test-1", "Bo has 4 rolls?", "#### 1", "1")]


def model(folder: Path, run: bool = True) -> Source:
    (folder / "model").mkdir(parents=True)
    if run:
        (folder / "run.json").write_text("{}")
    return Source(str(folder), ModelFolder(folder / "model"), HERE)


def test_the_sentence_is_said_only_where_it_was_checked(tmp_path: Path) -> None:
    run = model(tmp_path / "run")
    assert of_model(run, ASKED).line.startswith("not checked: ")  # as of a run of an older version
    Questions.of(ASKED[:1]).write(tmp_path / "run")
    found = of_model(run, ASKED)
    assert (found.checked, found.shared, found.ids) == (True, 1, ("test-0",))
    foreign = of_model(model(tmp_path / "other", run=False), ASKED)
    assert (foreign.checked, foreign.shared) == (False, 0)
    assert "is no model of a run" in foreign.line


def test_a_model_that_is_trained_further_keeps_its_base_s_questions(tmp_path: Path) -> None:
    base = model(tmp_path / "base")
    Questions.of(ASKED[:1]).write(tmp_path / "base")
    assert with_base(Questions.of(ASKED[1:]), base).met(ASKED).shared == 2
    unknown = model(tmp_path / "older")
    assert not with_base(Questions.of(ASKED), unknown).met(ASKED).checked
    assert with_base(Questions.of(ASKED), model(tmp_path / "hub", run=False)).met(ASKED).checked


def test_before_training_the_data_s_own_test_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    rows = [json.dumps({"question": each.question, "answer": each.answer}) + "\n" for each in ASKED]
    (tmp_path / "train.jsonl").write_text(rows[0])
    trained, config = Questions.of(ASKED[:1]), ProblemSettings()
    for reference in (tmp_path, tmp_path / "train.jsonl"):
        name, found = before_training(trained, config, str(reference))
        assert (name, found.line) == (str(reference), "not checked: it has no test problems of its own")
    (tmp_path / "test.jsonl").write_text("".join(rows))
    assert before_training(trained, config, str(tmp_path))[1].shared == 1
    (tmp_path / "test.jsonl").write_text("oops\n")  # it is no reason not to train
    assert "test.jsonl:1: not valid JSON" in before_training(trained, config, str(tmp_path))[1].line
    assert before_training(trained, config, "generated")[1].checked
    assert DEFAULT_DATA not in name


def test_the_verdict_carries_it() -> None:
    shared = {"overlap": {"shared": 1, "line": "1 of the 3"}, "n": 3}
    clean, old = {"overlap": {"shared": 0, "line": "none"}, "n": 3}, {"n": 3}
    assert but({"base": clean, "trained": shared}) == ", but 1 of these 3 problems is in the training data"
    assert but({"base": {**shared, "n": 4}, "trained": old}).endswith("is in the base's training data")
    assert but({"base": clean, "trained": old}) == ""
    assert overlap_line(old) == ""
    assert overlap_line(clean) == "Test problems in the training data: none."
