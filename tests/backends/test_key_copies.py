"""Keys and values are written in place: what a step holds at its peak shows it, on whatever device it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import backends
from benchmarks.key_copies import IN_PLACE, measure, verdict
from tests import tiny

pytestmark = pytest.mark.skipif(not backends.installed("mlx"), reason="backend mlx is not installed here")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_step_copies_keys_and_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    import mlx.core as mx

    from backends.mlx import cache

    folder = tiny.make(tmp_path / "deep", num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=4)
    backend = backends.open("mlx", folder, "cpu", dtype)
    found = measure(backend, 16)
    share = found["beyond_at_the_peak"] / found["keys_and_values"]

    begin, kept = cache.Slots.begin_step, list[Any]()

    def held(self: Any, num_rows: int, dtype: Any) -> None:
        """The last step still holds them, as a command buffer that is not done does."""
        kept[:] = [block[:, :, :1] for layer in self.layers for block in (layer.keys, layer.values)]
        mx.eval(kept)  # views: they hold all of it
        begin(self, num_rows, dtype)

    monkeypatch.setattr(cache.Slots, "begin_step", held)
    control = measure(backend, 16)
    copied = control["beyond_at_the_peak"] / control["keys_and_values"]
    print(share, copied, found)
    assert share < IN_PLACE, (share, copied)
    assert copied > 0.8, (share, copied)
    assert (verdict(found), verdict(control)) == ("written in place", "copied")
