"""`train`: problems and a model in, a run folder with a trained model out."""

from __future__ import annotations

import math
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import backends
from gsm8k_core.batching import make_updates, num_updates, rows_hash
from gsm8k_core.config import EMBEDDED_MODEL, TrainConfig, with_profile
from gsm8k_core.data import DataSet, carve_dev, load_data, strip_annotations
from gsm8k_core.model_folder import end_token_ids, folder_hash, vocabulary_size
from gsm8k_core.models import Source, resolve_model
from gsm8k_core.pilot import STOP_BUDGET, STOP_INTERRUPTED, RunPilot
from gsm8k_core.preflight import Preflight, check_token_ids, keep_whole, summarise
from gsm8k_core.prompts import PROMPT_NAME, SYSTEM_PROMPT, load_tokenizer, make_examples
from gsm8k_core.runs import Run, check_free, create, default_folder
from gsm8k_core.sinks import check_sinks, open_sinks
from gsm8k_core.sources import choose_pair
from gsm8k_core.tracking import MetricsFile, Steps, Terminal, clock
from gsm8k_core.types import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_STOPPED,
    Choice,
    Example,
    GSM8KError,
    Outcome,
    Problem,
    StepEvent,
    Update,
    UsageError,
)
from verbs import Context, say_choices
from verbs.demo import banner

SAVE_RESERVE_SECONDS = 2.0  # a save takes about as long as the load that was measured, and this


@dataclass(frozen=True, slots=True)
class Rows:
    """The training rows and what was set aside."""

    examples: list[Example]
    num_dev: int
    preflight: Preflight


def run(config: TrainConfig, context: Context) -> int:
    """The verb."""
    terminal = context.terminal
    _refuse_launcher()
    choice = backends.resolve(config.backend)
    check_sinks(config, terminal.say)
    if config.output_dir is not None:
        check_free(config.output_dir)
    # Quiet: the demonstration's first line is its banner, and the answer comes in about a second.
    pair = choose_pair(config.model, config.data, config.data_config, lambda asked: None)
    config = with_profile(config, demo=pair.model == EMBEDDED_MODEL, explicit=context.explicit)
    if pair.model == EMBEDDED_MODEL:
        banner(terminal, pair.model_choice.reason)
    source = resolve_model(pair.model, terminal.say)
    data = load_data(pair.data, config.data_config, config.seed, terminal.say, splits=("train",))
    terminal.say(f"model    {source.name}: {pair.model_choice.reason}; {source.choice.reason}")
    terminal.say(f"data     {data.name}: {pair.data_choice.reason}; {data.choice.reason}")
    rows = _rows(config, source, data)
    terminal.say(f"rows     {rows.preflight.line()}")
    # Claimed only now: a mistyped name leaves no folder behind.
    claimed = create(
        config.output_dir or default_folder(pair.model),
        {
            "config": config.model_dump(mode="json"),
            "choices": {"backend": asdict(choice)},
            "model": {"name": _absolute(source.name), "source": source.choice.name, "hash": folder_hash(source.folder)},
            "data": {"name": _absolute(data.name), "source": data.choice.name, "sha256": data.sha256},
            "reasons": {"model": asdict(pair.model_choice), "data": asdict(pair.data_choice)},
            "prompt": {"name": PROMPT_NAME, "system": SYSTEM_PROMPT},
            "rows": {
                "train": len(rows.examples), "dev": rows.num_dev, "sha256": rows_hash(rows.examples),
                "preflight": rows.preflight.as_json(),
            },
        },
    )  # fmt: skip
    try:
        code = _in_run(config, claimed, source, rows, choice, context)
    except BaseException as error:
        reason = str(error) if isinstance(error, GSM8KError) else type(error).__name__
        claimed.record(status="failed", outcome={"reason": reason})
        raise
    if pair.model == EMBEDDED_MODEL:
        banner(terminal, pair.model_choice.reason)
    return code


def _refuse_launcher() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("a run uses one process here; start it without accelerate launch or torchrun (WORLD_SIZE > 1)")


def _in_run(config: TrainConfig, run: Run, source: Source, rows: Rows, choice: Choice, context: Context) -> int:
    terminal, elapsed = context.terminal, context.elapsed
    with _signals() as interrupted:
        before = elapsed()
        backend = backends.open(choice.name, source.folder, config.device, config.dtype)
        choices = {"backend": choice, **backend.choices}
        say_choices(terminal, choices)
        run.record(choices={name: asdict(chosen) for name, chosen in choices.items()})
        reserve = elapsed() - before + SAVE_RESERVE_SECONDS
        outcome, pilot = _train(backend, config, run, rows, terminal, elapsed, reserve, interrupted)
        if outcome.reason == STOP_INTERRUPTED:
            terminal.say("stopping: the model is being saved; another signal quits at once")
        backend.save(run.model)
        result = _record_outcome(run, outcome, pilot, elapsed)
    _say_outcome(config, run, source, result, terminal)
    return EXIT_STOPPED if outcome.reason == STOP_INTERRUPTED else EXIT_OK


def _absolute(reference: str) -> str:
    """A path stays right when a later command runs in another folder; a name stays a name."""
    return str(Path(reference).resolve()) if Path(reference).exists() else reference


def _rows(config: TrainConfig, source: Source, data: DataSet) -> Rows:
    train, dev = carve_dev(data.train)
    if config.max_samples >= 0:
        train = train[: config.max_samples]
    if config.annotations == "strip":
        train = tuple(Problem(p.id, p.question, strip_annotations(p.answer), p.gold, p.template) for p in train)
    examples = make_examples(load_tokenizer(source.folder), train, end_token_ids(source.folder))
    check_token_ids((example.tokens for example in examples), vocabulary_size(source.folder))
    summary = summarise(examples, config.max_length)
    return Rows(keep_whole(examples, summary, config.drop_long), len(dev), summary)


def _train(
    backend: Any, config: TrainConfig, run: Run, rows: Rows, terminal: Terminal,
    elapsed: Callable[[], float], reserve: float, interrupted: Callable[[], bool],
) -> tuple[Outcome, RunPilot]:  # fmt: skip
    total = num_updates(len(rows.examples), config.update_size, config.num_epochs)
    budget = config.budget_seconds
    terminal.say(
        f"plan     {total} updates of {config.update_size} rows, {config.num_epochs} epoch(s), rate "
        f"{config.learning_rate:g}, at most {clock(budget)}; folder {run.folder}"
    )
    run.record(plan={"updates": total, "update_size": config.update_size, "budget_seconds": budget})
    metrics = MetricsFile(run.metrics)
    with terminal.progress("update", total) as steps, open_sinks(config, run, terminal.say) as sinks:

        def emit(event: StepEvent) -> None:
            metrics(event)
            sinks.event(event)
            _show(event, steps, budget)

        emit(StepEvent("start", {"updates": total, "rows": len(rows.examples), "elapsed": elapsed()}))
        pilot = RunPilot(
            config, total, emit=emit, elapsed=elapsed, reserve=reserve + sinks.reserve, interrupted=interrupted,
            checkpoints=run.checkpoints,
        )  # fmt: skip
        try:
            outcome = backend.train(_updates(config, rows.examples), config, pilot)
            emit(StepEvent("end", {"reason": outcome.reason, "update": outcome.update, "elapsed": elapsed()}))
        finally:
            metrics.close()
    return outcome, pilot


def _updates(config: TrainConfig, examples: list[Example]) -> Iterator[Update]:
    return make_updates(
        examples,
        batch_size=config.batch_size,
        update_size=config.update_size,
        num_epochs=config.num_epochs,
        seed=config.seed,
    )


def _show(event: StepEvent, steps: Steps, budget: float) -> None:
    if event.name == "update":
        values: Any = event.values
        left = clock(budget - values["elapsed"])
        note = f"loss {values['loss']:.3f}  {values['seconds']:.1f} s, {clock(values['eta'])} to go, budget {left}"
        steps.advance(note, done=values["update"])


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
    old = {name: signal.signal(getattr(signal, name), note) for name in names}
    try:
        yield lambda: bool(seen)
    finally:
        for name, handler in old.items():
            signal.signal(getattr(signal, name), handler)


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _record_outcome(run: Run, outcome: Outcome, pilot: RunPilot, elapsed: Callable[[], float]) -> dict[str, Any]:
    result = {
        "reason": outcome.reason,
        "updates": outcome.update,
        "seconds": elapsed(),
        "first_loss": pilot.losses[0],
        "last_loss": pilot.losses[-1],
        "first_four": _mean(pilot.losses[:4]),
        "last_four": _mean(pilot.losses[-4:]),
    }
    run.record(status="done" if outcome.reason == "done" else "stopped", outcome=result)
    return result


def _say_outcome(config: TrainConfig, run: Run, source: Source, result: dict[str, Any], terminal: Terminal) -> None:
    why = {
        STOP_BUDGET: f"ended by the time budget ({config.max_time})",
        STOP_INTERRUPTED: "stopped by a signal",
    }.get(result["reason"], "done")
    enough = result["updates"] >= 8
    first, last = ("first_four", "last_four") if enough else ("first_loss", "last_loss")
    terminal.say(
        f"{why} after {result['updates']} updates in {clock(result['seconds'])}: loss {result[first]:.3f} -> "
        f"{result[last]:.3f}{' (means of four)' if enough else ''}; model in {run.model}"
    )
    follow = shlex.join(
        ["python", "cli.py", "compare", "--base-model", source.name, "--trained-model", str(run.folder)]
    )
    terminal.say(f"next     {follow}")
    terminal.result({"run": str(run.folder), "model": str(run.model), "next": follow, **result})
