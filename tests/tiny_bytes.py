"""A tiny random model whose tokenizer llama.cpp knows: GPT-2's bytes, a few merges, ChatML's tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from gsm8k_core.exports.vocabulary import SPLITS
from gsm8k_core.models.folder import write_config
from gsm8k_core.models.tensors import read_tensors, write_tensors
from tests import tiny

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
END = 2
MERGES = ["Ġ t", "h e", "i n", "Ġt he"]
CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def split(name: str) -> dict[str, object]:
    """tokenizer.json's pre_tokenizer of one of llama.cpp's rules."""
    if name == "gpt-2":
        return BYTES
    if name == "smollm":
        return {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTES]}
    (pattern,) = [pattern for pattern, theirs in SPLITS.items() if theirs == name]
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [cut, {**BYTES, "use_regex": False}]}


def tokenizer_files(folder: Path, rule: str = "smollm", template: str = CHATML, **changes: object) -> int:
    """Writes them; returns the number of tokens, rounded up to 64."""
    from tokenizers.pre_tokenizers import ByteLevel

    words = [*SPECIAL, *sorted(ByteLevel.alphabet()), *("".join(pair.split(" ")) for pair in MERGES)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    whole = {
        "version": "1.0",
        "added_tokens": [{"id": number, "content": text, **flags} for number, text in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": split(rule),
        "post_processor": None,
        "decoder": BYTES,
        "model": {
            "type": "BPE",
            "vocab": {word: number for number, word in enumerate(words)},
            "merges": MERGES,
            "ignore_merges": rule == "llama-bpe",
        },
    } | changes
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL[END], "pad_token": SPECIAL[0]}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    return -(-len(words) // 64) * 64


def make(folder: Path, kind: str = "llama", rule: str = "smollm", template: str = CHATML, **changes: object) -> Path:
    """As tiny.make, with this tokenizer."""
    folder.mkdir(parents=True)
    size = tokenizer_files(folder, rule, template)
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    # Biases are drawn as weights are, so that one that is left out, or permuted wrongly, is seen.
    tiny.make(folder, kind, **{"vocab_size": size, "eos_token_id": END, "pad_token_id": 0, "bos_token_id": 1} | changes)
    for name, content in kept.items():
        (folder / name).write_bytes(content)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [END]}))
    return folder


def rounded_copy(folder: Path, target: Path, dtype: str) -> Path:
    """The same model, stored in another dtype."""
    shutil.copytree(folder, target)
    tensors = read_tensors(target / "model.safetensors")
    write_tensors(target / "model.safetensors", {name: np.array(value) for name, value in tensors.items()}, dtype)
    write_config(target, json.loads((folder / "config.json").read_text()), dtype)
    return target
