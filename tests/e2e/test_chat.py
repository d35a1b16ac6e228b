"""`chat`: typed and piped, its commands, its history, and what stops it; and the model that nobody named."""

from __future__ import annotations

import io
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.serving.conversation import USER, ContextLimits, fit
from tests import tiny
from tests.e2e.conftest import Done, Run
from tests.waiting import SOONEST

QUESTION = "Tom has 4 apples . how many ?"
Chat = Callable[..., Done]


@pytest.fixture
def chat(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> Chat:
    """The lines are piped in."""

    def call(*lines: str | bytes, arguments: tuple[object, ...] = (), of: object = None) -> Done:
        content = b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        more = ("--max-new-tokens", 12, "--dtype", "float32", "--backend", SOONEST)
        return run("chat", *(("--model", of or model) if of != "auto" else ()), *more, *arguments)

    return call


@pytest.fixture
def finished(model: Path, tmp_path: Path) -> Path:
    """A run that is done, whose base is the tiny model and whose model is another one; and a newer one that is not."""
    folder = tmp_path / "runs" / "mine"
    tiny.make(folder / "model", "llama", seed=5)
    began = {"name": str(model), "hash": ModelFolder(model).hash}
    ended = {"status": "stopped", "outcome": {"reason": "budget"}}
    (folder / "run.json").write_text(json.dumps({**ended, "started": "2026-11-01", "model": began}))
    for name, started, status in (("older", "2026-10-01", "done"), ("newer", "2026-11-02", "stopped")):
        shutil.copytree(folder, folder.parent / name)
        stopped = {"status": status, "started": started, "outcome": {"reason": "interrupted"}}
        (folder.parent / name / "run.json").write_text(json.dumps(stopped))
    return folder


def turns(done: Done) -> list[dict[str, str]]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["turns"]  # type: ignore[no-any-return]


def test_a_conversation_goes_on_from_what_was_said(chat: Chat, run: Run, model: Path) -> None:
    found = turns(chat(QUESTION, "", "and 5 more ?", arguments=("--json",)))
    assert [turn["role"] for turn in found] == ["user", "assistant"] * 2
    alone = turns(chat("and 5 more ?", arguments=("--json",)))
    anew = turns(chat(QUESTION, "/reset", "and 5 more ?", arguments=("--json",)))
    assert anew == alone
    assert found[3] != alone[1]  # it read the turns before
    shown = chat(QUESTION, "and 5 more ?")
    assert shown.stdout == f"{found[1]['content']}\n\n{found[3]['content']}\n\n"
    asked = run("generate", QUESTION, "--model", model, "--backend", SOONEST, "--max-new-tokens", 12)
    assert asked.stdout.strip() == found[1]["content"]  # the first answer is the one that generate gives


def test_commands_do_what_help_says(chat: Chat) -> None:
    done = chat("/help", "/temp", "/temp 0.5", "/system", "/system You add .", "/system none", "/exit", QUESTION)
    assert done.returncode == 0
    assert done.stdout == ""
    for said in ("/base [QUESTION]", "(temperature 0: greedy)", "(temperature 0.5)", "Solve step by step", "You add ."):
        assert said in done.stderr
    assert "(system turn: none)" in done.stderr
    assert max(map(len, done.stderr.splitlines())) <= 80


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/temprature 1", "there is no command /temprature (there are /base, /system, /temp, /reset, /help, /exit)"),
        ("/temp warm", "/temp takes a number from 0 on, as in /temp 0.7 (got warm)"),
        ("/temp -1", "/temp takes a number from 0 on, as in /temp 0.7 (got -1)"),
        ("/temp nan", "/temp takes a number from 0 on, as in /temp 0.7 (got nan)"),
        ("/base", "there is no base beside this model; start chat with --base-model MODEL"),
        (b"Tom \xff has", "this line is not UTF-8 text"),
        ("how many " * 400, "this question has"),
        ("x" * 3_000_000, "this line is longer than 1,000,000 bytes, and was left out"),
        (" " * 2_000_000 + "how many ?", "this line is longer than 1,000,000 bytes"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_the_next_is_answered(chat: Chat, line: str | bytes, says: str) -> None:
    done = chat(line, QUESTION)
    assert done.returncode == 4
    assert [row for row in done.stderr.splitlines() if row.startswith("error: ")] == [
        next(row for row in done.stderr.splitlines() if says in row)
    ]
    assert len(done.stdout) > 10


def test_the_oldest_questions_are_left_out_where_they_no_longer_fit(chat: Chat, model: Path) -> None:
    long = "how many apples has Tom ? " * 25
    done = chat(long, long, long, long, QUESTION)
    assert done.returncode == 0
    assert "(the oldest question is left out: the model reads 512 tokens)" in done.stderr
    said = [{"role": role, "content": long} for _ in range(9) for role in ("user", "assistant")]
    kept = fit(ModelFolder(model), [*said, {"role": USER, "content": QUESTION}], ContextLimits(512, 64))
    assert len(kept.prompt) + 64 <= 512
    assert kept.turns[0]["role"] == USER
    assert kept.turns[-1]["content"] == QUESTION
    assert len(kept.turns) == len(said) + 1 - 2 * kept.dropped


def test_a_models_words_steer_no_terminal(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsm8k_core.serving.detokenizer.decode", lambda tokenizer, tokens: "\x1b[2J\x07a" * len(tokens))
    done = chat(QUESTION)
    assert "\x1b" not in done.stdout
    assert "\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}a" in done.stdout


def test_base_and_trained_answer_the_same_question(chat: Chat, finished: Path, model: Path) -> None:
    both = chat(f"/base {QUESTION}", of=finished)
    assert both.returncode == 0, both.stderr
    alone = {name: chat(QUESTION, of=of).stdout.strip() for name, of in (("base", model), ("trained", finished))}
    assert both.stdout.startswith(f"base: {model}\n{alone['base']}\n")
    assert f"trained: {finished}\n{alone['trained']}" in both.stdout
    assert alone["base"] != alone["trained"]
    again = chat(QUESTION, "/base", of=finished, arguments=("--json",))
    assert [turn["content"] for turn in turns(again)] == [QUESTION, alone["trained"].partition("\n(cut")[0]]


def test_the_newest_finished_run_is_taken_where_nobody_names_a_model(chat: Chat, run: Run, finished: Path) -> None:
    done = chat(QUESTION, of="auto")
    line = "model    runs/mine: the newest finished run under runs/; --model takes another"
    assert line in done.stderr
    same = run("generate", QUESTION, "--backend", SOONEST, "--max-new-tokens", 12, "--dtype", "float32")
    assert line in same.stderr
    assert same.stdout.strip() == done.stdout.strip()


# --- typed ----------------------------------------------------------------------------------------------------


class Typed(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def typing(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Lines as `input` gives them; an exception is raised in place of one."""

    def call(*lines: str | type[BaseException], of: Path = model) -> Done:
        left: Iterator[Any] = iter(lines)

        def give(prompt: str) -> str:
            line = next(left, EOFError)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr("sys.stdin", Typed())
        monkeypatch.setattr("builtins.input", give)
        return run("chat", "--model", of, "--max-new-tokens", 12, "--dtype", "float32", "--backend", SOONEST)

    return call


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt, "/exit"])
def test_one_leaves_quietly(typing: Callable[..., Done], end: Any) -> None:
    done = typing(end)
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == "/help lists the commands, /exit leaves."


def test_ctrl_c_stops_the_answer_and_not_the_conversation(
    typing: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = typing(QUESTION).stdout
    pressed: list[str] = []

    def write(text: str) -> None:
        pressed.append(text)
        if len(pressed) == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("verbs.chat._to_stdout", write)
    before = signal.getsignal(signal.SIGINT)
    done = typing(QUESTION, QUESTION)
    assert done.returncode == 0
    assert done.stderr.count("(stopped)") == 1
    first = "".join(pressed).split("\n")[0]
    assert whole.startswith(first)
    assert 0 < len(first) < len(whole.strip())
    assert signal.getsignal(signal.SIGINT) is before


def test_both_answers_stand_side_by_side(
    typing: Callable[..., Done], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = typing(f"/base {QUESTION}", of=finished)
    line = next(row for row in done.stdout.splitlines() if row.startswith("base: "))
    assert 35 < line.index("trained: ") < 45
    assert len(str(finished)) > 40  # too long for half a screen: its last part, whole
    assert line.rstrip().endswith(f"trained: {finished.name}")
    assert max(map(len, done.stdout.splitlines())) <= 80
