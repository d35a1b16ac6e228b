"""Date, thinking, instruction and template of a run: asked with the same ever after, wherever it is moved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gsm8k_core.models import prompt_settings
from tests.core.models.test_prompt_settings import QWEN3, SMOLLM3
from tests.e2e.conftest import Run
from tests.e2e.test_resume import killed, losses

PLACE = ("--backend", "torch", "--device", "cpu", "--dtype", "float32")
SMALL = (
    "--max-samples 8 --batch-size 2 --gradient-accumulation-steps 2 --num-epochs 1 --save-steps 1 --guard-problems 0"
)
ASKED = ("--max-samples", "2", "--max-new-tokens", "3", "--json")


def asked(run: Run, verb: str, *arguments: object) -> dict[str, Any]:
    done = run(verb, *arguments, *PLACE, *ASKED)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_is_asked_as_it_was_trained(
    method: str, run: Run, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_settings, "today", lambda: "2026-11-29")
    template, whole = tmp_path / "mine.jinja", tmp_path / "whole"
    template.write_text(SMOLLM3)
    own = ("--chat-template", template, "--system-prompt", "add the apples", "--thinking", "on")
    flags = ("--model", model, "--data", data, *SMALL.split(), *own, "--method", method, *PLACE)
    done = run("train", *flags, "--output-dir", whole)
    assert done.returncode == 0, done.stderr
    assert "thinking on" in done.stdout
    prompt = json.loads((whole / "run.json").read_text())["prompt"]
    assert (prompt["date"], prompt["thinking"], prompt["instruction"]) == ("2026-11-29", "on", "add the apples")
    assert prompt["chat_template"] == SMOLLM3

    monkeypatch.setattr(prompt_settings, "today", lambda: "2026-11-30")  # midnight
    template.unlink()
    other = killed(whole, 1, tmp_path / "killed")
    done = run("train", "--resume", other)
    assert done.returncode == 0, done.stderr
    assert losses(other) == losses(whole)
    found = asked(run, "eval", "--model", whole)
    assert found["prompt"] == prompt["name"]
    assert found["rendering"] == {"date": "2026-11-29", "thinking": "on", "instruction": "add the apples"}
    both = asked(run, "compare", "--trained-model", whole)
    assert both["base"]["prompt"] == both["trained"]["prompt"] == prompt["name"]
    moved = Path(shutil.copytree(whole / "model", tmp_path / "moved"))  # and no run.json beside it
    assert asked(run, "eval", "--model", moved, "--data", data)["prompt"] == prompt["name"]
    off = asked(run, "eval", "--model", moved, "--data", data, "--thinking", "off")
    assert off["prompt"] == prompt["name"].replace("thinking-on", "thinking-off")
    assert run("generate", "how many ?", "--model", moved, "--max-new-tokens", "2", *PLACE).returncode == 0


def test_what_was_never_trained_is_asked_with_todays_date_and_without_thinking(
    run: Run, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Path(shutil.copytree(model, tmp_path / "plain"))
    (plain / "chat_template.jinja").write_text(SMOLLM3)
    names = []
    for day in ("2026-11-29", "2026-11-30"):
        monkeypatch.setattr(prompt_settings, "today", lambda day=day: day)
        names.append(asked(run, "eval", "--model", plain, "--data", data)["prompt"])
    assert names == [f"gsm8k-chat-v1-date-{day}-thinking-off" for day in ("2026-11-29", "2026-11-30")]
    (plain / "chat_template.jinja").write_text(QWEN3)
    shown = run("inspect", "--model", plain, "--data", data, "--max-samples", "2")
    assert "thinking off: the chat template has a switch for it (--thinking on)" in shown.stdout


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (("--chat-template", "missing.jinja"), 2, "--chat-template missing.jinja does not exist"),
        (("--chat-template", "{data}/bad.jinja"), 4, "bad.jinja refused it"),
        (("--thinking", "on"), 2, "--thinking on"),
        (("--system-prompt", " "), 2, "--system-prompt is blank"),
        (("--base-model", "embedded"), 2, "--base-model embedded is for an adapter"),
    ],
)
@pytest.mark.parametrize("verb", ["train", "eval", "generate", "inspect"])
def test_what_cannot_be_asked_is_one_line(
    verb: str, flags: tuple[str, ...], code: int, says: str, run: Run, model: Path, data: Path
) -> None:
    (data / "bad.jinja").write_text("{% for m in messages %}{{ m.content ")
    problems = ("how many ?",) if verb == "generate" else ("--data", data)
    done = run(verb, "--model", model, *problems, *(flag.format(data=data) for flag in flags))
    assert done.returncode == code, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert says in line
    assert "Traceback" not in done.stderr
