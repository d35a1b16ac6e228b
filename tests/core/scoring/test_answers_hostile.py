"""Nothing that a model writes can stop a rule or slow it."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from functools import partial

import pytest

from gsm8k_core.scoring.answers import RULES, grade
from tests.cost import passes

HOSTILE = (
    "\ud800",
    "²",
    "⁻",
    "½",
    "e",
    "(",
    "%",
    "boxed",
    "The answer is ",
    "答案是",
    "٣",
    "\n",
    "\x00",
    "\u00b2",
    "\u0661",
    "####",
    "\\boxed{",
    "}",
    "answer is ",
    "-",
    "$",
    ".",
    "1",
)


def test_no_string_makes_a_rule_raise() -> None:
    rng = random.Random(0)
    for _ in range(3000):
        completion = "".join(rng.choices(HOSTILE, k=rng.randrange(12)))
        grade(completion, "18")


SIZE = 100_000
PATTERNS = (
    "1",
    "1,",
    "1.",
    "1 ",
    "1/",
    "-1",
    "-",
    "$",
    ".",
    "#",
    "####",
    "#### ",
    "####-",
    "####1/2 ",
    "#### 1. a ",
    "####1=",
    "\\boxed{",
    "\\boxed{}",
    "\\boxed{{",
    "\\boxed{1 2}",
    "{",
    "}",
    "{}",
    "answer is ",
    "answer ",
    "answer:1/2 ",
    "=",
    "1=",
    "(",
    " ",
    "\n",
    "9" * 41 + " ",
    "#### " + "9" * 41 + " ",
    "\u00b2",
    "\x00",
    "boxed",
    "he answer is ",
    "The answer is 1",
    "final answer is $",
    "$. I hope",
    "答案是",
    "\\text{",
    "x=",
    "\n ",
    "'",
    "½",
    "⁻",
    "e",
    "Ⅻ",
    "，",
    "*",
    "\\$",
    "٣",
    "− ",
    "−",
    "一",
    ".0",
    "".join(map(chr, range(0x4E00, 0x9000))),
)
READ_BY_ROBUST = (  # and by no published rule
    "<answer>",
    "<think>",
    "</think>",
    "<think>1</think>",
    "### 1\n",
    "#### Step 1 a ",
    "answer\n",
    "answer to ",
    "উত্তর হল ",
    "antwort ist 1 ",
    "答え",
    "ответ - ",
    "10 000 ",
    "1,00,",
    "1.000.",
    "1 1/2 ",
    "9 eggs * ",
    "9*2=",
    "3:30 ",
    "2 hours 3 ",
    "18k ",
    "10^9 ",
    "cm^2 ",
    "\\frac{1}{2}",
    "\\frac{",
    "<<1=1>>",
    "\u200b1",
    "１，",
)
AROUND = (("", ""), ("\\boxed{", " 7"), ("The answer is ", "/7}"), ("#### ", "²"))


def hostile_texts(size: int, patterns: Sequence[str] = PATTERNS) -> Iterator[str]:
    for pattern in patterns:
        body = (pattern * (size // len(pattern) + 1))[:size]
        yield from (start + body + end for start, end in AROUND)


LIMIT = 40.0  # passes of a plain loop over as many letters: the dearest took 9.7, the pattern below 112 at a tenth


def judge(name: str, text: str) -> None:
    found = RULES[name].extract(text)
    if found is not None:
        RULES[name].equal(found, "#### 18")


@pytest.mark.parametrize("name", RULES)
def test_a_hundred_kilobytes_take_each_rule_linear_time(name: str) -> None:
    patterns = PATTERNS + READ_BY_ROBUST if name == "robust" else PATTERNS
    slow = (
        text[:40] for text in hostile_texts(SIZE, patterns) if passes(partial(judge, name, text), SIZE, LIMIT) > LIMIT
    )
    assert list(slow) == []


def test_a_quadratic_pattern_breaks_the_limit() -> None:
    text = "1" * (SIZE // 10)
    assert passes(lambda: re.compile(r"[0-9]+?%").findall(text), SIZE, LIMIT, tries=2) > LIMIT
