"""The Modelfile: what a chat template writes between the texts, read off it and said in Ollama's language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from jinja2 import Environment

from gsm8k_core.exports.modelfile import Render, Turns, file_name, go_template, modelfile, ollama_name, turns_of
from gsm8k_core.types import DataError, UsageError
from tests.tiny_bytes import CHATML

GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set turns = messages %}{% set system = none %}{% endif %}{% for m in turns %}"
    "{% if m['role'] == 'user' %}[INST] {% if loop.first and system %}<<SYS>>\n{{ system }}\n<</SYS>>\n\n{% endif %}"
    "{{ m['content'] }} [/INST]{% else %} {{ m['content'] }} </s>{% endif %}{% endfor %}"
)
THINKING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n\n</think>\n\n{% endif %}")


def render(template: str) -> Render:
    compiled = Environment().from_string(template)

    def refuse(said: str) -> None:
        raise ValueError(said)

    def rendered(conversation: Sequence[Any]) -> str:
        return compiled.render(messages=conversation, add_generation_prompt=True, raise_exception=refuse)

    return rendered


def test_chatml_with_the_models_own_system_prompt_where_none_is_given() -> None:
    found = turns_of(render(CHATML))
    assert found.start == "<|im_start|>system\n"
    assert found.after_system == "<|im_end|>\n<|im_start|>user\n"
    assert found.first == "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\n"
    assert found.answer == found.answered == "<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("template", [CHATML, LLAMA2, THINKING])
def test_a_long_conversation_is_the_models_own(template: str) -> None:
    ask = render(template)
    found = turns_of(ask)
    texts = [("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four"), ("user", "five")]
    turns = [{"role": role, "content": text} for role, text in texts]
    assert found.prompt([text for _, text in texts], None) == ask(turns)
    assert found.prompt([text for _, text in texts], "S") == ask([{"role": "system", "content": "S"}, *turns])


def test_thinking_is_written_before_the_answer_that_comes_and_not_before_earlier_ones() -> None:
    found = turns_of(render(THINKING))
    assert found.answer.endswith("</think>\n\n")
    assert "think" not in found.answered
    assert "{{ if eq (len (slice $.Messages $i)) 1 }}" in go_template(found)
    assert "slice" not in go_template(turns_of(render(CHATML)))


def test_without_a_system_turn_the_instruction_goes_before_the_question() -> None:
    found = turns_of(render(GEMMA))
    assert found.prompt(["Why?"], "Think.") == render(GEMMA)([{"role": "user", "content": "Think.\n\nWhy?"}])


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ messages[-1]['content'] }}", "leaves out a turn"),
        ("{{ raise_exception('no') }}", r"refused a conversation \(no\)"),
        ("{% for m in messages %}{{ m['content'] }}|{{ loop.index }}{% endfor %}", "not one turn after another"),
        (CHATML.replace("<|im_start|>{{", "{{ '{{' }}{{"), "braces or quotes"),
    ],
)
def test_a_template_that_is_no_row_of_turns_is_refused(template: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        turns_of(render(template))


def test_the_modelfile_answers_as_the_model_was_measured() -> None:
    text = modelfile("m-f16.gguf", Turns("<s>", "</s>", "", "=", "=", "!"), "Solve it.", ["<|im_end|>"])
    lines = text.splitlines()
    assert lines[0] == "FROM ./m-f16.gguf"
    assert lines[2:] == [
        'SYSTEM """Solve it."""',
        'PARAMETER stop "<|im_end|>"',
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
    ]


def test_names_that_ollama_takes() -> None:
    assert ollama_name("20261130-SmolLM2 135M/Instruct") == "20261130-smollm2-135m-instruct"
    assert ollama_name("Модель 7B") == "7b"
    for nothing in ("../..", "Модель"):
        with pytest.raises(UsageError, match=f"letters a to z, .* and '{nothing}' has none of them; add --name"):
            ollama_name(nothing)
    assert len(ollama_name("x" * 300)) <= 60
    assert [file_name(name) for name in ("Моя_Модель 7B", "数学", "../..")] == ["моя-модель-7b", "数学", "model"]
    assert [file_name(name) for name in ("my ❤\ufe0f 1\ufe0f\u20e3", "❤\ufe0f")] == ["my-1", "model"]
    assert [file_name(name) for name in ("a_-b", "मॉडल", "e\u0301te\u0301")] == ["a-b", "मॉडल", "\u00e9t\u00e9"]
