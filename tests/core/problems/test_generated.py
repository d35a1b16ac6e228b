"""The generated problems: right, readable, repeatable, and the held-out templates really held out."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from gsm8k_core.problems import generated, stories
from gsm8k_core.problems.generated import HELD_OUT, LEVEL_MIX, TEMPLATES, Template, generate_problems
from gsm8k_core.problems.stories import Draw, Story
from gsm8k_core.types import DataError, Problem, UsageError

ANNOTATION = re.compile(r"(\S+) = \$?<<([0-9+*/-]+)=([0-9]+)>>([0-9]+)")
LEVEL = {template.name: template.level for template in TEMPLATES}
# Numbers that a question may say in words, and the words that say them.
IN_WORDS = {
    2: r"half|twice|there and back|50%",
    3: r"third|three times",
    4: r"fourth|four times|25%",
    5: r"fifth|20%",
    7: r"weeks",
    10: r"10%",
    12: r"dozen",
}


def compute(expression: str) -> Fraction:
    """A sum of products, from left to right; at most 40 characters of digits and + - * /."""
    if len(expression) > 40:
        raise ValueError("too long")
    total = Fraction(0)
    for sign, product in re.findall(r"(^|[+-])([^+-]+)", expression):
        factors = re.findall(r"(^|[*/])([0-9]+)", product)
        value = Fraction(1)
        for operation, number in factors:
            value = value / int(number) if operation == "/" else value * int(number)
        total += -value if sign == "-" else value
    return total


def wrong_annotations(problem: Problem) -> list[str]:
    """The lines of an answer whose annotation is missing, wrong, or not what stands around it."""
    *steps, last = problem.answer.split("\n")
    found = [(line, ANNOTATION.findall(line)) for line in steps]
    wrong = [
        line
        for line, matches in found
        if len(matches) != 1
        or matches[0][0] != matches[0][1]
        or matches[0][2] != matches[0][3]
        or compute(matches[0][1]) != int(matches[0][2])
    ]
    if last != f"#### {problem.gold}" or found[-1][1][-1][3] != problem.gold:
        wrong.append(last)
    return wrong


def operands_not_given(problem: Problem) -> list[int]:
    """Operands that are neither in the question, in digits or words, nor the result of an earlier step."""
    known = {int(number) for number in re.findall(r"[0-9]+", problem.question)}
    known |= {number for number, words in IN_WORDS.items() if re.search(words, problem.question, re.IGNORECASE)}
    missing = []
    for _, expression, result, _ in ANNOTATION.findall(problem.answer):
        missing += [int(number) for number in re.findall(r"[0-9]+", expression) if int(number) not in known]
        known.add(int(result))
    return missing


SLIPS = {
    "two spaces or a line break": r"  |\n",
    "a brace": r"[{}]",
    "one of many": r"(?<![0-9.,])1 (?!<<)[a-z]",
    "a before a vowel": r"\b[Aa] [aeio]",
    "a doubled word": r"\b(\w+) \1\b",
    "no capital": r"^[a-z]|[.?] [a-z]",
    "nothing": r"(?<![0-9])0 [a-z]",
}


def slips(problem: Problem) -> list[str]:
    texts = (problem.question, *problem.answer.split("\n"))
    plain = [re.sub(r"\S+ = \$?<<.*?>>", "", text) for text in texts]
    return [name for name, pattern in SLIPS.items() for text in plain if re.search(pattern, text)]


@pytest.fixture(scope="module")
def problems() -> tuple[list[Problem], list[Problem]]:
    return generate_problems(seed=7, num_train=2600, num_test=400)


@pytest.fixture(scope="module")
def both(problems: tuple[list[Problem], list[Problem]]) -> list[Problem]:
    return problems[0] + problems[1]


def small(expression: str = "6*7", result: str = "42", gold: str = "42") -> Problem:
    answer = f"Anna has {expression} = <<{expression}={result}>>{result} plums.\n#### {gold}"
    return Problem("test-0", "Anna has 6 baskets of 7 plums. How many plums does Anna have?", answer, gold)


def test_same_seed_same_problems() -> None:
    assert generate_problems(3, 40, 20) == generate_problems(3, 40, 20)


def test_another_seed_other_problems() -> None:
    train, test = generate_problems(3, 40, 20)
    other_train, other_test = generate_problems(4, 40, 20)
    assert not {row.question for row in train + test} & {row.question for row in other_train + other_test}


def test_seed_0_is_the_same_on_every_machine() -> None:
    # A change here means that every result measured on generated problems is measured on other problems.
    train, test = generate_problems(0, 100, 100)
    text = "\n".join(f"{row.id} {row.template} {row.question} {row.answer}" for row in train + test)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "17e8882c1a9fa42e"


def test_counts_and_ids() -> None:
    train, test = generate_problems(0, 30, 10)
    assert [row.id for row in train] == [f"train-{number}" for number in range(30)]
    assert [row.id for row in test] == [f"test-{number}" for number in range(10)]


def test_test_rows_do_not_depend_on_the_number_of_train_rows() -> None:
    assert generate_problems(0, 10, 50)[1] == generate_problems(0, 300, 50)[1]


def test_fewer_rows_are_the_first_of_more() -> None:
    train, test = generate_problems(0, 60, 60)
    assert generate_problems(0, 20, 60)[0] == train[:20]
    assert generate_problems(0, 0, 25)[1] == test[:25]


def test_no_question_twice(both: list[Problem]) -> None:
    assert len({row.question for row in both}) == 3000


def test_template_names_are_unique() -> None:
    assert len(LEVEL) == len(TEMPLATES) == 50


def test_eight_held_out_templates_over_all_levels() -> None:
    assert len(HELD_OUT) == 8
    assert {LEVEL[name] for name in HELD_OUT} == {1, 2, 3, 4}


def test_held_out_templates_are_never_in_train(problems: tuple[list[Problem], list[Problem]]) -> None:
    assert not HELD_OUT & {row.template for row in problems[0]}


def test_all_held_out_templates_are_in_test(problems: tuple[list[Problem], list[Problem]]) -> None:
    assert {row.template for row in problems[1]} >= HELD_OUT


def test_every_other_template_is_in_train_and_test(problems: tuple[list[Problem], list[Problem]]) -> None:
    others = LEVEL.keys() - HELD_OUT
    assert len(others) >= 40
    for rows in problems:
        assert {row.template for row in rows} >= others


@pytest.mark.parametrize("prefix", [100, 101, 150, 257, 399, 400])
def test_any_test_prefix_has_its_share_of_held_out(problems: tuple[list[Problem], list[Problem]], prefix: int) -> None:
    share = sum(row.template in HELD_OUT for row in problems[1][:prefix]) / prefix
    assert 0.15 <= share <= 0.25


def test_levels_come_in_the_stated_mix(problems: tuple[list[Problem], list[Problem]]) -> None:
    levels = Counter(LEVEL[str(row.template)] for row in problems[0][:400])
    assert levels == {level: 16 * count for level, count in LEVEL_MIX.items()}


def test_a_level_is_the_number_of_steps(both: list[Problem]) -> None:
    assert all(row.answer.count("<<") == LEVEL[str(row.template)] for row in both)


def test_every_annotation_recomputes_and_the_last_is_the_gold(both: list[Problem]) -> None:
    assert [line for row in both for line in wrong_annotations(row)] == []


def test_every_operand_is_in_the_question_or_computed(both: list[Problem]) -> None:
    assert [(row.question, missing) for row in both if (missing := operands_not_given(row))] == []


def test_no_slips_of_language(both: list[Problem]) -> None:
    assert [(row.question, row.answer, found) for row in both if (found := slips(row))] == []


def test_a_question_ends_with_its_question(both: list[Problem]) -> None:
    assert all(row.question.endswith("?") and row.question.count("?") == 1 for row in both)


def test_golds_are_small_whole_numbers(both: list[Problem]) -> None:
    golds = [int(row.gold) for row in both]
    assert min(golds) >= 2
    assert max(golds) <= 1000
    assert sum(gold < 200 for gold in golds) > 0.95 * len(golds)


def test_answers_are_short(both: list[Problem]) -> None:
    assert float(np.median([len(row.answer.split()) for row in both])) <= 45


@pytest.mark.parametrize(
    "problem",
    [
        small(result="43", gold="43"),
        small(gold="41"),
        small(expression="6*8"),
        Problem("test-0", "?", "Anna has 6*7 = <<6*7=42>>43 plums.\n#### 42", "42"),
        Problem("test-0", "?", "Anna has 6+7 = <<6*7=42>>42 plums.\n#### 42", "42"),
        Problem("test-0", "?", "Anna has 42 plums.\nShe has 6*7 = <<6*7=42>>42.\n#### 42", "42"),
    ],
)
def test_control_a_corrupted_annotation_is_found(problem: Problem) -> None:
    assert wrong_annotations(small()) == []
    assert wrong_annotations(problem) != []


def test_control_an_operand_from_nowhere_is_found() -> None:
    assert operands_not_given(small()) == []
    assert operands_not_given(small("5*7", "35", "35")) == [5]


@pytest.mark.parametrize(
    "question", ["Ann has 1 apples.", "Ann  has 2.", "{who} has 2.", "An has a orange.", "Ann has 0 figs."]
)
def test_control_a_slip_is_found(question: str) -> None:
    assert slips(small()) == []
    assert slips(Problem("test-0", question, "#### 1", "1")) != []


@pytest.mark.parametrize(
    ("expression", "value"),
    [("48/2", 24), ("19+38+33", 90), ("9-2-3", 4), ("2+3*4", 14), ("7/2", Fraction(7, 2))],
)
def test_the_evaluator(expression: str, value: Fraction) -> None:
    assert compute(expression) == value


def test_a_step_that_is_not_a_whole_number_is_refused() -> None:
    with pytest.raises(ValueError, match="7/2"):
        stories.divide(7, 2)
    with pytest.raises(ValueError, match="3-5"):
        stories.subtract(3, 5)


def test_more_rows_than_there_are_questions_is_a_data_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def two_questions(draw: Draw) -> Story:
        return Story(f"Is it {draw.number(2, 3)}?", ("It is 1+1 = <<1+1=2>>2.",), 2)

    monkeypatch.setattr(
        generated, "TEMPLATES", tuple(Template(f"yes_{level}", level, two_questions) for level in LEVEL_MIX)
    )
    assert len(generate_problems(0, 1, 1)[0]) == 1
    with pytest.raises(DataError, match="after 2 rows; ask for fewer rows"):
        generate_problems(0, 2, 1)


@pytest.mark.parametrize("arguments", [(-1, 2, 2), (0, -2, 2), (0, 2, -2)])
def test_negative_numbers_are_refused(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError):
        generate_problems(*arguments)
