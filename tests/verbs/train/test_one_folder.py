"""A run asks its model's folder once: what is loaded, read and hashed of it is counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import transformers

import cli
from gsm8k_core import files
from gsm8k_core.models import folder as folder_module
from tests import tiny
from tests.apples import write_problems

RUN = {
    "--backend": "torch",
    "--device": "cpu",
    "--dtype": "float32",
    "--max-samples": 8,
    "--batch-size": 2,
    "--gradient-accumulation-steps": 2,
    "--num-epochs": 1,
    "--eval-steps": 1,
    "--eval-problems": 2,
    "--eval-max-new-tokens": 4,
    "--probe-steps": 1,
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Counter[str]:
    """How often a tokenizer was loaded, and each file of the model read by us or hashed for the folder's hash."""
    found: Counter[str] = Counter()
    load, read, hashed = transformers.AutoTokenizer.from_pretrained, files.read_plain, folder_module._hash

    def counted_load(*arguments: Any, **options: Any) -> Any:
        found["tokenizer"] += 1
        return load(*arguments, **options)

    def counted_read(path: Path, *most: int) -> bytes:
        if path.parent == tmp_path / "model":
            found[path.name] += 1
        return read(path, *most)

    def counted_hash(path: Path, patterns: tuple[str, ...]) -> str:
        found["hash" if patterns == folder_module.HASHED_FILES else "tokenizer hash"] += 1
        return hashed(path, patterns)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", counted_load)
    monkeypatch.setattr(files, "read_plain", counted_read)
    monkeypatch.setattr(folder_module, "_hash", counted_hash)
    return found


@pytest.mark.parametrize("extra", [(), ("--dry-run",)], ids=["run", "dry run"])
def test_a_run_asks_its_models_folder_once(
    extra: tuple[str, ...], asked: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLX_RANK", "0")  # no process of its own: it is to be counted in this one
    model, data = tiny.make(tmp_path / "model"), write_problems(tmp_path / "data")
    flags = {**RUN, "--model": model, "--data": data, "--output-dir": tmp_path / "run"}
    assert cli.main(["train", *(str(word) for flag in flags.items() for word in flag), *extra]) == 0
    assert (asked["tokenizer"], asked["hash"], asked["tokenizer hash"]) == (1, 1, 1)
    # The source's own; the backend is told how answers end by the rendering.
    assert asked["generation_config.json"] == asked["tokenizer.json"] == 1
    if not (tmp_path / "run").exists():  # each model that a run writes reads config.json once more
        assert asked["config.json"] <= 3
