#!/usr/bin/env python3
"""Fine-tune a small language model on GSM8K, score it, and know whether it got better.

The one front door: verbs -> settings -> core and a backend. No arithmetic here, and `--help` imports no framework.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import itertools
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gsm8k_core.config import (
    CompareConfig,
    DoctorConfig,
    EvalConfig,
    GenerateConfig,
    GradeConfig,
    InspectConfig,
    PlotConfig,
    RunsConfig,
    Settings,
    TrainConfig,
)
from gsm8k_core.types import EXIT_INTERRUPTED, EXIT_OK, GSM8KError, UsageError

# Verb -> its settings, and the module whose `run` does it.
VERBS: dict[str, tuple[type[Settings], str]] = {
    "train": (TrainConfig, "verbs.train"),
    "eval": (EvalConfig, "verbs.evaluate"),
    "compare": (CompareConfig, "verbs.compare"),
    "generate": (GenerateConfig, "verbs.generate"),
    "inspect": (InspectConfig, "verbs.inspect"),
    "grade": (GradeConfig, "verbs.grade"),
    "doctor": (DoctorConfig, "verbs.doctor"),
    "plot": (PlotConfig, "verbs.plot"),
    "runs": (RunsConfig, "verbs.runs"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verbose = "-v" in arguments or "--verbose" in arguments
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(_overview())
            return EXIT_OK if arguments else UsageError.exit_code
        config, explicit = parse(arguments)
        return _dispatch(arguments[0], config, explicit)
    except GSM8KError as error:
        return _fail(str(error), error.exit_code, verbose)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED, verbose)
    except BrokenPipeError:
        return EXIT_OK
    except Exception as error:  # a bug of ours: one line for the user, the traceback with -v
        return _fail(f"unexpected {type(error).__name__}: {error} (run again with -v for the traceback)", 1, verbose)
    finally:
        _settle()


def _settle() -> None:
    """Let go of an output whose reader went away: Python would turn the exit code into 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _fail(message: str, code: int, verbose: bool) -> int:
    if verbose:
        traceback.print_exc()
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code


def _dispatch(verb: str, config: Settings, explicit: frozenset[str]) -> int:
    # Imported here: a verb's file brings numpy and more, and `--help` must not.
    from gsm8k_core.tracking import Terminal
    from verbs import Context, process_clock

    context = Context(Terminal(json_only=config.json_), explicit, process_clock())
    return int(importlib.import_module(VERBS[verb][1]).run(config, context))


def _overview() -> str:
    lines = ["usage: python cli.py VERB [--help] [FLAGS]", "", (__doc__ or "").splitlines()[0], ""]
    lines += [f"  {name:<9} {(config.__doc__ or '').splitlines()[0]}" for name, (config, _) in VERBS.items()]
    lines += ["", "Start with: python cli.py train --backend auto"]
    return "\n".join(lines)


def parse(arguments: Sequence[str]) -> tuple[Settings, frozenset[str]]:
    """Settings of a verb, and the names of the fields that were given by flag or file.

    Raises UsageError with one line for anything that does not fit.
    """
    verb, *rest = arguments
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else "try python cli.py --help"
        raise UsageError(f"there is no verb {verb!r} (there are {', '.join(VERBS)}); {hint}")
    model = VERBS[verb][0]
    flags = _flags(model)
    asked = _asked(verb, rest, flags)
    from_file = _read_file(model, _config_path(rest))
    config = _tyro(model, model(**from_file), rest, f"cli.py {verb}")
    return config, frozenset(asked | set(from_file))


def _flags(model: type[Settings]) -> dict[str, str]:
    """Flag -> field name."""
    return {"--" + name.rstrip("_").replace("_", "-"): name for name in model.model_fields}


def _asked(verb: str, arguments: Sequence[str], flags: dict[str, str]) -> set[str]:
    asked = set()
    for argument in arguments:
        if not argument.startswith("--") or argument == "--help":
            continue
        name = "--" + argument[2:].split("=", 1)[0].replace("_", "-")
        if name not in flags:
            near = difflib.get_close_matches(name, flags, n=1, cutoff=0.75)
            hint = f"did you mean {near[0]}?" if near else f"python cli.py {verb} --help lists the flags"
            raise UsageError(f"{verb} has no flag {name}; {hint}")
        asked.add(flags[name])
    return asked


def _config_path(arguments: Sequence[str]) -> Path | None:
    for place, argument in enumerate(arguments):
        if argument.startswith("--config="):
            return Path(argument.split("=", 1)[1])
        if argument == "--config" and place + 1 < len(arguments):
            return Path(arguments[place + 1])
    return None


def _read_file(model: type[Settings], path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    import yaml  # here, not above: most calls have no file

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path} cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise UsageError(f"--config {path} is not YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"--config {path} must hold keys and values, such as max_samples: 500")
    names = {name.rstrip("_"): name for name in model.model_fields}
    fields = {}
    for key, value in values.items():
        name = names.get(str(key).replace("-", "_"))
        if name is None or name == "config":
            near = difflib.get_close_matches(str(key), names, n=1)
            raise UsageError(
                f"--config {path}: there is no setting {key!r}" + (f"; did you mean {near[0]}?" if near else "")
            )
        fields[name] = value
    return fields


def _tyro(model: type[Settings], default: Settings, arguments: Sequence[str], program: str) -> Settings:
    import tyro  # the flags are made from the model's fields

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                model, default=default, args=list(arguments), prog=program, description=model.__doc__,
                config=(tyro.conf.FlagCreatePairsOff,),
            )  # fmt: skip
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(_first_section(said.getvalue()) + f"; python {program} --help lists the flags") from None


def _first_section(box: str) -> str:
    """The message inside tyro's frame, which is of box characters or, on a plain terminal, of dashes."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip("│ ") for line in box.splitlines()]
    body = lines[1:] if box.startswith("╭") else lines[2:]  # without the title
    message = itertools.takewhile(lambda line: line and set(line) - set("─╰╯-"), body)
    return " ".join(message).rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
