"""mlx-lm's quantised folders become float32 ones; runs, checkpoints and adapters over them are found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gsm8k_core.models import quantized
from gsm8k_core.models.find import Source, resolve_model
from gsm8k_core.models.folder import ModelFolder, affine
from gsm8k_core.models.quantized import BITS, dequantize, dequantized_folder, is_quantized, widths
from gsm8k_core.models.store import cache_folder
from gsm8k_core.training import checkpoints
from gsm8k_core.training.runs import run_of_model
from gsm8k_core.types import DataError, TrainState
from tests import tiny

LAYER = "model.layers.0.mlp.up_proj"


def pack(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Each row as one large integer, the first number lowest, cut into words: slow, and plainly right."""
    rows = []
    for row in numbers:
        stream = sum(int(number) << (bits * place) for place, number in enumerate(row))
        rows.append([(stream >> (32 * word)) & 0xFFFFFFFF for word in range(len(row) * bits // 32)])
    return np.array(rows, np.uint32)


def quantised_folder(folder: Path, bits: int = 4, group: int = 32, **changes: object) -> Path:
    """A tiny model whose layers with 64 inputs are quantised by hand; `changes` go into `quantization`."""
    tiny.make(folder)
    tensors: dict[str, np.ndarray] = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if weight.ndim != 2 or weight.shape[1] != 64:
            tensors[name] = weight
            continue
        groups = weight.reshape(len(weight), -1, group)
        low, high = groups.min(-1), groups.max(-1)
        scales = (high - low) / (2**bits - 1)
        numbers = np.rint((groups - low[..., None]) / scales[..., None]).astype(int)
        stem = name.removesuffix(".weight")
        tensors |= {name: pack(numbers.reshape(len(weight), -1), bits), f"{stem}.scales": scales, f"{stem}.biases": low}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "mlx"})
    settings = {"group_size": group, "bits": bits, **changes}
    edit(folder / "config.json", quantization=settings, quantization_config=settings)
    return folder


def edit(path: Path, **changes: object) -> None:
    """Sets keys of a JSON file; None removes one."""
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def change(folder: Path, **tensors: np.ndarray | None) -> None:
    """Sets tensors of LAYER (weight, scales, biases); None removes one."""
    stored = load_file(folder / "model.safetensors") | {f"{LAYER}.{part}": value for part, value in tensors.items()}
    kept = {name: value for name, value in stored.items() if value is not None}
    save_file(kept, str(folder / "model.safetensors"), metadata={"format": "mlx"})


def resolve(reference: Path) -> Source:
    return resolve_model(str(reference), lambda _: None)


@pytest.fixture
def folder(caches: Path) -> Path:
    return quantised_folder(caches / "quantised")


@pytest.mark.parametrize("bits", BITS)
def test_the_stream_of_numbers_is_read_back(bits: int) -> None:
    rng = np.random.default_rng(bits)
    numbers = rng.integers(0, 2**bits, (5, 64))
    scales, biases = rng.normal(size=(5, 2)).astype(np.float32), rng.normal(size=(5, 2)).astype(np.float16)
    found = dequantize(pack(numbers, bits), scales, biases, bits, 32)
    wanted = numbers.astype(np.float32) * np.repeat(scales, 32, 1) + np.repeat(biases, 32, 1).astype(np.float32)
    assert found.dtype == np.float32
    assert np.array_equal(found, wanted)
    assert not np.array_equal(dequantize(pack(numbers, bits), scales[:, ::-1], biases, bits, 32), wanted)


@pytest.mark.parametrize(
    ("bits", "group", "message"),
    [
        (7, 32, "7 bits in groups of 32 are not MLX's"),
        (True, 32, "True bits"),
        (4, "64", "groups of '64'"),
        (4, 0, "groups of 0"),
        (8, 32, r"weights of shape \(2, 8\) with scales \(2, 2\).*are not 8 bits in groups of 32"),
        (4, 64, "are not 4 bits in groups of 64"),
    ],
)
def test_what_does_not_fit_is_refused(bits: Any, group: Any, message: str) -> None:
    weight, scales = np.zeros((2, 8), np.uint32), np.ones((2, 2), np.float32)
    with pytest.raises(DataError, match=message):
        dequantize(weight, scales, scales, bits, group)


def test_a_quantised_folder_is_the_model_in_float32(folder: Path) -> None:
    assert is_quantized(ModelFolder(folder))
    source = resolve(folder)
    assert source.choice.name == "dequantized"
    assert source.choice.reason == f"4-bit weights of {folder}, de-quantised to float32"
    assert (source.name, source.found) == (str(folder), folder)
    assert source.folder.parent == cache_folder() / "dequantized"
    source.model.check()
    config = json.loads((source.folder / "config.json").read_text())
    assert not {"quantization", "quantization_config"} & set(config)
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    plain = tiny.weights(config, 0, 0.15)
    found = load_file(source.folder / "model.safetensors")
    assert found.keys() == plain.keys()
    errors = {name: np.abs(found[name] - plain[name]).max() for name in plain}
    assert 0.02 < errors[f"{LAYER}.weight"] < 0.06  # half of a step of about 0.6 / 15
    assert errors["model.layers.0.mlp.down_proj.weight"] == 0  # 96 inputs: stored as it was


def test_it_is_made_once_and_again_when_damaged(folder: Path) -> None:
    first = dequantized_folder(folder)
    made = (first / "model.safetensors").stat().st_mtime_ns
    assert dequantized_folder(folder) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == made
    (first / "model.safetensors").write_bytes(b"half")
    ModelFolder(dequantized_folder(folder)).check()
    change(folder, biases=np.ones((96, 2), np.float32))
    assert dequantized_folder(folder) != first


def test_a_failure_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "weight_files", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        dequantized_folder(folder)
    assert list((cache_folder() / "dequantized").iterdir()) == []


def test_layers_may_have_settings_of_their_own(caches: Path) -> None:
    six, four = quantised_folder(caches / "six", bits=6), quantised_folder(caches / "four")
    stored = load_file(six / "model.safetensors")
    change(four, **{part: stored[f"{LAYER}.{part}"] for part in ("weight", "scales", "biases")})
    with pytest.raises(DataError, match=rf"{LAYER}: weights of shape"):
        resolve(four)
    settings = {"group_size": 32, "bits": 4, LAYER: {"group_size": 32, "bits": 6}, "model.norm": False}
    edit(four / "config.json", quantization=settings)
    assert widths(ModelFolder(four)) == "4-bit and 6-bit"
    mixed, whole = (load_file(resolve(folder).folder / "model.safetensors") for folder in (four, six))
    assert np.array_equal(mixed[f"{LAYER}.weight"], whole[f"{LAYER}.weight"])


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "mxfp4": (
        lambda f: edit(f / "config.json", quantization={"group_size": 32, "bits": 4, "mode": "mxfp4"}),
        "describes quantised weights .*mxfp4.*; give the model before that, or what mlx_lm.convert -q makes of it",
    ),
    "gptq": (
        lambda f: edit(f / "config.json", quantization=None, quantization_config={"quant_method": "gptq", "bits": 4}),
        "describes quantised weights .*gptq.*mlx_lm.convert -q",
    ),
    "no group size": (lambda f: edit(f / "config.json", quantization={"bits": 4}), "describes quantised weights"),
    "one layer mxfp4": (
        lambda f: edit(f / "config.json", quantization={"group_size": 32, "bits": 4, LAYER: {"mode": "mxfp4"}}),
        f"{LAYER}: its quantisation is .*mxfp4.*only the affine one is read here",
    ),
    "no biases": (lambda f: change(f, biases=None), f"{LAYER}: it is not stored as uint32 weights with scales and"),
    "no scales": (lambda f: change(f, scales=None, biases=None), f"{LAYER}.weight has no scales"),
    "no weight": (lambda f: change(f, weight=None), f"{LAYER}: it is not stored as uint32"),
    "not packed": (lambda f: change(f, weight=np.zeros((96, 64), np.float32)), f"{LAYER}: it is not stored as uint32"),
    "other bits": (
        lambda f: edit(f / "config.json", quantization={"group_size": 32, "bits": 8}),
        "are not 8 bits in groups of 32; convert the model again with mlx_lm.convert -q",
    ),
    "cut": (lambda f: (f / "model.safetensors").write_bytes(b"half"), "is cut short or damaged"),
    "code": (lambda f: edit(f / "config.json", model_file="evil.py"), "custom code is refused"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_one_clear_line(case: str, folder: Path) -> None:
    damage, message = REFUSED[case]
    damage(folder)
    with pytest.raises(DataError, match=message) as caught:
        resolve(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(cache_folder().glob("dequantized/*"))


def test_a_check_passes_quantised_weights_only_when_asked(folder: Path, model_folder: Path) -> None:
    ModelFolder(folder).check(quantized=True)
    ModelFolder(model_folder).check(quantized=True)
    with pytest.raises(DataError, match="describes quantised weights"):
        ModelFolder(folder).check()
    assert not is_quantized(ModelFolder(model_folder))
    assert not is_quantized(ModelFolder(model_folder / "config.json"))
    assert affine({"quantization": [4]}) is None


# --- runs, checkpoints, adapters -------------------------------------------------------------------------------------


def adapter(folder: Path, base: str) -> Path:
    """A LoRA adapter of rank 2 in PEFT's layout, on LAYER."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    stem = f"base_model.model.{LAYER}"
    arrays = {f"{stem}.lora_A.weight": rng.normal(size=(2, 64)), f"{stem}.lora_B.weight": rng.normal(size=(96, 2))}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    save_file(arrays, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
    config = {"peft_type": "LORA", "base_model_name_or_path": base, "r": 2, "lora_alpha": 4}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


class Live:
    """Weights in training, as far as a checkpoint asks for them."""

    def __init__(self, base: str) -> None:
        self.base = base

    def save(self, directory: Path) -> None:
        self.saved = adapter(directory, self.base)

    def state(self) -> TrainState:
        values = load_file(self.saved / "adapter_model.safetensors")
        return TrainState(1, values, values, values)


def qlora_run(run: Path) -> Path:
    """A run as qlora leaves it: base/, model/, and two checkpoints."""
    run.mkdir()
    (run / "run.json").write_text('{"model_save": "first"}')
    base = quantised_folder(run / "base")
    adapter(run / "model", str(base))
    for update in (5, 10):
        checkpoints.write(
            run / "checkpoints", Live(str(base)), update=update, elapsed=1.0, events=[], losses=[1.0] * update, facts={}
        )
    return run


def test_an_adapter_of_a_quantised_base_is_merged_into_its_float32_weights(caches: Path) -> None:
    run = qlora_run(caches / "run")
    source = resolve(run)
    assert source.choice.name == "adapter"
    wanted = f"an adapter of {run / 'base'}, 4-bit weights of {run / 'base'}, de-quantised to float32, and merged"
    assert source.choice.reason == wanted
    assert (source.found, source.save) == (run / "model", "first")
    merged, base = (load_file(folder / "model.safetensors") for folder in (source.folder, resolve(run / "base").folder))
    deltas = load_file(run / "model" / "adapter_model.safetensors")
    a, b = (deltas[f"base_model.model.{LAYER}.lora_{part}.weight"] for part in "AB")
    moved = merged[f"{LAYER}.weight"] - base[f"{LAYER}.weight"]
    assert np.allclose(moved, 2 * b @ a, atol=1e-6)
    assert np.abs(moved).max() > 1
    assert all(np.array_equal(merged[name], base[name]) for name in base if name != f"{LAYER}.weight")


@pytest.mark.parametrize("place", ["model", "checkpoints/update-000010/model", "checkpoints/update-000010", ""])
def test_a_moved_run_brings_its_base(place: str, caches: Path) -> None:
    before = resolve(qlora_run(caches / "here") / place)
    moved = caches / "there"
    (caches / "here").rename(moved)
    source = resolve(moved / place)
    assert source.folder == before.folder
    assert f"an adapter of {moved / 'base'}" in source.choice.reason
    assert run_of_model(source.found) == moved


def test_another_run_in_the_old_place_is_not_asked(caches: Path) -> None:
    right = resolve(qlora_run(caches / "here")).folder
    (caches / "here").rename(caches / "there")
    quantised_folder(caches / "here" / "base", bits=8)
    assert resolve(caches / "there").folder == right
    (caches / "there" / "run.json").unlink()  # no run: what an adapter names and is there, is meant
    assert f"an adapter of {caches / 'here' / 'base'}, 8-bit" in resolve(caches / "there" / "model").choice.reason


def test_a_base_that_was_given_as_a_short_path_is_found(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = qlora_run(caches / "run")
    edit(run / "model" / "adapter_config.json", base_model_name_or_path="out/base")
    assert f"an adapter of {run / 'base'}" in resolve(run).choice.reason


def test_a_hub_id_is_never_the_base_beside(caches: Path) -> None:
    run = qlora_run(caches / "run")
    edit(run / "model" / "adapter_config.json", base_model_name_or_path="nobody/nothing")
    with pytest.raises(DataError, match="model 'nobody/nothing' is not a folder here, is not cached"):
        resolve(run)


def test_a_base_that_is_nowhere_is_named(caches: Path) -> None:
    run = qlora_run(caches / "run")
    (run / "base").rename(caches / "elsewhere")
    with pytest.raises(DataError, match="run/base' is not a folder here"):
        resolve(run)


def test_a_base_in_bfloat16_is_merged(caches: Path) -> None:
    import torch
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    base = tiny.make(caches / "base")
    tensors = {name: tensor.bfloat16() for name, tensor in load_torch(base / "model.safetensors").items()}
    save_torch(tensors, base / "model.safetensors", metadata={"format": "pt"})
    merged = load_torch(resolve(adapter(caches / "adapter", str(base))).folder / "model.safetensors")
    assert all(torch.equal(merged[name], tensors[name].float()) for name in tensors if name != f"{LAYER}.weight")


def test_a_checkpoint_means_its_model(caches: Path) -> None:
    checkpoint = caches / "run" / "checkpoints" / "update-000005"
    checkpoint.mkdir(parents=True)
    (checkpoint / "checkpoint.json").write_text("{}")
    with pytest.raises(DataError, match=r"checkpoint .* has no model in it .*; give another checkpoint"):
        resolve(checkpoint)
    tiny.make(checkpoint / "model")
    source = resolve(checkpoint)
    assert source.folder == source.found == checkpoint / "model"
    assert source.choice.reason == "the model of a checkpoint"


def test_a_run_without_a_model_names_its_newest_checkpoint(caches: Path) -> None:
    run = qlora_run(caches / "run")
    shutil.rmtree(run / "model")
    first = run / "checkpoints" / "update-000010"
    newest = shutil.copytree(first, run / "checkpoints" / "update-000010-2")
    (run / "checkpoints" / "update-000020").mkdir()  # of which nothing was kept
    shutil.copyfile(first / "checkpoint.json", run / "checkpoints" / "update-000020" / "checkpoint.json")
    message = (
        rf"run folder .* has no model in it .*; give its newest checkpoint, {newest}, "
        rf"or train on: python cli.py train --resume {run}$"
    )
    with pytest.raises(DataError, match=message):
        resolve(run)


def test_a_checkpoint_that_would_be_refused_is_not_recommended(caches: Path) -> None:
    checkpoints = caches / "run/checkpoints"
    for name in ("update-000005", "update-000010"):
        tiny.make(checkpoints / name / "model")
        (checkpoints / name / "checkpoint.json").write_text("{}")
    (caches / "run/run.json").write_text('{"status": "stopped"}')
    with pytest.raises(DataError, match=r"give its newest checkpoint, .*update-000010, or"):
        resolve(caches / "run")
    (checkpoints / "update-000010/model/model.safetensors").unlink()
    with pytest.raises(DataError, match=r"give its newest checkpoint, .*update-000005, or"):
        resolve(caches / "run")
