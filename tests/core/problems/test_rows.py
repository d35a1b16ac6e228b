"""What `inspect` shows of rows: lengths in steps, what is trained in a row, a tokenizer found without weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.problems.data import read_jsonl
from gsm8k_core.problems.prompts import make_examples
from gsm8k_core.problems.rows import Bin, bins, histogram, pieces, resolve_tokenizer, share, summarise
from gsm8k_core.types import DataError, Example, Problem
from tests import fake_hub, tiny
from verbs.inspect import show_row


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    """A folder that holds a tokenizer and no more."""
    folder = tmp_path / "only-a-tokenizer"
    folder.mkdir()
    tiny.tokenizer_files(folder)
    return folder


def quiet(_: str) -> None:
    pass


def row_of(folder: Path) -> tuple[Any, Example]:
    rendering = ModelFolder(folder).rendering
    problem = Problem("train-0", "how many apples", "2 + 3 = 5\n#### 5", "5")
    return rendering.tokenizer, make_examples(rendering, [problem])[0]


# --- lengths --------------------------------------------------------------------------------------------------


def test_steps_are_equal_and_hold_every_row() -> None:
    assert bins([1, 8, 9, 20], limit=100) == [Bin(1, 8, 2), Bin(9, 16, 1), Bin(17, 24, 1)]


def test_the_limit_cuts_a_step_in_two() -> None:
    assert bins([1, 8, 9, 20], limit=10) == [Bin(1, 8, 2), Bin(9, 10, 1), Bin(11, 16, 0), Bin(17, 24, 1)]


@pytest.mark.parametrize("longest", [1, 8, 129, 567, 4096, 100_001])
def test_steps_stay_few_however_long_a_row_is(longest: int) -> None:
    steps = bins([1, longest // 2 + 1, longest], limit=64)
    assert len(steps) <= 17
    assert sum(step.count for step in steps) == 3


def test_a_histogram_fits_in_80_columns_with_one_rule_at_the_limit() -> None:
    lengths = [*range(60, 560), *[200] * 7000]
    for plain in (False, True):
        lines = histogram(lengths, 128, plain=plain)
        assert max(len(line) for line in lines) == 80
        assert [line[:30] for line in lines if line.startswith("--")] == ["-- longer than --max-length 12"]
        assert all(line.isascii() for line in lines) == plain


def test_the_rule_stands_only_where_rows_are_longer() -> None:
    assert not [line for line in histogram([20, 30], 30) if "longer" in line]
    assert "longer" in histogram([20, 30], 16)[0]


def test_a_single_row_among_thousands_is_still_seen() -> None:
    assert histogram([*[10] * 9000, 100], 512)[-1].endswith("1 ▏")
    assert histogram([*[10] * 9000, 100], 512, plain=True)[-1].endswith("1 #")


@pytest.mark.parametrize(
    ("part", "whole", "text"), [(7023, 7473, "94 %"), (440, 7473, "5.9 %"), (5, 7473, "0.07 %"), (0, 9, "0 %")]
)
def test_shares_read_well(part: int, whole: int, text: str) -> None:
    assert share(part, whole) == text


# --- one row --------------------------------------------------------------------------------------------------


def test_pieces_are_the_whole_row_with_its_special_tokens(tokenizer_folder: Path) -> None:
    tokenizer, example = row_of(tokenizer_folder)
    row = pieces(tokenizer, example)
    special = [(piece.text, piece.trained) for piece in row if piece.special]
    assert special[-2:] == [("<end> <start>", False), ("<end>", True)]
    assert next(piece.text for piece in row if piece.trained).startswith("2 + 3 =")
    assert sum(len(tokenizer(piece.text)["input_ids"]) for piece in row) == len(example.tokens)


def test_without_colours_masked_and_trained_are_marked_once_each(tokenizer_folder: Path) -> None:
    text = show_row(pieces(*row_of(tokenizer_folder)), coloured=False).plain
    assert text.startswith("[masked]<start>")
    assert text.count("[masked]") == text.count("[trained]") == 1
    assert text.partition("[trained]")[2].startswith("2 + 3 =")


def test_colours_tell_masked_trained_and_special_apart(tokenizer_folder: Path) -> None:
    text = show_row(pieces(*row_of(tokenizer_folder)), coloured=True)
    assert "[masked]" not in text.plain
    assert len({str(span.style) for span in text.spans}) == 4


# --- the tokenizer, without weights ---------------------------------------------------------------------------


def test_a_folder_with_only_a_tokenizer_is_enough(tokenizer_folder: Path) -> None:
    assert resolve_tokenizer(str(tokenizer_folder), quiet).folder == tokenizer_folder


@pytest.mark.parametrize("record", ["run.json", "checkpoint.json"])
def test_a_run_folder_means_its_model_and_so_does_a_checkpoint(record: str, tmp_path: Path) -> None:
    tiny.make(tmp_path / "run" / "model")
    (tmp_path / "run" / record).write_text("{}")
    assert resolve_tokenizer(str(tmp_path / "run"), quiet).folder == tmp_path / "run" / "model"


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        resolve_tokenizer(str(tmp_path), quiet)


@pytest.mark.parametrize("name", ["./nowhere", "no id", "some/unknown-model"])
def test_what_is_not_there_is_refused(name: str, caches: Path) -> None:
    with pytest.raises(DataError, match="give a folder"):
        resolve_tokenizer(name, quiet)


def test_the_hub_is_asked_for_no_weights(hub: Any) -> None:
    said: list[str] = []
    source = resolve_tokenizer(fake_hub.REAL_MODEL[1], said.append)
    assert source.choice.name == "hub"
    assert (source.folder / "tokenizer.json").is_file()
    assert not list(source.folder.glob("*.safetensors"))
    hub.stop()
    assert resolve_tokenizer(fake_hub.REAL_MODEL[1], said.append).choice.name == "cache"


# --- the real train set ---------------------------------------------------------------------------------------


def test_the_real_train_set_under_128_and_512(gsm8k_data: Path, qwen_tokenizer: Path) -> None:
    """The known figures, under a system turn as long as Qwen's own: 212.4 less the line end."""
    problems = read_jsonl(gsm8k_data / "train.jsonl", "train")
    examples = make_examples(ModelFolder(qwen_tokenizer).rendering, problems)
    assert round(sum(example.num_prompt for example in examples) / len(examples), 1) == 88.6
    short, usual = summarise(examples, 128), summarise(examples, 512)
    assert {name: round(value, 1) for name, value in short.tokens.items()} == {
        "mean": 211.4,
        "p50": 198.0,
        "p95": 342.0,
        "max": 566.0,
    }
    assert (short.rows, short.longer_than_max_length, short.without_supervised_token) == (7473, 6990, 440)
    assert (usual.longer_than_max_length, usual.without_supervised_token) == (5, 0)
    assert sum(step.count for step in bins([len(example.tokens) for example in examples], 128)) == 7473
