"""`compare`: base and trained over the same problems, the paired test, its numbers, its page and its card."""

from __future__ import annotations

import gc
import webbrowser
from dataclasses import replace
from pathlib import Path

import backends
from gsm8k_core.auto import AUTO
from gsm8k_core.config.diagnostics import RunsConfig
from gsm8k_core.config.fields import EMBEDDED_MODEL
from gsm8k_core.config.score import CompareConfig
from gsm8k_core.files import write_json
from gsm8k_core.models import hub
from gsm8k_core.models.adapter import base_of, is_adapter, recorded_base
from gsm8k_core.models.find import NoBaseError, Source, identity, prompted, resolve_model
from gsm8k_core.report.comparison import make_comparison, show_comparison
from gsm8k_core.report.words import COMPARISON
from gsm8k_core.scoring.answers import judge_by, shown_rules
from gsm8k_core.scoring.math_verify import judge_records, require
from gsm8k_core.scoring.timed import BASE_SHARE
from gsm8k_core.tracking.terminal import Terminal
from gsm8k_core.training.runs import known_manifest, run_of_model
from gsm8k_core.types import EXIT_OK, DataError, UsageError
from verbs import Context, evaluate, say_export
from verbs.demo import banner
from verbs.evaluate import (
    Evaluation,
    Place,
    Problems,
    asked_prompts,
    first_of,
    limit_of,
    load_problems,
    say_limits,
    score,
)
from verbs.overlap import of_model
from verbs.results import Provenance, one_a_problem, write_both


def run(config: CompareConfig, context: Context) -> int:
    """The verb."""
    evaluate.refuse(config)
    terminal = context.terminal
    if not config.trained_model:
        raise UsageError("compare needs the trained model; add --trained-model RUN (python cli.py runs lists them)")
    shown_rules(config.rules)
    if config.slow_rules:
        require()
    backend = backends.resolve(config.backend)
    trained = _trained(config, terminal)
    base = _base(config, trained.found, terminal)
    if base.choice.name == EMBEDDED_MODEL:
        banner(terminal)
    trained = prompted(trained, asked_prompts(config))
    base = prompted(base, trained.model.rendering.settled)  # both are asked alike
    problems = load_problems(config, trained, context)
    limit = limit_of(config, context)
    say_limits(len(problems.problems), limit, terminal)
    owner = run_of_model(trained.found)
    folder = config.output_dir or owner or Path(".")
    share = limit.share(BASE_SHARE) if limit else None
    place = Place(backend, config.device, config.dtype, folder, config.eval_batch_size, limit=share)
    base_scored = _scored(config, place, base, problems, terminal)
    gc.collect()  # two models need not be in memory at once
    # `auto` was settled by the base: both are scored on the same device in the same precision, as many at once.
    as_base = {name: base_scored.summary[name] for name in ("device", "dtype")}
    place = replace(place, **as_base, together=base_scored.summary["eval_batch_size"], settled="as for the base")
    if limit:
        place = replace(place, limit=replace(limit, most=base_scored.summary["n"]))
    trained_scored = _scored(config, place, trained, problems, terminal)
    if limit and len(trained_scored.records) < len(base_scored.records):
        base_scored = one_answer(first_of(base_scored, trained_scored))
        names = {record["id"] for record in trained_scored.records}
        answered = [problem for problem in problems.problems if problem.id in names]
        base_scored.summary["overlap"] = of_model(base, answered).as_json()
    if base_scored.summary["hash"] == trained_scored.summary["hash"]:
        terminal.say("note     both are the same model, file by file: there is nothing to compare")
    if base.model.rendering.template != trained.model.rendering.template:
        terminal.say("note     the two have different chat templates: each was asked with its own")
    made = Provenance("compare", config, context.explicit, problems.problems, owner)
    page = _finish(made, config.output_dir or _results(owner, trained.found), base_scored, trained_scored, terminal)
    if config.open_:
        _open(page, terminal)
    if base.choice.name == EMBEDDED_MODEL:
        banner(terminal)
    return EXIT_OK


def _results(owner: Path | None, found: Path) -> Path:
    """Where the files go: best/ and checkpoints have a folder of their own, and do not replace the run's."""
    if owner is None or (found.resolve().parent == owner and found.name in ("model", "mlx-adapter")):
        return owner or Path(".")
    folder = owner / "compare" / (found.parent.name if found.name == "model" else found.name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _scored(config: CompareConfig, place: Place, source: Source, problems: Problems, terminal: Terminal) -> Evaluation:
    """With one answer a problem, and under every rule that was asked for."""
    scored = score(config, place, source, problems, terminal)
    judge_by(shown_rules(config.rules), scored.records)
    if config.slow_rules:
        terminal.say(judge_records(scored.records))
    return one_answer(scored)


def one_answer(scored: Evaluation) -> Evaluation:
    """Counted over one answer a problem."""
    return replace(scored, summary=one_a_problem(scored.summary, scored.records))


def _finish(made: Provenance, folder: Path, base: Evaluation, trained: Evaluation, terminal: Terminal) -> Path:
    """The numbers first: whatever happens to the page, they are there."""
    comparison = make_comparison(base.summary, trained.summary, base.records, trained.records)
    write_json(folder / COMPARISON, comparison)
    show_comparison(terminal, comparison)
    page, card = write_both(made, folder, comparison, (base.records, trained.records), terminal.say)
    terminal.say(f"\nwritten  {folder / COMPARISON}\npage     {page}\ncard     {card}")
    files = {"file": str(folder / COMPARISON), "page": str(page), "card": str(card)}
    take = {"export": say_export(made.run, terminal)} if made.run else {}
    terminal.result({**comparison, **files, **take})
    return page


def _open(page: Path, terminal: Terminal) -> None:
    """In the browser of this machine, where there is one."""
    if not webbrowser.open(page.resolve().as_uri()):
        terminal.say(f"there is no browser here; open {page} in one")


def _resolve(flag: str, reference: str, terminal: Terminal) -> Source:
    """The model; where there is none, an error in the words of this verb, which has no --model."""
    advice = f"give a run or model folder with {flag} (python cli.py runs lists your runs)"
    missing = reference != EMBEDDED_MODEL and hub.local_path(reference) is None
    runs = str(RunsConfig().folder)
    if missing and "/" in reference and (Path(reference).parent.is_dir() or reference.startswith(f"{runs}/")):
        raise DataError(f"{flag} {reference}: there is no such folder; {advice}")
    try:
        return resolve_model(reference, terminal.say)
    except NoBaseError:
        raise
    except DataError as error:
        if not missing:
            raise
        raise DataError(f"{flag}: {str(error).partition('; ')[0]}; {advice}") from error


def _trained(config: CompareConfig, terminal: Terminal) -> Source:
    """The trained model; an adapter whose own base is not here is opened on the one that it is compared with."""
    try:
        return _resolve("--trained-model", config.trained_model, terminal)
    except NoBaseError:
        if config.base_model == AUTO:
            raise
        return resolve_model(config.trained_model, terminal.say, config.base_model)


def _base(config: CompareConfig, trained: Path, terminal: Terminal) -> Source:
    """The base that was named, or the one that the trained model's run began with, unchanged."""
    if config.base_model != AUTO:
        return _resolve("--base-model", config.base_model, terminal)
    folder = run_of_model(trained)
    recorded = (known_manifest(folder) if folder else {}).get("model") or {}
    name = recorded.get("name")
    if folder is None and is_adapter(trained):
        return _resolve(f"the base of {config.trained_model}", base_of(trained), terminal)
    if folder is None or not isinstance(name, str):
        raise UsageError(f"{config.trained_model} is in no run folder that names its base; add --base-model MODEL")
    source = resolve_model(name, terminal.say, recorded_base(folder / "model"))
    if identity(source) != recorded.get("hash"):
        raise DataError(
            f"{name} is not what the run began with any more; add --base-model {name} to take it all the same"
        )
    return source
