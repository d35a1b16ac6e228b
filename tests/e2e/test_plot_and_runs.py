"""`plot` and `runs` through the command line, over run folders written by hand."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gsm8k_core.rollouts.progress import folder_of
from gsm8k_finetune.results import TrainedRun
from tests.e2e.conftest import Run
from verbs.runs import _below, _where, describe

NOW = datetime.datetime.now(datetime.UTC)


def make_run(folder: Path, minutes: int = 0, losses: tuple[float, ...] = (4.0, 2.0, 1.0), **manifest: Any) -> Path:
    """A run folder that was started `minutes` after the others."""
    (folder / "logs").mkdir(parents=True)
    base = {
        "status": "done",
        "pid": os.getpid(),
        "plan": {"updates": 3},
        "outcome": {"reason": "done"},
        "started": (NOW + datetime.timedelta(minutes=minutes)).isoformat(timespec="seconds"),
        "model": {"name": "Qwen/Qwen2.5-0.5B-Instruct", "hash": "base"},
        "data": {"name": "openai/gsm8k"},
        "choices": {"backend": {"name": "mlx", "reason": "it is there"}},
    }
    (folder / "run.json").write_text(json.dumps(base | manifest))
    lines = [
        json.dumps({"event": "update", "update": n, "loss": loss, "rate": 1e-4, "grad_norm": 2.0, "elapsed": 20.0 + n})
        for n, loss in enumerate(losses, 1)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(["", *lines, '{"event": "upd']))
    return folder


def scores(n: int, accuracy: float, **more: Any) -> dict[str, Any]:
    return {"n": n, "rules": {"flexible": {"accuracy": accuracy}}, **more}


def test_plot_draws_a_sketch_and_a_picture(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    make_run(tmp_path / "runs/one")
    make_run(tmp_path / "runs/two", losses=(3.0, 2.5))
    (tmp_path / "out").mkdir()
    done = run("plot", "runs/one", "runs/two", "--smooth", 2, "--output", "out/plot.svg")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(len(line) for line in lines) <= 80
    assert lines[0] == "loss"
    assert lines[-1] == "written  out/plot.svg"
    assert "<svg" in (tmp_path / "out/plot.svg").read_text()
    assert run("plot", "runs/one", "--output", "out/plot.svg").returncode == 0  # a plot may be replaced


def test_plot_as_json(run: Run, tmp_path: Path) -> None:
    make_run(tmp_path / "one")
    (make_run(tmp_path / "new") / "metrics.jsonl").write_text("")
    done = run("plot", "one", "new", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["file"] is None
    assert [(each["name"], each["updates"], each["min_loss"]) for each in found["runs"]] == [
        ("one", 3, 1.0),
        ("new", 0, None),
    ]
    assert "new has no update yet and is left out" in done.stderr


def test_a_run_of_rft_that_ended_before_its_last_training_shows_the_newest_one_before_it(
    run: Run, tmp_path: Path
) -> None:
    folder = make_run(tmp_path / "runs/own", losses=(), status="stopped", outcome={"reason": "interrupted"})
    (folder / "metrics.jsonl").unlink()
    assert run("plot", "runs/own").returncode == 4
    make_run(folder / "rollouts/warm", plan={"updates": 7})
    done = run("plot", "runs/own")
    assert done.returncode == 0, done.stderr
    said = "own: drawn is the warm start, as its last training has no update"
    assert done.stdout.splitlines()[0] == said
    (found,) = json.loads(run("runs", "--json").stdout)["runs"]
    assert [found[name] for name in ("updates", "planned", "last_loss", "phase")] == [3, 7, 1.0, "warm"]
    listed = " ".join(run("runs").stdout.split())
    assert "own interrupted 3/7 1.000 -" in listed
    assert "figures of the warm start" in listed
    assert TrainedRun(folder).losses == [4.0, 2.0, 1.0]
    make_run(folder / "rollouts/round-1", losses=(2.0, 1.5), plan={"updates": 7})
    (folder / "metrics.jsonl").write_text('{"event": "round", "round": 1}\n')
    assert "drawn is the training of round 1" in run("plot", "runs/own").stdout
    (folder / "metrics.jsonl").write_text('{"event": "update", "update": 1, "loss": 9.0}\n')
    assert "drawn is" not in run("plot", "runs/own").stdout


@pytest.mark.parametrize(
    ("place", "rounds", "phase", "said"),
    [
        ("base", None, None, ["in the base's first answers"]),
        ("warm", "2", "warm", ["in the warm start"]),
        ("sample-1", "2", "warm", ["in the sampling of round 1", "figures of the warm start"]),
        ("sample-1", None, None, ["in the sampling of round 1"]),
        ("train-1", "2", "train-1", ["in the training of round 1"]),
        ("sample-2", "2", "train-1", ["in the sampling of round 2", "figures of the training of round 1"]),
        ("train-2", "2", "train-1", ["in the last training", "figures of the training of round 1"]),
        ("train-1", None, "warm", ["in the last training", "figures of the warm start"]),  # which does not pay
        ("train-2", "2", None, []),
        (None, "2", "train-1", ["figures of the training of round 1"]),  # between two phases
        ("a-person", "2", None, []),
    ],
)
def test_runs_say_where_a_run_of_rft_stands_and_whose_figures_are_shown(
    place: str | None, rounds: str | None, phase: str | None, said: list[str], tmp_path: Path
) -> None:
    decisions = {"rounds": {"name": rounds}} if rounds else {}
    rft = {"phase": place and {"name": place}, "decisions": decisions}
    losses = (4.0,) if place == "train-2" and not phase else ()
    folder = make_run(tmp_path, losses=losses, status="stopped", rft=rft)
    if phase:
        make_run(folder / "rollouts" / folder_of(phase))
    described = describe(folder)
    assert described["phase"] == phase
    assert _where(described["place"], phase) == said
    (text,) = _below(described)
    assert text.endswith(", ".join(said))
    manifest = json.loads((folder / "run.json").read_text()) | {"status": "done"}
    (folder / "run.json").write_text(json.dumps(manifest))  # as where the warm start had all of the updates
    assert describe(folder)["place"] is None


NAN = "update 3: loss nan, gradient norm nan; the step was not applied"


def make_failed(folder: Path, losses: tuple[float, ...] = (), event: bool = True) -> Path:
    made = make_run(folder, losses=losses, status="failed", outcome={"reason": NAN})
    if event:
        lines = (made / "metrics.jsonl").read_text().splitlines()[:-1]
        last = json.dumps({"event": "failed", "reason": NAN, "elapsed": 5.0})
        (made / "metrics.jsonl").write_text("\n".join([*lines, last, ""]))
    return made


@pytest.mark.parametrize("event", [True, False])
def test_plot_says_which_run_failed(run: Run, tmp_path: Path, event: bool) -> None:
    make_run(tmp_path / "one")
    make_failed(tmp_path / "nan1", event=event)
    make_failed(tmp_path / "nan2", (2.0, 3.0), event=event)
    done = run("plot", "one", "nan1", "nan2")
    assert done.returncode == 0, done.stderr
    assert f"nan1 failed at {NAN}; it has no update and is left out" in done.stdout.splitlines()
    assert f"nan2 failed at {NAN}" in done.stdout.splitlines()
    said = run("plot", "one", "nan1", "--json")
    assert [each["failure"] for each in json.loads(said.stdout)["runs"]] == [None, NAN]
    alone = run("plot", "nan1")
    assert alone.returncode == 4
    says = "it has no update to draw: give another (python cli.py runs lists them)"
    assert alone.stderr == f"error: nan1 failed at {NAN}; {says}\n"


def test_a_narrow_terminal_gets_a_narrow_drawing_and_every_number(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "runs/one")
    monkeypatch.setenv("COLUMNS", "34")
    for words in (("plot", "runs/one"), ("runs",)):
        lines = run(*words).stdout.splitlines()
        assert max(map(len, lines)) <= 34
        assert any("one" in line.split() for line in lines)
    assert "  outcome done, updates 3, loss" in lines


def test_plot_makes_no_folder(run: Run, tmp_path: Path) -> None:
    make_run(tmp_path / "one")
    done = run("plot", "one", "--output", "gone/plot.svg")
    assert done.returncode == 7
    assert done.stdout == ""
    assert done.stderr == (
        "error: --output gone/plot.svg: the folder gone does not exist; make it first, or give another file\n"
    )
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("loss", [1.7e308, -1.7e308, 3.4e38])
def test_losses_too_large_to_be_added_are_drawn_or_counted(run: Run, tmp_path: Path, loss: float) -> None:
    make_run(tmp_path / "runs/huge", losses=(loss, loss, loss, 1.0))
    done = run("plot", "runs/huge", "--smooth", 3, "--json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["runs"]
    assert (found["not_finite"], found["last_loss"]) == (0 if loss == 3.4e38 else 3, 1.0)
    for words in (("plot", "runs/huge"), ("runs",)):
        assert max(len(line) for line in run(*words).stdout.splitlines()) <= 80


def test_the_sketch_needs_no_matplotlib(tmp_path: Path) -> None:
    make_run(tmp_path / "one")
    code = (
        "import sys; sys.modules['matplotlib'] = None; sys.path.insert(0, sys.argv[1])\n"
        "import cli; code = cli.main(['plot', 'one'])\n"
        "print([name for name in ('torch', 'mlx', 'matplotlib.figure') if name in sys.modules]); sys.exit(code)"
    )
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", code, root]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("plot",), 2, "python cli.py runs"),
        (("plot", "gone"), 4, "gone is not there"),
        (("plot", "empty"), 4, "empty has no metrics.jsonl"),
        (("plot", "new"), 4, "no update to draw yet"),
        (("plot", "bad"), 4, "bad/metrics.jsonl:2: not JSON"),
        (("plot", "one", "--output", "plot.gif"), 2, "--output plot.gif must end in .png or .svg"),
        (("plot", "one", "--smooth", "0"), 2, "--smooth"),
        (("plot", *["one"] * 27), 2, "26 runs at most"),
        (("runs", "gone"), 4, "gone is not a folder"),
        (("runs", "one", "two"), 2, "two"),
    ],
)
def test_bad_input_is_one_clear_line(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    make_run(tmp_path / "one")
    (tmp_path / "empty").mkdir()
    (make_run(tmp_path / "new") / "metrics.jsonl").write_text('{"event": "start"}\n')
    (make_run(tmp_path / "bad") / "metrics.jsonl").write_text('{"event": "start"}\nnoise\n{"event": "end"}\n')
    done = run(*arguments)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == code, done.stderr
    assert len(errors) == 1
    assert says in errors[0]


def test_runs_newest_first_with_their_scores(run: Run, tmp_path: Path) -> None:
    first = make_run(tmp_path / "runs/first")
    compared = {"base": scores(1319, 0.05), "trained": scores(1319, 0.355)}
    (first / "model_comparison.json").write_text(json.dumps(compared))
    second = make_run(tmp_path / "runs/deeper/second", 1, status="stopped", outcome={"reason": "budget"})
    several = {"schema": 2, "base": scores(50, 0.1), "models": []}  # of other problems than the run's own score
    (second / "model_comparison.json").write_text(json.dumps(several))
    for name, content in {
        "eval-base": scores(1319, 0.9, hash="base", model="Qwen/Qwen2.5-0.5B-Instruct"),
        "eval-step": scores(1319, 0.8, hash="x", model="runs/deeper/second/checkpoints/update-000002"),
        "eval-few": scores(20, 0.7, hash="y", model="runs/deeper/second"),
        "eval-more": scores(200, 0.25, hash="y", model="runs/deeper/second"),
        "eval-train": scores(7473, 0.95, hash="y", model="runs/deeper/second", split="train"),
        "eval-calculator": scores(1319, 0.6, hash="y", model="runs/deeper/second", calculator={"results": 9}),
        "eval-bad": {"n": True, "rules": []},
    }.items():
        (second / "logs" / name).mkdir()
        (second / "logs" / name / "summary.json").write_text(json.dumps(content))
    done = run("runs", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["runs"]
    assert [(each["run"], each["status"], each["accuracy"], each["n"], each["last_loss"]) for each in found] == [
        ("runs/deeper/second", "stopped", 0.25, 200, 1.0),
        ("runs/first", "done", 0.355, 1319, 1.0),
    ]
    table = run("runs").stdout.splitlines()
    assert max(len(line) for line in table) <= 80
    assert [line for line in table if line != line.rstrip()] == []
    assert table[1].split() == ["deeper/second", "budget", "3", "1.000", "25.0", "%", "200"]
    assert table[3].split() == ["first", "done", "3", "1.000", "5.0", "->", "35.5", "%", "1319"]
    assert [each["base_accuracy"] for each in found] == [None, 0.05]
    started = (NOW + datetime.timedelta(minutes=1)).astimezone().strftime("%Y-%m-%d %H:%M")
    assert table[2] == f"  Qwen2.5-0.5B-Instruct on gsm8k, mlx, {started}, 23 s"  # no outcome: up to its last update
    assert [each["seconds"] for each in found] == [23.0, 23.0]


def test_runs_say_where_a_score_is_one_with_calculator(run: Run, tmp_path: Path) -> None:
    made = make_run(tmp_path / "runs/first")
    found = {"results": 9, "answers": 3, "of": 200}
    (made / "model_comparison.json").write_text(json.dumps({"trained": scores(200, 0.355, calculator=found)}))
    done = run("runs")
    assert done.returncode == 0, done.stderr
    assert " ".join(done.stdout.split()).endswith("23 s, accuracy with calculator")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert json.loads(run("runs", "--json").stdout)["runs"][0]["calculator"] is True


@pytest.mark.parametrize(
    ("update", "save", "now", "said"),
    [
        (3, "b" * 32, "b" * 32, ""),
        (3, "a" * 32, "b" * 32, ", accuracy of weights that it no longer has"),  # as many updates, and other weights
        (2, "a" * 32, "b" * 32, ", accuracy after update 2"),
        (3, "a" * 32, None, ", accuracy perhaps from before it went on"),  # killed between two saves
        (3, None, "b" * 32, ", accuracy perhaps from before it went on"),  # of an older version
        (None, None, None, ", accuracy perhaps from before it went on"),  # of the model that such a kill left
    ],
)
def test_runs_know_a_score_of_their_weights_by_the_save(
    run: Run, tmp_path: Path, update: int | None, save: str | None, now: str | None, said: str
) -> None:
    made = make_run(tmp_path / "runs/first", model_update=3 if now else None, model_save=now)
    (made / "logs/eval-1").mkdir()
    score = json.dumps(scores(200, 0.355, run={"update": update, "save": save}))
    (made / "logs/eval-1/summary.json").write_text(score)
    assert " ".join(" ".join(run("runs").stdout.splitlines()[2:]).split()).endswith(f"23 s{said}")


@pytest.mark.parametrize(
    ("answered", "segments", "shown", "said"),
    [
        ({"run": {"update": 3}}, 1, "35.5 %", "23 s"),
        ({"run": {"update": 2}}, 1, "35.5 %", "23 s, accuracy after update 2"),
        ({}, 0, "35.5 %", "23 s"),  # of an older version
        ({}, 1, "35.5 %", "23 s, accuracy perhaps from before it went on"),
        ({"run": None}, 0, "-", "23 s"),  # another model's, or best/
    ],
)
@pytest.mark.parametrize("file", ["model_comparison.json", "logs/eval-1/summary.json"])
def test_runs_say_which_state_of_a_run_a_score_is_of(
    run: Run, tmp_path: Path, file: str, answered: dict[str, Any], segments: int, shown: str, said: str
) -> None:
    """A run that went on has other weights than those that were compared."""
    made = make_run(tmp_path / "runs/first", segments=[{}] * segments)
    found = scores(200, 0.355, **answered)
    (made / file).parent.mkdir(exist_ok=True)
    (made / file).write_text(json.dumps({"trained": found} if file.startswith("model") else found))
    lines = run("runs").stdout.splitlines()
    assert " ".join(lines[1].split()).startswith(f"first done 3 1.000 {shown}")
    assert " ".join(" ".join(lines[2:]).split()).endswith(said)
    (made / "logs/eval-now").mkdir()
    few = json.dumps(scores(9, 0.5, run={"update": 3}))
    (made / "logs/eval-now/summary.json").write_text(few)  # of few problems, and of what the run is now
    found = json.loads(run("runs", "--json").stdout)["runs"][0]
    assert (found["n"], found["accuracy_current"]) == (200 if said == "23 s" and shown != "-" else 9, True)


def test_runs_that_ended_badly_are_shown(run: Run, tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    make_run(tmp_path / "runs/alive", 5, status="running", outcome=None)
    make_run(tmp_path / "runs/died", 4, status="running", pid=gone.pid)
    make_run(tmp_path / "runs/reused", -24 * 60, status="running")  # its pid is ours, and we are younger
    make_run(tmp_path / "runs/odd", 2, status="running", pid="x", model=7, data=[], plan={"updates": "many"})
    (make_run(tmp_path / "runs/torn") / "run.json").write_text('{"status": "run')
    (make_run(tmp_path / "runs/list") / "run.json").write_text("[]")
    (make_run(tmp_path / "runs/metrics") / "metrics.jsonl").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "runs/link").symlink_to(tmp_path / "runs")
    done = run("runs", "--json")
    assert done.returncode == 0, done.stderr
    found = {Path(each["run"]).name: each["status"] for each in json.loads(done.stdout)["runs"]}
    assert found == {
        "alive": "running",
        "died": "died",
        "reused": "died",
        "odd": "died",
        "torn": "damaged",
        "list": "damaged",
        "metrics": "done",
    }
    assert "no run.json to read" in run("runs").stdout


def test_a_failed_run_says_why(run: Run, tmp_path: Path) -> None:
    make_failed(tmp_path / "runs/nan1")
    make_run(tmp_path / f"runs/{'long-' * 18}name", 1, outcome={"reason": "done", "seconds": 185.0})
    lines = run("runs").stdout.splitlines()
    assert lines[1] == f"{'long-' * 18}name"  # whole, so that it can be copied
    assert lines[2].split() == ["done", "3", "1.000", "-", "-"]
    assert lines[3].endswith("3 min 05 s")
    assert lines[4].split() == ["nan1", "failed", "0/3", "-", "-", "-"]
    assert " ".join(" ".join(lines[6:]).split()) == f"failed at {NAN}"
    assert max(len(line) for line in lines[2:]) <= 80


def test_a_manifest_that_is_too_deep_hides_no_other_run(run: Run, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/good")
    (make_run(tmp_path / "runs/deep") / "run.json").write_text("[" * 200_000)
    done = run("runs", "--json")
    assert done.returncode == 0, done.stderr
    found = {Path(each["run"]).name: each["status"] for each in json.loads(done.stdout)["runs"]}
    assert found == {"good": "done", "deep": "damaged"}


def test_no_runs_yet(run: Run) -> None:
    done = run("runs")
    assert done.returncode == 0
    assert "no runs under runs; python cli.py train starts one" in done.stdout
