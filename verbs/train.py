"""`train`: problems and a model in, a run folder with a trained model out."""

from __future__ import annotations

import math
import os
import platform
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import backends
from gsm8k_core.awake import kept_awake
from gsm8k_core.batching import choose_tokens
from gsm8k_core.checkpoints import prune, write
from gsm8k_core.config import EMBEDDED_MODEL, TrainConfig
from gsm8k_core.dev import DevSet
from gsm8k_core.disk import saved_bytes, write_seconds
from gsm8k_core.folders import new_folder, remove_folder
from gsm8k_core.guard import Guard
from gsm8k_core.lora import lora_spec, write_mlx_adapter
from gsm8k_core.model_folder import folder_hash
from gsm8k_core.pilot import STOP_INTERRUPTED, RunPilot
from gsm8k_core.prompts import decode, load_tokenizer
from gsm8k_core.quantized import cached_base, dequantized_folder, is_quantized, widths
from gsm8k_core.runs import Run
from gsm8k_core.sinks import open_sinks
from gsm8k_core.tracking import MetricsFile, Terminal
from gsm8k_core.types import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_STOPPED,
    Choice,
    GSM8KError,
    Outcome,
    StepEvent,
    StorageError,
    UsageError,
)
from verbs import Context, say_choices
from verbs.demo import banner
from verbs.job import Job, as_json, checked_base, new, resumed
from verbs.train_guard import opened_guard
from verbs.train_words import Narrator, say_outcome, say_plan

END_SECONDS = 2.0  # beside the weights: small files, run.json, and the end of the process
DEV_BATCH = 16  # a prefill cannot be interrupted, and should take no longer than an update
KNOWN_UPDATES = 2000  # a third of a second
MEASURED = ("eval_problems", "eval_max_new_tokens")
MOMENTS = 3  # a checkpoint holds what is trained three times: itself and two moments


@dataclass(frozen=True, slots=True)
class Opened:
    """The model on its backend, the choices made, and what an adapter of it says it belongs to."""

    backend: Any
    choices: Mapping[str, Choice]
    quantized: Path | None = None  # qlora: the 4-bit base, in the cache or in the run


def run(config: TrainConfig, context: Context) -> int:
    """The verb."""
    _refuse_launcher()
    job = resumed(config, context) if config.resume else new(config, context)
    if job is None:
        return EXIT_OK
    with _signals() as interrupted, kept_awake(platform.system(), os.getpid(), context.terminal.say):
        opened = _open(job, context)
        say_choices(context.terminal, opened.choices)
        claimed = job.claim(opened.choices)
        try:
            with open_sinks(job.config, claimed, context.terminal.say) as sinks:
                segment = Segment(job, opened, claimed, context, sinks, interrupted)
                outcome, pilot = segment.train()
                if outcome.reason == STOP_INTERRUPTED:
                    context.terminal.say("stopping: the model is being saved; another signal quits at once")
                segment.save_model()
            result = _record_outcome(claimed, outcome, pilot, segment.elapsed())
        except (SystemExit, KeyboardInterrupt):
            claimed.record(status="stopped", outcome={"reason": STOP_INTERRUPTED})
            raise
        except BaseException as error:
            reason = str(error) if isinstance(error, GSM8KError) else type(error).__name__
            claimed.record(status="failed", outcome={"reason": reason})
            raise
        finally:
            claimed.release()
    say_outcome(job, claimed.folder, claimed.model, claimed.best, result, context.terminal)
    if job.source.choice.name == EMBEDDED_MODEL:
        banner(context.terminal, job.reason)
    return EXIT_STOPPED if outcome.reason == STOP_INTERRUPTED else EXIT_OK


def _refuse_launcher() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("a run uses one process here; start it without accelerate launch or torchrun (WORLD_SIZE > 1)")


def _open(job: Job, context: Context) -> Opened:
    config = job.config
    folder, quantized = job.source.folder, None
    if config.method == "qlora":
        quantized = _quantized_base(job, context.terminal)
        folder = quantized if backends.opens_quantized(job.backend.name) else dequantized_folder(quantized)
    backend = backends.open(job.backend.name, folder, config.device, config.dtype)
    tokens = choose_tokens(config.micro_batch_tokens, config.batch_size, config.max_length, backend.micro_batch_tokens)
    if config.dtype == "auto" and (first := next(job.updates(int(tokens.name)), None)):
        backend.choose_dtype(first.micro_batches[0], config)
    choices = {"backend": job.backend, **backend.choices, "batches": tokens}
    return Opened(backend, choices, quantized)


def _quantized_base(job: Job, terminal: Terminal) -> Path:
    """The 4-bit base: a new run's from the cache, a resumed one's from its own folder."""
    if job.run is not None and (job.checkpoint is not None or "base" in job.run.manifest):
        return checked_base(job.run)
    made_from = job.source.made_from
    if made_from is not None and is_quantized(made_from):
        terminal.say(f"base     the {widths(made_from)} weights as they are")
        return made_from
    terminal.say("base     4-bit weights are made of the model, by mlx-lm")
    return cached_base(job.source.folder, lambda target: backends.quantize(job.source.folder, target))


@dataclass(frozen=True, slots=True)
class Segment:
    """One process's part of a run: from the start or a checkpoint to the end or a stop."""

    job: Job
    opened: Opened
    run: Run
    context: Context
    sinks: Any
    interrupted: Callable[[], bool]

    def elapsed(self) -> float:
        """Seconds of the whole run."""
        return self.job.seconds + self.context.elapsed()

    def train(self) -> tuple[Outcome, RunPilot[Any]]:
        job, terminal = self.job, self.context.terminal
        self._prepare_base()
        say_plan(job, self.run.folder, terminal)
        dev = self._dev_set()
        guard = opened_guard(
            job, self.run, dev, self.opened.backend, self.elapsed(), self.interrupted, terminal
        )  # fmt: skip
        metrics = MetricsFile(self.run.metrics)
        with terminal.progress("update", job.events[-1].total) as steps:
            narrator = Narrator(job, steps, terminal)

            def emit(event: StepEvent) -> None:
                metrics(event)
                self.sinks.event(event)
                narrator(event)

            pilot = self._pilot(emit, dev, guard)
            self._record_plan(pilot)
            values = {"updates": pilot.total, "rows": len(job.rows.examples), "elapsed": self.elapsed()}
            emit(StepEvent("resume" if job.done else "start", {**values, "update": job.done}))
            state = job.checkpoint.state() if job.checkpoint else None
            try:
                updates = job.updates(int(self.opened.choices["batches"].name))
                outcome = self.opened.backend.train(updates, self._trained_config(), pilot, state)
                emit(StepEvent("end", {"reason": outcome.reason, "update": outcome.update, "elapsed": self.elapsed()}))
            except GSM8KError as error:
                with suppress(StorageError):  # which may be the very error
                    emit(StepEvent("failed", {"reason": str(error), "elapsed": self.elapsed()}))
                raise
            finally:
                metrics.close()
        self._record_plan(pilot)
        self._note_choices()
        return outcome, pilot

    def _note_choices(self) -> None:
        """Say and keep what the backend chose, or counted, while it trained."""
        found = self.opened.backend.choices
        changed = {name: choice for name, choice in found.items() if self.opened.choices.get(name) != choice}
        say_choices(self.context.terminal, changed)
        self.run.record(choices={**self.run.manifest["choices"], **as_json(changed)})

    def save_model(self) -> None:
        """The end of the run's files: model/, and an adapter in mlx-lm's layout as well."""
        backend, spec = self.opened.backend, lora_spec(self.job.config)
        self.run.replace(self.run.model, backend.save)
        if spec is not None:
            values, base = backend.state().parameters, self._trained_config().model
            self.run.replace(self.run.mlx_adapter, lambda folder: write_mlx_adapter(folder, values, spec, base))

    def _prepare_base(self) -> None:
        source, base = self.opened.quantized, self.run.base
        if source is not None and source != base:
            if base.exists():  # a kill came before it was noted
                remove_folder(base)
            with new_folder(base) as folder:
                shutil.copytree(source, folder, dirs_exist_ok=True)
            self.run.record(base={"hash": folder_hash(base), "made_by": "mlx-lm", "folder": base.name})

    def _trained_config(self) -> TrainConfig:
        """The settings with the name that an adapter gives its base."""
        base = str(self.run.base.resolve()) if self.opened.quantized else self.job.config.model
        return self.job.config.model_copy(update={"model": base})

    def _record_plan(self, pilot: RunPilot[Any]) -> None:
        """The plan as it now is, with every change of it."""
        config = self.job.config
        self.run.record(
            plan={
                "updates": pilot.total, "asked": pilot.asked, "update_size": config.update_size,
                "budget_seconds": config.budget_seconds, "events": [event.as_json() for event in pilot.events],
            }
        )  # fmt: skip

    def _pilot(self, emit: Callable[[StepEvent], None], dev: DevSet | None, guard: Guard) -> RunPilot[Any]:
        job, config = self.job, self.job.config
        writing = write_seconds(self.run.folder, saved_bytes(job.source.folder, lora_spec(config)))

        def save(update: int, live: Any) -> Path:
            kept = pilot.as_json()
            folder = write(
                self.run.checkpoints, live, update=update, elapsed=self.elapsed(), events=kept["events"],
                losses=kept["losses"],
                facts={
                    "best": kept["best"], "guard": kept["guard"], "hashes": dict(job.hashes), "config": as_json
                },
            )  # fmt: skip
            prune(self.run.checkpoints, config.save_total_limit)
            return folder

        def keep_best(update: int, live: Any) -> Path:
            self.run.replace(self.run.best, live.save)
            self.run.record(best={"update": update})
            return self.run.best

        as_json = config.model_dump(mode="json")
        # The padded tokens of so many updates are known beforehand; the others are taken for average.
        tokens = list(islice(job.tokens(int(self.opened.choices["batches"].name)), KNOWN_UPDATES))
        pilot: RunPilot[Any] = RunPilot(
            config, job.events, emit=emit, elapsed=self.elapsed, interrupted=self.interrupted, save=save,
            keep_best=keep_best, evaluate=dev.measure if dev else None,
            reserve=writing + END_SECONDS + self.sinks.reserve, save_reserve=MOMENTS * writing,
            losses=job.checkpoint.losses if job.checkpoint else (), best=self._best(),
            tokens=tokens, guard=guard, answer=dev.part(0, guard.num_problems).measure if dev and guard.base else None,
            slept=lambda: self.context.elapsed.slept,
        )  # fmt: skip
        return pilot

    def _best(self) -> Mapping[str, Any] | None:
        """The best so far, where best/ still holds it and it was measured on the same problems."""
        facts = self.job.checkpoint.facts if self.job.checkpoint else {}
        best, before = facts.get("best"), facts.get("config", {})
        same = all(before.get(name) == getattr(self.job.config, name) for name in MEASURED)
        held = (self.run.manifest.get("best") or {}).get("update")
        return best if best and same and held == best["update"] and self.run.best.is_dir() else None

    def _dev_set(self) -> DevSet | None:
        config, pairs = self.job.config, self.job.rows.dev
        if not pairs:
            if config.eval_steps:
                self.context.terminal.say("dev      these rows have no dev split, so --eval-steps measures nothing")
            return None
        tokenizer = load_tokenizer(self.job.source.folder)
        return DevSet(
            [example for _, example in pairs], [problem for problem, _ in pairs], partial(decode, tokenizer),
            batch_size=config.batch_size, eval_batch_size=min(len(pairs), DEV_BATCH),
            max_new_tokens=config.eval_max_new_tokens,
        )  # fmt: skip


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C (or SIGTERM, SIGHUP) ends the run after its update, model saved; the second at once."""
    seen: list[int] = []

    def note(number: int, frame: object) -> None:
        if seen:
            sys.exit(EXIT_INTERRUPTED)
        seen.append(number)
        # Written past Python's streams: the terminal may be gone, or one of them in the middle of a line.
        with suppress(OSError):
            os.write(2, b"\nfinishing this update, then saving the model; the same again quits at once\n")

    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # One that is ignored stays so: nohup asks for that, and a shell does for what it starts with &.
    wanted = [name for name in names if signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN]
    old = {name: signal.signal(getattr(signal, name), note) for name in wanted}
    try:
        yield lambda: bool(seen)
    finally:
        for name, handler in old.items():
            signal.signal(getattr(signal, name), handler)


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _record_outcome(run: Run, outcome: Outcome, pilot: RunPilot[Any], elapsed: float) -> dict[str, Any]:
    result: dict[str, Any] = {
        "reason": outcome.reason,
        "updates": len(pilot.losses),
        "seconds": elapsed,
        "first_loss": pilot.losses[0],
        "last_loss": pilot.losses[-1],
        "first_four": _mean(pilot.losses[:4]),
        "last_four": _mean(pilot.losses[-4:]),
    }
    if run.manifest["config"].get("guard_problems"):
        result["guard"] = pilot.guard.outcome()
    if pilot.best is not None:
        update, best = pilot.best
        result["best"] = {"update": update, "accuracy": best.accuracy, "loss": best.loss, "folder": str(run.best)}
    run.record(status="done" if outcome.reason == "done" else "stopped", outcome=result)
    return result
