"""Which models `compare` holds against each other: the trained ones, their base, and whether they may share a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gsm8k_core.auto import AUTO
from gsm8k_core.config.diagnostics import RunsConfig
from gsm8k_core.config.fields import EMBEDDED_MODEL, GENERATED_DATA
from gsm8k_core.config.score import CompareConfig
from gsm8k_core.models import hub
from gsm8k_core.models.adapter import base_of, is_adapter, recorded_base
from gsm8k_core.models.find import NoBaseError, Source, identity, prompted, resolve_model
from gsm8k_core.report.look import SERIES
from gsm8k_core.tracking.terminal import Terminal
from gsm8k_core.training.runs import known_manifest, run_of_model
from gsm8k_core.types import DataError, UsageError
from verbs.evaluate import trained_on
from verbs.talk import asked_prompts


def find_models(config: CompareConfig, terminal: Terminal) -> tuple[Source, list[Source]]:
    """The base and the trained models, each asked as the first trained one is.

    Raises UsageError for models that cannot stand on one page: the same one twice, other bases, data or prompts.
    """
    _refuse_names(config.trained_model)
    trained = [_trained(config, name, terminal) for name in config.trained_model]
    _refuse_same(trained)
    base = _common_base(config, trained, terminal)
    trained = [prompted(each, asked_prompts(config)) for each in trained]
    _refuse_other_prompts(trained)
    if config.data == AUTO:
        _refuse_other_problems(trained)
    return prompted(base, trained[0].model.rendering.settled), trained


def _refuse_names(names: Sequence[str]) -> None:
    if not names:
        raise UsageError("compare needs the trained model; add --trained-model RUN (python cli.py runs lists them)")
    plain = [name.rstrip("/") for name in names]
    if twice := next((name for name in plain if plain.count(name) > 1), None):
        raise UsageError(f"--trained-model {twice} is given twice; give each model once")
    if len(names) > len(SERIES):
        raise UsageError(f"a page takes {len(SERIES)} trained models, and {len(names)} were given; leave some out")


def _refuse_same(trained: Sequence[Source]) -> None:
    known: dict[str, str] = {}
    for each in trained:
        other = known.setdefault(identity(each), each.name)
        if other != each.name:
            raise UsageError(f"{other} and {each.name} are the same model, file by file; leave one of them out")


def _refuse_other_prompts(trained: Sequence[Source]) -> None:
    first = trained[0]
    for each in trained[1:]:
        if each.model.rendering.settled != first.model.rendering.settled:
            raise UsageError(
                f"{first.name} and {each.name} were trained with other prompts (system prompt, thinking, template or "
                "date), and one base cannot be asked as both; compare each by itself"
            )


def of_recorded_data(trained: Sequence[Source]) -> Source:
    """The model whose run says which problems are meant; the first where none does."""
    return next((each for each in trained if trained_on(each)), trained[0])


def _refuse_other_problems(trained: Sequence[Source]) -> None:
    known = [(each, *data) for each in trained if (data := trained_on(each))]
    for each, asked, revision in known[1:]:
        first, as_first, at = known[0]
        same = asked if asked.data == GENERATED_DATA else asked.model_copy(update={"seed": as_first.seed})
        if (same, revision) != (as_first, at):  # a seed makes other generated problems, and only another order of rows
            one, other = f"{first.name} on {as_first.data}", f"{each.name} on {asked.data}"
            raise UsageError(f"{one} and {other} were not trained on the same data; add --data to say which problems")


def _common_base(config: CompareConfig, trained: Sequence[Source], terminal: Terminal) -> Source:
    bases = [
        _base(config, name, each.found, terminal) for name, each in zip(config.trained_model, trained, strict=True)
    ]
    for each, base in zip(trained, bases, strict=True):
        if identity(base) != identity(bases[0]):
            raise UsageError(
                f"{trained[0].name} began with {bases[0].name} and {each.name} with {base.name}; "
                "add --base-model MODEL, or compare each by itself"
            )
    return bases[0]


def _resolve(flag: str, reference: str, terminal: Terminal) -> Source:
    """The model; where there is none, an error in the words of this verb, which has no --model."""
    advice = f"give a run or model folder with {flag} (python cli.py runs lists your runs)"
    missing = reference != EMBEDDED_MODEL and hub.local_path(reference) is None
    runs = str(RunsConfig().folder)
    if missing and "/" in reference and (Path(reference).parent.is_dir() or reference.startswith(f"{runs}/")):
        raise DataError(f"{flag} {reference}: there is no such folder; {advice}")
    try:
        return resolve_model(reference, terminal.say)
    except NoBaseError:
        raise
    except DataError as error:
        if not missing:
            raise
        raise DataError(f"{flag}: {str(error).partition('; ')[0]}; {advice}") from error


def _trained(config: CompareConfig, name: str, terminal: Terminal) -> Source:
    """The trained model; an adapter whose own base is not here is opened on the one that it is compared with."""
    try:
        return _resolve("--trained-model", name, terminal)
    except NoBaseError:
        if config.base_model == AUTO:
            raise
        return resolve_model(name, terminal.say, config.base_model)


def _base(config: CompareConfig, name: str, trained: Path, terminal: Terminal) -> Source:
    """The base that was named, or the one that the trained model's run began with, unchanged."""
    if config.base_model != AUTO:
        return _resolve("--base-model", config.base_model, terminal)
    folder = run_of_model(trained)
    recorded = (known_manifest(folder) if folder else {}).get("model") or {}
    began = recorded.get("name")
    if folder is None and is_adapter(trained):
        return _resolve(f"the base of {name}", base_of(trained), terminal)
    if folder is None or not isinstance(began, str):
        raise UsageError(f"{name} is in no run folder that names its base; add --base-model MODEL")
    source = resolve_model(began, terminal.say, recorded_base(folder / "model"))
    if identity(source) != recorded.get("hash"):
        raise DataError(
            f"{began} is not what the run began with any more; add --base-model {began} to take it all the same"
        )
    return source
