"""An evaluation that was killed goes on at the next problem; an end token is learned where it is the pad token too."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from gsm8k_core.parity.tiny import END_ID
from tests import tiny
from tests.e2e.conftest import Run
from tests.waiting import CEILING, wait_for

ROOT = Path(__file__).resolve().parents[2]
PROBLEMS = 1_319  # as many as GSM8K's test split has

# A model that answers each problem in its own way, at about 3,000 a second.
EVALUATION = """
import signal, sys
from pathlib import Path
from gsm8k_core.scoring.evaluate import Key, evaluate, summarise
from gsm8k_core.types import Completion, Problem
problems = [Problem(f"test-{n}", f"How many is {n}?", f"#### {n}", str(n)) for n in range(PROBLEMS)]
last = int(sys.argv[2])  # the one after so many is never answered
def generate(draws):
    for index, draw in enumerate(draws):
        if index == last: signal.pause()
        number = int(draw.problem.gold)
        yield index, Completion((number + (draw.key % 3 == 0),), "stop")
key = Key("m", "d", "p", 9, 1, "b", "cpu", "float32", "c", "v")
records, path, reused = evaluate(problems, generate, lambda tokens: f"#### {tokens[0]}", key, Path(sys.argv[1]))
print(reused, summarise(records, frozenset())["rules"]["strict"]["correct"])
""".replace("PROBLEMS", str(PROBLEMS))


def evaluation(logs: Path, until: int | None = None) -> tuple[int, int] | None:
    """(answers that were there, right ones); killed, and None, when `until` records are in the file, or a few more."""
    last = -1 if until is None else until - records_in(logs) + 50  # however late the kill comes, there is work left
    process = subprocess.Popen(
        [sys.executable, "-c", EVALUATION, str(logs), str(last)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if until is not None:
        wait_for(lambda: records_in(logs) >= until, process, step=0.001)
        process.send_signal(signal.SIGKILL)
    said, _ = process.communicate(timeout=CEILING)
    reused, _, correct = said.partition(" ")
    return (int(reused), int(correct)) if said else None


def records_in(logs: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in logs.glob("*/records.jsonl"))


def test_an_evaluation_killed_three_times_ends_with_the_same_score(tmp_path: Path) -> None:
    whole = evaluation(tmp_path / "whole")
    assert whole is not None
    assert whole[0] == 0
    assert 0 < whole[1] < PROBLEMS
    for until in (100, 500, 900):
        assert evaluation(tmp_path / "killed", until) is None
    there = records_in(tmp_path / "killed")
    assert there >= 900
    assert evaluation(tmp_path / "killed") == (there, whole[1])
    (one,), (other,) = (list((tmp_path / name).glob("*/records.jsonl")) for name in ("whole", "killed"))
    assert other.read_bytes() == one.read_bytes()


def test_the_end_is_learned_although_it_is_the_pad_token_too(
    backend_name: str, run: Run, data: Path, tmp_path: Path
) -> None:
    """A mask that goes by the pad's number would hide every end from the loss: the answers would never stop."""
    model = tiny.make(tmp_path / "model", hidden_size=32, pad_token_id=END_ID)
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": "<end>"}))
    same = tmp_path / "same"
    same.mkdir()
    row = (data / "train.jsonl").read_text().splitlines()[0] + "\n"
    (same / "train.jsonl").write_text(row * 16)
    shutil.copy(same / "train.jsonl", same / "test.jsonl")
    flags = ("--backend", backend_name, "--device", "cpu", "--dtype", "float32")
    done = run(
        "train",
        "--model",
        model,
        "--data",
        same,
        *flags,
        "--batch-size",
        "4",
        "--gradient-accumulation-steps",
        "1",
        "--num-epochs",
        "10",
        "--learning-rate",
        "0.01",
        "--save-steps",
        "0",
        "--output-dir",
        "out",
    )
    assert done.returncode == 0, done.stderr
    asked = ("--data", same, *flags, "--max-samples", "2", "--max-new-tokens", "40", "--json")
    stopped = [json.loads(run("eval", "--model", each, *asked).stdout)["stopped"] for each in (model, "out")]
    assert stopped == [0, 2]  # the first is the control: untrained, it never stops
