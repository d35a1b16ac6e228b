"""The same training on one process and on two: started by the launcher, the same losses, and what it is worth."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

import backends
from benchmarks import scaling
from benchmarks import work as benchmark_jobs
from benchmarks.config import BenchmarkConfig
from benchmarks.contenders import pairs
from benchmarks.job import Score, TrainJob
from benchmarks.report import write_report
from benchmarks.results import read
from benchmarks.scaling import command, scaled, spread_out, threads_each
from benchmarks.tables import tables
from benchmarks.work import ContenderFailed, Placed, last_words
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.types import Choice, PreflightError, UsageError
from tests.benchmarks.test_results import record, sample
from tests.e2e.conftest import Run, brief, data, from_now, model, run  # noqa: F401  # fixtures
from tests.waiting import SOONEST, wait_for

ROOT = Path(__file__).parents[2]
# What a person's run does, with matrix products of a moment: this process's own would not reach the others.
PROGRAM = f"""
import sys
from pathlib import Path
sys.path[0] = {str(ROOT)!r}
from benchmarks import measure, train_throughput
measure.GEMM_SIZES = {{"cpu": 64, "gpu": 64}}
train_throughput.main(Path(sys.argv[1]))
"""


def test_two_processes_train_as_one_does_and_stand_in_the_report(
    run: Run,  # noqa: F811
    model: Path,  # noqa: F811
    data: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "train_throughput.py").write_text(PROGRAM)
    monkeypatch.setattr(benchmark_jobs, "SCRIPTS", tmp_path)
    sizes = ["--rows", "8", "--update-size", "4", "--batch-size", "2", "--rounds", "1"]
    small = [*sizes, "--device", "cpu", "--results", "bench/res"]
    what = ["--contenders", f"ours-{SOONEST}", "--world", "2,1", "--model", model, "--data", data]
    done = run("benchmark", "train", *what, *small)
    assert done.returncode == 0, done.stderr
    (path,) = Path("bench/res").glob("train-*.json")
    found = json.loads(path.read_text())
    assert found["failures"] == {}
    assert [entry["contender"] for entry in found["samples"]] == [f"ours-{SOONEST} x1", f"ours-{SOONEST} x2"]
    alone, together = (entry["sample"] for entry in found["samples"])
    assert together["losses"] == pytest.approx(alone["losses"], abs=6e-5)  # rung 5's
    assert [len(cpu) for cpu in alone["cpu"] + together["cpu"]] == [1] * 4 + [2] * 4
    rows = lambda one: sum(rows for shapes in one["shapes"] for rows, _ in shapes)  # noqa: E731
    assert rows(alone) == rows(together)
    assert "Processes" in done.stdout
    assert run("benchmark", "report", "--results", "bench/res").returncode == 0
    assert f"| ours-{SOONEST} | 2 |" in Path("bench/README.md").read_text()


# A launcher whose rank has a session of its own, as torchrun's have.
LAUNCHER = """
import signal, subprocess, sys
from pathlib import Path
rank = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
Path("rank.new").write_text(str(rank.pid))
Path("rank.new").rename("rank")
try:
    rank.wait()
finally:
    rank.kill()
    rank.wait()
"""


class Interrupted(subprocess.Popen[bytes]):
    """Ctrl-C, as soon as the rank is there."""

    def wait(self, timeout: float | None = None) -> int:
        if self.poll() is None and not hasattr(self, "told"):
            self.told = True
            wait_for(Path("rank").exists, self)
            raise KeyboardInterrupt
        return super().wait(timeout)


def test_ctrl_c_leaves_no_rank_of_a_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark_jobs, "ROOT", tmp_path)
    monkeypatch.setattr(benchmark_jobs, "command", lambda *_: [sys.executable, "-c", LAUNCHER])
    monkeypatch.setattr("subprocess.Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        benchmark_jobs.run_script("a.py", Score(nll_sum=1.0, num_targets=1), tmp_path / "out", Placed("torch", 2, {}))
    rank = int(Path("rank").read_text())
    left = psutil.pid_exists(rank)
    if left:
        psutil.Process(rank).kill()
    assert not left


# What a person's run does, with a rank 0 that fails: the one who sees that it is gone is not the one who knows why.
FAILS = f"""
import sys
from pathlib import Path
sys.path[0] = {str(ROOT)!r}
from benchmarks import train_throughput
def measure(*_):
    raise ValueError("no such contender")
train_throughput.measure = measure
train_throughput.main(Path(sys.argv[1]))
"""


def test_what_rank_0_fails_of_is_what_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fails.py").write_text(FAILS)
    monkeypatch.setattr(benchmark_jobs, "SCRIPTS", tmp_path)
    files = {"model": tmp_path, "out": tmp_path / "out", "adapter": None, "trained": None}
    more = {"updates": [], "passes": 1, "config": TrainConfig(), "max_length": 8, "device": "cpu", "dtype": "float32"}
    job = TrainJob(contender=f"ours-{SOONEST}", framework=SOONEST, **files, **more)
    with pytest.raises(ContenderFailed, match=r"; (\[rank0\]: )?ValueError: no such contender$"):
        benchmark_jobs.run_script("fails.py", job, job.out, Placed(SOONEST, 2, {}))
    assert "is gone" not in (tmp_path / "out.log").read_text()


# A rank that computes, a fifth of a second at a time, until its launcher computes next to nothing beside it.
RESTS = """
import json, os, sys, time
from pathlib import Path
import psutil
launcher = psutil.Process(os.getppid())
assert any(word.endswith("mlx.launch") for word in launcher.cmdline()), launcher.cmdline()
used = lambda: sum(launcher.cpu_times()[:2])
for tried in range(30):
    before, end = used(), time.process_time() + 0.2
    while time.process_time() < end:
        pass
    if (beside := used() - before) < 0.05:
        break
if os.environ["MLX_RANK"] == "0":
    Path(sys.argv[1].removesuffix(".job.json")).write_text(json.dumps({"beside": beside}))
"""


def test_mlxs_launcher_rests_while_its_ranks_compute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not backends.installed("mlx"):
        pytest.skip("backend mlx is not installed here")
    (tmp_path / "rests.py").write_text(RESTS)
    monkeypatch.setattr(benchmark_jobs, "SCRIPTS", tmp_path)
    job = Score(nll_sum=1.0, num_targets=1)  # which nobody reads
    found = benchmark_jobs.run_script("rests.py", job, tmp_path / "out", Placed("mlx", 2, {}))
    assert found["beside"] < 0.05  # seconds of CPU


def test_the_last_error_above_a_launchers_words_is_why() -> None:
    torchrun = "[rank0]: ValueError: no\nx.errors.ChildFailedError: \n=====\np.py FAILED\n=====\n"
    assert last_words(torchrun, 2) == "[rank0]: ValueError: no"
    assert last_words("error: gone\n[WARN] Node with rank 0 exited with code 8\n", 2) == "error: gone"
    assert last_words("RuntimeError: two\nlines\n", 1) == "lines"
    assert last_words("", 2) == "it said nothing"


def scaled_record(**changes: Any) -> dict[str, Any]:
    """Two processes at 0.8 and 0.9 of twice as fast, by CPU time at 0.5: the slower one computes as long as one did."""
    found = record()
    updates = found["contenders"]["hf"]["updates"]
    names = ("ours-torch x1", "ours-torch x2")
    found["contenders"] = {
        name: {"device": "cpu", "reason": "", "updates": updates, "world": world}
        for world, name in enumerate(names, start=1)
    }
    found["config"] |= {"world": "1,2"}
    found |= {"scores": {}, "threads": "1", "samples": []}
    for number, times in ((1, 1.6), (2, 1.8)):
        one = sample([9.0, 9.0, 1.6, 1.6], cpu=[[9.0], [9.0], [2.0], [2.0]], load=3.0)
        more = {"cpu": [[9.0, 1.0], [9.0, 1.0], [1.0, 2.0], [2.0, 0.5]], "load": 4.0, **changes}
        two = sample([9.0, 9.0, 1.6 / times, 1.6 / times], **more)
        both = zip(names, (one, two), strict=True)
        found["samples"] += [{"round": number, "contender": name, "sample": each} for name, each in both]
    return found


def test_efficiency_is_times_as_fast_over_the_processes() -> None:
    alone, two = scaled(read(scaled_record()))
    assert (alone.name, alone.world, alone.wall, alone.cpu) == ("ours-torch", 1, (1.0, 1.0), (1.0, 1.0))
    assert (two.name, two.world, two.cpu) == ("ours-torch", 2, (0.5, 0.5))
    assert two.wall == pytest.approx((0.8, 0.9))
    assert alone.tokens == pytest.approx(100 / 3.2)
    assert (two.apart, two.counts) == (0.0, True)
    _, table = tables(read(scaled_record()))
    assert [row[3:5] for row in table.rows] == [
        ("1.00 (1.00 - 1.00)", "1.00 (1.00 - 1.00)"),
        ("0.85 (0.80 - 0.90)", "0.50 (0.50 - 0.50)"),
    ]
    assert "Load before the runs: 3.0 to 4.0 on 2 cores." in table.notes
    assert max(map(len, table.notes)) < 300


def test_another_training_has_no_efficiency(tmp_path: Path) -> None:
    other = scaled_record(losses=[1.0, 1.0, 1.0, 1.002])
    table = tables(read(other))[1]
    assert [row[3:] for row in table.rows][1] == ("does not count", "does not count", "2.0e-03")
    (tmp_path / "res").mkdir()
    (tmp_path / "res/train-1.json").write_text(json.dumps(other))
    write_report(tmp_path / "res")
    assert "does not count" in (tmp_path / "README.md").read_text()


def test_the_share_of_the_matrix_product_rate_is_of_all_processes() -> None:
    found = scaled_record()
    for entry in found["samples"]:
        entry["sample"] |= {"seconds": [1.0] * 4, "gemm_gflops": 1e-5}
    one, two = (row[8] for row in tables(read(found))[0].rows)
    assert float(two.split()[0]) > 10
    assert float(one.split()[0]) == pytest.approx(2 * float(two.split()[0]), abs=1)


def test_a_run_on_several_processes_is_no_pair() -> None:
    assert pairs(["ours-torch x1", "ours-torch x2", "ours-mlx x1"]) == []


def test_fewer_devices_than_processes_are_refused_unless_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, mps, cuda = (Choice(name, "") for name in ("cpu", "mps", "cuda"))
    assert list(spread_out({"ours-mlx": cpu}, [1, 64])) == ["ours-mlx x1", "ours-mlx x64"]
    with pytest.raises(PreflightError, match=r"needs 2 devices for ours-torch, and there is 1 \(mps\); try --world 1,"):
        spread_out({"ours-torch": mps}, [1, 2])
    monkeypatch.setattr(scaling, "num_gpus", lambda device: 2)
    assert len(spread_out({"ours-torch": cuda}, [1, 2])) == 2
    with pytest.raises(PreflightError, match="try --world 1,2, or --device cpu"):
        spread_out({"ours-torch": cuda}, [1, 2, 4])
    with pytest.raises(PreflightError, match="--world is for this project's own training, not hf"):
        spread_out({"hf": cpu}, [1, 2])


@pytest.mark.parametrize("text", ["2", "0,1", "1,x", "1,65", "1,,2", "1,1"])
def test_counts_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="1 among them, such as 1,2"):
        BenchmarkConfig(world=text)


def test_other_modes_have_no_processes() -> None:
    with pytest.raises(UsageError, match="--world 1,2 is for benchmark train, not end-to-end"):
        BenchmarkConfig(world="2,1", mode="end-to-end")


def test_every_process_has_as_many_threads_and_its_backends_own_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(threads_each("cpu", [1, 2], 8).values()) == {"4"}
    assert set(threads_each("cpu", [1, 4], 2).values()) == {"1"}
    assert threads_each("cuda", [1, 2], 8) == {}
    monkeypatch.setattr(scaling.shutil, "which", lambda name, path=None: f"/bin/{name}")
    torch, mlx, alone = (command(name, size, ["p.py"]) for name, size in (("torch", 2), ("mlx", 3), ("mlx", 1)))
    assert torch[:4] == ["/bin/torchrun", "--nproc-per-node", "2", "--master-port"]
    assert mlx[:4] == ["/bin/mlx.launch", "-n", "3", "--starting-port"]
    assert torch[-1] == mlx[-1] == alone[-1] == "p.py"
    assert len(alone) == 2
    monkeypatch.setattr(scaling.shutil, "which", lambda name, path=None: None)
    with pytest.raises(PreflightError, match="needs torchrun"):
        command("torch", 2, ["p.py"])
