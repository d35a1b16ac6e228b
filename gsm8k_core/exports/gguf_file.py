"""A model folder as one GGUF file: its settings, its tokenizer and its weights, written tensor by tensor.

By the package `gguf`, which is llama.cpp's own: its names of the tensors, its quantisers, its file. Norms, biases and
RoPE's factors stay float32, as llama.cpp has them; a matrix whose rows do not divide into blocks is float16.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsm8k_core.exports.architectures import (
    GgufArchitecture,
    architecture_of,
    converted,
    factors_of,
    fields_of,
)
from gsm8k_core.exports.blocks import Blocks
from gsm8k_core.exports.vocabulary import Vocabulary, vocabulary_of
from gsm8k_core.models.folder import EMBEDDING, HEAD, ModelFolder, weight_files
from gsm8k_core.models.tensors import HALF_LARGEST, NumberTooLarge, StoredTensor, read_tensor, stored_tensors
from gsm8k_core.types import DataError

if TYPE_CHECKING:
    from gsm8k_core.types import FloatArray

TYPES = {"f32": "F32", "f16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0"}  # ours -> gguf's
FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0"}
# In four bits, the two matrices that every token's choice goes through lose most: they get eight.
FINER = {"q4_0": "Q8_0"}
ENDS = ("embed_tokens.weight", "lm_head.weight")
BLOCK = 32  # numbers that q8_0 and q4_0 give one scale
PHI3 = "phi3"
SPARE = ("rotary_emb.inv_freq",)


@dataclass(frozen=True, slots=True)
class FilePlan:
    """What will be written, found out before anything is: nothing of the folder is refused later."""

    model: ModelFolder
    architecture: GgufArchitecture
    vocabulary: Vocabulary
    weights: Mapping[str, tuple[str, Path, StoredTensor]]  # GGUF's name -> transformers', where, and how it is stored
    type: str

    @property
    def is_quantised(self) -> bool:
        return TYPES[self.type].startswith("Q")

    @property
    def bytes(self) -> int:
        """About as many as the file will have."""
        bits = {"f32": 32, "f16": 16, "q8_0": 8.5, "q4_0": 4.5}[self.type]
        numbers = sum(_numbers(stored.shape) for _, _, stored in self.weights.values())
        return int(numbers * bits / 8)

    @property
    def blocks(self) -> Blocks:
        """Of the matrices that the type is asked for."""
        matrices = [each for each in self.weights.items() if _type(self, *each, as_asked=True) != "F32"]
        return Blocks.of([stored.shape for _, (_, _, stored) in matrices], BLOCK)


def plan(model: ModelFolder, kind: str) -> FilePlan:
    """Raises DataError for a model or a tokenizer that a GGUF, or one of this kind, cannot hold, by name."""
    architecture = architecture_of(model.config)
    vocabulary = vocabulary_of(model)
    if vocabulary.strips and architecture.name != PHI3:
        raise DataError(
            f"a token of the tokenizer in {model.path} takes the spaces beside it along, which llama.cpp does "
            "for Phi-3 alone; export --to merged keeps it as it is"
        )
    made = FilePlan(model, architecture, vocabulary, _names(model, architecture), kind)
    if made.is_quantised:
        made.blocks.refuse_none(model.path, kind, "try --type f16")
    return made


def _numbers(shape: tuple[int, ...]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


def _names(model: ModelFolder, architecture: GgufArchitecture) -> dict[str, tuple[str, Path, StoredTensor]]:
    import gguf  # heavy: loads numpy and its own tables

    kind = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    names = gguf.get_tensor_name_map(kind, int(model.config["num_hidden_layers"]))
    found: dict[str, tuple[str, Path, StoredTensor]] = {}
    for path in weight_files(model.path):
        for name, stored in stored_tensors(path).items():
            if name.endswith(SPARE):
                continue
            ours = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if ours is None:
                raise DataError(
                    f"{path} holds {name}, which llama.cpp's {architecture.name} has not; export --to merged"
                )
            found[ours] = (name, path, stored)
    if HEAD in {name for name, _, _ in found.values()} and _is_embedding(found):
        del found["output.weight"]  # llama.cpp takes the embedding where there is none
    return found


def _is_embedding(found: Mapping[str, tuple[str, Path, StoredTensor]]) -> bool:
    import numpy as np  # heavy, and only a stored head needs it

    head = next(entry for entry in found.values() if entry[0] == HEAD)
    table = next((entry for entry in found.values() if entry[0].endswith(EMBEDDING)), None)
    if table is None or table[2].shape != head[2].shape:
        return False
    return bool(np.array_equal(read_tensor(*head[1:]), read_tensor(*table[1:])))


def write_gguf(plan: FilePlan, path: Path, name: str, chat_template: str) -> None:
    """Writes the file `path`; `name` is what programs show. Raises NumberTooLarge where float16 does not hold all."""
    import gguf  # heavy: loads numpy and its own tables

    writer = gguf.GGUFWriter(path, plan.architecture.name)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(_name(plan, name))
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[plan.type]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in fields_of(plan.model.config, plan.architecture).items():
        _add(writer, f"{plan.architecture.name}.{key}", value)
    _add_vocabulary(writer, plan.vocabulary, chat_template)
    factors = factors_of(plan.model.config)
    for ours, factor in factors.items():
        writer.add_tensor_info(ours, factor.shape, factor.dtype, factor.nbytes)
    kinds = {ours: _type(plan, ours, entry) for ours, entry in plan.weights.items()}
    for ours, (_, _, stored) in plan.weights.items():
        _announce(writer, ours, stored.shape, kinds[ours])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for factor in factors.values():
            writer.write_tensor_data(factor)
        for ours, weight in _weights(plan):
            writer.write_tensor_data(_quantised(ours, weight, kinds[ours]))
    finally:
        writer.close()


def _name(plan: FilePlan, name: str) -> str:
    """llama.cpp looks for phi-3 in it: then special tokens take the spaces behind them, and some have to be there."""
    known = {"<unk>", "<s>", "</s>", "<|endoftext|>"} <= set(plan.vocabulary.tokens)
    if plan.architecture.name == PHI3 and plan.vocabulary.strips and known:
        return name if re.search("phi-?3", name.lower()) else f"{name} phi-3"
    return re.sub("(?i)(phi)-?(3)", r"\1_\2", name)


def _add(writer: Any, key: str, value: Any) -> None:
    """bool before int: it is one too."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


def _add_vocabulary(writer: Any, found: Vocabulary, chat_template: str) -> None:
    writer.add_tokenizer_model(found.model)
    writer.add_tokenizer_pre(found.pre)
    writer.add_token_list(found.tokens)
    writer.add_token_types(found.kinds)
    if found.scores:
        writer.add_token_scores(found.scores)
    if found.merges:
        writer.add_token_merges(found.merges)
    for key, number in found.ids.items():
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", number)
    for key, flag in found.flags.items():
        writer.add_bool(f"tokenizer.ggml.{key}", flag)
    writer.add_chat_template(chat_template)


def _type(plan: FilePlan, ours: str, entry: tuple[str, Path, StoredTensor], as_asked: bool = False) -> str:
    """gguf's name of the numbers that a tensor is written in, or would be if its rows were whole blocks."""
    name, _, stored = entry
    if len(stored.shape) < 2 or ours.endswith(("_norm.weight", ".bias")):
        return "F32"
    wanted = FINER.get(plan.type, TYPES[plan.type]) if name.endswith(ENDS) else TYPES[plan.type]
    return "F16" if wanted.startswith("Q") and stored.shape[-1] % BLOCK and not as_asked else wanted


def _announce(writer: Any, ours: str, shape: tuple[int, ...], kind: str) -> None:
    import gguf  # heavy: loads numpy and its own tables
    import numpy as np

    number = gguf.GGMLQuantizationType[kind]
    if kind in ("F32", "F16"):
        dtype = np.dtype(np.float32 if kind == "F32" else np.float16)
        writer.add_tensor_info(ours, shape, dtype, _numbers(shape) * dtype.itemsize)
        return
    packed = gguf.quant_shape_to_byte_shape(shape, number)
    writer.add_tensor_info(ours, packed, np.dtype(np.uint8), _numbers(packed), raw_dtype=number)


def _weights(plan: FilePlan) -> Iterator[tuple[str, FloatArray]]:
    """Each tensor when it is asked for: a large model is never in memory whole."""
    for ours, (name, path, stored) in plan.weights.items():
        yield ours, converted(name, read_tensor(path, stored), plan.model.config, plan.architecture)


def _quantised(ours: str, weight: FloatArray, kind: str) -> Any:
    import gguf  # heavy: loads numpy and its own tables
    import numpy as np

    if kind == "F16" and (largest := float(np.abs(weight).max(initial=0.0))) > HALF_LARGEST:
        raise NumberTooLarge(f"{ours} holds {largest:g}, and float16 ends at {HALF_LARGEST:,.0f}; try --type f32")
    return gguf.quantize(np.ascontiguousarray(weight), gguf.GGMLQuantizationType[kind])
