"""`generate` on both backends: a question, a file, a pipe; greedy and sampled."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from tests.e2e.conftest import Run

QUESTION = "Tom has 4 apples . he buys 3 more . how many ?"


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
    monkeypatch.setattr("sys.stdin", io.StringIO(QUESTION + "\n"))
    assert answers(run, "--model", model)[0]["question"] == QUESTION


def test_marks_can_be_hidden_while_streaming(capsys: pytest.CaptureFixture[str]) -> None:
    from verbs.generate import _Writer

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


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("x", "--file", "q.txt"), 2, "not both"),
        (("--file", "gone.txt"), 4, "gone.txt"),
        (("--file", "bad.jsonl"), 4, "bad.jsonl:1"),
        (("x", "--temperature", "-1"), 2, "--temperature"),
    ],
)
def test_bad_input_is_one_clear_line(
    run: Run, model: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"q": 1}\n')
    done = run("generate", *arguments, "--model", model)
    assert done.returncode == code
    assert says in done.stderr
