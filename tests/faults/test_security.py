"""Nothing of a stranger's model, data or run folder is run, followed out of the folder, or believed; no key leaves."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Run
from tests.faults.conftest import SHORT, one_error

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    ROOT / "cli.py",
    *(
        path
        for name in ("verbs", "backends", "gsm8k_core", "benchmarks")
        for path in sorted((ROOT / name).rglob("*.py"))
    ),
]

# --- our source -----------------------------------------------------------------------------------------------------

CALLS = {"eval", "exec", "compile", "__import__"}  # as a plain name; `model.eval()` is something else
MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "joblib", "cloudpickle", "runpy", "code", "pty"}
METHODS = {
    ("os", "system"),
    ("os", "popen"),
    ("os", "spawnl"),
    ("os", "spawnv"),
    ("os", "execv"),
    ("os", "execvp"),
    ("subprocess", "getoutput"),
    ("subprocess", "getstatusoutput"),
    ("torch", "load"),
    ("yaml", "load"),
    ("yaml", "unsafe_load"),
    ("yaml", "full_load"),
    ("tempfile", "mktemp"),
    ("hub", "load"),
}
FLAGS = {"shell": False, "allow_pickle": False, "trust_remote_code": False, "use_safetensors": True}


def dangers(source: str) -> list[str]:
    """What in `source` could run what it reads, in order."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)]
            found += [f"import {name}" for name in names if name.split(".")[0] in MODULES]
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name) and called.id in CALLS:
            found.append(called.id)
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
            found += [f"{called.value.id}.{called.attr}"] if (called.value.id, called.attr) in METHODS else []
        for given in node.keywords:
            value = given.value.value if isinstance(given.value, ast.Constant) else "?"
            if given.arg in FLAGS and value is not FLAGS[given.arg]:
                found.append(f"{given.arg}={ast.unparse(given.value)}")
    return found


def test_our_source_runs_nothing_that_it_reads() -> None:
    assert len(SOURCES) > 100
    assert {str(path): found for path in SOURCES if (found := dangers(path.read_text(encoding="utf-8")))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "eval(text)",
        "exec(text)",
        "compile(text, '', 'eval')",
        "__import__(name)",
        "import pickle",
        "from pickle import loads",
        "os.system(text)",
        "os.popen(text)",
        "subprocess.run(text, shell=True)",
        "subprocess.run(text, shell=asked)",
        "torch.load(path)",
        "numpy.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoModel.from_pretrained(name, use_safetensors=None)",
        "import dill.source",
    ],
)
def test_each_of_these_would_be_found(line: str) -> None:
    assert len(dangers(line)) == 1
    assert dangers("model.eval(); re.compile(text); subprocess.run(words, shell=False); mx.eval(x)") == []


# --- a stranger's model folder ----------------------------------------------------------------------------------------


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self._path),)


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def custom_code(folder: Path, ran: Path) -> None:
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(ran)!r})\nclass Model: pass\n")
    edit(folder / "config.json", auto_map={"AutoConfig": "evil.Model", "AutoModelForCausalLM": "evil.Model"})


def model_file(folder: Path, ran: Path) -> None:
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(ran)!r})\n")
    edit(folder / "config.json", model_file="evil.py")


def tokenizer_code(folder: Path, ran: Path) -> None:
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(ran)!r})\nclass Model: pass\n")
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Model", None]})


def pickled(folder: Path, ran: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(ran)))


def pickle_by_another_name(folder: Path, ran: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Canary(ran)))


def pickled_adapter(folder: Path, ran: Path) -> None:
    shutil.copytree(folder, folder / "base")
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Canary(ran)))
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(folder / "base"), "r": 4, "lora_alpha": 8}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def linked(name: str) -> Callable[[Path, Path], None]:
    """As `tar` and `git` bring it: a link to a file of whoever opens the folder."""

    def change(folder: Path, ran: Path) -> None:
        (folder.parent / "private").write_text("PRIVATE KEY")
        (folder / name).symlink_to(folder.parent / "private")

    return change


def linked_in_an_adapter(folder: Path, ran: Path) -> None:
    pickled_adapter(folder, ran)
    linked("adapter_model.safetensors")(folder, ran)


def piped(folder: Path, ran: Path) -> None:
    os.mkfifo(folder / "merges.txt")


def template(text: str) -> Callable[[Path, Path], None]:
    def change(folder: Path, ran: Path) -> None:
        edit(folder / "tokenizer_config.json", chat_template=text.replace("RAN", str(ran)))

    return change


STRANGERS: dict[str, Callable[[Path, Path], None]] = {
    "auto_map": custom_code,
    "model_file": model_file,
    "auto_map of the tokenizer": tokenizer_code,
    "a pickle": pickled,
    "a pickle called safetensors": pickle_by_another_name,
    "an adapter that is a pickle": pickled_adapter,
    "a link to a private file": linked("vocab.hub"),
    "an adapter with such a link": linked_in_an_adapter,
    "a pipe": piped,
    "a template that climbs": template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "a template that imports": template("{{ cycler.__init__.__globals__.os.mkdir('RAN') }}"),
    "a template without an end": template("{% for a in range(10**9) %}x{% endfor %}"),
}


@pytest.mark.parametrize("verb", ["train", "eval", "generate"])
@pytest.mark.parametrize("case", STRANGERS)
def test_a_strangers_model_is_refused_unrun(
    case: str, verb: str, run: Run, model: Path, data: Path, tmp_path: Path
) -> None:
    """By the checks that come before any backend."""
    folder, ran = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(model, folder)
    STRANGERS[case](folder, ran)
    flags = {"train": (*SHORT, "--data", data), "eval": ("--data", data), "generate": ()}[verb]
    question = ("how many ?",) if verb == "generate" else ()
    done = run(verb, *question, "--model", folder, "--backend", "torch", *flags)
    line = one_error(done)
    assert done.returncode == 4, line
    assert str(folder) in line, line
    assert not ran.exists()


def test_the_canary_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Canary(tmp_path / "ran")))
    assert (tmp_path / "ran").is_dir()


# --- paths ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(run: Run, model: Path, data: Path, tmp_path: Path) -> Path:
    """A run that a kill ended after its first checkpoint."""
    folder = tmp_path / "run"
    done = run("train", "--model", model, "--data", data, "--backend", "torch", *SHORT, "--output-dir", folder)
    assert done.returncode == 0, done.stderr
    edit(folder / "run.json", status="running")
    shutil.rmtree(folder / "model")
    return folder


@pytest.mark.parametrize(
    "name", ["checkpoints", "logs", "model", "metrics.jsonl", "run.json", "best", "base", "rollouts"]
)
def test_a_link_in_a_run_is_refused_and_nothing_outside_is_touched(
    name: str, run: Run, stopped: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    if (stopped / name).exists():
        (stopped / name).rename(outside)
    else:
        outside.mkdir()
    (stopped / name).symlink_to(outside)
    before = {path: path.read_bytes() for path in [outside, *outside.rglob("*")] if path.is_file()}
    done = run("train", "--resume", stopped)
    assert (done.returncode, f"{stopped / name} is a link" in one_error(done)) == (7, True), done.stderr
    assert {path: path.read_bytes() for path in [outside, *outside.rglob("*")] if path.is_file()} == before


@pytest.mark.parametrize("target", ["folder", "records"])
def test_an_evaluation_writes_through_no_link(target: str, run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    asked = (
        "eval",
        "--model",
        model,
        "--data",
        data,
        "--backend",
        "torch",
        "--max-samples",
        "2",
        "--max-new-tokens",
        "4",
        "--output-dir",
        tmp_path / "out",
    )
    assert run(*asked).returncode == 0
    (records,) = (tmp_path / "out").rglob("records.jsonl")
    moved = records if target == "records" else records.parent
    moved.rename(tmp_path / "outside")
    moved.symlink_to(tmp_path / "outside")
    done = run(*asked)
    assert (done.returncode, f"{moved} is a link" in one_error(done)) == (7, True), done.stderr


# --- the terminal -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verbose", [(), ("-v",)])
def test_a_files_name_cannot_steer_the_terminal(run: Run, tmp_path: Path, verbose: tuple[str, ...]) -> None:
    folder = tmp_path / "stranger"
    folder.mkdir()
    (folder / "a\x1b[2J\x1b]0;owned\x07.txt").write_text("")
    for asked in (("eval", "--model", folder), ("train", "--data", folder, "--model", "embedded")):
        done = run(*asked, *verbose)
        assert done.returncode == 4
        assert "owned" in done.stderr
        assert "\x1b" not in done.stdout + done.stderr
        assert "\x07" not in done.stdout + done.stderr


# --- keys -------------------------------------------------------------------------------------------------------------

CANARIES = {
    name: f"hf_canary{number}0123456789abcdef0123456789"
    for number, name in enumerate(("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY"))
}


def test_no_key_of_the_environment_is_in_any_byte_that_is_left(
    run: Run, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    answers = ("--max-samples", "4", "--max-new-tokens", "4", "--backend", "torch")
    said = [
        run("train", "--model", model, "--data", data, "--backend", "torch", *SHORT, "--output-dir", "out", "-v"),
        run("eval", "--model", "out", *answers, "-v"),
        run("compare", "--base-model", model, "--trained-model", "out", *answers, "-v"),
        run("runs", ".", "-v"),
        run("plot", "out", "--output", "curves.svg", "-v"),
        run("eval", "--model", "a/b", "--json", "-v"),
        run("train", "--model", CANARIES["HF_TOKEN"], "-v"),  # a key in place of a name
    ]
    assert [done.returncode for done in said] == [0, 0, 0, 0, 0, 4, 4], said
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"run.json", "metrics.jsonl", "report.html", "records.jsonl", "curves.svg"} <= {path.name for path in files}
    found = [path for path in files for value in CANARIES.values() if value.encode() in path.read_bytes()]
    found_in_words = [done for done in said[:-1] for value in CANARIES.values() if value in done.stdout + done.stderr]
    assert (found, found_in_words) == ([], [])
