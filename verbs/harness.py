"""`harness`: lm-eval's own tasks, prompts, few-shots, stop strings and scores, on a model that a backend runs."""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, Any

import backends
from gsm8k_core.config.fields import EMBEDDED_MODEL
from gsm8k_core.config.score import HarnessConfig
from gsm8k_core.models.find import Source, identity, prompted, resolve_model
from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.models.prompt_settings import given
from gsm8k_core.problems.data import load_data
from gsm8k_core.scoring.completions import check_records, write_records
from gsm8k_core.scoring.harness import Done, Engine, check_settings, max_length
from gsm8k_core.scoring.math_verify import INSTALL
from gsm8k_core.tracking.terminal import Terminal
from gsm8k_core.types import EXIT_OK, Choice, DataError, GSM8KError, PreflightError, UsageError, first_line
from verbs import Context, say_choices
from verbs.adapter_base import check_base
from verbs.demo import banner

if TYPE_CHECKING:
    from gsm8k_core.backend import Backend

GSM8K_TASKS = "gsm8k"  # the folder of lm-eval whose tasks all read openai/gsm8k
# Of generation_config.json: lm-eval's hf backend lets them change greedy answers, silently; ours has no such thing.
PENALTIES = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0}


@dataclass(frozen=True, slots=True)
class Tasks:
    """What lm-eval is to run: names, or whole task configs, and its index of the names."""

    specs: list[Any]
    manager: Any


def run(config: HarnessConfig, context: Context) -> int:
    """The verb."""
    terminal = context.terminal
    if not config.model:
        raise UsageError("harness needs a model: python cli.py harness --model FOLDER, or --model embedded")
    if importlib.util.find_spec("lm_eval") is None:
        raise PreflightError(f"harness needs lm-eval, which is not installed; {INSTALL}")
    if config.records is not None:
        check_records(config.records)
    backend = backends.resolve(config.backend)
    source = resolve_model(config.model, terminal.say, config.base_model)
    check_base(source, config.base_model, terminal.say)
    source = prompted(source, given(config.thinking, "", config.chat_template))
    tasks = find_tasks([name.strip() for name in config.tasks.split(",") if name.strip()], config.data)
    _check_kwargs(config.gen_kwargs)
    terminal.say(f"model    {source.name}: {source.choice.reason}")
    opened = backends.open(backend.name, source.folder, config.device, config.dtype, source.model.rendering)
    choices = {"backend": backend, **opened.choices}
    say_choices(terminal, choices)
    _say_penalties(source.model, terminal)
    for note in source.model.rendering.notes() if config.apply_chat_template else ():
        terminal.say(note)
    with contextlib.ExitStack() as bars:
        lm = make_lm(opened, source, config.eval_batch_size, config.seed, terminal.say, _bars(terminal, bars))
        found = evaluate(lm, tasks, config)
    if config.records is not None:
        write_records(config.records, [_plain(row) for row in rows_of(found)])
    _tell(found, source, choices, config, terminal)
    if source.choice.name == EMBEDDED_MODEL:
        banner(terminal, "it was asked for")
    return EXIT_OK


# --- what is run ---------------------------------------------------------------------------------------------------


def find_tasks(names: Sequence[str], data: Path | None) -> Tasks:
    """lm-eval's own tasks; with `data`, those of GSM8K with nothing changed but where the rows come from."""
    from lm_eval.tasks import TaskManager  # here, not above: it is in the extra `bench`

    if not names:
        raise UsageError("--tasks names no task; give one, such as gsm8k")
    if data is not None:
        return Tasks([_local(name, data) for name in names], TaskManager(include_defaults=False))
    is_file = {name: Path(name).suffix in (".yaml", ".yml") and Path(name).is_file() for name in names}
    # Reading all of lm-eval's 14,000 tasks takes ten seconds.
    manager = TaskManager(include_defaults=not all(is_file.values()))
    for name in names:
        if not is_file[name] and name not in manager.task_index:
            raise _unknown(name, manager.all_tasks)
    return Tasks(list(names), manager)


def _check_kwargs(text: str) -> None:
    """Before a model is loaded: a task's own settings are seen when its first problem is asked."""
    from lm_eval.utils import simple_parse_args_string

    check_settings(simple_parse_args_string(text))


def _unknown(name: str, known: Sequence[str]) -> UsageError:
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {len(known):,}, such as gsm8k"
    return UsageError(f"lm-eval has no task {name!r}; {hint}")


def _local(name: str, folder: Path) -> dict[str, Any]:
    """One of lm-eval's GSM8K tasks, over the rows in `folder`."""
    import lm_eval
    from lm_eval.tasks._yaml_loader import load_yaml

    home = Path(lm_eval.__file__).parent / "tasks" / GSM8K_TASKS
    configs = {str(config.get("task")): config for config in map(load_yaml, sorted(home.glob("*.yaml")))}
    if name not in configs:
        raise UsageError(f"--data is for lm-eval's tasks {', '.join(sorted(configs))}, not for {name!r}")
    data = load_data(str(folder), "main", 0, lambda line: None)  # a damaged row is an error of ours, with its line
    files = {split: str((folder / f"{split}.jsonl").resolve()) for split in ("train", "test")}
    for split, found in data.found.items():
        if not found.is_gsm8k or not Path(files[split]).is_file():  # lm-eval reads the file itself
            raise DataError(
                f"--data {folder}: lm-eval reads {split}.jsonl with question and answer that ends with ####, and here "
                f"are {found.shape} in other words; give rows in GSM8K's own form"
            )
    config = {key: value for key, value in configs[name].items() if key not in ("tag", "group")}
    return config | {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}


def make_lm(
    backend: Backend,
    source: Source,
    batch_size: int,
    seed: int = 0,
    say: Callable[[str], None] = print,
    done: Callable[[str, int], Done] = lambda what, total: lambda count: None,
) -> Any:
    """lm-eval's LM over an open model."""
    from verbs.lm_eval_model import BackendLM

    tokenizer: Any = source.model.tokenizer
    engine = Engine(
        model=backend,
        decode=lambda tokens: str(tokenizer.decode(list(tokens), skip_special_tokens=False)),
        end_ids=frozenset(source.model.rendering.end_ids),
        vocabulary=source.model.vocabulary,
        max_length=max_length(source.model.config, tokenizer.model_max_length),
        batch_size=batch_size,
    )
    return BackendLM(engine, source.model.rendering, source.name, say, done, seed)


def evaluate(lm: Any, tasks: Tasks, config: HarnessConfig) -> dict[str, Any]:
    """lm-eval's own evaluation, with its own defaults."""
    from lm_eval import simple_evaluate

    try:
        found = simple_evaluate(
            model=lm,
            tasks=tasks.specs,
            task_manager=tasks.manager,
            num_fewshot=config.num_fewshot,
            limit=None if config.limit < 0 else config.limit,
            apply_chat_template=config.apply_chat_template,
            gen_kwargs=config.gen_kwargs or None,
        )
    except OSError as error:  # datasets' words for no network and for no such data
        raise DataError(
            f"the data of {config.tasks} cannot be read ({first_line(error)}); for GSM8K's tasks give --data FOLDER "
            "with train.jsonl and test.jsonl"
        ) from error
    except (GSM8KError, MemoryError):
        raise
    except Exception as error:  # lm-eval and the templates of a task raise many kinds
        if any(frame.f_globals.get("__name__") == type(lm).__module__ for frame, _ in walk_tb(error.__traceback__)):
            raise  # what the model did is no fault of the task's
        if "larger than population" in str(error):
            fewer = f"--num-fewshot {config.num_fewshot} is more than {config.tasks} has to show"
            raise UsageError(f"{fewer}; give fewer") from error
        what = f"{type(error).__name__}: {first_line(error)}"
        raise DataError(f"lm-eval cannot run {config.tasks} ({what}); mend the task, or give another") from error
    return dict(found or {})


# --- what is told --------------------------------------------------------------------------------------------------


def rows_of(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A record for each problem and filter of each task, as lm-eval made it, without the problem itself."""
    return [
        {"task": task} | {key: value for key, value in row.items() if key not in ("doc", "arguments")}
        for task, rows in found["samples"].items()
        for row in rows
    ]


def _tell(
    found: Mapping[str, Any], source: Source, choices: Mapping[str, Choice], config: HarnessConfig, terminal: Terminal
) -> None:
    rows = [
        [task, str(found["n-samples"][task]["effective"]), filter_, metric, *_figures(values, metric, filter_)]
        for task, values in found["results"].items()
        if task in found["n-samples"]
        for metric, filter_ in _metrics(values)
    ]
    terminal.table(["task", "problems", "filter", "metric", "value", "standard error"], rows)
    if config.records is not None:
        terminal.say(f"written  {config.records}: each answer and its scores")
    kept = ("results", "groups", "n-shot", "n-samples", "versions", "higher_is_better")
    terminal.result(
        {
            **{key: _plain(found[key]) for key in kept if key in found},
            "model": source.name,
            "hash": identity(source),
            "choices": {name: asdict(choice) for name, choice in choices.items()},
            "lm_eval": importlib.metadata.version("lm-eval"),
            "chat_template": config.apply_chat_template,
            "gen_kwargs": config.gen_kwargs,
            "records": str(config.records) if config.records else None,
        }
    )


def _metrics(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = [tuple(name.split(",", 1)) for name in values if "," in name]
    return [(metric, filter_) for metric, filter_ in pairs if not metric.endswith("_stderr")]


def _figures(values: Mapping[str, Any], metric: str, filter_: str) -> list[str]:
    pair = values[f"{metric},{filter_}"], values.get(f"{metric}_stderr,{filter_}")
    return [f"{value:.4f}" if isinstance(value, float) else str(value if value is not None else "") for value in pair]


def _plain(value: Any) -> Any:
    """As JSON has it: numpy's numbers as numbers, NaN and functions as their names."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    value = value.item() if hasattr(value, "item") else value
    is_plain = (
        value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))
    )
    return value if is_plain else str(value)


def _say_penalties(model: ModelFolder, terminal: Terminal) -> None:
    asked = model.generation
    for name, neutral in PENALTIES.items():
        if asked.get(name) not in (None, neutral):
            terminal.say(
                f"note     generation_config.json asks for {name}={asked[name]}: lm-eval's hf backend applies it to "
                "every answer, this one does not"
            )


def _bars(terminal: Terminal, stack: contextlib.ExitStack) -> Callable[[str, int], Done]:
    """A progress bar for each kind of request, the one before it closed."""

    def start(what: str, total: int) -> Done:
        stack.close()
        steps, done = stack.enter_context(terminal.progress(what, total)), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            steps.advance("", done=done)

        return advance

    return start
