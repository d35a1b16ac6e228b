"""The Markdown card: what the Hub reads, and that text from outside stays text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub.repocard_data import ModelCardData
from markdown_it import MarkdownIt

from gsm8k_core.report.card import code, escaped, make_card, write_card
from gsm8k_core.report.words import Facts
from gsm8k_core.scoring.stats import wilson
from gsm8k_core.types import DataError

EVIL = "a|b `c` [x](javascript:alert(1)) <img src=x onerror=alert(1)> \x1b[31m *bold* @user https://evil.example\n# h"


def summary(correct: int, **values: object) -> dict[str, Any]:
    rules = {
        name: {"correct": correct, "accuracy": correct / 100, "interval": list(wilson(correct, 100))}
        for name in ("openai", "strict", "flexible", "robust")
    }
    counts = {"n": 100, "rules": rules, "stopped": 90, "cut": 10, "no_answer": 3, "mean_tokens": 120.4}
    place = {"data": "openai/gsm8k (main)", "split": "test", "device": "cpu", "hash": "ab" * 32}
    return {"model": "Qwen/Qwen2.5-0.5B-Instruct", **counts, **place, **values}


def comparison(**values: object) -> dict[str, Any]:
    test = {"won": 14, "lost": 4, "both": 26, "neither": 56, "p": 0.031, "difference": 0.1, "interval": [0.02, 0.18]}
    tests = dict.fromkeys(("openai", "strict", "flexible", "robust"), test)
    return {
        "base": summary(30, **values),
        "trained": summary(40, **values),
        "paired": {"rule": "flexible", **test},
        "paired_by_rule": tests,
    }


def front(card: str) -> Any:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_hub_reads_the_results() -> None:
    data = ModelCardData(**front(make_card(comparison(), "me/trained")))
    assert data.model_name == "me/trained"
    found = {result.metric_name: result for result in data.eval_results or []}
    flexible = found["exact match, flexible rule v3"]
    assert (flexible.metric_type, flexible.metric_value, flexible.verified) == ("exact_match", 0.4, False)
    assert (flexible.dataset_type, flexible.dataset_config, flexible.dataset_split) == ("openai/gsm8k", "main", "test")
    assert flexible.task_type == "text-generation"
    assert data["base_model"] == "Qwen/Qwen2.5-0.5B-Instruct"
    assert data["datasets"] == ["openai/gsm8k"]


def test_one_problem_is_not_1_problems() -> None:
    found = comparison(n=1, overlap={"shared": 1, "line": ""}, calculator={"results": 1, "answers": 1, "of": 1})
    found["paired"] |= {"won": 1, "lost": 0, "both": 0, "neither": 0}
    card = make_card(found, "mine")
    assert "1 problem of openai/gsm8k" in card
    assert "1 problem won, 0 lost" in card
    assert ", but this problem is in the training data" in card
    assert "1 result, in 1 of 1 answer." in card
    assert "1 problems" not in card


def test_a_score_with_calculator_is_told_as_one() -> None:
    card = make_card(comparison(calculator={"results": 9, "answers": 4, "of": 100}), "mine")
    (first, *_) = front(card)["model-index"][0]["results"][0]["metrics"]
    assert ", with calculator, " in first["name"]
    assert "With calculator. Base: The calculator wrote 9 results, in 4 of 100 answers." in card
    assert "alculator" not in make_card(comparison(calculator=None), "mine")


def test_test_problems_in_the_training_data_are_told() -> None:
    found = comparison()
    found["trained"]["overlap"] = {"shared": 7, "line": "7 of the 100 test problems are among the 9 questions"}
    card, why = make_card(found, "mine"), ", but 7 of these 100 problems are in the training data"
    assert f"**The trained model is better{why}.**" in card
    assert "Trained: Test problems in the training data" in card
    assert all(why in metric["name"] for metric in front(card)["model-index"][0]["results"][0]["metrics"])
    assert "training data" not in make_card(comparison(), "mine")


def test_other_data_is_not_called_gsm8k() -> None:
    meta = front(make_card(comparison(data="generated", model="runs/../x y"), "mine"))
    (result,) = meta["model-index"][0]["results"]
    assert result["dataset"]["type"] == result["dataset"]["name"] == "generated"
    assert "datasets" not in meta
    assert "base_model" not in meta


def test_numbers_are_the_comparisons() -> None:
    card = make_card(comparison(), "me/trained").replace("\N{NO-BREAK SPACE}", " ")
    assert "**The trained model is better.** 30.0 % → 40.0 %, +10.0 points" in card
    assert "| flexible v3 | 30.0 % (21.9 to 39.6) | 40.0 % (30.9 to 49.8) | +10.0 | 14 | 4 | p = 0.031 |" in card
    assert "| cut by the length limit | 10 | 10 |" in card


def test_votes_are_not_called_single_answers() -> None:
    once, voted = (make_card(comparison(samples=samples), "me/trained") for samples in (1, 8))
    assert "answered the same problems once." in once
    assert "answered the same problems 8 times; the answer that the vote chose (maj@8) is counted." in voted
    (result,) = front(voted)["model-index"][0]["results"]
    metric = next(each for each in result["metrics"] if each["args"]["rule"] == "flexible")
    assert (metric["name"], metric["args"]["samples"]) == ("exact match of maj@8, flexible rule v3", 8)


def tokens(text: str) -> list[Any]:
    # commonmark with tables and raw HTML, which is what a reader may allow
    parsed = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    return [child for token in parsed for child in (token, *(token.children or []))]


def test_text_from_outside_stays_text() -> None:
    facts = Facts(EVIL, {EVIL: EVIL}, {EVIL: EVIL}, {EVIL: EVIL}, [f"{EVIL}\n```\n# out"])
    card = make_card(comparison(model=EVIL, data=EVIL, split=EVIL, device=EVIL), EVIL, facts)
    assert "\x1b" not in card
    body = card.split("---\n", 2)[2]
    plain = make_card(comparison(), "name", Facts("c", {"a": "b"}, {"a": "b"}, {"a": "b"}, ["c"])).split("---\n", 2)[2]
    kinds = {token.type for token in tokens(body)} - {"html_inline", "code_inline", "entity"}
    assert kinds <= {token.type for token in tokens(plain)}
    assert {token.content for token in tokens(body) if token.type == "html_inline"} <= {"<!-- -->"}
    assert len([token for token in tokens(body) if token.type == "fence"]) == 1
    assert front(card)["model-index"][0]["name"].startswith("a|b")


@pytest.mark.parametrize("text", [EVIL, "a_b*c", "x\\|y", "``", "` `` ```"])
def test_escaped_text_reads_as_it_was_written(text: str) -> None:
    shown = "".join(t.content for t in tokens(f"x {escaped(text)}") if t.type in ("text", "text_special"))
    assert shown.split() == ["x", *text.replace("\x1b", "⟨ESC⟩").split()]
    spans = [token for token in tokens(f"| a |\n| - |\n| {code(text)} |") if token.type == "code_inline"]
    assert len(spans) == 1


def test_what_is_missing_is_our_error(tmp_path: Path) -> None:
    broken = comparison()
    del broken["trained"]["mean_tokens"]
    with pytest.raises(DataError, match="mean_tokens"):
        write_card(tmp_path / "card.md", broken, "x")
    assert list(tmp_path.iterdir()) == []


def test_what_the_page_says_beside_the_verdict_stands_in_the_card() -> None:
    timed = comparison(time={"n": 100, "of": 1319, "max_time": "10m"})
    assert "A random sample: 100 of 1,319 problems fitted into 10m." in make_card(timed, "mine")
    assert "random sample" not in make_card(comparison(), "mine")
