#!/usr/bin/env python3
"""Fine-tune a small language model on GSM8K, and know whether it got better.

The one front door: verbs -> settings -> core and a backend. No arithmetic here, and `--help` imports no framework.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib
import io
import itertools
import os
import re
import shlex
import shutil
import sys
import textwrap
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

OUTSIDE = 3  # PreflightError's exit code, where that cannot be imported
OLDEST = (3, 11)


def outside(lack: str) -> str:
    """What to type where this Python cannot do it: with that of .venv where it is there, else how to make that."""
    folder = os.path.relpath(os.path.dirname(os.path.abspath(__file__)))
    python, script = (
        os.path.normpath(os.path.join(folder, *path)) for path in ((".venv", "bin", "python"), ("cli.py",))
    )
    if os.access(python, os.X_OK):
        return f"error: {sys.executable} {lack}; type: {shlex.join([python, script, *sys.argv[1:]])}"
    place = "" if folder == "." else f"cd {shlex.quote(folder)} && "
    return f"error: {sys.executable} {lack}; type: {place}make demo (it makes .venv/ with all that is needed)"


try:
    if sys.version_info < OLDEST:
        raise ModuleNotFoundError("is Python {}.{}, and 3.11 or newer is needed".format(*sys.version_info[:2]))
    from gsm8k_core.doing import quiet, start

    if (
        __name__ == "__main__"
        and sys.argv[1:]
        and sys.argv[1].isalpha()
        and sys.argv[1] != "help"
        and not {"-h", "--help"} & set(sys.argv)
    ):
        start(f"starting {sys.argv[1]}")  # before all else: half a second passes in the imports below
    from pydantic import ValidationError

    from gsm8k_core import __version__
    from gsm8k_core.command import INSTALLED, as_typed, typed
    from gsm8k_core.config.brought import meant, spelled
    from gsm8k_core.config.fields import Settings, flag, one_line
    from gsm8k_core.config.groups import regrouped
    from gsm8k_core.types import (
        EXIT_INTERRUPTED,
        EXIT_OK,
        GSM8KError,
        OutOfMemoryError,
        PreflightError,
        StorageError,
        UsageError,
    )
except ModuleNotFoundError as error:
    if __name__ != "__main__" or (error.name or "").partition(".")[0] in ("gsm8k_core", "verbs", "backends"):
        raise
    if error.name and "quiet" in globals():  # the first step's line
        quiet()
    print(outside(f"has no {error.name}" if error.name else str(error)), file=sys.stderr)
    sys.exit(OUTSIDE)

ROOT = Path(__file__).resolve().parent

# Verb -> its settings, and the module whose `run` does it. By name: a verb imports what it needs, and no more.
VERBS = {
    "train": ("gsm8k_core.config.train:TrainConfig", "verbs.train.verb"),
    "eval": ("gsm8k_core.config.score:EvalConfig", "verbs.evaluate"),
    "compare": ("gsm8k_core.config.score:CompareConfig", "verbs.compare"),
    "generate": ("gsm8k_core.config.score:GenerateConfig", "verbs.generate"),
    "chat": ("gsm8k_core.config.talk:ChatConfig", "verbs.chat"),
    "serve": ("gsm8k_core.config.talk:ServeConfig", "verbs.serve"),
    "export": ("gsm8k_core.config.export:ExportConfig", "verbs.export"),
    "inspect": ("gsm8k_core.config.diagnostics:InspectConfig", "verbs.inspect"),
    "grade": ("gsm8k_core.config.score:GradeConfig", "verbs.grade"),
    "doctor": ("gsm8k_core.config.diagnostics:DoctorConfig", "verbs.doctor"),
    "parity": ("gsm8k_core.config.diagnostics:ParityConfig", "verbs.parity"),
    "plot": ("gsm8k_core.config.diagnostics:PlotConfig", "verbs.plot"),
    "runs": ("gsm8k_core.config.diagnostics:RunsConfig", "verbs.runs"),
    "harness": ("gsm8k_core.config.score:HarnessConfig", "verbs.harness"),
    "benchmark": ("benchmarks.config:BenchmarkConfig", "benchmarks.verb"),  # no part of the package
}

# Verbs that open two backends in one process, or a library that wants torch whatever the backend.
SEVERAL = frozenset({"parity", "harness", "benchmark"})


def _choices(found: re.Match[str]) -> str:
    """None is what there is without the flag, and nothing to type; with it, tyro's order is that of a set."""
    names = found[3].split(", ")
    if "'None'" in names:
        names = sorted(set(names) - {"'None'"})
    return f"{found[2]} takes {', '.join(names)} (got {found[1]})"


# What tyro says, and what we say instead.
PHRASES = (
    (r"Error parsing (\S+): invalid literal for int\(\).*?: (.*)", r"\1 must be a whole number (got \2)"),
    (r"Error parsing (\S+): could not convert string to float: (.*)", r"\1 must be a number (got \2)"),
    (r"Error parsing (\S+): .*", r"\1 has a value that cannot be read"),
    (r"invalid choice (.*) for argument '(\S+)'\. Expected one of \((.*)\)", _choices),
    (r"Missing value for argument '(\S+)'.*", r"\1 needs a value"),
    (r"Unrecognized options: (.*)", r"there is no place for \1"),
)


COMPLETION, SHELLS = "--tyro-print-completion", ("bash", "zsh")  # tyro's flag and what it knows
# In tyro's script, and what we have instead. None is what there is without a flag, and nothing to type; where neither a
# flag nor a value is offered, bash has to offer files, and to go on into a folder.
SCRIPT = (
    ("'None', ", ""),
    (", 'None']", "]"),
    ('matches+=("$completion")', '[[ -n $completion ]] && matches+=("$completion")'),
    ("COMPREPLY=($(compgen -f", "compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -f"),
    ("complete -F _tyro", "complete -o default -F _tyro"),
)

# What a flag of `train` means without a value.
ALONE = {"--resume": "latest", "--calculator": "on"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    if argv is None:
        _open_closed_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    is_child = argv is None and arguments[:1] == ["train"] and _has_parent()
    code = _main(arguments, argv is None)
    if is_child or (argv is None and arguments[:1] == ["serve"]):
        # Everything is closed and synced. Python would take torch apart first: 14 s beside busy cores, and the budget
        # ends when the process does. Under a step of serve's that still goes on it would abort, and so may what an
        # answer that was left had asked MLX for ahead; one more Ctrl-C would end it by the signal.
        os._exit(code)
    return code


def _has_parent() -> bool:
    """Whether this process trains for a parent (verbs/train/parent.py)."""
    from verbs.link import VARIABLE  # here, not above: `--help` needs it not

    return VARIABLE in os.environ


def _main(arguments: list[str], as_program: bool) -> int:
    verbose = "-v" in arguments or "--verbose" in arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a stdout that is not UTF-8, or a name that is not text
    try:
        if arguments[:1] and arguments[0] in VERBS and not {"--help", "-h"} & set(arguments):
            start(f"starting {arguments[0]}")
        if arguments[:1] == ["help"]:
            arguments = [*arguments[1:2], "--help"]
        if not arguments or arguments[0] in ("-h", "--help"):
            print(as_typed(_overview()))
            return EXIT_OK if arguments else UsageError.exit_code
        if arguments[0] == "--version":
            print(f"gsm8k-finetune {__version__}")
            return EXIT_OK
        if arguments[0].partition("=")[0] == COMPLETION:
            return _print_completion(arguments)
        if as_program and arguments[0] == "train":
            from verbs.train.parent import supervise, supervises  # here, not above: `--help` needs neither

            if supervises(arguments):
                return supervise(arguments)
        config, explicit = parse(arguments)
        if config.print_config:
            from gsm8k_core.config.repeat import as_yaml  # here, not above: most calls print none

            quiet()
            print(as_yaml(config, explicit, f"{typed()} {arguments[0]}"))
            return EXIT_OK
        return _dispatch(arguments[0], config, explicit, as_program and arguments[0] not in SEVERAL)
    except UsageError as error:
        from gsm8k_core.ranks.world import let_the_first_say_it  # here, not above: `--help` needs it not

        let_the_first_say_it(os.environ)
        return _fail(str(error), error.exit_code, verbose)
    except GSM8KError as error:
        return _fail(str(error), error.exit_code, verbose)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED, verbose)
    except BrokenPipeError:
        return EXIT_OK
    except MemoryError:
        what = "there is no memory left for this process"
        return _fail(f"{what}; close other programs, or ask for less", OutOfMemoryError.exit_code, verbose)
    except OSError as error:
        return _fail(*_of_the_system(error), verbose)
    except Exception as error:  # a bug of ours: one line for the user, the traceback with -v
        return _fail(f"unexpected {type(error).__name__}: {error} (run again with -v for the traceback)", 1, verbose)
    finally:
        quiet()
        _settle()


def _print_completion(arguments: Sequence[str]) -> int:
    """tyro's script that completes the installed command in a shell, over all verbs and their flags."""
    import tyro  # here, not above: `--help` needs it not

    shell = arguments[0].partition("=")[2] or "".join(arguments[1:2])
    if shell not in SHELLS:
        raise UsageError(f"{COMPLETION} takes {' or '.join(SHELLS)} (got {shell or 'nothing'})")
    verbs = {verb: _settings(verb) for verb in _here()}
    call, one_form = [COMPLETION, shell], (tyro.conf.FlagCreatePairsOff,)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as script:
            tyro.extras.subcommand_cli_from_dict(verbs, prog=INSTALLED, args=call, config=one_form)
    except SystemExit:
        text = script.getvalue()
        for theirs, ours in SCRIPT:
            text = text.replace(theirs, ours)
        print(text, end="")
        return EXIT_OK
    raise AssertionError("tyro prints its script and ends")


def _of_the_system(error: OSError) -> tuple[str, int]:
    """What a person can do about an error of the system that nobody expected where it came, and the exit code."""
    if error.errno == errno.ENOMEM:
        return "the system has no memory left; close other programs, or ask for less", OutOfMemoryError.exit_code
    if "temporary directory" in str(error):  # tempfile's, where no folder of its list can be written
        return "no folder for temporary files can be written; set TMPDIR to one that can", StorageError.exit_code
    # A file of ours has a hidden name until it is whole: the person knows the one that it would get.
    path = re.sub(r"/\.([^/]+)\.[0-9]+-[0-9a-f]{8}\.tmp(?=/|$)", r"/\1", str(error.filename or ""))
    if error.errno == errno.ENAMETOOLONG:
        return f"{path[:80]}... is longer than a path may be; give a shorter one", UsageError.exit_code
    reason = error.strerror or str(error) or type(error).__name__
    place = path or "a file or folder of this command"
    return f"{place} cannot be read or written ({reason}); check the disk and its rights", StorageError.exit_code


def _open_closed_streams() -> None:
    """Descriptors 0 to 2 that are closed lead to nowhere from now on.

    Else the next file or socket gets such a number, and what is written to stdout or stderr ends in it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, number)  # inherited by children; where it is the same number, dup2 leaves it as it is
            os.set_inheritable(number, True)
            if nowhere != number:
                os.close(nowhere)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115


def _settle() -> None:
    """Let go of an output whose reader went away: Python would turn the exit code into 120."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _fail(message: str, code: int, verbose: bool) -> int:
    from gsm8k_core.tracking.terminal import printable  # here, not above: it brings rich

    quiet()
    if verbose:
        print(printable(traceback.format_exc()), end="", file=sys.stderr)
    # A message may hold the names of files in a folder that a stranger made.
    print("error: " + printable(" ".join(as_typed(message).split())), file=sys.stderr)
    return code


def _dispatch(verb: str, config: Settings, explicit: frozenset[str], one_framework: bool) -> int:
    # Imported here: a verb's file brings numpy and more, and `--help` must not.
    import backends
    from gsm8k_core.ranks.world import world_of
    from gsm8k_core.tracking.terminal import Terminal
    from verbs import Context, process_clock
    from verbs.link import take_link

    world = world_of(os.environ)
    if one_framework:
        backends.keep_to_one()
    if (asked := getattr(config, "backend", None)) is not None:
        backends.check_name(asked)  # before anything is read
    with _true_stdout(config.json_) as out:
        context = Context(Terminal(config.json_, out, config.verbose), explicit, process_clock(), take_link())
        run = importlib.import_module(VERBS[verb][1]).run
        if world is None:
            return int(run(config, context))
        from verbs.ranks import run_shared  # here, not above: most runs are alone

        return run_shared(world, verb, config, context, run)


@contextlib.contextmanager
def _true_stdout(json_only: bool) -> Iterator[IO[str] | None]:
    """With --json, what libraries and their children print on stdout goes to stderr; yields the true stdout."""
    if not json_only or sys.stdout is None or sys.stderr is None:
        yield None
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    # A stream that is not file descriptor 1 (a test's) stays as it is.
    out = os.fdopen(os.dup(kept), "w", encoding="utf-8") if _is_descriptor_1(sys.stdout) else sys.stdout
    theirs = out is sys.stdout
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield out
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        if not theirs:
            with contextlib.suppress(OSError):  # its reader went away
                out.close()


def _is_descriptor_1(stream: IO[str]) -> bool:
    try:
        return stream.fileno() == 1
    except (OSError, ValueError):
        return False


def _overview() -> str:
    lines = ["usage: python cli.py VERB [--help] [FLAGS]", "", _fitted((__doc__ or "").splitlines()[0]), ""]
    lines += [_fitted(f"  {verb:<9} {(_settings(verb).__doc__ or '').splitlines()[0]}", 12) for verb in _here()]
    lines += ["", "Start with: python cli.py train --backend auto"]
    return "\n".join(lines)


def _fitted(line: str, indent: int = 0) -> str:
    """In the columns of this terminal, or of 80; no word is broken."""
    columns, later = shutil.get_terminal_size().columns, " " * indent
    return textwrap.fill(line, columns, subsequent_indent=later, break_long_words=False, break_on_hyphens=False)


def _here() -> list[str]:
    """The verbs whose settings came along."""
    modules = {verb: settings.partition(":")[0] for verb, (settings, _) in VERBS.items()}
    return [verb for verb, module in modules.items() if (ROOT / f"{module.replace('.', '/')}.py").is_file()]


def _settings(verb: str) -> type[Settings]:
    module, _, name = VERBS[verb][0].partition(":")
    found: type[Settings] = getattr(importlib.import_module(module), name)
    return found


def parse(arguments: Sequence[str]) -> tuple[Settings, frozenset[str]]:
    """Settings of a verb, and the names of the fields that were given by flag or file.

    Raises UsageError with one line for anything that does not fit, PreflightError for a verb that is not here.
    """
    verb, *rest = _with_values(arguments)
    here = _here()
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, here, n=1)
        hint = f"did you mean {near[0]}?" if near else "try python cli.py --help"
        raise UsageError(f"there is no verb {verb!r} (there are {', '.join(here)}); {hint}")
    if verb not in here:
        what = f"{verb} comes with the source and not with the package (here are {', '.join(here)})"
        raise PreflightError(f"{what}; clone the repository, and there python ./cli.py {verb}")
    model = _settings(verb)
    flags = _flags(model)
    asked = _asked(verb, rest, flags)
    rest = _spelled(model, rest, flags)
    path = Path(named) if (named := _value(rest, "--config")) else None
    read = _read_file(verb, model, path, _value(rest, "--recipe")) if path else {}
    from_file = _settle_alternatives(model, asked, read)
    _refuse_empty(model, rest, flags, from_file)
    if isinstance(name := from_file.get("backend"), str) and "backend" not in asked:
        import backends  # here, not above: which there are is its to say, and `--help` must not import it

        backends.check_name(name, f"--config {path}: backend")
    config = _tyro(model, _checked(model, from_file, path), rest, f"{typed()} {verb}")
    return config, frozenset(asked | set(from_file))


def _settle_alternatives(model: type[Settings], asked: set[str], from_file: Mapping[str, Any]) -> dict[str, Any]:
    """The file's values, less those that a given flag is another way to say. Both in one place is an error."""
    left = dict(from_file)
    for names in model.alternatives:
        for place in (asked, from_file):
            if len(given := [flag(name) for name in names if name in place]) > 1:
                raise UsageError(f"give {' or '.join(given)}, not both")
        if asked & set(names):
            left = {name: value for name, value in left.items() if name not in names}
    return left


def _checked(model: type[Settings], from_file: Mapping[str, Any], path: Path | None) -> Settings:
    try:
        return model(**from_file)
    except UsageError as error:  # in the words of the file: its keys, not flags
        if not isinstance(error.__cause__, ValidationError):
            raise
        raise UsageError(f"--config {path}: {one_line(error.__cause__, lambda name: name.rstrip('_'))}") from error


def _with_values(arguments: Sequence[str]) -> list[str]:
    """Some flags of `train` may stand alone; tyro wants a value."""
    alone = ALONE if arguments[0] == "train" else {}
    following = [*arguments[1:], "--"]
    return [
        f"{argument}={alone[argument]}" if argument in alone and after.startswith("-") else argument
        for argument, after in zip(arguments, following, strict=True)
    ]


def _flags(model: type[Settings]) -> dict[str, str]:
    """Flag -> field name."""
    return {"--" + name.rstrip("_").replace("_", "-"): name for name in model.model_fields}


def _asked(verb: str, arguments: Sequence[str], flags: dict[str, str]) -> set[str]:
    asked = set()
    for argument in arguments:
        if not re.match(r"--|-[A-Za-z]{2}", argument) or argument == "--help":  # -lr is meant as a flag, -v is one
            continue
        name = "--" + argument.lstrip("-").split("=", 1)[0].replace("_", "-")
        if name not in flags or not argument.startswith("--"):
            ours = meant(name[2:], [each[2:].replace("-", "_") for each in flags])
            hint = f"did you mean {_as_flag(ours)}?" if ours else f"python cli.py {verb} --help lists the flags"
            given = name if argument.startswith("--") else argument
            raise UsageError(f"{verb} has no flag {given}; {hint}")
        asked.add(flags[name])
    return asked


def _refuse_empty(
    model: type[Settings], arguments: Sequence[str], flags: Mapping[str, str], from_file: Collection[str]
) -> None:
    """Of a text or a path that need not be given, nothing would be as if it were not: --push "$REPO" of no REPO.

    A text that a file gives can be taken back so.
    """
    for before, argument in itertools.pairwise(["", *arguments]):
        name, sign, value = argument.partition("=")
        given = before if argument == "" else name if sign and not value else ""
        name = flags.get(given.replace("_", "-"), "")
        field = model.model_fields.get(name)
        if field is not None and ("Path" in str(field.annotation) or (field.default == "" and name not in from_file)):
            raise UsageError(f"{given} has nothing as its value; give one, or leave the flag out")


def _as_flag(ours: str) -> str:
    name, _, value = ours.partition(" ")
    return f"{flag(name)} {value}".rstrip()


def _spelled(model: type[Settings], arguments: Sequence[str], flags: Mapping[str, str]) -> list[str]:
    """The arguments with their choices as tyro knows them: --dtype bf16, --method LoRA."""
    found: list[str] = []
    for argument in arguments:
        name, sign, value = argument.partition("=")
        before = found[-1] if found else ""
        if sign and (field := flags.get(name.replace("_", "-"))):
            argument = f"{name}={spelled(value, model.model_fields[field].annotation)}"
        elif not argument.startswith("-") and (field := flags.get(before.replace("_", "-"))):
            argument = spelled(argument, model.model_fields[field].annotation)
        found.append(argument)
    return found


def _value(arguments: Sequence[str], name: str) -> str | None:
    """What a flag is given last, before the flags are read."""
    found = None
    for argument, after in itertools.pairwise([*arguments, None]):
        if argument is not None and argument.startswith(f"{name}="):
            found = argument.split("=", 1)[1]
        elif argument == name and after is not None:
            found = after
    return found


def _read_file(verb: str, model: type[Settings], path: Path, recipe: str | None) -> dict[str, Any]:
    from gsm8k_core.config.repeat import record_of, repeated  # here, not above: most calls have no file
    from gsm8k_core.config.yaml_file import read_yaml

    if (record := record_of(path)) is not None:
        if verb != "train":
            raise UsageError(f"--config {path}: a run's settings are train's, and {verb} has others; give a YAML file")
        return repeated(record, recipe)
    names = {name.rstrip("_"): name for name in model.model_fields}
    fields = {}
    for key, value in read_yaml(path).items():
        name = names.get(str(key).replace("-", "_"))
        if name is None or name == "config":
            ours = meant(str(key), sorted(set(names) - {"config"}))
            hint = f"did you mean {ours.replace(' ', ': ')}?" if ours else f"python cli.py {verb} --help lists them"
            raise UsageError(f"--config {path}: there is no setting {key!r}; {hint}")
        fields[name] = value
    return fields


def _tyro(model: type[Settings], default: Settings, arguments: Sequence[str], program: str) -> Settings:
    import tyro  # the flags are made from the model's fields

    said, shown = io.StringIO(), _Help()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
            return tyro.cli(
                model,
                default=default,
                args=list(arguments),
                prog=program,
                description=model.__doc__,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if not stop.code:
            usage, _, rest = shown.getvalue().partition("\n")
            usage = re.sub(r"\x1b\[[0-9;]*m", "", usage)  # its colours would be broken in two
            whole = re.sub(r"\[[^]]*\]", lambda part: part[0].replace(" ", "\0"), usage)  # [--output PATH] in one line
            lines, about = _fitted(whole, 4), (model.__doc__ or "").splitlines()[0]
            rest = rest.replace(about, _fitted(about), 1)
            groups = [(heading, [flag(name) for name in names]) for heading, names in model.groups]
            print(lines.replace("\0", " "), regrouped(rest, groups) if groups else rest, sep="\n")
            raise
        message = _first_section(said.getvalue())
        for theirs, ours in PHRASES:
            message = re.sub(f"^{theirs}$", ours, message)
        raise UsageError(f"{message}; {program} --help lists the flags") from None


class _Help(io.StringIO):
    """Holds the help text; it has colours where stdout has them."""

    def __init__(self) -> None:
        super().__init__()
        self._is_terminal = sys.stdout is not None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self._encoding = getattr(sys.stdout, "encoding", None) or "ascii"

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return self._is_terminal


def _first_section(box: str) -> str:
    """The message inside tyro's frame, which is of box characters or, on a plain terminal, of dashes."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)  # on a terminal the frame has colours
    lines = [line.strip("│ ") for line in plain.splitlines()]
    body = lines[1:] if plain.startswith("╭") else lines[2:]  # without the title
    message = itertools.takewhile(lambda line: line and set(line) - set("─╰╯-"), body)
    return " ".join(message).rstrip(". ")  # the last point may have a line of its own


if __name__ == "__main__":
    sys.exit(main())
