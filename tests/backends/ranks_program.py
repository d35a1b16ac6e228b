"""What each rank of the equality tests runs, under torchrun or mlx.launch: every way, one after the other.

python program.py FOLDER WAYS   with tiny/ in it; rank 0 writes found.json there. WAYS is JSON: cases, by the way
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import backends
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.parity import tiny
from gsm8k_core.parity.bench import settings
from gsm8k_core.problems.batching import make_updates, over_ranks
from gsm8k_core.ranks import leader, messages
from gsm8k_core.ranks.follower import follow
from gsm8k_core.ranks.leader import Ranks
from gsm8k_core.ranks.meeting import meet
from gsm8k_core.ranks.wire import end_process
from gsm8k_core.ranks.world import world_of
from gsm8k_core.rollouts.objective import Objective
from gsm8k_core.rollouts.policy import Policy, PolicySettings
from gsm8k_core.rollouts.record import Rollout
from gsm8k_core.rollouts.wave import Ask
from gsm8k_core.training import checkpoints
from gsm8k_core.types import Completion, OnToken, Orders, Problem, Sampling, Totals, TrainState, Update
from tests.launched import FSDP

whole_completion = messages.completion
RATE, TOKENS = 1e-3, 96
ROWS, SIZE, PASSES = 22, 7, 2  # 7 + 7 + 7 + 1 rows a pass: the last update has fewer rows than there are ranks
STARTED = (3, 9)  # a token whose rows become those of another
HALF = 4  # updates before a run changes hands
CASES: dict[str, dict[str, Any]] = {"full": {}, "lora": {}, "dropout": {"method": "lora", "lora_dropout": 0.2}}


def config_of(case: str) -> TrainConfig:
    """The settings of a case."""
    changes = {"micro_batch_tokens": str(TOKENS), **CASES[case]}
    return settings(changes.pop("method", case), **changes)


def updates() -> list[Update]:
    """Eight of uneven rows, the last of each pass of one row."""
    rows = tiny.make_rows(ROWS)
    return list(make_updates(rows, update_size=SIZE, num_epochs=PASSES, seed=0, max_tokens=TOKENS))


class Watch:
    """A pilot whose rate changes with each update; keeps losses and counts, and in `keep` a checkpoint after HALF."""

    def __init__(self, keep: Path | None) -> None:
        self.stats: list[list[float]] = []
        self._keep = keep

    def rate(self, update: int) -> float:
        return RATE / (1 + len(self.stats) / 10)  # as a plan that is made anew after each

    def after(self, stats: Any, live: Any) -> Orders:
        self.stats.append([stats.loss, stats.num_targets, stats.num_tokens, stats.grad_norm, stats.rate])
        if stats.update == HALF and self._keep is not None:
            checkpoints.write(self._keep, live, update=HALF, elapsed=0.0, events=[], losses=[], facts={})
        return Orders()


def train(
    backend: Any, case: str, part: Iterable[Update], resume: TrainState | None = None, keep: Path | None = None
) -> Watch:
    """One training of a case."""
    pilot, done = Watch(keep), resume.step if resume else 0
    pilot.stats = [[]] * done
    backend.train(part, config_of(case), pilot, resume)
    pilot.stats = pilot.stats[done:]
    return pilot


def prompts() -> list[list[int]]:
    return [list(row.tokens[: row.num_prompt]) for row in tiny.make_rows(ROWS)]


def texts(backend: Any) -> dict[str, list[int]]:
    """Answers, by the prompt's place."""
    found = backend.generate(prompts(), Sampling(64, 4))
    return {str(place): list(completion.tokens) for place, completion in sorted(found)}


def own_answers(backend: Any) -> int:
    """Of how many prompts rank 0 writes the answer itself, where all ranks answer."""
    alone, asked = backend._backend.generate, []

    def generate(prompts: Sequence[Sequence[int]], *rest: Any) -> Any:
        asked.extend(prompts)
        return alone(prompts, *rest)

    backend._backend.generate = generate
    texts(backend)
    return len(asked)


def parts(backend: Any) -> dict[str, float]:
    """Of the bytes of all ranks' weights and moments, each counted once, those that rank 0 holds. torch's alone."""
    from backends.torch.group import local  # here, not above: MLX's ranks have no torch

    trained = list(backend._trained.values())
    moments = [state[which] for state in backend._optimizer.state.values() for which in ("exp_avg", "exp_avg_sq")]
    frozen = [parameter for parameter in backend._model.parameters() if not parameter.requires_grad]

    def held(tensors: Sequence[Any]) -> float:
        return sum(local(each).nbytes for each in tensors) / max(sum(each.numel() * 4 for each in tensors), 1)

    assert len(moments) == 2 * len(trained)
    return {"trained": held([*trained, *moments]), "frozen": held(frozen)}


# --- a recipe that samples by the weights that are trained ----------------------------------------------------------


class Forced:
    """A Sampling.force that every rank makes for itself: behind every third kind of token two others."""

    @classmethod
    def of(cls, tokenizer: Any) -> Forced:
        return cls()

    def __call__(self, written: Sequence[int]) -> Sequence[int]:
        return (8, 10) if written[-1] % 3 == 0 else ()


PROBLEMS = {f"train-{place}": Problem(f"train-{place}", "", "#### 5", "5") for place in range(ROWS)}
SAMPLING = Sampling(16, 8, temperature=1.0, force=Forced())
POLICY = PolicySettings(4, 4, 2, "punish", Objective(kl=0.1), TOKENS, 0)  # two updates of each rollout
ASKED = 4  # updates


def policy(backend: Any, total: int = ASKED) -> dict[str, Any]:
    """Updates of `--recipe grpo`, whose every second answer is rewarded: what was in them, their losses and figures."""
    asked, parts = dict(zip(PROBLEMS, prompts(), strict=True)), list[Any]()

    def answer(block: Sequence[Ask], on_token: OnToken) -> list[Completion]:
        given = [asked[ask.id] for ask in block], SAMPLING, on_token, [ask.key for ask in block]
        found = dict(backend.generate(*given))
        return [found[place] for place in range(len(block))]

    def reward(answer: Rollout) -> float:
        return float(sum(answer.completion.ids) % 2)

    made = Policy(POLICY, PROBLEMS, asked, answer, backend.score, str, reward, backend.score_first)

    def updates() -> Iterator[Update]:
        for update in made.updates(total):
            batches = update.micro_batches
            parts.append([[list(batch.rows), batch.tokens.tolist(), batch.weights.tolist()] for batch in batches])  # type: ignore[union-attr]
            yield update

    stats = train(backend, "lora", updates()).stats
    return {"stats": stats, "parts": parts, "figures": [each.as_json() for each in made.history]}


def without_forced(values: Sequence[Any]) -> Completion:
    """The control: an answer that lost on its way which of its tokens the model never chose."""
    return replace(whole_completion(values), forced=())


def mean_of_means(update: Update, size: int, max_tokens: int) -> list[Update]:
    """The control: each rank divides by its own targets, and the ranks' means are averaged."""
    shares = over_ranks(update, size, max_tokens)
    own = [sum(batch.num_targets for batch in share.micro_batches) for share in shares]
    tokens = update.num_tokens
    return [replace(each, totals=Totals(max(num, 1) * size, tokens)) for each, num in zip(shares, own, strict=True)]


def lead(ranks: Ranks, folder: Path, way: str, cases: Sequence[str]) -> dict[str, Any]:
    """Rank 0: every case, and what it found. `way` begins with the backend's name."""
    found, name = dict[str, Any](), way.split()[0]
    for case in cases:
        backend = backends.open(name, folder / "tiny", "cpu", "float32")
        found[case] = train(backend, case, updates(), keep=folder / f"{way} together {case}").stats
        found[f"{case} texts"] = texts(backend)
        if name == "torch":
            found[f"{case} parts"] = parts(backend._backend)
        backend.close()
    for case in cases:
        kept = checkpoints.newest(folder / f"{name} alone {case}", print)
        assert kept is not None
        backend = backends.open(name, folder / "tiny", "cpu", "float32")
        found[f"{case} resumed"] = train(backend, case, updates()[HALF:], kept.state()).stats
        backend.close()
    backend = backends.open(name, folder / "tiny", "cpu", "float32")
    found["policy"] = policy(backend)
    backend.close()
    if not ranks.group.sharded:
        with patch.object(messages, "completion", without_forced):
            backend = backends.open(name, folder / "tiny", "cpu", "float32")
            found["policy control"] = policy(backend, total=1)
            backend.close()
    backend = backends.open(name, folder / "tiny", "cpu", "float32")
    backend.start_token(*STARTED)
    backend.save(folder / f"{way} together started")
    found["own"] = own_answers(backend)
    with patch.object(leader, "over_ranks", mean_of_means):
        found["control"] = train(backend, "full", updates()[:HALF]).stats
    backend.close()
    return found


def spread() -> None:
    """From now on the ranks are those of FSDP, and meet at another port: torchrun's store knows them as they were."""
    from torch.distributed import destroy_process_group

    destroy_process_group()
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE")
    os.environ |= {**FSDP, "MASTER_PORT": str(int(os.environ["MASTER_PORT"]) + 1)}


def go(folder: Path, way: str, cases: Sequence[str]) -> dict[str, Any]:
    """One way, on this rank; what rank 0 found."""
    world = world_of(os.environ)
    assert world is not None
    backends.resolve(world.engine)
    backends.keep_to_one()
    group = backends.join(world, "cpu", 50.0)
    lines = meet(world, group, {"program": "equality"}, lambda what: end_process(what, 8))
    if not world.leads:
        if code := follow(lines[0], group, backends.open):
            sys.exit(code)
        return {}
    ranks = Ranks(group, lines, world.launcher)
    backends.share(ranks.open)
    found = lead(ranks, folder, way, cases)
    for line in lines:
        line.close()
    return found


def main() -> None:
    folder, ways = Path(sys.argv[1]), json.loads(sys.argv[2])
    messages.MADE = {**messages.MADE, "force": (Forced, Forced.of)}
    found = {}
    for way, cases in ways.items():
        if way.endswith("FSDP"):
            spread()
        found[way] = go(folder, way, cases)
        if found[way]:
            (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
