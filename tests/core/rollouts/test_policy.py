"""The stream of GRPO's updates with scripted weights: what is asked, drawn, dropped, weighed and kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gsm8k_core.rollouts import policy as policy_of
from gsm8k_core.rollouts.group import read_sampled
from gsm8k_core.rollouts.objective import Objective
from gsm8k_core.rollouts.policy import Policy, PolicySettings
from gsm8k_core.rollouts.record import Rollout
from gsm8k_core.rollouts.watch import STOP_CUT, STOP_ENTROPY, WINDOW, Figures, reason_to_end
from gsm8k_core.rollouts.wave import Ask
from gsm8k_core.types import IGNORE_INDEX, Batch, Completion, DataError, OnToken, Update
from tests.core.rollouts.script import END, RIGHT, WRONG, WRONG_STEP, decode, encode, problem

PROBLEMS = {name: problem(name) for name in (f"train-{number}" for number in range(12))}
PROMPTS = {name: encode(f"{name}?") for name in PROBLEMS}
SETTINGS = PolicySettings(3, 4, 1, "mask", Objective(), 256, 0)
LONG = "2 + 3 = 5 and 2 + 3 = 5 and"  # cut


class Weights:
    """Answers as its script says; `shift` is added to all its log-probabilities."""

    def __init__(self, script: Callable[[Ask], str], forced: Sequence[int] = ()) -> None:
        self.script, self.forced, self.shift = script, tuple(forced), 0.0
        self.asked: list[list[Ask]] = []
        self.scored: list[tuple[str, ...]] = []

    def answer(self, block: Sequence[Ask], on_token: OnToken) -> list[Completion]:
        self.asked.append(list(block))
        return [self._completion(self.script(ask), index, on_token) for index, ask in enumerate(block)]

    def _completion(self, text: str, index: int, on_token: OnToken) -> Completion:
        for token in encode(text):
            on_token(index, token)
        cut = text == LONG
        return Completion(encode(text), "length" if cut else "stop", None if cut else END, self.forced)

    def score(self, batch: Batch) -> Any:
        self.scored.append(batch.rows)
        return -(batch.tokens[:, 1:] % 7 + 1).astype(np.float32) / 8 + np.float32(self.shift)


def mixed(ask: Ask) -> str:
    """Each second problem has one right answer of four, or of two right ones; the others none."""
    number = int(ask.id.removeprefix("train-"))
    return RIGHT if number % 2 == 0 and ask.sample % 4 <= number % 4 else WRONG


def make(weights: Weights, settings: PolicySettings = SETTINGS, **more: Any) -> Policy:
    reward = more.pop("reward", lambda answer: float(answer.verified("steps")))
    return Policy(settings, PROBLEMS, PROMPTS, weights.answer, weights.score, decode, reward, **more)


def rows_of(update: Update) -> Iterator[tuple[str, Any, Any, Any]]:
    """(id, tokens, labels, weights) of each row."""
    for batch in update.micro_batches:
        assert batch.weights is not None
        yield from zip(batch.rows, batch.tokens, batch.labels, batch.weights, strict=True)


@pytest.fixture(autouse=True)
def few_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_of, "ENOUGH_MIXED", 2)


def test_problems_are_asked_until_enough_groups_are_mixed() -> None:
    weights = Weights(mixed)
    found = list(make(weights).updates(3))
    assert [update.number for update in found] == [1, 2, 3]
    for number, update in enumerate(found):
        kept = {name.split("/")[0] for name, *_ in rows_of(update)}
        assert len(kept) >= 2
        assert all(int(name.removeprefix("train-")) % 2 == 0 for name in kept)
        assert {name.rsplit("-", 1)[1] for name in update.rows} == {str(4 * number + k) for k in range(4)}
    for block in weights.asked:
        assert len(block) == len(set(block)) == 3 * 4
        assert len({ask.key for ask in block}) == len(block)
    assert len({ask for block in weights.asked for ask in block}) == sum(map(len, weights.asked))  # none draws twice


@pytest.mark.parametrize(("prompts", "mixed", "blocks"), [(1, 1, 1), (3, 2, 1), (3, 1, 4), (4, 2, 1), (4, 1, 3)])
def test_half_of_the_problems_are_enough_where_that_is_fewer(
    prompts: int, mixed: int, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first so many problems have right and wrong answers, the others wrong ones."""
    monkeypatch.setattr(policy_of, "ENOUGH_MIXED", 8)
    seen: dict[str, int] = {}

    def answer(ask: Ask) -> str:
        return RIGHT if seen.setdefault(ask.id, len(seen)) < mixed and ask.sample % 2 else WRONG

    weights = Weights(answer)
    assert len(list(make(weights, replace(SETTINGS, prompts=prompts)).updates(1))) == 1
    assert len(weights.asked) == blocks


def test_at_most_four_times_as_many_are_asked_and_an_update_of_nothing_learns_nothing() -> None:
    weights = Weights(lambda ask: WRONG)
    policy = make(weights)
    (update,) = policy.updates(1)
    assert len(weights.asked) == 4
    assert len(update.rows) == 1
    assert update.num_targets > 0
    assert all((row[3] == 0).all() for row in rows_of(update))
    assert (policy.history[0].asked, policy.history[0].mixed) == (12, 0)


def test_weights_are_advantages_over_all_targets_of_the_mixed_groups() -> None:
    policy = make(Weights(mixed))
    (update,) = policy.updates(1)
    sampled = policy.sampled
    assert sampled is not None
    sums = 0.0
    for name, tokens, labels, weights in rows_of(update):
        group = next(group for group in sampled.mixed if group.problem == name.split("/")[0])
        place = int(name.rsplit("-", 1)[1]) % 4
        targets = labels != IGNORE_INDEX
        assert weights[targets] == pytest.approx([group.advantages[place]] * targets.sum())
        assert (weights[~targets] == 0).all()
        drawn = (*group.answers[place].completion.tokens, END)
        assert tuple(labels[targets]) == drawn  # the end token is trained
        assert tuple(tokens[: len(PROMPTS[group.problem])]) == PROMPTS[group.problem]
        sums += abs(group.advantages[place])
    assert sums > 0


def test_no_group_that_is_all_alike_is_in_an_update() -> None:
    policy = make(Weights(mixed))
    (update,) = policy.updates(1)
    assert policy.sampled is not None
    alike = {group.problem for group in policy.sampled.groups if not group.mixed}
    assert alike
    assert not alike & {name.split("/")[0] for name in update.rows}


def cut_or_right(ask: Ask) -> str:
    return (RIGHT, LONG, WRONG, WRONG_STEP)[ask.sample % 4]


@pytest.mark.parametrize(("overlong", "rows"), [("mask", 3), ("punish", 4)])
def test_an_answer_that_was_cut_counts_in_the_mean_and_is_masked_or_punished(overlong: Any, rows: int) -> None:
    policy = make(Weights(cut_or_right), replace(SETTINGS, overlong=overlong))
    (update,) = policy.updates(1)
    assert len(update.rows) == 3 * rows
    assert policy.history[0].cut == 0.25
    drawn = sum(len(text) + (text != LONG) for text in (RIGHT, LONG, WRONG, WRONG_STEP)) * 3
    for _, _, labels, weights in rows_of(update):
        targets = labels != IGNORE_INDEX
        right = "5\n#### 5" in decode(labels[targets][:-1]) and "= 6" not in decode(labels[targets][:-1])
        expected = (0.75 if right else -0.25) * update.num_targets / drawn
        assert weights[targets] == pytest.approx([expected] * targets.sum())


def test_forced_tokens_are_read_and_never_trained() -> None:
    (update,) = make(Weights(mixed, forced=(2, 3))).updates(1)
    for name, tokens, labels, weights in rows_of(update):
        start = len(PROMPTS[name.split("/")[0]])
        assert tokens[start + 2] > 0
        assert (labels[[start + 2, start + 3]] == IGNORE_INDEX).all()
        assert (weights[[start + 2, start + 3]] == 0).all()


def test_what_is_drawn_is_a_function_of_seed_update_and_weights() -> None:
    whole = make(Weights(mixed))
    first = [{row[0]: row[3].tolist() for row in rows_of(update)} for update in whole.updates(4)]
    later = make(Weights(mixed), history=whole.history[:2])
    again = [{row[0]: row[3].tolist() for row in rows_of(update)} for update in later.updates(4)]
    assert again == first[2:]
    assert later.history == whole.history
    other = next(make(Weights(mixed), replace(SETTINGS, seed=1)).updates(1))
    assert set(other.rows) != set(first[0])


# --- several updates on one rollout -------------------------------------------------------------------------------

REUSED = replace(SETTINGS, per_rollout=3)


def test_later_updates_of_a_rollout_weigh_by_the_ratio_and_clip() -> None:
    weights = Weights(mixed)
    policy, found = make(weights, REUSED), []
    for update in policy.updates(3):
        found.append({row[0]: row[3] for row in rows_of(update)})
        weights.shift += 0.2  # e ** .2 = 1.22, then e ** .4 = 1.49
    assert len(weights.asked) == len({ask for block in weights.asked for ask in block}) / 12
    assert all(set(each) == set(found[0]) for each in found)
    for name, first in found[0].items():
        assert found[1][name] == pytest.approx(first * np.exp(0.2), rel=1e-5)
        clipped = np.where(first > 0, 0.0, first * np.exp(0.4))  # up and up: those that are pushed down still count
        assert found[2][name] == pytest.approx(clipped, rel=1e-5)
    assert [each.clipped > 0 for each in policy.history] == [False, False, True]
    assert [each.asked > 0 for each in policy.history] == [True, False, False]


@pytest.mark.parametrize("stopped", [1, 2, 3])
def test_a_checkpoint_between_two_updates_keeps_the_rollout(stopped: int) -> None:
    def stream(policy: Policy, weights: Weights) -> list[dict[str, list[float]]]:
        found = []
        for update in policy.updates(5):
            found.append({row[0]: row[3].tolist() for row in rows_of(update)})
            weights.shift = 0.1 * update.number
        return found

    weights = Weights(mixed)
    whole = make(weights, REUSED)
    first, kept = [], {}
    for update in whole.updates(5):
        first.append({row[0]: row[3].tolist() for row in rows_of(update)})
        weights.shift = 0.1 * update.number
        kept[update.number] = json.loads(json.dumps(whole.kept(update.number)))
    assert (kept[stopped]["rollout"] is None) == (stopped == 3)
    weights = Weights(mixed)
    weights.shift = 0.1 * stopped
    later = make(weights, REUSED, history=[Figures.from_json(each) for each in kept[stopped]["history"]])
    if kept[stopped]["rollout"]:
        later.sampled = read_sampled(kept[stopped]["rollout"], PROBLEMS, decode, 200, later.reward)
    assert stream(later, weights) == first[stopped:]
    assert later.history[stopped:] == whole.history[stopped:]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda kept: kept["answers"][0].update(id="train-99"), "'train-99' is no problem of this run"),
        (lambda kept: kept["answers"][0].update(forced=["2"]), r"answers\.0\.forced"),
        (lambda kept: kept["answers"][0].update(forced=[2, 1]), "forced places that the answer does not have"),
        (lambda kept: kept["answers"][0].update(token_ids=[200]), "a token that the model does not know"),
        (lambda kept: kept["then"].popitem(), "not of one length"),
        (lambda kept: next(iter(kept["then"].values())).pop(), "not of one length"),
        (lambda kept: kept.update(num_first=13), "its groups are not those of a run"),
        (lambda kept: kept["answers"].append(kept["answers"][0]), "its groups are not those of a run"),
        (lambda kept: kept.update(answers=[]), "answers"),
    ],
)
def test_a_rollout_that_no_run_writes_is_refused(change: Callable[[Any], object], said: str) -> None:
    policy = make(Weights(mixed), REUSED)
    next(policy.updates(1))
    kept = json.loads(json.dumps(policy.kept(1)["rollout"]))
    assert read_sampled(kept, PROBLEMS, decode, 200, policy.reward) == policy.sampled
    change(kept)
    with pytest.raises(DataError, match=said):
        read_sampled(kept, PROBLEMS, decode, 200, policy.reward)


# --- the first weights, the figures, the end ----------------------------------------------------------------------


def test_near_the_first_weights_each_target_is_drawn_back() -> None:
    weights, first = Weights(mixed), Weights(mixed)
    settings = replace(SETTINGS, objective=Objective(kl=0.5))
    policy = make(weights, settings, first=first.score)
    found = []
    for update in policy.updates(2):
        found.append(update)
        weights.shift = 0.3
    assert policy.history[0].kl == pytest.approx(0)
    assert policy.history[1].kl == pytest.approx(np.exp(-0.3) + 0.3 - 1, rel=1e-4)
    plain = make(Weights(mixed))
    right = [{row[0]: row[3] for row in rows_of(update)} for update in plain.updates(2)]
    for name, _, labels, row in rows_of(found[1]):
        back = np.where(labels != IGNORE_INDEX, 0.5 * (np.exp(-0.3) - 1), 0.0)
        assert row == pytest.approx(right[1][name] + back, abs=1e-5)


def test_the_figures_are_of_the_problems_that_nobody_chose() -> None:
    weights = Weights(mixed)
    policy = make(weights)
    list(policy.updates(1))
    (found,) = policy.history
    first = weights.asked[0]
    right = [mixed(ask) == RIGHT for ask in first]
    assert found.reward == pytest.approx(np.mean(right))
    assert found.solve_rate == pytest.approx(np.mean(np.array(right).reshape(3, 4).any(axis=1)))
    assert found.answers == found.asked * 4 == sum(map(len, weights.asked))
    rows = [(*encode(mixed(ask)), END) for ask in first if ask.sample % 4 == 0]
    expected = np.mean([(token % 7 + 1) / 8 for row in rows for token in row])
    assert found.entropy == pytest.approx(expected, rel=1e-5)


def test_the_rules_of_a_reward_are_heard_before_it_is_asked() -> None:
    heard: list[Sequence[Rollout]] = []

    def reward(answer: Rollout) -> float:
        assert any(answer in answers for answers in heard)
        return float(answer.verified("gold"))

    list(make(Weights(mixed), looked=heard.append, reward=reward).updates(2))
    assert heard


def test_a_rollout_that_is_late_ends_the_stream_and_gives_nothing() -> None:
    weights = Weights(mixed)
    policy = make(weights, late=lambda: len(weights.asked) > 2)
    found = list(policy.updates(9))
    assert 0 < len(found) < 9
    assert policy.ended
    assert len(policy.history) == len(found)
    whole = make(Weights(mixed))
    assert len(list(whole.updates(9))) == 9
    assert not whole.ended


QUIET = Figures(16, 128, 0.3, 0.6, 0.5, 100.0, 0.05, 0.6, 12800, 9.0, 0.0, None)


def after(*changes: tuple[int, dict[str, float]]) -> str | None:
    """The rules' answer after some updates, so many of each kind."""
    return reason_to_end([replace(QUIET, **values) for count, values in changes for _ in range(count)])


def test_a_run_ends_where_its_entropy_falls_or_its_answers_are_cut() -> None:
    assert after((100, {})) is None
    assert after((WINDOW, {}), (WINDOW, {"entropy": 0.21})) is None
    assert after((WINDOW, {}), (WINDOW, {"entropy": 0.19})) == STOP_ENTROPY
    assert after((WINDOW, {}), (WINDOW - 1, {"entropy": 0.01})) is None  # too few to say
    assert after((WINDOW, {"cut": 0.19})) is None
    assert after((WINDOW, {"cut": 0.21})) == STOP_CUT
    assert after((9, {}), (WINDOW - 1, {"cut": 0.21})) is None
    assert after((9, {"cut": 0.5}), (WINDOW, {})) is None  # it has learned to end
    # Four updates on one rollout are one rollout: `asked` is 0 in all but the first.
    assert after((9, {}), (1, {"cut": 0.5}), (WINDOW, {"cut": 0.5, "asked": 0})) is None
    assert after((9, {}), (2, {"entropy": 0.01}), (9, {"entropy": 0.01, "asked": 0})) is None
