"""A chat template or a tokenizer without an end, or of any size, is refused before it is used; an honest one is not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gsm8k_core.models import tokenizer, trial
from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.models.tokenizer import load_tokenizer
from gsm8k_core.problems.prompts import prompt_tokens
from gsm8k_core.types import DataError, Problem
from tests import tiny
from tests.e2e.conftest import Run
from tests.faults.conftest import one_error
from tests.faults.test_security import edit

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not keep the limit of memory")
PROBLEM = Problem("test-0", "how many ?", "so 3 .\n#### 3", "3")

BOMBS = {
    "without an end": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "of any size": "{{ 'x' * 10**10 }}",
    "of any width": "{{ '%1000000000d' % 1 }}",
    "of any length": "{% for a in range(9999) %}{% for b in range(9999) %}{{ 'x' * 9999 }}{% endfor %}{% endfor %}",
    "that doubles": "{% set n = namespace(s='x') %}{% for a in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tokenizer, "_TRIED", set())
    monkeypatch.setenv("GSM8K_CACHE", str(tmp_path / "cache"))
    return tiny.make(tmp_path / "model")


def in_config(folder: Path, template: str) -> None:
    edit(folder / "tokenizer_config.json", chat_template=template)


def in_a_file(folder: Path, template: str) -> None:
    (folder / "chat_template.jinja").write_text(template)


def among_others(folder: Path, template: str) -> None:
    edit(folder / "tokenizer_config.json", chat_template=[{"name": "default", "template": template}])


@pytest.fixture
def hasty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bomb gets one or two seconds and not six; the limit is the system's either way."""
    ours = tokenizer.TRIAL.read_text(encoding="utf-8")
    given = f"CPU_SECONDS = {trial.CPU_SECONDS}\n"
    assert given in ours
    (tmp_path / "trial.py").write_text(ours.replace(given, "CPU_SECONDS = 1\n"), encoding="utf-8")
    monkeypatch.setattr(tokenizer, "TRIAL", tmp_path / "trial.py")


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_template_that_is_a_bomb_is_refused(bomb: str, folder: Path) -> None:
    in_config(folder, BOMBS[bomb])
    with pytest.raises(DataError, match=r"is refused: its chat template (takes|needs|makes) more than"):
        load_tokenizer(folder)


@pytest.mark.parametrize("place", [in_a_file, among_others])
def test_a_template_is_looked_for_where_transformers_finds_it(place: Any, folder: Path) -> None:
    place(folder, BOMBS["of any size"])
    with pytest.raises(DataError, match=r"is refused: its chat template"):
        load_tokenizer(folder)


@pytest.mark.usefixtures("hasty")
def test_a_tokenizer_that_is_a_bomb_is_refused(folder: Path) -> None:
    path = folder / "tokenizer.json"
    doubling = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "normalizer": {"type": "Sequence", "normalizers": [doubling] * 60}})
    )
    with pytest.raises(DataError, match=r"is refused: its tokenizer (takes|needs|makes) more than"):
        load_tokenizer(folder)


@pytest.mark.parametrize("verb", ["train", "inspect", "generate"])
def test_each_verb_refuses_it_with_the_folder(verb: str, folder: Path, run: Run, data: Path) -> None:
    in_config(folder, BOMBS["of any size"])
    flags = ("how many ?",) if verb == "generate" else ("--data", data)
    done = run(verb, *flags, "--model", folder)
    assert (done.returncode, str(folder) in one_error(done)) == (4, True), done.stderr


def test_a_template_that_waits_for_another_problem_makes_no_long_prompt(folder: Path) -> None:
    in_config(folder, tiny.TEMPLATE + "{{ '' if 'Tom' in messages[1]['content'] else 'x' * 2000000 }}")
    with pytest.raises(DataError, match=r"test-0: the chat template of .* makes 2,000,[0-9]{3} characters"):
        prompt_tokens(ModelFolder(folder).rendering, [PROBLEM])


def test_an_honest_one_is_tried_once(folder: Path, qwen_tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    really = subprocess.Popen

    class Counted(really):  # type: ignore[type-arg, valid-type, misc]
        def __init__(self, command: Any, *rest: Any, **options: Any) -> None:
            started.append(command)
            super().__init__(command, *rest, **options)

    monkeypatch.setattr(subprocess, "Popen", Counted)
    for path in (folder, folder, Path(shutil.copytree(folder, folder.parent / "copy")), qwen_tokenizer):
        load_tokenizer(path)
    assert len([command for command in started if str(tokenizer.TRIAL) in command]) == 2


@pytest.mark.parametrize("generation", [False, True])
def test_the_trial_renders_what_transformers_does(generation: bool, folder: Path, qwen_tokenizer: Path) -> None:
    for path in (folder, qwen_tokenizer):
        found = load_tokenizer(path)
        template = str(found.chat_template)  # type: ignore[attr-defined]
        if generation:
            template = "{% generation %}" + template + "{% endgeneration %}"
        shown = found.apply_chat_template(trial.CHAT, tokenize=False, chat_template=template)
        assert trial.render(template, trial.read(path / "tokenizer_config.json")) == shown


def test_the_trial_brings_no_transformers_and_nothing_of_ours() -> None:
    code = "import sys, runpy; sys.argv = ['trial.py', '.']; runpy.run_path(sys.argv.pop(0) and FILE, run_name='x')"
    code = code.replace("FILE", repr(str(tokenizer.TRIAL))) + "; print([m for m in sys.modules if m in BAD])"
    code = code.replace("BAD", "('transformers', 'torch', 'mlx', 'gsm8k_core', 'numpy')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_passed_is_not_tried_again_by_another_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    class Counted(subprocess.Popen[str]):
        def __init__(self, command: list[str], **options: Any) -> None:
            tried.append(command[-1])
            super().__init__(command, **options)

    def start() -> int:
        """How many processes a new one starts."""
        tried.clear()
        monkeypatch.setattr(tokenizer, "_TRIED", set())
        load_tokenizer(folder)
        return len(tried)

    monkeypatch.setattr(subprocess, "Popen", Counted)
    assert [start(), start()] == [1, 0]
    in_a_file(folder, tiny.TEMPLATE + " ")
    assert [start(), start()] == [1, 0]  # another content
    monkeypatch.setattr(tokenizer, "version", lambda name: "0")
    assert start() == 1  # other libraries
    (folder.parent / "cache" / "tried").rename(folder.parent / "gone")
    (folder.parent / "cache" / "tried").touch()  # no place to keep it
    assert [start(), start()] == [1, 1]
    in_a_file(folder, BOMBS["of any size"])
    for _ in range(2):  # and what is refused is refused again
        with pytest.raises(DataError, match="is refused"):
            start()
