"""Whether a test's problems are among the training's questions: said before training, and of a model that is scored."""

from __future__ import annotations

from collections.abc import Sequence

from gsm8k_core.config.fields import DEFAULT_DATA, ProblemSettings
from gsm8k_core.models.find import Source
from gsm8k_core.problems.data import MissingSplitError, is_at_hand, is_single_file, load_data
from gsm8k_core.problems.overlap import Overlap, Questions, read_questions
from gsm8k_core.problems.reading import RowOptions
from gsm8k_core.training.runs import run_of_model
from gsm8k_core.types import DataError, Problem, UsageError


def before_training(
    questions: Questions, config: ProblemSettings, reference: str, revision: str = ""
) -> tuple[str, Overlap]:
    """Whose test problems they are, and how many are among the questions: the data's own, else GSM8K's, if cached."""
    for name, part, reading in (
        (reference, config.data_config, RowOptions.of(config, revision)),
        (DEFAULT_DATA, "main", RowOptions()),
    ):
        if is_single_file(name) or not is_at_hand(name, part, "test"):
            continue
        try:
            return name, questions.met(load_data(name, part, config.seed, lambda line: None, ("test",), reading).test)
        except MissingSplitError:
            continue
        except (DataError, UsageError) as error:
            return name, Overlap(why=f"its test problems cannot be read: {error}")
    return reference, Overlap(why="it has no test problems of its own")


def of_model(source: Source, problems: Sequence[Problem]) -> Overlap:
    """How many of the problems are among the questions that the model was trained on, where that is known."""
    run = run_of_model(source.found)
    if run is None:
        return Overlap(why=f"{source.name} is no model of a run, and what it was trained on is not known")
    known = read_questions(run)
    return known.met(problems) if known else Overlap(why=f"{run} is of an older version and kept no questions.json")


def with_base(questions: Questions, source: Source) -> Questions:
    """The questions, and those of the run whose model is trained further."""
    run = run_of_model(source.found)
    if run is None:
        return questions
    return questions | (read_questions(run) or Questions(whole=False))
