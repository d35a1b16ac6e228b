"""The disk of a run: whether there is room for what it will write, and what is kept when there is none any more."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from gsm8k_core.files import matching
from gsm8k_core.models.adapter import lora_spec
from gsm8k_core.models.hub import human_size
from gsm8k_core.models.tokenizer import TOKENIZER_FILES
from gsm8k_core.tracking.terminal import Terminal
from gsm8k_core.training.checkpoints import newest
from gsm8k_core.training.memory import FLOAT32, QUANTISED_BYTES, Room, model_of, room_for, saved_bytes
from gsm8k_core.training.runs import Run, default_folder
from gsm8k_core.types import StorageError, counted
from verbs.train.start import Job


def room_of(job: Job) -> Room:
    """What the job writes, and where."""
    config, source = job.config, job.source.folder
    model = saved_bytes(source, lora_spec(config))
    sizes = model_of(job.source.model.config, config)
    frozen = config.trainable == "blocks" and sizes is not None
    num_trained = sizes.num_trained if frozen and sizes is not None else model // FLOAT32
    files = 0 if config.uses_adapter else _size(matching(source, (*TOKENIZER_FILES, "*.json")))
    made = config.method == "qlora" and not (job.run and job.run.base.is_dir()) and sizes is not None
    base = int(QUANTISED_BYTES * sizes.num_parameters) if made and sizes is not None else 0
    folder = job.run.folder if job.run else config.output_dir or default_folder(config.model)
    return room_for(config, model, num_trained, files, base, folder)


def check_room(job: Job, terminal: Terminal) -> None:
    """Before anything is trained. Raises StorageError where the model and one checkpoint have no room."""
    room = room_of(job)
    if job.run:  # one that goes on takes no other --output-dir
        room.check(f"move {job.run.folder} to another disk")
    room.check()
    if room.needed > room.free and not job.run:  # of a run that goes on, most is there already
        terminal.say(
            f"disk     {room.line()}: there may be no room for every checkpoint; "
            "--save-total-limit 1, or another --output-dir, takes care of that"
        )


def out_of_room(error: StorageError, job: Job, run: Run) -> NoReturn:
    """Raise `error` with what was kept, what to free, and how to go on."""
    known = run.whole.folder
    room, found = room_of(job), newest(run.checkpoints, lambda damaged: None)
    kept = f"kept: {found.folder}" if found else "there is no checkpoint yet"
    others = [path for path in run.checkpoints.glob("update-*") if found and path != found.folder]
    older = f" ({counted(len(others), 'older checkpoint')} there: {human_size(_size_of(others))})" if others else ""
    raise StorageError(
        f"{error}; {kept}; {room.folder} has {human_size(room.free)} free, and the model with a checkpoint takes "
        f"{human_size(room.least)}: free the difference{older}, or move {known} to another disk, then go on with: "
        f"python cli.py train --resume {known}"
    ) from error


def _size_of(folders: list[Path]) -> int:
    return sum(_size(set(folder.rglob("*"))) for folder in folders)


def _size(paths: set[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.is_file())
