"""report.html: its numbers are the comparison's, and nothing from outside is ever more than text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gsm8k_core.report import page
from gsm8k_core.report.comparison import make_comparison, make_comparisons, verdict
from gsm8k_core.report.curves import Curve
from gsm8k_core.report.words import (
    Facts,
    headline,
    own_answers,
    p_value,
    pairs,
    percent,
    points,
    short_data,
    short_model,
    visible,
    without_secrets,
)
from gsm8k_core.scoring.diagnose import CATEGORIES
from gsm8k_core.scoring.evaluate import make_record, summarise
from gsm8k_core.types import Completion, DataError, Problem
from tests.cost import passes

INJECTED = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    '"><svg onload=alert(3)>',
    "<a href='javascript:alert(4)'>x</a>",
    "\x1b[31mred\x1b[0m",
    "\u202egnorw\u2066",
    "<!--",
    "{{ 7 * 7 }}",
    "\x00\x7f\u2028",
)
EVIL = " ".join(INJECTED)
VOID = {"meta", "input", "br", "link", "img", "hr"}


class Read(HTMLParser):
    """Elements with their attributes and own text; an element that is never closed is an error."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inline: dict[str, list[str]] = {"style": [], "script": [], "pre": [], "title": []}
        self._open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag in self.inline:
            self.inline[tag].append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in self.inline:
            self.inline[self._open[-1]][-1] += data
        if "script" not in self._open and "style" not in self._open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def records(right: str, extra: str = "", question: str = "How many?") -> list[dict[str, Any]]:
    """A record for each letter: r right, w wrong, - no number and cut."""
    found = []
    for number, letter in enumerate(right):
        problem = Problem(f"test-{number}", f"{question} {number}", "2+2 = <<2+2=4>>4\n#### 4", "4")
        text = {"r": f"{extra}It is 4.\n#### 4", "w": f"{extra}#### 5", "-": f"{extra}Hm"}[letter]
        found.append(make_record(problem, Completion((1, 2), "length" if letter == "-" else "stop"), text))
    return found


def summary(rows: list[dict[str, Any]], **values: object) -> dict[str, Any]:
    return {"model": "me/base", "hash": "ab" * 32, **summarise(rows, frozenset()), "max_new_tokens": 9, **values}


def compared(base: str, trained: str, extra: str = "", **values: object) -> tuple[dict[str, Any], Any, Any]:
    old, new = records(base, extra), records(trained, extra)
    return make_comparison(summary(old, **values), summary(new, **values), old, new), old, new


def rendered(base: str = "rrww-", trained: str = "rwrrw", extra: str = "", **more: Any) -> str:
    return page.render_page(*compared(base, trained, extra), **more)


def data_of(text: str) -> Any:
    return json.loads(Read(text).inline["script"][1])


def test_a_score_with_calculator_is_told_as_one() -> None:
    found = {"results": 1234, "answers": 4, "of": 5}
    text = Read(page.render_page(*compared("rrww-", "rwrrw", calculator=found))).text
    assert "with calculator" in text
    assert "Trained: The calculator wrote 1,234 results, in 4 of 5 answers." in text
    one = page.render_page({"base": summary(records("rw"), calculator=found)}, records("rw"))
    assert "50.0\u00a0% right, with calculator" in Read(one).text or "50.0 % right, with calculator" in Read(one).text
    assert "alculator" not in Read(rendered()).text


def test_test_problems_in_the_training_data_are_told() -> None:
    met, why = {"shared": 3, "line": "3 of the 5"}, ", but 3 of these 5 problems are in the training data"
    text = Read(page.render_page(*compared("rrww-", "rwrrw", overlap=met))).text
    assert f"Not distinguishable at n = 5{why}" in text
    assert text.count("Test problems in the training data: 3 of the 5.") == 1  # of both models
    one = page.render_page({"base": summary(records("rrrww"), overlap=met)}, records("rrrww"))
    assert f"right{why}" in Read(one).text
    assert "training data" not in Read(rendered()).text


# --- safety ---------------------------------------------------------------------------------------------------------


def everything_evil() -> str:
    values: Mapping[str, object] = {"model": EVIL, "data": EVIL, "hash": EVIL, "split": EVIL, "device": EVIL}
    old, new = records("rw", EVIL, EVIL), records("wr", EVIL, EVIL)
    comparison = make_comparison(summary(old, **values), summary(new, **values), old, new)
    for record in (*old, *new):
        record |= {"id": EVIL, "gold": EVIL, "answer": EVIL}
        record["rules"]["flexible"]["extracted"] = EVIL
    for number, (left, right) in enumerate(zip(old, new, strict=True)):
        left["id"] = right["id"] = f"{EVIL}{number}"
    table = {EVIL: EVIL}
    return page.render_page(
        comparison,
        old,
        new,
        diagnosis=[{"category": EVIL, "base": 1, "trained": 2}],
        steps=[{"steps": EVIL, "n": 2, "base": 1, "trained": 1}],
        facts=Facts(EVIL, settings=table, versions=table, hashes=table, reproduce=[EVIL]),
    )


def test_injected_text_adds_no_element_and_no_attribute() -> None:
    def shape(text: str) -> list[tuple[str, tuple[str, ...]]]:
        return sorted({(tag, tuple(sorted(attributes))) for tag, attributes in Read(text).elements})

    plain = rendered(
        diagnosis=[{"category": "a", "base": 1, "trained": 2}],
        steps=[{"steps": 1, "n": 2, "base": 1, "trained": 1}],
        facts=Facts("a", {"b": "c"}, {"b": "c"}, {"b": "c"}, ["d"]),
    )
    assert set(shape(everything_evil())) <= set(shape(plain))


def test_injected_text_is_shown_as_it_is() -> None:
    text = Read(everything_evil()).text
    for words in INJECTED[:4]:
        assert words in text
    assert "⟨ESC⟩[31mred⟨ESC⟩[0m" in text
    assert "⟨U+202E⟩gnorw⟨U+2066⟩" in text
    assert "{{ 7 * 7 }}" in text


def test_no_control_character_reaches_the_file() -> None:
    left = {mark for mark in everything_evil() if mark not in "\n\t" and visible(mark) != mark}
    assert left == set()


def test_nothing_is_loaded_and_nothing_runs_but_its_own_script() -> None:
    loads = {"src", "href", "action", "srcset", "data", "formaction", "poster", "background", "xlink:href", "ping"}
    for tag, attributes in Read(everything_evil()).elements:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base", "form", "audio", "video", "use", "image"}
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        for name in loads & set(attributes):
            assert (attributes[name] or "").startswith("#"), (tag, name)
    own = str(page._style())
    assert not re.search(r"url\(|@import|https?:|//", own)
    assert "innerHTML" not in (page.TEMPLATES / "report.js").read_text()


@pytest.mark.parametrize("text", [rendered(), everything_evil()])
def test_the_policy_allows_exactly_what_stands_in_the_page(text: str) -> None:
    read = Read(text)
    policy = next(a["content"] for tag, a in read.elements if a.get("http-equiv") == "Content-Security-Policy")
    parts = dict(part.strip().split(" ", 1) for part in (policy or "").split(";"))

    def hashes(contents: list[str]) -> str:
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(c.encode()).digest()).decode()}'" for c in contents)

    early, data, script = read.inline["script"]
    assert parts["default-src"] == parts["img-src"] == parts["base-uri"] == parts["form-action"] == "'none'"
    assert parts["style-src"] == hashes(read.inline["style"])
    assert parts["script-src"] == hashes([early, script])
    assert json.loads(data)  # not a script: a block of data
    kinds = [attributes.get("type") for tag, attributes in read.elements if tag == "script"]
    assert kinds == [None, "application/json", None]


def test_json_in_the_page_cannot_end_its_element() -> None:
    value = {"a": "</script><!--&\u2028\u2029\ud800"}
    text = str(page.for_script(value))
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == value


def test_secrets_are_taken_out() -> None:
    key = "hf_" + "a1B2" * 8
    line = f"cli.py train --wandb-key {key} --api-token=s3cretvalue https://me:pw@host/x WANDB_API_KEY=abcdef123456"
    text = rendered(facts=Facts(line, {"env": f"HF_TOKEN={key}"}, {}, {}, [line]))
    for secret in (key, "s3cretvalue", "me:pw", "abcdef123456"):
        assert secret not in text
    kept = "python cli.py compare --trained-model runs/a --max-new-tokens 320"
    assert without_secrets(kept) == kept


@pytest.mark.parametrize("part", ["a", "-", "token", "api_key-", "//", "hf_", "bearer "])
def test_secrets_are_looked_for_in_linear_time(part: str) -> None:
    text = part * (20_000 // len(part))
    assert passes(lambda: without_secrets(text), 20_000, 40.0) < 40  # 4 at most; thousands if each letter is a start


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [("r" * 9 + "w" * 21, "r" * 25 + "w" * 5), ("rrww", "rwrw"), ("r" * 30, "w" * 30)])
def test_the_headline_is_the_comparison(rows: tuple[str, str]) -> None:
    comparison, old, new = compared(*rows)
    text = Read(page.render_page(comparison, old, new)).text
    rule, test = comparison["paired"]["rule"], comparison["paired"]
    for which in ("base", "trained"):
        score = comparison[which]["rules"][rule]
        low, high = score["interval"]
        assert f"{100 * score['accuracy']:.1f}\N{NO-BREAK SPACE}%".replace("\xa0", " ") in text
        assert f"{100 * low:.1f} to {100 * high:.1f}" in text
    assert p_value(test["p"]) in text
    assert f"{test['won']} won" in text
    assert f"{test['lost']} lost" in text


@pytest.mark.parametrize(
    ("base", "trained", "title"),
    [
        ("w" * 30, "r" * 30, "The trained model is better"),
        ("r" * 30, "w" * 30, "The base model is better"),
        ("rrww", "rwrw", "Not distinguishable at n = 4"),
    ],
)
def test_the_title_says_what_the_verdict_says(base: str, trained: str, title: str) -> None:
    comparison, _, _ = compared(base, trained)
    assert headline(comparison).title == title
    assert verdict(comparison).lower().startswith(title.lower())


def test_the_two_by_two_table_adds_up() -> None:
    result = headline(compared("rrww-", "rwrrw")[0])
    assert (result.both, result.lost, result.won, result.neither) == (1, 1, 2, 1)


def test_an_interval_that_the_comparison_brings_is_shown() -> None:
    comparison, old, new = compared("rrww-", "rwrrw")
    comparison["paired"]["interval"] = [-0.1234, 0.4567]
    assert "−12.3 to 45.7" in Read(page.render_page(comparison, old, new)).text


def test_disagreements_are_counted_in_records() -> None:
    rows = records("rr")
    rows[0]["rules"]["strict"]["correct"] = False
    comparison = make_comparison(summary(rows), summary(rows), rows, rows)
    text = page.render_page(comparison, rows, rows)
    rules = data_of(text)["rules"]
    flexible, strict = str(rules.index("flexible")), str(rules.index("strict"))
    cells = [(a["data-right"], a["data-wrong"]) for _, a in Read(text).elements if "data-right" in a]
    assert cells.count((flexible, strict)) == 2  # once a model
    assert (strict, flexible) not in cells
    assert f'data-right="{flexible}" data-wrong="{strict}">1<' in text


def test_the_data_for_the_filters_says_what_the_records_say() -> None:
    comparison, old, new = compared("rw-", "wr-")
    data = data_of(page.render_page(comparison, old, new))
    for number, pair in enumerate(zip(old, new, strict=True)):
        verdicts, cut, silent, kinds = data["rows"][number]
        for model, record in enumerate(pair):
            for place, name in enumerate(data["rules"]):
                value = verdicts[model][place]
                assert bool(value % 2) == record["rules"][name]["correct"]
                assert data["answers"][value >> 1] == record["rules"][name]["extracted"]
            assert list(CATEGORIES)[kinds[model]] == record["diagnosis"]["category"]
            assert bool(cut[model]) == (record["finish_reason"] == "length")
            assert bool(silent[model]) == (record["rules"]["robust"]["extracted"] is None)


def test_one_model_has_a_page_without_a_second_column() -> None:
    rows = records("rrw")
    text = page.render_page({"base": summary(rows, model="runs/mine/model")}, rows)
    assert "mine solves 2 of 3 problems" in Read(text).text
    assert "66.7 % right" in Read(text).text
    assert "trained" not in Read(text).text.lower()
    assert "base" not in Read(text).text.lower()
    assert data_of(text)["models"] == ["model"]


def test_each_answer_says_what_went_wrong_in_it() -> None:
    comparison, old, new = compared("rw", "w-", "2 + 2 = 5. ")
    text = Read(page.render_page(comparison, old, new)).text
    assert text.count("arithmetic slip: 2 + 2 = 5 should be 4") == 2
    assert text.count("Right all the same: 2 + 2 = 5 should be 4") == 1
    assert text.count("cut by the length limit; besides, 2 + 2 = 5 should be 4") == 1


def test_the_counts_of_what_went_wrong_lead_to_their_problems() -> None:
    comparison, old, new = compared("rrww-", "rwrrw")
    read = Read(page.render_page(comparison, old, new, diagnosis=comparison["diagnosis"]))
    found = {(a["data-model"], a["data-kind"]) for _, a in read.elements if "data-kind" in a}
    kinds = [list(CATEGORIES).index(kind) for kind in ("other_wrong", "cut")]
    assert found == {("0", str(kind)) for kind in kinds} | {("1", str(kinds[0]))}


def test_long_texts_are_cut_and_said_to_be() -> None:
    text = Read(rendered(extra="x" * 20_000)).text
    assert "more characters are in records.jsonl" in text
    assert "x" * 8_001 not in text


def test_numbers_have_one_way_to_be_written() -> None:
    assert percent(0.315) == "31.5\N{NO-BREAK SPACE}%"
    assert [points(x) for x in (0.0632, -0.0321, 0.0, -0.0001)] == ["+6.3", "−3.2", "0.0", "0.0"]
    assert [p_value(p) for p in (0.0123, 1.0, 1e-9)] == ["p = 0.012", "p = 1", "p < 0.0001"]


# --- what a page tells first ------------------------------------------------------------------------------------------


def test_how_far_the_verdict_goes_stands_beside_it() -> None:
    old, new = records("w" * 20, ""), records("r" * 15 + "w" * 5)
    for rows in (old, new):
        for record in rows[15:]:
            record["template"] = "leaking_tank"
    sides = [summary(rows) | summarise(rows, frozenset({"leaking_tank"})) for rows in (old, new)]
    text = Read(page.render_page(make_comparison(*sides, old, new), old, new)).text
    assert "0 of 5 on templates that training never showed: neither solves any." in text
    body = text.partition("Skip to the problems")[2]
    assert body.index("The trained model is better") < body.index("0 of 5 on templates") < body.index("Won and lost")
    new[19]["rules"]["flexible"]["correct"] = True
    sides[1] |= summarise(new, frozenset({"leaking_tank"}))
    text = Read(page.render_page(make_comparison(*sides, old, new), old, new)).text
    assert "1 of 5 on templates that training never showed; the base has 0." in text
    few = Read(rendered()).text
    assert "5 problems cannot show any difference" in few
    timed = {"n": 5, "of": 400, "max_time": "10m"}
    assert (
        "A random sample: 5 of 400 problems fitted into 10m."
        in Read(page.render_page(*compared("rrww-", "rwrrw", time=timed))).text
    )
    assert "A random sample" not in few


def test_what_went_wrong_is_bars_without_what_never_happened() -> None:
    counts = [("correct", 100, 150), ("wrong operation", 20, 5), ("no answer", 0, 10), ("degenerate text", 0, 0)]
    rows = [{"category": label, "base": base, "trained": trained} for label, base, trained in counts]
    read = Read(rendered(diagnosis=rows))
    assert "wrong operation 20 (400.0 %) 5 (100.0 %)" in read.text.replace("\xa0", " ")
    assert "Not seen: degenerate text." in read.text
    bars = [a["width"] for tag, a in read.elements if tag == "rect" and a.get("height") == "100%" and "x" not in a]
    assert bars == ["100.00%", "25.00%", "0.00%", "50.00%"]


def test_three_examples_with_their_first_wrong_step_marked() -> None:
    comparison, old, new = compared("rwwr", "wrww", "2 + 2 = 5. ")
    read = Read(page.render_page(comparison, old, new))
    titles = [read.text.index(title) for title in ("A win test-1", "A loss test-0", "The typical failure test-")]
    assert titles == sorted(titles)
    assert "arithmetic slip: 3 of the 3 wrong answers" in read.text
    marks = sum(tag == "mark" for tag, _ in read.elements)
    assert marks == 2 * 3 + 2 * 4  # both texts of three cards and of four rows
    assert "<mark>2 + 2 = 5</mark>" in page.render_page(comparison, old, new)
    assert "A win" not in Read(page.render_page(*compared("rr", "rr"))).text


def test_rules_that_agree_stand_together_and_what_nobody_solves_is_said() -> None:
    comparison, old, new = compared("rrww", "rwrw")
    text = Read(page.render_page(comparison, old, new, steps=[{"steps": "9", "n": 4, "base": 0, "trained": 0}])).text
    together = "strict v3, flexible v3, robust v2, openai v1, qwen-math v1, verl v1, inspect v1"
    assert f"{together} 50.0 % 15.0 to 85.0" in text
    assert "cot v3 neither solves any" in text
    assert "94 neither solves any" in text  # cells have no space between
    assert "8 rules, 2 different readings" in text
    none = Read(page.render_page(*compared("ww", "ww"))).text
    assert "Neither model solves any of the 2 problems." in none
    for old, new in ("rw", "wr", "ww"):  # one problem is not 1 problems
        one = Read(page.render_page(*compared(old, new))).text
        assert "1 problem" in one
        assert re.findall(r"\b1 (?:\w+ )?(?:problems|tokens|answers|rows|updates)\b", one) == []
    assert "all 8 give every answer the same verdict" in none
    assert "Where the rules disagree" not in none


def test_rows_are_numbered_as_their_problems_are() -> None:
    comparison, old, new = compared("rw", "wr")
    for rows in (old, new):
        for record, name in zip(rows, ("test-257", "test-9"), strict=True):
            record["id"] = name
    ids = [a["id"] for tag, a in Read(page.render_page(comparison, old, new)).elements if tag == "tr" and "id" in a]
    assert ids == ["p257", "t257", "p9", "t9"]
    assert page.numbered(["a-1", "b-1"]) == page.numbered(["one", "two-2"]) == [1, 2]


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("embedded", "SmolLM2-135M"),
        ("Qwen/Qwen2.5-0.5B-Instruct", "Qwen2.5-0.5B-Instruct"),
        ("/home/me/runs/mine/", "mine"),
        ("runs/mine/best", "mine/best"),
        ("runs/mine/checkpoints/update-000050/model", "mine/update-000050"),
        ("./model", "model"),
        ("x" * 50, "x" * 40 + "…"),
        ("/", "/"),
    ],
)
def test_a_model_has_a_short_name(name: str, short: str) -> None:
    assert short_model(name) == short


def test_data_has_a_short_name() -> None:
    names = ("openai/gsm8k (main)", "openai/gsm8k (socratic)", "generated", "/data/mine/", "a/b.jsonl")
    assert [short_data(name) for name in names] == ["gsm8k", "gsm8k (socratic)", "generated", "mine", "b.jsonl"]


def test_several_trained_models_have_one_table_and_a_corrected_p() -> None:
    old = records("w" * 30)
    sides = [records("r" * 7 + "w" * 23), records("r" * 9 + "w" * 21), records("r" + "w" * 29)]
    named = [summary(rows, model=f"runs/{name}") for name, rows in zip("abc", sides, strict=True)]
    comparison = make_comparisons(summary(old), named, old, sides)
    text = Read(
        page.render_page(comparison, old, *sides, run_curves=[{"loss": Curve([1, 2], [2.0, 1.0])}, None, None])
    ).text
    assert "2 of 3 trained models are better" in text
    assert "c 3.3 % 0.6 to 16.7" in text
    assert [headline(pair).better for pair in pairs(comparison)] == ["trained", "trained", "neither"]
    ps = [each["paired"]["p"] for each in comparison["comparisons"]]
    assert [each["paired"]["p_holm"] for each in comparison["comparisons"]] == pytest.approx([2 * ps[0], 3 * ps[1], 1])
    assert "Each p is corrected for 3 tests (Holm), and decides" in text
    assert "Base against b." in text  # the examples are the best one's
    assert data_of(page.render_page(comparison, old, *sides))["models"] == ["base", "a", "b", "c"]
    with pytest.raises(DataError, match=r"records \(b\)"):
        page.render_page(comparison, old, sides[0], sides[1][::-1], sides[2])


MET = {"shared": 25, "line": "25 of the 30"}


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_of_several_models_each_verdict_says_what_that_model_was_trained_on(order: str) -> None:
    old, new = records("w" * 30), records("r" * 9 + "w" * 21)
    named = [summary(new, model=f"runs/{name}", **({"overlap": MET} if name == "b" else {})) for name in order]
    found = {"results": 3, "answers": 2, "of": 30}
    for calculator in ({}, {"calculator": found}):
        comparison = make_comparisons(summary(old, **calculator), named, old, [new, new])
        text = Read(page.render_page(comparison, old, new, new)).text
        head, _, table = text.partition("Each trained model is held against")
        assert f"2 of 2 trained models are better{', with calculator' if calculator else ''} " in head
        assert "training data" not in head  # it is of one of the two
        _, *verdicts = table.partition("Ranges are")[0].split("30.0 % 16.7 to 47.9")
        why = "better but 25 of these 30 problems are in the training data"
        assert [why in said for said in verdicts] == [name == "b" for name in order]
        assert all("better" in said for said in verdicts)
        assert ["but 25 of these 30" in each["verdict"] for each in comparison["comparisons"]] == [
            name == "b" for name in order
        ]


def test_a_random_sample_is_called_one_on_each_kind_of_page() -> None:
    old, new = records("w" * 30), records("r" * 9 + "w" * 21)
    said = "A random sample: 30 of 1,319 problems fitted into 10m."
    for of, times in ((1319, 1), (30, 0)):
        time = {"n": 30, "of": of, "max_time": "10m"}
        named = [summary(new, model=name, time=time) for name in "ab"]
        several = make_comparisons(summary(old, time=time), named, old, [new, new])
        pages = (
            page.render_page(several, old, new, new),
            page.render_page(make_comparison(summary(old), named[0], old, new), old, new),
            page.render_page({"base": named[0]}, new),
        )
        assert [Read(text).text.partition("What went wrong")[0].count(said) for text in pages] == [times] * 3


def test_a_p_that_is_small_alone_and_not_corrected_shows_nothing() -> None:
    old, six = records("w" * 30), records("r" * 6 + "w" * 24)
    same = [summary(six, model=name) for name in "ab"]
    comparison = make_comparisons(summary(old), same, old, [six, six])
    assert [each["paired"]["p"] for each in comparison["comparisons"]] == [0.03125] * 2
    assert [each["verdict"] for each in comparison["comparisons"]] == [
        "not distinguishable at n = 30: 6 won, 0 lost, p = 0.031 (0.062 corrected) by the flexible rule"
    ] * 2
    assert "None of 2 trained models is better" in Read(page.render_page(comparison, old, six, six)).text


# --- faults -----------------------------------------------------------------------------------------------------------


def test_what_is_missing_is_our_error() -> None:
    comparison, old, new = compared("rw", "wr")
    del comparison["base"]["mean_tokens"]  # only the template reads it
    with pytest.raises(DataError, match=r"mean_tokens.*run compare again"):
        page.render_page(comparison, old, new)
    del old[0]["question"]
    with pytest.raises(DataError, match="question"):
        page.render_page(compared("rw", "wr")[0], old, new)


def test_a_name_that_the_template_lacks_is_our_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in page.TEMPLATES.iterdir():
        (tmp_path / part.name).write_bytes(part.read_bytes())
    (tmp_path / "report.html.j2").write_text("{{ models[0].summary.nobody }}")
    monkeypatch.setattr(page, "TEMPLATES", tmp_path)
    monkeypatch.setattr(page, "environment", page.environment.__wrapped__)  # else one that was read
    with pytest.raises(DataError, match="nobody"):
        rendered()


def test_records_of_other_problems_are_refused() -> None:
    comparison, old, new = compared("rw", "wr")
    with pytest.raises(DataError, match=r"records \(trained\)"):
        page.render_page(comparison, old, new[::-1])
    with pytest.raises(DataError, match=r"records \(base\)"):
        page.render_page(comparison, old[:1], new[:1])


def test_the_file_is_written_whole(tmp_path: Path) -> None:
    comparison, old, new = compared("rw", "wr", extra="caf\xe9 \ud800 ")
    page.write_page(tmp_path / "report.html", comparison, old, new)
    assert "café ⟨U+D800⟩" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_run_of_own_answers_shows_its_rounds() -> None:
    counts = {"round": 1, "asked": 1300, "answered": 5200, "verified": 700, "kept": 610, "new_chains": 44}
    counts |= {"wrong_step": 12, "tokens": 610_000, "rate": 0.125, "interval": [0.108, 0.144]}
    second = counts | {"round": 2, "kept": 0, "rate": None, "interval": None}
    found = Read(rendered(facts=Facts(rounds=[counts, second])))
    assert "#own" in [attributes.get("href") for tag, attributes in found.elements if tag == "a"]
    assert "11,3005,200700610441212.5 %10.8 to 14.4610,0001,000 a kept row" in found.text  # cells have no space between
    assert "21,3005,200700044" in found.text
    assert "Own answers" not in Read(rendered(facts=Facts())).text


@pytest.mark.parametrize(
    ("trained", "verify", "said"),
    [
        (610, "steps", "on answers of its own: sampled on train problems, and kept where the number and every step"),
        (610, "gold", "kept where the number is right; steps were not checked. Solved is"),
        (0, "steps", "none of these answers was trained on: it learned from human ones alone. Solved is"),
        (None, None, "The model answered train problems itself. Solved is"),
    ],
)
def test_what_became_of_own_answers_is_said_as_it_was(trained: int | None, verify: str | None, said: str) -> None:
    counts = {"round": 1, "asked": 13, "answered": 52, "verified": 7, "kept": 6, "new_chains": 4, "wrong_step": 1}
    counts |= {"tokens": 610, "rate": None, "interval": None}
    facts = Facts(rounds=[counts], own=own_answers(trained, verify))
    text = Read(rendered(facts=facts)).text
    assert said in text
    assert ("was trained on answers of its own" in text) == bool(trained)
