"""What `eval` does beside one evaluation: refuse settings that cannot work, answer again one by one, repeat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from gsm8k_core.answers import HEADLINE
from gsm8k_core.config import flag
from gsm8k_core.evaluate import Draw, Key, completion_of
from gsm8k_core.model_folder import end_token_ids
from gsm8k_core.partings import EPS, Answered, compare
from gsm8k_core.score_config import EvalConfig, ScoreSettings
from gsm8k_core.stats import spread
from gsm8k_core.tracking import Terminal
from gsm8k_core.types import UsageError

if TYPE_CHECKING:
    from verbs.evaluate import Opened, Scored

NUM_CHECKED = 32  # problems that --check-batching answers again
MOST_PLACES = 8  # that are shown; summary.json has all
SAMPLED_ONLY = ("samples", "top_p", "top_k", "sample_seed")


def refuse(config: ScoreSettings) -> None:
    """Raises UsageError for settings that would have no effect."""
    fields = type(config).model_fields
    given = [name for name in SAMPLED_ONLY if getattr(config, name) != fields[name].default]
    if given and config.temperature == 0:
        raise UsageError(
            f"{flag(given[0])} {getattr(config, given[0])} has no effect on greedy decoding, which always takes the "
            "likeliest token; add a --temperature above 0, such as --temperature 0.7"
        )
    if config.shot_annotations != "keep" and not config.shots:
        raise UsageError(f"--shot-annotations {config.shot_annotations} is for --shots; add --shots 4")
    if isinstance(config, EvalConfig) and config.check_batching:
        if config.eval_batch_size == 1:
            raise UsageError("--check-batching needs batches, and --eval-batch-size is 1; leave one of the two out")
        if config.num_problems == 1:
            raise UsageError("--check-batching needs batches, and one problem makes none; ask for more of them")


def check_batching(opened: Opened, answers: Sequence[Mapping[str, Any]], terminal: Terminal) -> dict[str, Any]:
    """The first problems answered again, one by one, against the evaluation's texts; for summary.json."""
    draws = [Draw(problem, 0) for problem in opened.problems.problems[:NUM_CHECKED]]
    together = {record["id"]: completion_of(record) for record in answers if record["sample"] == 0}
    alone = dict(opened.generate(draws, opened.sampling(opened.key, batch_size=1)))
    pairs = [
        Answered(draw.problem.id, opened.prompts[draw.problem.id], draw.key, alone[index], together[draw.problem.id])
        for index, draw in enumerate(draws)
    ]
    result = compare(
        pairs,
        opened.backend.score,
        opened.sampling(opened.key),
        end_token_ids(opened.source.folder),
        EPS[opened.key.dtype],
    )
    terminal.say(batching_line(result))
    return result


def batching_line(result: Mapping[str, Any]) -> str:
    """One line for a person."""
    line = f"batching {result['equal']} of {result['problems']} answers are the same tokens when answered one by one"
    if not result["places"]:
        return line
    shown = [f"{place['id']} at token {place['position']} ({place['gap']:.1e})" for place in result["places"]]
    more = f", and {len(shown) - MOST_PLACES} more" if len(shown) > MOST_PLACES else ""
    return (
        f"{line}; {result['within_eps']} part where the two tokens are within {result['eps']:.0e} nats, as rounding "
        f"may do, and {result['beyond_eps']} where they are not: {', '.join(shown[:MOST_PLACES])}{more}"
    )


def repeat(
    opened: Opened, runs: int, first: Scored, answer: Callable[[Opened, Terminal, Key], Scored], terminal: Terminal
) -> dict[str, Any]:
    """The same evaluation `runs` times, each with the next seed (greedy: the same); for summary.json."""
    key, scored = opened.key, [first]
    for number in range(1, runs):
        changes = {"seed": key.seed + number} if key.temperature > 0 else {"repeat": number}
        terminal.say(
            f"repeat   {number + 1} of {runs}" + (f", --sample-seed {changes['seed']}" if key.temperature else "")
        )
        scored.append(answer(opened, terminal, replace(key, **changes)))
    found = {name: asdict(spread([each.summary["rules"][name]["accuracy"] for each in scored])) for name in HEADLINE}
    rows = [
        [
            name,
            f"{100 * each['mean']:.1f} %",
            "-" if each["deviation"] is None else f"{100 * each['deviation']:.2f}",
            f"{100 * each['lowest']:.1f} to {100 * each['highest']:.1f}",
        ]
        for name, each in found.items()
    ]
    terminal.table([f"{runs} runs", "mean", "standard deviation, points", "range"], rows)
    texts = [[record["completion"] for record in each.records] for each in scored]
    changed = sum(len(set(answers)) > 1 for answers in zip(*texts, strict=True))
    if key.temperature == 0:
        terminal.say(f"greedy, so the texts should be the same each time: {changed} of {len(texts[0])} are not")
    return {"runs": runs, "rules": found, "texts_changed": changed, "records": [s.summary["records"] for s in scored]}
