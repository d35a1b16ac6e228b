"""The bounded calculator, and what it writes in place of a model."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsm8k_core.models.find import resolve_model
from gsm8k_core.models.tokenizer import Tokenizer, load_tokenizer
from gsm8k_core.problems.prompts import decode, encode
from gsm8k_core.scoring.calculator import (
    MAX_DEPTH,
    MAX_LENGTH,
    Calculator,
    CalculatorError,
    calculate,
    result_of,
    written,
)
from gsm8k_core.scoring.claims import find_claims
from gsm8k_core.types import DataError

SIZE = 100_000


# --- calculate ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("48/2", 24),
        ("2+3*4", 14),
        ("(2+3)*4", 20),
        ("10-4-3", 3),
        ("100/10/5", 2),
        ("$1,234.50 * 2", 2469),
        ("20% * 50", 10),
        ("120*(1-20*.01)", 96),
        ("-36+13+-15+-10", -48),
        ("3*+6", 18),
        ("180//3", 60),
        ("7//2", 3),
        ("3 x 4 × 5", 60),
        ("2(3+4)(1+1)", 28),
        ("6 ÷ 4 − 1 – 0.5", 0),
        ("16 \\times 3 \\div 2", 24),
        ("((1/3))", Fraction(1, 3)),
        ("0.1+0.2", Fraction(3, 10)),
    ],
)
def test_an_expression_has_its_exact_value(expression: str, value: int | Fraction) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        *(
            "",
            " ",
            "x",
            "()",
            "(1",
            "1)",
            "1 2",
            "2 (3)",
            "1/0",
            "5//0",
            "2x + 5",
            "3 % 2",
            "2**3",
            "2^3",
            "5%%",
            "1.2.3",
        ),
        *(
            "1,5",
            "1,00,000",
            "²",
            "٣",
            "1e5",
            "inf",
            "__import__('os')",
            "1=1",
            "1+",
            "*2",
            "1 if 1 else 2",
            "[1]",
            "1\n+1",
        ),
    ],
)
def test_whatever_is_no_expression_is_refused(expression: str) -> None:
    with pytest.raises(CalculatorError):
        calculate(expression)


def test_digits_depth_and_length_are_bounded() -> None:
    assert calculate("9" * 40) == 10**40 - 1
    assert calculate("(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH) == 1
    assert calculate("1" + "+1" * 99) == 100
    for expression in ("9" * 41, "(" * 21 + "1" + ")" * 21, "1" + "+1" * 100, "-" * MAX_LENGTH + "1", "9" * SIZE):
        with pytest.raises(CalculatorError):
            calculate(expression)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Fraction(24), "24"),
        (Fraction(1, 2), "0.5"),
        (Fraction(-1, 8), "-0.125"),
        (Fraction(100, 3), "33.3333"),
        (Fraction(-1, 3), "-0.3333"),
        (Fraction(-1, 300_000), "0.0000"),
    ],
)
def test_a_value_is_written_as_a_person_would(value: Fraction, text: str) -> None:
    assert written(value) == text


Value = Fraction | None  # None: something is divided by zero


def joined(left: tuple[str, Value], sign: str, right: tuple[str, Value]) -> tuple[str, Value]:
    """`(left sign right)` as text, and its value by Python's fractions."""
    text = f"({left[0]}{sign}{right[0]})"
    if left[1] is None or right[1] is None or (sign == "/" and right[1] == 0):
        return text, None
    does = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
    return text, does[sign](left[1], right[1])


EXPRESSIONS = st.recursive(
    st.decimals(0, 9999, places=2).map(lambda number: (str(number), Fraction(number))),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda parts: joined(*parts)),
        inner.map(lambda part: (f"(-{part[0]})", None if part[1] is None else -part[1])),
    ),
    max_leaves=8,
)


@given(EXPRESSIONS)
def test_values_are_those_of_pythons_own_fractions(made: tuple[str, Value]) -> None:
    expression, expected = made
    try:
        found = calculate(expression)
    except CalculatorError as error:
        refusal = str(error)
    else:
        refusal = ""
        assert found == expected
    assert not refusal or expected is None or len(expression) > MAX_LENGTH


@given(st.text("0123456789+-*/().,%$xX× \\=<>\n²", max_size=60) | st.text(max_size=60))
def test_no_text_raises_anything_else(text: str) -> None:
    with suppress(CalculatorError):
        calculate(text)


# --- in place of the model --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("48/2", "24"),
        ("$5 * 3", "15"),
        ("1/2", ".5"),
        ("1-1.25", "-.25"),
        ("3-5", "-2"),
        ("2.50*3", "7.5"),
        ("20%*50", "10"),
        ("10/3", "3.3333"),
        ("2/3", ".6667"),
        ("1/512", ".0020"),
        ("99999*99999", "9999800001"),
    ],
)
def test_a_result_is_written_as_the_train_rows_write_it(expression: str, result: str) -> None:
    assert result_of(expression) == result


class Letters:
    """A tokenizer whose tokens are characters, but for those that are listed."""

    def __init__(self, *merged: str) -> None:
        self.merged = merged

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        rows = []
        for text in texts:
            row = []
            while text:
                whole = next((place for place, piece in enumerate(self.merged) if text.startswith(piece)), None)
                row.append(ord(text[0]) if whole is None else 1_000_000 + whole)
                text = text[1 if whole is None else len(self.merged[whole]) :]
            rows.append(row)
        return rows

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(self.merged[token - 1_000_000] if token >= 1_000_000 else chr(token) for token in tokens)


def forced(text: str, *merged: str) -> str:
    letters = Letters(*merged)
    return letters.decode(Calculator(letters.encode, letters.decode)(letters.encode([text])[0]))


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("He has 48/2 = <<48/2=", "24>>"),
        ("<<1+1=2>>2 and <<2*3=", "6>>"),
        ("<<48/2=24", ""),  # the sign was not the last token: the model writes this one
        ("48/2=", ""),
        ("<<48/2", ""),
        ("<<48/0=", ""),
        ("<<x+1=", ""),
        ("<<=", ""),
        ("<<5+3=8=", ""),
        ("<<5+3==", ""),
        ("<<5\n+3=", ""),
        ("<< 5 + 3 =", "8>>"),
        ("<<(2+3)*4=", "20>>"),
        ("<<" + "+".join(["1"] * 60) + "=", "60>>"),
        ("<<" + "1+" * 120 + "1=", ""),  # longer than an expression may be
        ("and so on " * 50 + "<<100*(1+.5)*2 \\times 3=", "900>>"),
    ],
)
def test_a_result_follows_an_open_annotation_and_nothing_else(text: str, rest: str) -> None:
    assert forced(text) == rest


@pytest.mark.parametrize(
    ("text", "token", "rest"),
    [
        ("<<3-5=-", "=-", "2>>"),
        ("<<1/2=.", "=.", "5>>"),
        ("<<5*3=$", "=$", "15>>"),
        ("<<3-5=(", "=(", "-2)>>"),
        ("<<5*3= ", "= ", "15>>"),
        ("<<5*3=-", "=-", ">>"),  # this is no beginning of 15, so it is closed and says nothing
        ("<<5*3=-(", "=-(", ">>"),
        ("<<5*3=7", "=7", "?>>"),
        ("<<5*3=>", "=>", ""),
        ("<<5*3=", "3=", "15>>"),
        ("<<5*3=", "<<5", "15>>"),
        ("<<5*3=", "15>>", "15>>"),
        ("<<5*3=", "=15", "15>>"),
    ],
)
def test_a_sign_may_share_its_token(text: str, token: str, rest: str) -> None:
    assert forced(text, token) == rest


def test_a_tokenizer_that_cannot_write_a_result_is_refused() -> None:
    letters = Letters()
    with pytest.raises(DataError, match="cannot write '24>>' behind '<<48/2='; leave --calculator out"):
        Calculator(letters.encode, lambda tokens: letters.decode(tokens).replace(">>", "> >"))


def test_only_a_sign_has_more_than_its_own_token_decoded() -> None:
    decoded: list[int] = []
    letters = Letters()

    def decode(tokens: Sequence[int]) -> str:
        decoded.append(len(tokens))
        return letters.decode(tokens)

    calculator = Calculator(letters.encode, decode)
    text = letters.encode(["They sell 48/2 pies. " * 200])[0]
    decoded.clear()
    for end in range(1, len(text)):
        assert not calculator(text[:end])
    assert set(decoded) == {1}
    assert len(decoded) <= len(set(text))  # each token's text is asked for once
    calculator(letters.encode(["They sell 48/2 =" * 200])[0])
    assert max(decoded) == 16


@pytest.fixture(params=["embedded", "qwen"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """SmolLM2's and Qwen2.5's own."""
    if request.param == "embedded":
        return resolve_model("embedded", lambda line: None).model.tokenizer
    return load_tokenizer(request.getfixturevalue("qwen_tokenizer"))


def test_every_annotation_of_real_rows_gets_its_result(tokenizer: Tokenizer, gsm8k_data: Path) -> None:
    """The tokens forced are those that training would have had there, and the text is what it should be."""
    calculator = Calculator.of(tokenizer)
    lines = (gsm8k_data / "test.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    as_trained = others = 0
    for answer in (json.loads(line)["answer"] for line in lines):
        for found in re.finditer(r"<<([^<>=\n]*)=([^<>=\n]*)>>", answer):
            tokens = encode(tokenizer, [answer[: found.end(1) + 1]])[0]
            written = list(calculator(tokens))
            assert decode(tokenizer, [*tokens, *written]) == f"{answer[: found.end(1) + 1]}{result_of(found[1])}>>"
            whole = encode(tokenizer, [f"{answer[: found.end(1) + 1]}{result_of(found[1])}>>"])[0]
            as_trained += whole == [*tokens, *written]
            others += whole != [*tokens, *written]
    assert as_trained > 600
    assert others <= 3


def test_no_token_with_a_sign_leads_to_a_wrong_annotation(tokenizer: Tokenizer) -> None:
    calculator = Calculator.of(tokenizer)
    signs = [token for piece, token in tokenizer.get_vocab().items() if "=" in piece]  # type: ignore[attr-defined]
    assert len(signs) > 50
    right = other = 0
    for head in ("<<48/2", "<<3-5", "<<1/2"):
        start = encode(tokenizer, [head])[0]
        for sign in signs:
            text = decode(tokenizer, [*start, sign, *(written := calculator([*start, sign]))])
            claims = find_claims(text if written else f"{text}7>>")  # the model goes on as wrongly as it can
            assert all(claim.right for claim in claims), text
            right += bool(written and claims)
            other += not claims
    assert right > 10
    assert other > 10
    assert [claim.right for claim in find_claims("<<48/2=7>>")] == [False]  # as it would have been


def test_the_forced_results_of_the_real_train_rows(gsm8k_data: Path) -> None:
    """All are read; 97 % are written as here, and the rest differs in zeros alone: 12.00, 0.5, 7.50."""
    text = (gsm8k_data / "train.jsonl").read_text(encoding="utf-8")
    found = re.findall(r"<<([^<>=\\]*)=([^<>=\\]*)>>", text)
    assert len(found) == 23_716
    other = [(result_of(left), right) for left, right in found if result_of(left) != right]
    assert len(other) == 621  # 484 such as 12.00, 81 such as 7.50 and .50, 56 with a zero before the point
    assert all(calculate(ours) == calculate(theirs) for ours, theirs in other)
