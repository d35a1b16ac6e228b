"""Ends one of two ranks in an update, an evaluation and a save, and looks at what is left.

    python tests/faults/ranks_driver.py --backend mlx                            # without a launcher, which ends nobody
    python tests/faults/ranks_driver.py --backend torch --launched               # by torchrun or mlx.launch
    python tests/faults/ranks_driver.py --backend mlx --launched --signal STOP   # it stays, and answers no more

The ranks are the real ones, `cli.py train` and `cli.py eval` on a tiny model; without a launcher, in processes forked
after the imports. The one that is aimed at sends itself the signal where it is; in a save, which is rank 0's alone,
rank 0 sends it. After each the other one has to end by itself with code 8 and one line, and the newest checkpoint has
to be whole; then the same run goes on with two ranks, to the next place, and at last with one.
Prints one JSON object: seconds from each signal to the end of all, and what was not as it should be.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import psutil

import backends
import cli
from benchmarks.scaling import free_ports
from gsm8k_core.report.words import COMPARISON
from gsm8k_core.training import checkpoints
from gsm8k_core.training.measure import TIMED_TOKENS
from gsm8k_core.types import RankLostError
from tests.apples import write_problems
from tests.faults.kill_driver import Bench, Board, import_once, prepare
from tests.launched import errors_of, launch
from tests.waiting import CEILING

UPDATES, ROWS, PROBLEMS = 10, 4, 8
TRAIN = (
    f"--device cpu --dtype float32 --max-samples {UPDATES * ROWS} --batch-size {ROWS} --num-epochs 1 --save-steps 1 "
    "--gradient-accumulation-steps 1 --save-total-limit 99 --eval-steps 2 --eval-problems 4 --eval-max-new-tokens 48 "
    "--guard-problems 0 --probe-steps 0"
).split()
EVAL = f"--device cpu --dtype float32 --max-samples {PROBLEMS} --max-new-tokens 48 --eval-batch-size 2".split()
PLACES = ("update", "evaluation", "save")
STRUCK = "struck"  # a file whose time is that of the signal


# --- a rank -----------------------------------------------------------------------------------------------------------


@dataclass
class Aim:
    """The rank that gets a signal, and where it is then."""

    rank: int
    place: str
    signal: int
    seen: int = 0

    def strike(self, pid: int) -> None:
        Path(STRUCK).touch()
        os.kill(pid, self.signal)

    def reached(self, nth: int) -> None:
        """The place has been reached once more; at the nth time this process gets the signal."""
        self.seen += 1
        if self.seen == nth:
            self.strike(os.getpid())


def take_aim(aim: Aim, backend: str, rank: int) -> None:
    """From now on this process watches for the place that is aimed at."""
    Path(f"rank-{rank}").write_text(str(os.getpid()))
    if aim.place == "save" and rank == 0:
        _in_saves(aim)
    elif rank == aim.rank and aim.place == "update":
        _in_updates(aim)
    elif rank == aim.rank and aim.place == "evaluation":
        _in_answers(aim, importlib.import_module(f"backends.{backend}.backend"))


def _in_updates(aim: Aim) -> None:
    """Where the other rank waits for this one's gradients."""
    join = backends.join

    def joined(*given: Any) -> Any:
        group: Any = join(*given)
        alone = group.sum

        def summed(*values: Any) -> Any:
            aim.reached(3)
            return alone(*values)

        group.sum = summed
        return group

    backends.join = joined


def _in_answers(aim: Aim, backend: Any) -> None:
    """In the midst of the answers that this rank has taken. Short ones are no evaluation."""
    alone = backend.generate

    def generate(model: Any, prompts: Any, sampling: Any, ends: Any, on_token: Any, keys: Any) -> Any:
        def told(index: int, token: int) -> None:
            if sampling.max_new_tokens > TIMED_TOKENS:
                aim.reached(5)
            on_token(index, token)

        return alone(model, prompts, sampling, ends, told, keys)

    backend.generate = generate


def _in_saves(aim: Aim) -> None:
    """Behind the weights and moments of the second checkpoint, before its record."""
    write = checkpoints._write_moments

    def written(path: Path, state: Any) -> None:
        write(path, state)
        aim.seen += 1
        if aim.seen == 2:
            aim.strike(int(Path(f"rank-{aim.rank}").read_text()))
            threading.Event().wait(CEILING)  # nothing but the line ends this process now

    checkpoints._write_moments = written


# --- two of them ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """Two ranks on this machine, in `bench.folder`."""

    bench: Bench
    launched: bool
    signal: int

    def run(self, aim: Aim, arguments: Sequence[str]) -> dict[str, Any]:
        """Until all have ended: seconds from the signal to that, what was said, the code of who was left."""
        for name in (STRUCK, "rank-0", "rank-1", "log"):
            (self.bench.folder / name).unlink(missing_ok=True)
        return self._launched(aim, arguments) if self.launched else self._forked(aim, arguments)

    def _since(self) -> float:
        struck = self.bench.folder / STRUCK
        if not struck.exists():
            raise SystemExit(f"it ended before: {(self.bench.folder / 'log').read_text(errors='replace')}")
        return round(time.time() - struck.stat().st_mtime, 1)

    def _forked(self, aim: Aim, arguments: Sequence[str]) -> dict[str, Any]:
        pids = dict(zip((0, 1), self._fork(aim, arguments), strict=True))
        _, status = os.waitpid(pids[1 - aim.rank], 0)
        seconds = self._since()
        os.kill(pids[aim.rank], signal.SIGKILL)  # one that is stopped is still there
        os.waitpid(pids[aim.rank], 0)
        code, said = os.waitstatus_to_exitcode(status), (self.bench.folder / "log").read_text(errors="replace")
        return {"seconds": seconds, "code": code, "said": said}

    def _fork(self, aim: Aim, arguments: Sequence[str]) -> Iterator[int]:
        port, hosts = free_ports(2), self.bench.folder / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port + rank}"] for rank in (0, 1)]))
        world = {
            "torch": {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            "mlx": {"MLX_HOSTFILE": str(hosts)},
        }[self.bench.backend]
        for rank in (0, 1):
            if (pid := os.fork()) == 0:
                code = 1
                try:
                    os.environ |= {**world, {"torch": "RANK", "mlx": "MLX_RANK"}[self.bench.backend]: str(rank)}
                    log = os.open("log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
                    os.dup2(log, 1)
                    os.dup2(log, 2)
                    take_aim(aim, self.bench.backend, rank)
                    code = cli.main(list(arguments))
                except BaseException:
                    traceback.print_exc()
                finally:  # whatever happens, this process never gets to where the driver removes its folder
                    os._exit(code)
            yield pid

    def _launched(self, aim: Aim, arguments: Sequence[str]) -> dict[str, Any]:
        given = [__file__, "--backend", self.bench.backend, "--aim", str(aim.rank), aim.place, str(aim.signal)]
        started = launch(self.bench.backend, 2, [*given, "--", *arguments], self.bench.folder)
        said = "".join(started.communicate(timeout=CEILING))
        (self.bench.folder / "log").write_text(said)
        seconds = self._since()
        pids = [int((self.bench.folder / f"rank-{rank}").read_text()) for rank in (0, 1)]
        left = sum(map(psutil.pid_exists, pids))
        return {"seconds": seconds, "code": started.returncode, "said": said, "left": left}


def faults_of(found: dict[str, Any], launched: bool) -> list[str]:
    """What is not as it should be, of an end."""
    faults = []
    lines = errors_of(found["said"])
    if len(lines) != 1 or "so all ranks have ended" not in lines[0]:
        faults.append(f"said: {lines or found['said'][-2000:]}")
    if not launched and found["code"] != RankLostError.exit_code:
        faults.append(f"code {found['code']}: {found['said'][-2000:]}")
    if found.get("left"):
        faults.append(f"{found['left']} processes are left")
    return faults


def trained(pair: Pair, places: Sequence[str]) -> dict[str, Any]:
    """A run that loses each rank in each of the places, goes on with two after each, and at last alone."""
    target = pair.bench.folder / "run"
    arguments = ["train", "--model", "tiny", "--data", "data", "--output-dir", str(target), *TRAIN]
    result, before = {}, 0
    for rank, place in product((0, 1), places):
        found = pair.run(Aim(rank, place, pair.signal), arguments)
        faults = faults_of(found, pair.launched)
        said: list[str] = []
        kept = checkpoints.newest(target / "checkpoints", said.append)
        if said or kept is None or kept.state().step != kept.update or kept.update <= before:
            faults.append(f"checkpoint {kept and kept.update} after {before}; {said}")
        before = kept.update if kept else before
        result[f"rank {rank}, {place}"] = {"seconds": found["seconds"], "newest": before, "wrong": faults}
        arguments = ["train", "--resume", str(target)]
    code, log = pair.bench.finish([*arguments, "--backend", pair.bench.backend])
    events = [json.loads(line) for line in (target / "metrics.jsonl").read_text().splitlines()]
    updates = {event["update"] for event in events if event["event"] == "update"}
    whole = code == 0 and updates == set(range(1, UPDATES + 1))
    return {**result, "alone": {"wrong": [] if whole else [f"code {code}: {log[-2000:]}"]}}


def scored(pair: Pair) -> dict[str, Any]:
    """An `eval` that loses rank 0, and then goes on alone; `compared` loses the other one there."""
    target = pair.bench.folder / "eval"
    arguments = ["eval", "--model", "tiny", "--data", "data", "--output-dir", str(target), *EVAL]
    found = pair.run(Aim(0, "evaluation", pair.signal), arguments)
    result = {"rank 0, eval": {"seconds": found["seconds"], "wrong": faults_of(found, pair.launched)}}
    code, log = pair.bench.finish([*arguments, "--backend", pair.bench.backend])
    lines = [line for path in target.rglob("records.jsonl") for line in path.read_text().splitlines()]
    whole = code == 0 and len({json.loads(line)["id"] for line in lines}) == len(lines) == PROBLEMS
    return {**result, "eval alone": {"wrong": [] if whole else [f"code {code}, {len(lines)}: {log[-2000:]}"]}}


def compared(pair: Pair) -> dict[str, Any]:
    """A `compare` of the trained model that loses rank 1 and goes on alone: as one process's, to each answer."""
    folder = pair.bench.folder
    models = ["--base-model", "tiny", "--trained-model", str(folder / "run")]
    faults, verdicts = [], {}
    for name in ("killed", "one"):
        arguments = ["compare", *models, "--data", "data", "--output-dir", str(folder / name), *EVAL]
        if name == "killed":
            faults += faults_of(pair.run(Aim(1, "evaluation", pair.signal), arguments), pair.launched)
        if (done := pair.bench.finish([*arguments, "--backend", pair.bench.backend]))[0]:
            faults.append(f"{name}: {done[1][-2000:]}")
        verdicts[name] = verdict_of(folder / name)
    if verdicts["killed"] != verdicts["one"]:
        faults.append(f"killed: {verdicts['killed']}")
    if len(verdicts["one"]["answers"]) != 2 * PROBLEMS:
        faults.append(f"one: {verdicts['one']}")
    return {"compare": {"wrong": faults}}


def verdict_of(folder: Path) -> dict[str, Any]:
    """What a comparison found, and each answer that it goes by."""
    answers = {
        f"{path.parent.name} {record['id']}": (record["completion"], record["rules"])
        for path in sorted(folder.rglob("records.jsonl"))
        for record in map(json.loads, path.read_text().splitlines())
    }
    found = json.loads((folder / COMPARISON).read_text())
    return {"answers": answers, "test": found["paired"], "verdict": found["verdict"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=sorted(backends.PROVIDERS), required=True)
    parser.add_argument("--launched", action="store_true", help="by torchrun or mlx.launch, which end who is left")
    parser.add_argument("--places", nargs="+", choices=PLACES, help="of a training, and nothing else")
    parser.add_argument("--signal", choices=("KILL", "STOP"), default="KILL")
    parser.add_argument("--aim", nargs=3, help=argparse.SUPPRESS)  # what a launched rank gets, and its arguments
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.aim:
        backends.resolve(asked.backend)
        backends.keep_to_one()
        rank, place, number = asked.aim
        mine = os.environ.get("RANK") or os.environ["MLX_RANK"]
        take_aim(Aim(int(rank), place, int(number)), asked.backend, int(mine))
        return cli.main(asked.arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        os.chdir(folder)
        prepare(folder)
        write_problems(folder / "data", 20, 10)  # of which four are dev problems, enough to be shared
        os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "GSM8K_CACHE": str(folder / "cache")}
        pair = Pair(Bench(folder, asked.backend, Board()), asked.launched, signal.Signals[f"SIG{asked.signal}"])
        import_once(pair.bench)
        importlib.import_module("verbs.compare")
        result = trained(pair, asked.places or PLACES)
        if not asked.places:
            result |= {**scored(pair), **compared(pair)}
    print(json.dumps(result))
    return 1 if any(part["wrong"] for part in result.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
