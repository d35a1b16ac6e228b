"""`compare`: base and trained over the same problems, the paired test, its numbers, its page and its card.

Several trained models stand on one page: each is held against the base, and each p is corrected for their number.
"""

from __future__ import annotations

import gc
import shlex
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import backends
from gsm8k_core.command import typed
from gsm8k_core.config.fields import AUTO, EMBEDDED_MODEL
from gsm8k_core.config.score import CompareConfig
from gsm8k_core.files import make_folder, read_json, write_json
from gsm8k_core.models.find import Source
from gsm8k_core.report.comparison import make_comparison, make_comparisons, show_comparison, show_comparisons
from gsm8k_core.report.words import COMPARISON, headline, pairs
from gsm8k_core.scoring.answers import judge_by, shown_rules
from gsm8k_core.scoring.math_verify import judge_records, require
from gsm8k_core.scoring.timed import Limit
from gsm8k_core.tracking.terminal import Terminal
from gsm8k_core.training.runs import MANIFEST, run_of_model
from gsm8k_core.types import EXIT_OK, DataError, StorageError, UsageError
from verbs import Context, as_many_as_it_reads, evaluate, say_export
from verbs.compared import find_models, of_recorded_data
from verbs.demo import banner
from verbs.evaluate import Evaluation, Place, Problems, first_of, limit_of, load_problems, say_limits, score
from verbs.overlap import of_model
from verbs.results import CARD, PAGE, Provenance, one_a_problem, write_both, write_several

SEVERAL = Path("comparison")  # where the files of several models go


def run(config: CompareConfig, context: Context) -> int:
    """The verb."""
    evaluate.refuse(config)
    terminal = context.terminal
    shown_rules(config.rules)
    if config.slow_rules:
        require()
    backend = backends.resolve(config.backend)
    base, trained = find_models(config, terminal)
    owners = [run_of_model(each.found) for each in trained]
    folder = config.output_dir or (SEVERAL if len(trained) > 1 else _results(owners[0], trained[0].found))
    _refuse_other_run(folder, trained, owners)
    if base.choice.name == EMBEDDED_MODEL:
        banner(terminal)
    problems = load_problems(config, of_recorded_data(trained), context)
    limit = limit_of(config, context)
    say_limits(len(problems.problems), limit, terminal)
    place = Place(backend, config.device, config.dtype, config.output_dir or Path("."), config.eval_batch_size)
    scored = _score_all(config, place, [base, *trained], problems, limit, terminal)
    _notes(base, trained, scored, terminal)
    owner = owners[0] if len(trained) == 1 else None
    made = Provenance("compare", config, context.explicit, problems.problems, owner)
    if len(trained) == 1:
        page = _finish(made, folder, *scored, trained[0], terminal)
    else:
        page = _finish_several(made, folder, scored, owners, terminal)
    if config.open_:
        _open(page, terminal)
    if base.choice.name == EMBEDDED_MODEL:
        banner(terminal)
    return EXIT_OK


def _results(owner: Path | None, found: Path) -> Path:
    """Where the files go: best/ and checkpoints have a folder of their own, and do not replace the run's."""
    if owner is None or (found.resolve().parent == owner and found.name in ("model", "mlx-adapter")):
        return owner or Path(".")
    return owner / "compare" / (found.parent.name if found.name == "model" else found.name)


def _refuse_other_run(folder: Path, trained: Sequence[Source], owners: Sequence[Path | None]) -> None:
    """Raises UsageError where the files would be taken for those of a run's own model, and replace them."""
    if not (folder / MANIFEST).is_file():
        return
    if len(trained) == 1 and _results(owners[0], trained[0].found).resolve() == folder.resolve() == owners[0]:
        return
    whose = trained[0].name if len(trained) == 1 else "several models"
    raise UsageError(
        f"{folder} is a run's folder, and keeps the comparison, page and card of its own model/; those of {whose} "
        "need another --output-dir"
    )


def _score_all(
    config: CompareConfig,
    place: Place,
    sources: Sequence[Source],
    problems: Problems,
    limit: Limit | None,
    terminal: Terminal,
) -> list[Evaluation]:
    """The base and the trained models in their order, each over the same problems.

    With a limit, each has its share of what time is left, and is asked what those before it answered; at the end all
    are cut to what the last one came to.
    """
    found: list[Evaluation] = []
    for number, source in enumerate(sources):
        left = len(sources) - number
        share = limit and limit.share(1 / left)
        if share and found:
            share = replace(share, most=found[-1].summary["n"])
        # The base's records lie with the first run's: alone with the base, that one finds them there.
        owner = run_of_model(sources[max(number, 1)].found)
        here = replace(place, folder=config.output_dir or owner or Path("."), limit=share)
        found.append(_scored(config, here, source, problems, terminal))
        if number == 0:
            # `auto` was settled by the base: all are scored on the same device in the same precision, as many at once.
            first = found[0].summary
            place = replace(place, device=first["device"], dtype=first["dtype"], together=first["eval_batch_size"])
            place = replace(place, settled="as for the base")
        gc.collect()  # two models need not be in memory at once
    return [_cut(each, found[-1], source, problems) for each, source in zip(found, sources, strict=True)]


def _cut(scored: Evaluation, last: Evaluation, source: Source, problems: Problems) -> Evaluation:
    """`scored` on what the last one answered in time."""
    if len(scored.records) == len(last.records):
        return scored
    names = {record["id"] for record in last.records}
    cut = one_answer(first_of(scored, last))
    answered = [problem for problem in problems.problems if problem.id in names]
    cut.summary["overlap"] = of_model(source, answered).as_json()
    return cut


def _notes(base: Source, trained: Sequence[Source], scored: Sequence[Evaluation], terminal: Terminal) -> None:
    """What makes a comparison less than it seems."""
    alone = len(trained) == 1
    for each, one in zip(trained, scored[1:], strict=True):
        both = "both are" if alone else f"the base and {each.name} are"
        if scored[0].summary["hash"] == one.summary["hash"]:
            terminal.say(f"note     {both} the same model, file by file: there is nothing to compare")
        if base.model.rendering.template != each.model.rendering.template:
            two = "the two" if alone else f"the base and {each.name}"
            terminal.say(f"note     {two} have different chat templates: each was asked with its own")


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


def _finish(
    made: Provenance, folder: Path, base: Evaluation, trained: Evaluation, source: Source, terminal: Terminal
) -> Path:
    """The numbers first: whatever happens to the page, they are there."""
    make_folder(folder, parents=True)
    comparison = make_comparison(base.summary, trained.summary, base.records, trained.records)
    write_json(folder / COMPARISON, comparison)
    show_comparison(terminal, comparison)
    page, card = write_both(made, folder, comparison, (base.records, trained.records), terminal.say)
    terminal.say(f"\nwritten  {folder / COMPARISON}\npage     {page}\ncard     {card}")
    files = {"file": str(folder / COMPARISON), "page": str(page), "card": str(card)}
    few = as_many_as_it_reads(source.model.context)
    take = {"export": say_export(source.name, few, terminal, source.on)} if made.run else {}
    terminal.result({**comparison, **files, **take})
    return page


def _finish_several(
    made: Provenance, folder: Path, scored: Sequence[Evaluation], owners: Sequence[Path | None], terminal: Terminal
) -> Path:
    """The same of several trained models, in a folder of its own; a card is one model's, and none is written."""
    base, *trained = scored
    summaries, records = [each.summary for each in trained], [each.records for each in trained]
    comparison = make_comparisons(base.summary, summaries, base.records, records)
    make_folder(folder, parents=True)
    _remove_card(folder, terminal)
    write_json(folder / COMPARISON, comparison)
    show_comparisons(terminal, comparison)
    for owner, each in zip(owners, pairs(comparison), strict=True):
        if owner is not None:
            _say_other_card(owner, each, made.config.data, terminal)
    page = folder / PAGE
    write_several(made, page, comparison, [base.records, *records], owners, terminal.say)
    terminal.say(f"\nwritten  {folder / COMPARISON}\npage     {page}")
    terminal.result({**comparison, "file": str(folder / COMPARISON), "page": str(page)})
    return page


def _remove_card(folder: Path, terminal: Terminal) -> None:
    """The card of a comparison that is replaced goes with it; one that lies there alone is somebody's."""
    if not ((folder / COMPARISON).is_file() and (folder / CARD).is_file()):
        return
    try:
        (folder / CARD).unlink()
    except OSError as error:
        raise StorageError(f"{folder / CARD} cannot be removed ({error.strerror}); remove it") from error
    terminal.say(f"removed  {folder / CARD}, which was of the comparison that is replaced")


def _say_other_card(owner: Path, pair: Mapping[str, Any], data: str, terminal: Terminal) -> None:
    """That the card of a run, from when it was compared alone, says something else than this comparison."""
    try:
        found = read_json(owner / COMPARISON)
        same = found["trained"]["hash"] == pair["trained"]["hash"]
        said, title = headline(found).better, headline(found).title
    except (KeyError, TypeError, ValueError, AttributeError, DataError):
        return  # none, or none that can be read
    if (owner / CARD).is_file() and not (same and said == headline(pair).better):
        what = f"says otherwise, of an earlier comparison: {title}" if same else "is of weights that it no longer has"
        more = [] if data == AUTO else ["--data", data]
        again = shlex.join([*typed().split(), "compare", "--trained-model", str(pair["trained"]["model"]), *more])
        terminal.say(f"note     {owner / CARD} {what}; {again} writes it anew")


def _open(page: Path, terminal: Terminal) -> None:
    """In the browser of this machine, where there is one."""
    if not webbrowser.open(page.resolve().as_uri()):
        terminal.say(f"there is no browser here; open {page} in one")
