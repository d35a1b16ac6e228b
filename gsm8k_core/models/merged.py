"""An adapter and its base made one model: what the adapter's file changes, checked, and the whole model in the cache.

What peft and mlx-lm put into an adapter's file is one of these: a product B A that is added to a weight (`Delta`), a
tensor in place of the base's (embeddings and other modules that were trained whole, every tensor of mlx-lm's
--fine-tune-type full), some rows of the embedding, or what is added to a bias. By the base's names, all of them.

Where head and embedding are one tensor (tied), peft changes the one that it was told to and leaves the other as it
was: they are two tensors from then on. mlx-lm's embedding stays the head's, and so do tensors that peft stores beside
its adapter because the vocabulary grew.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gsm8k_core.files import copy_plain, file_hash, names_hash, read_json
from gsm8k_core.models.adapter import (
    CONFIG,
    MAGNITUDE,
    PEFT_PREFIX,
    PEFT_WEIGHTS,
    A,
    AdapterSettings,
    B,
    adapter_weights,
    settings_of,
)
from gsm8k_core.models.folder import EMBEDDING, HEAD, ModelFolder, weight_files, write_config, write_model_folder
from gsm8k_core.models.store import made_once, short_hash
from gsm8k_core.models.tensors import read_tensors
from gsm8k_core.models.tokenizer import TOKENIZER_FILES, has_tokenizer
from gsm8k_core.types import DataError

if TYPE_CHECKING:
    from gsm8k_core.types import FloatArray

TEMPLATE_FILE = "chat_template.jinja"
# Settings of peft's LoRA under which B A is not all that it does to a weight. Null, false or empty: they are off.
OTHER_KINDS = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "target_parameters",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # init_lora_weights that take something off the base
EMBEDDED_A, EMBEDDED_B = ".lora_embedding_A", ".lora_embedding_B"
ADDED_BIAS, TOKEN_ROWS = ".lora_B.bias", ".token_adapter.trainable_tokens_delta"
WRAPPERS = re.compile(r"\.(base_layer|modules_to_save(\.default)?)(?=\.)")  # what peft puts into a name
LONGEST_PATTERN, MOST_QUANTIFIERS = 200, 3  # of a stranger's pattern: more could take without end


@dataclass(frozen=True, slots=True)
class Delta:
    """What an adapter adds to one weight."""

    a_RI: FloatArray  # (r, in)
    b_OR: FloatArray  # (out, r)
    scale: float
    magnitude_O: FloatArray | None  # (out,); None for plain LoRA
    by_column: bool = False  # of an embedding peft's DoRA learns the length of each column, (in,)


@dataclass(frozen=True, slots=True)
class TokenRows:
    """TokenRows of an embedding that were trained by themselves."""

    tokens: tuple[int, ...]
    values_RI: FloatArray


@dataclass(frozen=True, slots=True)
class Changes:
    """What an adapter does to its base, by the names of the base's tensors."""

    deltas: dict[str, Delta] = field(default_factory=dict)
    shared: dict[str, FloatArray] = field(default_factory=dict)  # instead of the base's, a tied head's as well
    apart: dict[str, FloatArray] = field(default_factory=dict)  # the same, but a tied tensor's twin stays as it was
    rows: dict[str, TokenRows] = field(default_factory=dict)
    biases: dict[str, FloatArray] = field(default_factory=dict)  # added to the base's
    stay_tied: bool = False  # a tied head follows its embedding, whatever changes it

    @property
    def names(self) -> list[str]:
        return [*self.deltas, *self.shared, *self.apart, *self.rows, *self.biases]


# --- read ------------------------------------------------------------------------------------------------------------


def read_changes(adapter: Path) -> Changes:
    """What the adapter's files say. Raises DataError with the file and the key or the tensor that is wrong."""
    config, path = settings_of(adapter), adapter_weights(adapter)
    tensors = read_tensors(path)
    read = _Peft(adapter, config, tensors) if path.name == PEFT_WEIGHTS else _Mlx(adapter, config, tensors)
    found = read.changes()
    if rest := set(tensors) - read.used:
        raise DataError(f"{path} also holds {min(rest)}, which is not read here; merge it with the tool that made it")
    for name, delta in found.deltas.items():
        _check_shapes(path, name, delta)
    if not found.names:
        raise DataError(f"{path} holds no LoRA weights; other kinds of adapter are not read here")
    return found


def _check_shapes(path: Path, name: str, delta: Delta) -> None:
    a_RI, b_OR, magnitude_O = delta.a_RI, delta.b_OR, delta.magnitude_O
    fits = a_RI.ndim == b_OR.ndim == 2 and len(a_RI) == b_OR.shape[1]
    lengths = (a_RI.shape[1] if delta.by_column else len(b_OR)) if fits else 0
    if not fits or (magnitude_O is not None and magnitude_O.size != lengths):
        raise DataError(f"{path} holds for {name} an A of {a_RI.shape} and a B of {b_OR.shape}; save the adapter again")


class _File:
    """An adapter's tensors, of which each is taken once."""

    def __init__(self, adapter: Path, config: AdapterSettings, tensors: Mapping[str, FloatArray]) -> None:
        self.adapter, self.config, self.tensors = adapter, config, tensors
        self.path = adapter_weights(adapter)
        self.used: set[str] = set()

    def take(self, name: str) -> FloatArray:
        if name not in self.tensors:
            raise DataError(f"{self.path} lacks {name}; save the adapter again")
        self.used.add(name)
        return self.tensors[name]

    def wrong(self, key: str, words: str, advice: str = "save the adapter again") -> DataError:
        """adapter_config.json has something that does not hold."""
        return DataError(f"{self.adapter / CONFIG}: {key} {words}; {advice}")

    def check_rank(self, key: str, asked: int | None, rank: int, name: str) -> None:
        if asked is not None and asked != rank:
            raise self.wrong(key, f"is {asked}, and {name} in {self.path.name} has rank {rank}")

    def check_lengths(self, key: str, asked: bool, length: FloatArray | None, name: str) -> None:
        """Whether it is DoRA is said twice."""
        if asked != (length is not None):
            kind, held = ("DoRA", "no lengths") if asked else ("plain LoRA", "DoRA's lengths")
            raise self.wrong(key, f"says {kind}, and {self.path.name} holds {held} for {name}")


class _Peft(_File):
    """peft's adapter_model.safetensors."""

    def changes(self) -> Changes:
        self._refuse_other_kinds()
        config, deltas, biases, rows = self.config, {}, {}, {}
        for name in self.tensors:
            if not name.startswith(PEFT_PREFIX):
                continue  # said by who reads: it is of no use
            for ending in (A, EMBEDDED_A):
                if name.endswith(ending):
                    module = name.removeprefix(PEFT_PREFIX).removesuffix(ending)
                    deltas[f"{module}.weight"] = self._delta(name.removesuffix(ending), module, ending)
            if name.endswith(ADDED_BIAS):
                module = name.removeprefix(PEFT_PREFIX).removesuffix(ADDED_BIAS)
                biases[f"{module}.bias"] = self._scale(module, None) * self.take(name)
            elif name.endswith(TOKEN_ROWS):
                module = name.removeprefix(PEFT_PREFIX).removesuffix(TOKEN_ROWS)
                rows[f"{module}.weight"] = self._rows(module, self.take(name))
        self._check_targets(deltas)
        shared, apart = self._whole()
        tied = bool(config.ensure_weight_tying)
        return Changes(deltas, shared, apart, rows, biases, tied)

    def _refuse_other_kinds(self) -> None:
        config, extra = self.config, self.config.model_extra or {}
        if config.peft_type not in (None, "LORA"):
            raise self.wrong("peft_type", f"is {config.peft_type!r}, and only LORA is read here", "merge it with peft")
        for key in OTHER_KINDS:
            if extra.get(key):
                raise self.wrong(key, f"is {str(extra[key])[:60]!r}, which is not read here", "merge it with peft")
        first = extra.get("init_lora_weights")
        if isinstance(first, str) and first.lower().startswith(CHANGES_BASE):
            raise self.wrong("init_lora_weights", f"is {first!r}, which changes the base too", "merge it with peft")

    def _delta(self, stem: str, module: str, ending: str) -> Delta:
        a, b = (ending, B) if ending == A else (EMBEDDED_A, EMBEDDED_B)
        first, second = self.take(f"{stem}{a}"), self.take(f"{stem}{b}")
        length = f"{stem}{MAGNITUDE}.weight"  # as an older peft names it
        length = length if length in self.tensors else f"{stem}{MAGNITUDE}"
        magnitude = self.take(length) if length in self.tensors else None
        self.check_lengths("use_dora", bool(self.config.use_dora), magnitude, module)
        scale = self._scale(module, len(first) if first.ndim == 2 else None)  # of another shape: said by who reads
        if ending == A:
            return Delta(first, second, scale, magnitude)
        return Delta(second.T, first.T, scale, magnitude, by_column=True)

    def _scale(self, module: str, rank: int | None) -> float:
        """What B A is multiplied by; `rank` is that of the tensors."""
        config = self.config
        asked, rank_key = self._of_module("r", config.r, "rank_pattern", config.rank_pattern, module)
        alpha, _ = self._of_module("lora_alpha", config.lora_alpha, "alpha_pattern", config.alpha_pattern, module)
        if rank is not None:
            self.check_rank(rank_key, int(asked), rank, module)
        return alpha / (math.sqrt(asked) if config.use_rslora else asked)

    def _of_module(
        self, key: str, value: float | None, patterns_key: str, patterns: Mapping[str, float] | None, module: str
    ) -> tuple[float, str]:
        """A module's rank or alpha, as peft finds it: by the first pattern that fits the end of its name."""
        for pattern, special in (patterns or {}).items():
            try:
                if _safe(pattern) and re.match(rf"(.*\.)?({pattern})$", module):
                    return special, patterns_key
            except (re.error, ValueError) as error:
                raise self.wrong(patterns_key, f"has {pattern[:60]!r}, which is no pattern ({error})") from None
        if value is None:
            raise self.wrong(key, "is missing")
        return value, key

    def _rows(self, module: str, values: FloatArray) -> TokenRows:
        asked: Any = self.config.trainable_token_indices
        named: Any = asked.get(module.rsplit(".", 1)[-1], asked.get(module)) if isinstance(asked, dict) else asked
        tokens = named if isinstance(named, list) else []
        whole = tokens and all(type(token) is int and token >= 0 for token in tokens)
        if not whole or values.ndim != 2 or len(values) != len(tokens):
            shown = f"is {str(named)[:60]}, and {self.path.name} holds {values.shape} for {module}"
            raise self.wrong("trainable_token_indices", shown)
        return TokenRows(tuple(tokens), values)

    def _check_targets(self, deltas: Iterable[str]) -> None:
        """peft would leave out, without a word, what target_modules does not name."""
        names = self.config.target_modules
        if names is not None and not isinstance(names, str | list):
            raise self.wrong("target_modules", f"must be a list of names (got {str(names)[:60]!r})")
        if not isinstance(names, list):
            return  # a pattern: the tensors say which
        if not all(isinstance(name, str) for name in names):
            raise self.wrong("target_modules", f"must be a list of names (got {str(names)[:60]})")
        tied = bool(self.config.ensure_weight_tying)  # peft then adapts the head with its embedding
        for module in (name.removesuffix(".weight") for name in deltas if not (tied and name == HEAD)):
            if not any(f".{module}".endswith(f".{name}") for name in names):
                shown = str(names)[:60]
                raise self.wrong("target_modules", f"is {shown}, and {self.path.name} holds an adapter of {module}")

    def _whole(self) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
        """Tensors that take the base's place: those saved beside the adapter, and those of modules_to_save."""
        shared: dict[str, FloatArray] = {}
        apart: dict[str, FloatArray] = {}
        modules, seen = self.config.modules_to_save or [], set()
        for name in sorted(set(self.tensors) - self.used):
            if not name.startswith(PEFT_PREFIX) or ".lora_" in name:
                continue
            plain = WRAPPERS.sub("", name.removeprefix(PEFT_PREFIX))
            parts = plain.split(".")
            above = {".".join(parts[:count]) for count in range(1, len(parts))}
            by = {module for module in modules if any(path.endswith(module) for path in above)}
            (apart if by else shared)[plain] = self.take(name)
            seen |= by
        if missing := sorted(set(modules) - seen):
            raise self.wrong("modules_to_save", f"names {missing[0]!r}, of which {self.path.name} holds nothing")
        return shared, apart


def _safe(pattern: str) -> bool:
    """Raises ValueError for a pattern that may search without end."""
    if len(pattern) > LONGEST_PATTERN or len(re.findall(r"[*+?{]", pattern)) > MOST_QUANTIFIERS:
        raise ValueError(f"more than {LONGEST_PATTERN} characters, or {MOST_QUANTIFIERS} of * + ? {{")
    return True


class _Mlx(_File):
    """mlx-lm's adapters.safetensors."""

    def changes(self) -> Changes:
        kind = self.config.fine_tune_type or "lora"
        if kind == "full":
            return Changes(shared={name: self.take(name) for name in self.tensors}, stay_tied=True)
        if kind not in ("lora", "dora"):
            raise self.wrong("fine_tune_type", f"is {kind!r}; there are lora, dora and full")
        deltas = {}
        for name in self.tensors:
            if name.endswith(".lora_a"):
                module = name.removesuffix(".lora_a")
                deltas[f"{module}.weight"] = self._delta(module, kind == "dora")
        return Changes(deltas, stay_tied=True)

    def _delta(self, module: str, dora: bool) -> Delta:
        settings, first, second = self.config.lora_parameters, *map(self.take, (f"{module}.lora_a", f"{module}.lora_b"))
        if settings is None or settings.scale is None:
            raise self.wrong("lora_parameters.scale", "is missing, and mlx-lm has no other")
        length = f"{module}.m"
        magnitude = self.take(length) if length in self.tensors else None
        self.check_lengths("fine_tune_type", dora, magnitude, module)
        if first.ndim == 2:
            self.check_rank("lora_parameters.rank", settings.rank, first.shape[1], module)
        if f"{module}.weight".endswith(EMBEDDING):  # its rows are looked up: a is (tokens, r), b (r, width)
            return Delta(second, first, settings.scale, magnitude)
        return Delta(first.T, second.T, settings.scale, magnitude)


# --- merged into its base --------------------------------------------------------------------------------------------


def merged_folder(base: Path, adapter: Path, identity: str) -> Path:
    """The whole model, from the cache or made now; `identity` is the base's hash.

    Raises DataError for an adapter that does not fit its base.
    """
    changes = read_changes(adapter)
    hashes = [identity, file_hash(adapter / CONFIG), file_hash(adapter_weights(adapter))]
    own = own_tokenizer(adapter)
    if own:
        hashes.append(names_hash(adapter, TOKENIZER_FILES))

    def write(folder: Path) -> None:
        if own == TEMPLATE_FILE:
            (folder / TEMPLATE_FILE).unlink(missing_ok=True)
            copy_plain(adapter, folder, (TEMPLATE_FILE,))
        _write(ModelFolder(base), adapter, changes, folder)

    tokenizer = adapter if own and own != TEMPLATE_FILE else base
    return made_once(
        "merged",
        short_hash("".join(hashes)),
        lambda target: write_model_folder(base, target, write, tokenizer=tokenizer),
    )


def own_tokenizer(adapter: Path) -> str:
    """What an adapter's folder has of a tokenizer: a whole "tokenizer", "chat_template.jinja" alone, or nothing."""
    if has_tokenizer(adapter):
        return "tokenizer"
    return TEMPLATE_FILE if (adapter / TEMPLATE_FILE).is_file() else ""


def merge(weight_OI: FloatArray, delta: Delta) -> FloatArray:
    """The merged weight, (out, in) float32."""
    merged = weight_OI.astype(np.float32) + np.float32(delta.scale) * (delta.b_OR @ delta.a_RI)
    if delta.magnitude_O is None:
        return merged
    axis = 0 if delta.by_column else 1
    whole: FloatArray = np.expand_dims(delta.magnitude_O.ravel(), axis) * merged
    whole /= np.linalg.norm(merged, axis=axis, keepdims=True)
    return whole


def _write(base: ModelFolder, adapter: Path, changes: Changes, folder: Path) -> None:
    from safetensors.numpy import save_file  # here, not above: only an adapter needs it

    whole = _Whole(base, adapter)
    whole.apply(changes)
    save_file(
        {name: np.ascontiguousarray(value) for name, value in whole.tensors.items()},
        str(folder / "model.safetensors"),
        metadata={"format": "pt"},
    )
    write_config(folder, {**read_json(base.path / "config.json"), **whole.settings}, "float32")


class _Whole:
    """A base's tensors, and what becomes of them."""

    def __init__(self, base: ModelFolder, adapter: Path) -> None:
        self.adapter, self.base = adapter, base
        self.tensors: dict[str, FloatArray] = {}
        for path in weight_files(base.path):
            self.tensors |= read_tensors(path)
        self.settings: dict[str, Any] = {}
        self._table = next((name for name in self.tensors if name.endswith(EMBEDDING)), "")
        self._head = next((name for name in self.tensors if name.endswith(HEAD)), HEAD)
        stored = self.tensors.get(self._head)
        self._tied = base.tied_head and (stored is None or np.array_equal(stored, self.tensors[self._table]))
        if self._tied:
            self.tensors.pop(self._head, None)

    def apply(self, changes: Changes) -> None:
        """All of it, in the order in which peft has it: first what both halves of a tied pair share."""
        for name, value in changes.shared.items():
            if self._tied and name == self._head and not np.array_equal(value, changes.shared.get(self._table, value)):
                raise self._unfit(name, "is another than its embedding, and the base has one for both")
            self._put(self._one(name), value)
        for name, rows in changes.rows.items():
            self._put_rows(self._one(name), rows)
        pair = {self._table, self._head} & {*changes.apart, *changes.deltas}
        follows = self._tied and changes.stay_tied
        if self._tied and pair and not follows:
            self._untie()
        for name, value in changes.apart.items():
            self._put(self._one(name), value)
        for name, delta in changes.deltas.items():
            if not (follows and name == self._head and self._table in changes.deltas):
                self._add(self._one(name), delta)
        for name, bias in changes.biases.items():
            self._check(name, bias.shape)
            self.tensors[name] = self.tensors[name] + bias
        self._check_vocabulary()

    def _one(self, name: str) -> str:
        """The name under which a tensor is kept here: a tied head is its embedding."""
        return self._table if self._tied and name == self._head else name

    def _untie(self) -> None:
        self.tensors[self._head] = self.tensors[self._table]
        self._tied = False
        self.settings["tie_word_embeddings"] = False

    def _put(self, name: str, value: FloatArray) -> None:
        grows = name in (self._table, self._head) and value.ndim == 2
        self._check(
            name, (len(self.tensors[name]), *value.shape[1:]) if grows and name in self.tensors else value.shape
        )
        self.tensors[name] = value

    def _put_rows(self, name: str, rows: TokenRows) -> None:
        self._check(name, (len(self.tensors.get(name, ())), rows.values_RI.shape[1]))
        if max(rows.tokens, default=0) >= len(self.tensors[name]):
            raise self._unfit(name, f"has no row {max(rows.tokens)}")
        changed = self.tensors[name].astype(np.float32)
        changed[list(rows.tokens)] = rows.values_RI
        self.tensors[name] = changed

    def _add(self, name: str, delta: Delta) -> None:
        self._check(name, (len(delta.b_OR), delta.a_RI.shape[1]))
        self.tensors[name] = merge(self.tensors[name], delta)

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        if name not in self.tensors:
            raise self._unfit(name, "which its base lacks")
        if self.tensors[name].shape != shape:
            raise self._unfit(name, f"which its base lacks in that shape: {shape}, and not {self.tensors[name].shape}")

    def _unfit(self, name: str, why: str) -> DataError:
        path = adapter_weights(self.adapter)
        return DataError(f"{path} changes {name}, {why} ({self.base.path}); name the right base in {CONFIG}")

    def _check_vocabulary(self) -> None:
        """An embedding that grew needs a head that did."""
        if not self._table:
            return
        table, head = len(self.tensors[self._table]), self.tensors.get(self._head)
        if head is not None and len(head) != table:
            raise self._unfit(self._table, f"to {table} rows, and {self._head} has {len(head)}")
        self.settings["vocab_size"] = table
