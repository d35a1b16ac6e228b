"""Adapters that peft and mlx-lm make, of every kind: each is the model that they open, on both backends, or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import backends
from gsm8k_core.config.score import EvalConfig
from gsm8k_core.models.find import resolve_model
from gsm8k_core.problems.batching import pad
from gsm8k_core.problems.rows import resolve_tokenizer
from gsm8k_core.types import DataError, Example, UsageError
from tests import tiny

BATCH = pad([Example("a", (4, 5, 6, 7, 8, 9, 1), 2)])
TOLERANCE = 2e-5  # measured: 4e-6
Q, WEIGHTS = "model.layers.0.self_attn.q_proj", "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Kind:
    """An adapter as a stranger trains it."""

    settings: dict[str, Any]
    tied: bool = True
    rows: int = 0  # of an embedding that was resized; 0: as it was


def of(*targets: str, tied: bool = True, rows: int = 0, **settings: Any) -> Kind:
    return Kind({"target_modules": list(targets), **settings}, tied, rows)


PATTERNS = {"rank_pattern": {"layers.0.self_attn.q_proj": 2, "v_proj": 6}, "alpha_pattern": {r".*\.1\..*_proj": 3}}
KINDS = {
    "embedding saved, tied": of("q_proj", modules_to_save=["embed_tokens"]),
    "head saved, tied": of("q_proj", modules_to_save=["lm_head"]),
    "both saved, tied": of("q_proj", modules_to_save=["embed_tokens", "lm_head"]),
    "both saved, to stay tied": of("q_proj", modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    "both saved": of("q_proj", tied=False, modules_to_save=["embed_tokens", "lm_head"]),
    "norms saved": of("q_proj", modules_to_save=["norm"]),
    "head, tied": of("q_proj", "lm_head"),
    "head": of("q_proj", "lm_head", tied=False),
    "embedding, tied": of("q_proj", "embed_tokens"),
    "embedding": of("q_proj", "embed_tokens", tied=False),
    "both, tied": of("q_proj", "embed_tokens", "lm_head"),
    "both, to stay tied": of("q_proj", "embed_tokens", "lm_head", ensure_weight_tying=True),
    "embedding and head by DoRA": of("q_proj", "embed_tokens", "lm_head", use_dora=True),
    "tokens": of("q_proj", trainable_token_indices=[4, 5]),
    "tokens of the embedding alone": of("q_proj", tied=False, trainable_token_indices={"embed_tokens": [4, 6]}),
    "more tokens, tied": of("q_proj", rows=70),
    "more tokens": of("q_proj", tied=False, rows=70),
    "patterns": of("q_proj", "v_proj", "down_proj", **PATTERNS),
    "patterns, rslora, DoRA": of("q_proj", "v_proj", use_rslora=True, use_dora=True, **PATTERNS),
    "biases": of("q_proj", "v_proj", tied=False, bias="all", lora_bias=True),
    "a name that no layer has": of("q_proj", "c_attn"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bases: tied is a Llama, the other one a Qwen2, which has biases."""
    folder = tmp_path_factory.mktemp("strangers")
    tiny.make(folder / "tied", "llama", num_hidden_layers=2, intermediate_size=80)
    tiny.make(folder / "apart", "qwen2", num_hidden_layers=2, tie_word_embeddings=False)
    return folder


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSM8K_CACHE", str(tmp_path / "cache"))


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    wide = logits[0, :-1].astype(np.float64)
    picked = np.take_along_axis(wide, BATCH.tokens[0, 1:, None], -1)[:, 0]
    return picked - np.log(np.exp(wide).sum(-1))


def by_peft(kind: Kind, base: Path, folder: Path) -> np.ndarray:
    """A random adapter trained a little, saved and opened again by peft; returns peft's own scores of BATCH."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    def opened() -> Any:
        model = AutoModelForCausalLM.from_pretrained(base)
        if kind.rows:
            model.resize_token_embeddings(kind.rows, mean_resizing=False)
        return model

    torch.manual_seed(0)
    model = get_peft_model(opened(), LoraConfig(r=4, lora_alpha=12, init_lora_weights=False, **kind.settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_embedding" in name:  # peft draws them ten times as large as the others
                parameter.mul_(0.1)
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    again = PeftModel.from_pretrained(opened(), folder).eval()
    with torch.no_grad():
        return log_probabilities(again(input_ids=torch.from_numpy(BATCH.tokens).long()).logits.numpy())


def scores(folder: Path, name: str) -> np.ndarray:
    source = resolve_model(str(folder), print)
    assert source.choice.name == "adapter"
    return backends.open(name, source.folder, "cpu", "float32").score(BATCH)[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_it_is_the_model_that_peft_opens(kind: Kind, home: Path, tmp_path: Path) -> None:
    base = home / ("tied" if kind.tied else "apart")
    theirs = by_peft(kind, base, tmp_path / "adapter")
    for name in filter(backends.installed, ("torch", "mlx")):
        assert np.abs(scores(tmp_path / "adapter", name) - theirs).max() < TOLERANCE
        plain = backends.open(name, base, "cpu", "float32").score(BATCH)[0]
        assert np.abs(plain - theirs).max() > 1e-2
    assert resolve_model(str(tmp_path / "adapter"), print).model.vocabulary == (kind.rows or 64)


# --- mlx-lm ---


@pytest.mark.skipif(not backends.installed("mlx"), reason="backend mlx is not installed here")
@pytest.mark.parametrize("how", ["full", "lora", "dora"])
def test_it_is_the_model_that_mlx_lm_opens(how: str, home: Path, tmp_path: Path) -> None:
    """Made as mlx_lm.lora makes it, by its own code; lora and dora with the embedding among the keys."""
    import mlx.core as mx
    import mlx_lm
    from mlx.utils import tree_flatten, tree_map
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import save_config

    model, _ = mlx_lm.load(str(home / "tied"))
    model.freeze()
    parameters = {"rank": 4, "scale": 2.5, "dropout": 0.0}
    keys = ["self_attn.q_proj", "mlp.down_proj", "model.embed_tokens"]
    if how == "full":
        model.layers[-1].unfreeze()
    else:
        linear_to_lora_layers(model, 1, {**parameters, "keys": set(keys)}, use_dora=how == "dora")
    mx.random.seed(0)
    model.update(tree_map(lambda array: array + 0.1 * mx.random.normal(array.shape), model.trainable_parameters()))
    folder = tmp_path / "adapter"
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), dict(tree_flatten(model.trainable_parameters())))
    named = parameters if how == "full" else {**parameters, "keys": keys}
    config = {"model": str(home / "tied"), "fine_tune_type": how, "num_layers": 1, "lora_parameters": named}
    save_config(config, folder / "adapter_config.json")
    again, _ = mlx_lm.load(str(home / "tied"), adapter_path=str(folder))
    theirs = log_probabilities(np.array(again(mx.array(BATCH.tokens))))
    for name in filter(backends.installed, ("torch", "mlx")):
        assert np.abs(scores(folder, name) - theirs).max() < TOLERANCE
        assert np.abs(backends.open(name, home / "tied", "cpu", "float32").score(BATCH)[0] - theirs).max() > 1e-2


# --- what is broken ---


@pytest.fixture
def small(home: Path, tmp_path: Path) -> Path:
    """A whole adapter of one layer, in peft's layout."""
    folder = tmp_path / "small"
    folder.mkdir()
    rng = np.random.default_rng(0)
    lora = {"A": 0.1 * rng.standard_normal((4, 64)), "B": 0.1 * rng.standard_normal((64, 4))}
    tensors = {f"base_model.model.{Q}.lora_{part}.weight": value.astype(np.float32) for part, value in lora.items()}
    save_file(tensors, str(folder / WEIGHTS))
    config = {"peft_type": "LORA", "base_model_name_or_path": str(home / "tied"), "r": 4, "lora_alpha": 8}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["q_proj"]}))
    return folder


def edit(folder: Path, drop: str = "", **changes: object) -> None:
    path = folder / "adapter_config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if key != drop}))


def put(folder: Path, drop: str = "", **tensors: np.ndarray) -> None:
    held = {name: value for name, value in load_file(folder / WEIGHTS).items() if not drop or drop not in name}
    save_file(held | {f"base_model.model.{name}": value for name, value in tensors.items()}, str(folder / WEIGHTS))


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def other_layout(folder: Path, **settings: object) -> None:
    """The same tensors as mlx-lm's."""
    held = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    renamed = {f"{Q}.lora_{name.split('.lora_')[1][0].lower()}": value.T.copy() for name, value in held.items()}
    save_file(renamed, str(folder / "adapters.safetensors"))
    config = {"model": json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]}
    (folder / "adapter_config.json").write_text(json.dumps({**config, **settings}))


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no r": (lambda folder: edit(folder, drop="r"), r"adapter_config\.json: r is missing"),
    "r is a text": (lambda folder: edit(folder, r="4"), r"adapter_config\.json: r must be a whole number"),
    "another r": (lambda folder: edit(folder, r=8), r"adapter_config\.json: r is 8.*rank 4"),
    "no alpha": (lambda folder: edit(folder, drop="lora_alpha"), r"adapter_config\.json: lora_alpha is missing"),
    "a text in a pattern": (
        lambda folder: edit(folder, rank_pattern={"q_proj": "4"}),
        r"adapter_config\.json: rank_pattern\.q_proj must be a whole number",
    ),
    "another rank in a pattern": (
        lambda folder: edit(folder, rank_pattern={"q_proj": 2}),
        r"adapter_config\.json: rank_pattern is 2",
    ),
    "no pattern": (
        lambda folder: edit(folder, alpha_pattern={"q_(proj": 4}),
        r"adapter_config\.json: alpha_pattern has 'q_\(proj'",
    ),
    "a pattern without end": (
        lambda folder: edit(folder, alpha_pattern={"((((a+)+)+)+)+": 4}),
        r"adapter_config\.json: alpha_pattern has .* 3 of \* \+ \? {",
    ),
    "another kind": (lambda folder: edit(folder, peft_type="LOHA"), r"adapter_config\.json: peft_type is 'LOHA'"),
    "a base that is changed": (
        lambda folder: edit(folder, init_lora_weights="pissa_niter_4"),
        r"adapter_config\.json: init_lora_weights is 'pissa_niter_4'",
    ),
    "blocks used twice": (
        lambda folder: edit(folder, layer_replication=[[0, 2], [1, 2]]),
        r"adapter_config\.json: layer_replication",
    ),
    "targets that are not there": (
        lambda folder: edit(folder, target_modules=["nope"]),
        r"adapter_config\.json: target_modules is \['nope'\]",
    ),
    "targets of another type": (
        lambda folder: edit(folder, target_modules=3),
        r"adapter_config\.json: target_modules must be a list",
    ),
    "saved modules that are not there": (
        lambda folder: edit(folder, modules_to_save=["lm_head"]),
        r"adapter_config\.json: modules_to_save names 'lm_head'",
    ),
    "DoRA without lengths": (lambda folder: edit(folder, use_dora=True), r"adapter_config\.json: use_dora says DoRA"),
    "lengths without DoRA": (
        lambda folder: put(folder, **{f"{Q}.lora_magnitude_vector": zeros(64)}),
        r"adapter_config\.json: use_dora says plain LoRA",
    ),
    "no B": (lambda folder: put(folder, drop="lora_B"), r"adapter_model\.safetensors lacks .*q_proj\.lora_B\.weight"),
    "no A": (
        lambda folder: put(folder, drop="lora_A"),
        r"adapter_model\.safetensors also holds .*q_proj\.lora_B\.weight",
    ),
    "B of another shape": (
        lambda folder: put(folder, **{f"{Q}.lora_B.weight": zeros(32, 4)}),
        r"adapter_model\.safetensors changes .*q_proj\.weight.*\(32, 64\)",
    ),
    "a module that its base lacks": (
        lambda folder: put(folder, **{"model.layers.9.self_attn.q_proj.weight": zeros(64, 64)}),
        r"adapter_model\.safetensors changes model\.layers\.9.*which its base lacks",
    ),
    "an embedding of another width": (
        lambda folder: put(folder, **{"model.embed_tokens.weight": zeros(64, 32)}),
        r"changes model\.embed_tokens\.weight.*\(64, 32\)",
    ),
    "rows that the embedding lacks": (
        lambda folder: (
            edit(folder, trainable_token_indices=[99]),
            put(folder, **{"model.embed_tokens.token_adapter.trainable_tokens_delta": zeros(1, 64)}),
        )[0],
        r"changes model\.embed_tokens\.weight, has no row 99",
    ),
    "two embeddings for one": (
        lambda folder: put(folder, **{"model.embed_tokens.weight": zeros(64, 64), "lm_head.weight": zeros(64, 64) + 1}),
        r"changes lm_head\.weight, is another than its embedding",
    ),
    "mlx-lm's without a scale": (
        lambda folder: other_layout(folder, lora_parameters={"rank": 4, "alpha": 16}),
        r"adapter_config\.json: lora_parameters\.scale is missing",
    ),
    "mlx-lm's of another rank": (
        lambda folder: other_layout(folder, lora_parameters={"rank": 8, "scale": 2.0}),
        r"adapter_config\.json: lora_parameters\.rank is 8",
    ),
    "mlx-lm's of another kind": (
        lambda folder: other_layout(folder, fine_tune_type="ia3", lora_parameters={"rank": 4, "scale": 2.0}),
        r"adapter_config\.json: fine_tune_type is 'ia3'",
    ),
    "a pickle": (
        lambda folder: (folder / WEIGHTS).rename(folder / "adapter_model.bin") and None,
        r"has neither adapter_model\.safetensors nor adapters\.safetensors",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_named_with_file_and_key(case: str, small: Path) -> None:
    spoil, words = BROKEN[case]
    assert resolve_model(str(small), print).choice.name == "adapter"  # until it is broken
    spoil(small)
    with pytest.raises(DataError, match=words) as caught:
        resolve_model(str(small), print)
    assert "\n" not in str(caught.value)
    if "changes " not in words:  # which only the base's weights tell, and inspect asks for none
        with pytest.raises(DataError, match=words) as looked_at:
            resolve_tokenizer(str(small), print)
        assert str(looked_at.value) == str(caught.value)


# --- its base on another machine ---


def test_a_base_of_another_machine_is_given_by_a_flag(small: Path, home: Path) -> None:
    before = resolve_model(str(small), print).model.tensors
    edit(small, base_model_name_or_path="/mnt/other/models/plain")
    wanted = r"adapter_config\.json names .*/mnt/other/models/plain.*--base-model FOLDER"
    for opens in (resolve_model, resolve_tokenizer):
        with pytest.raises(DataError, match=wanted):
            opens(str(small), print)
    own = Path(shutil.copytree(small, small.with_name("own")))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(home / "tied" / name, own / name)
    with pytest.raises(DataError, match=wanted):  # of a base that it would not be asked for
        resolve_tokenizer(str(own), print)
    assert resolve_tokenizer(str(own), print, str(home / "tied")).folder == own
    given = resolve_model(str(small), print, str(home / "tied"))
    assert given.model.tensors == before
    assert given.choice.reason.startswith(f"an adapter of {home / 'tied'}")
    edit(small, drop="base_model_name_or_path")  # it names none at all
    assert resolve_model(str(small), print, str(home / "tied")).choice.name == "adapter"
    looked_at = resolve_tokenizer(str(small), print, str(home / "tied"))
    assert (looked_at.name, looked_at.folder, looked_at.found) == (str(small), home / "tied", small)
    edit(small, base_model_name_or_path=str(small))
    for opens in (resolve_model, resolve_tokenizer):
        with pytest.raises(DataError, match="is an adapter of itself"):
            opens(str(small), print)


def test_a_whole_model_has_no_base(home: Path) -> None:
    with pytest.raises(UsageError, match=r"--base-model .* is for an adapter"):
        resolve_model(str(home / "tied"), print, "embedded")
    assert EvalConfig().base_model == ""


def test_an_adapter_of_an_adapter_is_opened_on_the_base_of_the_lower_one(
    small: Path, home: Path, tmp_path: Path
) -> None:
    upper = Path(shutil.copytree(small, tmp_path / "upper"))
    edit(upper, base_model_name_or_path=str(small))
    whole = resolve_model(str(upper), print).folder
    edit(small, base_model_name_or_path="elsewhere/plain/1")
    for opens in (resolve_model, resolve_tokenizer):
        with pytest.raises(DataError, match=r"small/adapter_config\.json names the base model 'elsewhere/plain/1'"):
            opens(str(upper), print)
    given = resolve_model(str(upper), print, str(home / "tied")).folder
    assert (
        load_file(given / "model.safetensors")[f"{Q}.weight"] == load_file(whole / "model.safetensors")[f"{Q}.weight"]
    ).all()


# --- its own tokenizer ---


def test_it_is_opened_with_its_own_tokenizer_and_template(small: Path, home: Path) -> None:
    assert resolve_model(str(small), print).model.tokenizer.chat_template == tiny.TEMPLATE
    (small / "chat_template.jinja").write_text("own {{ messages[0]['content'] }}")
    alone = resolve_model(str(small), print)
    assert alone.model.tokenizer.chat_template.startswith("own")
    assert "with its own chat template" in alone.choice.reason
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(home / "tied" / name, small / name)
    held = json.loads((small / "tokenizer.json").read_text())
    held["added_tokens"].append({**held["added_tokens"][0], "id": 39, "content": "<new>"})
    (small / "tokenizer.json").write_text(json.dumps(held))
    put(small, **{"model.embed_tokens.weight": zeros(66, 64) + 1})
    whole = resolve_model(str(small), print)
    assert "with its own tokenizer and chat template" in whole.choice.reason
    assert whole.model.tokenizer("<new>", add_special_tokens=False)["input_ids"] == [39]
    assert whole.model.vocabulary == 66
    assert whole.model.tied_head
