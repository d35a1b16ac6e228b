"""The page of `serve` in a real browser: one question, base and trained beside each other, hostile words or not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.core.serving.conftest import Running, serving
from tests.page.test_page import EVIL, WATCH, Opened
from tests.waiting import CEILING, SOONEST

KEY = "sesame-open"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("page") / "llama", "llama")


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Running]:
    with serving(SOONEST, folder) as found:
        yield found


def open_page(browser: Any, running: Running, width: int = 1280) -> Opened:
    context = browser.new_context(viewport={"width": width, "height": 800})
    context.set_default_timeout(CEILING * 1000)
    opened = Opened(context.new_page())
    page = opened.page
    page.add_init_script(WATCH)
    page.on("console", lambda message: opened.complaints.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: opened.complaints.append(f"error: {error}"))
    page.on("request", lambda sent: None if sent.url.startswith(running.url) else opened.complaints.append(sent.url))
    page.goto(running.url)
    return opened


def ask(page: Any, question: str) -> list[str]:
    """What base and trained say, in the order of the page."""
    page.get_by_label("Question").fill(question)
    page.keyboard.press("Control+Enter")
    page.locator(".turn:last-child .answer").first.wait_for()
    page.locator("#send:enabled").wait_for()
    return page.locator(".turn:last-child .answer pre").all_text_contents()  # type: ignore[no-any-return]


def close(opened: Opened, *, complaints: int = 0) -> None:
    """Nothing was said, loaded, blocked or run that is not the page's own."""
    assert opened.page.evaluate("window.violations") == []
    assert opened.page.evaluate("window.hacked") is None
    assert opened.page.evaluate("document.querySelectorAll('img, iframe, .turn a, .turn svg, .turn style').length") == 0
    assert len(opened.complaints) == complaints, opened.complaints
    opened.page.context.close()


def test_one_question_is_answered_by_base_and_trained_beside_each_other(browser: Any, running: Running) -> None:
    opened = open_page(browser, running)
    page = opened.page
    page.locator("#send:enabled").wait_for()
    assert page.locator("h1").inner_text() == "Ask base and trained"
    with running.client() as client:
        asked: Any = {"model": "tiny", "messages": [{"role": "user", "content": "how many ?"}]}
        text = client.chat.completions.create(**asked).choices[0].message.content
    assert ask(page, "how many ?") == [text, text]
    assert page.locator(".answer h2").all_inner_texts() == ["base: other", "trained: tiny"]
    boxes = [page.locator(f".answer.{role}").bounding_box() for role in ("base", "trained")]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] < boxes[1]["x"]
    assert all(" tokens, " in note for note in page.locator(".answer .note").all_inner_texts())
    again = ask(page, "and 5 more ?")
    assert len(again) == 2
    assert page.locator(".turn").count() == 2
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / "serve-page.png", full_page=True)
    page.get_by_role("button", name="New conversation").click()
    assert page.locator(".turn").count() == 0
    page.get_by_text("Settings").click()
    page.get_by_label("base: other").uncheck()
    assert len(ask(page, "how many ?")) == 1
    close(opened)


def test_hostile_words_are_shown_and_do_nothing(
    browser: Any, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gsm8k_core.serving.detokenizer.decode", lambda tokenizer, tokens: EVIL if tokens else "")
    opened = open_page(browser, running)
    opened.page.locator("#send:enabled").wait_for()
    for text in ask(opened.page, EVIL):
        assert text.startswith("<img src=x onerror=")
        assert "⟨U+001B⟩[2J⟨U+001B⟩]0;title⟨U+0007⟩⟨U+202E⟩esrever" in text
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 1280
    close(opened)


def test_what_the_server_refuses_is_said(browser: Any, running: Running) -> None:
    opened = open_page(browser, running, width=375)
    page = opened.page
    page.locator("#send:enabled").wait_for()
    page.get_by_text("Settings").click()
    page.get_by_label("Longest answer").fill("100000")
    ask(page, "how many ?")
    notes = page.locator(".answer .note.bad").all_inner_texts()
    assert len(notes) == 2
    assert all("this model reads 200 tokens" in note for note in notes)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    close(opened, complaints=2)  # the browser names the two answers with 400 in its console


def test_the_key_is_asked_for_where_one_is_wanted(browser: Any, folder: Path) -> None:
    with serving(SOONEST, folder, key=KEY) as running:
        opened = open_page(browser, running)
        page = opened.page
        assert "wants its key" in page.locator("#state").inner_text()
        page.get_by_label("Key").fill(KEY)
        page.keyboard.press("Tab")
        page.locator("#send:enabled").wait_for()
        assert len(ask(page, "how many ?")) == 2
        close(opened)
