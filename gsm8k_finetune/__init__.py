"""The verbs from Python: train, evaluate and compare, with results that a notebook shows.

    from gsm8k_finetune import compare, evaluate, train

    run = train(model="embedded", data="generated", max_time="5m")
    found = compare(run, max_samples=200)
    found.better, found.p

Each takes the settings of its verb by name, as its flags with `_` for `-` (`--max-time 5m` is `max_time="5m"`), or as
one `Config`, `EvalConfig` or `CompareConfig`. It does in this process what the command line does, leaves the same
files, and raises a `GSM8KError` with the same one line where the command line would end with an exit code.
"""

from gsm8k_core import __version__
from gsm8k_core.config.score import CompareConfig, EvalConfig
from gsm8k_core.config.train import TrainConfig as Config
from gsm8k_core.types import GSM8KError
from gsm8k_finetune.calls import compare, evaluate, train
from gsm8k_finetune.results import Comparison, Scores, TrainedRun

__all__ = [
    "CompareConfig",
    "Comparison",
    "Config",
    "EvalConfig",
    "GSM8KError",
    "Scores",
    "TrainedRun",
    "__version__",
    "compare",
    "evaluate",
    "train",
]
