"""What a model folder is: the checks before it is opened, what is asked of it, its weights, and how one is written.

A model folder is what Hugging Face calls one: config.json, safetensors weights, tokenizer files.
Nothing in it is ever run: pickled weights and custom code are refused unread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from gsm8k_core.config.stored import Size, Stored, stored
from gsm8k_core.doing import doing
from gsm8k_core.files import (
    MAX_WEIGHTS_BYTES,
    check_strangers,
    copy_plain,
    names_hash,
    new_folder,
    read_json,
    write_json,
)
from gsm8k_core.models.prompt_settings import NOTHING, PromptSettings
from gsm8k_core.models.rendering import Rendering
from gsm8k_core.models.tensors import SAVED_DTYPES, STORED_DTYPES, check_safetensors, float32_of, stored_tensors
from gsm8k_core.models.tokenizer import (
    TEMPLATES,
    TOKENIZER_FILES,
    Tokenizer,
    check_tokenizer,
    copied_files,
    has_tokenizer,
    load_tokenizer,
    plain_template,
    tokenizer_end,
    try_template,
)
from gsm8k_core.types import DataError, StorageError

if TYPE_CHECKING:
    import numpy.typing as npt

Config = dict[str, Any]  # a parsed config.json: any JSON

RUN_RECORD, CHECKPOINT_RECORD = "run.json", "checkpoint.json"  # what training keeps beside a folder called model
RUN_PHASES = "rollouts"  # where a run keeps the trainings before its last one, each with a record of its own
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
LOADED_FILES = "model*.safetensors"  # mlx-lm loads every file of such a name
EMBEDDING = "embed_tokens.weight"
HEAD = "lm_head.weight"
HASHED_FILES = ("*.safetensors", "config.json", "generation_config.json", *TOKENIZER_FILES)
CODE_KEYS = ("auto_map", "model_file")  # transformers' and mlx-lm's way to name Python files to run
LARGEST_BASE = 1e30  # JSON can say 1e999, which is infinite, and whole numbers that no float can hold
ROPE_BY_LAYER = ("gemma3", "gemma3_text")
QUANTISED_KEYS = ("quantization", "quantization_config")

LINEAR_WEIGHT = re.compile(r"(model\.layers\.\d+\..+)\.weight")


MOST_LAYERS = 10_000
Width = Annotated[int, Field(ge=1, lt=2**24)]


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a Llama-like model that decide its products."""

    layers: int
    hidden: int
    inner: int  # of the MLP
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    @property
    def block_parameters(self) -> int:
        """Matrix parameters of all blocks: four projections of the attention, three of the MLP."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.inner)

    @property
    def head_parameters(self) -> int:
        return self.hidden * self.vocabulary


class _Sizes(Stored):
    """What config.json says of the model's sizes, whichever of them it names; some differ from layer to layer."""

    hidden_size: Width | None = None
    num_hidden_layers: Annotated[int, Field(ge=1, le=MOST_LAYERS)] | None = None
    num_attention_heads: Width | list[Width] | None = None
    num_key_value_heads: Width | list[Width] | None = None
    intermediate_size: Width | list[Width] | None = None
    head_dim: Width | None = None
    max_position_embeddings: Size | None = None


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """From a config.json. Raises KeyError for a model that has no such sizes."""
    heads = int(config["num_attention_heads"])
    return ModelShape(
        layers=int(config["num_hidden_layers"]),
        hidden=int(config["hidden_size"]),
        inner=int(config["intermediate_size"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or int(config["hidden_size"]) // heads),
        vocabulary=int(config["vocab_size"]),
    )


@dataclass(frozen=True)
class ModelFolder:
    """A model folder that is asked each thing once: what was read, loaded or hashed is kept as long as this object.

    Nothing is read before it is asked for. Where files may have changed since, as in a base that a resumed run has to
    know again, another object is made of the same path. Whatever cannot be read is a DataError.
    """

    path: Path
    prompts: PromptSettings = NOTHING  # what it is asked with, where that is not all its own

    def check(self, quantized: bool = False) -> ModelFolder:
        """Itself. Raises DataError unless it holds a whole model, or a `quantized` one, that opens without its code."""
        try:
            _check_files(self, quantized)
        except OSError as error:
            raise DataError(f"model folder {self.path} cannot be read ({error}); check its rights") from None
        return self

    def prompted(self, prompts: PromptSettings) -> ModelFolder:
        """The same folder asked in another way; what was read of it is kept."""
        other = replace(self, prompts=prompts)
        other.__dict__.update({name: each for name, each in self.__dict__.items() if name in ("config", "hash")})
        return other

    @cached_property
    def config(self) -> Config:
        """config.json."""
        return read_json(self.path / "config.json")

    @cached_property
    def generation(self) -> Config:
        """generation_config.json, empty where there is none."""
        path = self.path / "generation_config.json"
        return read_json(path) if path.is_file() else {}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """transformers' tokenizer: seconds, the first time, and a chat template for certain."""
        tokenizer = load_tokenizer(self.path)
        if tokenizer.eos_token is None and tokenizer.chat_template == plain_template(tokenizer):  # which asks for it
            tokenizer.eos_token = tokenizer.decode([self.end_ids[0]], skip_special_tokens=False)
        return tokenizer

    @cached_property
    def rendering(self) -> Rendering:
        """How it is talked to, and what ends an answer; the tokenizer is loaded for it."""
        if self.prompts.template:
            try_template(self.path, self.prompts.template, self.prompts.template_name)
        return Rendering.of(self.tokenizer, self.end_ids, self.prompts)

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """Every token that ends an answer by generation_config.json, config.json and the tokenizer together.

        A base model's template may close a turn with another one: `rendering` knows it.
        """
        alone = not (self.path / "config.json").is_file()  # a tokenizer's folder, for `inspect`
        found = {
            *_end_ids(self.path / "generation_config.json", self.generation),
            *_end_ids(self.path / "config.json", {} if alone else self.config),
            *tokenizer_end(self.path),
        }
        if not found:
            raise DataError(f"{self.path} names no end token; add eos_token_id to its generation_config.json")
        return tuple(sorted(found))

    @cached_property
    def vocabulary(self) -> int:
        """The rows of the embedding: as many different tokens as the model can read."""
        path = self.path / "config.json"
        named, stored = self.config.get("vocab_size"), _embedding_rows(self.path)
        if named is not None and (type(named) is not int or named <= 0):
            raise DataError(f"{path} has vocab_size {named!r}; it must be a whole number above zero")
        if named is not None and stored is not None and named != stored:
            raise DataError(
                f"{path} has vocab_size {named}, but {EMBEDDING} has {stored} rows; download or save the model again"
            )
        size = stored if named is None else named
        if size is None:
            raise DataError(f"{path} has no vocab_size; download or save the model again")
        return size

    @property
    def context(self) -> int | None:
        """As many tokens as it reads, question and answer together; None where config.json does not say."""
        limit = self.config.get("max_position_embeddings")
        return limit if isinstance(limit, int) else None

    @cached_property
    def tied_head(self) -> bool:
        """Whether the head shares the embedding's weights: by config.json, else by whether a head is stored."""
        tied = _tied(self.path, self.config)
        return not any(name.endswith(HEAD) for name in self.tensors) if tied is None else tied

    @cached_property
    def tensors(self) -> frozenset[str]:
        """The names of all that is stored, from the headers of the weight files."""
        return frozenset(name for path in weight_files(self.path) for name in check_safetensors(path))

    @cached_property
    def linear_layers(self) -> tuple[str, ...]:
        """Names of the blocks' linear layers, in order."""
        names = (match[1] for name in self.tensors if (match := LINEAR_WEIGHT.fullmatch(name)))
        return tuple(sorted(name for name in names if "norm" not in name.rsplit(".", 1)[-1]))

    @cached_property
    def hash(self) -> str:
        """sha256 over the name and content of every file that decides what the model answers."""
        doing("hashing the model's files")
        return _hash(self.path, HASHED_FILES)

    @cached_property
    def tokenizer_hash(self) -> str:
        """sha256 over the files that decide how text becomes tokens and a prompt."""
        return _hash(self.path, TOKENIZER_FILES)


def _end_ids(path: Path, values: Config) -> list[int]:
    value = values.get("eos_token_id")
    numbers = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(number) is int and number >= 0 for number in numbers):  # True is an int too
        raise DataError(f"{path} has eos_token_id {value!r}; it must be a token number or a list")
    return numbers


def _hash(folder: Path, patterns: tuple[str, ...]) -> str:
    return names_hash(folder, patterns)


def _check_files(model: ModelFolder, quantized: bool) -> None:
    folder = model.path
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DataError(f"model {folder} {what}; give the folder that holds config.json and {SINGLE_FILE}")
    check_strangers(folder, TEMPLATES)
    missing = missing_files(folder)
    if "config.json" in missing:
        raise DataError(f"{folder} has no config.json ({_contents(folder)}); give a model folder, or --model embedded")
    config = model.config
    _refuse_code(folder, config)
    if missing:
        raise DataError(f"{folder} lacks {', '.join(missing)} ({_contents(folder)}){_hint(folder, missing)}")
    _check_config(folder / "config.json", config, quantized)
    check_tokenizer(folder)
    _refuse_strays(folder)
    _check_head(folder, config, _check_weights(folder))


def _check_config(path: Path, config: Config, quantized: bool) -> None:
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise DataError(f"{path} has no model_type; download or save the model again")
    stored(_Sizes, config, path, "download or save the model again")
    found = next((config[key] for key in QUANTISED_KEYS if config.get(key)), None)
    if found and not (quantized and affine(config)):
        known = "give the model before that, or what mlx_lm.convert -q makes of it"
        raise DataError(f"{path} describes quantised weights ({str(found)[:60]}); {known}")
    if rope_theta(config) is None and kind == "qwen2":
        # Silent otherwise: transformers 5 takes 10,000, mlx-lm 1,000,000.
        raise DataError(f"{path} names no RoPE base; add the rope_theta that the model was trained with")


def affine(config: Config) -> Config | None:
    """mlx-lm's affine quantisation: `bits`, `group_size`, and layers that differ. None for any other, or none."""
    found = config.get("quantization")
    known = isinstance(found, dict) and found.get("mode", "affine") == "affine" and {"bits", "group_size"} <= set(found)
    return found if known else None


def run_of_phase(folder: Path) -> Path | None:
    """The run that a phase's folder is in, run/rollouts/NAME, by the path that was given; None where it is none."""
    for path in (folder, folder.absolute()):
        if path.parent.name == RUN_PHASES and (path.parent.parent / RUN_RECORD).is_file():
            return path.parent.parent
    return None


def missing_files(folder: Path) -> list[str]:
    """What a whole model folder would have and this one has not, by name. Opens nothing but the index."""
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    with suppress(DataError):  # a damaged index is not a missing file; ModelFolder.check says what it is
        missing += [path.name for path in weight_files(folder) if not path.is_file()]
    if not (folder / SINGLE_FILE).is_file() and not (folder / INDEX_FILE).is_file():
        missing.append(SINGLE_FILE)
    if not has_tokenizer(folder):
        missing.append("tokenizer.json")
    return missing


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that the folder's weights are in (an index's shards need not exist)."""
    if not (folder / INDEX_FILE).is_file():
        return (folder / SINGLE_FILE,) if (folder / SINGLE_FILE).is_file() else ()
    names = sorted(set(_weight_map(folder).values()))
    # mlx-lm writes an index beside a single file too: it names that file alone.
    if (folder / SINGLE_FILE).is_file() and names != [SINGLE_FILE]:
        raise DataError(f"{folder} has both {SINGLE_FILE} and {INDEX_FILE}; remove the one that is out of date")
    return tuple(folder / name for name in names)


def _tied(folder: Path, config: Config) -> bool | None:
    """What config.json says. Where it is silent, transformers and mlx-lm assume differently."""
    tied = config.get("tie_word_embeddings")
    if tied is not None and type(tied) is not bool:
        raise DataError(f"{folder / 'config.json'} has tie_word_embeddings {tied!r}; it must be true or false")
    return tied


def rope_theta(config: Mapping[str, Any]) -> float | None:
    """The RoPE base, from transformers 5's `rope_parameters` or the older top-level key."""
    for key in ("rope_parameters", "rope_scaling"):
        if not isinstance(config.get(key) or {}, Mapping):
            raise DataError(f"config.json has {key} {config[key]!r}; it must be an object or null")
    nested = (config.get("rope_parameters") or {}).get("rope_theta")
    top = config.get("rope_theta")
    for value in (nested, top):
        if value is not None and (type(value) not in (int, float) or not 0 < value < LARGEST_BASE):
            raise DataError(f"config.json has rope_theta {value!r}; it must be a positive number")
    if nested is not None and top is not None and nested != top:
        raise DataError(
            f"config.json has two RoPE bases, rope_theta {top} and rope_parameters.rope_theta {nested}; "
            "keep the one that the model was trained with"
        )
    found = nested if nested is not None else top
    return None if found is None else float(found)


def with_both_rope_keys(config: Mapping[str, Any]) -> Config:
    """A copy that transformers 5 (`rope_parameters`) and mlx-lm (`rope_theta`, `rope_scaling`) read alike."""
    both = dict(config)
    base = rope_theta(config)
    # Where both are there, transformers and mlx-lm both go by rope_scaling.
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    by_layer = config.get("model_type") in ROPE_BY_LAYER or any(isinstance(each, Mapping) for each in scaling.values())
    if base is None or by_layer:
        return both  # no RoPE, or one for each kind of layer, which rope_parameters or keys of its own say
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    rest = {key: value for key, value in scaling.items() if key not in ("rope_theta", "rope_type", "type")}
    both["rope_theta"] = base
    both["rope_parameters"] = {**rest, "rope_theta": base, "rope_type": kind}
    both["rope_scaling"] = None if kind == "default" else {**rest, "rope_type": kind}
    return both


def write_model_folder(
    source: Path,
    directory: Path,
    write_weights: Callable[[Path], None],
    dtype: str = "float32",
    rendering: Rendering | None = None,
    tokenizer: Path | None = None,
) -> None:
    """Writes `directory` (new) as a Hugging Face folder: `source`'s files, and weights from the caller.

    `write_weights` gets a folder and writes model.safetensors into it. With a `rendering`, what that needs is added;
    `tokenizer` names a folder with another one than the source's.
    """
    with new_folder(directory) as folder:
        copy_plain(tokenizer or source, folder, copied_files(tokenizer or source))
        copy_plain(source, folder, ("generation_config.json",))
        write_config(folder, read_json(source / "config.json"), dtype)
        if rendering is not None:
            rendering.write(folder)
        write_weights(folder)
        try:
            check_safetensors(folder / SINGLE_FILE)
        except DataError as error:  # a full disk can end a file early without an error
            raise StorageError(f"{directory} was not written: {error}") from None


def copy_model_folder(source: Path, directory: Path) -> None:
    """Writes `directory` (new): config.json, weights, index and tokenizer of a checked model folder, nothing else."""
    weights = [path.name for path in weight_files(source)]
    with new_folder(directory) as folder:
        copy_plain(source, folder, ("config.json", "generation_config.json", INDEX_FILE, *copied_files(source)))
        copy_plain(source, folder, weights, MAX_WEIGHTS_BYTES)


def write_config(folder: Path, config: Config, dtype: str) -> None:
    """config.json with both RoPE keys, and the dtype under transformers 5's name and the older one."""
    write_json(folder / "config.json", {**with_both_rope_keys(config), "dtype": dtype, "torch_dtype": dtype})


def own_dtype(folder: Path) -> str:
    """The dtype that most of a model's weights are stored in: float32, bfloat16 or float16."""
    bytes_in = dict.fromkeys(SAVED_DTYPES.values(), 0)
    for path in weight_files(folder):
        for tensor in stored_tensors(path).values():
            if tensor.dtype in bytes_in:
                bytes_in[tensor.dtype] += tensor.end - tensor.begin
    return max(SAVED_DTYPES, key=lambda name: bytes_in[SAVED_DTYPES[name]])


def read_rows(model: ModelFolder, ending: str, rows: Sequence[int]) -> list[npt.NDArray[Any]] | None:
    """Some rows of the matrix whose name ends so, in float32; None where there is no such one. Reads no more."""
    import numpy as np

    for path in weight_files(model.path):
        tensors = stored_tensors(path)
        tensor = next((tensors[name] for name in tensors if name.endswith(ending)), None)
        if tensor is None:
            continue
        kind = np.dtype(STORED_DTYPES[tensor.dtype])
        width = tensor.shape[1] * kind.itemsize
        found = []
        with path.open("rb") as file:
            for row in rows:
                file.seek(tensor.begin + row * width)
                found.append(float32_of(np.frombuffer(file.read(width), kind), tensor.dtype))
        return found
    return None


def _refuse_strays(folder: Path) -> None:
    wanted = weight_files(folder)
    if strays := sorted(path.name for path in folder.glob(LOADED_FILES) if path not in wanted):
        # Silent otherwise: mlx-lm would load its weights over those of the model.
        raise DataError(
            f"{folder} holds {strays[0]}, which is not a part of the model "
            f"({', '.join(path.name for path in wanted[:4])}); remove it, or move it to another folder"
        )


def _check_head(folder: Path, config: Config, names: set[str]) -> None:
    embedded, headed = (any(name.endswith(kind) for name in names) for kind in (EMBEDDING, HEAD))
    if _tied(folder, config) is False and embedded and not headed:
        # Silent otherwise: transformers would begin with a random head.
        raise DataError(
            f"{folder / 'config.json'} says that the head is not tied to the embedding, but there is no {HEAD}; "
            "download or save the model again, or set tie_word_embeddings to true if it was trained so"
        )


def _embedding_rows(folder: Path) -> int | None:
    """From the header of the file that holds it, or None where the embedding has another name."""
    from safetensors import safe_open  # heavy: loads numpy

    for path in weight_files(folder):
        for name in check_safetensors(path):
            if name.endswith(EMBEDDING):
                with safe_open(path, framework="numpy") as file:
                    return int(file.get_slice(name).get_shape()[0])
    return None


def _check_weights(folder: Path) -> set[str]:
    """The names of all tensors."""
    names = {path.name: check_safetensors(path) for path in weight_files(folder)}
    if (folder / INDEX_FILE).is_file():
        for tensor, shard in _weight_map(folder).items():
            if tensor not in names[shard]:
                raise DataError(
                    f"{folder / INDEX_FILE} places {tensor} in {shard}, which lacks it; download both again"
                )
    return set().union(*names.values())


def _weight_map(folder: Path) -> dict[str, str]:
    shards = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise DataError(f"{folder / INDEX_FILE} has no weight_map; download or save the model again")
    for name in shards.values():
        # A name with a separator could point at any file of the machine.
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*\.safetensors", name):
            raise DataError(f"{folder / INDEX_FILE} names {name!r}, which is not a safetensors file of this folder")
    return shards


def _refuse_code(folder: Path, config: Config) -> None:
    tokenizer_file = folder / "tokenizer_config.json"
    tokenizer = read_json(tokenizer_file) if tokenizer_file.is_file() else {}
    for name, values in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        for key in CODE_KEYS:
            if values.get(key):
                raise DataError(
                    f"{folder / name} asks to run the model's own Python ({key}); custom code is refused; "
                    "give a model that transformers knows by itself"
                )


def _contents(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return "it is empty" if not names else "it has " + ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _hint(folder: Path, missing: list[str]) -> str:
    pickles = [path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern)]
    if SINGLE_FILE in missing and pickles:
        return f"; {pickles[0]} is a pickle, which can run code, and is refused unrun; convert it to safetensors"
    return "; download or save the model again"
