"""train, evaluate and compare: settings in, a result out; the work is the verbs'."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import backends
from gsm8k_core.clock import RunClock
from gsm8k_core.config.fields import Settings, flag
from gsm8k_core.config.score import CompareConfig, EvalConfig
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.models.hub import seconds_downloading
from gsm8k_core.tracking.terminal import Steps, Terminal
from gsm8k_core.types import UsageError
from gsm8k_finetune.results import Comparison, Scores, TrainedRun
from verbs import Context

Config = TypeVar("Config", bound=Settings)


class Kept(Terminal):
    """Says the verb's lines, or nothing, and keeps its one result."""

    def __init__(self, quiet: bool) -> None:
        super().__init__(json_only=False)
        self.quiet, self.kept = quiet, dict[str, Any]()
        if quiet:
            self.console.quiet = True

    def progress(self, what: str, total: int, done: int = 0) -> Steps:
        return Steps(what, total, self.console, done) if self.quiet else super().progress(what, total, done)

    def result(self, value: Mapping[str, object]) -> None:
        self.kept = dict(value)


def train(config: TrainConfig | None = None, *, quiet: bool = False, **settings: Any) -> TrainedRun:
    """Fine-tune a model, as `train` on the command line; returns the run, finished or stopped by Ctrl-C.

    `config` or settings by name, not both. `quiet` leaves out every line. A killed process is not started again here,
    as the command line does: `resume=run.folder` goes on. Raises GSM8KError.

    >>> run = train(model=MODEL, data=DATA, max_samples=8, num_epochs=1, output_dir="mine", quiet=True)
    >>> run.status, run.updates
    ('done', 1)
    >>> len(run.losses), run.model.is_dir()
    (1, True)
    """
    settled, given = _settle(TrainConfig, config, settings)
    for name in ("dry_run", "print_config"):
        if getattr(settled, name):
            raise UsageError(f"{name} makes no run; python cli.py train {flag(name)} shows what one would take")
    return TrainedRun(Path(_call("verbs.train.verb", settled, given, quiet)["run"]))


def evaluate(
    model: TrainedRun | str | Path | None = None,
    config: EvalConfig | None = None,
    *,
    quiet: bool = False,
    **settings: Any,
) -> Scores:
    """Score a model on the test problems, as `eval`; `model` is a run or what `--model` takes. Raises GSM8KError.

    >>> scores = evaluate(MODEL, data=DATA, max_samples=4, max_new_tokens=4, quiet=True)
    >>> scores.n, sorted(scores.accuracy) == sorted(scores.rules), len(scores.records)
    (4, True, 4)
    """
    if model is not None:
        settings["model"] = str(model)
    settled, given = _settle(EvalConfig, config, settings)
    return Scores(_call("verbs.evaluate", settled, given, quiet))


def compare(
    trained: TrainedRun | str | Path | None = None,
    base: str | Path | None = None,
    config: CompareConfig | None = None,
    *,
    quiet: bool = False,
    **settings: Any,
) -> Comparison:
    """Tell a trained model from its base, as `compare`; without `base`, the one that the run names. Raises GSM8KError.

    >>> found = compare(MODEL, MODEL, data=DATA, max_samples=4, max_new_tokens=4, quiet=True)
    >>> found.better, found.won, found.lost, found.p
    ('neither', 0, 0, 1.0)
    """
    if trained is not None:
        settings["trained_model"] = str(trained)
    if base is not None:
        settings["base_model"] = str(base)
    settled, given = _settle(CompareConfig, config, settings)
    if len(settled.trained_model) > 1:
        raise UsageError("compare takes one trained model here; call it for each, or python cli.py compare for a page")
    return Comparison(_call("verbs.compare", settled, given, quiet))


def _settle(kind: type[Config], config: Config | None, settings: dict[str, Any]) -> tuple[Config, frozenset[str]]:
    """The settings, and the names of those that were given."""
    if config is not None and settings:
        names = ", ".join(sorted(settings))
        raise UsageError(f"give a {kind.__name__} or settings by name, not both (beside it came {names})")
    if config is not None and not isinstance(config, kind):
        raise UsageError(f"config must be a {kind.__name__} (got {type(config).__name__}); else give settings by name")
    settled = (
        config if config is not None else kind(**{_field(kind, name): _plain(each) for name, each in settings.items()})
    )
    return settled, frozenset(settled.model_fields_set)


def _field(kind: type[Settings], name: str) -> str:
    """The setting's own name: `all` is all_, a flag whose name is a word of Python's."""
    return f"{name}_" if f"{name}_" in kind.model_fields else name


def _plain(value: object) -> object:
    """A run or a path as it would be typed."""
    return str(value) if isinstance(value, TrainedRun | Path) else value


def _call(verb: str, config: Settings, given: frozenset[str], quiet: bool) -> dict[str, Any]:
    """Run a verb in this process; returns its result."""
    if (asked := getattr(config, "backend", None)) is not None:
        backends.check_name(asked)
    terminal = Kept(quiet)
    context = Context(terminal, given, RunClock(left_out=_downloading_from_now()))
    importlib.import_module(verb).run(config, context)
    return terminal.kept


def _downloading_from_now() -> Callable[[], float]:
    before = seconds_downloading()
    return lambda: seconds_downloading() - before
