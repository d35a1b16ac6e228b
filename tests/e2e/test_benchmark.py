"""`benchmark` as a person runs it, with tiny models; the contenders' programs run in this process, which has torch."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backends import installed
from benchmarks import measure
from benchmarks import work as benchmark_jobs
from benchmarks.config import BenchmarkConfig
from benchmarks.contenders import CONTENDERS
from benchmarks.job import Row
from benchmarks.measure import check_tokens, ended
from benchmarks.results import objections, read
from gsm8k_core.models.find import resolve_model
from gsm8k_core.problems.data import load_data
from tests.e2e.conftest import Run

# Nats per target; measured over both methods and all peers: 7e-7, 7e-6 and 9e-6, mlx-lm's own loss 0.14 and 0.07.
FIRST_LOSS, LOSSES, HELD_OUT = 5e-6, 5e-5, 5e-5

SMALL = ("--rows", 8, "--update-size", 4, "--batch-size", 2, "--held-out", 4, "--device", "cpu", "--results", "res")


@pytest.fixture(autouse=True)
def small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "GEMM_SIZES", {"cpu": 256, "gpu": 256})


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs each program here instead of in a process of its own; returns who ran, in order."""
    ran: list[str] = []

    def here(name: str, job: Any, out: Path) -> dict[str, Any]:
        path = out.with_suffix(".job.json")
        path.write_text(job.model_dump_json())
        out.unlink(missing_ok=True)
        ran.append(getattr(job, "contender", name))
        importlib.import_module(f"benchmarks.{Path(name).stem}").main(path)
        return dict(json.loads(out.read_bytes()))

    monkeypatch.setattr(benchmark_jobs, "run_script", here)
    return ran


@pytest.fixture
def able(request: pytest.FixtureRequest) -> Callable[..., list[str]]:
    """Those that can run here; with --require-bench, as in `make test-bench`, all of them."""

    def able(*names: str) -> list[str]:
        if request.config.getoption("--require-bench", default=False):
            return list(names)
        return [name for name in names if all(importlib.util.find_spec(each) for each in CONTENDERS[name].needs)]

    return able


def result() -> dict[str, Any]:
    (path,) = Path("res").glob("*.json")
    return dict(json.loads(path.read_text()))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_everyone_does_the_same_work(
    method: str, run: Run, in_process: list[str], able: Callable[..., list[str]], model: Path, data: Path
) -> None:
    names = able("ours-mlx", "ours-torch", "mlx-lm", "trl", "trl-best", "hf")
    what = ("--trainable", "blocks") if method == "full" else ("--method", "lora", "--lora-rank", 4)
    done = run(
        "benchmark",
        "train",
        "--contenders",
        ",".join(names),
        *what,
        "--model",
        model,
        "--data",
        data,
        *SMALL,
        "--rounds",
        1,
        "--learning-rate",
        1e-3,
    )
    assert done.returncode == 0, done.stderr
    found = read(result())
    assert list(found.samples) == names
    reference = found.samples["ours-torch"][1]
    for name in names:
        mine = found.samples[name][1]
        assert len(mine.seconds) == len(mine.losses) == 4  # two updates, two passes
        assert mine.first_loss == pytest.approx(reference.first_loss, abs=FIRST_LOSS), name
        apart = max(abs(a - b) for a, b in zip(mine.losses, reference.losses, strict=True))
        worse = abs(found.scores[name].nll - found.scores["ours-torch"].nll)
        if name == "mlx-lm":  # the control: its loss counts a pad in each padded row, and it does not clip
            assert apart > 10 * LOSSES
            assert worse > 10 * HELD_OUT
        else:
            assert apart < LOSSES, name
            assert worse < HELD_OUT, name
    assert found.scores["base"].nll - found.scores["ours-torch"].nll > 0.01  # a scorer that ignored the weights fails
    assert objections(found, "ours-torch", "hf") == []


@pytest.mark.skipif(not installed("mlx"), reason="mlx is not installed here")
def test_generation_compares_texts(run: Run, in_process: list[str], model: Path, data: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(model, tmp_path / "penalty"))
    settings = {"repetition_penalty": 3.0, "do_sample": True, "temperature": 0.7}  # as Qwen2.5's own, but stronger
    (model / "generation_config.json").write_text(json.dumps(settings))
    names = ["ours-mlx", "ours-torch", "mlx-lm", "hf", "mlx-lm-best", "hf-best"]
    done = run(
        "benchmark",
        "generate",
        "--contenders",
        "all",
        "--model",
        model,
        "--data",
        data,
        "--problems",
        5,
        "--max-new-tokens",
        12,
        "--eval-batch-size",
        2,
        "--rounds",
        2,
        "--device",
        "cpu",
        "--results",
        "res",
    )
    assert done.returncode == 0, done.stderr
    assert in_process == [*names, "compare_texts.py", *names]
    record = result()
    for name in names:
        assert record["texts"][name]["problems"] == 5
        assert record["texts"][name]["beyond_eps"] == 0, name
    first, second = ([one["sample"] for one in record["samples"] if one["contender"] == "hf-best"] for _ in range(2))
    assert sorted(map(int, first[0]["tried"])) == [16, 32, 64]
    assert second[1]["tried"] == {}  # the batch size of the first round is kept
    assert second[1]["batch_size"] == first[0]["batch_size"]


# --- the verb, with processes that are made up -------------------------------------------------------------------


Fake = Callable[[str, Any, Path], dict[str, Any]]


def sample_of(job: Any) -> dict[str, Any]:
    count = len(job.updates) * job.passes
    return {
        "seconds": [1.0] * count,
        "losses": [1.0] * count,
        "first_loss": 1.0,
        "shapes": [[[2, 8]]] * count,
        "load_seconds": 0.1,
        "aside_seconds": 0.0,
        "gemm_gflops": 100.0,
        "peak_rss": 1 << 30,
        "peak_framework": None,
    }


def fake(name: str, job: Any, out: Path) -> dict[str, Any]:
    if name == "score_weights.py":
        return {"nll_sum": 1.0, "num_targets": 1}
    job.trained is None or job.trained.touch()
    return sample_of(job)


@pytest.fixture
def bench(run: Run, monkeypatch: pytest.MonkeyPatch, model: Path, data: Path) -> Callable[..., Any]:
    def call(*arguments: object, script: Fake = fake) -> Any:
        monkeypatch.setattr(benchmark_jobs, "run_script", script)
        return run("benchmark", *arguments, "--model", model, "--data", data, *SMALL)

    return call


def test_rounds_are_interleaved_and_weights_are_scored_once(bench: Callable[..., Any]) -> None:
    order: list[str] = []

    def note(name: str, job: Any, out: Path) -> dict[str, Any]:
        order.append(getattr(job, "contender", "score"))
        return fake(name, job, out)

    assert bench("train", "--contenders", "ours-torch,hf", "--rounds", 3, script=note).returncode == 0
    assert order == ["ours-torch", "score", "score", "hf", "score", *["ours-torch", "hf"] * 2]
    assert [entry["round"] for entry in result()["samples"]] == [1, 1, 2, 2, 3, 3]


def test_end_to_end_saves_the_weights_in_every_round_and_passes_once(bench: Callable[..., Any]) -> None:
    jobs: list[Any] = []

    def keep(name: str, job: Any, out: Path) -> dict[str, Any]:
        if name == "train_throughput.py":
            jobs.append(job)
        return fake(name, job, out)

    assert bench("end-to-end", "--contenders", "ours-torch", "--rounds", 2, script=keep).returncode == 0
    assert [(job.passes, job.trained is not None) for job in jobs] == [(1, True)] * 2
    assert all(entry["sample"]["process_seconds"] >= 0 for entry in result()["samples"])


def test_everyone_gets_the_same_rows_and_with_their_own_order_the_first_update(bench: Callable[..., Any]) -> None:
    jobs: dict[str, Any] = {}

    def keep(name: str, job: Any, out: Path) -> dict[str, Any]:
        jobs[getattr(job, "contender", "score")] = job
        return fake(name, job, out)

    def rows(name: str) -> list[list[str]]:
        return [[row.id for row in update] for update in jobs[name].updates]

    command = ("train", "--contenders", "ours-torch,hf", "--rounds", 1, "--rows", 20)
    bench(*command, script=keep)
    shared = rows("ours-torch")
    assert rows("hf") == shared
    bench(*command, "--order", "own", script=keep)
    assert rows("ours-torch") == shared
    assert rows("hf")[0] == shared[0]
    assert rows("hf")[1:] != shared[1:]
    assert sorted(itertools.chain(*rows("hf"))) == sorted(itertools.chain(*shared))


def test_rows_of_every_length_go_from_the_shortest_to_the_longest(tmp_path: Path, model: Path, data: Path) -> None:
    folder = tmp_path / "lengths"
    folder.mkdir()
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    for place, row in enumerate(rows):
        row["question"] = "apples " * ((7 * place) % len(rows)) + row["question"]  # every length once, mixed
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "test.jsonl").write_bytes((data / "test.jsonl").read_bytes())
    extra = {}
    for select in ("first", "spread"):
        config = BenchmarkConfig(model=str(model), data=str(folder), rows=8, update_size=4, select=select)
        source, found = resolve_model(str(model), print), load_data(str(folder), "main", 0, print)
        work = benchmark_jobs.prepare(config, source, found)
        rows_of = [row for update in work.ours for row in update]
        extra[select] = sorted(row.messages[1]["content"].count("apples ") for row in rows_of)
    assert len(extra["first"]) == len(extra["spread"]) == 8
    assert extra["spread"] != extra["first"]
    assert extra["spread"][0] == 1
    assert extra["spread"][-1] == len(rows)
    steps = [after - before for before, after in itertools.pairwise(extra["spread"])]
    assert max(steps) - min(steps) <= 1


def test_the_doubled_peer_gets_the_same_updates_in_half_as_many_micro_batches(bench: Callable[..., Any]) -> None:
    jobs: dict[str, Any] = {}

    def keep(name: str, job: Any, out: Path) -> dict[str, Any]:
        jobs[getattr(job, "contender", "score")] = job
        return fake(name, job, out)

    names = ("ours-torch", "mlx-lm", "mlx-lm-double")
    bench("train", "--contenders", ",".join(names), "--rounds", 1, "--trainable", "blocks", script=keep)
    steps = [(jobs[name].config.batch_size, jobs[name].config.gradient_accumulation_steps) for name in names]
    assert steps == [(2, 2), (2, 2), (4, 1)]
    assert jobs["mlx-lm-double"].updates == jobs["ours-torch"].updates


def test_a_contender_that_fails_is_left_out_and_named(bench: Callable[..., Any]) -> None:
    def breaks(name: str, job: Any, out: Path) -> dict[str, Any]:
        if getattr(job, "contender", "") == "hf":
            raise benchmark_jobs.ContenderFailed("exit code 1; it broke")
        return fake(name, job, out)

    done = bench("train", "--contenders", "ours-torch,hf", "--rounds", 2, script=breaks)
    assert done.returncode == 0
    assert result()["failures"] == {"hf": "it is left out: exit code 1; it broke"}
    assert [entry["contender"] for entry in result()["samples"]] == ["ours-torch"] * 2
    assert "hf failed: it is left out: exit code 1; it broke" in done.stdout

    calls: list[str] = []

    def breaks_later(name: str, job: Any, out: Path) -> dict[str, Any]:
        calls.append(name)
        return (breaks if calls.count("train_throughput.py") > 1 else fake)(name, job, out)

    later = bench("train", "--contenders", "hf", "--rounds", 3, script=breaks_later)
    assert later.returncode == 0
    assert "ended    in round 2: no contender is left" in later.stdout
    newest = max(Path("res").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert json.loads(newest.read_text())["failures"] == {"hf": "it is left out: exit code 1; it broke"}
    nobody = bench("train", "--contenders", "hf", script=breaks)
    assert nobody.returncode == 3
    assert "no contender finished a round: it is left out: exit code 1; it broke" in nobody.stderr


def test_weights_that_cannot_be_scored_give_no_ratio(bench: Callable[..., Any]) -> None:
    def breaks(name: str, job: Any, out: Path) -> dict[str, Any]:
        if name == "score_weights.py":
            raise benchmark_jobs.ContenderFailed("exit code 1; no memory")
        return fake(name, job, out)

    done = bench("train", "--contenders", "ours-torch,hf", "--rounds", 2, script=breaks)
    assert done.returncode == 0
    assert len(result()["samples"]) == 4
    assert "does not count: the weights were not scored" in " ".join(done.stdout.split())


def test_ctrl_c_keeps_whole_rounds(bench: Callable[..., Any]) -> None:
    calls: list[str] = []

    def interrupted(name: str, job: Any, out: Path) -> dict[str, Any]:
        calls.append(name)
        if calls.count("train_throughput.py") == 4:
            raise KeyboardInterrupt
        return fake(name, job, out)

    done = bench("train", "--contenders", "ours-torch,hf", "--rounds", 5, script=interrupted)
    assert done.returncode == 130
    assert "kept     1 round in res/train-" in done.stdout
    assert [(entry["round"], entry["contender"]) for entry in result()["samples"]] == [(1, "ours-torch"), (1, "hf")]


def test_max_time_ends_after_a_whole_round(bench: Callable[..., Any]) -> None:
    done = bench("train", "--contenders", "ours-torch,hf", "--rounds", 5, "--max-time", "0.001s")
    assert done.returncode == 0
    assert len(result()["samples"]) == 2
    assert "ended    after 1 round: --max-time 0.001s" in done.stdout


def test_what_a_result_will_lack_is_said_before_it_is_measured(
    run: Run, bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, model: Path, data: Path
) -> None:
    monkeypatch.setattr(benchmark_jobs, "run_script", fake)
    names = ("--contenders", "ours-torch,hf", "--model", model, "--data", data, "--results", "res")
    sizes = ("--rows", 7, "--update-size", 4, "--batch-size", 2, "--held-out", 0, "--passes", 1, "--rounds", 1)
    done = run("benchmark", "train", *names, *sizes)
    notes = [line for line in done.stdout.splitlines() if line.startswith("note ")]
    assert [line.split("     ")[1].split(":")[0] for line in notes] == [
        "4 rows are used, 7 were asked for",
        "no test rows to score the weights on (--held-out)",
        "one pass",
    ]
    assert "note " not in bench("train", "--contenders", "ours-torch,hf", "--rounds", 1).stdout


def test_without_test_problems_nothing_is_answered(run: Run, data: Path, model: Path, tmp_path: Path) -> None:
    one = tmp_path / "one.jsonl"
    one.write_bytes((data / "train.jsonl").read_bytes())
    done = run("benchmark", "generate", "--model", model, "--data", one, "--results", "res")
    assert done.returncode == 4
    assert "has no test problems to answer; give a folder with a test.jsonl" in done.stderr


def test_a_result_is_never_written_over(bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.record.time.strftime", lambda form, *more: "20260101-000000")
    for _ in range(3):
        assert bench("train", "--contenders", "ours-torch", "--rounds", 1).returncode == 0
    names = [f"train-20260101-000000{suffix}.json" for suffix in ("", "-2", "-3")]
    assert sorted(path.name for path in Path("res").iterdir()) == sorted(names)


def test_a_program_that_breaks_says_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    (tmp_path / "broken.py").write_text("raise SystemExit('trl makes other tokens of train-3')")
    monkeypatch.setattr(benchmark_jobs, "SCRIPTS", tmp_path)

    class Nothing:
        def model_dump_json(self) -> str:
            return "{}"

    with pytest.raises(benchmark_jobs.ContenderFailed, match="exit code 1; trl makes other tokens of train-3"):
        benchmark_jobs.run_script("broken.py", Nothing(), tmp_path / "out.json")


def test_a_peer_with_other_tokens_is_refused() -> None:
    row = Row(id="train-1", messages=[], tokens=[1, 2, 3], num_prompt=1)
    check_tokens("TRL", row, [1, 2, 3], 1)
    for tokens, masked in (([1, 2], 1), ([1, 2, 3], 2), ([1, 2, 4], 1)):
        with pytest.raises(SystemExit, match="TRL makes other tokens of train-1"):
            check_tokens("TRL", row, tokens, masked)


def test_what_a_template_writes_behind_the_end_is_left_out_of_a_peers_row() -> None:
    row = Row(id="train-1", messages=[], tokens=[1, 2, 3], num_prompt=1)
    assert ended(row, [1, 2, 3]) == ended(row, [1, 2, 3, 9]) == [1, 2, 3]
    for other in ([1, 2], [1, 2, 4, 9], [9, 1, 2, 3]):
        assert ended(row, other) == other  # and is refused


def test_a_result_names_folders_and_not_where_they_lie(bench: Callable[..., Any], tmp_path: Path, data: Path) -> None:
    assert bench("train", "--contenders", "ours-torch", "--rounds", 1).returncode == 0
    record = result()
    assert (record["data"], record["config"]["data"]) == (data.name, data.name)
    assert record["model"]["name"] == record["config"]["model"] == "tiny-llama"
    assert str(tmp_path.parent) not in json.dumps(record)


def test_the_report_is_made_where_the_results_are(bench: Callable[..., Any], run: Run) -> None:
    Path("bench").mkdir()
    bench("train", "--contenders", "ours-torch,hf", "--rounds", 1)
    Path("res").rename("bench/results")
    done = run("benchmark", "report", "--results", "bench/results")
    assert done.returncode == 0, done.stderr
    assert "ours-torch / hf" in Path("bench/README.md").read_text()
    assert len(list(Path("bench/results").glob("train-*.png"))) == 1


def test_the_programs_are_where_the_verb_looks() -> None:
    names = ("train_throughput.py", "eval_throughput.py", "score_weights.py", "compare_texts.py")
    assert all((benchmark_jobs.SCRIPTS / name).is_file() for name in names)


def test_a_program_finds_the_checkout_and_not_its_own_folder() -> None:
    """Python puts benchmarks/ itself on the path, where memory.py and tables.py would hide other packages."""
    begin = (
        'if __name__ == "__main__":  # a script\'s own folder is on the path, the checkout is not\n'
        "    sys.path[0] = str(Path(__file__).resolve().parents[1])\n"
    )
    ours = re.compile(r"^(?:from|import) (?:backends|benchmarks|gsm8k_core|verbs)\b", re.MULTILINE)
    programs = [path.read_text() for path in benchmark_jobs.SCRIPTS.glob("*.py") if "\ndef main(" in path.read_text()]
    assert len(programs) >= 10
    for text in programs:
        first = ours.search(text)
        assert first is None or begin in text[: first.start()], text.splitlines()[0]
