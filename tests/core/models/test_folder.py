"""A model folder is checked before it is opened, and written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gsm8k_core import files
from gsm8k_core.files import read_json
from gsm8k_core.models.folder import ModelFolder, copy_model_folder, rope_theta, with_both_rope_keys, write_model_folder
from gsm8k_core.models.tensors import read_tensors
from gsm8k_core.models.tokenizer import TEMPLATES
from gsm8k_core.types import DataError, StorageError

INDEX = "model.safetensors.index.json"
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def edit(path: Path, **changes: object) -> None:
    """Sets keys of a JSON file; None removes one."""
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def shard(folder: Path, weight_map: dict[str, str]) -> None:
    """Makes the folder one with an index: its only shard has the weights."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


SHARD = "model-00001-of-00001.safetensors"
NORM = "model.norm.weight"


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def both_weights(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {NORM: SHARD}}))


def stray(folder: Path, name: str = "model-00001-of-00002.safetensors") -> None:
    shutil.copyfile(folder / "model.safetensors", folder / name)


def stray_beside_shards(folder: Path) -> None:
    shard(folder, {NORM: SHARD})
    (folder / "model.fp16.safetensors").touch()


def store_head(folder: Path) -> None:
    """An lm_head.weight of its own beside the embedding."""
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", **changes)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (
        lambda f: (f / "config.json").unlink(),
        "has no config.json (it has generation_config.json,",
    ),
    "config cut": (lambda f: cut(f / "config.json", 30), "config.json is not valid JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "config.json holds no JSON object"),
    "config deep": (lambda f: (f / "config.json").write_text("[" * 100_000), "config.json is not valid JSON"),
    "config not text": (
        lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"),
        "config.json is not valid JSON",
    ),
    "no model type": (config(model_type=None), "has no model_type"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "lacks model.safetensors"),
    "pickle": (pickle_only, "pytorch_model.bin is a pickle, which can run code, and is refused unrun"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "lacks tokenizer.json"),
    "tokenizer cut": (lambda f: cut(f / "tokenizer.json", 300), "tokenizer.json is cut short"),
    "auto_map": (config(auto_map={"AutoModel": "evil.Model"}), "custom code is refused"),
    "model_file": (config(model_file="evil.py"), "custom code is refused"),
    "tokenizer code": (
        lambda f: edit(f / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]}),
        "tokenizer_config.json asks to run the model's own Python (auto_map)",
    ),
    "quantised": (config(quantization={"bits": 4}), "quantised weights"),
    "two bases": (config(rope_theta=5.0), "has two RoPE bases, rope_theta 5.0"),
    "no base": (config(rope_theta=None, rope_parameters=None), "names no RoPE base"),
    "base a word": (config(rope_theta="big", rope_parameters=None), "rope_theta 'big'"),
    "base infinite": (
        lambda f: (f / "config.json").write_text('{"rope_theta": Infinity}'),
        "config.json is not valid JSON (Infinity is not JSON)",
    ),
    "rope a list": (config(rope_parameters=[1]), "rope_parameters [1]; it must be an object or null"),
    "empty weights": (lambda f: cut(f / "model.safetensors", 0), "(0 bytes;"),
    "header cut": (lambda f: cut(f / "model.safetensors", 100), "is cut short or damaged"),
    "data cut": (lambda f: cut(f / "model.safetensors", -1), "is cut short or damaged"),
    "not safetensors": (
        lambda f: (f / "model.safetensors").write_bytes(b"PK" * 99),
        "is cut short or damaged",
    ),
    "huge header": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 8), "is cut short or damaged"),
    "single and index": (both_weights, "has both model.safetensors and"),
    "missing shard": (
        lambda f: shard(f, {NORM: "model-00002-of-00002.safetensors"}),
        "lacks model-00002-of-00002",
    ),
    "shard elsewhere": (
        lambda f: shard(f, {NORM: "../model.safetensors"}),
        "not a safetensors file of this folder",
    ),
    "shard absolute": (lambda f: shard(f, {NORM: "/x.safetensors"}), "not a safetensors file of this folder"),
    "shard a pickle": (
        lambda f: shard(f, {NORM: "pytorch_model.bin"}),
        "not a safetensors file of this folder",
    ),
    "tensor missing": (lambda f: shard(f, {"model.other.weight": SHARD}), "places model.other.weight in"),
    "stray shard": (stray, "holds model-00001-of-00002.safetensors, which is not a part of the model"),
    "stray beside shards": (stray_beside_shards, f"model.fp16.safetensors, which is not a part of the model ({SHARD})"),
    "untied without a head": (config(tie_word_embeddings=False), "not tied to the embedding, but there is no lm_head"),
    "tied a word": (config(tie_word_embeddings="no"), "tie_word_embeddings 'no'; it must be true or false"),
    "index empty": (lambda f: shard(f, {}), "has no weight_map"),
}


def test_a_folder_is_asked_once_and_another_object_asks_again(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr("gsm8k_core.models.folder.read_json", lambda path: read.append(path.name) or read_json(path))
    model = ModelFolder(model_folder)
    assert read == []
    first = (model.check().end_ids, model.vocabulary, model.tied_head, model.context, model.hash)
    assert (read.count("config.json"), read.count("generation_config.json")) == (1, 1)
    tokenizer = model.tokenizer
    edit(model_folder / "config.json", max_position_embeddings=7, tie_word_embeddings=True)
    assert (model.check().end_ids, model.vocabulary, model.tied_head, model.context, model.hash) == first
    assert model.tokenizer is tokenizer
    assert read.count("config.json") == 1
    other = ModelFolder(model_folder)
    assert other == model
    assert other.context == 7 != model.context
    assert other.hash != model.hash
    assert other.tokenizer is not tokenizer


def test_the_context_is_known_or_not(model_folder: Path) -> None:
    edit(model_folder / "config.json", max_position_embeddings="long")
    assert ModelFolder(model_folder).context is None


def test_to_import_it_is_light() -> None:
    code = "import sys, gsm8k_core.models.folder; print({'numpy', 'safetensors', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_whole_folder_passes(model_folder: Path) -> None:
    ModelFolder(model_folder).check()


def test_a_sharded_folder_passes(model_folder: Path) -> None:
    shard(model_folder, {NORM: SHARD})
    ModelFolder(model_folder).check()


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_one_clear_line(case: str, model_folder: Path) -> None:
    damage, message = DAMAGE[case]
    damage(model_folder)
    with pytest.raises(DataError) as caught:
        ModelFolder(model_folder).check()
    assert message in str(caught.value)
    assert str(model_folder) in str(caught.value) or "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_mlx_lm_does_not_load_are_no_strays(model_folder: Path) -> None:
    stray(model_folder, "adapter_model.safetensors")
    ModelFolder(model_folder).check()


def test_an_untied_head_that_is_stored_passes(model_folder: Path) -> None:
    store_head(model_folder)
    edit(model_folder / "config.json", tie_word_embeddings=False)
    ModelFolder(model_folder).check()


@pytest.mark.parametrize(
    ("says", "stored", "tied"),
    [(True, True, True), (True, False, True), (False, True, False), (None, True, False), (None, False, True)],
)
def test_the_head_is_tied_by_config_else_by_what_is_stored(
    says: bool | None, stored: bool, tied: bool, model_folder: Path
) -> None:
    edit(model_folder / "config.json", tie_word_embeddings=says)
    if stored:
        store_head(model_folder)
    assert ModelFolder(model_folder).tied_head is tied
    ModelFolder(model_folder).check()


def test_the_head_is_found_among_shards(model_folder: Path) -> None:
    store_head(model_folder)
    edit(model_folder / "config.json", tie_word_embeddings=None)
    shard(model_folder, {NORM: SHARD})
    assert not ModelFolder(model_folder).tied_head


def test_the_vocabulary_is_the_embeddings_rows(model_folder: Path) -> None:
    assert ModelFolder(model_folder).vocabulary == 64
    edit(model_folder / "config.json", vocab_size=None)
    assert ModelFolder(model_folder).vocabulary == 64
    shard(model_folder, {NORM: SHARD})
    assert ModelFolder(model_folder).vocabulary == 64


@pytest.mark.parametrize(
    ("value", "message"),
    [(65, "vocab_size 65, but embed_tokens.weight has 64 rows"), ("64", "vocab_size '64'"), (True, "vocab_size True")],
)
def test_a_vocabulary_that_is_not_the_embeddings_is_refused(value: object, message: str, model_folder: Path) -> None:
    edit(model_folder / "config.json", vocab_size=value)
    with pytest.raises(DataError, match=message):
        _ = ModelFolder(model_folder).vocabulary


@pytest.mark.parametrize(
    ("values", "base"),
    [
        ({"rope_theta": 5}, 5.0),
        ({"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}}, 5.0),
        ({"rope_theta": 5, "rope_parameters": {"rope_theta": 5.0}}, 5.0),
        ({"rope_parameters": None}, None),
        ({}, None),
    ],
)
def test_rope_base_is_read_from_either_key(values: dict[str, Any], base: float | None) -> None:
    assert rope_theta(values) == base


def test_both_rope_keys_are_written_from_either() -> None:
    wanted = {
        "rope_theta": 5.0,
        "rope_parameters": {"rope_theta": 5.0, "rope_type": "default"},
        "rope_scaling": None,
    }
    assert with_both_rope_keys({"rope_theta": 5}) == wanted
    assert with_both_rope_keys({"rope_parameters": {"rope_theta": 5.0}}) == wanted
    assert with_both_rope_keys({"a": 1}) == {"a": 1}


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_rope_scaling_is_kept_under_both_keys(key: str) -> None:
    scaling = LLAMA3 if key == "rope_scaling" else {**LLAMA3, "rope_theta": 5.0}
    both = with_both_rope_keys({"rope_theta": 5.0, key: scaling})
    assert both["rope_scaling"] == LLAMA3
    assert both["rope_parameters"] == {**LLAMA3, "rope_theta": 5.0}


def test_scaling_wins_over_default_parameters() -> None:
    parameters = {"rope_theta": 5.0, "rope_type": "default"}
    both = with_both_rope_keys({"rope_parameters": parameters, "rope_scaling": LLAMA3})
    assert both["rope_parameters"] == {**LLAMA3, "rope_theta": 5.0}


def test_transformers_reads_the_scaling_that_was_written(model_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig

    edit(model_folder / "config.json", rope_parameters=None, rope_theta=5.0, rope_scaling=LLAMA3)
    before = AutoConfig.from_pretrained(model_folder).rope_parameters
    copy_model(model_folder, tmp_path / "copy")
    assert AutoConfig.from_pretrained(tmp_path / "copy").rope_parameters == before
    assert before["rope_theta"] == 5.0


def test_one_base_for_each_kind_of_layer_is_left_alone() -> None:
    values = {"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}
    assert with_both_rope_keys(values) == values


def test_every_end_token_counts(model_folder: Path) -> None:
    edit(model_folder / "generation_config.json", eos_token_id=[7, 5])
    edit(model_folder / "config.json", eos_token_id=5)
    assert ModelFolder(model_folder).end_ids == (1, 5, 7)  # 1 is the tokenizer's <end>


def test_the_tokenizer_alone_may_name_the_end(model_folder: Path) -> None:
    (model_folder / "generation_config.json").unlink()
    edit(model_folder / "config.json", eos_token_id=None)
    edit(model_folder / "tokenizer_config.json", eos_token={"content": "<end>", "special": True})
    assert ModelFolder(model_folder).end_ids == (1,)


def test_no_end_token_is_an_error(model_folder: Path) -> None:
    (model_folder / "generation_config.json").unlink()
    edit(model_folder / "config.json", eos_token_id=None)
    edit(model_folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(DataError, match="names no end token"):
        _ = ModelFolder(model_folder).end_ids


@pytest.mark.parametrize("value", ["</s>", -1, True, [1, "2"]])
def test_an_end_token_is_a_number(value: object, model_folder: Path) -> None:
    edit(model_folder / "config.json", eos_token_id=value)
    with pytest.raises(DataError, match="it must be a token number or a list"):
        _ = ModelFolder(model_folder).end_ids


def test_the_hash_is_of_what_the_model_answers(model_folder: Path, tmp_path: Path) -> None:
    first = ModelFolder(model_folder).hash
    (model_folder / "README.md").write_text("words")
    assert ModelFolder(model_folder).hash == first
    model_folder.rename(tmp_path / "moved")
    assert ModelFolder(tmp_path / "moved").hash == first
    (tmp_path / "moved" / "chat_template.jinja").write_text("words")
    second = ModelFolder(tmp_path / "moved").hash
    assert second != first
    edit(tmp_path / "moved" / "config.json", rms_norm_eps=1e-5)
    assert ModelFolder(tmp_path / "moved").hash != second


def copy_model(source: Path, directory: Path) -> None:
    def weights(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())

    directory.parent.mkdir(exist_ok=True)
    write_model_folder(source, directory, weights)


def test_a_written_folder_is_whole(model_folder: Path, tmp_path: Path) -> None:
    (model_folder / "chat_template.jinja").write_bytes("{{ 'é' }}\r\n".encode())
    (model_folder / "README.md").write_text("not the model's")
    copy_model(model_folder, tmp_path / "run" / "model")
    copy = tmp_path / "run" / "model"
    ModelFolder(copy).check()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        assert (copy / name).read_bytes() == (model_folder / name).read_bytes()
    written = json.loads((copy / "config.json").read_text())
    assert (written["dtype"], written["torch_dtype"]) == ("float32", "float32")
    assert not (copy / "README.md").exists()
    assert os.listdir(tmp_path / "run") == ["model"]


def in_the_cache(folder: Path, tmp_path: Path) -> Path:
    """The folder as the Hub's cache keeps it: every file is a link to a blob."""
    repository = tmp_path / "hub" / "models--a--b"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(repository / "blobs" / f"{number:040d}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:040d}")
    return snapshot


def test_the_caches_links_are_copied_not_linked(model_folder: Path, tmp_path: Path) -> None:
    snapshot = in_the_cache(model_folder, tmp_path)
    ModelFolder(snapshot).check()
    copy_model(snapshot, tmp_path / "copy")
    copy_model_folder(snapshot, tmp_path / "whole")
    assert not [path for path in tmp_path.glob("copy/*") if path.is_symlink()]
    assert not [path for path in tmp_path.glob("whole/*") if path.is_symlink()]
    assert ModelFolder(tmp_path / "whole").hash == ModelFolder(snapshot).hash


# What a stranger may have called a link, and how it gets there: by tar and git, links come along as they are.
@pytest.mark.parametrize("name", ["vocab.hub", "merges.txt", "chat_template.jinja", "tokenizer_backup.json", "x/y"])
@pytest.mark.parametrize("place", ["folder", "cache", "blobs"])
def test_a_link_out_of_a_strangers_folder_is_refused(name: str, place: str, model_folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "home" / "id_ed25519"
    secret.parent.mkdir()
    secret.write_text("PRIVATE KEY")
    folder = model_folder if place == "folder" else in_the_cache(model_folder, tmp_path)
    if place == "blobs":  # all that leads into it leads out
        blobs = folder.parents[1] / "blobs"
        blobs.rename(tmp_path / "home" / "blobs")
        blobs.symlink_to(tmp_path / "home" / "blobs")
    elif name == "x/y":
        (folder / TEMPLATES).mkdir()
        (folder / TEMPLATES / "more.jinja").symlink_to(secret)
    else:
        (folder / name).symlink_to(secret)
    for read in (lambda: ModelFolder(folder).check(), lambda: ModelFolder(folder).tokenizer):
        with pytest.raises(DataError, match="is a link out of the folder") as caught:
            read()
        assert str(folder) in str(caught.value)


def test_only_names_of_a_model_are_copied(model_folder: Path, tmp_path: Path) -> None:
    """A link that comes after the check, and what no model has."""
    secret = tmp_path / "secret"
    secret.write_text("PRIVATE KEY")
    for name in ("vocab.hub", "tokenizer_backup.json", "chat_template.txt", "private.txt"):
        (model_folder / name).write_text("PRIVATE KEY")
    (model_folder / "tokenizer.4.0.0.json").write_text("{}")
    (model_folder / ".git").mkdir()
    copy_model(model_folder, tmp_path / "copy")
    copy_model_folder(model_folder, tmp_path / "whole")
    model = {"config.json", "generation_config.json", "model.safetensors"}
    tokenizer = {"tokenizer.json", "tokenizer_config.json", "tokenizer.4.0.0.json"}
    assert set(os.listdir(tmp_path / "copy")) == set(os.listdir(tmp_path / "whole")) == model | tokenizer
    (model_folder / "merges.txt").symlink_to(secret)
    for copy in (copy_model, copy_model_folder):
        with pytest.raises(DataError, match=r"merges\.txt is a link out of the folder"):
            copy(model_folder, tmp_path / "late")
    assert not (tmp_path / "late").exists()


@pytest.mark.parametrize("name", ["vocab.json", "anything"])
def test_a_pipe_in_a_strangers_folder_is_refused(name: str, model_folder: Path, tmp_path: Path) -> None:
    os.mkfifo(model_folder / name)
    for read in (lambda: ModelFolder(model_folder).check(), lambda: ModelFolder(model_folder).tokenizer):
        with pytest.raises(DataError, match=f"{name} is a pipe, not a plain file"):
            read()


def link_to_nothing(path: Path) -> None:
    path.symlink_to(path.parent / "nothing")


@pytest.mark.parametrize("occupy", [Path.mkdir, Path.touch, link_to_nothing])
def test_what_stands_there_is_never_replaced(
    occupy: Callable[[Path], None], model_folder: Path, tmp_path: Path
) -> None:
    occupy(tmp_path / "taken")
    with pytest.raises(StorageError, match="exists already"):
        copy_model(model_folder, tmp_path / "taken")
    assert not (tmp_path / "nothing").exists()


FAILURES: dict[str, tuple[BaseException, type[BaseException], str]] = {
    "full": (OSError(errno.ENOSPC, "No space left on device"), StorageError, "the disk is full"),
    "full, as safetensors says it": (
        RuntimeError("IoError(Os { code: 28, kind: StorageFull })"),
        StorageError,
        "the disk is full",
    ),
    "refused": (OSError(errno.EACCES, "Permission denied"), StorageError, "Permission denied"),
    "a bug": (ZeroDivisionError("by zero"), ZeroDivisionError, "by zero"),
    "stopped": (KeyboardInterrupt("now"), KeyboardInterrupt, "now"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_leaves_nothing(case: str, model_folder: Path, tmp_path: Path) -> None:
    error, kind, message = FAILURES[case]

    def weights(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    (tmp_path / "run").mkdir()
    with pytest.raises(kind, match=message) as caught:
        write_model_folder(model_folder, tmp_path / "run" / "model", weights)
    assert os.listdir(tmp_path / "run") == []
    assert kind is not StorageError or str(tmp_path / "run" / "model") in str(caught.value)


def test_weights_cut_by_a_silent_full_disk_are_noticed(model_folder: Path, tmp_path: Path) -> None:
    def weights(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes((model_folder / "model.safetensors").read_bytes()[:-5])

    with pytest.raises(StorageError, match="was not written"):
        write_model_folder(model_folder, tmp_path / "model", weights)
    assert not (tmp_path / "model").exists()


KILLED = """
import sys, time
from pathlib import Path
from gsm8k_core.models.folder import write_model_folder
def weights(folder):
    (folder / "model.safetensors").write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(3600)
write_model_folder(Path(sys.argv[1]), Path(sys.argv[2]), weights)
"""


def test_a_kill_leaves_no_half_folder_and_what_it_leaves_is_cleared(model_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "run" / "model"
    target.parent.mkdir()
    command = [sys.executable, "-c", KILLED, str(model_folder), str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGKILL)
    assert not target.exists()
    (left,) = target.parent.iterdir()
    copy_model(model_folder, target)
    assert left.exists()  # it could be another live process's
    long_ago = time.time() - 2 * files.STALE_SECONDS
    os.utime(left, (long_ago, long_ago))
    target.rename(tmp_path / "first")
    copy_model(model_folder, target)
    assert os.listdir(target.parent) == ["model"]


def test_bfloat16_is_read_without_a_library_for_it(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    kinds = [torch.bfloat16, torch.float16, torch.float32, torch.int64, torch.uint8]
    tensors = {str(kind): (100 * torch.rand(3, 5)).to(kind) for kind in kinds}
    save_torch(tensors, tmp_path / "x.safetensors")
    found = read_tensors(tmp_path / "x.safetensors")
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
    assert all(np.array_equal(found[name], tensor.float().numpy()) for name, tensor in tensors.items())
    save_torch({"a": torch.zeros(2).to(torch.float8_e4m3fn)}, tmp_path / "x.safetensors")
    with pytest.raises(DataError, match="holds a as F8_E4M3, which is not read here"):
        read_tensors(tmp_path / "x.safetensors")
