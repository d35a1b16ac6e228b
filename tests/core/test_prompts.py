"""Prompts, masking and end tokens, on a tiny tokenizer and on Qwen2.5's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gsm8k_core.prompts import SYSTEM_PROMPT, decode, load_tokenizer, make_examples, prompt_tokens
from gsm8k_core.types import DataError, Problem
from tests import tiny

PROBLEM = Problem("train-0", "Tom has 4 apples . how many ?", "he has 2 + 2 = << 2 + 2 = 4 >> 4 . #### 4", "4")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.make(tmp_path / "model", "llama")


def retemplate(folder: Path, template: str) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))


def test_the_prompt_is_the_same_in_training_and_evaluation(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    (example,) = make_examples(tokenizer, [PROBLEM], [1])
    (prompt,) = prompt_tokens(tokenizer, [PROBLEM])
    assert example.tokens[: example.num_prompt] == prompt


def test_the_answer_and_the_end_token_are_supervised(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    (example,) = make_examples(tokenizer, [PROBLEM], [1])
    assert decode(tokenizer, example.tokens[example.num_prompt :]) == PROBLEM.answer
    assert 1 in example.tokens[example.num_prompt :]


def test_a_template_without_an_end_token_is_refused(folder: Path) -> None:
    retemplate(folder, tiny.TEMPLATE.replace("<end>", ""))
    with pytest.raises(DataError, match="none of the end tokens"):
        make_examples(load_tokenizer(folder), [PROBLEM], [1])


def test_a_prompt_that_is_not_the_start_of_its_row_is_refused(folder: Path) -> None:
    retemplate(folder, tiny.TEMPLATE.replace("'<start> assistant '", "'<start> assistant + '"))
    with pytest.raises(DataError, match="not the start of the row's; use a model whose template keeps the prompt"):
        make_examples(load_tokenizer(folder), [PROBLEM], [1])


def test_a_template_that_refuses_is_one_clear_error(folder: Path) -> None:
    retemplate(folder, "{{ raise_exception('System role not supported') }}")
    with pytest.raises(DataError, match=r"train-0: System role not supported"):
        make_examples(load_tokenizer(folder), [PROBLEM], [1])


@pytest.mark.parametrize("content", ['{"added_tokens": [], "model": {"type": "Other"}}', "[]", '{"version": "1.0"}'])
def test_a_tokenizer_of_another_form_is_one_clear_error(content: str, folder: Path) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match="cannot be read") as caught:
        load_tokenizer(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_template_is_refused(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["chat_template"]
    path.write_text(json.dumps(settings))
    with pytest.raises(DataError, match="no chat template"):
        load_tokenizer(folder)


def test_qwen_rows_have_the_known_lengths(qwen_tokenizer: Path, gsm8k_data: Path) -> None:
    """The known figures of the real train set, under a system turn as long as Qwen's own."""
    import numpy as np

    from gsm8k_core.data import load_data

    tokenizer = load_tokenizer(qwen_tokenizer)
    problems = load_data(str(gsm8k_data), "main", 0, print, splits=("train",)).train
    examples = make_examples(tokenizer, problems, [151645])
    lengths = np.array([len(example.tokens) for example in examples])
    assert len(examples) == 7473
    assert (round(lengths.mean(), 1), lengths.max(), int(np.median(lengths))) == (212.4, 567, 199)
    prompts = np.array([example.num_prompt for example in examples])
    assert round(float(prompts.mean()), 1) == 88.6
    assert int((lengths > 512).sum()) == 5


def test_qwen_prompts_begin_with_the_named_system_turn(qwen_tokenizer: Path) -> None:
    tokenizer = load_tokenizer(qwen_tokenizer)
    (prompt,) = prompt_tokens(tokenizer, [PROBLEM])
    text = str(tokenizer.decode(list(prompt)))
    assert text == (
        f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\n{PROBLEM.question}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
