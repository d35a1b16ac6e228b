"""A tokenizer as llama.cpp has it: its tokens with their kinds, its merges or scores, and the name of its split.

The source is the tokenizer as transformers opens it, since the model was trained with that: it rebuilds some, other
than their tokenizer.json says. Two kinds are known:

    bytes   GPT-2's: text is split by a rule, and bytes are merged by rank. llama.cpp has each rule in its own code,
            under a name; a rule that is none of them is refused, since it would read other tokens without a word.
    pieces  SentencePiece's (Llama 2, Gemma, Phi-3): characters are merged, and the rest are bytes. llama.cpp goes by a
            score for each piece; here that is the place of the merge that makes it, so that the order is the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.models.tokenizer import tokenizer_end
from gsm8k_core.types import DataError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # GGUF's kinds of token
SPACE = "▁"
WORST = -1e6  # the score of a piece that no merge makes
INSTEAD = "export --to merged keeps it as it is"

# The splits of tokenizer.json -> llama.cpp's name. `{n}` stands for one digit, or for up to three.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|{n}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    _WORDS.replace("{n}", r"\p{N}"): "qwen2",
    _WORDS.replace("{n}", r"\p{N}{1,3}"): "llama-bpe",
}


@dataclass(slots=True)
class Vocabulary:
    """What a GGUF says of a tokenizer."""

    model: str  # gpt2 or llama
    pre: str
    tokens: list[str]
    kinds: list[int]
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    ids: dict[str, int] = field(default_factory=dict)  # bos, eos, unknown, padding, eot
    flags: dict[str, bool] = field(default_factory=dict)
    strips: bool = False  # whether a token of its own takes the spaces beside it along


def vocabulary_of(model: ModelFolder) -> Vocabulary:
    """The tokenizer of a model folder. Raises DataError for one that llama.cpp would read otherwise."""
    tokenizer: Any = model.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise DataError(f"the tokenizer in {model.path} is not one of the library tokenizers; {INSTEAD}")
    whole = json.loads(backend.to_str())
    try:
        found = _pieces(whole) if _has_pieces(whole) else _bytes(whole)
        found.tokens, found.kinds = _listed(whole, model.vocabulary, found.model)
        found.scores = _scores(found, whole) if found.model == "llama" else []
        added = whole.get("added_tokens") or []
        found.strips = any(token.get("rstrip") or token.get("lstrip") for token in added)
        alone = next((token["content"] for token in added if token.get("single_word")), None)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"the tokenizer in {model.path} is none that is known here ({error!r}); {INSTEAD}") from None
    if alone is not None:
        raise DataError(
            f"{alone!r} of the tokenizer in {model.path} is a token only where it is a word of its own, and llama.cpp "
            f"finds it inside of words too; {INSTEAD}"
        )
    found.ids = _special(tokenizer, model, found.tokens)
    start = found.ids.get("bos")
    found.flags["add_bos_token"] = start is not None and list(tokenizer("")["input_ids"])[:1] == [start]
    found.flags["add_eos_token"] = False
    return found


def _bytes(whole: Mapping[str, Any]) -> Vocabulary:
    if whole["model"].get("type") != "BPE":
        raise DataError(
            f"its tokenizer is {whole['model'].get('type')!r}, and llama.cpp is given BPE's here; {INSTEAD}"
        )
    merges = whole["model"]["merges"]
    pairs = [pair if isinstance(pair, str) else " ".join(part.replace(" ", "Ġ") for part in pair) for pair in merges]
    return Vocabulary("gpt2", _split(whole), [], [], pairs)


def _split(whole: Mapping[str, Any]) -> str:
    """llama.cpp's name of the rule by which text is split."""
    rule = whole.get("pre_tokenizer") or {}
    parts = rule["pretokenizers"] if rule.get("type") == "Sequence" else [rule]
    shown = [_shown(part) for part in parts]
    if (whole.get("normalizer") or {"type": "NFC"}) in ({"type": "NFC"}, {"type": "Sequence", "normalizers": []}):
        if shown == ["digits", "gpt-2"]:
            return "smollm"
        if shown == ["gpt-2"]:
            return "gpt-2"
        whole_words = shown[0] == "llama-bpe"  # for which llama.cpp takes a word that is a token whole, merges or not
        as_merged = bool(whole["model"].get("ignore_merges")) == whole_words
        if len(shown) == 2 and shown[0] in SPLITS.values() and shown[1] == "bytes" and as_merged:
            return shown[0]
    said = json.dumps({"pre_tokenizer": rule, "normalizer": whole.get("normalizer")}, ensure_ascii=False)
    known = ", ".join(["smollm", "gpt-2", *SPLITS.values()])
    raise DataError(
        f"its tokenizer splits text by none of llama.cpp's rules that are known here ({known}): {said[:300]}; {INSTEAD}"
    )


def _shown(part: Mapping[str, Any]) -> str:
    kind = part.get("type")
    if kind == "Digits" and part.get("individual_digits"):
        return "digits"
    if kind == "ByteLevel" and not part.get("add_prefix_space"):
        return "gpt-2" if part.get("use_regex", True) else "bytes"
    if kind == "Split" and part.get("behavior") == "Isolated" and not part.get("invert"):
        return SPLITS.get((part.get("pattern") or {}).get("Regex", ""), "")
    return ""


def _has_pieces(whole: Mapping[str, Any]) -> bool:
    model = whole["model"]
    return model.get("type") == "BPE" and bool(model.get("byte_fallback"))


def _pieces(whole: Mapping[str, Any]) -> Vocabulary:
    normal = whole.get("normalizer") or {}
    steps = normal["normalizers"] if normal.get("type") == "Sequence" else [normal]
    kinds = {step.get("type"): step for step in steps if step}
    rule = whole.get("pre_tokenizer") or {}
    # "first" is the start of a text alone, and a prompt begins with a special token.
    first = "Prepend" in kinds or rule.get("prepend_scheme") == "always"
    if set(kinds) - {"Prepend", "Replace"} or rule.get("type") not in (None, "Metaspace", "Split"):
        raise DataError(
            f"its tokenizer changes text by {sorted(map(str, kinds))} and {rule.get('type')}, as llama.cpp does not; "
            f"{INSTEAD}"
        )
    found = Vocabulary("llama", "default", [], [])
    found.flags = {"add_space_prefix": first, "remove_extra_whitespaces": False}
    return found


def _listed(whole: Mapping[str, Any], size: int, kind: str) -> tuple[list[str], list[int]]:
    """Every row of the embedding with its text and its kind; rows that no token has are named by their number."""
    tokens, kinds = [f"[PAD{number}]" for number in range(size)], [UNUSED] * size
    vocabulary, unknown = whole["model"]["vocab"], whole["model"].get("unk_token")
    added = whole.get("added_tokens") or []
    highest = max([*vocabulary.values(), *(token["id"] for token in added)])
    if highest >= size:
        raise DataError(
            f"the tokenizer has a token {highest:,}, and the model {size:,} rows; save model and tokenizer again"
        )
    for text, number in vocabulary.items():
        tokens[number], kinds[number] = text, NORMAL
        if kind == "llama" and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            kinds[number] = BYTE
        if kind == "llama" and text == unknown:
            kinds[number] = UNKNOWN
    for token in added:
        number, special = token["id"], bool(token.get("special"))
        kept = kind == "llama" and kinds[number] == UNKNOWN
        tokens[number] = token["content"]
        kinds[number] = UNKNOWN if kept else CONTROL if special else USER_DEFINED
    return tokens, kinds


def _scores(found: Vocabulary, whole: Mapping[str, Any]) -> list[float]:
    """The first merge that makes a piece has the highest score; so pieces are made in the order of the merges."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(whole["model"]["merges"]):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        ranks.setdefault(left + right, rank)
    return [float(-ranks[token]) if token in ranks else WORST for token in found.tokens]


def _special(tokenizer: Any, model: ModelFolder, tokens: list[str]) -> dict[str, int]:
    numbers = {text: number for number, text in enumerate(tokens)}
    named = {"bos": tokenizer.bos_token, "unknown": tokenizer.unk_token, "padding": tokenizer.pad_token}
    found = {name: numbers[text] for name, text in named.items() if text in numbers}
    ends = list(dict.fromkeys([*tokenizer_end(model.path), *model.rendering.end_ids]))
    # llama.cpp ends an answer at each of these three, and at those that it knows by their text.
    return found | dict(zip(("eos", "eot", "eom"), ends, strict=False))
