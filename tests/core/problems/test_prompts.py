"""Prompts, masking and end tokens, on a tiny tokenizer and on Qwen2.5's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent

import pytest

from gsm8k_core.config.train import TrainConfig
from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.models.tokenizer import Tokenizer, load_tokenizer
from gsm8k_core.problems import prompts
from gsm8k_core.problems.batching import rows_hash
from gsm8k_core.problems.data import carve_dev
from gsm8k_core.problems.prompts import (
    NO_SHOTS,
    PROMPT_NAME,
    SYSTEM_PROMPT,
    choose_shots,
    decode,
    make_examples,
    messages,
    prompt_tokens,
)
from gsm8k_core.training.runs import check
from gsm8k_core.types import DataError, Example, Problem, UsageError
from tests import tiny

PROBLEM = Problem("train-0", "Tom has 4 apples . how many ?", "he has 2 + 2 = << 2 + 2 = 4 >> 4 . #### 4", "4")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.make(tmp_path / "model", "llama")


def retemplate(folder: Path, template: str) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))


def test_the_prompt_is_the_same_in_training_and_evaluation(folder: Path) -> None:
    rendering = ModelFolder(folder).rendering
    (example,) = make_examples(rendering, [PROBLEM])
    (prompt,) = prompt_tokens(rendering, [PROBLEM])
    assert example.tokens[: example.num_prompt] == prompt


TRAIN = [Problem(f"train-{n}", f"how many , {n} ?", f"{n} = <<{n}={n}>>{n}\n#### {n}", str(n)) for n in range(60)]


def test_no_shots_are_the_prompt_of_training(folder: Path) -> None:
    rendering = ModelFolder(folder).rendering
    (example,) = make_examples(rendering, [PROBLEM])
    assert choose_shots(TRAIN, 0, "keep") == NO_SHOTS
    assert prompt_tokens(rendering, [PROBLEM], NO_SHOTS) == [example.tokens[: example.num_prompt]]
    assert NO_SHOTS.prompt_name() == PROMPT_NAME


def test_shots_are_turns_before_the_question(folder: Path) -> None:
    rendering = ModelFolder(folder).rendering
    shots = choose_shots(TRAIN, 2, "keep")
    first, second = shots.before(PROBLEM)
    turns = messages(PROBLEM, shots=(first, second))
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert [turn["content"] for turn in turns[1:4]] == [first.question, first.answer, second.question]
    (few,), (zero,) = prompt_tokens(rendering, [PROBLEM], shots), prompt_tokens(rendering, [PROBLEM])
    asked = len(PROBLEM.question.split()) + 5  # with the marks of its turn and the start of the answer's
    assert few[-asked:] == zero[-asked:]
    assert len(few) > len(zero)


def test_shots_are_the_same_for_every_question_but_never_the_question_itself() -> None:
    shots = choose_shots(TRAIN, 3, "keep")
    usual = shots.before(PROBLEM)
    assert usual == choose_shots(TRAIN[::-1], 3, "keep").before(TRAIN[0]) or TRAIN[0] in usual
    for problem in TRAIN:
        found = shots.before(problem)
        assert len(found) == 3
        assert problem not in found
        assert found == usual or problem in usual
    assert usual != choose_shots(TRAIN, 3, "keep", seed=1).before(PROBLEM)


def test_shots_are_never_dev_problems() -> None:
    train, dev = carve_dev(TRAIN)
    assert dev
    assert {shot.id for shot in choose_shots(TRAIN, len(train), "keep").pool} == {problem.id for problem in train}


def test_more_shots_than_train_problems_are_refused() -> None:
    with pytest.raises(DataError, match="--shots 9: there are only 3 train problems; try --shots 3"):
        choose_shots(TRAIN[:3], 9, "keep")
    with pytest.raises(DataError, match="train-0: there are only 2 other train problems; try --shots 2"):
        choose_shots(TRAIN[:3], 3, "keep").before(TRAIN[0])


def test_the_prompts_name_changes_with_all_that_decides_its_words() -> None:
    names = [
        choose_shots(*arguments).prompt_name()
        for arguments in [
            (TRAIN, 0, "keep"),
            (TRAIN, 1, "keep"),
            (TRAIN, 2, "keep"),
            (TRAIN, 2, "strip"),
            (TRAIN[:30], 2, "keep"),
            (TRAIN, 2, "keep", 1),
        ]
    ]
    assert len(set(names)) == len(names)
    assert choose_shots(TRAIN, 2, "keep").prompt_name() == choose_shots(TRAIN[::-1], 2, "keep").prompt_name()


def test_marks_can_be_left_out_of_the_shots() -> None:
    assert all("<<" in shot.answer for shot in choose_shots(TRAIN, 2, "keep").pool)
    assert not any("<<" in shot.answer for shot in choose_shots(TRAIN, 2, "strip").pool)


def test_the_answer_and_the_end_token_are_supervised(folder: Path) -> None:
    rendering = ModelFolder(folder).rendering
    (example,) = make_examples(rendering, [PROBLEM])
    assert decode(rendering.tokenizer, example.tokens[example.num_prompt :]) == PROBLEM.answer
    assert 1 in example.tokens[example.num_prompt :]


@pytest.mark.parametrize(
    ("closing", "kept"),
    [
        ("<end> ", "<end>"),
        ("<end> #### ", "<end>"),  # as the line end after Qwen's <|im_end|>, only that it shows here
        ("<end> <end> ", "<end>"),  # the turn is closed, then the text: the model stops at the first
    ],
)
def test_nothing_after_the_end_token_is_trained(folder: Path, closing: str, kept: str) -> None:
    plain = make_examples(ModelFolder(folder).rendering, [PROBLEM])
    retemplate(folder, tiny.TEMPLATE.replace(" <end> ", f" {closing}", 1))
    rendering = ModelFolder(folder).rendering
    (example,) = make_examples(rendering, [PROBLEM])
    answer = example.tokens[example.num_prompt :]
    assert decode(rendering.tokenizer, answer) == PROBLEM.answer
    assert list(answer[-1:]) == rendering.tokenizer.convert_tokens_to_ids([kept])
    assert answer.count(1) == 1
    assert answer == plain[0].tokens[plain[0].num_prompt :]


def test_a_text_that_spells_the_end_token_cuts_nothing(folder: Path) -> None:
    odd = Problem("train-0", PROBLEM.question, "he has <end> 4 . #### 4", "4")
    (example,) = make_examples(ModelFolder(folder).rendering, [odd])
    tokens = example.tokens[example.num_prompt :]
    assert (tokens.count(1), tokens[-1], len(tokens)) == (1, 1, 8)


def test_a_run_that_trained_the_line_end_has_other_rows(qwen_tokenizer: Path) -> None:
    """It goes on with its own (tests/e2e/test_resume.py), never with these."""
    (example,) = make_examples(ModelFolder(qwen_tokenizer).rendering, [SHOWN])
    (older,) = make_examples(ModelFolder(qwen_tokenizer).rendering, [SHOWN], whole_turn=True)
    assert example.tokens[-1] == 151645
    assert older == Example(example.id, (*example.tokens, 198), example.num_prompt)
    before, now = ({"rows": rows_hash([each])} for each in (older, example))
    with pytest.raises(UsageError, match=r"rows \(sha256\): .* -> "):
        check(TrainConfig(), TrainConfig(), before, now, force=True)


def test_a_template_without_an_end_token_is_refused(folder: Path) -> None:
    retemplate(folder, tiny.TEMPLATE.replace("<end>", ""))
    with pytest.raises(DataError, match="none of the end tokens"):
        make_examples(ModelFolder(folder).rendering, [PROBLEM])


def test_a_prompt_that_is_not_the_start_of_its_row_is_refused(folder: Path) -> None:
    retemplate(folder, tiny.TEMPLATE.replace("'<start> assistant '", "'<start> assistant + '"))
    with pytest.raises(DataError, match="not the start of the row's; use a model whose template keeps the prompt"):
        make_examples(ModelFolder(folder).rendering, [PROBLEM])


def test_a_template_that_refuses_is_one_clear_error(folder: Path) -> None:
    retemplate(folder, "{{ raise_exception('System role not supported') }}")
    with pytest.raises(
        DataError, match=r"train-0: the chat template of \S+ refused it \(System role not supported\); use another"
    ):
        make_examples(ModelFolder(folder).rendering, [PROBLEM])


@pytest.mark.parametrize("content", ['{"added_tokens": [], "model": {"type": "Other"}}', "[]", '{"version": "1.0"}'])
def test_a_tokenizer_of_another_form_is_one_clear_error(content: str, folder: Path) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match="cannot be read") as caught:
        load_tokenizer(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_the_system_denies_is_a_matter_of_its_rights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    load_tokenizer(folder)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", refuse)
    with pytest.raises(DataError, match=r"cannot be read \(.*Permission denied\); check its rights$"):
        load_tokenizer(folder)


def test_qwen_prompts_begin_with_the_named_system_turn(qwen_tokenizer: Path) -> None:
    rendering = ModelFolder(qwen_tokenizer).rendering
    (prompt,) = prompt_tokens(rendering, [PROBLEM])
    text = str(rendering.tokenizer.decode(list(prompt)))
    assert text == (
        f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\n{PROBLEM.question}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


SHOWN = Problem(
    "train-0", "Tom has 2 apples and buys 3. How many?", "He has 2 + 3 = <<2+3=5>>5.\n#### 5", "5"
)  # prompts.py opens with it


def turns_of(tokenizer: Tokenizer, example: Example) -> Iterator[str]:
    """A row turn by turn, as prompts.py shows it: texts, numbers and mask under one another."""
    lines = ["", "", ""]
    for place, token in enumerate(example.tokens):
        text = tokenizer.decode([token]).replace(" ", "_").replace("\n", "↵")
        column = [text, str(token), str(int(place >= example.num_prompt))]
        lines = [line + cell.ljust(max(map(len, column)) + 1) for line, cell in zip(lines, column, strict=True)]
        if lines[0].rstrip().endswith("<|im_end|> ↵") or place + 1 == example.num_prompt:
            yield "\n".join(f"    {line.rstrip()}" for line in lines)
            lines = ["", "", ""]
    yield "\n".join(f"    {line.rstrip()}" for line in lines)  # the last one ends without a line end


def test_the_row_that_prompts_py_opens_with_is_what_it_makes(qwen_tokenizer: Path) -> None:
    rendering, shown = ModelFolder(qwen_tokenizer).rendering, str(prompts.__doc__)
    (example,) = make_examples(rendering, [SHOWN])
    turns = list(turns_of(rendering.tokenizer, example))
    assert len(turns) == 4
    assert "\n\n".join(turns) in shown
    assert f"    {SHOWN.question}\n\n" + indent(SHOWN.answer, "    ") in shown
    prompt, answer = example.num_prompt, example.num_targets
    assert f"these are {len(example.tokens)} tokens" in shown
    assert f"the prompt's {prompt} tokens are read and never trained, and the answer's {answer} are" in shown
    first, last = (", ".join(map(str, part)) for part in (example.tokens[:3], example.tokens[-2:]))
    assert f'Example("train-0", tokens=({first}, ..., {last}), num_prompt={prompt})' in shown
