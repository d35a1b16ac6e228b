"""Dates, thoughts, instructions and templates: the same wherever a model is asked, and no thought is read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gsm8k_core.models import prompt_settings
from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.models.prompt_settings import NOTHING, PromptSettings, from_json, given, saved_in
from gsm8k_core.models.rendering import SYSTEM_PROMPT, Rendering
from gsm8k_core.models.tokenizer import load_tokenizer
from gsm8k_core.problems.prompts import make_examples, prompt_tokens
from gsm8k_core.scoring.answers import RULES, grade
from gsm8k_core.scoring.evaluate import make_record, thoughts
from gsm8k_core.scoring.thinking import count_tokens, split
from gsm8k_core.types import Completion, DataError, Problem, UsageError
from tests import tiny

PROBLEM = Problem("test-0", "how many apples ?", "2 + 3 = 5 . #### 5", "5")
TURNS = "{% for m in messages %}{{ '<start> ' + m['role'] + ' ' + m['content'] + ' <end> ' }}{% endfor %}"
OPEN = "{% if add_generation_prompt %}{{ '<start> assistant ' }}{% endif %}"
# As Qwen3's: an empty thought in the last answer, and in a prompt where thinking is off.
QWEN3 = (
    "{% for m in messages %}{% if m.role == 'assistant' and loop.last %}"
    "{{ '<start> assistant <think>\n\n</think>\n\n' + m.content.lstrip('\n') + ' <end> ' }}"
    "{% else %}{{ '<start> ' + m.role + ' ' + m.content + ' <end> ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start> assistant ' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
# As SmolLM3's: the date and the mode in the system turn, on unless it is switched off.
SMOLLM3 = (
    "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"
    "{{ '<start> system Today Date: ' ~ strftime_now('%d %B %Y') ~ ' ' ~ messages[0].content ~ ' <end> ' }}"
    "{% for m in messages[1:] %}{% if m.role == 'assistant' and not enable_thinking %}"
    "{{ '<start> assistant <think>\n\n</think>\n' + m.content + ' <end> ' }}"
    "{% else %}{{ '<start> ' + m.role + ' ' + m.content + ' <end> ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start> assistant ' }}{% if not enable_thinking %}{{ '<think>\n\n</think>\n' }}"
    "{% endif %}{% endif %}"
)
# As Llama 3.2's: a date of its own where there is no clock.
LLAMA = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}"
    "{% endif %}{{ '<start> Today ' + date_string + ' ' }}" + TURNS + OPEN
)
# As DeepSeek-R1's: every prompt begins a thought, and no row has one.
BEGINS = TURNS + "{% if add_generation_prompt %}{{ '<start> assistant <think>\n' }}{% endif %}"
EMPTY = "<think>\n\n</think>\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("asked") / "model", "llama")


def rendering(folder: Path, template: str, asked: PromptSettings = NOTHING) -> Rendering:
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = template
    return Rendering.of(tokenizer, ModelFolder(folder).end_ids, asked)


def texts(made: Rendering) -> tuple[str, str]:
    """The prompt and the row."""
    turns = [
        {"role": "system", "content": made.system},
        {"role": "user", "content": PROBLEM.question},
        {"role": "assistant", "content": PROBLEM.answer},
    ]
    return made.render(turns[:2], True).text, made.render(turns, False).text


# --- the date ---


@pytest.mark.parametrize("template", [LLAMA, SMOLLM3])
def test_a_templates_clock_stands_still(template: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_settings, "today", lambda: "2026-11-29")
    first = rendering(folder, template)
    monkeypatch.setattr(prompt_settings, "today", lambda: "2026-11-30")
    again, later = rendering(folder, template, first.settled), rendering(folder, template)
    assert "29 Nov" in texts(first)[0]
    assert texts(again) == texts(first)
    assert texts(later) != texts(first)  # what midnight would do
    assert again.name == first.name != later.name
    assert first.as_json()["date"] == "2026-11-29"
    assert from_json(first.as_json(), "run.json").date == "2026-11-29"
    assert "is 2026-11-29 in every prompt" in "\n".join(first.notes())


def test_a_template_without_a_clock_has_no_date(folder: Path) -> None:
    made = rendering(folder, TURNS + OPEN, PromptSettings(date="2020-01-01"))
    assert (made.date, made.thinking, made.settings()) == ("", "", {})
    assert made.name == "gsm8k-chat-v1"
    assert made.notes() == []


def test_the_clock_is_at_the_first_moment_of_its_day(folder: Path) -> None:
    made = rendering(folder, "{{ strftime_now('%d %B %Y %H:%M:%S') }} " + TURNS + OPEN, PromptSettings("2026-11-29"))
    assert texts(made)[0].startswith("29 November 2026 00:00:00 ")


# --- thinking ---


@pytest.mark.parametrize("template", [QWEN3, SMOLLM3, BEGINS], ids=["qwen3", "smollm3", "begins"])
def test_off_is_the_default_and_its_prompt_begins_the_row(template: str, folder: Path) -> None:
    made = rendering(folder, template)
    prompt, row = texts(made)
    assert made.thinking == "off"
    assert EMPTY in prompt
    assert row.startswith(prompt)
    assert row.removeprefix(prompt).split()[-1] == "<end>"
    (example,) = make_examples(made, [PROBLEM])
    assert example.tokens[: example.num_prompt] == tuple(prompt_tokens(made, [PROBLEM])[0])
    assert made.text(example.tokens[example.num_prompt :]).strip() == PROBLEM.answer
    assert "thinking off" in "\n".join(made.notes())


@pytest.mark.parametrize("template", [QWEN3, SMOLLM3, BEGINS], ids=["qwen3", "smollm3", "begins"])
def test_on_is_another_prompt_and_another_key(template: str, folder: Path) -> None:
    off, on = (rendering(folder, template, PromptSettings(thinking=how)) for how in ("off", "on"))
    assert EMPTY in texts(off)[0]
    assert EMPTY not in texts(on)[0]
    assert off.name.endswith("thinking-off")
    assert on.name.endswith("thinking-on")
    assert on.settled.thinking == "on"


def test_thinking_is_refused_where_the_template_knows_none(folder: Path) -> None:
    with pytest.raises(UsageError, match="--thinking on"):
        rendering(folder, TURNS + OPEN, PromptSettings(thinking="on"))


THOUGHTS = {
    "<think>2 + 2 = 4\n#### 4</think>it is 5\n#### 5": ("it is 5\n#### 5", True),
    "it is 5\n#### 5<think>or #### 4</think>": ("it is 5\n#### 5", True),
    "or #### 4\n</think>\n\n#### 5": ("\n\n#### 5", True),  # the prompt began it
    "[THINK]#### 4[/THINK]#### 5": ("#### 5", True),
    "<think><think></think>#### 5": ("#### 5", True),
    "#### 5 <think> #### 5": ("", False),
    "<think>#### 5": ("", False),
    "1 < 2 and [2] > 1\n#### 5": ("1 < 2 and [2] > 1\n#### 5", True),
}


@pytest.mark.parametrize("completion", THOUGHTS)
def test_no_rule_reads_a_thought(completion: str) -> None:
    answer, closed = THOUGHTS[completion]
    found = split(completion)
    assert (found.answer, found.closed) == (answer, closed)
    verdicts = grade(completion, "#### 5")
    assert {name: verdict.extracted for name, verdict in verdicts.items()} == {
        name: rule.extract(answer) for name, rule in RULES.items()
    }
    assert verdicts["robust"].correct == closed


def test_many_marks_take_no_longer_than_one_look() -> None:
    assert split("<think></think>" * 100_000).answer == ""
    assert not split("</think><think>" * 100_000).closed


def test_a_thoughts_tokens_are_counted(folder: Path) -> None:
    def decode(tokens: object) -> str:
        return "".join(words[token] for token in tokens)  # type: ignore[attr-defined]

    words = ["<think>", "two ", "three", "</think>", "#### ", "5"]
    completion = Completion((0, 1, 2, 3, 4, 5), "stop", 1)
    record = make_record(PROBLEM, completion, decode(completion.tokens), 0, decode)
    cut = Completion((0, 1, 2), "length", None)
    unclosed = make_record(PROBLEM, cut, decode(cut.tokens), 0, decode)
    plain = make_record(PROBLEM, Completion((4, 5), "stop", 1), "#### 5", 0, decode)
    assert record["thought"] == {"tokens": 4, "closed": True}
    assert unclosed["thought"] == {"tokens": 3, "closed": False}
    assert unclosed["rules"]["robust"]["extracted"] is None
    assert "thought" not in plain
    assert thoughts([record, unclosed, plain]) == {"answers": 2, "mean_tokens": 3.5, "unclosed": 1}
    assert thoughts([plain]) is None
    assert count_tokens((), 0, decode) == 0


def test_marks_that_are_special_tokens_stay_in_the_text(folder: Path, tmp_path: Path) -> None:
    """Decoding leaves special tokens out: what was thought would be read as the answer."""
    other = tiny.make(tmp_path / "special", "llama")
    held = json.loads((other / "tokenizer.json").read_text())
    held["added_tokens"] += [
        {**held["added_tokens"][0], "id": 39 + place, "content": mark}
        for place, mark in enumerate(("<think>", "</think>"))
    ]
    (other / "tokenizer.json").write_text(json.dumps(held))
    made = rendering(other, QWEN3)
    tokens = made.tokenizer("<think> 2 + 2 </think> #### 5", add_special_tokens=False)["input_ids"]
    assert "2 + 2" not in split(made.text(tokens)).answer
    assert split(made.text(tokens)).answer.strip() == "#### 5"
    assert made.text([*tokens, 1]) == made.text(tokens)  # other special tokens are left out


def test_a_thought_that_the_prompt_began_is_a_thought(folder: Path) -> None:
    made = rendering(folder, BEGINS, PromptSettings(thinking="on"))
    tokens = made.tokenizer("2 + 2 #### 4", add_special_tokens=False)["input_ids"]
    assert split(made.text(tokens)).answer == ""  # never closed
    assert not grade(made.text(tokens), "#### 4")["robust"].correct


# --- an instruction and a template of one's own ---


def test_they_are_used_named_and_kept_in_the_models_folder(folder: Path, tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("mine " + LLAMA)
    asked = replace(given("auto", "count the apples", template), date="2026-11-29")
    made = ModelFolder(folder, asked).rendering
    prompt, _ = texts(made)
    assert prompt.startswith("mine")
    assert "count the apples" in prompt
    assert SYSTEM_PROMPT not in prompt
    assert made.name != ModelFolder(folder).rendering.name
    assert str(template) in "\n".join(made.notes())
    saved = Path(tiny.make(tmp_path / "saved", "llama"))
    made.write(saved)
    moved = saved.rename(tmp_path / "moved")
    again = ModelFolder(moved, saved_in(moved)).rendering
    assert texts(again) == texts(made)
    assert again.name == made.name
    from_run = from_json(json.loads(json.dumps(made.as_json())), "run.json")
    assert texts(ModelFolder(folder, from_run).rendering) == texts(made)


def test_what_is_asked_for_wins_over_what_was_saved() -> None:
    saved = PromptSettings("2026-11-29", "on", "old", "template", "there")
    assert PromptSettings(thinking="off").over(saved) == replace(saved, thinking="off")
    assert PromptSettings(template="t", template_name="here").over(saved).template_name == "here"
    assert NOTHING.over(saved) == saved


BAD = {
    "missing": (None, UsageError, "does not exist"),
    "blank": (b" \n", DataError, "holds no template"),
    "no text": (b"\xff\xfe\x00", DataError, "is not UTF-8"),
    "no Jinja": (b"{% for m in messages %}{{ m.content ", DataError, "mine.jinja refused it"),
    "without the question": (b"hello", DataError, "mine.jinja leaves out the text"),
    "without end": (
        b"{% for a in range(99999) %}{% for b in range(99999) %}{{ 1 }}{% endfor %}{% endfor %}",
        DataError,
        "is refused",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_template_is_one_line_with_its_name(case: str, folder: Path, tmp_path: Path) -> None:
    content, kind, words = BAD[case]
    path = tmp_path / "mine.jinja"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(kind, match=words) as caught:
        ModelFolder(folder, given("auto", "", path)).rendering  # noqa: B018
    assert "mine.jinja" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"date": "yesterday"}, "date"),
        ({"date": "2026-99-99"}, "date must be a day"),
        ({"thinking": "maybe"}, "thinking"),
        ({"instruction": 3}, "instruction must be a text"),
    ],
)
def test_what_a_stranger_wrote_there_is_typed(values: object, words: str, tmp_path: Path) -> None:
    (tmp_path / "prompt.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=rf"prompt\.json.*{words}"):
        saved_in(tmp_path)


def test_a_blank_instruction_is_refused() -> None:
    with pytest.raises(UsageError, match="--system-prompt is blank"):
        given("auto", " ", None)
