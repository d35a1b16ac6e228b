"""Every command that README and docs/ show is one; those that a tiny model makes cheap are run as they stand.

What is only parsed says why. A command that is in neither table fails, and so does an entry that no page has.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import cli
from gsm8k_core.types import UsageError
from tests import tiny
from tests.e2e.conftest import data, model, starts_now  # noqa: F401  # fixtures

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
STARTS = re.compile(r"(?:\S*/)?(?:python|\.venv/bin/python) (?:\./)?cli\.py |gsm8k |make ")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`]+)`")

# As they stand in the text, in an order in which each finds what it needs.
RUN = (
    "train --model ./my-model --data ./my-data --max-samples 500 --max-time 45m --output-dir runs/mine",
    "eval --model runs/mine --max-samples 200",
    "eval --model runs/mine --max-new-tokens 256",
    "eval --model runs/mine --eval-batch-size 8",
    "eval --model runs/mine --shots 4 --temperature 0.7 --samples 8",
    "eval --model runs/mine --check-batching",
    "eval --model runs/mine --stop-at-answer",
    "eval --model runs/mine --calculator",
    "compare --trained-model runs/mine --max-time 10m",
    "compare --trained-model runs/mine",
    "compare --trained-model runs/mine --all",
    "compare --trained-model runs/mine --trained-model runs/other",
    "inspect --model runs/mine",
    "grade answers.jsonl --rules robust,robust-v1",
    "export runs/mine --to merged",
    "--version",
)
# Why it is parsed and not run -> the commands, each as it stands: another one of the same verb is none of these.
PARSED = {
    "the real job of the default model: hours, and the Hub": (
        "train",
        "train --backend auto",
        "train --gradient-checkpointing",
        "train --guard-problems 8",
        "train --learning-rate 2e-5",
        "train --learning-rate 2e-5 --num-epochs 1",
        "train --max-length 256",
        "train --num-epochs 5",
    ),
    "the default model; e2e and backends/test_methods.py train each method on a tiny one": (
        "train --method lora",
        "train --method lora --eval-steps 50",
        "train --method qlora",
    ),
    "a whole run of the default model; e2e/test_rft.py runs one on a tiny model": (
        "train --recipe rft",
        "train --recipe rft --rationales 80",
    ),
    "minutes of three processes; benchmarks/test_scaling.py runs two with a tiny model": (
        "benchmark train --world 1,2,4",
    ),
    "the same of reinforcement; e2e/test_grpo.py": ("train --recipe grpo",),
    "of a run that was stopped; e2e/test_resume.py": (
        "train --resume",
        "train --resume runs/mine",
        "train --resume runs/mine --backend mlx",
    ),
    "minutes of the embedded model; make demo": (
        "train --model embedded --data generated",
        "train --model embedded --data generated --backend mlx",
    ),
    "the default model; e2e/test_dry_run.py": ("train --dry-run",),
    "runs of a reader's own; the same with runs/mine is run": (
        "compare --trained-model runs/a --trained-model runs/b",
    ),
    "of a template with the switch; e2e/test_prompts_of_a_run.py": ("eval --model runs/mine --thinking on",),
    "a run of a reader's own; `grade --rules` is run": ("eval --model runs/x --rules robust-v1",),
    "a conversation; e2e/test_chat.py": (
        "chat",
        "chat --model runs/mine",
        "chat --model runs/mine --temperature 0.7",
    ),
    "runs until it is stopped; e2e/test_serve.py": (
        "serve --host 0.0.0.0 --api-key-file key.txt",
        "serve --model runs/mine",
    ),
    "each kind on a tiny model: e2e/test_export.py": (
        "export runs/mine --to gguf --type q8_0",
        "export runs/mine --to merged --push me/mine",
        "export runs/mine --to mlx --bits 4",
        "export runs/mine --to ollama",
        "export runs/mine/best --to gguf",
    ),
    "a file of a reader's own; e2e/test_inspect.py": ("inspect --data FILE",),
    "a run of --recipe rft; e2e/test_rft.py": ("inspect --run runs/NAME",),
    "the default model's tokenizer; with runs/mine it is run": ("inspect",),
    "measures what the machine can do; e2e/test_doctor.py": ("doctor",),
    "a minute and two backends; e2e/test_parity.py": (
        "parity",
        "parity --backend torch --device cuda",
        "parity --backend torch --device mps",
        "parity --model M",
        "parity --model runs/mine",
    ),
    "minutes; e2e/test_benchmark.py": (
        "benchmark generate",
        "benchmark generate --contenders ours-torch,hf",
        "benchmark generate --rounds 5 --data FOLDER",
        "benchmark report",
        "benchmark train",
        "benchmark train --contenders ours-torch,trl",
        "benchmark train --rows 40 --rounds 5 --data FOLDER",
    ),
}


def commands(text: str) -> Iterator[str]:
    """The commands of a page, without comments and what stands before them."""
    for language, block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines() if language in ("", "sh", "bash") else ():
            if (found := _command(line)) is not None:
                yield found
    for code in INLINE.findall(BLOCK.sub("", text)):
        if STARTS.match(code) and (found := _command(code)) is not None:
            yield found


def _command(line: str) -> str | None:
    """`train --backend auto` of `python cli.py train --backend auto  # comment`; None of another program's line."""
    plain = line.replace("runs/<your run>", "runs/mine").replace('"$@"', "")
    plain = re.sub(r'"\$\((.*)\)"', r"\1", plain)  # what a shell runs first
    found = STARTS.search(plain)
    if found is None or found.group().startswith("gsm8k -finetune"):
        return None
    words = shlex.split(plain[found.start() :], comments=True)
    words = words[: words.index("|")] if "|" in words else words
    words = [word for word in (each.rstrip(";") for each in words) if word not in ("}", "")]
    if "..." in words:
        return None
    return shlex.join(words if words[0] == "make" else words[2 if "python" in words[0] else 1 :])


def shown() -> dict[str, list[str]]:
    """Command -> the pages that have it."""
    found: dict[str, list[str]] = {}
    for path in PAGES:
        for command in commands(path.read_text(encoding="utf-8")):
            found.setdefault(command, []).append(path.name)
    return found


SHOWN = shown()
MAKE = {command: pages for command, pages in SHOWN.items() if command.startswith("make ")}
OURS = {command: pages for command, pages in SHOWN.items() if command not in MAKE}
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))
VARIABLES = set(re.findall(r"^#   ([A-Z_]+)=", MAKEFILE, re.MULTILINE)) | {"KILLS", "FUZZ_EXAMPLES"}


def placed(command: str) -> bool:
    """Whether a command of ours is in one of the tables."""
    return command in RUN or any(command in those for those in PARSED.values())


def test_there_are_commands_on_every_page_that_has_blocks() -> None:
    assert len(SHOWN) > 50
    assert {"README.md", "training.md", "export.md", "troubleshooting.md"} <= {
        p for pages in SHOWN.values() for p in pages
    }


@pytest.mark.parametrize("command", sorted(OURS))
def test_each_command_is_one(command: str) -> None:
    words = shlex.split(command)
    if not words or words[0].startswith("--"):
        return  # the program itself; --version is run below
    cli.parse(words)
    assert placed(command), f"{command} ({OURS[command]}) is neither run nor said to be parsed"


@pytest.mark.parametrize("command", sorted(MAKE))
def test_each_target_of_make_is_one(command: str) -> None:
    for word in shlex.split(command)[1:]:
        assert word.partition("=")[0] in TARGETS | VARIABLES, command


def test_no_entry_is_left_over() -> None:
    assert [command for command in RUN if command not in SHOWN and command != "--version"] == []
    parsed = [command for those in PARSED.values() for command in those]
    assert [command for command in parsed if command not in OURS or command in RUN] == []
    assert len(parsed) == len(set(parsed))


@pytest.mark.parametrize("verb", sorted({shlex.split(command)[0] for those in PARSED.values() for command in those}))
def test_control_another_command_of_a_verb_has_no_place(verb: str) -> None:
    assert not placed(f"{verb} --backend torch --json")


def test_control_what_is_no_command_is_found() -> None:
    page = "```sh\npython cli.py trian --all  # x\nMAKE=1 python cli.py eval --modle x | cat\nls\n```\n`gsm8k runs`"
    assert list(commands(page)) == ["trian --all", "eval --modle x", "runs"]
    for wrong in ("trian --all", "eval --modle x"):
        with pytest.raises(UsageError):
            cli.parse(shlex.split(wrong))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:  # noqa: F811
    """A folder as the README means one: ./my-model and ./my-data; a second run, so that two can be compared."""
    place = tmp_path_factory.mktemp("readme")
    tiny.make(place / "my-model", "llama")
    (place / "my-data").symlink_to(data)
    (place / "answers.jsonl").write_text('{"completion": "#### 4", "gold": 4}\n')
    return place


@pytest.fixture
def here(workshop: Path, monkeypatch: pytest.MonkeyPatch, frameworks: None) -> Callable[[str], int]:
    monkeypatch.chdir(workshop)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(workshop / "hf"))
    starts_now(monkeypatch)
    return lambda command: cli.main(shlex.split(command))


def test_the_commands_do_what_they_say(here: Callable[[str], int], capfd: pytest.CaptureFixture[str]) -> None:
    """In their order: the first makes what the others want."""
    for command in RUN:
        if "runs/other" in command:
            assert here("train --model ./my-model --data ./my-data --seed 1 --output-dir runs/other") == 0
        capfd.readouterr()
        code = here(command)
        out, err = capfd.readouterr()
        assert code == 0, (command, err or out)
