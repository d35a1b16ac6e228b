"""Tiny random models with a word-level tokenizer, written as Hugging Face folders, and rows to train them on.

`parity` measures with them, and so do the tests.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gsm8k_core.types import Example

if TYPE_CHECKING:
    from gsm8k_core.models.folder import Config
    from gsm8k_core.types import FloatArray

TEXT = "how many apples has Tom ? he buys 2 3 4 5 6 7 8 9 10 + - * / = << >> #### . , and more each day gives"
WORDS = TEXT.split()
SPECIAL = ["<pad>", "<end>", "<start>", "<unk>"]
END_ID = 1
TEMPLATE = (
    "{% for m in messages %}{{ '<start> ' + m['role'] + ' ' + m['content'] + ' <end> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start> assistant ' }}{% endif %}"
)
# SmolLM2 pads with the token that ends a turn, and transformers' embedding would give that one no gradient.
PAD_IDS = {"qwen2": 0, "llama": END_ID}
KINDS = {"qwen2": 10_000.0, "llama": 100_000.0}  # model type -> RoPE base


def tokenizer_files(folder: Path) -> int:
    """Write a whitespace tokenizer; returns the size of its vocabulary, rounded up to 64."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, "system", "user", "assistant", *WORDS])}
    added = [
        {
            "id": vocabulary[word],
            "content": word,
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for word in SPECIAL
    ]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "<end>",
        "unk_token": "<unk>",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return -(-len(vocabulary) // 64) * 64


def weights(config: Config, seed: int, std: float) -> dict[str, FloatArray]:
    """Random float32 weights under Hugging Face names, for the sizes in `config`."""
    rng = np.random.default_rng([seed, 7])
    hidden, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    kv = hidden * int(config["num_key_value_heads"]) // int(config["num_attention_heads"])
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (int(config["vocab_size"]), hidden)}
    for layer in range(int(config["num_hidden_layers"])):
        at = f"model.layers.{layer}."
        for name, rows, columns in [
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", kv, hidden),
            ("self_attn.v_proj", kv, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", inner, hidden),
            ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ]:
            shapes[f"{at}{name}.weight"] = (rows, columns)
            if config["model_type"] == "qwen2" and name[10:] in ("q_proj", "k_proj", "v_proj"):
                shapes[f"{at}{name}.bias"] = (rows,)
        shapes[f"{at}input_layernorm.weight"] = shapes[f"{at}post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (int(config["vocab_size"]), hidden)
    made = {name: std * rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    return {name: value + 1 if "norm" in name else value for name, value in made.items()}


def make(folder: Path, kind: str = "qwen2", seed: int = 0, std: float = 0.15, **changes: object) -> Path:
    """A tiny model of `kind` in `folder`; `changes` overrides keys of its config."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = tokenizer_files(folder)
    base = KINDS[kind]
    config: Config = {
        "model_type": kind,
        "architectures": ["Qwen2ForCausalLM" if kind == "qwen2" else "LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": vocabulary,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "eos_token_id": END_ID,
        "pad_token_id": PAD_IDS[kind],
        "rope_theta": base,
        "rope_parameters": {"rope_type": "default", "rope_theta": base},
        "attention_bias": False,
        "mlp_bias": False,
        "use_sliding_window": False,
    } | changes
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [END_ID], "pad_token_id": 0}))
    save_file(weights(config, seed, std), str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


def cut(folder: Path, other: Path, vocabulary: int) -> Path:
    """The tiny model in `folder` with the first so many tokens of its vocabulary alone, in the folder `other`."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(folder, other)
    config = json.loads((folder / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": vocabulary}))
    tensors = load_file(folder / "model.safetensors")
    shorter = {
        name: value[:vocabulary] if len(value) == config["vocab_size"] else value for name, value in tensors.items()
    }
    save_file(shorter, str(other / "model.safetensors"), metadata={"format": "pt"})
    return other


def make_rows(count: int = 22) -> list[Example]:
    """Rows of uneven length: random words, then the end token; the first four tokens are the prompt.

    The prompt has an end token, too, as every turn of a chat has.
    """
    rng = np.random.default_rng(0)
    rows = [[int(token) for token in rng.integers(4, 40, rng.integers(8, 40))] for _ in range(count)]
    return [Example(f"row-{index}", (row[0], END_ID, *row[2:], END_ID), 4) for index, row in enumerate(rows)]
