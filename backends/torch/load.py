"""A model folder as transformers' model, checked against what the folder says; in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from gsm8k_core.files import read_json
from gsm8k_core.models.folder import rope_theta
from gsm8k_core.types import DataError


def load(folder: Path, device: str) -> Any:
    """The model in float32, every weight from the folder, without dropout."""
    config = read_json(folder / "config.json")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # A fine-tuning step is the same on both backends, and MLX's models have no dropout.
    no_dropout = {key: 0.0 for key in config if "dropout" in key or key.endswith("pdrop")}
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **no_dropout,
        )
    except MemoryError:
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
    return model.to(device)
