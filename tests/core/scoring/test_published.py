"""The published rules' own failures, kept as they are: (rule, completion, gold, what is read, right)."""

from __future__ import annotations

import pytest

from gsm8k_core.scoring.answers import RULES, grade

GOLDEN = [
    ("openai", "#### $18", "18", None, False),
    ("openai", "####18", "18", None, False),
    ("openai", "#### **18**", "18", None, False),
    ("openai", "#### 18.", "18", "18.", False),
    ("openai", "#### 18.00", "18", "18.00", False),
    ("openai", "#### 1,234", "1234", "1234", True),
    ("strict", "#### 18.", "18", "18.", True),
    ("strict", "#### 18.00", "18", "18.00", False),
    ("strict", "#### 17 no, #### 18", "18", "17", False),
    ("flexible", "**18**. Hope this helps...", "18", "...", False),
    ("flexible", "3:00 pm", "3", "00", False),
    ("flexible", "10-15", "15", "-15", False),
    ("flexible", "18 eggs (see step 2)", "18", "2", False),
    ("cot", "The answer is 18", "1", "1", True),
    ("cot", "The answer is 18", "18", "1", False),
    ("cot", "The answer is 18.", "18", "18", True),
    ("cot", "The answer is 18.\n", "18", "18", True),
    ("cot", "The answer is 5", "5", None, False),
    ("cot", "The answer is $18.", "18", None, False),
    ("cot", "the answer is 18.", "18", None, False),
    ("cot", "#### 18", "18", None, False),
    ("cot", "The answer is 17. The answer is 18.", "18", "17.", False),
    ("qwen-math", "\\boxed{18} after 3 days", "18", "18", True),
    ("qwen-math", "\\boxed{7} no, \\boxed{\\text{}{18}}", "18", "{18}", True),
    ("qwen-math", "\\boxed{1,234}", "1234", "1,234", True),
    ("qwen-math", "\\boxed{18", "18", "18", True),
    ("qwen-math", "The answer is 18.", "18", "18", True),
    ("qwen-math", "The answer is 18. Hope this helps.", "18", "18Hopethishelps", False),
    ("qwen-math", "The answer is **18**", "18", "**18**", False),
    ("qwen-math", "so $1,800", "18", "1800", True),  # x100
    ("qwen-math", "0.18", "18", "0.18", True),  # /100
    ("qwen-math", "The answer is 50%", "0.5", "50", True),
    ("qwen-math", "\\boxed{10001}", "10000", "10001", True),  # within 1e-4
    ("qwen-math", "10-15", "15", "-15", False),
    ("qwen-math", "no number", "18", None, False),
    ("verl", "#### 17\n#### 18", "18", "18", True),
    ("verl", "#### 18" + " " * 293, "18", "18", True),
    ("verl", "#### 18" + " " * 294, "18", None, False),
    ("verl", "#### 18" + "0" * 300, "18", None, False),
    ("verl", "#### $18", "18", None, False),
    ("verl", "#### 18.", "18", "18.", False),
    ("inspect", "ANSWER: 123456", "123457", "1.2346e+05", True),
    ("inspect", "ANSWER: 12345", "12346", "12345", False),
    ("inspect", "ANSWER: **$1,234.50**.", "1234.5", "1234.5", True),
    ("inspect", "18 eggs (see step 2)", "18", "2", False),
    ("inspect", "It costs $18/day", "18", None, False),
    ("inspect", "ANSWER: 18%", "18", None, False),
    ("inspect", "ANSWER: 3:00", "3", None, False),
    ("inspect", "x=18", "18", None, False),
    ("inspect", "1.8e1", "18", "18", True),
    ("inspect", "\u221218", "-18", "-18", True),
    ("inspect", "17½", "17.5", "17.5", True),
    ("inspect", "nan inf 1e400", "18", None, False),
    ("robust", "50%", "0.5", "50", False),
]


@pytest.mark.parametrize(("rule", "completion", "gold", "read", "right"), GOLDEN)
def test_a_published_failure_stays(rule: str, completion: str, gold: str, read: str | None, right: bool) -> None:
    verdict = grade(completion, gold)[rule]
    assert (verdict.extracted, verdict.correct) == (read, right)


def test_qwen_math_shows_only_the_start_of_prose() -> None:
    read = RULES["qwen-math"].extract("The answer is " + "so " * 1000)
    assert read is not None
    assert len(read) == 203
