"""`parity`: the ladder on this machine. The reference is torch on the CPU; what is checked is what trains here.

Both compute in float32, without TF32. With --model, only one of the two is open at a time.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import backends
from gsm8k_core.auto import choose_pair
from gsm8k_core.backend import Backend
from gsm8k_core.config.diagnostics import ParityConfig
from gsm8k_core.models.find import resolve_model
from gsm8k_core.parity import ladder, tiny
from gsm8k_core.parity.bench import Bench, Implementation
from gsm8k_core.parity.ladder import Reading, climb
from gsm8k_core.problems.data import load_data
from gsm8k_core.problems.prompts import make_examples, prompt_tokens
from gsm8k_core.problems.rows import check_token_ids
from gsm8k_core.tracking.terminal import Terminal
from gsm8k_core.types import EXIT_OK, Choice, Example, PreflightError, UsageError
from verbs import Context, say_choices

REFERENCE = "torch"
AGAINST = "torch cpu float32"
TEXTS = 6  # the rung whose notes are worth reading where it passes, too
LOOKED_AT, NUM_ROWS, NUM_PROMPTS = 64, 8, 3  # the shortest rows and prompts among the first ones
CUT = 3  # tokens that each row loses more than the next longer one
# Both frameworks may round float32 products to TF32: NVIDIA's libraries, and MLX on CUDA and on an M5.
NO_TF32 = {"NVIDIA_TF32_OVERRIDE": "0", "MLX_ENABLE_TF32": "0"}
ON_MPS = "On MPS this is the self-check against pytorch#177116 (gradients after the batch changes its shape) and "
ON_MPS += "pytorch#153957 and #195163 (sums over a large vocabulary: rung 10)."


@dataclass(frozen=True, slots=True)
class Checked:
    """What is checked, and where."""

    backend: str
    device: str
    choices: dict[str, Choice]

    @property
    def name(self) -> str:
        return f"{self.backend} {self.device} float32"


@dataclass(frozen=True, slots=True)
class Part:
    """Some rungs with one model."""

    model: str
    bench: Bench
    numbers: frozenset[int]
    frozen: bool


def run(config: ParityConfig, context: Context) -> int:
    """The verb."""
    terminal = context.terminal
    if "data" in context.explicit and not config.model:
        raise UsageError("--data gives the rows for --model; add --model, or leave --data out")
    os.environ.update(NO_TF32)  # before either framework is imported
    backend, device = _candidate(config)
    with tempfile.TemporaryDirectory(prefix="parity-") as scratch:
        folders = {kind: tiny.make(Path(scratch) / kind / "model", kind) for kind in tiny.KINDS}
        checked = _open_once(backend, device, folders["qwen2"])
        terminal.say(f"against  {AGAINST}, the reference\nchecked  {checked.name}")
        say_choices(terminal, checked.choices)
        if checked.device == "mps":
            terminal.say(ON_MPS)
        both = _both(checked)
        parts = [_tiny_part(folder, both, checked, bool(config.model)) for folder in folders.values()]
        if config.model:
            parts.insert(0, _real_part(config, both, Path(scratch), terminal))
        readings = _measure(parts, terminal)
    failed = [(model, reading) for model, reading in readings if not reading.passed]
    _show(readings, failed, terminal)
    terminal.result(
        {
            "reference": AGAINST,
            "candidate": checked.name,
            "rungs": [{"model": model, **reading.as_json()} for model, reading in readings],
            "passed": not failed,
        }
    )
    return PreflightError.exit_code if failed else EXIT_OK


# --- what is compared ---------------------------------------------------------------------------------------------


def _candidate(config: ParityConfig) -> tuple[Choice, str]:
    """What is checked, and the device to ask it for. Raises PreflightError where there is only the reference."""
    backends.resolve(REFERENCE)
    if config.backend != "auto":
        choice = backends.resolve(config.backend)
    elif config.device in ("cuda", "mps"):
        choice = Choice(REFERENCE, f"--device {config.device} is torch's")
    elif backends.installed("mlx"):
        choice = Choice("mlx", "it is installed; --backend torch checks torch's GPU")
    else:
        choice = Choice(REFERENCE, "mlx is not installed")
    return choice, _gpu(config.device) if choice.name == REFERENCE else config.device


def _gpu(asked: str) -> str:
    """torch's device. Raises PreflightError where there is none but the CPU."""
    if asked == "cpu":
        raise UsageError(
            "torch on the CPU is the reference itself; give --device cuda or mps, or get mlx: "
            + backends.PROVIDERS["mlx"].install
        )
    device = "gpu" if asked == "auto" else asked
    try:
        backends.check(REFERENCE, device, "float32", "full")
    except PreflightError as error:
        if asked != "auto":
            raise
        raise PreflightError(
            f"there is nothing to compare torch on the CPU with: no GPU that torch can use, and no mlx "
            f"(or it was not asked for); {backends.PROVIDERS['mlx'].install}"
        ) from error
    return device


def _open_once(choice: Choice, device: str, folder: Path) -> Checked:
    opened = backends.open(choice.name, folder, device, "float32")
    return Checked(choice.name, opened.choices["device"].name, {"backend": choice, **opened.choices})


def _both(checked: Checked) -> tuple[Implementation, Implementation]:
    """Reference and candidate, under names that tell them apart."""
    same = checked.backend == REFERENCE
    return (
        _implementation("cpu" if same else REFERENCE, REFERENCE, "cpu"),
        _implementation(checked.device if same else checked.backend, checked.backend, checked.device),
    )


def _implementation(name: str, backend: str, device: str) -> Implementation:
    def open_anew(folder: Path) -> Backend:
        gc.collect()  # a trained model is in cycles, and the next one needs its memory
        return backends.open(backend, folder, device, "float32")

    return Implementation(name, open_anew)


def _tiny_part(folder: Path, both: tuple[Implementation, Implementation], checked: Checked, with_model: bool) -> Part:
    rows = tiny.make_rows()
    prompts = [example.tokens[: 5 + index] for index, example in enumerate(rows[:6])]
    numbers = ladder.ALL - ladder.OF_A_MODEL if with_model else ladder.ALL
    bench = Bench(*both, folder, rows, prompts, folder.parent)
    return Part(f"tiny {folder.parent.name}", bench, numbers, frozen=checked.device == "cpu")


def _real_part(
    config: ParityConfig, both: tuple[Implementation, Implementation], scratch: Path, terminal: Terminal
) -> Part:
    """A real model, on its shortest rows. Its figures depend on it: no tolerance is frozen."""
    pair = choose_pair(config.model, config.data, "main", lambda asked: None)
    source = resolve_model(pair.model, terminal.say, config.base_model)
    data = load_data(pair.data, "main", 0, terminal.say, splits=("train",))
    terminal.say(f"model    {source.name}: {source.choice.reason}\ndata     {data.name}: {data.choice.reason}")
    terminal.say(f"rungs    {_listed(ladder.OF_A_MODEL)} with this model, the others with the tiny models")
    problems, rendering = data.train[:LOOKED_AT], source.model.rendering
    examples = make_examples(rendering, problems)
    check_token_ids((example.tokens for example in examples), source.model.vocabulary)
    rows = _uneven(sorted(examples, key=lambda example: len(example.tokens))[:NUM_ROWS])
    prompts = sorted(prompt_tokens(rendering, problems), key=len)[:NUM_PROMPTS]
    folder = scratch / "model"
    folder.mkdir()
    bench = Bench(*both, source.folder, rows, prompts, folder, batch_size=2, update_size=4, max_new_tokens=48)
    return Part(Path(source.name).name, bench, ladder.OF_A_MODEL, frozen=False)


def _uneven(rows: Sequence[Example]) -> list[Example]:
    """Rows, shortest first, cut so that no two are of one length: what is measured is arithmetic, not answers."""
    return [
        replace(row, tokens=row.tokens[: max(row.num_prompt + 1, len(row.tokens) - CUT * place)])
        for place, row in enumerate(reversed(rows))
    ]


# --- measuring and telling ----------------------------------------------------------------------------------------


def _measure(parts: Sequence[Part], terminal: Terminal) -> list[tuple[str, Reading]]:
    readings = []
    plan = [(part, rung) for part in parts for rung in ladder.RUNGS if rung.number in part.numbers]
    with terminal.progress("rung", len(plan)) as steps:
        for part, rung in plan:
            readings += [(part.model, reading) for reading in climb(part.bench, part.frozen, {rung.number})]
            steps.advance(f"{rung.number} {rung.name} of {part.model}")
    return readings


def _show(readings: Sequence[tuple[str, Reading]], failed: Sequence[tuple[str, Reading]], terminal: Terminal) -> None:
    for model in dict.fromkeys(model for model, _ in readings):
        terminal.say(f"\n{model}")
        columns = ["rung", "error", "control", "allowed", "unit", "", "s"]
        terminal.table(columns, [_row(reading) for name, reading in readings if name == model])
    terminal.say("\nallowed: the largest error; 1/10 is a tenth of the control, which has one thing made wrong")
    for model, reading in readings:
        if reading.note and (reading.number == TEXTS or not reading.passed):
            terminal.say(f"{model}, {_title(reading)}: {reading.note}")
    if not failed:
        terminal.say(f"all {len(readings)} pass")
        return
    rungs = _listed({reading.number for _, reading in failed})
    terminal.say(
        f"{len(failed)} of {len(readings)} FAIL, of rungs {rungs}: do not trust training on this device with these "
        "versions\nnext: python cli.py doctor (compares the versions with the tested ones); until it passes, "
        "python cli.py train --backend torch --device cpu"
    )


def _row(reading: Reading) -> list[str]:
    allowed = "1/10" if reading.tolerance is None else f"{reading.tolerance:.0e}" if reading.tolerance else "0"
    figures = [f"{reading.error:.1e}", f"{reading.control:.1e}", allowed, reading.unit]
    return [_title(reading), *figures, "pass" if reading.passed else "FAIL", f"{reading.seconds:.1f}"]


def _title(reading: Reading) -> str:
    name = f"{reading.number} {reading.name}"
    return f"{name}: {reading.variant}" if reading.variant else name


def _listed(numbers: Collection[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))
