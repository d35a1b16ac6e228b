"""Which window a config.json means: transformers' own configuration classes say."""

from __future__ import annotations

from typing import Any

import pytest

from gsm8k_core.models.window import refuse_longer, window_of
from gsm8k_core.types import PreflightError


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ({"model_type": "mistral"}, 4096),
        ({"model_type": "mistral", "sliding_window": 16}, 16),
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "phi3"}, None),
        ({"model_type": "phi3", "sliding_window": 2047}, 2047),
        ({"model_type": "qwen2", "sliding_window": 16}, None),
        ({"model_type": "qwen2", "sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1}, 16),
        ({"model_type": "qwen2", "sliding_window": 16, "use_sliding_window": True, "max_window_layers": 2}, None),
        ({"model_type": "qwen3", "use_sliding_window": True, "max_window_layers": 0}, 4096),
        ({"model_type": "smollm3", "sliding_window": 16}, None),
        ({"model_type": "smollm3", "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}, 16),
        ({"model_type": "starcoder2", "sliding_window": 16}, 16),
        ({"model_type": "llama", "sliding_window": 16}, None),
    ],
)
def test_the_window_is_transformers_own(config: dict[str, Any], size: int | None) -> None:
    from transformers import AutoConfig  # slow to import

    config = {"num_hidden_layers": 2, **config}
    found = window_of(config)
    assert (found.size if found else None) == size
    if config["model_type"] == "llama":  # its class has no window
        return
    theirs = AutoConfig.for_model(**config)
    layers = getattr(theirs, "layer_types", None)
    sliding = theirs.sliding_window is not None and (layers is None or "sliding_attention" in layers)
    assert (theirs.sliding_window if sliding else None) == size


def test_a_type_that_is_not_known_has_a_window_by_its_keys() -> None:
    assert window_of({"model_type": "new", "sliding_window": 5}) is not None
    assert window_of({"model_type": "new", "sliding_window": 5, "layer_types": ["full_attention"]}) is None


def test_a_row_as_long_as_the_window_is_read() -> None:
    window = window_of({"model_type": "mistral", "sliding_window": 16})
    refuse_longer(window, 16, "mlx")
    refuse_longer(None, 10**6, "mlx")
    with pytest.raises(PreflightError, match=r"sliding_window 16, which mlx does not compute, and up to 17 tokens"):
        refuse_longer(window, 17, "mlx")
