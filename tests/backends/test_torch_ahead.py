"""torch: the step after is launched before the host looks, as on a GPU; here on a CPU that is taken for one.

The texts are those of a CPU's way, and of each step the host reads one thing. No test here has run on a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

import backends
from backends.torch import generate as module
from backends.torch.seats import Seat
from gsm8k_core.types import Completion, DivergedError, Example, Sampling
from tests import tiny
from tests.backends.conftest import force

HOT = {"temperature": 1.2, "seed": 3}


def third(written: Sequence[int]) -> bool:
    """Ends an answer here and there."""
    return len(written) > 3 and written[-1] % 3 == 0


@pytest.fixture
def backend(qwen2: Path) -> Any:
    return backends.open("torch", qwen2, "cpu", "float32")


def texts(backend: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, ahead: int) -> dict[int, Completion]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(module.AHEAD, "cpu", ahead)
        return dict(backend.generate(prompts, sampling))


def prompts_of(examples: list[Example]) -> list[tuple[int, ...]]:
    return [example.tokens[: 4 + index % 7] for index, example in enumerate(examples)]


@pytest.mark.parametrize("size", [1, 3, 64])
@pytest.mark.parametrize("more", [{}, HOT, {"force": force}, {"force": force, **HOT}], ids=["greedy", "hot", "f", "hf"])
@pytest.mark.parametrize("several", [False, True], ids=["once", "several"])
def test_no_text_is_another(
    backend: Any, examples: list[Example], size: int, more: dict[str, Any], several: bool
) -> None:
    """Greedy and drawn, with forced tokens and without, refilled and not, each prompt once and several times."""
    sampling, told = Sampling(16, size, complete=third, **more), list[tuple[int, int]]()
    prompts = prompts_of(examples)[:3] * 3 if several else prompts_of(examples)[:11]
    right = texts(backend, prompts, sampling, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(module.AHEAD, "cpu", 1)
        found = dict(backend.generate(prompts, sampling, lambda index, token: told.append((index, token))))
    assert found == right
    assert len({len(completion.tokens) for completion in right.values()}) > 1  # seats are left at several times
    for index, completion in found.items():
        assert [token for place, token in told if place == index] == list(completion.tokens)


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_no_token_too_many(backend: Any, examples: list[Example], limit: int) -> None:
    for size in (2, 64):
        found = texts(backend, prompts_of(examples), Sampling(limit, size), 1)
        assert found == texts(backend, prompts_of(examples), Sampling(limit, size), 0)


@pytest.mark.parametrize("given", [(8, tiny.END_ID), (tiny.END_ID, 8), (9,) * 20])
def test_a_forced_end_frees_the_seat(backend: Any, examples: list[Example], given: tuple[int, ...]) -> None:
    sampling = Sampling(20, 3, force=lambda written: given if len(written) == 4 or written[-1] % 5 == 0 else ())
    prompts = prompts_of(examples)
    assert texts(backend, prompts, sampling, 1) == texts(backend, prompts, sampling, 0)


def test_control_a_step_that_reads_what_was_drawn_in_a_forced_place_is_seen(
    backend: Any, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling, prompts = Sampling(20, 3, force=force), prompts_of(examples)
    right = texts(backend, prompts, sampling, 1)
    monkeypatch.setattr("backends.torch.seats.Seat.forced_input", None)
    wrong = texts(backend, prompts, sampling, 1)
    assert sum(wrong[index] != right[index] for index in right) > 5


# --- the order, and what the host reads -------------------------------------------------------------------------------


def watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Steps as they are launched and reads as they are made."""
    events: list[str] = []
    step, read = module._Decoder.step, module._Picks.read

    def stepped(self: Any, seats: Any) -> Any:
        events.append("step")
        return step(self, seats)

    def seen(self: Any) -> Any:
        events.append("read")
        return read(self)

    monkeypatch.setattr(module._Decoder, "step", stepped)
    monkeypatch.setattr(module._Picks, "read", seen)
    return events


@pytest.mark.parametrize(
    ("ahead", "order"),
    [(0, ["read", *["step", "read"] * 3]), (1, ["step", "read", "step", "read", "step", "read", "read"])],
)
def test_a_step_is_launched_before_the_one_before_is_read(
    backend: Any, monkeypatch: pytest.MonkeyPatch, ahead: int, order: list[str]
) -> None:
    events = watched(monkeypatch)
    never = replace(Sampling(4, 2), complete=None)
    monkeypatch.setattr(backend, "_end_ids", frozenset())
    found = texts(backend, [(4, 5, 6), (4, 6, 5)], never, ahead)
    assert {len(completion.tokens) for completion in found.values()} == {4}
    assert events == order


def test_an_answer_that_ends_costs_one_step_more(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was on its way when the host saw the end."""
    sampling = Sampling(30, 1, complete=lambda tokens: len(tokens) == 5)
    monkeypatch.setattr(backend, "_end_ids", frozenset())
    counts = []
    for ahead in (0, 1):
        with pytest.MonkeyPatch.context() as patch:
            events = watched(patch)
            texts(backend, [(4, 5, 6)], sampling, ahead)
            counts.append(events.count("step"))
    assert counts == [4, 5]


class Crossings(TorchDispatchMode):
    """What goes between host and device, or makes one wait for the other; on a CPU the same calls cost nothing."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self._counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        # item(), bool(); tensor(list), from_numpy(array); what has as many elements as it finds.
        if name in ("_local_scalar_dense", "lift_fresh", "nonzero", "equal", "masked_select"):
            self._counts[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def crossings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    counts: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        plain = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return plain(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    for name in ("tolist", "numpy", "cpu"):
        count(torch.Tensor, name)
    with Crossings(counts):
        yield counts


@pytest.mark.parametrize("more", [{}, HOT, {"force": force}], ids=["greedy", "hot", "forced"])
@pytest.mark.parametrize("ahead", [0, 1])
def test_the_host_reads_once_a_step_and_sends_nothing_but_the_noise(
    backend: Any,
    examples: list[Example],
    monkeypatch: pytest.MonkeyPatch,
    crossings: Counter[str],
    ahead: int,
    more: dict[str, Any],
) -> None:
    """Forced tokens cross as numbers in a call, which waits for nothing."""
    monkeypatch.setattr(backend, "_end_ids", frozenset())
    monkeypatch.setattr("backends.torch.sampling._on_cpu", lambda tensor: False)  # as a GPU draws
    events, prompts, found = watched(monkeypatch), prompts_of(examples)[:4], []
    for limit in (4, 12):
        events.clear()
        crossings.clear()
        texts(backend, prompts, Sampling(limit, 4, **more), ahead)
        found.append(Counter(crossings, steps=events.count("step")))
    found[1].subtract(found[0])  # what so many steps more cost
    steps = found[1].pop("steps")
    assert steps >= 6
    assert +found[1] == {"tolist": steps, **({"lift_fresh": steps} if more == HOT else {})}


def test_control_what_a_step_asks_of_the_device_is_counted(crossings: Counter[str]) -> None:
    one = torch.tensor([1.0, 2.0])
    if torch.isfinite(one).all():
        assert one.sum().item() == 3
    torch.from_numpy(np.ones(2)).tolist()
    assert crossings == {"lift_fresh": 2, "_local_scalar_dense": 2, "tolist": 1}


class Fake:
    """Tokens on a device that is not there: what is asked of them, and of the event that follows, in order."""

    def __init__(self, kind: str, asked: list[str]) -> None:
        self.device, self._asked = SimpleNamespace(type=kind), asked

    def to(self, device: str, non_blocking: bool) -> Fake:
        self._asked.append(f"to {device}, non_blocking={non_blocking}")
        return self

    def tolist(self) -> list[int]:
        self._asked.append("tolist")
        return [4]

    def record(self) -> None:
        self._asked.append("record")

    def synchronize(self) -> None:
        self._asked.append("synchronize")


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_read_waits_for_its_own_step_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is on its way before the next step is launched; a plain read would wait for that as well."""
    asked: list[str] = []
    fake: Any = Fake(kind, asked)
    monkeypatch.setattr(f"torch.{kind}.Event", lambda: fake)
    picks = module._Picks([Seat(0, 0, (4, 5), 0, Sampling(1, 1))], fake)
    assert asked == ["to cpu, non_blocking=True", "record"]
    assert picks.read() == [4]
    assert asked[2:] == ["synchronize", "tolist"]


@pytest.mark.parametrize(("kind", "at_once"), [("cuda", True), ("mps", False)])
def test_only_cuda_takes_what_it_is_sent_before_it_returns(kind: str, at_once: bool) -> None:
    """MPS would read the host's memory later, when it may be another's."""
    asked: list[str] = []
    fake: Any = Fake("cpu", asked)
    module._sent(fake, torch.device(kind))
    assert asked == [f"to {kind}, non_blocking={at_once}"]


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token whose embedding is NaN."""
    folder = tiny.make(tmp_path_factory.mktemp("models") / "nan", tie_word_embeddings=False)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][41] = np.nan
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("more", [{}, HOT, {**HOT, "top_p": 0.9}, {**HOT, "top_k": 5}], ids=str)
@pytest.mark.parametrize("ahead", [0, 1])
def test_logits_that_are_not_finite_travel_with_the_tokens(damaged: Path, ahead: int, more: dict[str, Any]) -> None:
    """Met in a prompt that has to wait for its seat; the next step, already launched, reads a token that exists."""
    backend = backends.open("torch", damaged, "cpu", "float32")
    prompts = [(5, 6, 7), (5, 9, 10), (5, 9, 9, 41)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(module.AHEAD, "cpu", ahead)
        stream = backend.generate(prompts, Sampling(6, 1, **more))
        assert next(stream)[0] in (0, 1)
        with pytest.raises(DivergedError, match="not finite"):
            list(stream)


def test_a_generation_that_is_given_up_waits_for_what_is_on_its_way(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory on the host must not be given back while the device writes into it."""
    waited: list[Any] = []
    monkeypatch.setattr(module._Picks, "wait", lambda picks: waited.append(picks))
    monkeypatch.setitem(module.AHEAD, "cpu", 1)
    stream = backend.generate([(4, 5, 6)] * 3, Sampling(1, 2))
    next(stream)
    seen = len(waited)
    stream.close()
    assert len(waited) > seen
