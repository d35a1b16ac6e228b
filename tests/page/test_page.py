"""report.html in a real browser: 1,319 problems, some of them hostile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gsm8k_core.report.comparison import make_comparison, make_comparisons
from gsm8k_core.report.curves import Curve
from gsm8k_core.report.page import write_page
from gsm8k_core.report.words import Facts
from gsm8k_core.scoring.evaluate import make_record, summarise
from gsm8k_core.types import Completion, Problem

NUM_PROBLEMS = 1319
HOSTILE = 7  # the number of the problem whose texts attack
EVIL = (
    "<img src=x onerror=\"window.hacked='img'\"></script><script>window.hacked='script'</script>"
    '"><svg onload="window.hacked=\'svg\'"><a href="javascript:window.hacked=\'link\'">press</a>'
    "<style>body{display:none}</style><iframe srcdoc='<script>parent.hacked=1</script>'></iframe>"
    "<meta http-equiv=refresh content='0;url=https://example.com'>\x1b[2J\x1b]0;title\x07\u202eesrever #### 4"
)
WATCH = (
    "window.violations = []; addEventListener('securitypolicyviolation', (e) => violations.push(e.violatedDirective));"
)


def make_records(offset: int) -> list[dict[str, Any]]:
    found = []
    for number in range(NUM_PROBLEMS):
        problem = Problem(f"test-{number}", f"Question {number}: how many plums? " + "Words. " * 20, "#### 4", "4")
        right = (number + offset) % 5 < 2 + offset
        text = EVIL if number == HOSTILE else "Some steps of work. " * 20 + f"\n#### {4 if right else 5}"
        finish = "length" if number % 50 == 0 else "stop"
        found.append(make_record(problem, Completion((1,) * 40, finish), text))
    return found


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    base, trained = make_records(0), make_records(1)
    sides = [
        {"model": EVIL, "hash": "0" * 64, **summarise(records, frozenset()), "data": "openai/gsm8k (main)"}
        for records in (base, trained)
    ]
    compared = make_comparison(*sides, base, trained)
    curves = {
        "loss": Curve(list(range(1, 101)), [2 / n for n in range(1, 101)]),
        "dev accuracy": Curve([50, 100], [0.2, 0.3]),
    }
    path = tmp_path_factory.mktemp("page") / "report.html"
    counted = [{"category": EVIL, "base": 3, "trained": 2}, *compared["diagnosis"]]
    steps = [{"steps": str(n), "n": 9, "base": 3, "trained": 4} for n in range(1, 9)]
    facts = Facts(f"compare {EVIL}", versions={EVIL: EVIL}, reproduce=["a " * 60])
    write_page(path, compared, base, trained, curves=curves, diagnosis=counted, steps=steps, facts=facts)
    return path, compared


@dataclass
class Opened:
    page: Any
    complaints: list[str] = field(default_factory=list)  # console, errors, requests, violations

    def shown(self) -> int:
        return self.visible("#rows > .item")

    def visible(self, selector: str) -> int:
        """How many can be seen. A locator would ask for each of 1,319 by itself."""
        script = "(all) => [...document.querySelectorAll(all)].filter((one) => one.checkVisibility()).length"
        return int(self.page.evaluate(script, selector))


Open = Callable[..., Opened]


@pytest.fixture
def open_page(browser: Any, comparison: tuple[Path, dict[str, Any]]) -> Iterator[Open]:
    """Opens the report; afterwards nothing may have been said, loaded, blocked or run that is not the page's own."""
    contexts: list[tuple[Any, Opened]] = []

    def opener(width: int = 1280, height: int = 800, **options: Any) -> Opened:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        opened = Opened(context.new_page())
        contexts.append((context, opened))
        page, url = opened.page, comparison[0].as_uri()
        page.add_init_script(WATCH)
        page.on("console", lambda message: opened.complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: opened.complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (opened.complaints.append("dialog"), dialog.dismiss()))
        page.on("request", lambda sent: None if sent.url.startswith(url) else opened.complaints.append(sent.url))
        page.goto(url)
        return opened

    yield opener
    for context, opened in contexts:
        page = opened.page
        if page.evaluate("typeof window.violations") != "undefined":
            assert page.evaluate("window.violations") == []
        assert page.evaluate("window.hacked") is None
        assert page.evaluate("document.querySelectorAll('img, iframe, #rows a, #rows svg, #rows style').length") == 0
        assert opened.complaints == []
        context.close()


def test_outcomes_filter_the_table(open_page: Open, comparison: tuple[Path, dict[str, Any]]) -> None:
    opened, test = open_page(), comparison[1]["paired"]
    assert opened.shown() == NUM_PROBLEMS
    for outcome in ("won", "lost"):
        opened.page.get_by_role("radio", name=outcome).check()
        assert opened.shown() == test[outcome]
        tags = opened.page.locator("#rows > .item:visible .tag").all_text_contents()
        assert set(tags) == ({outcome} if test[outcome] else set())
        assert f"{test[outcome]:,} of 1,319" in opened.page.locator("#shown").inner_text()
    opened.page.locator(".shown").get_by_role("button", name="Clear").click()
    assert opened.shown() == NUM_PROBLEMS


def test_search_finds_words_in_every_text(open_page: Open) -> None:
    opened = open_page()
    search = opened.page.get_by_role("searchbox")
    search.fill("plums test-1042")
    assert opened.shown() == 1
    search.fill("esrever ONERROR")  # only in the hostile answers, which are closed
    assert opened.shown() == 1
    search.fill("no such words")
    assert opened.shown() == 0
    assert opened.page.get_by_text("No problem matches").is_visible()
    search.press("Escape")
    assert opened.shown() == NUM_PROBLEMS


def test_the_rule_changes_what_is_marked(open_page: Open, comparison: tuple[Path, dict[str, Any]]) -> None:
    opened = open_page()
    for rule in ("strict", "robust"):
        opened.page.get_by_label("Rule", exact=True).select_option(label=rule)
        opened.page.get_by_role("radio", name="won").check()
        assert opened.shown() == comparison[1]["paired_by_rule"][rule]["won"]


def test_answers_that_were_cut_can_be_chosen(open_page: Open, comparison: tuple[Path, dict[str, Any]]) -> None:
    opened = open_page()
    opened.page.get_by_label("Answers", exact=True).select_option(label="base cut")
    assert opened.shown() == comparison[1]["base"]["cut"]


def test_a_number_in_a_table_shows_its_problems(open_page: Open, comparison: tuple[Path, dict[str, Any]]) -> None:
    opened = open_page()
    opened.page.locator(".twobytwo .won button").click()
    assert opened.shown() == comparison[1]["paired"]["won"]
    opened.page.get_by_text("Where the rules disagree").click()
    cell = opened.page.locator(".matrix button").first
    count = int(cell.inner_text().replace(",", ""))
    cell.click()
    assert opened.shown() == count
    opened.page.locator("#behind").click()
    assert opened.shown() == NUM_PROBLEMS


def test_a_kind_of_answer_shows_its_problems(open_page: Open, comparison: tuple[Path, dict[str, Any]]) -> None:
    opened = open_page()
    row = next(row for row in comparison[1]["diagnosis"] if row["category"] == "degenerate text")
    assert 0 < row["base"] != row["trained"] > 0
    buttons = opened.page.locator("#diagnosis").get_by_role("row", name="degenerate text").get_by_role("button")
    for place, name in enumerate(("base", "trained")):
        assert buttons.nth(place).inner_text().startswith(f"{row[name]} (")  # a space between count and percent
        buttons.nth(place).click()
        assert opened.shown() == row[name]
        assert opened.page.locator("#behind").inner_text().startswith(f"{name}: degenerate text")


def test_of_several_models_each_is_held_against_the_base(browser: Any, tmp_path: Path) -> None:
    answers = [make_records(offset)[:60] for offset in (0, 1, 2)]
    sides = [{"model": name, **summarise(rows, frozenset())} for name, rows in zip("xab", answers, strict=True)]
    sides[2]["overlap"] = {"shared": 25, "line": "25 of the 60"}
    compared = make_comparisons(sides[0], sides[1:], answers[0], answers[1:])
    write_page(tmp_path / "report.html", compared, *answers)
    page = browser.new_page(viewport={"width": 375, "height": 700})
    page.goto((tmp_path / "report.html").as_uri())
    for place, name in enumerate("ab"):
        test = compared["comparisons"][place]["paired"]
        page.get_by_label("Base against").select_option(label=name)
        page.get_by_role("radio", name="won").check()
        assert page.locator("#shown").inner_text().startswith(f"{test['won']} of 60")
    won = page.locator("table.several tr", has_text="a").locator("td[data-outcome=won] button").first
    won.click()
    assert page.locator("#against").input_value() == "1"
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    for width in (375, 800):
        page.set_viewport_size({"width": width, "height": 800})
        why = page.get_by_text("but 25 of these 60 problems are in the training data").bounding_box()
        table = page.get_by_role("region", name="Each trained model against the base").bounding_box()
        assert why["x"] + why["width"] <= table["x"] + table["width"]  # nothing of it has to be scrolled to
    page.close()


def test_1319_rows_are_filtered_in_less_than_a_second(open_page: Open) -> None:
    times = open_page().page.evaluate(
        """() => ["question 4", "", "plums work", "zzz", ""].map((words) => {
            const search = document.getElementById("search"), start = performance.now();
            search.value = words;
            search.dispatchEvent(new Event("input"));
            document.body.getBoundingClientRect();
            return performance.now() - start;
        })"""
    )
    assert max(times) < 1000, times


def test_hostile_text_is_shown_and_does_nothing(open_page: Open) -> None:
    opened = open_page()
    opened.page.locator(f"#p{HOSTILE} button").click()
    text = opened.page.locator(f"#t{HOSTILE} .base pre").inner_text()
    assert text.startswith("<img src=x onerror=")
    assert "⟨ESC⟩[2J⟨ESC⟩]0;title⟨BEL⟩⟨U+202E⟩esrever" in text
    opened.page.locator(".shown").get_by_role("button", name="Open all shown").click()
    assert opened.visible("#rows > .text") == NUM_PROBLEMS


def test_an_injected_handler_would_not_run_even_as_markup(open_page: Open) -> None:
    """The control: the policy stops what escaping would have let through."""
    opened = open_page()
    opened.page.evaluate("document.body.insertAdjacentHTML('beforeend', '<b id=in onclick=\"window.hacked=1\">x</b>')")
    opened.page.evaluate("document.getElementById('in').click()")
    assert opened.page.evaluate("window.hacked") is None
    assert opened.page.evaluate("window.violations.splice(0).length") > 0
    opened.complaints.clear()  # the browser said so, too


def test_the_keyboard_is_enough(open_page: Open) -> None:
    opened = open_page()
    keys, page = opened.page.keyboard, opened.page
    keys.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    keys.press("Enter")
    keys.press("Tab")
    assert page.evaluate("document.activeElement.value") == "all"
    keys.press("ArrowRight")
    won = opened.shown()
    assert page.evaluate("document.activeElement.value") == "won"
    assert 0 < won < NUM_PROBLEMS
    keys.press("Tab")
    keys.type("question")
    assert page.evaluate("document.activeElement.id") == "search"
    page.locator("#rows > .item:visible button").first.focus()
    keys.press("Enter")
    assert page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"
    assert opened.visible("#rows > .text") == 1
    keys.press("Space")
    assert opened.visible("#rows > .text") == 0
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


@pytest.mark.parametrize("width", [320, 375])
def test_a_phone_never_scrolls_sideways(open_page: Open, width: int) -> None:
    opened = open_page(width, 640)
    opened.page.locator(f"#p{HOSTILE} button").click()
    opened.page.locator(".shown").get_by_role("button", name="Open all shown").click()
    opened.page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_phone_shows_20_problems_and_more_when_asked(open_page: Open) -> None:
    opened = open_page(375, 640)
    more = opened.page.locator("#more")
    assert (opened.shown(), more.inner_text()) == (20, "More (1,299 left)")
    more.click()
    assert (opened.shown(), more.inner_text()) == (40, "More (1,279 left)")
    opened.page.get_by_role("searchbox").fill("test-104")  # and 1040 to 1049
    assert opened.shown() == 11
    assert not more.is_visible()
    assert "11 of 1,319 problems" in opened.page.locator("#shown").inner_text()
    opened.page.get_by_role("searchbox").fill("")
    assert opened.shown() == 20
    opened.page.set_viewport_size({"width": 800, "height": 800})
    assert opened.shown() == NUM_PROBLEMS


def test_an_example_leads_to_its_problem(open_page: Open) -> None:
    for width in (1280, 375):  # on a phone it is not among the first 20
        opened = open_page(width, 800)
        link = opened.page.locator(".card a").last
        name = link.inner_text()
        link.click()
        place = name.removeprefix("test-")
        assert opened.page.locator(f"#p{place}").is_visible()
        assert opened.page.locator(f"#t{place} h3 small").first.inner_text() == name
        assert opened.page.locator(f"#p{place} .number").inner_text() == place
        assert not (width == 375 and opened.page.locator("#p900").is_visible())
        opened.page.evaluate("location.hash = '#p900'")
        opened.page.locator("#t900").wait_for(state="visible")


def test_dark_mode_is_dark(open_page: Open, tmp_path: Path) -> None:
    def brightness(scheme: str) -> int:
        opened = open_page(color_scheme=scheme)
        opened.page.screenshot(path=tmp_path / f"{scheme}.png")
        colour = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3])

    assert brightness("dark") < 150 < 600 < brightness("light")
    assert (tmp_path / "dark.png").stat().st_size > 10_000


def test_without_scripts_everything_can_be_read(browser: Any, comparison: tuple[Path, dict[str, Any]]) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(comparison[0].as_uri())
    hidden = ":is(.item, .text) >> visible=false"
    assert page.locator(f"#rows > {hidden}").count() == 0
    assert page.locator(".tools:visible, .shown:visible").count() == 0
    context.close()


def test_paper_gets_the_result_and_the_open_problems(open_page: Open) -> None:
    opened = open_page()
    opened.page.locator("#p3 button").click()
    opened.page.emulate_media(media="print")
    assert opened.visible("#rows > .item") == 1
    assert opened.page.locator("h1").is_visible()
    assert not opened.page.locator(".tools").is_visible()


def test_every_control_and_row_has_a_name_and_a_role(open_page: Open) -> None:
    page = open_page().page
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert page.get_by_role("table").count() >= 6
    assert page.get_by_role("row").count() >= NUM_PROBLEMS
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('button:not([hidden]), input, select')].filter((e) =>
            !(e.textContent.trim() || e.ariaLabel || e.labels?.[0]?.textContent.trim())).length"""
    )
    assert unnamed == 0
