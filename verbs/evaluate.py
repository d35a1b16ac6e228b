"""`eval`: one model, its answers to the problems, every rule; and again, one by one or repeated, where that is asked.

`compare` evaluates both of its models with `refuse`, `load_problems` and `score`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import backends
from gsm8k_core.auto import AUTO, NAMED, Pair, choose_pair
from gsm8k_core.backend import Backend, ignore_token
from gsm8k_core.config.fields import EMBEDDED_MODEL, ProblemSettings, flag, parse_duration
from gsm8k_core.config.score import EvalConfig, ScoreSettings
from gsm8k_core.files import write_json
from gsm8k_core.models.find import Source, prompted, refuse_replaced, resolve_model
from gsm8k_core.models.tokenizer import Tokenizer
from gsm8k_core.parity.texts import AnswerPair, compare
from gsm8k_core.problems.data import MissingSplitError, is_single_file, load_data
from gsm8k_core.problems.generated import HELD_OUT
from gsm8k_core.problems.overlap import Overlap
from gsm8k_core.problems.prompts import NO_SHOTS, Shots, choose_shots, decode, prompt_tokens
from gsm8k_core.problems.reading import RowOptions
from gsm8k_core.problems.rows import check_context, check_token_ids
from gsm8k_core.report.comparison import show_scores
from gsm8k_core.scoring.answers import ALL_RULES, HEADLINE, AnswerLine, judge_by, shown_rules
from gsm8k_core.scoring.calculator import Calculator
from gsm8k_core.scoring.diagnose import breakdown
from gsm8k_core.scoring.evaluate import (
    ANSWER_LINE,
    STOP_RULE,
    Key,
    Request,
    answered_before,
    begun,
    calculated,
    completion_of,
    evaluate,
    problems_hash,
    summarise,
)
from gsm8k_core.scoring.math_verify import judge_records, require
from gsm8k_core.scoring.stats import cannot_show, percent, spread
from gsm8k_core.scoring.tallies import voted
from gsm8k_core.scoring.timed import Limit, answer_in_time, in_random_order, time_line, too_short
from gsm8k_core.tracking.terminal import Terminal
from gsm8k_core.training.health import vitals, warnings
from gsm8k_core.training.manifest import update_of_model
from gsm8k_core.training.memory import AT_ONCE
from gsm8k_core.training.runs import check_writable, code_hash, known_manifest, run_of_model, versions
from gsm8k_core.types import EXIT_OK, Choice, Completion, DataError, OnToken, Problem, Sampling, UsageError, counted
from verbs import Context, as_many_as_it_reads, say_choices
from verbs.adapter_base import check_base
from verbs.demo import banner
from verbs.overlap import of_model
from verbs.results import Provenance, write_one
from verbs.talk import BATCH, asked_prompts, choose_together

NUM_CHECKED = 32  # problems that --check-batching answers again
UNITS = {"nats": "nats", "share": "of the odds"}  # how far two answers are apart where they part
MOST_PLACES = 8  # that are shown; summary.json has all
SAMPLED_ONLY = ("samples", "top_p", "top_k", "sample_seed")
OF_DATA = ("data_config", "seed", "question_column", "answer_column", "skip_bad_rows")  # as a run recorded them


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One model's evaluation: its summary as JSON, its records in the order of the problems.

    `records` holds one a problem, of several samples the one that the vote chose; `answers` holds all.
    """

    summary: dict[str, Any]
    records: list[dict[str, Any]]
    answers: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Problems:
    """The problems of an evaluation and where they came from."""

    problems: Sequence[Problem]
    name: str
    reason: str
    shots: Shots = NO_SHOTS


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is loaded, and what it is asked."""

    config: ScoreSettings
    source: Source
    problems: Problems
    tokenizer: Tokenizer
    prompts: Mapping[str, Sequence[int]]  # by the problems' ids
    backend: Backend
    choices: Mapping[str, Choice]
    key: Key
    folder: Path
    overlap: Overlap  # of the problems with what the model was trained on
    limit: Limit | None = None
    run: Mapping[str, Any] | None = None  # see end_of_run

    def sampling(self, key: Key, batch_size: int | None = None) -> Sampling:
        """How a backend is to draw under a key."""
        size = batch_size or key.batch_size
        return Sampling(
            key.max_new_tokens,
            size,
            key.temperature,
            key.top_p,
            key.top_k,
            key.seed,
            complete=AnswerLine(partial(decode, self.tokenizer)) if key.stop == ANSWER_LINE else None,
            force=Calculator.of(self.tokenizer) if key.calculator else None,
        )

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, on_token: OnToken = ignore_token
    ) -> Iterator[tuple[int, Completion]]:
        """The answers that are wanted, as they finish."""
        prompts = [self.prompts[request.problem.id] for request in requests]
        return self.backend.generate(prompts, sampling, on_token, keys=[request.key for request in requests])


@dataclass(frozen=True, slots=True)
class Place:
    """Where to compute, and where the records go."""

    backend: Choice
    device: str
    dtype: str
    folder: Path
    together: str = AUTO  # how many problems are answered at once
    settled: str = ""  # why device, dtype and that are these, where nobody asked for them
    limit: Limit | None = None  # when it has to end


def run(config: EvalConfig, context: Context) -> int:
    """The verb."""
    refuse(config)
    shown_rules(config.rules)
    if config.slow_rules:
        require()
    terminal = context.terminal
    backend, folder = backends.resolve(config.backend), config.output_dir or Path(".")
    place = Place(backend, config.device, config.dtype, folder, config.eval_batch_size, limit=limit_of(config, context))
    pair = None
    if config.model == AUTO:
        pair = choose_pair(config.model, config.data, config.data_config, lambda asked: None)
    source = resolve_model(pair.model if pair else config.model, terminal.say, config.base_model)
    check_base(source, config.base_model, terminal.say)
    source = prompted(source, asked_prompts(config))
    reason = pair.model_choice.reason if pair else NAMED
    if source.choice.name == EMBEDDED_MODEL:
        banner(terminal, reason)
    problems = load_problems(config, source, context, pair)
    owner = run_of_model(source.found)
    if config.output_dir is None and owner is not None:
        place = replace(place, folder=owner)
    say_limits(len(problems.problems), place.limit, terminal)
    scored = _with_checks(config, open_model(config, place, source, problems, terminal), terminal)
    found = breakdown(scored.records)
    show_scores(terminal, scored.summary, found)
    _say_health(scored.records, terminal)
    made = Provenance("eval", config, context.explicit, problems.problems, owner)
    page = write_one(made, scored.summary, scored.records, found, terminal.say)
    terminal.say(f"\nrecords  {scored.summary['records']}\npage     {page}")
    if owner is not None:
        model = str(owner) if source.found == owner / "model" else source.name
        more = [] if config.data == AUTO else ["--data", config.data]
        more += as_many_as_it_reads(source.model.context)
        terminal.say(f"next     {shlex.join(['python', 'cli.py', 'compare', '--trained-model', model, *more])}")
    if source.choice.name == EMBEDDED_MODEL:
        banner(terminal, reason)
    terminal.result({**scored.summary, "breakdown": found, "page": str(page)})
    return EXIT_OK


def _say_health(records: Sequence[Mapping[str, Any]], terminal: Terminal) -> None:
    """What no healthy model's answers look like, in a line each."""
    found = vitals([completion_of(record) for record in records], [record["completion"] for record in records])
    for warning in warnings(found, updates=0):
        terminal.say(f"health   {warning}")


# --- what is asked --------------------------------------------------------------------------------------------


def refuse(config: ScoreSettings) -> None:
    """Raises UsageError for settings that would have no effect."""
    fields = type(config).model_fields
    given = [name for name in SAMPLED_ONLY if getattr(config, name) != fields[name].default]
    if given and config.temperature == 0:
        raise UsageError(
            f"{flag(given[0])} {getattr(config, given[0])} has no effect on greedy decoding, which always takes the "
            "likeliest token; add a --temperature above 0, such as --temperature 0.7"
        )
    twice = isinstance(config, EvalConfig) and (config.check_batching or config.repeat > 1)
    if config.max_time is not None and twice:
        raise UsageError(
            "--check-batching and --repeat ask more than once, and --max-time has time for one; choose one"
        )
    if config.shot_annotations != "keep" and not config.shots:
        raise UsageError(f"--shot-annotations {config.shot_annotations} is for --shots; add --shots 4")
    if isinstance(config, EvalConfig) and config.repeat > 1 and config.temperature == 0:
        raise UsageError(
            f"--repeat {config.repeat} without --temperature would ask the same and get the same each time; add "
            "--temperature 0.7 for the spread over seeds, or leave --repeat out"
        )
    if isinstance(config, EvalConfig) and config.check_batching:
        if config.eval_batch_size == "1":
            raise UsageError("--check-batching needs batches, and --eval-batch-size is 1; leave one of the two out")
        if config.num_problems == 1:
            raise UsageError("--check-batching needs batches, and one problem makes none; ask for more of them")


def limit_of(config: ScoreSettings, context: Context) -> Limit | None:
    """When it has to end by --max-time, counted from the start of the process."""
    if config.max_time is None:
        return None
    return Limit(config.max_time, parse_duration(config.max_time), context.elapsed)


def say_limits(num_problems: int, limit: Limit | None, terminal: Terminal) -> None:
    """What so few problems cannot show; with a limit of time, only afterwards is it known how few they are."""
    if limit is None:
        terminal.say(f"limits   {cannot_show(num_problems)}")


def load_problems(config: ScoreSettings, source: Source, context: Context, pair: Pair | None = None) -> Problems:
    """The asked split; `auto` is what the model was trained on, else the real test set where it can be had."""
    recorded = trained_on(source) if config.data == AUTO else None
    if recorded:
        (asked, revision), reason = recorded, "the run's own data"
        _refuse_ambiguous(config, asked.data, context)
    else:
        pair = pair or choose_pair(source.name, config.data, config.data_config, lambda asked: None)
        asked, revision, reason = config.model_copy(update={"data": pair.data}), "", pair.data_choice.reason
    reference = asked.data
    if config.shots and config.split == "test" and is_single_file(reference):
        raise UsageError(
            f"--shots takes train problems, and {reference} is a single file; "
            "give --data a folder with train.jsonl and test.jsonl"
        )
    splits = ("train", config.split) if config.shots else (config.split,)
    reading = RowOptions.of(asked, revision)
    try:
        data = load_data(reference, asked.data_config, asked.seed, context.terminal.say, splits, reading)
    except MissingSplitError as error:
        raise _no_split(config.split, reference, bool(recorded), error) from None
    for line in data.lines():
        context.terminal.say(line)
    shots = choose_shots(data.train, config.shots, config.shot_annotations)
    problems = (data.test if config.split == "test" else data.train)[: config.num_problems]
    if not problems:
        raise DataError(f"{reference} has no {config.split} problems; try another --split or --data")
    overlap = of_model(source, problems)
    if recorded and overlap.checked and config.split == "test" and not overlap.shared:
        reason = f"{reason}; it trained on the train split, and not on these"
    return Problems(problems, data.name, reason, shots)


def _no_split(split: str, reference: str, recorded: bool, error: MissingSplitError) -> DataError | UsageError:
    """In the words of this verb, which reads the test problems where nothing else is said."""
    if not recorded:
        return DataError(f"{error}; a file of problems is read whole: --data FILE")
    return UsageError(f"the run was trained on {reference}, which has no {split} problems; add --data TEST.jsonl")


def _refuse_ambiguous(config: ScoreSettings, reference: str, context: Context) -> None:
    if config.split == "test" and is_single_file(reference):
        raise UsageError(f"the run was trained on {reference}, which has no test problems; add --data TEST.jsonl")
    given = sorted({"seed", "data_config", "question_column", "answer_column", "skip_bad_rows"} & context.explicit)
    if given:
        raise UsageError(f"{flag(given[0])} does not apply to the run's own problems; add --data {reference} to use it")


def trained_on(source: Source) -> tuple[ProblemSettings, str] | None:
    """The data of the model's run, and its revision on the Hub."""
    folder = run_of_model(source.found)
    manifest = known_manifest(folder) if folder else {}
    config, name = manifest.get("config") or {}, (manifest.get("data") or {}).get("name")
    if name is None or "data_config" not in config or "seed" not in config:
        return None
    try:
        asked = ProblemSettings(data=name, **{key: config[key] for key in OF_DATA if key in config})
    except UsageError as error:
        raise DataError(f"{folder}/run.json: config: {error}; add --data to say which problems") from None
    return asked, (manifest.get("data") or {}).get("revision", "")


# --- one evaluation -------------------------------------------------------------------------------------------


def score(config: ScoreSettings, place: Place, source: Source, problems: Problems, terminal: Terminal) -> Evaluation:
    """Answer and grade; finished answers of the same key are not asked for again."""
    opened = open_model(config, place, source, problems, terminal)
    return answer(opened, terminal, opened.key)


def open_model(
    config: ScoreSettings, place: Place, source: Source, problems: Problems, terminal: Terminal
) -> LoadedModel:
    """Load the model; what it cannot be asked is refused before that."""
    check_writable(place.folder)
    tokenizer, rendering = source.model.tokenizer, source.model.rendering
    if config.stop_at_answer and rendering.thinking == "on":
        raise UsageError("--stop-at-answer would end an answer inside of its thought; leave it out, or --thinking off")
    prompts = prompt_tokens(rendering, problems.problems, problems.shots)
    check_token_ids(prompts, source.model.vocabulary)
    check_context(prompts, source.model.context, config.max_new_tokens, problems.shots.count)
    terminal.say(f"model    {source.name}: {source.choice.reason}")
    asked = counted(len(problems.problems), f"{config.split} problem")
    terminal.say(f"problems {asked} of {problems.name}: {problems.reason}")
    for note in rendering.notes():
        terminal.say(note)
    overlap = of_model(source, problems.problems)
    terminal.say(f"overlap  {overlap.line}")
    prompt_name = problems.shots.prompt_name(rendering.name)
    if config.shots:
        terminal.say(f"shots    {config.shots} of the train problems: {prompt_name}")
    if config.samples > 1:
        terminal.say(f"samples  {config.samples} of each; tests and tables by problem take the one that the vote chose")
    _refuse_no_time(place, source, problems.problems)
    longest = max(map(len, prompts)) + config.max_new_tokens
    together = choose_together(place.together, source, place.backend.name, place.device, place.dtype, longest)
    backend = backends.open(place.backend.name, source.folder, place.device, place.dtype, rendering)
    choices = {"backend": place.backend, **backend.choices, BATCH: together}
    if place.settled:
        choices |= {name: replace(choices[name], reason=place.settled) for name in ("device", "dtype", BATCH)}
    key = Key(
        model=source.model.hash,
        data=problems_hash(problems.problems),
        prompt=prompt_name,
        max_new_tokens=config.max_new_tokens,
        batch_size=int(together.name),
        backend=place.backend.name,
        device=choices["device"].name,
        dtype=choices["dtype"].name,
        code=code_hash(),
        versions=json.dumps(versions()),
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        seed=config.sample_seed,
        samples=config.samples,
        stop=ANSWER_LINE if config.stop_at_answer else STOP_RULE,
        calculator=config.calculator,
    )
    sizes = (key.batch_size, *(AT_ONCE if key.device != "cpu" else ()))  # elsewhere it depends on what else runs
    wanted = len(problems.problems) * key.samples
    if place.together == AUTO and (other := begun(key, place.folder / "logs", sizes, wanted)) and other != key:
        key = other
        choices[BATCH] = replace(together, name=str(key.batch_size), reason="as the evaluation that is there began")
    say_choices(terminal, choices)
    by_id = {problem.id: prompt for problem, prompt in zip(problems.problems, prompts, strict=True)}
    end = end_of_run(source, place.folder)
    return LoadedModel(
        config, source, problems, tokenizer, by_id, backend, choices, key, place.folder, overlap, place.limit, end
    )


def _refuse_no_time(place: Place, source: Source, problems: Sequence[Problem]) -> None:
    """Before a model is loaded that has no time to answer; where answers of it are there, they may be all it takes."""
    limit, logs = place.limit, place.folder / "logs"
    if limit and limit.left <= 0 and not answered_before(logs, source.model.hash, problems_hash(problems)):
        raise too_short(limit, min(limit.most or len(problems), len(problems)))


def answer(opened: LoadedModel, terminal: Terminal, key: Key) -> Evaluation:
    """One evaluation under a key, which may be of another seed than the model was opened for."""
    limit, problems = opened.limit, opened.problems.problems
    total = min(len(problems), limit.most or len(problems)) if limit else len(problems)
    with terminal.progress("problem" if key.samples == 1 else "answer", total * key.samples) as steps:

        def advance(done: int, right: int) -> None:
            steps.advance(f"{right} right ({percent(right / done)}), {steps.left(done)} to go", done=done)

        if limit is None:
            records, path, reused = _answered(opened, key, problems, ignore_token, advance, terminal)
        else:
            records, path, reused = _in_time(opened, key, limit, advance, terminal)
    if reused:
        terminal.say(
            f"reused   {reused} of {counted(len(records), 'record')} of the same model, problems and settings, "
            f"decoded and graded again: {path}"
        )
    summary = {"model": opened.source.name, "hash": key.model, **summarise(records, HELD_OUT)}
    summary |= {"run": opened.run}
    summary |= {"data": opened.problems.name, "split": opened.config.split, "overlap": opened.overlap.as_json()}
    summary |= {"backend": key.backend, "device": key.device, "dtype": key.dtype}
    summary |= {"eval_batch_size": str(key.batch_size)}
    summary |= {"max_new_tokens": key.max_new_tokens, "prompt": key.prompt, "stop_rule": key.stop}
    summary |= {"rendering": opened.source.model.rendering.settings(template=False)}
    summary |= {"sampling": {name: getattr(key, name) for name in ("temperature", "top_p", "top_k", "seed")}}
    summary |= {"calculator": calculated(records) if key.calculator else None}
    summary |= {"records": str(path), "reused": reused}
    if limit is not None:
        answered = {record["id"] for record in records}
        shared = of_model(opened.source, [problem for problem in problems if problem.id in answered])
        summary["overlap"] = shared.as_json()
        summary["time"] = {
            "n": summary["n"],
            "of": len(problems),
            "max_time": limit.asked,
            "seconds": limit.clock(),
        }
        terminal.say(time_line(summary["time"]))
        terminal.say(f"limits   {cannot_show(summary['n'])}")
    summary |= {"choices": {name: asdict(chosen) for name, chosen in opened.choices.items()}}
    write_json(path.parent / "summary.json", summary)
    return Evaluation(summary, voted(records), records)


def end_of_run(source: Source, folder: Path) -> dict[str, Any] | None:
    """Which update and save of the run in `folder` a model is of; None of any but what that run ended with.

    A run that goes on leaves its scores behind, and others' may lie beside them: `runs` tells them apart by this.
    Asked when the weights are there. Raises DataError where the run saved others while they were read.
    """
    run, found = run_of_model(source.found), source.found.resolve()
    manifest = known_manifest(run) if run else {}
    refuse_replaced(source)
    if run is None or run != folder.resolve() or found not in (run / "model", run / "mlx-adapter"):
        return None
    return {"update": update_of_model(manifest), "save": source.save or None}


def _answered(
    opened: LoadedModel,
    key: Key,
    problems: Sequence[Problem],
    on_token: OnToken,
    progress: Callable[[int, int], None],
    terminal: Terminal,
    before: Callable[[], None] = lambda: None,
) -> tuple[list[dict[str, Any]], Path, int]:
    """All of `problems`, as scoring.evaluate gives them; `before` is called where there are any to be answered."""

    def generate(requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        before()
        return opened.generate(requests, opened.sampling(key), on_token=on_token)

    return evaluate(
        problems, generate, opened.source.model.rendering.text, key, opened.folder / "logs", progress, terminal.say
    )


def _in_time(
    opened: LoadedModel, key: Key, limit: Limit, progress: Callable[[int, int], None], terminal: Terminal
) -> tuple[list[dict[str, Any]], Path, int]:
    """The same of as many as end in time, in the order of the data set."""
    records: list[dict[str, Any]] = []
    path, reused = Path(), 0

    def ask(asked: Sequence[Problem], check: Callable[..., None]) -> float:
        nonlocal records, path, reused
        known = len(records)
        records, path, there = _answered(opened, key, asked, check, progress, terminal, before=check)
        reused += there - known
        return (len(records) - there) / key.samples

    answer_in_time(in_random_order(opened.problems.problems), limit, ask)
    place = {problem.id: index for index, problem in enumerate(opened.problems.problems)}
    return sorted(records, key=lambda each: (place[each["id"]], each["sample"])), path, reused


def first_of(scored: Evaluation, wanted: Evaluation) -> Evaluation:
    """`scored` on the problems of `wanted` alone, which are among its own."""
    names = {record["id"] for record in wanted.records}
    kept = {key: value for key, value in scored.summary.items() if key != "held_out_templates"}
    if "time" in kept:
        kept["time"] = {**kept["time"], "n": len(names)}
    records, answers = ([each for each in rows if each["id"] in names] for rows in (scored.records, scored.answers))
    counts = {"calculator": calculated(answers)} if scored.summary["calculator"] else {}
    return Evaluation({**kept, **summarise(answers, HELD_OUT), **counts}, records, answers)


# --- beside it ------------------------------------------------------------------------------------------------


def _with_checks(config: EvalConfig, opened: LoadedModel, terminal: Terminal) -> Evaluation:
    """The evaluation, with what --slow-rules, --check-batching and --repeat add to its summary."""
    if config.check_batching and opened.key.batch_size == 1:  # auto came to that
        raise UsageError(
            f"--check-batching needs batches, and --eval-batch-size {config.eval_batch_size} came to 1 "
            f"({opened.choices[BATCH].reason}); give --eval-batch-size 2, or leave --check-batching out"
        )
    scored = answer(opened, terminal, opened.key)
    if config.slow_rules or config.rules != ALL_RULES:
        judge_by(shown_rules(config.rules), scored.answers)
        if config.slow_rules:
            terminal.say(judge_records(scored.answers))
        summary = {**scored.summary, **summarise(scored.answers, HELD_OUT)}
        scored = Evaluation(summary, voted(scored.answers), scored.answers)
    if config.check_batching:
        scored.summary["batching"] = check_batching(opened, scored.answers, terminal)
    if config.repeat > 1:
        scored.summary["repeat"] = repeat(opened, config.repeat, scored, terminal)
    write_json(Path(scored.summary["records"]).parent / "summary.json", scored.summary)
    return scored


def check_batching(opened: LoadedModel, answers: Sequence[Mapping[str, Any]], terminal: Terminal) -> dict[str, Any]:
    """The first problems answered again, one by one, against the evaluation's texts; for summary.json."""
    requests = [Request(problem, 0) for problem in opened.problems.problems[:NUM_CHECKED]]
    together = {record["id"]: completion_of(record) for record in answers if record["sample"] == 0}
    alone = dict(opened.generate(requests, opened.sampling(opened.key, batch_size=1)))
    pairs = []
    for index, request in enumerate(requests):
        name = request.problem.id
        pairs.append(AnswerPair(name, opened.prompts[name], request.key, alone[index], together[name]))
    result = compare(
        pairs, opened.backend, opened.sampling(opened.key), opened.source.model.rendering.end_ids, opened.key.dtype
    )
    terminal.say(batching_line(result))
    return result


def batching_line(result: Mapping[str, Any]) -> str:
    """One line for a person."""
    equal, of = result["equal"], counted(result["problems"], "answer")
    line = f"batching {equal} of {of} {'is' if equal == 1 else 'are'} the same tokens when answered one by one"
    if not result["places"]:
        return line
    shown = [f"{place['id']} at token {place['position']} ({place['gap']:.1e})" for place in result["places"]]
    more = f", and {len(shown) - MOST_PLACES} more" if len(shown) > MOST_PLACES else ""
    eps = f"{result['eps']:.0e} {UNITS[result['unit']]}"
    return (
        f"{line}; {result['within_eps']} part where the two tokens are within {eps}, as rounding may do, and "
        f"{result['beyond_eps']} where they are not: {', '.join(shown[:MOST_PLACES])}{more}"
    )


def repeat(opened: LoadedModel, runs: int, first: Evaluation, terminal: Terminal) -> dict[str, Any]:
    """The same evaluation `runs` times, each with the next seed; for summary.json."""
    key, scored = opened.key, [first]
    for number in range(1, runs):
        terminal.say(f"repeat   {number + 1} of {runs}, --sample-seed {key.seed + number}")
        scored.append(answer(opened, terminal, replace(key, seed=key.seed + number)))
    found = {name: asdict(spread([each.summary["rules"][name]["accuracy"] for each in scored])) for name in HEADLINE}
    rows = [
        [
            name,
            percent(each["mean"]),
            "-" if each["deviation"] is None else f"{100 * each['deviation']:.2f}",
            f"{100 * each['lowest']:.1f} to {100 * each['highest']:.1f}",
        ]
        for name, each in found.items()
    ]
    terminal.table([f"{runs} runs", "mean", "standard deviation, points", "range"], rows)
    texts = [[record["completion"] for record in each.records] for each in scored]
    changed = sum(len(set(answers)) > 1 for answers in zip(*texts, strict=True))
    return {"runs": runs, "rules": found, "texts_changed": changed, "records": [s.summary["records"] for s in scored]}
