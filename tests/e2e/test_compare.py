"""eval and compare through the command line: the files that they leave, hostile answers, --json, exit codes.

Two tiny models; their words are put into their mouths, so that it is known what is right.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import backends
import cli
from gsm8k_core.config.score import CompareConfig
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.models.find import identity, resolve_model
from gsm8k_core.models.rendering import Rendering
from gsm8k_core.problems.data import load_data
from gsm8k_core.scoring import math_verify as slow_rules
from gsm8k_core.scoring.stats import cannot_show, holm
from gsm8k_core.scoring.timed import Limit, in_random_order
from gsm8k_core.types import Problem
from tests import tiny
from tests.e2e.conftest import Run
from tests.e2e.read_page import Read
from verbs.results import command, training_command

EVIL = (
    "<img src=x onerror=alert(1)></script><script>alert(2)</script> <a href='javascript:alert(3)'>x</a> "
    '"><svg onload=alert(4)> \x1b[31mred\x1b[0m \u202egnorw <!-- {{ 7 * 7 }}'
)
PLACE = ("--backend", "torch", "--device", "cpu", "--dtype", "float32", "--max-new-tokens", 2)
FAKE_MATH_VERIFY = """
import json, sys
print("ready", flush=True)
for line in sys.stdin:
    row = json.loads(line)
    print(json.dumps({"extracted": "1", "correct": row["completion"].endswith(row["gold"])}), flush=True)
"""


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("other") / "tiny", "llama", seed=1)


@pytest.fixture
def trained(tmp_path: Path, other: Path, model: Path, data: Path) -> Path:
    """A finished run: its manifest, its metrics, its model."""
    folder = tmp_path / "runs" / "mine"
    shutil.copytree(other, folder / "model")
    config = TrainConfig(
        model=str(model), data=str(data), eval_steps=2, learning_rate=1e-2, wandb_project="hf_" + "a" * 30
    )
    manifest = {"status": "done", "pid": 1, "config": config.model_dump(mode="json"), "data": {"name": str(data)}}
    manifest["model_update"] = 3
    (folder / "run.json").write_text(json.dumps(manifest))
    events: list[dict[str, object]] = [{"event": "update", "update": n, "loss": 3 / n} for n in (1, 2, 3)]
    events += [{"event": "dev", "update": 2, "accuracy": 0.25, "loss": 1.5}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """`words(base, trained)`: what the models answer; `{n}` is the gold of every other problem."""

    def say(base: str, trained: str) -> None:
        turns = {False: base, True: trained}
        asked: list[int] = []

        def decode(*_: object) -> str:
            asked.append(1)
            return turns[len(asked) > 8].replace("{n}", "4")

        monkeypatch.setattr(Rendering, "text", decode)

    return say


def compare(run: Run, model: Path, trained: Path, data: Path, *more: object) -> Any:
    return run("compare", "--base-model", model, "--trained-model", trained, "--data", data, *PLACE, *more)


# --- what compare leaves ----------------------------------------------------------------------------------------------


def test_a_meddled_record_changes_no_score_and_reuse_is_said(run: Run, model: Path, trained: Path, data: Path) -> None:
    """Every verdict of the trained model's records set to right, and its words with them: nothing of it is believed."""
    first = compare(run, model, trained, data, "--json")
    assert first.returncode == 0, first.stderr
    before = json.loads(first.stdout)
    path = Path(before["trained"]["records"])
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        record["completion"] = record["answer"]
        record["rules"] = {name: verdict | {"correct": True} for name, verdict in record["rules"].items()}
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    again = compare(run, model, trained, data)
    assert f"8 of 8 in {path} said otherwise than their tokens do; they were graded again" in again.stdout
    after = json.loads((trained / "model_comparison.json").read_text())
    assert after["trained"]["rules"] == before["trained"]["rules"]
    assert after["paired"] == before["paired"]
    assert (before["trained"]["reused"], after["trained"]["reused"]) == (0, 8)
    page = Read((trained / "report.html").read_text())
    assert "8 of the base's, 8 of the trained's: given in an earlier evaluation, decoded and graded again" in page.words


def test_compare_leaves_numbers_a_page_and_a_card(
    run: Run, model: Path, trained: Path, data: Path, words: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    words("2 + 2 = 5\n#### 5", "2 + 2 = 4\n#### 4")
    done = compare(run, model, trained, data)
    assert done.returncode == 0, done.stderr
    made = json.loads((trained / "model_comparison.json").read_text())
    test = made["paired"]
    gold = [json.loads(line)["answer"] for line in (data / "test.jsonl").read_text().splitlines()]
    right, were = (sum(answer.endswith(f"#### {n}") for answer in gold) for n in (4, 5))
    assert (test["won"], test["lost"], test["both"]) == (right, were, 0)
    assert (made["base"]["run"], made["trained"]["run"]) == (None, {"update": 3, "save": None})
    assert test["difference"] == pytest.approx((right - were) / 8)
    assert test["interval"][0] <= test["difference"] <= test["interval"][1]
    assert {"diagnosis", "steps", "breakdown"} <= set(made)
    page, card = (trained / "report.html").read_text(), (trained / "model_card.md").read_text()
    for text in (page, card):
        assert "hf_aaa" not in text
        assert made["trained"]["hash"] in text
    shown = " ".join(Read(page).words.split())
    for part in ("What went wrong", "Accuracy by number of steps", "Loss (nats per target)", "arithmetic slip"):
        assert part in shown
    assert "python cli.py train " in shown
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["model-index"][0]["name"] == "mine"
    lines, said = done.stdout.splitlines(), " ".join(done.stdout.split())
    assert any("what went wrong" in line and "trained" in line for line in lines)
    for name, label in (("model_comparison.json", "written"), ("report.html", "page"), ("model_card.md", "card")):
        assert f"{label} {trained / name}" in said
    assert [
        line for line in lines if len(line) > 80 and str(trained.parent) not in line and str(data) not in line
    ] == []
    assert said.count(cannot_show(8)) == 1
    assert "both are the same model" not in said
    assert done.stdout.index("cannot show") < done.stdout.index("what went wrong")


def test_hostile_answers_stay_text(
    run: Run, model: Path, trained: Path, data: Path, words: Callable[[str, str], None]
) -> None:
    words(EVIL, f"{EVIL}\n#### 4")
    done = compare(run, model, trained, data)
    assert done.returncode == 0, done.stderr
    page = (trained / "report.html").read_text()
    read = Read(page)
    assert not {"img", "a ", "iframe", "object", "embed", "link", "form"} & set(read.tags)
    assert read.tags.count("script") == 3
    assert read.live == []
    for part in ("<img src=x onerror=alert(1)>", "</script><script>alert(2)", "{{ 7 * 7 }}", "⟨ESC⟩[31m", "⟨U+202E⟩"):
        assert part in read.words
    for text in (page, (trained / "model_card.md").read_text(), done.stdout, done.stderr):
        assert "\x1b" not in text
        assert "\u202e" not in text


def test_json_is_one_object_with_the_files(
    run: Run, model: Path, trained: Path, data: Path, words: Callable[[str, str], None]
) -> None:
    words(EVIL, "#### 4")
    done = compare(run, model, trained, data, "--json")
    result = json.loads(done.stdout)
    assert [Path(result[key]).name for key in ("file", "page", "card")] == [
        "model_comparison.json",
        "report.html",
        "model_card.md",
    ]
    assert all(Path(result[key]).is_file() for key in ("file", "page", "card"))
    assert "limits   8 problems cannot show" in done.stderr


def test_damaged_metrics_cost_the_curves_and_nothing_else(
    run: Run, model: Path, trained: Path, data: Path, words: Callable[[str, str], None]
) -> None:
    words("#### 5", "#### 4")
    (trained / "metrics.jsonl").write_text("no json\n{}\n")
    done = compare(run, model, trained, data)
    assert done.returncode == 0, done.stderr
    assert "no curves on the page" in done.stdout
    assert "Loss (nats" not in (trained / "report.html").read_text()


def test_the_best_model_does_not_replace_what_the_run_left(
    run: Run, model: Path, trained: Path, words: Callable[[str, str], None]
) -> None:
    words("#### 1", "#### {n}")
    shutil.copytree(trained / "model", trained / "best")
    shutil.copytree(trained / "model", trained / "checkpoints/update-000002/model")
    left = {"": trained, "best": trained / "compare/best"}
    left["checkpoints/update-000002/model"] = trained / "compare/update-000002"
    for name, folder in left.items():
        done = run("compare", "--base-model", model, "--trained-model", trained / name, "--max-samples", 4, *PLACE)
        assert done.returncode == 0, done.stderr
        found = json.loads((folder / "model_comparison.json").read_text())["trained"]
        ended = None if name else {"update": 3, "save": None}  # of an older version, which named no save
        assert (found["model"], found["run"]) == (str(trained / name), ended)
        take = [f"export   python cli.py export {trained / name} --to ollama   (or merged, mlx, gguf)"]
        assert [line for line in done.stdout.splitlines() if line.startswith("export ")] == take
    scored = run("eval", "--model", trained / "best", "--max-samples", 4, *PLACE)
    assert f"--trained-model {trained / 'best'}" in scored.stdout


def test_two_plain_folders_leave_their_files_where_it_was_asked(
    run: Run, model: Path, other: Path, data: Path, tmp_path: Path, words: Callable[[str, str], None]
) -> None:
    words("#### 5", "#### 4")
    done = compare(run, model, other, data, "--output-dir", "out", "--max-samples", 5)
    assert done.returncode == 0, done.stderr
    assert "5 problems cannot show any difference" in done.stdout
    assert {"report.html", "model_card.md", "model_comparison.json"} <= {path.name for path in Path("out").iterdir()}
    assert "Loss (nats per target)" not in Path("out/report.html").read_text()


# --- --open -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    urls: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: urls.append(url) or "no-browser" not in url)
    return urls


def test_open_opens_the_page_and_only_then(
    run: Run, model: Path, trained: Path, data: Path, words: Callable[[str, str], None], opened: list[str]
) -> None:
    words("#### 5", "#### 4")
    assert compare(run, model, trained, data).returncode == 0
    assert opened == []
    done = compare(run, model, trained, data, "--open")
    assert done.returncode == 0, done.stderr
    assert opened == [(trained / "report.html").as_uri()]
    done = compare(run, model, trained, data, "--open", "--output-dir", "no-browser")
    assert done.returncode == 0, done.stderr
    assert "there is no browser here; open no-browser/report.html in one" in done.stdout


# --- eval -------------------------------------------------------------------------------------------------------------


def test_eval_leaves_a_page_beside_its_records_and_says_what_it_cannot_show(
    run: Run, trained: Path, data: Path, words: Callable[[str, str], None]
) -> None:
    words(EVIL, "")
    done = run("eval", "--model", trained, "--data", data, "--max-samples", 6, *PLACE)
    assert done.returncode == 0, done.stderr
    assert f"limits   {cannot_show(6)}" in done.stdout.splitlines()
    page = next(trained.glob("logs/eval-*/report.html"))
    assert f"page     {page}" in done.stdout.splitlines()
    assert f"next     python cli.py compare --trained-model {trained} --data {data}" in done.stdout.splitlines()
    read = Read(page.read_text())
    assert read.live == []
    assert "<img src=x onerror=alert(1)>" in read.words
    assert "python cli.py eval --backend torch" in read.words
    assert "Loss (nats per target)" in read.words
    again = run("eval", "--model", trained, "--data", data, "--max-samples", 6, *PLACE, "--json")
    assert json.loads(again.stdout)["page"] == str(page)
    assert sum(json.loads(again.stdout)["breakdown"]["categories"].values()) == 6
    assert all("category" in json.loads(line)["diagnosis"] for line in (page.parent / "records.jsonl").open())


def test_a_score_is_of_the_save_that_was_opened_and_one_that_is_replaced_meanwhile_is_not_scored(
    run: Run, trained: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on saves other weights while they are answered by, or loaded."""
    manifest, text, load = json.loads((trained / "run.json").read_text()), Rendering.text, backends.open

    def save(name: str) -> None:
        (trained / "run.json").write_text(json.dumps(manifest | {"model_save": name}))

    def answered(*given: Any) -> str:
        save("later")
        return text(*given)

    def loaded(*given: Any) -> Any:
        save("later still")
        return load(*given)

    save("first")
    asked = ("eval", "--model", trained, "--data", data, "--max-samples", 2, *PLACE, "--json")
    monkeypatch.setattr(Rendering, "text", answered)
    done = run(*asked)
    assert json.loads(done.stdout)["run"] == {"update": 3, "save": "first"}, done.stderr
    monkeypatch.setattr(backends, "open", loaded)
    done = run(*asked)
    assert (done.returncode, done.stdout) == (4, "")
    assert "was saved anew by its run while it was read here; start again" in done.stderr


# --- slow rules -------------------------------------------------------------------------------------------------------


@pytest.fixture
def math_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in: right where the completion ends in the gold."""
    worker = (sys.executable, "-c", FAKE_MATH_VERIFY)
    original = slow_rules.MathVerify
    monkeypatch.setattr(slow_rules, "missing", lambda: None)
    monkeypatch.setattr(slow_rules, "MathVerify", lambda limit: original(limit, command=worker))


@pytest.mark.usefixtures("math_verify")
def test_compare_and_grade_take_math_verify_too(
    run: Run, model: Path, trained: Path, data: Path, words: Callable[[str, str], None], tmp_path: Path
) -> None:
    words("#### 5", "it is \\frac{8}{2}, or 4")
    done = compare(run, model, trained, data, "--slow-rules", "--rules", "robust-v1,openai", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("math-verify judged 8 rows in ") == 2
    made = json.loads(done.stdout)
    assert made["paired_by_rule"]["math-verify"]["won"] == made["trained"]["rules"]["math-verify"]["correct"] > 0
    asked = ["strict", "flexible", "robust", "robust-v1", "openai", "math-verify"]
    assert list(made["base"]["disagreements"]) == asked == list(made["paired_by_rule"])
    assert {name: made["base"]["rules"][name]["version"] for name in asked[2:4]} == {"robust": 2, "robust-v1": 1}
    assert "math-verify" in Read((trained / "report.html").read_text()).words
    scored = json.loads(
        run("eval", "--model", trained, "--data", data, *PLACE, "--slow-rules", "--rules", "robust v1", "--json").stdout
    )
    assert list(scored["rules"]) == ["strict", "flexible", "robust", "robust-v1", "math-verify"]
    assert scored["rules"]["math-verify"]["correct"] == made["trained"]["rules"]["math-verify"]["correct"]
    assert "math-verify" in Read(Path(scored["page"]).read_text()).words
    (tmp_path / "c.jsonl").write_text('{"completion": "so 4", "gold": 4}\n{"completion": "5 ", "gold": 5}\n')
    graded = run("grade", "c.jsonl", "--slow-rules")
    assert "math-verify judged 2 rows in " in graded.stdout
    assert "math-verify         1" in graded.stdout


@pytest.mark.parametrize(
    "verb", [("grade", "c.jsonl"), ("compare", "--trained-model", "gone"), ("eval", "--model", "gone")]
)
def test_math_verify_that_is_not_here_is_said_with_the_line_that_brings_it(
    run: Run, monkeypatch: pytest.MonkeyPatch, verb: tuple[str, ...]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    Path("c.jsonl").write_text('{"completion": "4", "gold": 4}\n')
    done = run(*verb, "--slow-rules")
    assert done.returncode == 3
    assert "math-verify is not installed; pip install -c constraints.txt -e '.[bench]'" in done.stderr


# --- the commands on the page -----------------------------------------------------------------------------------------


def test_a_command_gives_back_the_settings_it_was_made_from() -> None:
    config = CompareConfig(
        trained_model="runs/it's mine",
        max_samples=-1,
        all_=True,
        eval_batch_size=3,
        seed=0,
        slow_rules=True,
        split="train",
    )
    values = {name: value for name, value in config.model_dump(mode="json").items() if name != "max_samples"}
    line = command("compare", CompareConfig, values)
    assert cli.parse(shlex.split(line)[2:])[0] == config
    assert "--seed 0" in line


def test_the_training_command_gives_back_the_runs_settings(tmp_path: Path) -> None:
    config = TrainConfig(
        max_samples=-1, save_steps=0, resume="latest", report_to="wandb", no_wandb=True, warmup_ratio=0
    )
    (tmp_path / "run.json").write_text(json.dumps({"config": config.model_dump(mode="json")}))
    line = training_command(tmp_path)
    assert line is not None
    assert cli.parse(shlex.split(line)[2:])[0] == config.model_copy(update={"resume": ""})
    (tmp_path / "run.json").write_text("{}")
    assert training_command(tmp_path) is None


def test_an_evaluation_with_calculator_is_another_one(run: Run, model: Path, data: Path) -> None:
    """The tiny model writes no `<<`, so the texts are the same; they are answered anew all the same, and it is said."""
    arguments = ("eval", "--model", model, "--data", data, "--max-samples", 3, "--max-new-tokens", 6, "--json")
    plain, calculated = (json.loads(run(*arguments, *more).stdout) for more in ((), ("--calculator",)))
    assert (plain["calculator"], calculated["calculator"]) == (None, {"results": 0, "answers": 0, "of": 3})
    assert calculated["reused"] == 0
    texts = [
        [json.loads(line)["completion"] for line in Path(each["records"]).read_text().splitlines()]
        for each in (plain, calculated)
    ]
    assert texts[0] == texts[1]
    assert "with calculator" in Path(calculated["page"]).read_text(encoding="utf-8")
    assert "with calculator" not in Path(plain["page"]).read_text(encoding="utf-8")
    asked = json.loads(
        run("generate", "how many", "--model", model, "--max-new-tokens", 6, "--calculator", "--json").stdout
    )
    assert asked["answers"][0]["calculated"] == 0


# --- in the time there is ---------------------------------------------------------------------------------------------


def test_max_time_scores_both_on_the_same_random_sample(
    run: Run, model: Path, trained: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base answers the first block and no more, the trained one is asked those; a whole compare goes on."""
    monkeypatch.setattr("gsm8k_core.scoring.timed.FIRST", 3)
    monkeypatch.setattr("gsm8k_core.scoring.timed.CAREFUL", 0.0)  # no second block fits
    done = compare(run, model, trained, data, "--max-time", "2h", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["base"]["n"], found["trained"]["n"]) == (3, 3)
    assert found["trained"]["time"] | {"seconds": 0} == {"n": 3, "of": 8, "max_time": "2h", "seconds": 0}
    assert "3 of 8 problems, a random sample" in done.stderr
    assert cannot_show(3) in done.stderr

    def ids(which: str) -> list[str]:
        return [json.loads(line)["id"] for line in Path(found[which]["records"]).read_text().splitlines()]

    problems = load_data(str(data), "main", 0, lambda line: None).test
    wanted = [each.id for each in in_random_order(problems)[:3]]
    assert sorted(ids("base")) == sorted(ids("trained")) == sorted(wanted)
    whole = compare(run, model, trained, data, "--json")
    assert json.loads(whole.stdout)["base"]["reused"] == 3  # the answers are those of an evaluation without a limit
    stored = compare(run, model, trained, data, "--max-time", "0.001s", "--json")  # what is there needs no time
    assert stored.returncode == 0, stored.stderr
    assert [json.loads(stored.stdout)[which]["reused"] for which in ("base", "trained")] == [8, 8]


def test_max_time_that_ends_at_once_is_one_line(
    run: Run, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.open", lambda *_: pytest.fail("a model that has no time was loaded"))
    done = run("eval", "--model", model, "--data", data, *PLACE, "--max-time", "0.001s")
    assert done.returncode == 3
    assert "--max-time 0.001s ended before the first 8 problems" in done.stderr
    assert run("eval", "--model", model, "--data", data, "--max-time", "1m", "--repeat", 2).returncode == 2


# --- several trained models -------------------------------------------------------------------------------------------


@pytest.fixture
def second(tmp_path: Path, trained: Path) -> Path:
    """Another finished run of the same base and data."""
    folder = tmp_path / "runs" / "second"
    folder.mkdir()
    tiny.make(folder / "model", "llama", seed=2)
    shutil.copy(trained / "metrics.jsonl", folder / "metrics.jsonl")
    manifest = json.loads((trained / "run.json").read_text())
    manifest["config"]["seed"] = 1  # another order of the same rows
    (folder / "run.json").write_text(json.dumps(manifest))
    return folder


def test_two_trained_models_stand_on_one_page(
    run: Run, model: Path, trained: Path, second: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    asked: list[int] = []
    turns = ["2 + 2 = 5\n#### 5", "2 + 2 = 4\n#### 4", "#### 6"]
    monkeypatch.setattr(Rendering, "text", lambda *_: (asked.append(1), turns[(len(asked) - 1) // 8])[1])
    done = compare(run, model, trained, data, "--trained-model", second)
    assert done.returncode == 0, done.stderr
    made = json.loads(Path("comparison/model_comparison.json").read_text())
    assert (made["schema"], made["correction"]) == (2, {"method": "holm", "tests": 2, "level": 0.05})
    assert [each["trained"]["model"] for each in made["comparisons"]] == [str(trained), str(second)]
    ps = [each["paired"]["p"] for each in made["comparisons"]]
    assert [each["paired"]["p_holm"] for each in made["comparisons"]] == holm(ps)
    assert "1 mine" in done.stdout
    assert "each p is corrected for 2 tests by Holm's method" in done.stdout
    names = (str(trained.parent), str(data))
    assert [
        line for line in done.stdout.splitlines() if len(line) > 80 and not any(map(line.__contains__, names))
    ] == []
    read = Read(Path("comparison/report.html").read_text())
    for part in ("p, corrected", "mine", "second", "arithmetic slip", "Loss (nats per target)", "Base against"):
        assert part in read.words, part
    assert f"--trained-model {trained} --trained-model {second}" in " ".join(read.words.split())
    assert "model_card.md" not in done.stdout
    assert not (trained / "model_comparison.json").exists()
    # One alone finds the answers of both where they are.
    assert [len(list(folder.glob("logs/eval-*"))) for folder in (trained, second, Path("."))] == [2, 1, 0]
    monkeypatch.setattr(Rendering, "text", lambda *_: "#### 4")
    alone = json.loads(compare(run, model, trained, data, "--json").stdout)
    assert (alone["schema"], alone["base"]["reused"], alone["trained"]["reused"]) == (1, 8, 8)
    assert {"base", "trained", "paired"} <= set(alone)
    # The files of one alone are not left beside those of several that say otherwise.
    alone["paired"] |= {"p": 1e-9, "won": 8, "lost": 0}
    (trained / "model_comparison.json").write_text(json.dumps(alone))
    shutil.copy(trained / "model_card.md", "comparison/model_card.md")
    done = compare(run, model, trained, data, "--trained-model", second)
    said = " ".join(done.stdout.split())
    assert "removed comparison/model_card.md, which was of the comparison that is replaced" in said
    assert not Path("comparison/model_card.md").exists()
    assert f"{trained}/model_card.md says otherwise, of an earlier comparison: The trained model is better" in said
    assert f"compare --trained-model {trained} --data {data} writes it anew" in said


def test_several_share_the_time_there_is_and_its_problems(
    run: Run, model: Path, trained: Path, second: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base answers 5, the next 4, and the last, which has time for all, is asked those."""
    fits, left = iter((5, 4, 8)), []

    def in_time(problems: list[Problem], limit: Limit, ask: Callable[..., float]) -> int:
        left.append(limit.left)
        count = min(next(fits), limit.most or 8)
        ask(problems[:count], lambda *_: None)
        return count

    monkeypatch.setattr("verbs.evaluate.answer_in_time", in_time)
    done = compare(run, model, trained, data, "--trained-model", second, "--max-time", "2h", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    sides = [found["base"], *(one["trained"] for one in found["comparisons"])]
    assert [each["n"] for each in sides] == [4, 4, 4]
    assert "a random sample" in done.stderr
    shares = [round(each / 7200, 1) for each in left]  # hardly any of it is used here
    assert shares == [0.3, 0.5, 1.0]


def test_what_cannot_stand_on_one_page_is_one_line(
    run: Run, model: Path, trained: Path, second: Path, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path / "runs/copy")
    shutil.copytree(second, tmp_path / "runs/elsewhere")
    manifest = json.loads((second / "run.json").read_text())
    manifest["data"]["name"] = "generated"
    (tmp_path / "runs/elsewhere/run.json").write_text(json.dumps(manifest))
    other = tmp_path / "runs/elsewhere"
    for seed, name in enumerate(("made", "made-1")):  # generated with other seeds: other problems
        tiny.make(tmp_path / "runs" / name / "model", "llama", seed=5 + seed)
        manifest["config"]["seed"] = seed
        (tmp_path / "runs" / name / "run.json").write_text(json.dumps(manifest))
    for more, said in (
        ([trained], "is given twice; give each model once"),
        ([f"{trained}/"], "is given twice; give each model once"),
        ([tmp_path / "runs/copy"], "are the same model, file by file; leave one of them out"),
        ([other], "were not trained on the same data; add --data to say which problems"),
        ([tmp_path / "runs/made", tmp_path / "runs/made-1"], "were not trained on the same data; add --data"),
        ([f"m{n}" for n in range(6)], "a page takes 6 trained models, and 7 were given"),
    ):
        first = [] if "made" in str(more[0]) else [trained]
        flags = [word for each in (*first, *more) for word in ("--trained-model", each)]
        done = run("compare", "--base-model", model, *flags, *PLACE)
        assert done.returncode == 2
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_no_comparison_takes_the_place_of_another_runs(
    run: Run, model: Path, trained: Path, second: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """runs, the page and the card would show it as that run's own."""
    shutil.copytree(trained / "model", trained / "best")
    for more, folder in (
        ((trained,), second),
        ((trained / "best",), trained),
        ((trained / "model", second), trained),
        ((second / "model", trained), "."),
    ):
        flags = [word for each in more for word in ("--trained-model", each)]
        monkeypatch.chdir(trained if folder == "." else trained.parent)
        done = run("compare", "--base-model", model, *flags, "--data", data, *PLACE, "--output-dir", folder)
        assert done.returncode == 2, done.stdout
        assert f"error: {folder} is a run's folder, and keeps the comparison, page and card of its own" in done.stderr
    assert not list(second.glob("*model*.*"))


def test_runs_of_two_bases_need_to_be_told_one(run: Run, model: Path, other: Path, trained: Path, second: Path) -> None:
    for folder, base in ((trained, model), (second, other)):
        manifest = json.loads((folder / "run.json").read_text())
        source = resolve_model(str(base), lambda line: None)
        manifest["model"] = {"name": str(base), "hash": identity(source)}
        (folder / "run.json").write_text(json.dumps(manifest))
    done = run("compare", "--trained-model", trained, "--trained-model", second, *PLACE)
    assert done.returncode == 2
    assert f"{trained} began with {model} and {second} with {other}; add --base-model MODEL" in done.stderr
