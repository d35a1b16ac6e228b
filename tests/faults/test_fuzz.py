"""Whatever bytes come in: our own errors and no others, bounded results, and what was written is what is read.

`make faults` gives each property 100 times as many examples, drawn anew (FUZZ_EXAMPLES).
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gsm8k_core.files import file_hash
from gsm8k_core.models.folder import ModelFolder, rope_theta
from gsm8k_core.problems.data import read_jsonl
from gsm8k_core.problems.gold import gold_number
from gsm8k_core.problems.lines import is_text
from gsm8k_core.scoring.answers import HEADLINE, RULES, grade
from gsm8k_core.scoring.calculator import CalculatorError, calculate, written
from gsm8k_core.scoring.claims import MAX_CLAIMS, find_claims
from gsm8k_core.tracking.terminal import printable
from gsm8k_core.training.checkpoints import newest
from gsm8k_core.training.metrics import cut_metrics
from gsm8k_core.types import DataError
from tests.cost import passes
from tests.fake_checkpoints import FakeLive, rewrite, same_state, save

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "100"))
FUZZ = settings(max_examples=EXAMPLES, deadline=None, derandomize="FUZZ_EXAMPLES" not in os.environ, database=None)
DISK = settings(FUZZ, max_examples=max(EXAMPLES // 4, 25))  # those that write folders

PIECES = (
    "####",
    "#### ",
    "18",
    "-3",
    "1,234",
    ".5",
    "$",
    "%",
    "\\boxed{",
    "}",
    "{",
    "answer is ",
    "The answer is ",
    "=",
    "\n",
    " ",
    "<<48/2=24>>",
    "**",
    "\u2212",
    "\u0663",
    "\u00b2",
    "\u00bd",
    "\x1b[31m",
    "\0",
    "1/2",
    "3:00",
    "答案是",
    "e9",
    "(",
    ")",
    "x",
    "+",
    "*",
    "//",
    "≈",
    "\\times",
    "\\frac{1}{2}",
    "9" * 50,
)
TEXTS = st.text(max_size=80) | st.lists(st.sampled_from(PIECES), max_size=20).map("".join)
NUMBERS = st.one_of(
    st.integers(-(10**9), 10**9).map(str),
    st.integers(0, 10**9).map(lambda number: f"{number:,}"),
    st.decimals(-10_000, 10_000, places=2).map(str),
    st.decimals(0, 10_000, places=2).map(lambda number: f"${number:,}"),
)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a property: hypothesis calls a test many times with the same fixtures."""
    return tmp_path_factory.mktemp("fuzz")


def refusal(read: Callable[..., object], *given: object) -> str | None:
    """What our error says, or None where there was none; any other error is a failure."""
    try:
        read(*given)
    except DataError as error:
        return str(error)
    return None


# --- extractors -----------------------------------------------------------------------------------------------------


@FUZZ
@given(TEXTS, NUMBERS)
def test_no_text_makes_a_rule_raise_or_grow(text: str, gold: str) -> None:
    verdicts = grade(text, f"#### {gold}")
    assert set(verdicts) == set(RULES)
    for name, verdict in verdicts.items():
        assert verdict.extracted is None or len(verdict.extracted) <= len(text) + 25, name  # inspect: 1.2346e+05
        assert verdict.extracted is not None or not verdict.correct, name
    assert grade(text, f"#### {gold}") == verdicts


@FUZZ
@given(NUMBERS, st.sampled_from(["", "He has 3 left.\n", "48/2 = 24\n", "\\boxed{7} "]))
def test_the_gold_itself_is_right_under_each_headline_rule(gold: str, before: str) -> None:
    verdicts = grade(f"{before}#### {gold}", f"#### {gold}")
    ruled = HEADLINE if not gold.startswith("$") else ("robust",)  # lm-eval's strict cannot read a $: published
    assert {name: verdicts[name].correct for name in ruled} == dict.fromkeys(ruled, True)


@FUZZ
@given(NUMBERS)
def test_a_plain_gold_stays_as_it_is_and_keeps_its_value(gold: str) -> None:
    plain = gold_number(f"#### {gold}")
    assert gold_number(f"#### {plain}") == plain
    assert Decimal(plain) == Decimal(re.sub("[$,]", "", gold))


@FUZZ
@given(TEXTS)
def test_what_robust_read_it_reads_again(text: str) -> None:
    found = RULES["robust"].extract(text)
    if found is not None:
        assert RULES["robust"].extract(f"#### {found}") == found


@FUZZ
@given(TEXTS)
def test_a_gold_is_read_or_refused_with_our_error(text: str) -> None:
    said = refusal(gold_number, text)
    if said is None:
        assert re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", gold_number(text))
    else:
        assert printable(said) == said
        assert len(said) < 1000


LIMIT = 100.0  # passes of a plain loop over 100 kB, for one rule: 10 in the dearest that was measured


@settings(FUZZ, max_examples=max(EXAMPLES // 10, 10))
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=6))
def test_100_kb_of_any_mixture_is_read_in_linear_time(units: list[str]) -> None:
    unit = "".join(units)
    text = unit * (100_000 // len(unit))
    for name, rule in RULES.items():
        found = rule.extract(text)
        assert passes(partial(rule.extract, text), len(text), LIMIT) < LIMIT, name
        assert found is None or len(found) <= len(text)


# --- the JSONL reader -----------------------------------------------------------------------------------------------

WORDS = st.text(min_size=1, max_size=30).filter(lambda text: bool(text.strip()) and is_text(text))
ROWS = st.lists(st.tuples(WORDS, st.text("abc 123", max_size=20), st.integers(-999, 10**6)), min_size=1, max_size=5)


@FUZZ
@given(ROWS, st.booleans(), st.sampled_from(["\n", "\r\n", "\n\n", "\n \t\n"]), st.booleans(), st.booleans())
def test_rows_come_back_as_they_were_written(
    folder: Path, rows: list[tuple[str, str, int]], ascii_only: bool, end: str, mark: bool, last: bool
) -> None:
    objects = [{"question": question, "answer": f"{steps}\n#### {gold}"} for question, steps, gold in rows]
    text = end.join(json.dumps(row, ensure_ascii=ascii_only) for row in objects) + (end if last else "")
    path = folder / "rows.jsonl"
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + text.encode())
    found = read_jsonl(path, "train")
    assert [{"question": problem.question, "answer": problem.answer} for problem in found] == objects
    assert [problem.gold for problem in found] == [str(gold) for _, _, gold in rows]


GOOD = b'{"question": "q", "answer": "#### 1"}\n'
BROKEN = st.one_of(
    st.binary(max_size=60),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(st.sampled_from(["question", "answer", "more"]), JSON, max_size=3).map(
        lambda value: json.dumps(value).encode()
    ),
    st.tuples(st.integers(0, len(GOOD) - 1), st.binary(max_size=3)).map(
        lambda cut: GOOD[: cut[0]] + cut[1] + GOOD[cut[0] + 1 :]
    ),
)


@FUZZ
@given(st.lists(BROKEN, max_size=4))
def test_any_bytes_are_problems_or_one_line_with_the_place(folder: Path, parts: list[bytes]) -> None:
    path = folder / "bytes.jsonl"
    path.write_bytes(b"\n".join(parts))
    said = refusal(read_jsonl, path, "train")
    if said is not None:
        assert said.startswith((f"{path}:", f"{path} has no problems"))
        assert len(said) < 500 + len(str(path))
        assert printable(said) == said
        assert "\n" not in said
    else:
        golds = [problem.gold for problem in read_jsonl(path, "train")]
        assert all(re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", gold) for gold in golds)


# --- the checkpoint reader ------------------------------------------------------------------------------------------


def changed(content: bytes, how: str, at: int, new: bytes) -> bytes:
    place = at % (len(content) + 1)
    if how == "cut":
        return content[:place]
    if how == "insert":
        return content[:place] + new + content[place:]
    return content[:place] + new + content[place + len(new) :]


def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        yield Path(name)


@DISK
@given(st.integers(0, 9), st.sampled_from(["cut", "insert", "replace"]), st.integers(0, 10**6), st.binary(max_size=8))
def test_a_changed_byte_anywhere_is_noticed_or_changes_nothing(file: int, how: str, at: int, new: bytes) -> None:
    for folder in scratch():
        path = save(folder, 10)
        files = sorted(found for found in path.rglob("*") if found.is_file())
        target = files[file % len(files)]
        before = target.read_bytes()
        target.write_bytes(changed(before, how, at, new))
        said: list[str] = []
        found = newest(folder, said.append)
        if found is None:
            (line,) = said
            assert str(path) in line
            assert "\n" not in line
        else:  # another way to write the same JSON, or nothing was changed
            assert target.read_bytes() == before or target.name == "checkpoint.json"
            assert same_state(found.state(), FakeLive(10).now)


RECORD = ["schema", "update", "step", "elapsed", "events", "losses", "facts", "parameters", "files"]


@DISK
@given(st.dictionaries(st.sampled_from([*RECORD, "more"]), JSON, min_size=1, max_size=3))
def test_a_record_of_any_values_is_used_or_passed_over(values: dict[str, Any]) -> None:
    """With the right sha256 over them: what a person wrote by hand, or another version."""
    try:
        json.dumps(values, allow_nan=False).encode()
    except (ValueError, UnicodeEncodeError):
        assume(False)
    for folder in scratch():
        rewrite(save(folder, 10), **values)
        said: list[str] = []
        found = newest(folder, said.append)
        assert (found is None) == (len(said) == 1)
        if found is not None:
            assert str(folder) in (refusal(found.state) or str(folder))


@DISK
@given(st.binary(max_size=200), st.integers(0, 2**64 - 1) | st.integers(0, 250))
def test_weights_of_any_bytes_are_passed_over(content: bytes, length: int) -> None:
    """A safetensors file begins with the length of its header: 8 bytes, little-endian."""
    for folder in scratch():
        path = save(folder, 10)
        for name in ("moments.safetensors", "model/model-1.safetensors"):
            target = path / name
            before = target.read_bytes()
            target.write_bytes(length.to_bytes(8, "little") + content)
            files = json.loads((path / "checkpoint.json").read_text())["files"]
            files[name] = {"sha256": file_hash(target), "size": target.stat().st_size}
            rewrite(path, files=files)
            found = newest(folder, lambda line: None)
            if found is not None:
                with pytest.raises(DataError, match=re.escape(str(path))):
                    found.state()
            target.write_bytes(before)


# --- metrics and model folders --------------------------------------------------------------------------------------


@FUZZ
@given(st.lists(BROKEN | st.just(b'{"event": "update", "update": 3}'), max_size=5), st.integers(0, 5))
def test_cutting_metrics_of_any_bytes_twice_is_cutting_them_once(folder: Path, lines: list[bytes], update: int) -> None:
    path = folder / "metrics.jsonl"
    path.write_bytes(b"\n".join(lines))
    cut_metrics(path, update)
    once = path.read_bytes()
    assert cut_metrics(path, update) == 0
    assert path.read_bytes() == once


CONFIG_KEYS = (
    "model_type",
    "vocab_size",
    "rope_theta",
    "rope_parameters",
    "rope_scaling",
    "tie_word_embeddings",
    "eos_token_id",
    "quantization",
    "quantization_config",
    "auto_map",
    "model_file",
    "hidden_size",
    "num_hidden_layers",
)


@DISK
@given(
    st.sampled_from(
        ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json"]
    ),
    st.dictionaries(st.sampled_from([*CONFIG_KEYS, "eos_token", "added_tokens", "model"]), JSON, max_size=3),
)
def test_settings_of_any_values_are_read_or_refused(model: Path, name: str, values: dict[str, Any]) -> None:
    for folder in scratch():
        shutil.copytree(model, folder / "m")
        path = folder / "m" / name
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**before, **values}))
        asked = (ModelFolder.check, *(attrgetter(name) for name in ("end_ids", "vocabulary", "tied_head")))
        for ask in asked:
            wrong = refusal(ask, ModelFolder(folder / "m"))
            assert wrong is None or "config.json" in wrong or str(folder) in wrong


BASES = st.none() | st.floats() | st.integers() | st.integers(0, 10**400) | JSON


@FUZZ
@given(JSON | st.fixed_dictionaries({"rope_theta": BASES}), BASES)
def test_a_rope_base_is_a_number_or_refused(nested: Any, top: Any) -> None:
    config = {"rope_parameters": nested, "rope_theta": top}
    if refusal(rope_theta, config) is None:
        base = rope_theta(config)
        assert base is None or 0 < base < math.inf


# --- the calculator -------------------------------------------------------------------------------------------------


@FUZZ
@given(st.fractions(max_denominator=400).map(lambda value: value.limit_denominator(400)))
def test_a_written_value_is_read_again(value: Fraction) -> None:
    read = calculate(written(value))
    ends = value.denominator == 2 ** _twos(value) * 5 ** _fives(value)
    assert read == value if ends else abs(read - value) <= Fraction(1, 20_000)


def _twos(value: Fraction) -> int:
    return (value.denominator & -value.denominator).bit_length() - 1


def _fives(value: Fraction) -> int:
    left, count = value.denominator, 0
    while left % 5 == 0:
        left, count = left // 5, count + 1
    return count


@FUZZ
@given(TEXTS)
def test_a_claim_stands_in_the_text_where_it_says(text: str) -> None:
    found = find_claims(text)
    assert len(found) <= MAX_CLAIMS
    assert found == find_claims(text)
    for claim in found:
        assert text[claim.start] == claim.expression[0]
        assert calculate(claim.plain) == claim.value


@FUZZ
@given(st.text("0123456789+-*/().,%$xX× \\", max_size=400))
def test_an_expression_has_a_value_or_our_error_and_nothing_huge(text: str) -> None:
    try:
        value = calculate(text)
    except CalculatorError:
        return
    digits = len(re.sub(r"\D", "", text))
    assert len(str(abs(value.numerator))) <= 4 * digits + 4  # products add up digits, and there is no power


# --- the terminal ---------------------------------------------------------------------------------------------------


@FUZZ
@given(st.text(max_size=60))
def test_no_text_steers_the_terminal(text: str) -> None:
    shown = printable(text)
    assert len(shown) == len(text)
    assert printable(shown) == shown
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
