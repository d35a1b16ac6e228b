"""Tiny random models with a word-level tokenizer, written as Hugging Face folders, and rows to train them on.

`parity` measures with them, and so do the tests.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gsm8k_core.types import Example

if TYPE_CHECKING:
    from gsm8k_core.types import FloatArray

Config = dict[str, Any]

TEXT = "how many apples has Tom ? he buys 2 3 4 5 6 7 8 9 10 + - * / = << >> #### . , and more each day gives"
WORDS = TEXT.split()
SPECIAL = ["<pad>", "<end>", "<start>", "<unk>"]
END_ID = 1
TEMPLATE = (
    "{% for m in messages %}{{ '<start> ' + m['role'] + ' ' + m['content'] + ' <end> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start> assistant ' }}{% endif %}"
)
# SmolLM2 pads with the token that ends a turn, and transformers' embedding would give that one no gradient.
PAD_IDS = {"llama": END_ID}
KINDS = {"qwen2": 10_000.0, "llama": 100_000.0}  # model type -> RoPE base
LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
LONGROPE = {"short_factor": [1.0, 1.1, 1.3, 1.5, 1.8, 2.0], "long_factor": [1.5, 2.0, 3.0, 4.0, 6.0, 8.0]}
GEMMA: Config = {
    "head_dim": 24,
    "hidden_size": 96,  # whose root bfloat16 does not hold
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 20,
    "sliding_window": 8,  # shorter than most rows
}
# What a tiny model of each type has beside a tiny Llama's config; every way that the type computes in is in use.
TYPES: dict[str, Config] = {
    "gemma": GEMMA,
    "gemma2": {**GEMMA, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0},
    "gemma3_text": {
        **GEMMA,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_theta": None,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
        },
        "final_logit_softcapping": 3.0,
    },
    "granite": {
        "embedding_multiplier": 1.5,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.9,
        "attention_multiplier": 0.5,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "lfm2": {
        "num_hidden_layers": 3,
        "layer_types": ["conv", "full_attention", "conv"],
        "conv_bias": True,
        "conv_L_cache": 4,
        "block_auto_adjust_ff_dim": False,
        "norm_eps": 1e-5,
    },
    "llama": {
        "rope_theta": 100.0,
        "rope_parameters": None,
        "rope_scaling": {"rope_type": "llama3", **LLAMA3},
        "attention_bias": True,
    },
    "mistral": {"head_dim": 24, "sliding_window": 64},
    "olmo2": {},
    "phi3": {
        "rope_parameters": None,
        "rope_scaling": {"type": "longrope", **LONGROPE},
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 128,
        "tie_word_embeddings": False,
        "bos_token_id": 2,
    },
    "qwen2": {},
    "qwen3": {"head_dim": 24, "tie_word_embeddings": False},
    "smollm3": {"no_rope_layers": [1, 0], "num_key_value_heads": 1},
}
CLASSES = {
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "granite": "GraniteForCausalLM",
    "lfm2": "Lfm2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}


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
    hidden = int(config["hidden_size"])
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (int(config["vocab_size"]), hidden)}
    for layer in range(int(config["num_hidden_layers"])):
        at = f"model.layers.{layer}."
        convolves = (config.get("layer_types") or ["full_attention"] * (layer + 1))[layer] == "conv"
        for name, rows, columns, has_bias in _linear_layers(config, convolves):
            shapes[f"{at}{name}.weight"] = (rows, columns)
            if has_bias:
                shapes[f"{at}{name}.bias"] = (rows,)
        if convolves:
            shapes |= {f"{at}conv.conv.weight": (hidden, 1, config["conv_L_cache"]), f"{at}conv.conv.bias": (hidden,)}
        shapes |= {f"{at}{name}.weight": (size,) for name, size in _norms(config, convolves).items()}
    shapes[f"model.{'embedding_norm' if config['model_type'] == 'lfm2' else 'norm'}.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (int(config["vocab_size"]), hidden)
    made = {name: std * rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    if config["model_type"] in ("gemma", "gemma2", "gemma3_text"):
        # They add one to a norm's weight themselves; and their embedding's factor would drown all that the blocks say.
        return {name: value * np.float32(0.3) if "embed" in name else value for name, value in made.items()}
    return {name: value + 1 if "norm" in name else value for name, value in made.items()}


def _heads(config: Config) -> tuple[int, int, int]:
    """The size of a head, of all queries, and of all keys."""
    count = int(config["num_attention_heads"])
    size = int(config.get("head_dim") or int(config["hidden_size"]) // count)
    return size, size * count, size * int(config["num_key_value_heads"])


def _linear_layers(config: Config, convolves: bool) -> list[tuple[str, int, int, bool]]:
    """Of a block: name, outputs, inputs, and whether it has a bias."""
    kind, hidden, inner = config["model_type"], int(config["hidden_size"]), int(config["intermediate_size"])
    _, queries, keys = _heads(config)
    if kind == "lfm2":
        if convolves:
            layers = [("conv.in_proj", 3 * hidden, hidden, True), ("conv.out_proj", hidden, hidden, True)]
        else:
            layers = [
                ("self_attn.q_proj", queries, hidden, False),
                ("self_attn.k_proj", keys, hidden, False),
                ("self_attn.v_proj", keys, hidden, False),
                ("self_attn.out_proj", hidden, queries, False),
            ]
        inward = [(f"feed_forward.{name}", inner, hidden, False) for name in ("w1", "w3")]
        return [*layers, *inward, ("feed_forward.w2", hidden, inner, False)]
    if kind == "phi3":  # q, k and v in one matrix, gate and up in another
        return [
            ("self_attn.qkv_proj", queries + 2 * keys, hidden, False),
            ("self_attn.o_proj", hidden, queries, False),
            ("mlp.gate_up_proj", 2 * inner, hidden, False),
            ("mlp.down_proj", hidden, inner, False),
        ]
    bias, mlp_bias = bool(config["attention_bias"]), bool(config["mlp_bias"])
    return [
        ("self_attn.q_proj", queries, hidden, bias or kind == "qwen2"),
        ("self_attn.k_proj", keys, hidden, bias or kind == "qwen2"),
        ("self_attn.v_proj", keys, hidden, bias or kind == "qwen2"),
        ("self_attn.o_proj", hidden, queries, bias),
        ("mlp.gate_proj", inner, hidden, mlp_bias),
        ("mlp.up_proj", inner, hidden, mlp_bias),
        ("mlp.down_proj", hidden, inner, mlp_bias),
    ]


def _norms(config: Config, convolves: bool) -> dict[str, int]:
    """Of a block."""
    kind, hidden, (size, queries, keys) = config["model_type"], int(config["hidden_size"]), _heads(config)
    if kind == "lfm2":
        own = {} if convolves else {"self_attn.q_layernorm": size, "self_attn.k_layernorm": size}
        return {"operator_norm": hidden, "ffn_norm": hidden, **own}
    found = {"post_attention_layernorm": hidden}
    if kind != "olmo2":
        found = {"input_layernorm": hidden} | found
    if kind in ("gemma2", "gemma3_text"):
        found["pre_feedforward_layernorm"] = hidden
    if kind in ("gemma2", "gemma3_text", "olmo2"):
        found["post_feedforward_layernorm"] = hidden
    if kind == "olmo2":
        found |= {"self_attn.q_norm": queries, "self_attn.k_norm": keys}
    if kind in ("qwen3", "gemma3_text"):
        found |= {"self_attn.q_norm": size, "self_attn.k_norm": size}
    return found


def make(folder: Path, kind: str = "qwen2", seed: int = 0, std: float = 0.15, **changes: object) -> Path:
    """A tiny model of `kind` in `folder`; `changes` overrides keys of its config, as each of TYPES does."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = tokenizer_files(folder)
    base = KINDS.get(kind, 10_000.0)
    config: Config = {
        "model_type": kind,
        "architectures": [CLASSES[kind]],
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
        "pad_token_id": PAD_IDS.get(kind, 0),
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


def make_type(folder: Path, kind: str, **changes: object) -> Path:
    """A tiny model of one of TYPES, in which every way that the type computes in is in use."""
    return make(folder, kind, **{**TYPES[kind], **changes})


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
