"""A model folder as transformers' model, checked against what the folder says; in float32."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from backends.torch.architectures import check_layers
from gsm8k_core.files import read_json
from gsm8k_core.models.folder import rope_theta
from gsm8k_core.types import DataError, PreflightError

REPEATED = "sdpa_repeated"
# While it loads, transformers has other functions in the place of its tie_weights and torch's init, and puts back what
# it found there: of two loads at once the last one leaves the first one's, and no tied model is loaded any more.
_ONE_AT_A_TIME = threading.Lock()


def load(folder: Path, device: str, on: str | None = None) -> Any:
    """The model in float32, every weight from the folder, without dropout: for `device`, and there, or first `on`."""
    config = read_json(folder / "config.json")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        settings = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        check_layers(settings)
        # A fine-tuning step is the same on both backends, and MLX's models have no dropout.
        no_dropout = {key: 0.0 for key in vars(settings) if "dropout" in key or key.endswith("pdrop")}
        with _ONE_AT_A_TIME:
            model, report = AutoModelForCausalLM.from_pretrained(
                str(folder),
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                **no_dropout,
            )
    except (MemoryError, PreflightError):
        raise
    except Exception as error:  # transformers raises many kinds, and all of them mean this folder
        raise DataError(f"transformers cannot load {folder}: {error}") from error
    strange = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if strange:
        # transformers would fill what is missing with random numbers and go on.
        raise DataError(f"{folder} does not hold this model's weights: {sorted(map(str, strange))[0]} does not fit")
    loaded = (getattr(model.config, "rope_parameters", None) or {}).get("rope_theta")
    asked = rope_theta(config)
    if asked is not None and loaded is not None and float(asked) != float(loaded):
        raise DataError(f"{folder} has RoPE base {asked:g}, but transformers loaded {loaded:g}; please report this")
    # transformers gives the embedding of pad_token_id no gradient, also where that token ends every turn (SmolLM2's).
    model.get_input_embeddings().padding_idx = None
    choose_attention(model, device)
    return model.to(on or device)


def choose_attention(model: Any, device: str) -> None:
    """On CUDA, where a float32 batch would else keep all of its scores; training and scoring, as well as prompts."""
    if device == "cuda" and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(REPEATED)


def repeated_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' sdpa; in float32 without a mask, each key is repeated for the heads that share it.

    transformers leaves that to torch there. Flash attention can do it and has no float32; the memory-efficient kernel
    has float32 and cannot; so torch would take plain products, and keep (B, heads, T, T) for the backward pass. From
    rows of about two heads' length on, those are more than the repeated keys and values.
    """
    shared, device = query.shape[1] // key.shape[1], query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    if dtype == torch.float32 and attention_mask is None and shared > 1:
        key, value = repeat_kv(key, shared), repeat_kv(value, shared)
        module = SimpleNamespace(is_causal=getattr(module, "is_causal", True))  # of which no head shares a key
    return sdpa_attention_forward(module, query, key, value, attention_mask, **others)


AttentionInterface.register(REPEATED, repeated_attention)
AttentionMaskInterface.register(REPEATED, sdpa_mask)
