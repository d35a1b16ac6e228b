"""Whom generate, chat and serve talk to: the model that was named, the newest finished run, or auto's; and its base.

What eval and compare ask in the same way stands here as well: to import those would bring the report with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import backends
from gsm8k_core.auto import AUTO, NAMED, choose_pair
from gsm8k_core.backend import Backend
from gsm8k_core.config.diagnostics import RunsConfig
from gsm8k_core.config.fields import EMBEDDED_MODEL, PromptFlags
from gsm8k_core.config.talk import NONE, TalkSettings
from gsm8k_core.models import hub
from gsm8k_core.models.adapter import base_of, is_adapter, recorded_base
from gsm8k_core.models.find import Source, cached_model, identity, prompted, resolve_model
from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.models.prompt_settings import PromptSettings, given
from gsm8k_core.problems.rows import check_context
from gsm8k_core.scoring.calculator import Calculator
from gsm8k_core.serving.conversation import ContextLimits
from gsm8k_core.tracking.terminal import Terminal
from gsm8k_core.training.memory import evaluated_at_once
from gsm8k_core.training.runs import known_manifest, newest_finished, run_of_model
from gsm8k_core.types import Choice, DataError, GSM8KError, Sampling, UsageError
from verbs.adapter_base import check_base
from verbs.demo import banner

BATCH = "batch"  # the choice of how many problems are answered at once
LONGEST_WINDOW = 2048  # tokens of a prompt and its answer, where nobody asks for more: keys and values take room
BASE, TRAINED = "base", "trained"


def choose_model(reference: str, terminal: Terminal, base: str = "") -> Source:
    """The model; where none is named, the newest finished run, and that is said. `base`: an adapter's, where named."""
    reason = NAMED
    if reference == AUTO:
        folder = RunsConfig().folder
        run = newest_finished(folder)
        if run is not None:
            terminal.say(f"model    {run}: the newest finished run under {folder}/; --model takes another")
            source = prompted(resolve_model(str(run), terminal.say, base))
            check_base(source, base, terminal.say)
            return source
        pair = choose_pair(AUTO, AUTO, "main", lambda asked: None)
        reference, reason = pair.model, pair.model_choice.reason
    source = prompted(resolve_model(reference, terminal.say, base))
    check_base(source, base, terminal.say)
    if source.choice.name == EMBEDDED_MODEL:
        banner(terminal, reason)
    return source


def adapter_base(config: TalkSettings) -> str:
    """What --base-model means for an adapter's folder: what it is opened on, as well as the model beside it."""
    folder = Path(config.model)
    named = config.base_model not in (AUTO, NONE) and any(map(is_adapter, (folder, folder / "model")))
    return config.base_model if named else ""


def choose_base(reference: str, source: Source, terminal: Terminal) -> Source | None:
    """The model beside it. Nothing is downloaded for one that nobody named: without it there is only less to see."""
    if reference == NONE:
        return None
    if reference != AUTO:
        return prompted(resolve_model(reference, terminal.say), source.model.rendering.settled)
    folder = run_of_model(source.found)
    recorded = (known_manifest(folder) if folder else {}).get("model") or {}
    name = recorded.get("name") or (base_of(source.found) if is_adapter(source.found) else None)
    if not isinstance(name, str):
        return None
    try:
        if name != EMBEDDED_MODEL and hub.local_path(name) is None and cached_model(name) is None:
            raise DataError(f"it is not on this machine; --base-model {name} fetches it")
        base = resolve_model(name, terminal.say, recorded_base(folder / "model") if folder else "")
        if recorded and identity(base) != recorded.get("hash"):
            raise DataError(f"it is not what the run began with any more; --base-model {name} takes it all the same")
    except GSM8KError as error:
        terminal.say(f"base     left out: {name}: {error}")
        return None
    return prompted(base, source.model.rendering.settled)  # both are asked alike


def limits_of(model: ModelFolder, max_new_tokens: int, max_context: str = AUTO) -> ContextLimits:
    """How much the model reads. Raises UsageError for more than it can."""
    check_context([], model.context, max_new_tokens)
    most = model.context or LONGEST_WINDOW
    window = min(most, LONGEST_WINDOW) if max_context == AUTO else int(max_context)
    if model.context is not None and window > model.context:
        raise UsageError(f"--max-context {window} is too many: this model reads {model.context:,}; give fewer")
    if max_new_tokens > window:
        raise UsageError(f"--max-new-tokens {max_new_tokens} does not fit into --max-context {window}; give fewer")
    return ContextLimits(window, max_new_tokens)


def whole_context(model: ModelFolder) -> str:
    """All that it reads, where it is asked one question at a time."""
    return AUTO if model.context is None else str(model.context)


def system_turn(asked: str, model: ModelFolder) -> str:
    """The system turn of a conversation that has none; empty: the template's own."""
    return "" if asked == NONE else model.rendering.system if asked == AUTO else asked


def sampling_of(config: TalkSettings, model: ModelFolder, seed: int = 0) -> Sampling:
    """How a token is chosen unless a request says otherwise."""
    force = Calculator.of(model.tokenizer) if config.calculator else None
    return Sampling(config.max_new_tokens, 1, config.temperature, config.top_p, config.top_k, seed, force=force)


@dataclass(frozen=True, slots=True)
class Opener:
    """Where models are opened."""

    choice: Choice
    device: str
    dtype: str

    @classmethod
    def of(cls, config: TalkSettings) -> Opener:
        return cls(backends.resolve(config.backend), config.device, config.dtype)

    def open(self, model: ModelFolder) -> Backend:
        return backends.open(self.choice.name, model.path, self.device, self.dtype, model.rendering)


def asked_prompts(config: PromptFlags) -> PromptSettings:
    """What the flags say of the prompts."""
    return given(config.thinking, config.system_prompt, config.chat_template)


def choose_together(asked: str, source: Source, backend: str, device: str, dtype: str, tokens: int) -> Choice:
    """How many prompts are answered at once, each of `tokens` tokens at most with its answer."""
    known = "float32" if dtype == AUTO else dtype  # what takes the most, until it is known
    return evaluated_at_once(asked, source.model.config, backends.device_memory(backend, device), known, tokens)
