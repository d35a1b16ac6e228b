"""Test problems among the questions of a training: what counts as the same, what is kept, what is said."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from gsm8k_core.problems.data import load_data
from gsm8k_core.problems.overlap import QUESTIONS, Questions, folded, read_questions
from gsm8k_core.types import DataError, Problem


def problems(*questions: str) -> list[Problem]:
    return [Problem(f"test-{number}", question, "#### 1", "1") for number, question in enumerate(questions)]


ALIKE = [
    ("Tom's 1,200 EGGS -  how many?", "toms 1200 eggs, how many"),
    ("Tom\N{RIGHT SINGLE QUOTATION MARK}s eggs", "Tom's eggs."),
    ("A 5-year-old has $5.00.", "a 5 year old has 5.00"),
    ("What is 3 + 4?", "what is 3+4"),
    ("\N{MINUS SIGN}5 degrees", "-5 degrees"),
    ("ＦＵＬＬ width １２", "full width 12"),
    ("Ein Ei\u00a0 kostet 2\u20ac", "ein EI kostet 2"),
]
UNLIKE = [
    ("Ann has 3 pens.", "Ann has 4 pens."),
    ("It costs 1.5", "It costs 15"),
    ("It costs 1,5", "It costs 15"),
    ("What is 3 + 4?", "What is 3 - 4?"),
    ("What is 3 * 4?", "What is 3 / 4?"),
    ("-5 degrees", "5 degrees"),
    ("?!", "!?"),
]


@pytest.mark.parametrize("pair", ALIKE)
def test_case_spaces_and_punctuation_are_folded(pair: tuple[str, str]) -> None:
    assert folded(pair[0]) == folded(pair[1])


@pytest.mark.parametrize("pair", UNLIKE)
def test_numbers_and_signs_are_kept(pair: tuple[str, str]) -> None:
    assert folded(pair[0]) != folded(pair[1])


def test_overlaps_are_counted_and_said(tmp_path: Path) -> None:
    trained = Questions.of(problems("Ann has 3 pens?", "Bo has 4 rolls?", "Bo has 4 rolls?"))
    found = trained.met(problems("Ann has 3 pens?", "bo has 4 rolls", "Cy has 5 hats?"))
    assert (found.checked, found.questions, found.problems) == (True, 2, 3)
    assert (found.shared, found.word_for_word, found.ids) == (2, 1, ("test-0", "test-1"))
    assert found.line.startswith("2 of the 3 test problems are among the 2 questions trained on, 1 word for word")
    none = trained.met(problems("Cy has 5 hats?"))
    assert (none.checked, none.shared) == (True, 0)
    assert none.line.startswith("none of the 1 test problems is among the 2 questions")
    trained.write(tmp_path)
    assert read_questions(tmp_path) == trained
    unknown = (trained | Questions(whole=False)).met(problems("Ann has 3 pens?"))
    assert (unknown.checked, unknown.line[:12]) == (False, "not checked:")


def test_a_run_without_questions_is_not_known_and_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    assert read_questions(tmp_path) is None
    Questions.of(problems("a", "b")).write(tmp_path)
    path = tmp_path / QUESTIONS
    whole = path.read_text()
    for damaged in (whole[:-9], whole.replace('"count": 2', '"count": 3'), whole.replace('"exact": "', '"exact": "*')):
        path.write_text(damaged)
        with pytest.raises(DataError, match=QUESTIONS):
            read_questions(tmp_path)


@pytest.mark.skipif("GSM8K_DATA" not in os.environ, reason="GSM8K_DATA names no folder with the real GSM8K")
def test_the_real_gsm8k_takes_no_two_seconds() -> None:
    data = load_data(os.environ["GSM8K_DATA"], "main", 0, print)
    began = time.thread_time()
    found = Questions.of(data.train).met(data.test)
    assert time.thread_time() - began < 2  # of work: the machine may be busy
    assert (found.questions, found.problems, found.shared) == (7473, 1319, 0)
