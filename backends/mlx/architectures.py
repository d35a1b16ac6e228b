"""Which model types MLX computes as torch does, and which keys of their config.json.

mlx-lm's classes are asked with what transformers' class for the type reads, and with nothing else: a key that only
mlx-lm reads changes nothing here, one that is absent has transformers' default. A key that transformers reads and
mlx-lm leaves out has to be at a value that changes nothing: else the model is refused, in one line. The tests hold the
tables against transformers' classes, key by key, so that a new key cannot slip in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gsm8k_core.models.head import Finish
from gsm8k_core.models.rope import PRETRAINED, Rope, refuse_beyond, rope_from, rope_of
from gsm8k_core.models.window import Window, refuse_longer, window_of
from gsm8k_core.types import DataError, PreflightError

Config = Mapping[str, Any]
FULL, SLIDING, CONVOLUTION = "full_attention", "sliding_attention", "conv"

# Every class has these, and no forward pass of a text depends on them (dropout is off on both backends).
INERT = frozenset(
    {
        *("transformers_version", "architectures", "output_hidden_states", "return_dict", "dtype"),
        *("chunk_size_feed_forward", "is_encoder_decoder", "id2label", "label2id", "problem_type"),
        *("initializer_range", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id", "attention_dropout"),
    }
)
WITHOUT_ROPE = ("default",)
ROPES = ("default", "linear", "llama3", "yarn", "dynamic")  # dynamic: rows behind its reach are refused
SILU = {"hidden_act": ("silu", "swish")}
# What some of transformers' classes take beside the keys that they name: the values that change nothing, and in words.
TAKEN_TOO = {
    "per_layer_config": ((None, {}), "all layers alike"),
    "tie_embedding": ((None, True), "the embedding as the head"),
}
# What the rope of each type is read from (gsm8k_core.models.rope), and the keys of a window that mlx-lm leaves out.
ROPE_KEYS = frozenset({"rope_parameters", "max_position_embeddings"})
WINDOW_KEYS = frozenset({"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"})


@dataclass(frozen=True)
class Architecture:
    """A model type: the keys of transformers' class, each in one of the tables."""

    module: str  # of mlx_lm.models
    honoured: Mapping[str, Any]  # computed here, with transformers' value where config.json has none
    fixed: Mapping[str, tuple[Any, ...]]  # left out by mlx-lm: the values that change nothing, transformers' own first
    ropes: tuple[str, ...] = ROPES
    rope_base: float = 10_000.0
    partial: bool = False  # whether a part of a head may be turned alone
    windows: frozenset[str] = frozenset()  # keys of a window that is left out: rows must not be longer
    inert: frozenset[str] = frozenset()  # besides INERT
    free_head: bool = False  # a head's size that its class does not name is read all the same, on both sides
    has_head: bool = True  # one of its own, where it is not tied
    arguments: Callable[[Config, Architecture], dict[str, Any]] = field(default=lambda config, kind: {})

    @property
    def keys(self) -> frozenset[str]:
        """All that are known of the type."""
        return frozenset({*self.honoured, *self.fixed, *self.windows, *self.inert, *ROPE_KEYS, *INERT})


def _sizes(vocabulary: int, hidden: int, inner: int, layers: int, heads: int, kv: int | None, tied: bool) -> Config:
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "tie_word_embeddings": tied,
        "rms_norm_eps": 1e-6,
    }


def scaling_of(rope: Rope) -> dict[str, Any] | None:
    """mlx-lm's `rope_scaling`."""
    return None if rope.kind in ("default", "dynamic") else {**rope.settings, "rope_type": rope.kind}


def _plain_rope(config: Config, kind: Architecture) -> dict[str, Any]:
    rope = rope_of(config, kind.rope_base)
    return {"rope_theta": rope.base, "rope_scaling": scaling_of(rope), "max_position_embeddings": _longest(config)}


def _longest(config: Config) -> int:
    return int(config.get("max_position_embeddings") or 0)


def _phi3_rope(config: Config, kind: Architecture) -> dict[str, Any]:
    """mlx-lm takes longrope's long factors for all rows, transformers the short ones for those that are within reach:
    no other row is read here."""
    rope = rope_of(config, kind.rope_base)
    found: dict[str, Any] = {"rope_theta": rope.base, "partial_rotary_factor": rope.partial, "rope_scaling": None}
    if rope.kind != "longrope":
        return found
    short, pretrained = rope.settings["short_factor"], rope.settings[PRETRAINED]
    factor = rope.settings.get("factor") or _longest(config) / pretrained
    return found | {
        "rope_scaling": {"type": "longrope", "short_factor": short, "long_factor": short},
        "max_position_embeddings": factor * pretrained,
        PRETRAINED: pretrained,
    }


def _smollm3_layers(config: Config, kind: Architecture) -> dict[str, Any]:
    layers, count = config.get("no_rope_layers"), _whole(config, kind)["num_hidden_layers"]
    return _plain_rope(config, kind) | {"no_rope_layers": None if layers is None else list(layers)[:count]}


def _gemma_rope(config: Config, kind: Architecture) -> dict[str, Any]:
    return {"rope_theta": rope_of(config, kind.rope_base).base}


def _gemma2_caps(config: Config, kind: Architecture) -> dict[str, Any]:
    """The cap of the logits is our own loss's."""
    return _gemma_rope(config, kind) | {"final_logit_softcapping": 1.0}


def _gemma3_rope(config: Config, kind: Architecture) -> dict[str, Any]:
    near, far = gemma3_ropes(config)
    return {
        "rope_theta": far.base,
        "rope_local_base_freq": near.base,
        "rope_scaling": scaling_of(far),
        "max_position_embeddings": _longest(config),
        "sliding_window_pattern": 1,  # which layers are which is our body's matter
    }


def gemma3_ropes(config: Config) -> tuple[Rope, Rope]:
    """Of its layers with a window, and of the others, in the newer and in the older way to write them."""
    given = config.get("rope_parameters") or {}
    near, far = (given.get(name) or {} for name in (SLIDING, FULL))
    bases = config.get("rope_local_base_freq") or 10_000.0, config.get("rope_theta") or GEMMA3.rope_base
    far = {**far, **(config.get("rope_scaling") or {})}
    return (
        rope_from(near, {**config, "rope_theta": bases[0]}, bases[0]),
        rope_from(far, {**config, "rope_theta": bases[1]}, bases[1]),
    )


def _lfm2_sizes(config: Config, kind: Architecture) -> dict[str, Any]:
    whole = _whole(config, kind)
    return {
        "rope_theta": rope_of(config, kind.rope_base).base,
        "max_position_embeddings": _longest(config),
        "block_dim": whole["hidden_size"],
        "block_ff_dim": config.get("block_ff_dim", whole["intermediate_size"]),
        "full_attn_idxs": [place for place, layer in enumerate(layer_kinds(config)) if layer == FULL],
        "layer_types": None,
    }


LLAMA = Architecture(
    "llama",
    {**_sizes(32_000, 4096, 11_008, 32, 32, None, False), "attention_bias": False, "mlp_bias": False, "head_dim": None},
    SILU,
    inert=frozenset({"pretraining_tp"}),
    arguments=_plain_rope,
)
MISTRAL = Architecture(
    "llama",
    {**_sizes(32_000, 4096, 14_336, 32, 32, 8, False), "head_dim": None},
    SILU,
    windows=frozenset({"sliding_window"}),
    arguments=_plain_rope,
)
QWEN2 = Architecture(
    "qwen2",
    _sizes(151_936, 4096, 22_016, 32, 32, 32, False),
    SILU,
    windows=WINDOW_KEYS,
    arguments=_plain_rope,
)
QWEN3 = Architecture(
    "qwen3",
    {**_sizes(151_936, 4096, 22_016, 32, 32, 32, False), "head_dim": 128},
    {**SILU, "attention_bias": (False,)},
    windows=WINDOW_KEYS,
    arguments=_plain_rope,
)
SMOLLM3 = Architecture(
    "smollm3",
    {
        **_sizes(128_256, 2048, 11_008, 36, 16, 4, True),
        "attention_bias": False,
        "mlp_bias": False,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
    },
    SILU,
    rope_base=2_000_000.0,
    windows=frozenset({"sliding_window", "use_sliding_window", "layer_types"}),
    free_head=True,
    arguments=_smollm3_layers,
)
PHI3 = Architecture(
    "phi3",
    {**_sizes(32_064, 3072, 8192, 32, 32, None, False), "rms_norm_eps": 1e-5, PRETRAINED: 4096},
    SILU,
    ropes=("default", "longrope"),
    partial=True,
    windows=frozenset({"sliding_window"}),
    inert=frozenset({"resid_pdrop", "embd_pdrop"}),
    arguments=_phi3_rope,
)
GRANITE = Architecture(
    "granite",
    {
        **_sizes(32_000, 4096, 11_008, 32, 32, None, False),
        "attention_bias": False,
        "mlp_bias": False,
        "embedding_multiplier": 1.0,
        "logits_scaling": 1.0,
        "residual_multiplier": 1.0,
        "attention_multiplier": 1.0,
    },
    SILU,
    arguments=_plain_rope,
)
OLMO2 = Architecture(
    "olmo2",
    {**_sizes(50_304, 4096, 11_008, 32, 32, None, False), "rms_norm_eps": 1e-5, "attention_bias": False},
    SILU,
    free_head=True,
    arguments=_plain_rope,
)
# The embedding is the head in mlx-lm's classes, whatever config.json says.
_GEMMAS = {"attention_bias": (False,), "tie_word_embeddings": (True,), "use_bidirectional_attention": (None, False)}


def _gemma_sizes(vocabulary: int, hidden: int, inner: int, layers: int, heads: int, kv: int) -> dict[str, Any]:
    sizes = dict(_sizes(vocabulary, hidden, inner, layers, heads, kv, True))
    return {**sizes, "head_dim": 256}


def _without(sizes: Config, *keys: str) -> Config:
    return {key: value for key, value in sizes.items() if key not in keys}


GEMMA = Architecture(
    "gemma",
    _without(_gemma_sizes(256_000, 3072, 24_576, 28, 16, 16), "tie_word_embeddings"),
    {**_GEMMAS, "hidden_act": ("gelu_pytorch_tanh", "gelu")},  # transformers takes the one for the other, here
    ropes=WITHOUT_ROPE,
    has_head=False,
    arguments=_gemma_rope,
)
GEMMA2 = Architecture(
    "gemma2",
    {
        **_without(_gemma_sizes(256_000, 2304, 9216, 26, 8, 4), "tie_word_embeddings"),
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "layer_types": None,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
    },
    {**_GEMMAS, "hidden_activation": ("gelu_pytorch_tanh",)},
    ropes=WITHOUT_ROPE,
    has_head=False,
    arguments=_gemma2_caps,
)
GEMMA3 = Architecture(
    "gemma3_text",
    {
        **_gemma_sizes(262_208, 2304, 9216, 26, 8, 4),
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "layer_types": None,
        "final_logit_softcapping": None,
    },
    {**_without(_GEMMAS, "tie_word_embeddings", "use_bidirectional_attention")}
    | {"use_bidirectional_attention": (False, None), "hidden_activation": ("gelu_pytorch_tanh",)},
    ropes=("default", "linear", "llama3"),
    rope_base=1_000_000.0,
    inert=frozenset({"attn_logit_softcapping"}),  # transformers' class keeps it and never reads it
    arguments=_gemma3_rope,
)
LFM2 = Architecture(
    "lfm2",
    {
        **_without(_sizes(65_536, 2560, 12_288, 32, 32, 8, True), "tie_word_embeddings", "rms_norm_eps"),
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": True,
        "full_attn_idxs": None,
        "layer_types": None,
    },
    {"tie_word_embeddings": (True,)},
    ropes=WITHOUT_ROPE,
    rope_base=1_000_000.0,
    has_head=False,
    arguments=_lfm2_sizes,
)
TYPES: Mapping[str, Architecture] = {
    "gemma": GEMMA,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3,
    "granite": GRANITE,
    "lfm2": LFM2,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "olmo2": OLMO2,
    "phi3": PHI3,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "smollm3": SMOLLM3,
}


# --- asked of a config.json -------------------------------------------------------------------------------------------


def architecture_of(config: Config, place: str) -> Architecture:
    """Of a config.json, which is found in `place`. Raises PreflightError for what MLX would compute otherwise."""
    name = config.get("model_type")
    if name not in TYPES:
        raise PreflightError(
            f"model type {name} is not available on mlx, which has {', '.join(sorted(TYPES))}; try --backend torch"
        )
    kind = TYPES[name]
    fixed = {key: (values, repr(values[0])) for key, values in kind.fixed.items()}
    for key, (values, words) in {**fixed, **TAKEN_TOO}.items():
        if key in config and config[key] not in values:
            _refuse(place, f"{key} {config[key]!r}", words)
    whole = _whole(config, kind)
    if not kind.free_head and "head_dim" not in kind.honoured:
        plain = int(whole["hidden_size"]) // int(whole["num_attention_heads"])
        if config.get("head_dim") not in (None, plain):
            _refuse(place, f"head_dim {config['head_dim']!r}", str(plain))
    for key in ("sliding_window", "attn_logit_softcapping", "block_ffn_dim_multiplier"):
        if key in kind.honoured and not _is_positive(whole[key]):
            _refuse(place, f"{key} {whole[key]!r}", "numbers above zero alone")
    if "layer_types" in kind.honoured:
        _check_layers(set(layer_kinds(config)), config, place)
    for rope in ropes_of(config):
        _check_rope(rope, kind, place)
    return kind


def _check_layers(found: set[str], config: Config, place: str) -> None:
    convolves = config["model_type"] == "lfm2"
    known = {FULL, CONVOLUTION if convolves else SLIDING}
    if not found <= known or (convolves and found != known):  # mlx-lm's Lfm2 looks for one of each
        _refuse(place, f"layers of {', '.join(sorted(found))}", " and ".join(sorted(known)))


def _refuse(place: str, found: str, computed: str) -> None:
    raise PreflightError(f"{place} has {found}, and mlx-lm computes {computed}; try --backend torch")


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and value > 0


def _check_rope(rope: Rope, kind: Architecture, place: str) -> None:
    if rope.kind not in kind.ropes:
        _refuse(place, f"rope_type {rope.kind!r}", f"{', '.join(kind.ropes)} for this model type")
    if rope.partial != 1 and not kind.partial:
        _refuse(place, f"partial_rotary_factor {rope.partial:g}", "1")
    # transformers scales by these where they are given, mlx-lm by what follows from the others.
    for key, values in (("attention_factor", (None,)), ("truncate", (None, True))):
        if rope.settings.get(key) not in values:
            _refuse(place, f"{key} {rope.settings[key]!r} in its RoPE settings", "what follows from the others")
    if bool(rope.settings.get("mscale")) != bool(rope.settings.get("mscale_all_dim")):
        _refuse(place, "one of mscale and mscale_all_dim in its RoPE settings", "both or none")
    needed = {"linear": ("factor",), "yarn": ("factor",), "longrope": ("short_factor",)}
    needed["llama3"] = ("factor", "low_freq_factor", "high_freq_factor")
    for key in needed.get(rope.kind, ()):
        if rope.settings.get(key) is None:
            raise DataError(f"{place} has rope_type {rope.kind} without {key}; download or save the model again")


def ropes_of(config: Config) -> Sequence[Rope]:
    """Every kind of rotary positions that the model has; the layers with a window first."""
    if config.get("model_type") == "gemma3_text":
        return gemma3_ropes(config)
    return (rope_of(config, TYPES[config["model_type"]].rope_base),)


def _whole(config: Config, kind: Architecture) -> dict[str, Any]:
    """The keys that are computed, with transformers' values where config.json has none."""
    found = {key: config.get(key, value) for key, value in kind.honoured.items()}
    if found["num_key_value_heads"] is None:
        found["num_key_value_heads"] = found["num_attention_heads"]
    return found


def layer_kinds(config: Config) -> list[str]:
    """What each layer is, of a type whose kinds of layers are all computed here."""
    if config.get("layer_types") is not None:
        return list(config["layer_types"])
    count = _whole(config, TYPES[config["model_type"]])["num_hidden_layers"]
    if config["model_type"] == "lfm2":
        named = config.get("full_attn_idxs")
        return [FULL if named is None or place in named else CONVOLUTION for place in range(count)]
    every = 2 if config["model_type"] == "gemma2" else config.get("sliding_window_pattern", 6)
    return [SLIDING if (place + 1) % every else FULL for place in range(count)]


def window_size(config: Config) -> int:
    """Of the layers with sliding attention, of a type whose window is computed here."""
    return int(_whole(config, TYPES[config["model_type"]])["sliding_window"])


def mlx_arguments(config: Config, kind: Architecture, tied: bool) -> dict[str, Any]:
    """What mlx-lm's class is told, keys that it does not know among it."""
    whole = {"head_dim": config.get("head_dim"), **_whole(config, kind)} if kind.free_head else _whole(config, kind)
    told = {**whole, **kind.arguments(config, kind), "tie_word_embeddings": tied}
    return {"model_type": kind.module, **told}


def finish_of(config: Config, kind: Architecture) -> Finish:
    """What follows the head."""
    whole = _whole(config, kind)
    return Finish(float(whole.get("logits_scaling", 1.0)), whole.get("final_logit_softcapping"))


def window_left_out(config: Config) -> Window | None:
    """The window that mlx-lm leaves out; those of Gemma are computed."""
    kind = TYPES.get(str(config.get("model_type")))
    return None if kind is not None and not kind.windows else window_of(config)


def refuse_long_rows(config: Config, longest: int) -> None:
    """Raises PreflightError where rows of `longest` tokens would be computed otherwise than by torch."""
    refuse_longer(window_left_out(config), longest, "mlx")
    if config.get("model_type") in TYPES:
        for rope in ropes_of(config):
            refuse_beyond(rope, longest)
