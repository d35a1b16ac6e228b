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
from gsm8k_core.report.comparison import make_comparison, verdict
from gsm8k_core.report.words import Facts, headline, own_answers, p_value, percent, points, visible, without_secrets
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
    assert "Trained: Test problems in the training data: 3 of the 5." in text
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
    own = (page.TEMPLATES / "report.css").read_text() + (page.TEMPLATES / "problems.css").read_text()
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
    text = page.render_page({"base": summary(rows)}, rows)
    assert "66.7 % right" in Read(text).text
    assert "trained" not in Read(text).text.lower()
    assert "base" not in Read(text).text.lower().replace("me/base", "")
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
    kinds = [list(CATEGORIES).index(kind) for kind in ("correct", "other_wrong", "cut")]
    assert found == {("0", str(kind)) for kind in kinds} | {("1", str(kind)) for kind in kinds[:2]}


def test_long_texts_are_cut_and_said_to_be() -> None:
    text = Read(rendered(extra="x" * 20_000)).text
    assert "more characters are in records.jsonl" in text
    assert "x" * 8_001 not in text


def test_numbers_have_one_way_to_be_written() -> None:
    assert percent(0.315) == "31.5\N{NO-BREAK SPACE}%"
    assert [points(x) for x in (0.0632, -0.0321, 0.0, -0.0001)] == ["+6.3", "−3.2", "0.0", "0.0"]
    assert [p_value(p) for p in (0.0123, 1.0, 1e-9)] == ["p = 0.012", "p = 1", "p < 0.0001"]


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
