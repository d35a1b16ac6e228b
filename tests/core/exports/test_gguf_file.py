"""A GGUF file: transformers' own loader gives our logits of it; what llama.cpp has not is refused by its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gsm8k_core.exports import architectures, gguf_file
from gsm8k_core.exports.architectures import architecture_of, factors_of, interleaved
from gsm8k_core.exports.vocabulary import CONTROL, NORMAL, UNUSED
from gsm8k_core.models.embedded import _unpermute
from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.models.tensors import NumberTooLarge, read_tensors, write_tensors
from gsm8k_core.types import DataError
from tests import tiny_bytes

TOKENS = [1, 40, 41, 42, 90, 200, 258, 259, 5, 6, 7, 2]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "smollm", {}),
    "llama, its own head": ("llama", "llama-bpe", {"tie_word_embeddings": False}),
    "qwen2": ("qwen2", "qwen2", {}),
}


def made(model: Path, target: Path, kind: str = "f32") -> Path:
    target.mkdir()
    file = target / "model.gguf"
    gguf_file.write_gguf(gguf_file.plan(ModelFolder(model).check(), kind), file, "tiny", tiny_bytes.CHATML)
    return file


def logits(folder: Path, **options: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0].numpy()


def test_transformers_gguf_loader_gives_our_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, (kind, rule, changes) in enumerate(MODELS.values()):
        model = tiny_bytes.make(tmp_path / f"model-{number}", kind, rule, **changes)
        file = made(model, tmp_path / f"gguf-{number}")
        ours, theirs = logits(model), logits(file.parent, gguf_file=file.name)
        assert np.array_equal(ours, theirs)  # a float32 file holds the very numbers
    plain = architectures.GgufArchitecture("llama")  # the control: rows as transformers has them
    monkeypatch.setitem(architectures.ARCHITECTURES, "llama", plain)
    file = made(tmp_path / "model-0", tmp_path / "wrong")
    assert np.abs(logits(tmp_path / "model-0") - logits(file.parent, gguf_file=file.name)).max() > 1


def test_what_is_in_the_file(tmp_path: Path) -> None:
    from gguf import GGUFReader

    model = tiny_bytes.make(tmp_path / "model", "llama", "smollm")
    reader = GGUFReader(made(model, tmp_path / "out", "q8_0"))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "llama"
    assert fields["tokenizer.ggml.pre"] == "smollm"
    assert fields["tokenizer.chat_template"] == tiny_bytes.CHATML
    assert (fields["tokenizer.ggml.eos_token_id"], fields["tokenizer.ggml.add_bos_token"]) == (tiny_bytes.END, False)
    assert fields["tokenizer.ggml.merges"] == tiny_bytes.MERGES
    assert fields["llama.rope.freq_base"] == 100_000.0
    kinds = fields["tokenizer.ggml.token_type"]
    assert (kinds[0], kinds[10], kinds[-1]) == (CONTROL, NORMAL, UNUSED)
    assert fields["tokenizer.ggml.tokens"][:3] == tiny_bytes.SPECIAL
    stored = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert stored["blk.0.attn_q.weight"] == stored["token_embd.weight"] == "Q8_0"
    assert stored["blk.0.attn_norm.weight"] == stored["output_norm.weight"] == "F32"
    assert "output.weight" not in stored  # tied: llama.cpp takes the embedding


def test_four_bits_keep_the_embedding_at_eight_and_odd_rows_at_sixteen(tmp_path: Path) -> None:
    from gguf import GGUFReader

    model = tiny_bytes.make(tmp_path / "model", "llama", "smollm", intermediate_size=80)
    stored = {t.name: t.tensor_type.name for t in GGUFReader(made(model, tmp_path / "out", "q4_0")).tensors}
    assert stored["blk.1.attn_k.weight"] == "Q4_0"
    assert stored["token_embd.weight"] == "Q8_0"
    assert stored["blk.1.ffn_down.weight"] == "F16"  # 80 numbers a row are no blocks of 32


def test_a_head_beside_a_tied_embedding_is_kept_where_it_is_another(tmp_path: Path) -> None:
    model = tiny_bytes.make(tmp_path / "model", "llama", "smollm")
    tensors = {name: np.array(value) for name, value in read_tensors(model / "model.safetensors").items()}
    head = tensors["model.embed_tokens.weight"].copy()
    write_tensors(model / "model.safetensors", {**tensors, "lm_head.weight": head})
    assert "output.weight" not in gguf_file.plan(ModelFolder(model), "f32").weights
    head[3] += 1
    write_tensors(model / "model.safetensors", {**tensors, "lm_head.weight": head})
    assert "output.weight" in gguf_file.plan(ModelFolder(model), "f32").weights


def test_a_number_that_float16_does_not_hold_is_named(tmp_path: Path) -> None:
    model = tiny_bytes.make(tmp_path / "model", "llama", "smollm")
    tensors = {name: np.array(value) for name, value in read_tensors(model / "model.safetensors").items()}
    tensors["model.layers.1.mlp.up_proj.weight"][2, 3] = 1e5
    write_tensors(model / "model.safetensors", tensors)
    with pytest.raises(NumberTooLarge, match=r"blk\.1\.ffn_up\.weight holds 100000.*--type f32"):
        made(model, tmp_path / "half", "f16")
    assert made(model, tmp_path / "whole", "f32").is_file()


def config(kind: str, **changes: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 64, "num_hidden_layers": 8, "num_attention_heads": 4, "intermediate_size": 96}
    return {"model_type": kind, **sizes, "vocab_size": 64, "max_position_embeddings": 512, **changes}


GEMMA = {"hidden_act": "gelu_pytorch_tanh", "head_dim": 16, "query_pre_attn_scalar": 16}
REFUSED = [
    (config("mamba"), "model type 'mamba' is not made here"),
    (config("lfm2"), "model type 'lfm2' is not made here"),
    (config("llama", hidden_act="gelu"), "hidden_act 'gelu'"),
    (config("mistral", sliding_window=128), "a window of 128"),
    (config("qwen2", sliding_window=64, use_sliding_window=True, max_window_layers=0), "a window of 64"),
    (config("llama", rope_scaling={"rope_type": "dynamic", "factor": 2.0}), "RoPE of type 'dynamic'"),
    (config("llama", rope_scaling={"rope_type": "llama3", "factor": 2.0}), "without original_max_position"),
    (config("smollm3", no_rope_layers=[1] * 8), "no_rope_layers other than every fourth"),
    (config("gemma2", **{**GEMMA, "query_pre_attn_scalar": 20}), "query_pre_attn_scalar 20 with heads of 16"),
    (config("gemma3_text", **GEMMA, sliding_window_pattern=4), "full attention in every 6th layer"),
    (config("gemma3_text", **GEMMA, rope_local_base_freq=20_000.0), "a RoPE base of 20000"),
]


@pytest.mark.parametrize(("wrong", "said"), REFUSED)
def test_what_llama_cpp_has_not_is_refused_by_name(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        architecture_of(wrong)
    assert "export --to merged" in str(caught.value)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "smollm3", "granite", "phi3"])
def test_the_claimed_ones_are_taken(kind: str) -> None:
    assert architecture_of(config(kind, sliding_window=None)).name
    assert architecture_of(config("gemma2", **GEMMA)).norm_shift == 1.0
    assert architecture_of(config("gemma3_text", **GEMMA)).name == "gemma3"


def test_the_rows_are_interleaved_as_the_embedded_model_was_read_back() -> None:
    rows = np.arange(64 * 3, dtype=np.float32).reshape(64, 3)
    assert np.array_equal(_unpermute(interleaved(rows, 4), 4), rows)
    assert not np.array_equal(interleaved(rows, 4), rows)
    assert interleaved(np.arange(8, dtype=np.float32), 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]  # a bias


def test_stretched_frequencies_are_those_of_transformers() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    whole = config("llama", rope_parameters=LLAMA3, head_dim=32, num_key_value_heads=4, max_position_embeddings=4096)
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(**whole), "cpu")
    plain = 10_000.0 ** -(np.arange(0, 32, 2) / 32)
    factors = factors_of(whole)["rope_freqs.weight"]
    assert np.allclose(plain / factors, theirs.numpy(), rtol=1e-5)
    assert len(set(factors.tolist())) > 3  # some are stretched, some are not, and some lie between


def _split_by(rule: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    return lambda whole: whole.update(pre_tokenizer=rule)


def _as_merged(whole: dict[str, Any]) -> None:
    """Qwen's split with Llama 3's way to take words."""
    whole["model"]["ignore_merges"] = True
    whole["pre_tokenizer"] = tiny_bytes.split("qwen2")


BROKEN: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (_split_by({"type": "WhitespaceSplit"}), "splits text by none of llama.cpp's rules .*smollm, gpt-2, qwen2"),
    (lambda whole: whole.update(normalizer={"type": "Lowercase"}), "splits text by none"),
    (_as_merged, "splits text by none"),
    (lambda whole: whole["added_tokens"][1].update(rstrip=True), "takes the spaces beside it along"),
    (lambda whole: whole["added_tokens"][1].update(single_word=True), "<.im_start.>' of .* a word of its own"),
    (lambda whole: whole.update(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}), "'WordLevel'"),
    (lambda whole: whole["model"]["vocab"].update(more=900), r"a token 900, and the model 320 rows"),
]


@pytest.mark.parametrize(("change", "said"), BROKEN)
def test_a_tokenizer_that_llama_cpp_would_read_otherwise_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    from transformers import PreTrainedTokenizerFast

    model = tiny_bytes.make(tmp_path / "model")
    whole = json.loads((model / "tokenizer.json").read_text())
    change(whole)
    (model / "tokenizer.json").write_text(json.dumps(whole))
    folder = ModelFolder(model)
    # As load_tokenizer gives it, without the trial of its template in another process.
    folder.__dict__["tokenizer"] = PreTrainedTokenizerFast.from_pretrained(model)
    with pytest.raises(DataError, match=said):
        gguf_file.plan(folder, "f32")
