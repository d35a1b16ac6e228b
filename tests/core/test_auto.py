"""What "auto" means: the real pair where it can be had, else the embedded one; a name never falls back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gsm8k_core.auto import NAMED, Pair, choose_pair
from gsm8k_core.models.find import resolve_model
from gsm8k_core.problems.data import load_data
from gsm8k_core.types import DataError
from tests.fake_hub import waits
from tests.waiting import wait_for

QWEN = "Qwen/Qwen2.5-0.5B-Instruct"
GSM8K = "openai/gsm8k"


def quiet(_: str) -> None:
    pass


def choose(model: str = "auto", data: str = "auto") -> Pair:
    return choose_pair(model, data, "main", quiet)


def names(pair: Pair) -> tuple[str, str, bool]:
    return pair.model, pair.data, pair.demo


def test_both_auto_with_a_hub(hub: Any) -> None:
    pair = choose()
    assert names(pair) == (QWEN, GSM8K, False)
    assert pair.model_choice.reason == pair.data_choice.reason == "the Hub answers"
    assert len(hub.requests) == 1


def test_both_auto_cached_ask_nothing(hub: Any) -> None:
    resolve_model(QWEN, quiet)
    load_data(GSM8K, "main", 0, quiet)
    hub.stop()
    asked = len(hub.requests)
    pair = choose()
    assert names(pair) == (QWEN, GSM8K, False)
    assert pair.model_choice.reason == "it is in the Hub's cache"
    assert len(hub.requests) == asked


def test_both_auto_without_a_hub_are_the_embedded_pair(caches: Any) -> None:
    pair = choose()
    assert names(pair) == ("embedded", "generated", True)
    assert pair.model_choice.reason == pair.data_choice.reason
    assert pair.model_choice.reason.startswith(f"{QWEN} is not cached and the Hub could not be reached")


def test_a_silent_hub_is_no_hub(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.silence(monkeypatch)
    with waits() as waited:
        pair = choose()
        wait_for(lambda: waited.questions)
    assert names(pair) == ("embedded", "generated", True)
    assert pair.model_choice.reason == f"{QWEN} is not cached and the Hub did not answer in 1 s"
    assert waited.questions == [1.0]


@pytest.mark.parametrize("cached", ["model", "data"])
def test_they_fall_back_together(cached: str, hub: Any) -> None:
    if cached == "model":
        resolve_model(QWEN, quiet)
    else:
        load_data(GSM8K, "main", 0, quiet)
    hub.stop()
    pair = choose()
    assert names(pair) == ("embedded", "generated", True)
    assert (GSM8K if cached == "model" else QWEN) in pair.data_choice.reason


def test_a_given_name_stays(hub: Any) -> None:
    pair = choose(QWEN, GSM8K)
    assert names(pair) == (QWEN, GSM8K, False)
    assert (pair.model_choice.reason, pair.data_choice.reason) == (NAMED, NAMED)
    hub.stop()
    assert names(choose("embedded", "generated")) == ("embedded", "generated", False)


@pytest.mark.parametrize(
    ("model", "data", "named"),
    [(QWEN, "auto", QWEN), ("auto", "some/data", "some/data"), (QWEN, "some/data", QWEN), ("embedded", GSM8K, GSM8K)],
)
def test_a_given_name_never_falls_back(
    model: str, data: str, named: str, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silent Hub is waited for once: for what was given, before what is automatic."""
    hub.silence(monkeypatch)
    with waits() as waited:
        with pytest.raises(DataError, match=f"{named}' is not a .* did not answer in 1 s"):
            choose(model, data)
        wait_for(lambda: waited.questions)
    assert (waited.questions, waited.sleeps) == ([1.0], [])


@pytest.mark.parametrize(("model", "data"), [("./gone", "auto"), ("auto", "gone.jsonl"), (QWEN, "./gone")])
def test_a_given_path_that_is_not_there_waits_for_nothing(model: str, data: str, hub: Any) -> None:
    with pytest.raises(DataError, match=r"gone(\.jsonl)?' is not a"):
        choose(model, data)
    assert len(hub.requests) == (model == QWEN)


def test_only_the_model_is_auto(hub: Any, tmp_path: Path) -> None:
    rows = str(tmp_path)
    assert names(choose(data=rows)) == (QWEN, rows, False)
    hub.stop()
    assert names(choose(data=rows)) == ("embedded", rows, True)


def test_only_the_data_are_auto(hub: Any) -> None:
    assert names(choose(model=QWEN)) == (QWEN, GSM8K, False)
    resolve_model(QWEN, quiet)
    hub.stop()
    pair = choose(model=QWEN)
    assert names(pair) == (QWEN, "generated", False)
    assert GSM8K in pair.data_choice.reason
    assert names(choose(model="embedded")) == ("embedded", "generated", False)
