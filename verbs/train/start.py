"""What a training run is made of, before it begins: a new run, or one to go on with.

The model of a run, opened on its backend: for the first segment, and again for each one after a failure.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import backends
from gsm8k_core.auto import AUTO, choose_pair
from gsm8k_core.config.train import EMBEDDED_MODEL, GENERATED_DATA, TrainConfig, flag, with_profile
from gsm8k_core.models.adapter import lora_spec, target_modules
from gsm8k_core.models.find import Source, identity, resolve_model
from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.models.hub import human_size
from gsm8k_core.models.quantized import cached_base, dequantized_folder, is_quantized, widths
from gsm8k_core.problems.batching import (
    choose_tokens,
    fullest,
    make_updates,
    num_updates,
    padded_tokens,
    rows_hash,
    width_of,
)
from gsm8k_core.problems.data import DataSet, load_data, training_rows
from gsm8k_core.problems.prompts import PROMPT_NAME, SYSTEM_PROMPT, make_examples
from gsm8k_core.problems.rows import Preflight, check_token_ids, keep_whole, summarise
from gsm8k_core.tracking.feed import check_sinks
from gsm8k_core.tracking.terminal import Terminal, clock, counted
from gsm8k_core.training.checkpoints import Checkpoint, newest
from gsm8k_core.training.health import PROBE_ROWS
from gsm8k_core.training.memory import Plan, model_of, plan
from gsm8k_core.training.plan import Adjustment, PlanEvent, as_choice, planned, smaller
from gsm8k_core.training.plan import recorded as recorded_adjustments
from gsm8k_core.training.runs import Run, check, check_free, create, cut_metrics, default_folder, newest_stopped, reopen
from gsm8k_core.types import Choice, DataError, Example, OutOfMemoryError, PreflightError, Problem, Update, UsageError
from verbs import Context
from verbs.demo import banner

LATEST = "latest"


@dataclass(frozen=True, slots=True)
class Rows:
    """The training rows, the dev rows in order, and what was set aside."""

    examples: list[Example]
    dev: list[tuple[Problem, Example]]
    probed: list[Example]  # dev rows, too: those that a probe looks at
    num_dev: int
    preflight: Preflight


@dataclass(frozen=True, slots=True)
class Job:
    """A run that can begin. `claim` makes or reopens its folder: until then, nothing is left behind."""

    config: TrainConfig
    backend: Choice
    source: Source  # the model that training starts from, before any checkpoint
    rows: Rows
    hashes: Mapping[str, str]
    claim: Callable[[Mapping[str, Choice]], Run]
    reason: str  # why this model
    run: Run | None = None  # the one to go on with, held already
    checkpoint: Checkpoint | None = None
    seconds: float = 0.0  # that the run took before this process
    shrink: str = ""  # why it gets half the padded tokens in a micro-batch that it would get
    adjustments: tuple[Adjustment, ...] = ()  # what it changed about itself after failures
    unfinished: bool = False  # whether its process died before it could end the run
    batches: Choice | None = None  # padded tokens at most in a micro-batch, where the run found them out by itself

    @property
    def total(self) -> int:
        """Updates in the whole run, as first planned."""
        return num_updates(len(self.rows.examples), self.config.update_size, self.config.num_epochs)

    @property
    def events(self) -> list[PlanEvent]:
        """The plan so far."""
        recorded = [PlanEvent.from_json(event) for event in self.checkpoint.events] if self.checkpoint else []  # type: ignore[arg-type]
        if recorded and recorded[-1].total <= self.done < self.total:  # it ended as planned, and goes on with more time
            recorded = [*recorded, PlanEvent(self.done, self.total, recorded[-1].rate_factor)]
        return planned(recorded or [PlanEvent(0, self.total)], self.adjustments)

    @property
    def only_model_is_missing(self) -> bool:
        """Whether its process died after the last update that the budget had planned, and no more time was given."""
        return self.unfinished and self.checkpoint is not None and _ended(self.checkpoint, self.config)

    @property
    def done(self) -> int:
        """Updates that the checkpoint holds."""
        return self.checkpoint.update if self.checkpoint else 0

    @property
    def widest(self) -> int:
        """Padded tokens of the longest row."""
        return width_of(self.rows.examples)

    def updates(self, max_tokens: int) -> Iterator[Update]:
        """The updates that are left, in order, in micro-batches of at most `max_tokens` padded tokens."""
        every = make_updates(self.rows.examples, max_tokens=max_tokens, **self._order)
        return (update for update in every if update.number > self.done)

    def tokens(self, max_tokens: int) -> Iterator[int]:
        """The padded tokens of every update of the run, from the first one on."""
        return padded_tokens(self.rows.examples, max_tokens=max_tokens, **self._order)

    @property
    def _order(self) -> dict[str, int]:
        config = self.config
        return {"update_size": config.update_size, "num_epochs": config.num_epochs, "seed": config.seed}


def new(config: TrainConfig, context: Context) -> Job:
    """A run from the start."""
    terminal = context.terminal
    _refuse_idle(config, context)
    choice = backends.resolve(config.backend)
    check_sinks(config, terminal.say)
    if config.output_dir is not None:
        check_free(config.output_dir)
    # Quiet: the demonstration's first line is its banner, and the answer comes in about a second.
    pair = choose_pair(config.model, config.data, config.data_config, lambda asked: None)
    config = with_profile(config, demo=pair.model == EMBEDDED_MODEL, explicit=context.explicit)
    if pair.model == EMBEDDED_MODEL:
        banner(terminal, pair.model_choice.reason)
    backends.check(choice.name, config.device, config.dtype, config.method)
    source = resolve_model(pair.model, terminal.say)
    if (spec := lora_spec(config)) is not None:
        target_modules(spec, source.model.linear_layers)  # a name that no layer has
    data = load_data(pair.data, config.data_config, config.seed, terminal.say, splits=("train",))
    terminal.say(f"model    {source.name}: {pair.model_choice.reason}; {source.choice.reason}")
    terminal.say(f"data     {data.name}: {pair.data_choice.reason}; {data.choice.reason}")
    # A later command, or another machine, may choose otherwise: what was chosen is what is recorded.
    config = config.model_copy(update={"model": _absolute(source.name), "data": _absolute(data.name)})
    rows = _rows(config, source, data, terminal)
    hashes = _hashes(source, data, rows)
    manifest = {
        "config": config.model_dump(mode="json"),
        "hashes": dict(hashes),
        "model": {"name": config.model, "source": source.choice.name, "hash": hashes["model"]},
        "data": {"name": config.data, "source": data.choice.name, "sha256": data.sha256},
        "reasons": {"model": asdict(pair.model_choice), "data": asdict(pair.data_choice)},
        "prompt": {"name": PROMPT_NAME, "system": SYSTEM_PROMPT},
        "rows": {
            "train": len(rows.examples),
            "dev": rows.num_dev,
            "sha256": hashes["rows"],
            "preflight": rows.preflight.as_json(),
        },
    }
    folder = config.output_dir or default_folder(pair.model)
    return Job(
        config,
        choice,
        source,
        rows,
        hashes,
        lambda choices: create(folder, {**manifest, "choices": as_json(choices)}),
        pair.model_choice.reason,
    )


def _refuse_idle(config: TrainConfig, context: Context) -> None:
    """Refuse flags that would change nothing."""
    if config.force:
        raise UsageError("--force is for --resume; leave it out for a new run")
    idle = sorted({"lora_rank", "lora_alpha", "lora_dropout", "target_modules"} & context.explicit)
    if idle and not config.uses_adapter:
        raise UsageError(f"{flag(idle[0])} is for an adapter, and --method full trains the model; add --method lora")


def resumed(config: TrainConfig, context: Context) -> Job | None:
    """A run to go on with, held from now on; None when nothing is left of it to do."""
    terminal = context.terminal
    run = reopen(_folder(config, context))
    recorded = _recorded(run)
    given = {name: getattr(config, name) for name in context.explicit}
    # `auto` is the run's own, wherever it goes on; backend and device are this machine's.
    asked = {name: value for name, value in given.items() if value != AUTO or name in ("backend", "device")}
    paths = {name: _absolute(asked[name]) for name in ("model", "data") if name in asked}
    config = TrainConfig(**{**dict(recorded), **asked, **paths})
    if run.manifest.get("status") == "done":
        check(recorded, config, {}, {}, force=True)  # more epochs, say, would be another run
        run.release()
        updates = counted(run.manifest.get("outcome", {}).get("updates", 0), "update")
        terminal.say(f"run {run.folder} is complete ({updates}); nothing is left to do")
        return None
    choice = backends.resolve(config.backend)
    check_sinks(config, terminal.say)
    _check_backend(choice.name, config, "dtype" in asked)
    source = _source_of(run, config, terminal)
    data = load_data(config.data, config.data_config, config.seed, terminal.say, splits=("train",))
    rows = _rows(config, source, data, terminal)
    hashes = _hashes(source, data, rows)
    if source.folder == run.base:  # checked by its own hash; the model that it was made of may be gone
        hashes["model"] = _hashes_of(run)["model"]
    for difference in check(recorded, config, _hashes_of(run), hashes, config.force):
        terminal.say(f"force    {difference}")
    checkpoint = newest(run.checkpoints, terminal.say)
    if checkpoint is not None:
        _check_own(checkpoint, config, hashes)
    unfinished = run.manifest.get("status") == "running"
    dead_at_end = unfinished and checkpoint is not None and _ended(checkpoint, config)
    if not (context.link.killed_by or dead_at_end):  # then what there is becomes the model
        _refuse_spent(config, checkpoint)
    dropped = cut_metrics(run.metrics, checkpoint.update if checkpoint else 0)
    where = (
        f"update {checkpoint.update}, {checkpoint.folder}"
        if checkpoint
        else "its beginning: there is no whole checkpoint"
    )
    undone = f"; {counted(dropped, 'later line')} of metrics.jsonl will be written again" if dropped else ""
    terminal.say(f"resume   {run.folder} from {where}{undone}")

    def claim(choices: Mapping[str, Choice]) -> Run:
        run.begin_segment(config.model_dump(mode="json"), as_json(choices), checkpoint.update if checkpoint else 0)
        return run

    job = Job(config, choice, source, rows, hashes, claim, "it is the run's own")
    seconds = checkpoint.elapsed if checkpoint else 0.0
    adjustments = tuple(recorded_adjustments(run.manifest))
    return replace(job, run=run, checkpoint=checkpoint, seconds=seconds, adjustments=adjustments, unfinished=unfinished)


def _folder(config: TrainConfig, context: Context) -> Path:
    if config.resume != LATEST:
        return Path(config.resume)
    if "output_dir" in context.explicit and config.output_dir is not None:
        return config.output_dir
    found = newest_stopped(Path("runs"))
    if found is None:
        raise UsageError("--resume: no stopped run under runs/; give its folder, as in --resume runs/NAME")
    return found


def _recorded(run: Run) -> TrainConfig:
    """The run's settings, with what was chosen for it: the compute dtype, and how updates are cut."""
    try:
        choices = run.manifest["choices"]
        tokens = choices["batches"]["name"] if "batches" in choices else AUTO  # older runs were cut by rows
        return TrainConfig(
            **{**run.manifest["config"], "dtype": choices["dtype"]["name"], "micro_batch_tokens": tokens}
        )
    except (KeyError, TypeError):
        raise UsageError(f"{run.folder} ended before its training began; start a new run") from None


def _hashes_of(run: Run) -> Mapping[str, str]:
    hashes = run.manifest.get("hashes")
    if not isinstance(hashes, dict):
        raise UsageError(f"{run.folder} was begun by an older version, without hashes; start a new run")
    return hashes


def _check_own(checkpoint: Checkpoint, config: TrainConfig, hashes: Mapping[str, str]) -> None:
    """Refuse a checkpoint that another run wrote."""
    try:
        check(TrainConfig(**checkpoint.facts["config"]), config, checkpoint.facts["hashes"], hashes, force=True)
    except (KeyError, TypeError, UsageError) as error:
        raise DataError(f"{checkpoint.folder} is another run's ({str(error).split(';')[0]}); move it away") from None


def _check_backend(name: str, config: TrainConfig, asked: bool) -> None:
    # An adapter of 4-bit weights goes on everywhere: its base is there already, or its de-quantised copy.
    method = "lora" if config.method == "qlora" else config.method
    try:
        backends.check(name, config.device, config.dtype, method)
    except PreflightError:
        if asked:
            raise
        backends.check(name, config.device, AUTO, method)  # the device, too, may be what is missing
        raise PreflightError(
            f"the run computes in {config.dtype}, which {name} has not here; to go on in float32: "
            "--dtype float32 --force"
        ) from None


def _source_of(run: Run, config: TrainConfig, terminal: Terminal) -> Source:
    """The model that the run began with. qlora needs no more than the 4-bit base in the run."""
    if config.method == "qlora" and (run.manifest.get("base") or {}).get("hash"):
        return Source(config.model, ModelFolder(checked_base(run)), Choice("folder", "the 4-bit base of the run"))
    return resolve_model(config.model, terminal.say)


def checked_base(run: Run) -> Path:
    """The run's 4-bit base. Raises DataError when it is not the one that the run began with."""
    wanted = (run.manifest.get("base") or {}).get("hash")
    if not run.base.is_dir() or ModelFolder(run.base).hash != wanted:
        raise DataError(f"{run.base} is not the 4-bit base that the run began with; bring it back, or start a new run")
    return run.base


def _ended(checkpoint: Checkpoint, config: TrainConfig) -> bool:
    """Whether it is the end of what its budget had planned, the rate fallen to its end, and the budget is no larger."""
    more = config.budget_seconds > TrainConfig(**checkpoint.facts["config"]).budget_seconds
    return bool(checkpoint.events) and checkpoint.events[-1]["total"] == checkpoint.update and not more


def _refuse_spent(config: TrainConfig, checkpoint: Checkpoint | None) -> None:
    if checkpoint is None:
        return
    if checkpoint.elapsed >= config.budget_seconds - 1 or _ended(checkpoint, config):
        raise UsageError(
            f"the run has used {clock(checkpoint.elapsed)} of its {config.max_time}; "
            f"give it more in all, such as --max-time {int(2 * checkpoint.elapsed / 60) + 1}m"
        )


def as_json(choices: Mapping[str, Choice]) -> dict[str, Any]:
    return {name: asdict(choice) for name, choice in choices.items()}


def _absolute(reference: str) -> str:
    """A path stays right when a later command runs in another folder; a name stays a name."""
    if reference in (EMBEDDED_MODEL, GENERATED_DATA):
        return reference
    return str(Path(reference).resolve()) if Path(reference).exists() else reference


def _hashes(source: Source, data: DataSet, rows: Rows) -> dict[str, str]:
    files = hashlib.sha256(json.dumps(dict(data.sha256), sort_keys=True).encode()).hexdigest()
    prompt = hashlib.sha256(f"{PROMPT_NAME}\0{SYSTEM_PROMPT}".encode()).hexdigest()
    return {
        "model": identity(source),
        "tokenizer": source.model.tokenizer_hash,
        "data": files,
        "rows": rows_hash(rows.examples),
        "prompt": prompt,
    }


def _rows(config: TrainConfig, source: Source, data: DataSet, terminal: Terminal) -> Rows:
    train, dev = training_rows(data.train, config.max_samples, config.annotations)
    tokenizer, ends = source.model.tokenizer, source.model.end_ids
    examples = make_examples(tokenizer, train, ends)
    check_token_ids((example.tokens for example in examples), source.model.vocabulary)
    summary = summarise(examples, config.max_length)
    terminal.say(f"rows     {summary.line()}")  # before a refusal, too
    asked = dev[: config.dev_problems]
    pairs = list(zip(asked, make_examples(tokenizer, asked, ends), strict=True)) if asked else []
    probed = make_examples(tokenizer, dev[:PROBE_ROWS], ends) if config.probe_steps and dev else []
    return Rows(keep_whole(examples, summary, config.drop_long), pairs, probed, len(dev), summary)


@dataclass(slots=True)
class Opened:
    """The model on its backend, the choices made, and what an adapter of it says it belongs to."""

    backend: Any
    choices: Mapping[str, Choice]
    quantized: Path | None = None  # qlora: the 4-bit base, in the cache or in the run
    plan: Plan | None = None  # of the memory; None for a model whose sizes are not known

    @property
    def tokens(self) -> int:
        """Padded tokens at most in a micro-batch."""
        return int(self.choices["batches"].name)

    def memory(self) -> dict[str, Any]:
        """For run.json: what was predicted, and the peak so far."""
        measured = {"measured": self.backend.peak_memory()}
        return {**self.plan.as_json(), **measured} if self.plan else measured


def plan_memory(job: Job, context: Context) -> Plan | None:
    """What fits, before the model is loaded. Raises OutOfMemoryError where one row does not."""
    config = job.config
    model = model_of(job.source.model.config, config)
    if model is None:
        return None
    memory = backends.device_memory(job.backend.name, config.device)
    wanted = choose_tokens(config.micro_batch_tokens, config.batch_size, config.max_length, memory.tokens)
    dtype = "float32" if config.dtype == "auto" else config.dtype
    return plan(model, config, dtype, memory, wanted, job.widest, "micro_batch_tokens" in context.explicit)


def open_model(job: Job, context: Context) -> Opened:
    """Load the job's model. Raises PreflightError, DataError and OutOfMemoryError."""
    config = job.config
    planned = None if job.batches else plan_memory(job, context)
    if planned is not None:
        context.terminal.say(f"memory   {planned.line()}")
    folder, quantized = job.source.folder, None
    if config.method == "qlora":
        quantized = _quantized_base(job, context.terminal)
        folder = quantized if backends.opens_quantized(job.backend.name) else dequantized_folder(quantized)
    backend = backends.open(job.backend.name, folder, config.device, config.dtype)
    tokens = job.batches or (planned.tokens if planned else _without_a_plan(config, backend))
    if int(tokens.name) < job.widest:
        context.terminal.say(f"batches  the longest row has {job.widest} padded tokens: a micro-batch of its own")
    if job.shrink and (fewer := smaller(int(tokens.name), job.widest, config.update_size)):
        tokens = as_choice(fewer, f"half, since the training process {job.shrink}")
    if config.dtype == "auto" and (first := next(job.updates(int(tokens.name)), None)):
        backend.choose_dtype(first.micro_batches[0], config)
    if planned is not None and planned.tight:
        tokens = rehearsed(backend, job, planned, tokens)
    if planned is not None:
        planned = planned.settled(config, backend.choices["dtype"].name, tokens)
    choices = {"backend": job.backend, **backend.choices, "batches": tokens}
    return Opened(backend, choices, quantized, planned)


def _without_a_plan(config: TrainConfig, backend: Any) -> Choice:
    return choose_tokens(config.micro_batch_tokens, config.batch_size, config.max_length, backend.micro_batch_tokens)


def rehearsed(backend: Any, job: Job, planned: Plan, tokens: Choice) -> Choice:
    """The padded tokens that one real micro-batch of the longest rows had room for: `tokens`, or half, and so on.

    Raises OutOfMemoryError where one row has none.
    """
    while True:
        count = int(tokens.name)
        try:
            backend.rehearse(fullest(job.rows.examples, count, job.config.update_size), job.config)
            needed = backend.peak_memory() + planned.moments
            if needed <= planned.memory.free or (fewer := smaller(count, job.widest, job.config.update_size)) is None:
                return tokens
            why = f"{count} took {human_size(needed)} of {human_size(planned.memory.free)}, moments included"
        except OutOfMemoryError:
            fewer = smaller(count, job.widest, job.config.update_size)
            if fewer is None:
                raise
            why = f"there was no memory for {count}"
        tokens = as_choice(fewer, f"half: {why}")


def _quantized_base(job: Job, terminal: Terminal) -> Path:
    """The 4-bit base: a new run's from the cache, a resumed one's from its own folder."""
    if job.run is not None and (job.checkpoint is not None or "base" in job.run.manifest):
        return checked_base(job.run)
    made_from = job.source.made_from
    if made_from is not None and is_quantized(ModelFolder(made_from)):
        terminal.say(f"base     the {widths(ModelFolder(made_from))} weights as they are")
        return made_from
    terminal.say("base     4-bit weights are made of the model, by mlx-lm")
    return cached_base(job.source.folder, lambda target: backends.quantize(job.source.folder, target))
