"""What a training run is made of before it begins: a new run's Job, or that of a run to go on with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import backends
from gsm8k_core.auto import AUTO, Pair, choose_pair
from gsm8k_core.config.fields import EMBEDDED_MODEL, GENERATED_DATA, flag
from gsm8k_core.config.train import NOT_OF_GRPO, OF_GRPO, OF_RFT, SAMPLED, TrainConfig, with_profile
from gsm8k_core.files import refuse_links
from gsm8k_core.models.adapter import lora_spec, target_modules
from gsm8k_core.models.find import Source, identity, prompted, resolve_model
from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.models.prompt_settings import PromptSettings, from_json, given
from gsm8k_core.problems.batching import (
    make_updates,
    num_updates,
    padded_tokens,
    padded_width,
    rows_hash,
    width_of,
)
from gsm8k_core.problems.data import DataSet, load_data
from gsm8k_core.problems.overlap import QUESTIONS
from gsm8k_core.problems.reading import RowOptions
from gsm8k_core.rollouts.progress import PROGRESS, Progress, folder_of
from gsm8k_core.rollouts.record import RECORDS, last_seconds
from gsm8k_core.tracking.feed import check_trackers
from gsm8k_core.tracking.terminal import Terminal, clock
from gsm8k_core.training.checkpoints import RECORD, Checkpoint, newest
from gsm8k_core.training.health import PROBE_TOKENS
from gsm8k_core.training.manifest import check_facts
from gsm8k_core.training.memory import Plan
from gsm8k_core.training.metrics import cut_metrics
from gsm8k_core.training.plan import Adjustment, PlanEvent, adjustments_of, replay
from gsm8k_core.training.runs import (
    MANIFEST,
    Run,
    check,
    check_free,
    create,
    default_folder,
    newest_stopped,
    reopen,
)
from gsm8k_core.types import Choice, DataError, PreflightError, Update, UsageError, counted
from verbs import Context, as_json
from verbs.demo import banner
from verbs.overlap import before_training
from verbs.train.rows import Rows, make_rows, rows_as_begun

LATEST = "latest"


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
    unfinished: bool = False  # whether its process died, or failed, before it could end the run
    batches: Choice | None = None  # padded tokens at most in a micro-batch, where the run found them out by itself
    dtype: Choice | None = None  # of the products: the same
    memory: Plan | None = None  # as planned when the run began here; None again after it ran out

    @property
    def total(self) -> int:
        """Updates in the whole run, as first planned. Of grpo, an epoch asks every problem once at the least."""
        if self.config.recipe == "grpo":
            rollouts = num_updates(len(self.rows.asked), self.config.prompts_per_update, self.config.num_epochs)
            return rollouts * self.config.updates_per_rollout
        return num_updates(len(self.rows.examples), self.config.update_size, self.config.num_epochs)

    @property
    def events(self) -> list[PlanEvent]:
        """The plan so far."""
        recorded = [PlanEvent.from_json(event) for event in self.checkpoint.events] if self.checkpoint else []
        if recorded and recorded[-1].total <= self.done < self.total:  # it ended as planned, and goes on with more time
            recorded = [*recorded, PlanEvent(self.done, self.total, recorded[-1].rate_factor)]
        return replay(recorded or [PlanEvent(0, self.total)], self.adjustments)

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
        """Padded tokens of the longest row; of a recipe that makes rows, of the longest that it may make."""
        return max(width_of(self.rows.examples), padded_width(self.rows.longest_own))

    @property
    def longest(self) -> int:
        """Tokens of the longest row that is read: padded, or of a dev problem with the longest answer it may get."""
        asked = [*(example for _, example in self.rows.dev), *self.rows.probed]
        answered = (example.num_prompt + max(self.config.eval_max_new_tokens, PROBE_TOKENS) for example in asked)
        return max(self.widest, width_of(asked) if asked else 0, *answered, self.longest_sampled)

    @property
    def longest_sampled(self) -> int:
        """Tokens of the longest answer that may be sampled, with its prompt; 0 where none is."""
        prompts = [len(prompt) for _, prompt in self.rows.asked]
        return max(prompts) + self.config.sample_max_new_tokens if prompts else 0

    def updates(self, max_tokens: int) -> Iterator[Update]:
        """The updates that are left, in order, in micro-batches of at most `max_tokens` padded tokens."""
        return make_updates(self.rows.examples, max_tokens=max_tokens, after=self.done, **self._order)

    def tokens(self, max_tokens: int) -> Iterator[int]:
        """The padded tokens of every update of the run, from the first one on."""
        return padded_tokens(self.rows.examples, max_tokens=max_tokens, **self._order)

    @property
    def _order(self) -> dict[str, int]:
        config = self.config
        return {"update_size": config.update_size, "num_epochs": config.num_epochs, "seed": config.seed}


def new_job(config: TrainConfig, context: Context) -> Job:
    """A run from the start."""
    terminal = context.terminal
    refuse_idle(config, context)
    _refuse_no_time(config, context)
    choice = backends.resolve(config.backend)
    check_trackers(config, terminal.say)
    if config.output_dir is not None:
        check_free(config.output_dir)
    # Quiet: the demonstration's first line is its banner, and the answer comes in about a second.
    pair = choose_pair(config.model, config.data, config.data_config, lambda asked: None)
    config = with_profile(config, demo=pair.model == EMBEDDED_MODEL, explicit=context.explicit)
    if pair.model == EMBEDDED_MODEL:
        banner(terminal, pair.model_choice.reason)
    # Before a framework or a model is loaded, which takes far longer than a look at the rows.
    data = load_data(pair.data, config.data_config, config.seed, terminal.say, ("train",), RowOptions.of(config))
    source = prompted(resolve_model(pair.model, terminal.say, config.base_model), _prompts(config))
    backends.check(choice.name, config.device, config.dtype, config.method)
    _check_engine(choice.name, config)
    if (spec := lora_spec(config)) is not None:
        target_modules(spec, source.model.linear_layers)  # a name that no layer has
    terminal.say(f"model    {source.name}: {pair.model_choice.reason}; {source.choice.reason}")
    terminal.say(f"data     {data.name}: {pair.data_choice.reason}; {data.choice.reason}")
    for line in data.lines():
        terminal.say(line)
    # A later command, or another machine, may choose otherwise: what was chosen is what is recorded.
    names = {"model": source.name, "data": data.name, "base_model": config.base_model}
    files = {key: path.absolute() for key in ("chat_template", "wandb_key_file") if (path := getattr(config, key))}
    config = config.model_copy(update={**{key: _absolute(name) for key, name in names.items()}, **files})
    rows = make_rows(config, source, data, terminal)
    tested, overlap = before_training(rows.questions, config, data.name, data.revision)
    terminal.say(f"overlap  {tested}: {overlap.line}")
    hashes = _hashes(source, data, rows)
    manifest = _manifest(config, pair, source, data, rows, hashes) | {"overlap": {"test": tested, **overlap.as_json()}}
    folder = config.output_dir or default_folder(pair.model)

    def claim(choices: Mapping[str, Choice]) -> Run:
        run = create(folder, {**manifest, "choices": as_json(choices)})
        rows.questions.write(run.folder)
        return run

    return Job(config, choice, source, rows, hashes, claim, pair.model_choice.reason)


def _manifest(
    config: TrainConfig, pair: Pair, source: Source, data: DataSet, rows: Rows, hashes: Mapping[str, str]
) -> dict[str, Any]:
    """What run.json says from the start on, beside the choices."""
    return {
        "config": config.model_dump(mode="json"),
        "hashes": dict(hashes),
        "model": {"name": config.model, "source": source.choice.name, "hash": hashes["model"]},
        "data": {"name": config.data, **data.as_json()},
        "reasons": as_json({"model": pair.model_choice, "data": pair.data_choice}),
        "prompt": source.model.rendering.as_json(),
        "rows": {
            "train": len(rows.examples),
            "dev": rows.num_dev,
            "sha256": hashes["rows"],
            "preflight": rows.preflight.as_json(),
        },
    }


def _prompts(config: TrainConfig) -> PromptSettings:
    return given(config.thinking, config.system_prompt, config.chat_template)


def refuse_idle(config: TrainConfig, context: Context) -> None:
    """Refuse flags that would change nothing."""
    if config.force:
        raise UsageError("--force is for --resume; leave it out for a new run")
    idle = sorted({"lora_rank", "lora_alpha", "lora_dropout", "target_modules"} & context.explicit)
    _refuse_other_recipe(config, context.explicit)
    if idle and not config.uses_adapter:
        raise UsageError(f"{flag(idle[0])} is for an adapter, and --method full trains the model; add --method lora")


def _refuse_other_recipe(config: TrainConfig, explicit: Collection[str]) -> None:
    """Refuse what is another recipe's."""

    def given(names: Sequence[str]) -> str | None:
        return next((flag(name) for name in names if name in explicit), None)

    recipe = config.recipe
    if recipe == "sft" and (name := given((*SAMPLED, *OF_RFT))):
        more = "rft or grpo" if name in map(flag, SAMPLED) else "rft"
        raise UsageError(f"{name} is for a model's own answers; add --recipe {more}, or leave it out")
    if recipe == "grpo" and (name := given(OF_RFT)):
        raise UsageError(f"{name} is for rejection sampling; leave it out, or take --recipe rft")
    if recipe != "grpo" and (name := given(OF_GRPO)):
        raise UsageError(f"{name} is for --recipe grpo; add that, or leave it out")
    if recipe == "grpo" and (name := given(NOT_OF_GRPO)):
        raise UsageError(f"{name} changes nothing with --recipe grpo; leave it out (docs/methods.md says what it does)")
    if recipe == "grpo" and "sample_temperature" in explicit and config.sample_temperature != 1:
        raise UsageError(
            f"--sample-temperature {config.sample_temperature:g}: --recipe grpo samples at 1, since the policy that is "
            "trained must be the one that sampled; leave it out"
        )
    if recipe == "grpo" and config.lora_dropout:
        raise UsageError(
            f"--lora-dropout {config.lora_dropout:g}: with --recipe grpo the policy that is trained must be the one "
            "that sampled, which has no dropout; leave it out"
        )
    if recipe == "grpo" and config.samples < 2:
        raise UsageError("--samples 1: --recipe grpo compares answers to one problem; give 2 or more")


def resumed_job(config: TrainConfig, context: Context) -> Job | None:
    """A run to go on with, held from now on; None when nothing is left of it to do."""
    run = reopen(_folder(config, context))
    with run.let_go_on_error():
        return _resumed(run, config, context)


def _resumed(run: Run, config: TrainConfig, context: Context) -> Job | None:
    terminal = context.terminal
    recorded = _recorded(run)
    asked = _asked(config, context.explicit)
    config = TrainConfig(**{**dict(recorded), **asked})
    if _is_complete(run, config):
        check(recorded, config, {}, {}, force=True)  # more epochs, say, would be another run
        run.release()
        updates = counted(run.manifest.get("outcome", {}).get("updates", 0), "update")
        terminal.say(f"run {run.folder} is complete ({updates}); nothing is left to do")
        terminal.result({"run": str(run.folder), "model": str(run.model), **(run.manifest.get("outcome") or {})})
        return None
    choice = backends.resolve(config.backend)
    check_trackers(config, terminal.say)
    unfinished = run.manifest.get("status") in ("running", "failed")
    known = _known_checkpoint(run, config, unfinished, context) if config.recipe != "rft" else None
    reading = RowOptions.of(config, (run.manifest.get("data") or {}).get("revision", ""))
    data = load_data(config.data, config.data_config, config.seed, terminal.say, ("train",), reading)
    _check_backend(choice.name, config, "dtype" in asked)
    _check_engine(choice.name, config)
    # The day and the template are the run's, whatever day it is and whatever became of the file.
    recorded_prompts = from_json(run.manifest.get("prompt"), f"{run.folder / MANIFEST}: prompt")
    if config.chat_template is not None and not recorded_prompts.template:
        raise DataError(f"{run.folder / MANIFEST}: prompt has no chat_template any more; bring the file back")
    source = prompted(_source_of(run, config, terminal), recorded_prompts)
    rows = make_rows(config, source, data, terminal, all_at_once=not _has_corpus(run))
    if rows_hash(rows.examples) != _hashes_of(run).get("rows"):
        rows = rows_as_begun(config, source, data, _hashes_of(run).get("rows"), terminal) or rows
    hashes = _hashes(source, data, rows)
    if source.folder == run.base:  # checked by its own hash; the model that it was made of may be gone
        hashes["model"] = _hashes_of(run)["model"]
    for difference in check(recorded, config, _hashes_of(run), hashes, config.force):
        terminal.say(f"force    {difference}")
    # Which phase an rft run goes on with is found out when its model is there.
    checkpoint = newest_of(run, config, hashes, unfinished, context, known=known) if known else None
    seconds = _seconds_of_phases(run, terminal.say) if config.recipe == "rft" else 0.0

    def claim(choices: Mapping[str, Choice]) -> Run:
        run.begin_segment(config.model_dump(mode="json"), as_json(choices), checkpoint.update if checkpoint else 0)
        run.record(**_names(run, config, source, data))
        if not (run.folder / QUESTIONS).exists():  # it was begun by an older version
            rows.questions.write(run.folder)
        return run

    return Job(
        config,
        choice,
        source,
        rows,
        hashes,
        claim,
        "it is the run's own",
        run,
        checkpoint,
        seconds=checkpoint.elapsed if checkpoint else seconds,
        adjustments=tuple(adjustments_of(run.manifest)),
        unfinished=unfinished,
    )


def _is_complete(run: Run, config: TrainConfig) -> bool:
    """Whether nothing is left of it to do: no update, and nothing that a shorter --max-time left open."""
    progress = Progress.from_json(run.manifest.get(PROGRESS))
    return run.manifest.get("status") == "done" and progress.taken_up(config.budget_seconds) is progress


def _has_corpus(run: Run) -> bool:
    """Whether a run's rows are tokenised as they are used: what decides about that may change, and no run with it."""
    preflight = (run.manifest.get("rows") or {}).get("preflight") or {}
    return bool(preflight.get("looked_at"))


def _names(run: Run, config: TrainConfig, source: Source, data: DataSet) -> dict[str, Any]:
    """Where model and data are today; their hashes, which were checked, stay the run's.

    A model or a data set may have moved before it was gone on with, and compare and eval look for them by these names.
    """
    places = {"model": (config.model, source.choice.name), "data": (config.data, data.choice.name)}
    return {
        part: {**(run.manifest.get(part) or {}), "name": name, "source": chosen}
        for part, (name, chosen) in places.items()
    }


def _seconds_of_phases(run: Run, say: Callable[[str], None]) -> float:
    """What an rft run took so far, as the phase that it stood in says."""
    progress = Progress.from_json(run.manifest.get(PROGRESS))
    if progress.phase is None:
        return progress.elapsed
    own = run.rollouts / folder_of(progress.phase.name)
    refuse_links(run.rollouts, own, own / RECORDS, own / "checkpoints")
    checkpoints = [newest(folder / "checkpoints", say) for folder in (own, run.folder)]
    return max(progress.elapsed, last_seconds(own / RECORDS), *(each.elapsed for each in checkpoints if each))


def newest_of(
    run: Run,
    config: TrainConfig,
    hashes: Mapping[str, str],
    unfinished: bool,
    context: Context,
    between: bool = False,
    known: tuple[Checkpoint | None] | None = None,
) -> Checkpoint | None:
    """The checkpoint to go on from, said; what metrics.jsonl holds beyond it is cut. None: from the beginning.

    `between`: of a training that others follow, which is done with what it has where its time is over. `known`: the
    newest one, where it was read already.
    """
    say = context.terminal.say
    (checkpoint,) = known or (newest(run.checkpoints, say),)
    if checkpoint is not None:
        _check_own(checkpoint, config, hashes)
    dead_at_end = unfinished and checkpoint is not None and _ended(checkpoint, config)
    if not (context.link.killed_by or dead_at_end or between):  # then what there is becomes the model
        _refuse_spent(config, checkpoint)
    later = cut_metrics(run.metrics, checkpoint.update if checkpoint else 0)
    undone = f"; {counted(later, 'later line')} of metrics.jsonl will be written again" if later else ""
    beginning = "its beginning: there is no whole checkpoint"
    where = f"update {checkpoint.update}, {checkpoint.folder}" if checkpoint else beginning
    say(f"resume   {run.folder} from {where}{undone}")
    return checkpoint


def newest_of_phase(
    run: Run, config: TrainConfig, hashes: Mapping[str, str], unfinished: bool, context: Context, between: bool
) -> Checkpoint | None:
    """The same of a training of an rft run, which has often just to begin: then nothing is said.

    Its checkpoints/ may be there all the same, with a person's copy of one that went.
    """
    checkpoint = newest(run.checkpoints, context.terminal.say)
    if checkpoint is None:
        cut_metrics(run.metrics, 0)  # a kill came before the first one
        return None
    return newest_of(run, config, hashes, unfinished, context, between, (checkpoint,))


def _known_checkpoint(run: Run, config: TrainConfig, unfinished: bool, context: Context) -> tuple[Checkpoint | None]:
    """The newest checkpoint; a budget that is used up is said here, before anything is loaded. Raises UsageError."""
    checkpoint = newest(run.checkpoints, context.terminal.say)
    try:
        ended = checkpoint is not None and _ended(checkpoint, config)
    except (AttributeError, KeyError, TypeError, UsageError):
        return (checkpoint,)  # it is damaged, or another run's: `newest_of` says how
    if not (context.link.killed_by or (unfinished and ended)):
        _refuse_spent(config, checkpoint)
    return (checkpoint,)


def _refuse_no_time(config: TrainConfig, context: Context) -> None:
    """Raises PreflightError for a --max-time that was over before anything was read."""
    gone = context.elapsed()
    if gone >= config.budget_seconds:
        raise PreflightError(
            f"--max-time {config.max_time} has no time for one update: {clock(gone)} are gone before anything was "
            f"read; nothing was trained, no folder was made; give it more, such as --max-time {int(2 * gone / 60) + 1}m"
        )


def _asked(config: TrainConfig, explicit: frozenset[str]) -> dict[str, Any]:
    """The settings of a run that this command line changes."""
    given = {name: getattr(config, name) for name in explicit}
    # `auto` is the run's own, wherever it goes on; backend and device are this machine's, and these two a way to go on.
    meant = ("backend", "device", "save_steps", "probe_steps")
    asked = {name: value for name, value in given.items() if value != AUTO or name in meant}
    return {
        name: _absolute(value) if name in ("model", "data", "base_model") else value for name, value in asked.items()
    }


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
    except UsageError as error:
        raise DataError(f"{run.folder / MANIFEST}: config: {error}; bring the file back, or start a new run") from None
    except (KeyError, TypeError):
        raise UsageError(f"{run.folder} ended before its training began; start a new run") from None


def _hashes_of(run: Run) -> Mapping[str, str]:
    hashes = run.manifest.get("hashes")
    if not isinstance(hashes, dict):
        raise UsageError(f"{run.folder} was begun by an older version, without hashes; start a new run")
    return hashes


def _check_own(checkpoint: Checkpoint, config: TrainConfig, hashes: Mapping[str, str]) -> None:
    """Refuse a checkpoint that another run wrote."""
    check_facts(checkpoint.folder / RECORD, checkpoint.facts, checkpoint.events)
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


def _check_engine(name: str, config: TrainConfig) -> None:
    if config.rollout_engine == "backend":
        return
    backends.check_engine(name, config.rollout_engine, config.device, config.method == "dora")
    if config.calculator == "on":
        raise UsageError("--calculator on: vLLM writes only what it has drawn; leave it out, or --rollout-engine")


def _source_of(run: Run, config: TrainConfig, terminal: Terminal) -> Source:
    """The model that the run began with. qlora needs no more than the 4-bit base in the run."""
    if config.method == "qlora" and (run.manifest.get("base") or {}).get("hash"):
        return Source(config.model, ModelFolder(checked_base(run)), Choice("folder", "the 4-bit base of the run"))
    return resolve_model(config.model, terminal.say, config.base_model)


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


def _absolute(reference: str) -> str:
    """A path stays right when a later command runs in another folder; a name stays a name."""
    if not reference or reference in (EMBEDDED_MODEL, GENERATED_DATA):
        return reference
    return str(Path(reference).resolve()) if Path(reference).exists() else reference


def _hashes(source: Source, data: DataSet, rows: Rows) -> dict[str, str]:
    files = hashlib.sha256(json.dumps(dict(data.sha256), sort_keys=True).encode()).hexdigest()
    rendering = source.model.rendering
    prompt = hashlib.sha256(f"{rendering.name}\0{rendering.system}".encode()).hexdigest()
    return {
        "model": identity(source),
        "tokenizer": source.model.tokenizer_hash,
        "data": files,
        "rows": rows_hash(rows.examples),
        "prompt": prompt,
    }
