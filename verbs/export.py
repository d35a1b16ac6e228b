"""`export`: a trained model as other programs take it, whole or not at all, with its card beside it."""

from __future__ import annotations

import datetime
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import backends
from gsm8k_core.config.export import ExportConfig
from gsm8k_core.config.fields import AUTO
from gsm8k_core.exports import gguf_file
from gsm8k_core.exports.blocks import GROUP, Blocks, matrices_in
from gsm8k_core.exports.merged import write_merged
from gsm8k_core.exports.modelfile import Turns, file_name, modelfile, ollama_name, turns_of
from gsm8k_core.files import file_hash, make_folder, new_folder, read_plain, refuse_links, write_bytes
from gsm8k_core.models import hub
from gsm8k_core.models.find import Source, identity, prompted, resolve_model
from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.models.prompt_settings import SWITCH
from gsm8k_core.models.tokenizer import copied_files
from gsm8k_core.report.export_card import Taken, make_export_card
from gsm8k_core.training.best import read_label
from gsm8k_core.training.checkpoints import update_of
from gsm8k_core.training.manifest import update_of_model
from gsm8k_core.training.runs import known_manifest, run_of_model, versions
from gsm8k_core.types import EXIT_OK, DataError, PreflightError, StorageError, UsageError
from verbs import Context
from verbs.adapter_base import check_base
from verbs.compare import COMPARISON
from verbs.results import CARD

README = "README.md"  # the card's name on the Hub
FOLDER = "export"  # in a run
OLLAMA = "ollama"
CLOCK = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")  # in a template, with the form of the day


@dataclass(frozen=True, slots=True)
class Exported:
    """What is exported: the model, the run that it is of, and what it is called."""

    source: Source
    run: Path | None
    manifest: Mapping[str, Any]
    name: str
    dtype: str  # its weights', for merged and mlx

    @property
    def model(self) -> ModelFolder:
        return self.source.model

    @property
    def chat_template(self) -> str:
        """The one that it was trained and measured with; its day and its switch stand in it: others know neither."""
        asked = self.model.rendering
        text = asked.template
        if asked.date:
            day = datetime.date.fromisoformat(asked.date)
            text = CLOCK.sub(lambda found: json.dumps(day.strftime(found[2])), text)
        if asked.thinking and SWITCH in text:
            text = f"{{% set {SWITCH} = {'true' if asked.thinking == 'on' else 'false'} %}}{text}"
        return text

    @property
    def system(self) -> str:
        """The instruction that it was trained and measured with."""
        return self.model.rendering.system


def run(config: ExportConfig, context: Context) -> int:
    """The verb."""
    _refuse(config)
    say = context.terminal.say
    if config.to == "mlx":
        backends.resolve(backends.QUANTIZER)
    if config.push:
        hub.check_push(config.push)
    subject = _subject(config, context)
    target = config.output_dir or _place(config, subject)
    if os.path.lexists(target):  # before the work, which may take minutes
        raise StorageError(f"{target} exists already; give another folder with --output-dir, or remove it")
    write = _writer(config, subject)  # whatever cannot be written is refused here, before there is a folder
    say(f"model    {subject.source.name}: {subject.source.choice.reason}")
    refuse_links(target.parent)
    make_folder(target.parent, parents=True)
    say(f"writing  {target}")
    if stays := write(target):
        say(f"float    {stays}")
    size = sum(path.stat().st_size for path in target.iterdir() if path.is_file())
    say(f"written  {target}: {hub.human_size(size)}, {', '.join(sorted(path.name for path in target.iterdir()))}")
    opened = _opened(config, subject, target)
    created = _create(subject, target, say) if config.to == OLLAMA else None
    say(f"open     {opened}")
    pushed = _push(config, target, say) if config.push else None
    result = {"export": str(target), "to": config.to, "bytes": size, "open": opened}
    context.terminal.result({**result, "ollama": created, "pushed": pushed})
    return EXIT_OK


def _refuse(config: ExportConfig) -> None:
    if not config.run:
        raise UsageError(
            "export needs a run; python cli.py runs lists them, python cli.py export runs/<your run> --to ollama"
        )
    if config.to is None:
        raise UsageError(
            f"export needs --to merged, mlx, gguf or ollama; python cli.py export {config.run} --to ollama"
        )
    if config.push and not (hub.is_hub_id(config.push) and "/" in config.push):
        raise UsageError(f"--push {config.push!r} is no repository of the Hub; give OWNER/NAME")


def _subject(config: ExportConfig, context: Context) -> Exported:
    source = prompted(resolve_model(config.run, context.terminal.say, config.base_model))
    other_base = check_base(source, config.base_model, context.terminal.say)
    run = run_of_model(source.found)
    manifest = known_manifest(run) if run else {}
    if other_base:
        manifest["model"] = {"name": config.base_model, "hash": source.base}
    part = "" if source.found.name in ("model", "mlx-adapter") else f"-{source.found.name}"
    own = f"{run.name}{part}" if run else Path(config.run.rstrip("/")).name
    saved = manifest.get("choices", {}).get("saved", {}).get("name")
    dtype = config.save_dtype if config.save_dtype != AUTO else str(saved or source.dtype)
    return Exported(source, run, manifest, config.name or own, dtype)


def _place(config: ExportConfig, subject: Exported) -> Path:
    if subject.run is None:
        return Path(f"{subject.name}-{config.what}")
    parts = subject.source.found.resolve().relative_to(subject.run).parts
    which = "" if parts[0] in ("model", "mlx-adapter") else f"{parts[1] if parts[0] == 'checkpoints' else parts[0]}-"
    run = _shown(subject.run)
    return run / FOLDER / f"{which}{config.what}"


def _shown(path: Path) -> Path:
    """As a person would type it from here."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


# --- each format ------------------------------------------------------------------------------------------------------


def _writer(config: ExportConfig, subject: Exported) -> Callable[[Path], str]:
    """What writes the folder, and says what stays float of a quantised one. Raises for what the format cannot hold."""
    if config.to == "merged":
        return partial(_write_merged, subject)
    if config.to == "mlx":
        if config.bits:
            blocks = Blocks.of(matrices_in(subject.model.path), GROUP)
            blocks.refuse_none(subject.model.path, f"{config.bits}-bit", "leave --bits out")
        return partial(_write_mlx, subject, config.bits)
    plan = gguf_file.plan(subject.model, config.file_type)
    if config.to == OLLAMA and ('"""' in subject.system or subject.system.endswith('"')):
        raise DataError("the instruction has quotes that a Modelfile has no place for; export --to gguf")
    turns, name = None, file_name(subject.name)
    if config.to == OLLAMA:
        turns, name = turns_of(partial(_render, subject)), ollama_name(subject.name)
    return partial(_write_gguf, subject, plan, turns, name)


def _write_merged(subject: Exported, target: Path) -> str:
    with new_folder(target) as folder:
        write_merged(subject.model, folder, subject.dtype)
        subject.model.rendering.write(folder)
        _write_card(subject, folder, f"a Hugging Face folder, weights in {subject.dtype}", "transformers")
    return ""


def _write_mlx(subject: Exported, bits: int | None, target: Path) -> str:
    with new_folder(target) as folder:
        whole, made = folder / "whole", folder / "made"
        whole.mkdir()
        write_merged(subject.model, whole, subject.dtype)  # with what mlx-lm reads of a config.json
        subject.model.rendering.write(whole)
        stays = Blocks.of(matrices_in(whole), GROUP).line(subject.dtype) if bits else ""
        backends.convert(whole, made, bits, subject.dtype)
        # As they were: transformers would write them anew, in other words.
        for name in {path.name for path in whole.iterdir()} & set(copied_files(whole)):
            shutil.copyfile(whole / name, made / name)
        for path in made.iterdir():
            path.rename(folder / path.name)
        made.rmdir()
        shutil.rmtree(whole)
        (folder / README).unlink(missing_ok=True)  # mlx-lm's own
        how = f"{bits}-bit weights in groups of {GROUP}, scales in" if bits else "weights in"
        _write_card(subject, folder, _with(f"a folder of mlx-lm's, {how} {subject.dtype}", stays), "mlx")
    return stays


def _write_gguf(subject: Exported, plan: gguf_file.FilePlan, turns: Turns | None, name: str, target: Path) -> str:
    file = f"{name}-{plan.type}.gguf"
    with new_folder(target) as folder:
        gguf_file.write_gguf(plan, folder / file, subject.name, subject.chat_template)
        if turns is not None:
            write_bytes(folder / "Modelfile", modelfile(file, turns, subject.system, _stops(subject, plan)).encode())
        stays = plan.blocks.line("float16") if plan.is_quantised else ""
        _write_card(subject, folder, _with(f"a GGUF file, weights in {plan.type}", stays), "gguf")
    return stays


def _with(what: str, stays: str) -> str:
    return f"{what}; {stays}" if stays else what


def _render(subject: Exported, conversation: Any) -> str:
    """A prompt, without the start token where llama.cpp writes it by itself."""
    tokenizer: Any = subject.model.tokenizer
    text = subject.model.rendering.render(list(conversation), True).shown
    adds_start = bool(tokenizer("")["input_ids"])
    return text.removeprefix(tokenizer.bos_token) if adds_start and tokenizer.bos_token else text


def _stops(subject: Exported, plan: gguf_file.FilePlan) -> list[str]:
    return [plan.vocabulary.tokens[number] for number in subject.model.rendering.end_ids]


# --- beside it --------------------------------------------------------------------------------------------------------


def _write_card(subject: Exported, folder: Path, what: str, library: str) -> None:
    """README.md: the card that compare wrote of these very weights, and what became of them here."""
    taken = Taken(
        name=subject.name,
        what=what,
        library=library,
        hash=identity(subject.source),
        manifest=subject.manifest,
        updates=_updates(subject),
        files={path.name: file_hash(path) for path in sorted(folder.iterdir()) if path.is_file()},
        versions=versions("gguf"),
    )
    write_bytes(folder / README, make_export_card(taken, _card(subject)).encode("utf-8", errors="replace"))


def _updates(subject: Exported) -> int | None:
    """Behind these very weights: best/ and a checkpoint say it themselves, and run.json says it of model/."""
    found, run = subject.source.found.resolve(), subject.run
    if run is not None and found in (run / "model", run / "mlx-adapter"):
        return update_of_model(subject.manifest)
    return label.update if (label := read_label(found)) else update_of(found)


def _card(subject: Exported) -> str | None:
    """compare's card, where its trained model is what is exported; None where there is none."""
    owner = subject.run
    if owner is None:
        return None
    for place in (owner, *sorted(owner.glob("compare/*"))):
        try:
            found = json.loads(read_plain(place / COMPARISON))
            if found["trained"]["hash"] == subject.model.hash:
                return read_plain(place / CARD).decode("utf-8", errors="replace")
        except (OSError, ValueError, KeyError, TypeError, DataError, RecursionError):
            continue  # none, or not one that can be read: the export says that there are no scores
    return None


def _opened(config: ExportConfig, subject: Exported, target: Path) -> str:
    """The line that opens it in the program it is for."""
    if config.to == "merged":
        return f"vllm serve {shlex.quote(str(target))} (or transformers, mlx_lm.generate --model)"
    if config.to == "mlx":
        return f"mlx_lm.chat --model {shlex.quote(str(target))}"
    if config.to == "gguf":
        file = next(target.glob("*.gguf"))
        return f"llama-cli -m {shlex.quote(str(file))} --temp 0 -sys {shlex.quote(subject.system)}"
    return f"ollama run {ollama_name(subject.name)}"


def _create(subject: Exported, target: Path, say: Callable[[str], None]) -> str | None:
    """`ollama create`, where Ollama is; the model's name there. Raises PreflightError where it fails."""
    name = ollama_name(subject.name)
    typed = f"cd {shlex.quote(str(target))} && ollama create {name} -f Modelfile"
    program = shutil.which(OLLAMA)
    if program is None:
        say(f"next     Ollama is not on this machine; where it is: {typed}")
        return None
    done = subprocess.run(
        [program, "create", name, "-f", "Modelfile"], cwd=target, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1][:300]
        raise PreflightError(f"ollama create failed ({said}); {target} is whole: start Ollama, then {typed}")
    say(f"created  {name} in Ollama")
    return name


def _push(config: ExportConfig, target: Path, say: Callable[[str], None]) -> str:
    try:
        address = hub.upload(target, config.push, say)
    except (DataError, StorageError) as error:
        again = shlex.join(["hf", "upload", config.push, str(target)])
        raise type(error)(f"{error}; the export is whole in {target}: {again}") from error
    say(f"pushed   {address}")
    return address
