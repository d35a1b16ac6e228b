"""What a person has before Python runs: the Makefile, train.sh, pyproject.toml and constraints.txt."""

from __future__ import annotations

import ast
import itertools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import gsm8k_core
from tests.waiting import CEILING

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SYSTEM_PATH = os.defpath  # where the shell's own tools are, and no version manager

# A stand-in for cli.py: its arguments, one a line.
PRINT_ARGUMENTS = "import sys\nprint(*sys.argv[1:], sep='\\n')\n"


def script(path: Path, body: str) -> None:
    """An executable POSIX shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def run_python(prefix: str = "") -> str:
    return f'{prefix}exec "{sys.executable}" "$@"'


# --- train.sh -------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder, with a space in its name, that holds train.sh and a cli.py that prints its arguments."""
    folder = tmp_path / "a checkout"
    folder.mkdir()
    shutil.copy(ROOT / "train.sh", folder)
    (folder / "cli.py").write_text(PRINT_ARGUMENTS)
    return folder


def train_sh(checkout: Path, *arguments: str, path: str = SYSTEM_PATH, **environment: str) -> list[str]:
    elsewhere = checkout.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    done = subprocess.run(
        [checkout / "train.sh", *arguments],
        cwd=elsewhere,
        env={"PATH": path, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=CEILING,
        check=True,
    )
    return done.stdout.splitlines()


def test_train_sh_makes_flags_of_the_environment(checkout: Path) -> None:
    script(checkout / ".venv/bin/python", run_python())
    settings = {
        "MAX_SAMPLES": "64",
        "BATCH_SIZE": "2",
        "GRADIENT_ACCUMULATION_STEPS": "4",
        "NUM_EPOCHS": "1",
        "LEARNING_RATE": "1e-4",
        "MAX_LENGTH": "256",
        "MAX_TIME": "90m",
        "MODEL": "a model",
        "OUTPUT_DIR": "my runs/one",
    }
    flags = [("--" + name.lower().replace("_", "-"), value) for name, value in settings.items()]
    words = ["--seed", "7", "two words"]
    assert train_sh(checkout, *words, **settings) == ["train", *itertools.chain(*flags), *words]


def test_train_sh_leaves_out_what_is_empty_or_not_set(checkout: Path) -> None:
    script(checkout / ".venv/bin/python", run_python())
    assert train_sh(checkout, MODEL="embedded", MAX_SAMPLES="") == ["train", "--model", "embedded"]


def test_train_sh_takes_python3_where_there_is_no_venv(checkout: Path) -> None:
    script(checkout / "bin/python3", run_python("echo from python3\n"))
    assert train_sh(checkout, path=f"{checkout / 'bin'}:{SYSTEM_PATH}") == ["from python3", "train"]


def test_train_sh_hands_on_the_exit_code(checkout: Path) -> None:
    script(checkout / ".venv/bin/python", "exit 75")
    with pytest.raises(subprocess.CalledProcessError) as raised:
        train_sh(checkout)
    assert raised.value.returncode == 75


# --- Makefile -------------------------------------------------------------------------------------


def make(folder: Path, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    """Run a copy of the Makefile with nothing on the PATH but `folder`/bin, and `path`."""
    found = shutil.which("make")
    if found is None:
        pytest.skip("make is not installed")
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "hashes.txt", "lock.py"):
        if not (folder / name).exists():
            shutil.copy(ROOT / name, folder)
    return subprocess.run(
        [found, "-s", *arguments],
        cwd=folder,
        env={"PATH": f"{folder / 'bin'}:{path}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=CEILING,
        check=False,
    )


def test_make_says_in_one_line_what_to_install(tmp_path: Path) -> None:
    # Python 3.9 runs and says no; a shim of a version manager does not run at all.
    script(tmp_path / "bin/python3", '[ "$1" = -c ] && exit 1; echo Python 3.9.6')
    script(tmp_path / "bin/python3.12", "echo 'python3.12: command not found' >&2; exit 127")
    done = make(tmp_path, "find-python")
    line, *rest = done.stderr.splitlines()
    assert line.startswith("Python 3.11 to 3.14 with venv is needed")
    assert all("***" in extra for extra in rest)  # make's own word on the failed recipe
    assert (done.returncode, done.stdout) == (2, "")


def test_make_takes_the_first_python_that_runs(tmp_path: Path) -> None:
    script(tmp_path / "bin/python3.12", "exit 127")
    script(tmp_path / "bin/python3.13", run_python())
    script(tmp_path / "bin/python3", run_python())
    assert make(tmp_path, "find-python").stdout == "python3.13\n"


def test_make_takes_the_python_it_is_given_or_none(tmp_path: Path) -> None:
    script(tmp_path / "bin/python3", run_python())
    given = tmp_path / "my python"
    script(given, run_python())
    assert make(tmp_path, "find-python", f"PYTHON={given}").stdout == f"{given}\n"
    script(given, "exit 1")
    assert make(tmp_path, "find-python", f"PYTHON={given}").stderr.startswith(f"PYTHON={given} does not run")


# Makes a "venv" that is a copy of itself; "installs" by writing a line to pip.log, and fails
# where there is a file `no-network`; for anything else it is the Python that runs this test.
FAKE_PYTHON = """
case "$1 $2" in
    "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; exit;;
    "-m pip" | "lock.py install") echo "$@" >> pip.log; [ ! -e no-network ]; exit;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    script(tmp_path / "bin/python3.12", run_python(FAKE_PYTHON))
    return tmp_path


def set_up(project: Path, stamp: str = "run") -> tuple[int, bool, list[str]]:
    """Make .venv/.stamp-<stamp>: the exit code, whether a venv was made, and the calls of pip."""
    log = project / "pip.log"
    log.unlink(missing_ok=True)
    done = make(project, f".venv/.stamp-{stamp}", path=SYSTEM_PATH)
    calls = log.read_text().splitlines() if log.exists() else []
    return done.returncode, "Making .venv" in done.stdout, calls


def test_make_sets_up_once(project: Path) -> None:
    code, made, calls = set_up(project, "test")
    assert (code, made) == (0, True)
    assert "-e .[dev]" in calls[-1]
    assert set_up(project, "test") == (0, False, [])
    assert not (project / ".venv/.unfinished").exists()


def test_make_installs_again_in_the_same_venv_when_the_pins_change(project: Path) -> None:
    set_up(project)
    stamp = (project / ".venv/.stamp-run").stat().st_mtime
    os.utime(project / "constraints.txt", (stamp + 5, stamp + 5))
    code, made, calls = set_up(project)
    assert (code, made, bool(calls)) == (0, False, True)


def test_a_failed_install_leaves_no_stamp_and_starts_over(project: Path) -> None:
    (project / "no-network").touch()
    assert set_up(project, "test")[0] == 2
    assert list((project / ".venv").glob(".stamp-*")) == []
    (project / "no-network").unlink()
    assert set_up(project, "test")[:2] == (0, True)


def test_a_venv_that_lost_its_python_is_made_again(project: Path) -> None:
    set_up(project)
    (project / ".venv/bin/python").unlink()
    assert set_up(project)[:2] == (0, True)


def test_makefile_keeps_to_make_3_81() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    text = re.sub(r"(?ms)^define .*?^endef$", "", text)  # Python and shell
    newer = ("ONESHELL", "$(file ", "!=", "undefine", "&:", "::=", "EXTRA_PREREQS", "$(intcmp", "$(let ")
    assert [word for word in newer if word in text] == []


# --- pyproject.toml and constraints.txt -----------------------------------------------------------


def pins() -> dict[str, str]:
    """Package -> version. A line is `name==version`, perhaps with a marker, or a comment."""
    found = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", line
        assert canonicalize_name(requirement.name) not in found, line
        found[canonicalize_name(requirement.name)] = specifier.version
    return found


def requirements() -> list[Requirement]:
    """What an install can ask for: the dependencies, those of each extra, and what builds the project."""
    base, build = PYPROJECT["project"]["dependencies"], PYPROJECT["build-system"]["requires"]
    extras = itertools.chain(*PYPROJECT["project"]["optional-dependencies"].values())
    return [Requirement(line) for line in [*base, *build, *extras]]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_every_requirement_is_pinned_within_its_bounds(requirement: Requirement) -> None:
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_the_extras_are_there() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    assert set(extras) == {"mlx-cpu", "mlx-cuda", "track", "bench", "dev"}


def test_the_wheel_holds_every_module_of_ours_that_it_imports() -> None:
    shipped = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    files = [file for name in shipped for file in [ROOT / name, *(ROOT / name).rglob("*.py")]]
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    ours = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert {name.split(".")[0] for name in names} & ours <= {Path(name).stem for name in shipped}


# --- the wheel ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from hatchling.builders.wheel import WheelBuilder

    folder = tmp_path_factory.mktemp("wheel")
    (made,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    return Path(made)


@pytest.fixture(scope="module")
def unpacked(wheel: Path) -> Path:
    """A folder that holds what a wheel of this project installs."""
    with zipfile.ZipFile(wheel) as file:
        file.extractall(wheel.parent / "site")
    return wheel.parent / "site"


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """An environment of its own with the wheel in it, as pipx and uv make one; what it needs is this Python's."""
    place = wheel.parent / "environment"
    venv.create(place, symlinks=True)
    (site,) = (Path(path) for path in place.glob("lib/python*/site-packages"))
    (site / "needed.pth").write_text(sysconfig.get_path("purelib"))  # a line of it: no .pth there is read, ours neither
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        place / "bin" / "python",
        "install",
        "-qq",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*pip, "--no-compile", wheel], check=True)
    return place


def test_an_installed_command_runs_where_other_modules_have_our_names(installed: Path, tmp_path: Path) -> None:
    """`cli`, `verbs` and `backends` are plain names: a person's folder may have files that are called so."""
    names = ("cli", "verbs", "backends", "gsm8k_core", "gsm8k_finetune")
    for name in names:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} of this folder')")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "GSM8K_"))}

    def call(*command: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [installed / "bin" / command[0], *command[1:]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout, done.stderr

    version = PYPROJECT["project"]["name"] + " " + gsm8k_core.__version__
    assert call("gsm8k", "--version") == (0, version + "\n", "")
    # The parent is one process and the training another, which is started by the same words.
    code, _, said = call("gsm8k", "train", "--model", "./gone", "--data", "./gone")
    assert (code, said.startswith("error: model './gone' is not a folder here")) == (4, True), said
    where = f"import {', '.join(names)}; print(*(each.__file__ for each in ({', '.join(names)})), sep='\\n')"
    code, files, said = call("python", "-P", "-c", where)
    assert code == 0, said
    assert all(Path(file).is_relative_to(installed) for file in files.splitlines())


def test_the_wheel_holds_the_product_alone(unpacked: Path) -> None:
    found = {path.name for path in unpacked.iterdir() if path.suffix != ".dist-info"}
    assert found == {"cli.py", "gsm8k_finetune", "verbs", "backends", "gsm8k_core"}


# Run in the wheel's folder: prints the exit code of each call after what it said.
CALLS = """
import contextlib, importlib, sys
import cli
for arguments in (["help"], ["benchmark", "train"], ["benchmark", "--help"], ["benchmrk"], ["runs"]):
    with contextlib.redirect_stderr(sys.stdout):
        print("exit", cli.main(arguments))
for verb in cli._here():
    importlib.import_module(cli.VERBS[verb][1])
print([name for name, module in sys.modules.items() if name.partition(".")[0] == "benchmarks"])
print(all(sys.modules[name].__file__.startswith(sys.path[0]) for name in ("cli", "verbs", "backends", "gsm8k_core")))
"""


# What the script of an install runs, for several calls at once.
SCRIPT = """
import contextlib, sys
sys.path.insert(0, {site!r})
from cli import main
for arguments in (["help"], ["train", "--help"], ["runs"], ["trian"], ["compare"], ["train", "--lr-rate", "1"]):
    with contextlib.redirect_stderr(sys.stdout), contextlib.suppress(SystemExit):
        main(arguments)
"""


@pytest.mark.parametrize(("name", "typed"), [("gsm8k", "gsm8k"), ("other", "python cli.py")])
def test_the_installed_command_names_itself_in_every_hint(
    unpacked: Path, tmp_path: Path, name: str, typed: str
) -> None:
    """From a clone it stays `python cli.py`."""
    script = tmp_path / name
    script.write_text(SCRIPT.format(site=str(unpacked)))
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ("cli.py" in done.stdout) == (typed != "gsm8k"), done.stdout
    for hint in ("usage: {} VERB", "{} train --backend auto", "{} train starts one", "{} runs lists them"):
        assert hint.format(typed) in done.stdout


def test_a_shell_completes_verbs_flags_and_values(unpacked: Path, tmp_path: Path) -> None:
    """bash itself, with the script that is printed: what it offers behind each beginning."""
    code = f"import sys; sys.path.insert(0, {str(unpacked)!r}); import cli; sys.exit(cli.main(sys.argv[1:]))"
    call = [sys.executable, "-c", code, "--tyro-print-completion"]
    done = subprocess.run([*call, "bash"], cwd=tmp_path, capture_output=True, text=True, check=True)
    (tmp_path / "completion.sh").write_text(done.stdout)
    ask = 'source ./completion.sh; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _tyro_gsm8k; '
    ask += 'echo "${#COMPREPLY[@]} ${COMPREPLY[@]}"'
    for words, offered in (
        (["gsm8k", "tr"], {"train"}),
        (["gsm8k", "train", "--max-t"], {"--max-time"}),
        (["gsm8k", "train", "--method", "lo"], {"lora"}),
        (["gsm8k", "train", "--no-"], {"--no-wandb"}),
        (["gsm8k", "export", "--to", ""], {"merged", "mlx", "gguf", "ollama"}),
        (["gsm8k", "eval", "--model", "./comp"], {"./completion.sh"}),
        (["gsm8k", "export", "comp"], set()),  # so bash itself looks for files
    ):
        shown = subprocess.run(
            ["bash", "-c", ask, "bash", *words], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        count, *found = shown.stdout.split()
        assert (int(count), {*found}) == (len(offered), offered), shown.stderr
    assert "complete -o default -F _tyro_gsm8k gsm8k\n" in done.stdout
    refused = subprocess.run([*call, "fish"], cwd=tmp_path, capture_output=True, text=True)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "takes bash or zsh (got fish)" in refused.stderr


def test_without_the_folder_of_the_benchmark_all_else_works(unpacked: Path, tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(unpacked)!r})\n{CALLS}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    overview, refused, of_help, of_typing, _, modules = done.stdout.split("exit ")
    assert "train" in overview
    assert "benchmark" not in overview
    verbs = "train, eval, compare, generate, chat, serve, export, inspect, grade, doctor, parity, plot, runs, harness"
    said = f"error: benchmark comes with the source and not with the package (here are {verbs})"
    said += "; clone the repository, and there python ./cli.py benchmark"
    assert refused.splitlines() == ["0", said]
    assert of_help.splitlines() == ["3", said]
    assert "there is no verb 'benchmrk' (there are train, " in of_typing
    assert "benchmark;" not in of_typing
    assert modules.splitlines() == ["0", "[]", "True"]
