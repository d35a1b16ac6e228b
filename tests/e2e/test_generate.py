"""`generate` on both backends: a question, a file, a pipe; greedy and sampled."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gsm8k_core.config.score import GenerateConfig
from gsm8k_core.tracking.terminal import Terminal
from gsm8k_core.training.memory import smaller
from gsm8k_core.types import Completion
from tests.e2e.conftest import Run
from verbs.demo import banner
from verbs.generate import Answers, _typed, _Writer, hidden

QUESTION = "Tom has 4 apples . he buys 3 more . how many ?"


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


def answers(run: Run, *arguments: object) -> list[dict[str, object]]:
    done = run("generate", *arguments, "--max-new-tokens", 12, "--dtype", "float32", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["answers"]  # type: ignore[no-any-return]


def test_a_question_is_answered_and_streamed(backend_name: str, run: Run, model: Path) -> None:
    arguments = ("--model", model, "--backend", backend_name)
    text = str(answers(run, QUESTION, *arguments)[0]["completion"])
    done = run("generate", QUESTION, *arguments, "--max-new-tokens", 12, "--dtype", "float32")
    assert done.returncode == 0
    assert text in done.stdout


def test_a_file_of_questions_is_answered_in_order(backend_name: str, run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text(f"{QUESTION}\n\nhow many apples ?\n")
    found = answers(run, "--file", "q.txt", "--model", model, "--backend", backend_name)
    assert [answer["question"] for answer in found] == [QUESTION, "how many apples ?"]
    assert found[0] == answers(run, QUESTION, "--model", model, "--backend", backend_name)[0]


def test_sampling_is_the_same_for_the_same_seed_on_both_backends(run: Run, model: Path) -> None:
    def sampled(*arguments: object) -> object:
        return answers(run, QUESTION, "--model", model, "--temperature", 1.5, *arguments)[0]["completion"]

    one = sampled("--backend", "torch")
    assert one == sampled("--backend", "torch") == sampled("--backend", "mlx")
    assert len({str(sampled("--backend", "torch", "--seed", seed)) for seed in range(4)}) > 1


def test_a_piped_question_is_read(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, QUESTION.encode() + b"\n\nhow many apples ?\n")
    assert [answer["question"] for answer in answers(run, "--model", model)] == [QUESTION, "how many apples ?"]
    for way in (("-",), ("--file", "-")):
        pipe(monkeypatch, json.dumps({"question": QUESTION}).encode())
        assert [answer["question"] for answer in answers(run, *way, "--model", model)] == [QUESTION]


def test_stdout_holds_answers_and_nothing_else(run: Run, model: Path) -> None:
    done = run("generate", QUESTION, "--model", model, "--max-new-tokens", 1, "-v", "--dtype", "float32")
    assert "backend" not in done.stdout
    assert "cut at --max-new-tokens 1" not in done.stdout
    assert "(cut at --max-new-tokens 1)" in done.stderr
    assert done.stderr.startswith("backend")


def test_each_answer_is_shown_as_soon_as_it_can_be() -> None:
    shown: list[str] = []

    class Terminal:
        def verbatim(self, text: str) -> None:
            shown.append(text)

    class Letters:
        def decode(self, tokens: list[int], **unused: object) -> str:
            return "".join(map(chr, tokens))

    class Backend:
        def generate(self, *unused: object) -> Iterator[tuple[int, Completion]]:
            yield 1, Completion((98,), "stop")
            assert shown == []
            yield 0, Completion((97,), "length")
            assert shown == ["? first\na\n(cut at --max-new-tokens 512)\n", "? second\nb\n"]
            raise KeyboardInterrupt

    made: Any = (GenerateConfig(), Backend(), Letters(), Terminal(), Terminal(), 64)
    with pytest.raises(KeyboardInterrupt):
        Answers(*made).answer(["first", "second", "third"], [(1,), (1,), (1,)])
    assert len(shown) == 2


def test_a_character_that_is_never_finished_is_shown_at_the_end() -> None:
    class Half:
        def decode(self, tokens: list[int], **unused: object) -> str:
            return "x" * len(tokens) + "\N{REPLACEMENT CHARACTER}"

    written: list[str] = []
    writer = _Writer(Half(), hide=False, write=written.append)  # type: ignore[arg-type]
    writer.token(0, 1)
    writer.end()
    assert "".join(written) == "x\N{REPLACEMENT CHARACTER}\n"


def test_the_demo_model_is_named_once_on_stderr_and_in_short(capsys: pytest.CaptureFixture[str]) -> None:
    banner(Terminal(json_only=True))
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert len(err) <= 81


def test_the_way_to_the_real_model_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(json_only=False)
    banner(terminal, "the Hub could not be reached")
    assert "python cli.py train --model Qwen" in capsys.readouterr().out
    banner(terminal, "the Hub could not be reached")
    assert capsys.readouterr().out.count("\n") == 1


def test_marks_can_be_hidden_while_streaming() -> None:
    class Letters:
        def decode(self, tokens: list[int], **unused: object) -> str:
            return "".join(map(chr, tokens))

    written: list[str] = []
    writer = _Writer(Letters(), hide=True, write=written.append)  # type: ignore[arg-type]
    for letter in "so 48/2 = <<48/2=24>>24 < 30\n#### 24":
        writer.token(0, ord(letter))
    writer.end()
    assert "".join(written) == "so 48/2 = 24 < 30\n#### 24\n"
    assert len(written) > 10


def streamed(text: str) -> str:
    """What a person sees of a text that comes letter by letter."""

    class Letters:
        def decode(self, tokens: list[int], **unused: object) -> str:
            return "".join(map(chr, tokens))

    written: list[str] = []
    writer = _Writer(Letters(), hide=True, write=written.append)  # type: ignore[arg-type]
    for letter in text:
        writer.token(0, ord(letter))
    writer.end()
    return "".join(written)


@pytest.mark.parametrize(
    "text",
    [
        "He has <<48*x=96>>96 and <<48/2=24>>24.\n#### 24",
        "She has <<5 apples*2=10>>10 apples, and then more.",
        "<<x=1>>1<<y=2>>2 << z <<<<3=3>>=4>>.",
        "a << b\nand <<no sum>> stay, as does <<48*x=9",
        "cut in <<48*2=",
    ],
)
def test_a_stream_loses_nothing_where_marks_hold_letters(text: str) -> None:
    assert streamed(text) == hidden(text) + "\n"


def test_a_stream_is_the_hidden_text_whatever_was_written() -> None:
    draw = random.Random(0)
    parts = ("<<", ">>", "<", ">", "=", "4", "x", "\n", "so ")
    texts = ["".join(draw.choices(parts, k=12)) for _ in range(500)]
    assert [text for text in texts if streamed(text) != hidden(text) + "\n"] == []
    assert sum(hidden(text) != text for text in texts) > 50


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("so 48/2 = <<48/2=", "so 48/2 = "),
        ("so 48/2 = <<48/2=24>", "so 48/2 = "),
        ("so 48/2 = <<", "so 48/2 = "),
        ("<<a>> x << y", "<<a>> x << y"),  # no sum
    ],
)
def test_a_mark_that_was_cut_is_hidden(text: str, shown: str) -> None:
    assert hidden(text) == shown


def test_the_way_to_the_real_model_is_the_verb_that_was_typed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["cli.py", "generate", "x"])
    banner(Terminal(json_only=False), "the Hub could not be reached")
    assert "python cli.py generate --model Qwen" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["cli.py", "eval"])
    assert "--micro-batch-tokens" not in smaller()
    monkeypatch.setattr("sys.argv", ["cli.py", "train"])
    assert "--eval-batch-size" not in smaller()


@pytest.mark.parametrize("leaves", [EOFError, KeyboardInterrupt])
def test_leaving_the_prompt_is_no_error(
    leaves: type[BaseException], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(prompt: str) -> str:
        raise leaves

    monkeypatch.setattr("builtins.input", ask)
    assert list(_typed(Terminal(json_only=False))) == []
    assert capsys.readouterr().out.endswith("ends.\n\n")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("x", "--file", "q.txt"), 2, "not both"),
        (("--file", "gone.txt"), 4, "gone.txt"),
        (("--file", "bad.jsonl"), 4, "bad.jsonl:1"),
        (("x", "--temperature", "-1"), 2, "--temperature"),
        (("   ",), 2, "the question is blank"),
        (("Tom \udcff has",), 2, "not UTF-8 text"),
        (("--file", "half.jsonl"), 4, "half.jsonl:1: the question has a NUL or half a surrogate pair"),
        (("--file", "bad.JSONL"), 4, "bad.JSONL:1"),
        (("--file", "bytes.txt"), 4, "bytes.txt:1: not UTF-8 (byte 5"),
        (("many " * 600,), 4, "is too long: this model reads 512"),
    ],
)
def test_bad_input_is_one_clear_line(
    run: Run, model: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"q": 1}\n')
    (tmp_path / "bad.JSONL").write_text('{"q": 1}\n')
    (tmp_path / "half.jsonl").write_text('{"question": "\\ud800"}\n')
    (tmp_path / "bytes.txt").write_bytes(b"Tom \xff\xfe has")
    done = run("generate", *arguments, "--model", model)
    assert done.returncode == code, done.stderr
    assert says in done.stderr


def test_a_line_separator_does_not_end_a_question(run: Run, model: Path, tmp_path: Path) -> None:
    question = "Tom has \N{LINE SEPARATOR} 4 apples"
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": question}, ensure_ascii=False), encoding="utf-8")
    assert [answer["question"] for answer in answers(run, "--file", "q.jsonl", "--model", model)] == [question]


def test_piped_bytes_that_are_no_text_are_refused(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, b"Tom \xff\xfe has")
    done = run("generate", "--model", model)
    assert done.returncode == 4
    assert "stdin:1: not UTF-8" in done.stderr
