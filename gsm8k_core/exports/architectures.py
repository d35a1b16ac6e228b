"""Which models a GGUF file can hold here: llama.cpp's name for each, its settings, and how its weights differ.

llama.cpp keeps some numbers in another form than transformers:

    rotary  Llama and its kin turn neighbouring numbers of a head, and transformers its two halves: the rows of the
            query's and the key's projection are interleaved for them. Qwen, Gemma and Phi-3 are as transformers'.
    norm    Gemma stores a norm's weight less 1; llama.cpp wants it whole.
    rope    Llama 3's stretched frequencies are a tensor of factors, one for each frequency.

What llama.cpp has fixed in its own code (a window in every second layer, say) is compared with config.json, and
refused where it differs: it would be another model, without a word.

Axes: O rows out, F frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gsm8k_core.models.folder import Config, rope_theta, shape_of
from gsm8k_core.models.window import window_of
from gsm8k_core.types import DataError

if TYPE_CHECKING:
    from gsm8k_core.types import FloatArray

Fields = dict[str, int | float | bool | str]
SILU, GELU = ("silu", "swish"), ("gelu_pytorch_tanh",)
LLAMA3_DEFAULTS = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@dataclass(frozen=True, slots=True)
class GgufArchitecture:
    """One of llama.cpp's, and what a model of that type has to be converted by."""

    name: str  # as in general.architecture
    rotary: bool = False  # whether the rows of q_proj and k_proj are interleaved
    norm_shift: float = 0.0  # what is added to the weight of a norm
    activations: tuple[str, ...] = SILU
    refuse: Callable[[Config], str] = field(
        default=lambda config: ""
    )  # what of config.json llama.cpp would not compute
    more: Callable[[Config], Fields] = field(default=lambda config: {})  # its own settings, beside those that all have


def architecture_of(config: Config) -> GgufArchitecture:
    """Raises DataError for a model that no GGUF can hold, or none of ours, with its name and what there is."""
    kind = str(config.get("model_type"))
    found = ARCHITECTURES.get(kind)
    if found is None:
        raise DataError(f"a GGUF of model type {kind!r} is not made here ({', '.join(ARCHITECTURES)} are); {INSTEAD}")
    activation = config.get("hidden_act") or config.get("hidden_activation") or found.activations[0]
    wrong = found.refuse(config) or _unknown_rope(config)
    if activation not in found.activations:
        wrong = f"hidden_act {activation!r} (llama.cpp computes {found.activations[0]})"
    if wrong:
        raise DataError(f"a GGUF of this {kind} would be another model: config.json has {wrong}; {INSTEAD}")
    return found


INSTEAD = "export --to merged keeps it as it is"


def fields_of(config: Config, architecture: GgufArchitecture) -> Fields:
    """The settings of a model, by GGUF's keys without the architecture's name before them."""
    shape = shape_of(config)
    fields: Fields = {
        "block_count": shape.layers,
        "context_length": int(config.get("max_position_embeddings") or 2048),
        "embedding_length": shape.hidden,
        "feed_forward_length": shape.inner,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.layer_norm_rms_epsilon": float(config.get("rms_norm_eps", 1e-6)),
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "rope.dimension_count": int(shape.head_dim * _scaling(config).get("partial_rotary_factor", 1.0)),
        "vocab_size": shape.vocabulary,
    }
    if (base := _base(config)) is not None:
        fields["rope.freq_base"] = base
    return fields | _stretched(config) | architecture.more(config)


def converted(name: str, weight: FloatArray, config: Config, architecture: GgufArchitecture) -> FloatArray:
    """A weight as llama.cpp keeps it; `name` is transformers'."""
    kind = name.split(".")[-2]
    if architecture.norm_shift and kind.endswith("norm"):
        return weight + architecture.norm_shift
    if architecture.rotary and kind in ("q_proj", "k_proj"):
        shape = shape_of(config)
        return interleaved(weight, shape.heads if kind == "q_proj" else shape.kv_heads)
    return weight


def interleaved(rows_O: FloatArray, num_heads: int) -> FloatArray:
    """The two halves of each head's rows in turns; of a bias, of its numbers."""
    import numpy as np  # here, not above: config alone is asked far more often

    halves = rows_O.reshape(num_heads, 2, len(rows_O) // num_heads // 2, *rows_O.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows_O.shape)


def factors_of(config: Config) -> dict[str, FloatArray]:
    """Tensors that config.json is the source of: the factors of RoPE's frequencies, where it stretches them."""
    import numpy as np  # here, not above: config alone is asked far more often

    scaling = _scaling(config)
    kind = scaling.get("rope_type")
    if kind == "longrope":
        return {
            f"rope_factors_{which}.weight": np.asarray(scaling[f"{which}_factor"], np.float32)
            for which in ("long", "short")
        }
    if kind != "llama3":
        return {}
    given = {key: float(scaling.get(key, value)) for key, value in LLAMA3_DEFAULTS.items()}
    trained = float(scaling["original_max_position_embeddings"])
    dim = shape_of(config).head_dim
    frequencies_F = _base(config, 10_000.0) ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)
    turns_F = trained * frequencies_F / (2 * math.pi)
    smooth_F = (turns_F - given["low_freq_factor"]) / (given["high_freq_factor"] - given["low_freq_factor"])
    factors_F = 1 / ((1 - smooth_F) / given["factor"] + smooth_F)
    factors_F = np.where(turns_F > given["high_freq_factor"], 1.0, factors_F)
    factors_F = np.where(turns_F < given["low_freq_factor"], given["factor"], factors_F)
    return {"rope_freqs.weight": factors_F.astype(np.float32)}


# --- RoPE -------------------------------------------------------------------------------------------------------------


def _parameters(config: Config) -> Mapping[str, Any]:
    """rope_parameters, those of the layers with full attention where each kind has its own."""
    found = config.get("rope_scaling") or config.get("rope_parameters") or {}
    whole = found.get("full_attention")
    return whole if isinstance(whole, Mapping) else found


def _scaling(config: Config) -> dict[str, Any]:
    values = dict(_parameters(config))
    values["rope_type"] = values.get("rope_type") or values.get("type") or "default"
    for key in ("partial_rotary_factor", "original_max_position_embeddings"):
        if key not in values and isinstance(config.get(key), (int, float)):
            values[key] = config[key]
    return values


def _base(config: Config, other: Any = None) -> Any:
    nested = _parameters(config).get("rope_theta")
    found = nested if isinstance(nested, (int, float)) else rope_theta({**config, "rope_parameters": None})
    return other if found is None else float(found)


def _unknown_rope(config: Config) -> str:
    kind = _scaling(config)["rope_type"]
    missing = kind in ("llama3", "longrope") and "original_max_position_embeddings" not in _scaling(config)
    if missing:
        return f"RoPE of type {kind} without original_max_position_embeddings"
    longrope = kind == "longrope" and config.get("model_type") == "phi3"
    return "" if kind in ("default", "linear", "llama3", "yarn") or longrope else f"RoPE of type {kind!r}"


def _stretched(config: Config) -> Fields:
    scaling = _scaling(config)
    kind = scaling["rope_type"]
    if kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling["factor"])}
    if kind == "yarn":
        trained = scaling.get("original_max_position_embeddings") or config.get("max_position_embeddings")
        return {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(scaling["factor"]),
            "rope.scaling.original_context_length": int(trained or 0),
        }
    if kind == "longrope":
        trained = int(scaling["original_max_position_embeddings"])
        ratio = int(config["max_position_embeddings"]) / trained
        factor = math.sqrt(1 + math.log(ratio) / math.log(trained)) if ratio > 1 else 1.0
        return {"rope.scaling.original_context_length": trained, "rope.scaling.attn_factor": factor}
    return {}


# --- the architectures ------------------------------------------------------------------------------------------------


def _refuse_window(config: Config) -> str:
    """llama.cpp's Llama and Qwen see all tokens in every layer."""
    window = window_of(config)
    context = int(config.get("max_position_embeddings") or 0)
    return f"a window of {window.size:,} ({window.keys})" if window and window.size < context else ""


def _refuse_smollm3(config: Config) -> str:
    layers = int(config["num_hidden_layers"])
    pattern = config.get("no_rope_layers") or [int((layer + 1) % 4 != 0) for layer in range(layers)]
    fixed = [int((layer + 1) % 4 != 0) for layer in range(layers)]
    return _refuse_window(config) or ("" if pattern == fixed else "no_rope_layers other than every fourth")


def _refuse_gemma2(config: Config) -> str:
    return _refuse_layers(config, 2) or _refuse_scale(config)


def _refuse_gemma3(config: Config) -> str:
    local = (config.get("rope_parameters") or {}).get("sliding_attention") or {}
    base: Any = local.get("rope_theta", config.get("rope_local_base_freq", 10_000.0))
    wrong = "" if float(base) == 10_000.0 else f"a RoPE base of {base:g} in the layers with a window"
    return wrong or _refuse_layers(config, 6) or _refuse_scale(config)


def _refuse_layers(config: Config, every: int) -> str:
    kinds = config.get("layer_types")
    layers = range(int(config["num_hidden_layers"]))
    fixed = ["sliding_attention" if (layer + 1) % every else "full_attention" for layer in layers]
    pattern = config.get("sliding_window_pattern", every)
    same = kinds == fixed if isinstance(kinds, list) else pattern == every
    return "" if same else f"layer_types other than full attention in every {every}th layer"


def _refuse_scale(config: Config) -> str:
    scalar, head_dim = config.get("query_pre_attn_scalar", 256), shape_of(config).head_dim
    return "" if scalar == head_dim else f"query_pre_attn_scalar {scalar} with heads of {head_dim}"


def _window(config: Config) -> Fields:
    return {"attention.sliding_window": int(config.get("sliding_window") or 4096)}


def _gemma2(config: Config) -> Fields:
    return _window(config) | {
        "attn_logit_softcapping": float(config.get("attn_logit_softcapping") or 50.0),
        "final_logit_softcapping": float(config.get("final_logit_softcapping") or 30.0),
    }


def _phi3(config: Config) -> Fields:
    trained = _scaling(config).get("original_max_position_embeddings") or config.get("max_position_embeddings")
    window = config.get("sliding_window")
    return {
        "rope.scaling.original_context_length": int(trained or 0),
        "attention.sliding_window": int(window) if window else 0,
    }


def _granite(config: Config) -> Fields:
    return {
        "attention.scale": float(config.get("attention_multiplier", 1.0)),
        "embedding_scale": float(config.get("embedding_multiplier", 1.0)),
        "residual_scale": float(config.get("residual_multiplier", 1.0)),
        "logit_scale": float(config.get("logits_scaling", 1.0)),
    }


ARCHITECTURES = {  # config.json's model_type -> llama.cpp's
    "llama": GgufArchitecture("llama", rotary=True, refuse=_refuse_window),
    "mistral": GgufArchitecture("llama", rotary=True, refuse=_refuse_window),
    "qwen2": GgufArchitecture("qwen2", refuse=_refuse_window),
    "qwen3": GgufArchitecture("qwen3", refuse=_refuse_window),
    "smollm3": GgufArchitecture("smollm3", rotary=True, refuse=_refuse_smollm3),
    "granite": GgufArchitecture("granite", rotary=True, more=_granite),
    "gemma2": GgufArchitecture("gemma2", norm_shift=1.0, activations=GELU, refuse=_refuse_gemma2, more=_gemma2),
    "gemma3_text": GgufArchitecture("gemma3", norm_shift=1.0, activations=GELU, refuse=_refuse_gemma3, more=_window),
    "phi3": GgufArchitecture("phi3", more=_phi3),
}
