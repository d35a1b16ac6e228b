"""Loss and answers on the dev split, with a live model of a few lines."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gsm8k_core.problems.batching import micro_batches
from gsm8k_core.training.measure import DevResult, DevSet, joined
from gsm8k_core.types import Batch, Completion, Example, Problem, Sampling

# Two prompt tokens, then 1, 2, 3 and 9 targets: in batches of two the means per batch differ from the whole.
TARGETS = (1, 2, 3, 9)
EXAMPLES = [Example(f"train-{n}", (7, n, *range(10, 10 + num)), 2) for n, num in enumerate(TARGETS)]
PROBLEMS = [Problem(f"train-{n}", f"what is {n}?", f"so {n}\n#### {n}", str(n)) for n in range(len(TARGETS))]
TEXTS = {0: "#### 0", 1: "so it is 1", 2: "The answer is 2, not 3", 3: "no"}


class Live:
    """log p of token t is -t / 100; prompt n is answered with the token n, the last one is cut."""

    def __init__(self) -> None:
        self.open, self.batches, self.sampling = 0, 0, None

    def score(self, batch: Batch) -> Any:
        self.batches += 1
        return (batch.tokens[:, 1:] / -100).astype(np.float32)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, on_token: Callable[[int, int], None]
    ) -> Iterator[tuple[int, Completion]]:
        self.sampling = sampling
        self.open += 1
        try:
            for index in reversed(range(len(prompts))):
                answer = prompts[index][1]
                on_token(index, answer)
                yield index, Completion((answer,), "length" if index == len(prompts) - 1 else "stop")
        finally:
            self.open -= 1


class Ticks:
    """Counts how often it was asked; as a deadline it comes true at the `last` time."""

    def __init__(self, last: int = 10**9) -> None:
        self.asked, self.last = 0, last

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked >= self.last


DEV = DevSet(EXAMPLES, PROBLEMS, lambda tokens: TEXTS[tokens[0]], batch_size=2, eval_batch_size=3, max_new_tokens=50)


def measured(dev: DevSet = DEV) -> DevResult:
    result = dev.measure(Live(), Ticks())
    assert result is not None
    return result


def test_the_loss_is_divided_once_by_the_number_of_targets() -> None:
    by_hand = sum(sum(range(10, 10 + num)) for num in TARGETS) / 100 / sum(TARGETS)
    assert measured().loss == pytest.approx(by_hand, rel=1e-6)
    assert measured().num_targets == 15


def test_control_a_mean_of_means_is_something_else() -> None:
    means = []
    for batch in micro_batches(EXAMPLES, 2):
        means.append(batch.at_targets(Live().score(batch)).mean())
    assert abs(-sum(means) / len(means) - measured().loss) > 1e-3


def test_batches_change_no_number() -> None:
    other = measured(replace(DEV, batch_size=3))
    assert other.loss == pytest.approx(measured().loss, abs=1e-12)
    assert other.num_correct == measured().num_correct


def test_answers_are_greedy_and_graded_under_every_headline_rule() -> None:
    live = Live()
    result = DEV.measure(live, Ticks())
    assert result is not None
    assert result.num_correct == {"strict": 1, "flexible": 2, "robust": 3}
    assert (result.accuracy, result.num_problems, result.num_stopped) == (0.5, 4, 3)
    assert live.sampling == Sampling(max_new_tokens=50, batch_size=3)
    assert live.sampling.temperature == 0


def test_the_event_has_what_plots_and_trackers_read() -> None:
    values = measured().values()
    assert (values["accuracy"], values["correct"], values["problems"]) == (0.5, 2, 4)
    assert (values["stopped"], values["stopped_share"], values["accuracy_robust"]) == (3, 0.75, 0.75)
    assert values["loss"] == measured().loss


def test_the_seconds_are_the_clocks() -> None:
    times = iter([10.0, 14.5])
    assert measured(replace(DEV, clock=lambda: next(times))).seconds == 4.5


def test_a_result_survives_json() -> None:
    result = replace(measured(), seconds=1.0)
    assert DevResult.from_json(json.loads(json.dumps(result.as_json(), allow_nan=False))) == result
    lost = DevResult.from_json(json.loads(json.dumps(replace(result, loss=math.nan).as_json(), allow_nan=False)))
    assert math.isnan(lost.loss)


def test_it_is_kept_which_problems_were_right() -> None:
    assert measured().verdicts == (True, True, False, False)  # by the rule of `accuracy`, in the order of the problems


def test_a_result_of_an_older_checkpoint_has_no_verdicts() -> None:
    values = measured().as_json()
    del values["verdicts"]
    assert DevResult.from_json(values) == replace(measured(), verdicts=(), seconds=values["seconds"])


def test_parts_measured_one_after_another_are_the_whole() -> None:
    parts = [measured(DEV.part(0, 1)), measured(DEV.part(1, 4))]
    whole = joined(parts)
    # This model's last answer in each call is cut.
    assert whole == replace(measured(), loss=whole.loss, seconds=whole.seconds, num_stopped=2)
    assert whole.loss == pytest.approx(measured().loss, abs=1e-12)
    assert whole.seconds == sum(part.seconds for part in parts)


def test_better_is_more_accurate_then_a_lower_loss() -> None:
    result = measured()
    more = replace(result, num_correct={**result.num_correct, "flexible": 3}, loss=9.0)
    lower, lost = replace(result, loss=result.loss - 1e-9), replace(result, loss=math.nan)
    assert more.better_than(result)
    assert not result.better_than(more)
    assert lower.better_than(result)
    assert not result.better_than(result)
    assert result.better_than(lost)
    assert not lost.better_than(result)


def test_out_of_time_at_any_moment_is_none_and_leaves_nothing_open() -> None:
    whole = Ticks()
    assert DEV.measure(Live(), whole) is not None
    assert whole.asked == 2 + 1 + 4  # two batches, before the answers, four tokens
    for last in range(1, whole.asked + 1):
        live, deadline = Live(), Ticks(last)
        assert DEV.measure(live, deadline) is None
        assert (live.open, deadline.asked) == (0, last)
        assert live.batches == min(last - 1, 2)


def test_the_generator_is_closed_when_the_time_runs_out_outside_of_it() -> None:
    closed = []

    class Silent(Live):
        """The callback fires in a thread of its own, say: not inside the generator that is read."""

        def generate(
            self, prompts: Sequence[Sequence[int]], sampling: Sampling, on_token: Callable[[int, int], None]
        ) -> Any:
            inner = Live.generate(self, prompts, sampling, lambda index, token: None)

            class Outer:
                def __iter__(self) -> Any:
                    return self

                def __next__(self) -> Any:
                    found = next(inner)
                    on_token(0, 0)
                    return found

                def close(self) -> None:
                    closed.append(True)
                    inner.close()

            return Outer()

    live = Silent()
    assert DEV.measure(live, Ticks(5)) is None
    assert (closed, live.open) == ([True], 0)


def test_an_error_of_the_model_is_not_taken_for_a_time_out() -> None:
    def broken(tokens: Sequence[int]) -> str:
        raise RuntimeError("broken")

    live = Live()
    with pytest.raises(RuntimeError, match="broken"):
        replace(DEV, decode=broken).measure(live, Ticks())
    assert live.open == 0


@pytest.mark.parametrize(
    ("examples", "problems"), [([], []), (EXAMPLES, PROBLEMS[:-1]), (EXAMPLES, PROBLEMS[::-1])], ids=str
)
def test_other_rows_as_examples_than_as_problems_are_refused(examples: Any, problems: Any) -> None:
    with pytest.raises(ValueError, match="same rows"):
        replace(DEV, examples=examples, problems=problems)
