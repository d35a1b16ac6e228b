"""The 4-bit base of qlora is the same model in mlx-lm, on MLX, and de-quantised on each backend."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import backends
from gsm8k_core.files import write_json
from gsm8k_core.models.find import resolve_model
from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.models.quantized import BITS, dequantize, is_quantized
from gsm8k_core.problems.batching import pad
from gsm8k_core.types import Batch, DataError, Example, StorageError
from tests import tiny

pytestmark = pytest.mark.skipif(not backends.installed("mlx"), reason="backend mlx is not installed here")

# Log-probabilities down to -8. Measured: 5.2e-6 at most (torch, and MLX, over 2, 3, 4 and 8 bits of both models).
TOLERANCE = 5e-5


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSM8K_CACHE", str(tmp_path / "cache"))


def quantise(source: Path, directory: Path, bits: int = 4, group_size: int = 64) -> Path:
    from backends.mlx.adapter import quantize_folder  # imports mlx

    quantize_folder(source, directory, bits, group_size)
    return directory


@pytest.fixture
def batch() -> Batch:
    """8 rows of 30 tokens."""
    rng = np.random.default_rng(0)
    return pad([Example(str(row), tuple(int(token) for token in rng.integers(4, 40, 30)), 2) for row in range(8)])


def scores(name: str, folder: Path, batch: Batch) -> np.ndarray:
    return backends.open(name, folder, "cpu", "float32").score(batch)


def resolved(folder: Path) -> Path:
    source = resolve_model(str(folder), lambda _: None)
    assert source.choice.name == "dequantized"
    return source.folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("bits", BITS)
def test_numpy_dequantises_as_mlx_to_the_last_bit(bits: int, dtype: str) -> None:
    import mlx.core as mx

    rng = np.random.default_rng(bits)
    weight = mx.array(rng.normal(size=(96, 128)).astype(np.float32)).astype(getattr(mx, dtype))
    packed, scales, biases = mx.quantize(weight, group_size=64, bits=bits, stream=mx.cpu)
    scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    theirs = np.array(mx.dequantize(packed, scales, biases, 64, bits, stream=mx.cpu))
    ours = dequantize(np.array(packed), np.array(scales), np.array(biases), bits, 64)
    assert np.array_equal(ours, theirs)
    halves = dequantize(np.array(packed), np.array(scales)[:, ::-1], np.array(biases), bits, 64)
    assert not np.array_equal(halves, theirs)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_quantised_model_is_its_float32_copy_on_each_backend(
    backend_name: str, bits: int, tiny_model: Path, tmp_path: Path, batch: Batch
) -> None:
    base = quantise(tiny_model, tmp_path / "base", bits)
    right = scores("mlx", base, batch)
    copy = resolved(base)
    assert np.abs(scores(backend_name, copy, batch) - right).max() < TOLERANCE
    # The unquantised model, the nearest wrong one: 0.09 away at 8 bits, 2.1 at 4, 4.0 at 2.
    assert np.abs(scores(backend_name, tiny_model, batch) - right).max() > 10 * TOLERANCE


def test_scales_in_another_order_are_seen(backend_name: str, qwen2: Path, tmp_path: Path, batch: Batch) -> None:
    base = quantise(qwen2, tmp_path / "base")
    right = scores("mlx", base, batch)
    tensors = load_file(base / "model.safetensors")
    name = "model.layers.1.self_attn.v_proj.scales"
    tensors[name] = tensors[name][::-1].copy()
    save_file(tensors, str(base / "model.safetensors"), metadata={"format": "mlx"})
    assert np.abs(scores(backend_name, resolved(base), batch) - right).max() > 10 * TOLERANCE


def test_mlx_lm_opens_the_folder_and_makes_the_same_one(tiny_model: Path, tmp_path: Path, batch: Batch) -> None:
    base = quantise(tiny_model, tmp_path / "base")
    import mlx.core as mx
    import mlx_lm
    from mlx_lm.convert import convert

    model, tokenizer = mlx_lm.load(str(base))
    logits = np.array(model(mx.array(batch.tokens)))[:, :-1].astype(np.float64)
    picked = np.take_along_axis(logits, batch.tokens[:, 1:, None], -1)[..., 0]
    assert np.abs(picked - np.log(np.exp(logits).sum(-1)) - scores("mlx", base, batch)).max() < TOLERANCE
    assert tokenizer.chat_template == tiny.TEMPLATE
    convert(str(tiny_model), str(tmp_path / "theirs"), quantize=True, dtype="float32")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    # mlx-lm writes an index beside the single file: such a folder is opened too.
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    assert np.abs(scores("mlx", resolved(tmp_path / "theirs"), batch) - scores("mlx", base, batch)).max() < TOLERANCE


def test_a_mixed_model_of_mlx_lms_is_read(qwen2: Path, tmp_path: Path, batch: Batch) -> None:
    from backends.mlx.load import load

    def mixed(path: str, module: object) -> bool | dict[str, object]:
        bits = {"v_proj": 8, "o_proj": 3}.get(path.rsplit(".", 1)[-1])
        return {"group_size": 32, "bits": bits, "mode": "affine"} if bits else "layers.1" in path

    assert load
    from mlx_lm.convert import convert

    # In bfloat16, as most of what is on the Hub: scales and biases too.
    convert(str(qwen2), str(tmp_path / "theirs"), quantize=True, quant_predicate=mixed, dtype="bfloat16")
    source = resolve_model(str(tmp_path / "theirs"), lambda _: None)
    assert source.choice.reason.startswith("3-bit and 4-bit and 8-bit weights of")
    right = scores("mlx", tmp_path / "theirs", batch)
    for name in ("mlx", "torch"):
        assert np.abs(scores(name, source.folder, batch) - right).max() < TOLERANCE


def test_the_folder_is_mlx_lms_layout(qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = quantise(qwen2, tmp_path / "base")
    assert capsys.readouterr().out == ""  # mlx-lm prints; what a verb prints is its own
    assert is_quantized(ModelFolder(base))
    ModelFolder(base).check(quantized=True)
    config = json.loads((base / "config.json").read_text())
    assert config["quantization"] == config["quantization_config"] == {"group_size": 64, "bits": 4, "mode": "affine"}
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10_000
    tensors = load_file(base / "model.safetensors")
    stem = "model.layers.0.mlp.gate_proj"
    shapes = {part: (tensors[f"{stem}.{part}"].shape, tensors[f"{stem}.{part}"].dtype.name) for part in PARTS}
    assert shapes == {"weight": ((96, 8), "uint32"), "scales": ((96, 1), "float32"), "biases": ((96, 1), "float32")}
    assert "model.embed_tokens.scales" in tensors
    # 96 inputs are not whole groups of 64: left as it was.
    plain = load_file(qwen2 / "model.safetensors")
    for name in ("model.layers.0.mlp.down_proj.weight", "model.norm.weight", "model.layers.0.self_attn.q_proj.bias"):
        assert np.array_equal(tensors[name], plain[name])
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (base / name).read_bytes() == (qwen2 / name).read_bytes()


PARTS = ("weight", "scales", "biases")


def test_the_same_model_is_the_same_base(qwen2: Path, tmp_path: Path) -> None:
    first = ModelFolder(quantise(qwen2, tmp_path / "first")).hash
    assert ModelFolder(quantise(qwen2, tmp_path / "second")).hash == first
    assert ModelFolder(quantise(qwen2, tmp_path / "third", bits=8)).hash != first


def test_a_rope_base_that_only_transformers_5_names_is_kept(tmp_path: Path, batch: Batch) -> None:
    folder = tiny.make(tmp_path / "llama", "llama", rope_theta=None)  # 1e5 in rope_parameters; mlx-lm's default is 1e4
    values = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {key: value for key, value in values.items() if key != "rope_theta"})
    base = quantise(folder, tmp_path / "base", bits=8)
    near = np.abs(scores("torch", folder, batch) - scores("mlx", base, batch)).max()
    assert near < 0.5  # what 8 bits change: 0.13; with mlx-lm's base instead: 2.3
    assert json.loads((base / "config.json").read_text())["rope_theta"] == 100_000


@pytest.mark.parametrize("says", [False, None])
def test_an_untied_head_is_quantised_as_the_embedding_is(says: bool | None, tmp_path: Path, batch: Batch) -> None:
    folder = tiny.make(tmp_path / "untied")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"][::-1].copy()
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    del values["tie_word_embeddings"]
    write_json(folder / "config.json", values if says is None else {**values, "tie_word_embeddings": says})
    base = quantise(folder, tmp_path / "base")
    assert "lm_head.scales" in load_file(base / "model.safetensors")
    right = scores("mlx", base, batch)
    assert np.abs(scores("torch", resolved(base), batch) - right).max() < TOLERANCE


def test_what_cannot_be_quantised_is_refused(qwen2: Path, tmp_path: Path) -> None:
    small = tiny.make(tmp_path / "small", hidden_size=48, num_attention_heads=3, num_key_value_heads=1)
    with pytest.raises(DataError, match="no layer whose inputs divide into groups of 64; try --method lora"):
        quantise(small, tmp_path / "base")
    assert not (tmp_path / "base").exists()
    base = quantise(qwen2, tmp_path / "base")
    with pytest.raises(DataError, match="describes quantised weights"):
        quantise(base, tmp_path / "again")
    with pytest.raises(StorageError, match="exists already"):
        quantise(qwen2, base)
