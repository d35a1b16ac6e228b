"""The run directory: what it holds, how it is claimed, its manifest, and what may change when a run goes on.

run.json        config, versions, hashes, every automatic choice with its reason, the outcome
questions.json  hashes of the questions that it was given to learn from
metrics.jsonl   one event a line
model/          the trained model: a Hugging Face folder, or an adapter in PEFT's layout
mlx-adapter/    the same adapter in mlx-lm's layout
base/           qlora only: the 4-bit model that the adapter belongs to
best/           the model with the best dev accuracy (--eval-steps); best.json in it says which one it is
checkpoints/    what the run needs to go on (--save-steps)
logs/           evaluations: a record per problem
export/         what `export` made of the model for other programs; no part of what a run goes on from
rollouts/       --recipe rft: a folder a round, with its sampled answers, and the checkpoints of a training in between;
                --recipe grpo: a file a rollout, for a person

A run that goes on may differ in some settings from what it began with; every one of TrainConfig is in one class:

    FREE       may change: how and where the run is done, watched and kept
    HARMLESS   needs --force: speed, memory, rounding or how it is measured, not what is learned
    FIXED      may not change: with it, this would be another run
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from gsm8k_core import __version__
from gsm8k_core.config.fields import flag
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.files import (
    leftovers,
    make_folder,
    plain_name,
    read_plain,
    refuse_links,
    remove_folder,
    remove_leftovers,
    sync,
    write_json,
)
from gsm8k_core.models.folder import RUN_PHASES, RUN_RECORD, run_of_phase
from gsm8k_core.problems.overlap import QUESTIONS
from gsm8k_core.training.best import read_label
from gsm8k_core.training.checkpoints import newest, sweep
from gsm8k_core.training.hold import ELSEWHERE, LOCK, Hold
from gsm8k_core.training.manifest import check_manifest
from gsm8k_core.training.pilot import STOP_BUDGET
from gsm8k_core.types import DataError, StorageError, UsageError

SCHEMA = 1
RESUME_ELSEWHERE = "make it writable, or copy the run and resume the copy"
MANIFEST = RUN_RECORD
ROLLOUTS = RUN_PHASES
FOLDERS = ("model", "mlx-adapter", "base", "best", "checkpoints", "logs", ROLLOUTS)
PARTS = (MANIFEST, LOCK, QUESTIONS, "metrics.jsonl", *FOLDERS)
WRITTEN = re.compile(
    r"(run\.json|questions\.json|metrics\.jsonl|base|(model|mlx-adapter|best)(\.new)?)"
)  # under a temporary name first
SOURCE = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "accelerate", "mlx", "mlx-lm", "numpy", "tokenizers", "safetensors", "datasets")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a run folder, or None where there is none that can be read."""
    try:
        value = json.loads(read_plain(folder / MANIFEST).decode())
    except (OSError, ValueError, RecursionError, DataError):
        return None
    return value if isinstance(value, dict) else None


def known_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, empty where there is none to be read. Raises DataError for a value that no run writes there."""
    manifest = read_manifest(folder) or {}
    check_manifest(folder / MANIFEST, manifest)
    return manifest


def run_of_model(folder: Path) -> Path | None:
    """The run folder that a model folder belongs to (run/model, run/checkpoints/update-N/model), or None."""
    parents = folder.resolve().parents
    return next((parent for parent in parents[:3] if (parent / MANIFEST).is_file()), None)


def default_folder(model: str, now: datetime.datetime | None = None) -> Path:
    """runs/<date>-<time>-<model>, with a number where two runs start in the same second."""
    stamp = (now or datetime.datetime.now()).strftime("%Y%m%d-%H%M%S")
    tail = plain_name(model.rstrip("/").split("/")[-1]) or "model"
    names = (f"{stamp}-{tail}{'' if count == 1 else f'-{count}'}" for count in itertools.count(1))
    return next(path for path in (Path("runs") / name for name in names) if not os.path.lexists(path))


def versions(*more: str) -> dict[str, str]:
    """Versions of what decides the numbers, and of `more` packages, those that are installed."""
    found = {"gsm8k-finetune": __version__, "python": platform.python_version()}
    return found | {package: version for package in (*PACKAGES, *more) if (version := _version(package))}


@functools.cache
def _version(package: str) -> str | None:
    """Its version; None where it is not installed. Asked once: it is looked for among all that is."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def host() -> dict[str, object]:
    return {"system": platform.system(), "machine": platform.machine(), "cores": os.cpu_count() or 1}


def code_hash(root: Path = SOURCE) -> str:
    """sha256 over our own source: an evaluation is reused only by the code that made it."""
    digest = hashlib.sha256()
    for folder in ("gsm8k_core", "backends", "verbs"):
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


class Run:
    """A claimed run folder."""

    def __init__(
        self, folder: Path, manifest: dict[str, Any], hold: Hold | None = None, whole: Run | None = None
    ) -> None:
        self.folder, self.manifest = folder, manifest
        self._hold = hold  # as long as this object lives
        self._whole = whole

    def phase(self, name: str) -> Run:
        """A phase's own folder under rollouts/, as a run's: its checkpoints, events and changes are not the run's."""
        folder = self.rollouts / name
        self.check_held()
        refuse_links(self.rollouts, folder, *(folder / part for part in PARTS))
        make_folder(folder, parents=True)
        run = Run(folder, read_manifest(folder) or {}, self._hold, self)
        check_manifest(folder / MANIFEST, run.manifest)
        _tidy(run)
        return run

    @property
    def whole(self) -> Run:
        """The run that a person knows; of a phase, the one that it belongs to."""
        return self._whole or self

    @property
    def rollouts(self) -> Path:
        return self.folder / ROLLOUTS

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def mlx_adapter(self) -> Path:
        return self.folder / "mlx-adapter"

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def best(self) -> Path:
        return self.folder / "best"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def record(self, **values: object) -> None:
        """Add to the manifest and write it."""
        self.check_held()
        self.manifest.update(values)
        write_json(self.folder / MANIFEST, self.manifest)
        _sync(self.folder)

    def sync_metrics(self) -> None:
        """Every event so far is on the disk, and the file's name: asked before a checkpoint that comes after them."""
        self.check_held()
        _sync(self.metrics)
        _sync(self.folder)

    def release(self) -> None:
        """Let go of the folder before the process ends."""
        if self._hold is not None:
            self._hold.release()

    @contextmanager
    def let_go_on_error(self) -> Iterator[None]:
        """While inside, an error lets go of the folder: a notebook keeps its traceback, and what is held there."""
        try:
            yield
        except BaseException:
            self.release()
            raise

    def check_held(self) -> None:
        """Asked before each write: raises StorageError unless the folder is the one that was claimed, and in its place.

        Nothing is written anywhere else: a folder of that name is somebody's, or would be a run without its history.
        """
        if self._hold is None or self._hold.stands:
            return
        now, known = self._hold.now(), self.whole.folder
        if now is None:
            raise StorageError(
                f"{known} was removed while the run went on, with all that it had saved: nothing is left of its "
                "weights; start it again, with a new --output-dir"
            )
        what = "lost its lock" if now == known.resolve() else f"was moved to {now}"
        raise StorageError(
            f"{known} {what} while the run went on, and nothing more is written; {_weights_in(now)}; "
            f"go on with: python cli.py train --resume {now}"
        )

    def begin_segment(self, config: Mapping[str, object], choices: Mapping[str, object], update: int) -> None:
        """Note that the run goes on after `update`, and how."""
        before = {key: self.manifest.get(key) for key in ("started", "command", "choices", "versions", "host", "code")}
        self.record(
            status="running",
            pid=os.getpid(),
            started=_now(),
            command=sys.argv,
            versions=versions(),
            host=host(),
            code=code_hash(),
            config=dict(config),
            choices=dict(choices),
            resumed_after=update,
            segments=[*self.manifest.get("segments", []), before],
        )

    def replace(self, target: Path, write: Callable[[Path], None]) -> None:
        """Write a folder of the run whole, then let it take the place of an older one."""
        self.check_held()
        fresh = target.with_name(f"{target.name}.new")
        if fresh.exists():  # a kill came between writing and renaming
            remove_folder(fresh)
        try:
            write(fresh)
        except StorageError as error:  # nobody knows the name that it has at first
            raise StorageError(str(error).replace(str(fresh), str(target))) from error.__cause__
        if target.exists():
            remove_folder(target)
        os.rename(fresh, target)
        sync(self.folder)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _sync(path: Path) -> None:
    try:
        sync(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror}); check the folder") from error


def _weights_in(folder: Path) -> str:
    """In words, the newest weights that a run's folder holds."""
    if (checkpoint := newest(folder / "checkpoints", lambda damaged: None)) is not None:
        return f"the weights after update {checkpoint.update} are in {checkpoint.folder}"
    found = next((folder / name for name in ("model", "best") if (folder / name).is_dir()), None)
    return f"there is no checkpoint, but {found}" if found else "it holds no weights yet"


def reopen(folder: Path) -> Run:
    """An existing run, to go on with. Raises UsageError where there is none, StorageError when another has it."""
    if (whole := run_of_phase(folder)) is not None:
        raise UsageError(f"--resume {folder}: it is a part of a run, which goes on as a whole: --resume {whole}")
    if read_manifest(folder) is None:
        what = "has no run.json that can be read" if folder.exists() else "does not exist"
        raise UsageError(f"--resume {folder}: it {what}; give a run's folder (python cli.py runs lists them)")
    check_writable(folder, RESUME_ELSEWHERE)
    refuse_links(*(folder / name for name in PARTS))
    hold = Hold(folder, RESUME_ELSEWHERE)
    run = Run(folder, read_manifest(folder) or {}, hold)
    with run.let_go_on_error():
        check_manifest(folder / MANIFEST, run.manifest)
        _tidy(run)
    return run


def _tidy(run: Run) -> None:
    """What a kill left: a folder between the two renames of `replace` gets its name, all else goes."""
    for target in (run.model, run.best, run.mlx_adapter):
        fresh = target.with_name(f"{target.name}.new")
        if not fresh.is_dir():
            continue
        whole = target != run.best or read_label(fresh) is not None
        if whole and not target.exists():
            os.rename(fresh, target)
        else:
            remove_folder(fresh)
    remove_leftovers(run.folder, WRITTEN)
    sweep(run.checkpoints)


def newest_stopped(folder: Path) -> Path | None:
    """The newest run under `folder` that began and is not complete."""
    found = {path.parent: read_manifest(path.parent) for path in folder.glob(f"*/{MANIFEST}")}
    open_ = {path: manifest for path, manifest in found.items() if manifest and manifest.get("status") != "done"}
    return max(open_, key=lambda path: (str((open_[path] or {}).get("started")), path.name), default=None)


def newest_finished(folder: Path) -> Path | None:
    """The newest run under `folder` that came to its end, or to its budget's, and still has its model."""
    found = {path.parent: read_manifest(path.parent) or {} for path in folder.glob(f"*/{MANIFEST}")}
    done = [path for path, manifest in found.items() if _is_finished(manifest) and (path / "model").is_dir()]
    return max(done, key=lambda path: (str(found[path].get("started")), path.name), default=None)


def _is_finished(manifest: Mapping[str, Any]) -> bool:
    outcome = manifest.get("outcome")
    in_time = isinstance(outcome, dict) and outcome.get("reason") == STOP_BUDGET
    return manifest.get("status") == "done" or (manifest.get("status") == "stopped" and in_time)


def check_writable(folder: Path, advice: str = ELSEWHERE) -> None:
    """Raises StorageError unless files can be made in `folder`, or it can be made. Leaves nothing."""
    try:
        parent = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise StorageError(f"{folder} cannot be written ({error.strerror}); {advice}") from error


def check_free(folder: Path) -> None:
    """Raises StorageError unless a run can be made in `folder`: absent or free, and writable. Leaves nothing."""
    if os.path.lexists(folder):
        _refuse_taken(folder)
        if os.path.lexists(folder / LOCK):  # a run that is just beginning has that, and nothing else yet
            Hold(folder).release()
    check_writable(folder)


def _refuse_taken(folder: Path) -> None:
    if not folder.is_dir():
        raise StorageError(f"{folder} is a file; give a new folder: --output-dir {_next(folder)}")
    if not _is_free(folder):
        manifest = read_manifest(folder)
        going_on = f", or go on with it: --resume {folder}" if manifest is not None else ""
        what = _what_is_in(folder, manifest)
        raise StorageError(f"{folder} already holds {what}; give a new folder: --output-dir {_next(folder)}{going_on}")


def _is_free(folder: Path) -> bool:
    """Whether there is nothing, or no more than a process left that was killed as it claimed the folder.

    A run.json that cannot be read is nothing to go on with. Where there is anything beside it, it stays for a person.
    """
    logs, begun = folder / "logs", leftovers(folder, re.compile(re.escape(MANIFEST)))
    if any(path not in (folder / LOCK, folder / MANIFEST, logs, *begun) for path in folder.iterdir()):
        return False
    if os.path.lexists(logs) and (logs.is_symlink() or not logs.is_dir() or any(logs.iterdir())):
        return False
    manifest = folder / MANIFEST
    if not os.path.lexists(manifest):
        return True
    return manifest.is_file() and not manifest.is_symlink() and read_manifest(folder) is None


def create(folder: Path, first: Mapping[str, object]) -> Run:
    """Claim a new run folder. Raises StorageError when it holds anything, or cannot be written."""
    check_free(folder)
    manifest = {
        "schema": SCHEMA,
        "status": "running",
        "pid": os.getpid(),
        "started": _now(),
        "command": sys.argv,
        "versions": versions(),
        "host": host(),
        "code": code_hash(),
        **first,
    }
    make_folder(folder, parents=True)
    hold = Hold(folder)
    try:
        _refuse_taken(folder)  # of two runs started at once, one was first
        remove_leftovers(folder, WRITTEN)
        make_folder(folder / "logs")
        run = Run(folder, manifest, hold)
        run.record()
    except StorageError:
        if read_manifest(folder) is None:  # else it is another run's
            with suppress(OSError):
                (folder / "logs").rmdir()
        hold.release()
        raise
    return run


def _what_is_in(folder: Path, manifest: Mapping[str, Any] | None) -> str:
    if manifest is not None:
        return f"a run ({manifest.get('status', 'starting')}, pid {manifest.get('pid', 'unknown')})"
    if os.path.lexists(folder / MANIFEST):
        return f"a run whose {MANIFEST} cannot be read"
    return "other files"


def _next(folder: Path) -> Path:
    names = (folder.with_name(f"{folder.name}-{count}") for count in itertools.count(2))
    return next(path for path in names if not os.path.lexists(path))


# --- going on -------------------------------------------------------------------------------------------------

FREE: Final = frozenset(
    {
        "config",
        "print_config",
        "json_",
        "verbose",
        "output_dir",
        "base_model",  # where it is now; the model's hash says whether it is the same
        "resume",
        "force",
        "dry_run",
        "profile",  # a name for defaults; what it sets is compared by itself
        "backend",
        "device",
        "rollout_engine",
        "max_time",
        "save_steps",
        "save_dtype",
        "save_total_limit",
        "probe_steps",
        "guard_problems",
        "report_to",
        "no_wandb",
        "wandb_project",
        "wandb_key_file",
    }
)
HARMLESS: Final = frozenset(
    {
        "dtype",
        "gradient_checkpointing",
        "micro_batch_tokens",
        "batch_size",
        "gradient_accumulation_steps",  # as long as an update holds as many rows
        "eval_steps",
        "eval_problems",
        "eval_max_new_tokens",
    }
)
FIXED: Final = frozenset(
    {
        "model",
        "data",
        "data_config",
        "question_column",
        "answer_column",
        "skip_bad_rows",
        "seed",
        "max_samples",
        "max_length",
        "annotations",
        "drop_long",
        "num_epochs",
        "learning_rate",
        "warmup_ratio",
        "schedule",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "max_grad_norm",
        "trainable",
        "method",
        "lora_rank",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "recipe",
        "samples",
        "sample_temperature",
        "sample_max_new_tokens",
        "rounds",
        "keep",
        "mix",
        "warm_start",
        "prompts_per_update",
        "updates_per_rollout",
        "loss",
        "clip",
        "kl",
        "overlong",
        "calculator",
        "verify",
        "rationales",
        "thinking",
        "chat_template",
        "system_prompt",
    }
)

SPLIT: Final = ("batch_size", "gradient_accumulation_steps")
# A model or a data set moves, or gets another name on another machine: its hash says whether it is the same.
NAMES: Final = {"model": "model", "data": "data"}  # setting -> fact
SHOWN = 12  # characters of a hash


def check(
    recorded: TrainConfig, asked: TrainConfig, facts: Mapping[str, str], now: Mapping[str, str], force: bool
) -> tuple[str, ...]:
    """The differences that `force` lets pass, as words to print. UsageError when the run may not go on like this.

    `facts` and `now` are hashes by name ("model", "data", "rows", ...): of when the run began, and of today.
    """
    changed = _changed(recorded, asked, facts, now)
    contents = [name for name in dict.fromkeys([*facts, *now]) if facts.get(name) != now.get(name)]
    same_size = recorded.update_size == asked.update_size
    fixed = [name for name in changed if name in FIXED or (name in SPLIT and not same_size)]
    words = tuple(f"{name}: {pair}" for name, pair in changed.items())
    if fixed or contents or (words and not force):
        every = (*words, *(f"{name} (sha256): {_hash(facts, name)} -> {_hash(now, name)}" for name in contents))
        advice = _advice([name for name in changed if name in fixed or not force], asked, bool(fixed), contents)
        raise UsageError(f"this is not what the run began with: {', '.join(every)}; {advice}")
    return words


def _changed(
    recorded: TrainConfig, asked: TrainConfig, facts: Mapping[str, str], now: Mapping[str, str]
) -> dict[str, str]:
    """Setting -> "recorded -> asked", for those that are not free."""
    before, after = recorded.model_dump(mode="json"), asked.model_dump(mode="json")
    names = [name for name in before if before[name] != after[name] and name not in FREE]
    known = {name for name, fact in NAMES.items() if fact in facts and facts[fact] == now.get(fact)}
    return {name: f"{before[name]} -> {after[name]}" for name in names if name not in known}


def _hash(hashes: Mapping[str, str], name: str) -> str:
    return hashes[name][:SHOWN] if name in hashes else "unknown"


def _advice(to_drop: Sequence[str], asked: TrainConfig, fixed: bool, contents: Sequence[str]) -> str:
    """What to type next."""
    off = {name: "no_" if getattr(asked, name) is False else "" for name in to_drop}
    drop = "drop " + ", ".join(flag(f"{off[name]}{name}") for name in to_drop) if to_drop else ""
    if not fixed and not contents:
        return f"{drop}, or add --force to go on with what is asked now"
    # Rows, tokens and prompts follow from fixed settings: where one changed, dropping it is the answer.
    back = "" if fixed or not contents else f"bring back the {', '.join(contents)} that it began with"
    what = " and ".join(step for step in (drop, back) if step)
    return f"{what}, or start a new run: without --resume, and with another --output-dir"
