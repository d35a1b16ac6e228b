"""Which model and which problems "auto" means, with the reason: the real ones where they can be had."""

from __future__ import annotations

from dataclasses import dataclass

from gsm8k_core.config.fields import DEFAULT_DATA, DEFAULT_MODEL, EMBEDDED_MODEL, GENERATED_DATA
from gsm8k_core.models import hub
from gsm8k_core.models.find import cached_model, require_model
from gsm8k_core.problems.data import cached_data, require_data
from gsm8k_core.types import Choice

AUTO = "auto"
NAMED = "you named it"  # by a flag or in the --config file


@dataclass(frozen=True, slots=True)
class Pair:
    """References for resolve_model and load_data, each with the reason for it."""

    model: str
    data: str
    model_choice: Choice
    data_choice: Choice
    demo: bool  # the embedded model was chosen automatically


def choose_pair(model: str, data: str, config: str, announce: hub.Announce) -> Pair:
    """Settles "auto". A given name stays as it is; the Hub is asked once about what is not given.

    Raises DataError for a given name that does not exist: before anything waits for the Hub or is downloaded.
    """
    if model != AUTO:
        require_model(model)
    if data != AUTO:
        require_data(data, config)
    automatic = model == AUTO and data == AUTO
    model_missing = model == AUTO and cached_model(DEFAULT_MODEL) is None
    data_missing = data == AUTO and cached_data(DEFAULT_DATA, config) is None
    obstacle = None
    if model_missing or data_missing:
        obstacle = _obstacle(model_missing, announce)
    # Chosen together, they fall back together: the small model on real problems, or the real one on
    # generated problems, would be neither the demonstration nor the real thing.
    model_choice = _choice(model, model_missing, automatic, obstacle, (DEFAULT_MODEL, EMBEDDED_MODEL))
    data_choice = _choice(data, data_missing, automatic, obstacle, (DEFAULT_DATA, GENERATED_DATA))
    demo = model == AUTO and model_choice.name == EMBEDDED_MODEL
    return Pair(model_choice.name, data_choice.name, model_choice, data_choice, demo)


def _obstacle(model_missing: bool, announce: hub.Announce) -> str | None:
    """Why what is missing cannot be had from the Hub, or None. One answer stands for both repositories."""
    repo = DEFAULT_MODEL if model_missing else DEFAULT_DATA
    announce(f"asking {hub.shown_endpoint()} for {repo}")
    try:
        hub.look_up(repo, "model" if model_missing else "dataset")
    except hub.Unavailable as error:
        return f"{repo} is not cached and {error}"
    return None


def _choice(given: str, missing: bool, automatic: bool, obstacle: str | None, names: tuple[str, str]) -> Choice:
    real, fallback = names
    if given != AUTO:
        return Choice(given, NAMED)
    if obstacle and (missing or automatic):
        return Choice(fallback, obstacle)
    return Choice(real, "the Hub answers" if missing else "it is in the Hub's cache")
