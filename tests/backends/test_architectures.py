"""The model types: both backends compute one model of a folder, or one of them says in a line that it does not.

The tables of keys are held against transformers' own classes, and the ladder is climbed with a tiny model of each type,
in which every way that the type computes in is in use. mx.compile is off here: g++ would be called for each type.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import backends
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.parity.bench import Bench, Implementation
from gsm8k_core.parity.ladder import MARGIN, climb
from gsm8k_core.problems.batching import make_updates, pad
from gsm8k_core.types import Batch, DataError, Example, PreflightError, Sampling
from tests import tiny
from tests.backends.conftest import FakePilot

pytestmark = pytest.mark.skipif(
    not all(backends.installed(name) for name in backends.PROVIDERS), reason="needs both backends"
)
SCORE = 3e-5  # rung 1's
SHARED = tuple(range(4, 14))  # of every prompt: read once, and longer than Gemma's window
KINDS = sorted(tiny.TYPES)
RUNGS = (1, 3, 6)  # scores, gradients, texts
LOSS, FINISHED = 2, ("gemma2", "gemma3_text", "granite")  # in which something follows the head


@pytest.fixture(scope="module", autouse=True)
def nothing_is_compiled(imported: None) -> Iterator[None]:
    import mlx.core as mx

    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each type."""
    place = tmp_path_factory.mktemp("types")
    return {kind: tiny.make_type(place / kind, kind) for kind in KINDS}


def opened(name: str, folder: Path) -> Any:
    return backends.open(name, folder, "cpu", "float32")


def edited(folder: Path, **changes: object) -> Path:
    """The same folder with other keys in its config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


# --- the table, key by key --------------------------------------------------------------------------------------------


def class_of(kind: str) -> Any:
    from transformers import AutoConfig

    return type(AutoConfig.for_model(kind))


def keys_of(config: Any) -> dict[str, Any]:
    """The keys of a configuration class, and its defaults."""
    return {field.name: field.default for field in dataclasses.fields(config)}


def complaints(kind: Any, config: Any) -> set[str]:
    """Keys of transformers' class that the table does not know, or the other way, or whose default is another one."""
    from backends.mlx.architectures import INERT

    defaults = keys_of(config)
    known = {**kind.honoured, **{key: values[0] for key, values in kind.fixed.items()}}
    wrong = {key for key, value in known.items() if key in defaults and defaults[key] != value}
    return wrong | (set(defaults) - kind.keys) | (kind.keys - set(defaults) - INERT)


@pytest.mark.parametrize("name", KINDS)
def test_every_key_of_transformers_class_is_in_one_table(name: str) -> None:
    from backends.mlx.architectures import INERT, ROPE_KEYS, TYPES

    kind = TYPES[name]
    assert complaints(kind, class_of(name)) == set()
    tables = [set(kind.honoured), set(kind.fixed), set(kind.windows), set(kind.inert), set(ROPE_KEYS), set(INERT)]
    assert sum(map(len, tables)) == len(kind.keys)  # none is in two
    assert class_of(name).attribute_map == {}


def test_control_a_new_key_and_a_new_default_are_seen() -> None:
    from backends.mlx.architectures import TYPES

    newer = dataclasses.make_dataclass(
        "Newer", [*((key, Any, value) for key, value in keys_of(class_of("llama")).items()), ("query_scale", float, 1)]
    )
    assert complaints(TYPES["llama"], newer) == {"query_scale"}
    other = dataclasses.replace(TYPES["llama"], honoured={**TYPES["llama"].honoured, "rms_norm_eps": 1e-5})
    assert complaints(other, class_of("llama")) == {"rms_norm_eps"}


# What transformers' code asks of a config beside its class's keys, and where it is looked after.
ASKED_TOO = {
    "head_dim",  # architecture_of
    "rope_parameters",  # gsm8k_core.models.rope
    "_attn_implementation",
    "standardize_rope_params",
    "per_layer_config",  # TAKEN_TOO
}


@pytest.mark.parametrize("name", KINDS)
def test_transformers_code_reads_no_key_that_is_not_known(name: str) -> None:
    import transformers

    from backends.mlx.architectures import TYPES

    folder = name.removesuffix("_text")
    path = Path(transformers.__file__).parent / "models" / folder / f"modeling_{folder}.py"
    source = path.read_text(encoding="utf-8")
    if name == "gemma3_text":  # the pictures' classes stand behind those of the text, and in a function
        source = source[: source.index("class Gemma3MultiModalProjector")].replace("config.text_config", "")
    asked = set(re.findall(r"\bconfig\.(\w+)", source)) | set(re.findall(r'getattr\([\w.]*config, "(\w+)"', source))
    assert "hidden_size" in asked
    assert asked - TYPES[name].keys - ASKED_TOO == set()


def other_than(values: tuple[Any, ...]) -> Any:
    return "gelu_new" if isinstance(values[0], str) else not values[0]


def test_a_key_that_mlx_lm_leaves_out_is_refused_by_name(folders: dict[str, Path]) -> None:
    from backends.mlx.architectures import TAKEN_TOO, TYPES, architecture_of

    def refuses(kind: str, changes: dict[str, Any], words: str) -> None:
        config = json.loads((folders[kind] / "config.json").read_text())
        architecture_of(config, "config.json")
        with pytest.raises(PreflightError, match=rf"config.json has {words}.*mlx-lm computes.*--backend torch"):
            architecture_of(config | changes, "config.json")

    for name, kind in TYPES.items():
        for key, values in kind.fixed.items():
            refuses(name, {key: other_than(values)}, key)
        assert set(TAKEN_TOO) == {"per_layer_config", "tie_embedding"}
        refuses(name, {"tie_embedding": False}, "tie_embedding False")
        refuses(name, {"per_layer_config": {"0": {"hidden_act": "gelu"}}}, "per_layer_config")
        refuses(name, {"rope_parameters": None, "rope_scaling": {"type": "axial"}}, "rope_type 'axial'")
        if not kind.partial:
            refuses(name, {"rope_parameters": None, "partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5")
    refuses(
        "llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.5}}, "attention_factor"
    )
    refuses("qwen2", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}, "truncate")
    refuses("qwen2", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7}}, "one of mscale")
    refuses("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping")
    refuses("gemma3_text", {"sliding_window": None}, "sliding_window")
    refuses("gemma3_text", {"layer_types": ["chunked_attention"] * 3}, "layers of chunked_attention")
    refuses("lfm2", {"layer_types": ["conv"] * 3}, "layers of conv")
    refuses("lfm2", {"block_ffn_dim_multiplier": None}, "block_ffn_dim_multiplier")
    for name in ("qwen2", "phi3", "granite"):
        refuses(name, {"head_dim": 24}, "head_dim 24")


@pytest.mark.parametrize("kind", ["phi", "gpt_neox", "lfm2_moe", "gemma3", "nonsense"])
def test_another_type_is_refused_on_mlx_before_anything_is_read(kind: str, tmp_path: Path) -> None:
    folder = edited(tiny.make(tmp_path / "m", "llama"), model_type=kind)
    with pytest.raises(PreflightError, match=rf"model type {kind} is not available on mlx, which has gemma, gemma2,"):
        opened("mlx", folder)


# --- one folder, one model --------------------------------------------------------------------------------------------

# Keys that only one of the two libraries reads, or that both read from several places.
OLD_GEMMA3: dict[str, Any] = {
    "layer_types": None,
    "sliding_window_pattern": 2,
    "rope_parameters": None,
    "rope_theta": 5e4,
    "rope_local_base_freq": 500.0,
    "rope_scaling": {"rope_type": "linear", "factor": 3.0},
}
READ_BY_ONE: dict[str, tuple[str, dict[str, Any]]] = {
    "a window that only mlx-lm's Llama has": (
        "llama",
        {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4, "rope_traditional": True},
    ),
    "layer_types that Mistral does not read": ("mistral", {"layer_types": ["full_attention"] * 2}),
    "biases that Mistral does not have": ("mistral", {"attention_bias": True, "mlp_bias": True}),
    "two names for the kind of RoPE": (
        "qwen2",
        {"rope_scaling": {"type": "default", "rope_type": "linear", "factor": 3.0}, "rope_parameters": None},
    ),
    "RoPE in rope_parameters alone": (
        "smollm3",
        {"rope_theta": None, "rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 5e4}},
    ),
    "yarn with both its scales": (
        "llama",
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "mscale": 0.7,
                "mscale_all_dim": 1.2,
                "beta_fast": 20.0,
                "beta_slow": 2.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "dynamic RoPE within its reach": ("qwen3", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}),
    "Phi-3's older name for longrope": (
        "phi3",
        {
            "rope_scaling": {"type": "su", **tiny.LONGROPE, "original_max_position_embeddings": 99},
            "max_position_embeddings": 4096,
        },
    ),
    "Gemma 3 in the older way": ("gemma3_text", OLD_GEMMA3),
    "Gemma 3 with windows alone": ("gemma3_text", {"layer_types": ["sliding_attention"] * 3}),
    "Gemma 2 without a cap of its logits": ("gemma2", {"final_logit_softcapping": None}),
    "defaults that the libraries do not share": ("llama", {"rms_norm_eps": ..., "max_position_embeddings": ...}),
    "LFM2 by other names": ("lfm2", {"layer_types": None, "full_attn_idxs": [1], "block_ff_dim": 96}),
    "SmolLM3's own layers without RoPE": ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 2}),
}


@pytest.mark.parametrize("case", READ_BY_ONE)
def test_both_compute_what_transformers_reads(case: str, tmp_path: Path, examples: list[Example]) -> None:
    """Scores, and answers whose cache is read: against torch, and torch's against a plain forward of transformers."""
    kind, changes = READ_BY_ONE[case]
    folder = tiny.make_type(tmp_path / "m", kind)
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    kept = {key: value for key, value in config.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))
    batch, prompts = pad(examples[:4]), [SHARED + row.tokens[: 4 + index] for index, row in enumerate(examples[:3])]
    torch, mlx = opened("torch", folder), opened("mlx", folder)
    right = torch.score(batch)
    assert np.abs(mlx.score(batch) - right).max() < SCORE
    assert np.abs(plain_scores(torch._model, batch) - right).max() < SCORE
    sampling = Sampling(12, 2)
    texts = dict(torch.generate(prompts, sampling))
    assert dict(mlx.generate(prompts, sampling)) == texts
    for index, prompt in enumerate(prompts):
        assert texts[index].tokens == plain_answer(torch._model, prompt, 12)


def plain_scores(model: Any, batch: Batch) -> Any:
    """log p of each token by transformers' own forward, row by row; zeros behind a row's end."""
    import torch

    with torch.no_grad():
        tokens_BT = torch.from_numpy(batch.tokens).long()
        logits_BTV = torch.cat([model(input_ids=row[None]).logits for row in tokens_BT]).log_softmax(-1)
        return logits_BTV[:, :-1].gather(-1, tokens_BT[:, 1:, None])[..., 0].numpy()


def plain_answer(model: Any, prompt: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The greedy answer of a model that reads the whole text for each token."""
    import torch

    row = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            row.append(int(model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1].argmax()))
            if row[-1] == tiny.END_ID:
                return tuple(row[len(prompt) : -1])
    return tuple(row[len(prompt) :])


@pytest.mark.parametrize(
    ("kind", "changes", "reach"),
    [
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 12}, 12),
        ("phi3", {"original_max_position_embeddings": 10}, 10),
    ],
)
def test_rows_whose_length_changes_the_frequencies_of_all_are_refused(
    kind: str, changes: dict[str, Any], reach: int, tmp_path: Path, examples: list[Example]
) -> None:
    folder = edited(tiny.make_type(tmp_path / "m", kind), **changes)
    config = json.loads((folder / "config.json").read_text())
    with pytest.raises(PreflightError, match=rf"behind {reach} tokens.*--max-length {reach}"):
        opened("mlx", folder).score(pad(examples[:4]))
    for name in backends.PROVIDERS:
        backends.check_rows(name, config, reach)
        with pytest.raises(PreflightError, match=rf"behind {reach} tokens"):
            backends.check_rows(name, config, reach + 1)


HEADS: dict[str, tuple[str, str, bool | None]] = {
    # type, what is stored as its head, tie_word_embeddings
    "the embedding again": ("gemma2", "same", True),
    "another, and nothing said": ("smollm3", "other", None),
    "another, though they are tied": ("qwen3", "other", True),
    "another, where mlx-lm has none": ("gemma", "other", None),
    "none, and nothing said": ("gemma3_text", "", None),
}


@pytest.mark.parametrize("case", HEADS)
def test_a_stored_head_is_torchs_or_refused(case: str, tmp_path: Path, examples: list[Example]) -> None:
    kind, stored, tied = HEADS[case]
    folder = tiny.make_type(tmp_path / "m", kind, tie_word_embeddings=True)
    config, path = json.loads((folder / "config.json").read_text()), folder / "model.safetensors"
    said = {} if tied is None else {"tie_word_embeddings": tied}
    (folder / "config.json").write_text(
        json.dumps({key: value for key, value in config.items() if key != "tie_word_embeddings"} | said)
    )
    values = load_file(path)
    embedding = values["model.embed_tokens.weight"]
    if stored:
        values["lm_head.weight"] = embedding.copy() if stored == "same" else embedding[::-1].copy()
        save_file(values, path, metadata={"format": "pt"})
    batch = pad(examples[:4])
    right = opened("torch", folder).score(batch)
    if case in ("another, though they are tied", "another, where mlx-lm has none"):
        with pytest.raises(PreflightError, match="stores an lm_head that is not its embedding"):
            opened("mlx", folder)
        return
    assert np.abs(opened("mlx", folder).score(batch) - right).max() < SCORE


SPARE_TENSORS = {
    "a bias that nobody adds": "model.layers.0.self_attn.q_proj.bias",
    "a layer too many": "model.layers.2.mlp.up_proj.weight",
    "a head's bias": "lm_head.bias",
    "a tensor of another model": "vision_tower.weight",
}


@pytest.mark.parametrize("case", SPARE_TENSORS)
def test_a_tensor_that_is_left_over_is_refused_by_both(case: str, tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "m", "llama")
    values = load_file(folder / "model.safetensors")
    values[SPARE_TENSORS[case]] = np.ones(4, np.float32)
    save_file(values, folder / "model.safetensors", metadata={"format": "pt"})
    for name in backends.PROVIDERS:
        with pytest.raises(DataError):
            opened(name, folder)


# --- the ladder -------------------------------------------------------------------------------------------------------


def side(name: str) -> Implementation:
    return Implementation(name, lambda folder: opened(name, folder))


# qwen2 is climbed in test_parity.py.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "qwen2"])
def test_the_ladder_holds_for_every_type(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    rows = tiny.make_rows()
    prompts = [example.tokens[: 5 + index] for index, example in enumerate(rows[:3])]
    few = {"max_new_tokens": 8, "gradients": ("full", "lora")}
    bench = Bench(side("torch"), side("mlx"), folders[kind], rows, prompts, tmp_path, **few)  # type: ignore[arg-type]
    for reading in climb(bench, True, (*RUNGS, LOSS) if kind in FINISHED else RUNGS):
        print(kind, reading)
        assert reading.tolerance is not None
        assert reading.error <= reading.tolerance, reading
        assert reading.control > MARGIN * reading.tolerance, reading


SAVED: dict[str, dict[str, Any]] = {
    "lfm2": {},  # whose convolutions lie the other way round in MLX
    "gemma3_text": OLD_GEMMA3,  # whose keys of RoPE must not be written anew
}


@pytest.mark.parametrize("kind", SAVED)
def test_what_one_saves_the_other_opens_and_goes_on_from(kind: str, tmp_path: Path, examples: list[Example]) -> None:
    folder = edited(tiny.make_type(tmp_path / "m", kind), **SAVED[kind])
    batch, config = pad(examples[:4]), TrainConfig()
    updates = list(make_updates(examples, batch_size=3, update_size=9, num_epochs=1, seed=0))
    losses = {}
    for name, other in (("mlx", "torch"), ("torch", "mlx")):
        backend, pilot = opened(name, folder), FakePilot()
        backend.train(updates[:1], config, pilot)
        backend.save(tmp_path / name)
        assert np.abs(opened(other, tmp_path / name).score(batch) - backend.score(batch)).max() < SCORE
        opened(other, folder).train(updates[1:2], config, pilot, backend.state())
        losses[name] = [stats.loss for stats in pilot.stats]
    assert np.abs(np.array(losses["mlx"]) - losses["torch"]).max() < 5e-6  # rung 2's
    saved = [load_file(tmp_path / name / "model.safetensors") for name in backends.PROVIDERS]
    assert {key: value.shape for key, value in saved[0].items()} == {key: v.shape for key, v in saved[1].items()}


def test_what_is_claimed_is_what_is_climbed() -> None:
    from backends.mlx.architectures import TYPES as ON_MLX
    from backends.torch.architectures import TYPES as ON_TORCH

    assert sorted(ON_MLX) == sorted(ON_TORCH) == KINDS


# --- torch, and types that the tests do not know ----------------------------------------------------------------------


def test_another_type_is_tried_when_torch_opens_it(tmp_path: Path) -> None:
    """GPT-NeoX is decoded rightly; BLOOM reads its mask in its own way; Qwen3-Next's layers keep another state."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from backends.torch.architectures import check_layers
    from backends.torch.generate import check_decoding

    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 64}
    torch.manual_seed(0)

    def made(kind: str, **more: Any) -> Any:
        config = AutoConfig.for_model(kind, **sizes, **more)
        return AutoModelForCausalLM.from_config(config).eval()

    check_decoding(made("gpt_neox", intermediate_size=64))
    with pytest.raises(PreflightError, match=r"model type bloom .*(otherwise|cannot be decoded).*another --model"):
        check_decoding(made("bloom"))
    with pytest.raises(PreflightError, match=r"qwen3_next has layers of linear_attention.*another --model"):
        check_layers(AutoConfig.for_model("qwen3_next", num_hidden_layers=4))
    with pytest.raises(PreflightError, match=r"gemma has use_bidirectional_attention"):
        check_layers(AutoConfig.for_model("gemma", use_bidirectional_attention=True))


def test_dropout_that_config_json_does_not_name_is_off_too(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from backends.torch.load import load

    config = AutoConfig.for_model("gpt2", n_embd=32, n_head=2, n_layer=1, vocab_size=64, n_positions=64)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    named = {key: value for key, value in json.loads(path.read_text()).items() if "pdrop" not in key}
    path.write_text(json.dumps(named))
    model = load(tmp_path, "cpu")
    assert {key: value for key, value in vars(model.config).items() if key.endswith("pdrop")} == {
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }
    assert AutoConfig.for_model("gpt2").attn_pdrop > 0  # the control
