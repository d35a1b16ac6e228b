"""Kills training with SIGKILL all over the time after its first update, resumes, and compares with an unbroken run.

    python tests/faults/kill_driver.py --backend torch --kills 200 --in-save 40

Then it does the same at each write point of one save (`--every 20`: each twentieth; 0: none).

    python tests/faults/kill_driver.py --backend torch --sweep 1 --method lora

kills a run of two updates before every file call in its folder, from the claim to the end, `best/` and an adapter's
copy
for the other library included; `--sweep 10` before each tenth.

The run is the real one, `cli.py train` on a tiny model with evaluations and checkpoints, in a process forked after the
imports: half a second instead of four. The parent kills it; a block of shared memory, which outlives the killed, says
in which phase it was and which checkpoints were complete. After a kill, `train --resume` has to end with the same
losses, evaluations and weights, to the last bit, and to begin at the newest complete checkpoint ("0 lost").
Prints one JSON object: kills per phase, and what was not as it should be.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import backends
import cli
from gsm8k_core.models.tokenizer import load_tokenizer
from gsm8k_core.training.checkpoints import newest
from gsm8k_core.training.pilot import RunPilot
from gsm8k_core.training.runs import Run
from tests import tiny
from tests.apples import write_problems
from tests.fake_checkpoints import same_state
from tests.waiting import CEILING

# MLX_RANK is a launcher's variable: no supervisor is wanted here, the process itself is to be killed.
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "MLX_RANK": "0", "OMP_NUM_THREADS": "1"}
PHASES = ("start", "update", "evaluation", "save", "model", "end")
AUDITED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.scandir"}
UPDATES, SAVE_STEPS, POINTS_AT = 6, 2, 4
FLAGS = (
    "--device",
    "cpu",
    "--dtype",
    "float32",
    "--max-samples",
    "24",
    "--batch-size",
    "2",
    "--gradient-accumulation-steps",
    "2",
    "--num-epochs",
    "1",
    "--learning-rate",
    "0.01",
    "--save-steps",
    str(SAVE_STEPS),
    "--save-total-limit",
    "9",
    "--eval-steps",
    "2",
    "--eval-problems",
    "3",
    "--eval-max-new-tokens",
    "8",
)
WHOLE = "whole"  # the folder of the unbroken run
# For a sweep, where each kill costs a run: two updates, a checkpoint, `best/` and a dev evaluation after each.
SHORT = ("--max-samples", "8", "--save-steps", "1", "--eval-steps", "1", "--guard-problems", "0")
ADAPTER = ("--method", "lora", "--lora-rank", "4", "--lora-alpha", "8")


class Board:
    """Shared memory: the phase, the newest complete checkpoint, and how often and long each phase was."""

    FORM = struct.Struct(f"<3i{len(PHASES)}i{len(PHASES)}d")

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, self.FORM.size)

    def read(self) -> tuple[str, int, int, dict[str, int], dict[str, float]]:
        """(phase, updates done, newest complete checkpoint, entered, seconds)."""
        phase, done, saved, *rest = self.FORM.unpack(self._memory[:])
        half = len(PHASES)
        return PHASES[phase], done, saved, dict(zip(PHASES, rest[:half])), dict(zip(PHASES, rest[half:]))  # noqa: B905

    def write(self, phase: str, done: int, saved: int, entered: dict[str, int], seconds: dict[str, float]) -> None:
        values = (PHASES.index(phase), done, saved, *entered.values(), *seconds.values())
        self._memory[:] = self.FORM.pack(*values)

    def note(self, **changes: Any) -> None:
        names = ("phase", "done", "saved", "entered", "seconds")
        self.write(**{**dict(zip(names, self.read(), strict=True)), **changes})

    def clear(self) -> None:
        self._memory[:] = bytes(self.FORM.size)

    @contextmanager
    def inside(self, phase: str) -> Iterator[None]:
        before, _, _, entered, _ = self.read()
        self.note(phase=phase, entered={**entered, phase: entered[phase] + 1})
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = self.read()[4]
            self.note(phase=before, seconds={**seconds, phase: seconds[phase] + time.perf_counter() - start})


def watch(board: Board, at_save: Callable[[int], None]) -> None:
    """From now on this process tells the board where it is."""
    after, measure, save, replace = RunPilot.after, RunPilot._measure, RunPilot._save, Run.replace

    def told_after(pilot: Any, stats: Any, live: Any) -> Any:
        board.note(phase="update", done=stats.update)
        orders = after(pilot, stats, live)
        board.note(phase="end" if orders.stop or stats.update >= pilot.total else "update")
        return orders

    def told_measure(pilot: Any, *given: Any) -> Any:
        with board.inside("evaluation"):
            return measure(pilot, *given)

    def told_save(pilot: Any, update: int, live: Any) -> Any:
        with board.inside("save"):
            at_save(update)
            result = save(pilot, update, live)
        board.note(saved=update)
        return result

    def told_replace(run: Any, *given: Any) -> Any:
        with board.inside("model"):
            return replace(run, *given)

    RunPilot.after, RunPilot._measure, RunPilot._save = told_after, told_measure, told_save  # type: ignore[method-assign]
    Run.replace = told_replace  # type: ignore[method-assign]


@dataclass(frozen=True)
class Bench:
    """The folder of everything, and how the tool is called in it."""

    folder: Path
    backend: str
    board: Board
    more: tuple[str, ...] = ()  # flags that win over FLAGS

    def start(
        self,
        arguments: list[str],
        at_save: Callable[[int], None] = lambda update: None,
        before: Callable[[], None] = lambda: None,
    ) -> int:
        """`cli.py ARGUMENTS` in a forked process; returns its number."""
        self.board.clear()
        pid = os.fork()
        if pid == 0:
            log = os.open(self.folder / "log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            watch(self.board, at_save)
            before()
            os._exit(cli.main(arguments))
        return pid

    def train(self, target: Path) -> list[str]:
        where = ["--model", self.folder / "tiny", "--data", self.folder / "data", "--output-dir", target]
        kept = [pair for pair in batched(FLAGS) if pair[0] not in self.more]
        return ["train", "--backend", self.backend, *map(str, where), *chain(*kept), *self.more]

    def finish(self, arguments: list[str]) -> tuple[int, str]:
        """Runs to the end; the exit code and what was said."""
        pid = self.start(arguments)
        status = ended(pid, CEILING)
        if status is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise SystemExit(f"{arguments} did not end in {CEILING} s")
        return os.waitstatus_to_exitcode(status), (self.folder / "log").read_text()


def import_once(bench: Bench) -> None:
    """What every run imports and reads alike is done before the first fork; nothing is computed yet.

    The garbage collector leaves it alone: to look through it was half a second of each run, and copied its memory.
    """
    gc.disable()
    backends.keep_to_one()
    backends.resolve(bench.backend)
    for name in ("backend", "device"):  # whose rate is no matter here, and half a second of each process
        module = importlib.import_module(f"backends.{bench.backend}.{name}")
        if hasattr(module, "measure_gflops"):
            module.measure_gflops = lambda *_, **__: 1.0
    importlib.import_module("verbs.train.verb")
    if bench.backend == "torch":
        importlib.import_module("transformers.models.qwen2.modeling_qwen2")
        importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("qwen2")
    cli.parse(bench.train(bench.folder / WHOLE))
    load_tokenizer(bench.folder / "tiny")  # and its trial is behind us
    gc.freeze()
    gc.enable()


def batched(flags: tuple[str, ...]) -> list[tuple[str, str]]:
    """Flag and value, two by two."""
    return list(zip(flags[::2], flags[1::2], strict=True))


def ended(pid: int, seconds: float) -> int | None:
    """The process's status when it ends within so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        time.sleep(0.002)
    return None


def prepare(folder: Path) -> None:
    tiny.make(folder / "tiny", hidden_size=32)
    write_problems(folder / "data")


def result_of(folder: Path) -> dict[str, Any]:
    """All of a complete run that may not depend on whether it was killed."""
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    manifest = json.loads((folder / "run.json").read_text())
    kept = {
        "updates": [
            (event["update"], event["loss"], event["grad_norm"], event["rate"])
            for event in events
            if event["event"] == "update"
        ],
        "dev": [(event["update"], event["loss"], event["correct"]) for event in events if event["event"] == "dev"],
        "best": (manifest.get("best"), manifest["outcome"].get("best", {}).get("update")),
        "status": manifest["status"],
    }
    for name in ("model", "best", "mlx-adapter"):
        for path in sorted((folder / name).glob("*.safetensors")):
            kept[f"{name}/{path.name}"] = path.read_bytes()
    return kept


# --- kills in time ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Aim:
    """When to kill: so long after the first update, or after the nth beginning of a phase."""

    seconds: float
    phase: str = ""
    nth: int = 1

    def reached(self, board: Board) -> bool:
        _, done, _, entered, _ = board.read()
        return entered[self.phase] >= self.nth if self.phase else done >= 1


def kill(bench: Bench, target: Path, aim: Aim) -> tuple[str, int] | None:
    """(phase, newest complete checkpoint) at the moment of death; None when the run ended before."""
    pid = bench.start(bench.train(target))
    deadline = time.monotonic() + CEILING
    while not aim.reached(bench.board):
        if os.waitpid(pid, os.WNOHANG)[0]:
            return None
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            raise SystemExit(f"the run did not come as far as {aim}")
        time.sleep(2e-5)
    time.sleep(aim.seconds)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    phase, _, saved, *_ = bench.board.read()
    return (phase, saved) if os.WIFSIGNALED(status) else None


def faults_of(bench: Bench, target: Path, saved: int, whole: dict[str, Any]) -> list[str]:
    """What is wrong after the run was resumed."""
    code, said = bench.finish(["train", "--resume", str(target)])
    if code:
        return [f"--resume ended with {code}: {said[-400:]}"]
    found = [name for name, value in result_of(target).items() if value != whole.get(name)]
    begun = json.loads((target / "run.json").read_text()).get("resumed_after")
    complete = "nothing is left to do" in said
    if not complete and (begun is None or begun < saved):
        found.append(f"lost: update {saved} was saved, the run went on from {begun}")
    return found


def unbroken(bench: Bench) -> tuple[dict[str, Any], float, dict[str, float]]:
    """What an unbroken run gives; its seconds after the first update, the least of two; mean seconds of a phase."""
    folder = bench.folder / WHOLE
    spans = []
    for _ in range(2):  # the first one is slow: MLX compiles, the file cache is cold
        shutil.rmtree(folder, ignore_errors=True)
        code, said = bench.finish(bench.train(folder))
        assert code == 0, said
        events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        first = next(event["elapsed"] for event in events if event["event"] == "update")
        entered, seconds = bench.board.read()[3:]
        lengths = {phase: seconds[phase] / max(entered[phase], 1) for phase in PHASES}
        spans.append(events[-1]["elapsed"] - first + lengths["model"])
    return result_of(folder), min(spans), lengths


def spread(bench: Bench, kills: int, in_save: int, seed: int) -> dict[str, Any]:
    """`kills` kills at any time after the first update; then more, aimed at saves, until `in_save` were inside one."""
    whole, span, lengths = unbroken(bench)
    counts: Counter[str] = Counter()
    wrong: list[dict[str, Any]] = []
    rng, begin = random.Random(seed), time.monotonic()
    late = aimed = 0
    while counts.total() < kills or counts["save"] < in_save:
        aim = Aim(rng.uniform(0, span))
        if counts.total() >= kills:
            aim = Aim(rng.uniform(0, lengths["save"]), "save", rng.randint(1, (UPDATES - 1) // SAVE_STEPS))
        target = bench.folder / f"run-{counts.total()}-{late}"
        struck = kill(bench, target, aim)
        if struck is None:
            late += 1
        else:
            counts[struck[0]] += 1
            aimed += bool(aim.phase)
            if found := faults_of(bench, target, struck[1], whole):
                wrong.append({"aim": str(aim), "phase": struck[0], "wrong": found})
        shutil.rmtree(target)
    return {
        "kills": counts.total(),
        "of them aimed at saves": aimed,
        "phases": dict(counts),
        "came after the end": late,
        "wrong": wrong,
        "seconds": round(time.monotonic() - begin, 1),
    }


# --- each write point -------------------------------------------------------------------------------------------------


def arm(at: int, folder: Path | None = None) -> None:
    """Dies before the nth thing that this process does to the disk from now on, or after the nth fsync.

    With a folder, only what is done to something in it counts, or to what is named by a relative path or a descriptor.
    """
    seen = 0

    def inside(event: str, given: tuple[object, ...]) -> bool:
        names = given[:2] if event == "os.rename" else given[:1]
        paths = [str(path) for path in names if isinstance(path, (str, Path))]
        return folder is None or any(not os.path.isabs(path) or path.startswith(str(folder)) for path in paths)

    def point(*_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)

    fsync = os.fsync

    def sync(handle: int) -> None:
        fsync(handle)
        point()

    os.fsync = sync  # type: ignore[assignment]
    sys.addaudithook(lambda event, given: event in AUDITED and inside(event, given) and point())


def points(bench: Bench, every: int) -> dict[str, Any]:
    """Kills at write point 1, 1 + every, ... of the save of one update, until the save gets through."""
    whole = bench.folder / WHOLE
    states = {at: state_at(whole, at) for at in range(SAVE_STEPS, UPDATES, SAVE_STEPS)}
    wrong, begin, killed = [], time.monotonic(), 0
    for at in range(1, 100_000, every):
        target = bench.folder / "run"
        shutil.rmtree(target, ignore_errors=True)
        pid = bench.start(bench.train(target), lambda update, at=at: arm(at) if update == POINTS_AT else None)
        status = ended(pid, CEILING)
        assert status is not None, at
        done, saved = bench.board.read()[1:3]
        if not os.WIFSIGNALED(status) or saved >= POINTS_AT:
            break
        killed += 1
        said_lines: list[str] = []
        found = newest(target / "checkpoints", said_lines.append)
        if found is None or said_lines or found.update not in (POINTS_AT - SAVE_STEPS, POINTS_AT):
            wrong.append({"point": at, "wrong": said_lines or "no checkpoint"})
        elif not same_state(found.state(), states[found.update]):
            wrong.append({"point": at, "wrong": "another state"})
        assert done == POINTS_AT
    return {"write points": killed, "every": every, "wrong": wrong, "seconds": round(time.monotonic() - begin, 1)}


def sweep(bench: Bench, every: int) -> dict[str, Any]:
    """Kills before file call 1, 1 + every, ... of a whole run, until one gets through; then the run is gone on with.

    A folder that was not claimed yet is free: the same command begins there again.
    """
    whole = unbroken(bench)[0]
    ways: Counter[str] = Counter()
    wrong, begin = [], time.monotonic()
    target = bench.folder / "run"
    for at in range(1, 100_000, every):
        shutil.rmtree(target, ignore_errors=True)
        pid = bench.start(bench.train(target), before=lambda at=at: arm(at, target))  # type: ignore[misc]
        status = ended(pid, CEILING)
        assert status is not None, at
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0, (bench.folder / "log").read_text()
            break
        saved = bench.board.read()[2]
        manifest = target / "run.json"
        claimed = manifest.is_file() and manifest.stat().st_size > 0
        found = faults_of(bench, target, saved, whole) if claimed else faults_of_new(bench, target, whole)
        ways["resumed" if claimed else "free"] += 1
        if found:
            wrong.append({"call": at, "saved": saved, "wrong": found})
    return {**ways, "calls": at - 1, "every": every, "wrong": wrong, "seconds": round(time.monotonic() - begin, 1)}


def faults_of_new(bench: Bench, target: Path, whole: dict[str, Any]) -> list[str]:
    """What is wrong after the same command was given again."""
    code, said = bench.finish(bench.train(target))
    if code:
        return [f"the same command ended with {code}: {said[-400:]}"]
    return [name for name, value in result_of(target).items() if value != whole.get(name)]


def state_at(run: Path, update: int) -> Any:
    checkpoints = run.parent / f"checkpoint-{update}"
    checkpoints.mkdir()
    shutil.copytree(run / "checkpoints" / f"update-{update:06d}", checkpoints / f"update-{update:06d}")
    found = newest(checkpoints, print)
    assert found is not None
    return found.state()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--in-save", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=1, help="of the write points of a save; 0: none")
    parser.add_argument("--sweep", type=int, default=0, help="kill before every nth file call of a short run")
    parser.add_argument("--method", choices=("full", "lora"), default="full", help="of the sweep")
    asked = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory(prefix="kills-") as scratch:
        bench = Bench(Path(scratch), asked.backend, Board())
        prepare(bench.folder)
        import_once(bench)
        if asked.sweep:
            bench = replace(bench, more=SHORT + (ADAPTER if asked.method == "lora" else ()))
            found = sweep(bench, asked.sweep)
            print(json.dumps({"backend": asked.backend, "method": asked.method, **found}))
            return 1 if found["wrong"] else 0
        result = {"backend": asked.backend, "in time": spread(bench, asked.kills, asked.in_save, asked.seed)}
        if asked.every:
            result["in a save"] = points(bench, asked.every)
    print(json.dumps(result))
    return 1 if any(part["wrong"] for part in result.values() if isinstance(part, dict)) else 0


if __name__ == "__main__":
    sys.exit(main())
