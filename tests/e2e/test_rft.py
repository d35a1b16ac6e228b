"""`train --recipe rft` on sums that a tiny model can learn: what it keeps, how its rounds go on, and kills anywhere."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import backends
import cli
from gsm8k_core.problems.batching import pad
from gsm8k_core.problems.data import carve_dev, read_jsonl
from gsm8k_core.rollouts.record import Appender, Rollout
from gsm8k_core.scoring.calculator import Calculator
from gsm8k_core.training import checkpoints, runs
from gsm8k_core.types import IGNORE_INDEX, Example
from tests import tiny
from tests.apples import write_problems
from tests.e2e import faulty_rank
from tests.e2e.conftest import Run
from tests.e2e.sums import BOTH, COMMON, LONGEST, QUICKEST, Finished
from tests.e2e.sums import data as data
from tests.e2e.sums import model as model
from tests.e2e.test_segments import float16_everywhere as float16_everywhere
from tests.e2e.test_segments import heavy, loud, spoil
from tests.launched import are_gone, launch
from tests.waiting import CEILING, wait_for
from verbs.runs import describe
from verbs.train import rounds, sampler, segment, verb

RATIONALES, SAMPLES, KEEP = 30, 3, 2
SETTINGS = (
    f"{COMMON} --recipe rft --batch-size 16 --gradient-accumulation-steps 1 --learning-rate 5e-3 --rounds 2 "
    f"--warm-start on --sample-temperature 1 --sample-max-new-tokens {LONGEST} --samples {SAMPLES} --keep {KEEP} "
    f"--rationales {RATIONALES}"
).split()


class Trained(Finished):
    """One of --recipe rft."""

    def lines(self, number: int, name: str = "records") -> list[dict[str, Any]]:
        path = self.folder / f"rollouts/round-{number}/{name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]


Start = Callable[..., Trained]


def train(model: Path, data: Path, folder: Path, *flags: str) -> Trained:
    arguments = ["train", *SETTINGS, "--model", str(model), "--data", str(data), "--output-dir", str(folder), *flags]
    assert cli.main(arguments) == 0
    return Trained(folder)


@pytest.fixture(scope="module")
def learned(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run long enough to learn something."""
    folder = tmp_path_factory.mktemp("rft") / "learned"
    return train(model, data, folder, "--backend", QUICKEST, "--num-epochs", "40", "--save-steps", "0")


# --- what is kept ---------------------------------------------------------------------------------------------

UNIT = "(?: [a-z]+)?"  # 2 apples + 3 = 5
STEP = re.compile(rf"(\d+{UNIT}(?: [-+*/] \d+{UNIT})+) = (\d+)")


def value(expression: str) -> float:
    """From left to right, products first: a second reading, with nothing of the product's."""
    words = [word for word in expression.split() if not word.isalpha()]
    terms, sign = [0.0], 1
    for place, word in enumerate(words):
        if word in "+-":
            sign = 1 if word == "+" else -1
        elif word.isdigit():
            before = words[place - 1] if place else "+"
            if before == "*":
                terms[-1] *= int(word)
            elif before == "/":
                terms[-1] /= int(word)
            else:
                terms.append(sign * int(word))
    return sum(terms)


def is_right(row: dict[str, Any], end_id: int) -> bool:
    """Whether an answer may be trained on, by a check of this file's own."""
    steps, _, after = row["completion"].partition("####")
    found = STEP.findall(row["completion"])
    return (
        row["end_token"] == end_id
        and after.replace("####", "").split() == [row["gold"]]  # `#### #### 5` is one line, too
        and bool(found)
        and all(value(expression) == int(stated) for expression, stated in found)
        and steps != ""
    )


def test_the_second_check_can_fail() -> None:
    row = {"completion": "2 + 3 = 5 #### 5", "gold": "5", "end_token": tiny.END_ID}
    assert is_right(row, tiny.END_ID)
    for change in (
        {"completion": "2 + 3 = 6 #### 5"},
        {"completion": "2 + 3 = 5 #### 6"},
        {"completion": "#### 5"},
        {"completion": "2 + 3 = 5 #### 5 #### 5"},
        {"completion": "2 each + 3 more = 6 #### 5"},
        {"end_token": None},
    ):
        assert not is_right(row | change, tiny.END_ID), change


@pytest.mark.parametrize("number", [1, 2])
def test_every_kept_answer_is_right_by_a_second_check(learned: Trained, number: int) -> None:
    records = {(row["id"], row["sample"]): row for before in range(1, number + 1) for row in learned.lines(before)}
    kept = learned.lines(number, "selected")
    assert kept
    assert all(is_right(records[row["id"], row["sample"]], tiny.END_ID) for row in kept)
    wrong = [row for row in records.values() if not is_right(row, tiny.END_ID)]
    assert len(wrong) > 20  # else nothing was there to be refused


@pytest.mark.parametrize("number", [1, 2])
def test_at_most_so_many_are_kept_a_problem_and_none_of_equations_that_are_there(
    learned: Trained, data: Path, number: int
) -> None:
    kept = learned.lines(number, "selected")
    assert max(Counter(row["id"] for row in kept).values()) <= KEEP
    chains = [(row["id"], tuple(row["chain"])) for row in kept]
    assert len(chains) == len(set(chains))
    explained = carve_dev(read_jsonl(data / "train.jsonl", "train"))[0][:RATIONALES]
    human = {problem.id: problem.answer.split(" =")[0].replace(" ", "") for problem in explained}
    assert all(row["chain"] != [human.get(row["id"])] for row in kept)  # both: those are trained as well


def test_waves_ask_every_problem_once_and_then_those_that_lack_chains(learned: Trained, data: Path) -> None:
    asked, dev = carve_dev(read_jsonl(data / "train.jsonl", "train"))
    assert (len(asked), len(dev)) == (80, 4)  # those are never asked
    chains: dict[str, set[tuple[str, ...]]] = {}
    for number in (1, 2):
        rows = learned.lines(number)
        waves = {
            wave: [row for row in rows if row["sample"] == (number - 1) * SAMPLES + wave] for wave in range(SAMPLES)
        }
        assert sum(map(len, waves.values())) == len(rows)
        everybody = {problem.id for problem in asked}
        for wave in range(SAMPLES):
            wanted = everybody if not wave else {name for name in everybody if len(chains.get(name, ())) < KEEP}
            assert Counter(row["id"] for row in waves[wave]) == Counter(wanted)
            for row in waves[wave]:
                if is_right(row, tiny.END_ID):
                    chains.setdefault(row["id"], set()).add(tuple(row["chain"]))


def test_the_second_round_solves_more_than_the_first(learned: Trained) -> None:
    first, second = learned.manifest["rollouts"]
    assert first["of"] == second["of"] == 80
    assert second["rate"] > first["rate"]
    assert second["interval"][0] > 0.1


def test_what_run_json_counts_is_what_the_records_hold(learned: Trained) -> None:
    manifest = learned.manifest
    selected = learned.lines(2, "selected")
    for counts in manifest["rollouts"]:
        rows = learned.lines(counts["round"])
        then = learned.lines(counts["round"], "selected")  # a later round may keep another of the same equations
        ours = [row for row in then if row["sample"] // SAMPLES == counts["round"] - 1]
        right = [row for row in rows if is_right(row, tiny.END_ID)]
        assert (counts["answered"], counts["asked"]) == (len(rows), 80)
        assert counts["verified"] == len(right) == sum(row["verified"] for row in rows)
        assert counts["kept"] == len(ours)
        assert counts["tokens"] == sum(len(row["token_ids"]) for row in rows)
        assert sum(counts["refused"].values()) == len(rows) - len(right)
    assert manifest["trained"]["rows"] == RATIONALES + len(selected)
    assert manifest["trained"]["mix"] == "both"
    assert manifest["rft"]["decisions"]["rounds"] == {"name": "2", "reason": "--rounds 2"}
    assert not list(learned.folder.glob("rollouts/*/checkpoints"))  # their weights have answered


def test_inspect_shows_what_was_kept_and_why_the_rest_was_not(learned: Trained, run: Run, tmp_path: Path) -> None:
    done = run("inspect", "--run", learned.folder, "--show", "9")
    assert done.returncode == 0, done.stderr
    assert "[kept]" in done.stdout
    assert "[wrong number: " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    found = json.loads(run("inspect", "--run", learned.folder, "--json").stdout)
    assert found["rounds"] == learned.manifest["rollouts"]
    shutil.copytree(learned.folder / "rollouts", tmp_path / "rollouts")
    shutil.copy(learned.folder / "run.json", tmp_path)
    (tmp_path / "rollouts/round-1/records.jsonl").write_text("{}\n")
    done = run("inspect", "--run", tmp_path, "--show", "1")
    assert done.returncode == 0, done.stderr
    assert "records.jsonl:1: id " in " ".join(done.stdout.split())
    assert ", round 2, sample " in done.stdout  # the others are shown all the same


# --- going on -------------------------------------------------------------------------------------------------


PLACES = ["answer-70", "round-1-8", "before-train-1", "answer-300", "before-sample-2", "whole-8"]  # in this order


@pytest.fixture(scope="module")
def broken(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A short run, with copies of its folder on the way."""
    folder = tmp_path_factory.mktemp("rft") / "whole"
    trained, answers = Trained(folder), Counter[str]()

    def copy(name: str) -> None:
        trained.killed[name] = folder.with_name(name)
        shutil.copytree(folder, trained.killed[name])

    with pytest.MonkeyPatch.context() as patch:
        append, write, record = Appender.__call__, checkpoints.write, runs.Run.record

        def appended(self: Appender, rollout: Rollout) -> None:
            append(self, rollout)
            answers["all"] += 1
            if answers["all"] in (70, 300):
                copy(f"answer-{answers['all']}")

        def written(path: Path, *arguments: Any, **named: Any) -> Path:
            made = write(path, *arguments, **named)
            if named["update"] == 8 and path.parent.name != "warm":
                copy(f"{path.parent.name}-8")
            return made

        def recorded(self: runs.Run, **values: Any) -> None:
            done = values.get("rft", {}).get("done", ())
            if done[-1:] in (["train-1"], ["sample-2"]) and done != self.manifest["rft"]["done"]:
                copy(f"before-{done[-1]}")  # what it made is there, and not noted
            record(self, **values)

        patch.setattr(Appender, "__call__", appended)
        patch.setattr(segment, "write", written)
        patch.setattr(runs.Run, "record", recorded)
        train(model, data, folder, "--backend", QUICKEST, "--num-epochs", "15", "--save-steps", "8")
    assert list(trained.killed) == PLACES
    return trained


def texts(trained: Trained) -> list[list[dict[str, Any]]]:
    return [[{**row, "seconds": 0} for row in trained.lines(number)] for number in (1, 2)]


@pytest.mark.parametrize("place", PLACES)
def test_killed_anywhere_it_comes_to_the_same_rows_and_the_same_model(
    broken: Trained, tmp_path: Path, place: str
) -> None:
    again = Trained(tmp_path / place)
    shutil.copytree(broken.killed[place], again.folder)
    assert cli.main(["train", "--resume", str(again.folder)]) == 0
    assert again.manifest["status"] == "done"
    assert texts(again) == texts(broken)
    assert again.manifest["trained"] == broken.manifest["trained"]
    ours, theirs = again.weights, broken.weights
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    events = [json.loads(line) for line in (again.folder / "metrics.jsonl").read_text().splitlines()]
    updates = [event["update"] for event in events if event["event"] == "update"]
    assert updates == list(range(1, len(updates) + 1))


@BOTH
@pytest.mark.parametrize("place", ["before-train-1", "whole-8"])
def test_a_run_goes_on_with_the_other_backend(broken: Trained, tmp_path: Path, place: str) -> None:
    """To answer with what the first one trained, and in the middle of the last training."""
    folder = tmp_path / "moved"
    shutil.copytree(broken.killed[place], folder)
    assert cli.main(["train", "--resume", str(folder), "--backend", "torch", "--device", "cpu"]) == 0
    again = Trained(folder)
    assert again.manifest["status"] == "done"
    assert len(again.manifest["rollouts"]) == 2
    kept = again.lines(2, "selected")
    records = {(row["id"], row["sample"]): row for number in (1, 2) for row in again.lines(number)}
    assert all(is_right(records[row["id"], row["sample"]], tiny.END_ID) for row in kept)


def test_a_signal_while_the_model_answers_stops_the_run_and_it_goes_on(
    broken: Trained, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, answers, append = tmp_path / "stopped", [0], Appender.__call__
    shutil.copytree(broken.killed["answer-70"], folder)

    def counted(self: Appender, rollout: Rollout) -> None:
        append(self, rollout)
        answers[0] += 1

    @contextmanager
    def signalled(last: object, is_drawn: object) -> Iterator[Callable[[], bool]]:
        yield lambda: answers[0] >= 20

    with monkeypatch.context() as patch:
        patch.setattr(Appender, "__call__", counted)
        patch.setattr(verb, "stopping", signalled)
        done = run("train", "--resume", folder)
    assert done.returncode == 75, done.stderr
    assert f"train --resume {folder}" in done.stdout
    stopped = Trained(folder)
    assert (stopped.manifest["status"], stopped.manifest["outcome"]["reason"]) == ("stopped", "interrupted")
    assert len(stopped.lines(1)) == 64 + 20  # a whole block, and what had ended of the next one
    listed = describe(folder)
    assert (listed["place"], listed["phase"]) == ("sample-1", "warm")
    assert listed["seconds"] >= stopped.lines(1)[-1]["seconds"] > 0
    assert run("train", "--resume", folder).returncode == 0
    assert texts(stopped) == texts(broken)


def test_two_processes_come_to_the_same_rows(broken: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one goes on: a signal comes in round 2, by the weights of a training in between, in its second block."""
    again = Trained(tmp_path / "again")
    shutil.copytree(broken.killed["answer-300"], again.folder)
    monkeypatch.setenv("LAUNCHED_BY", str(os.getpid()))
    monkeypatch.setenv("FAULTS", "2:stop")
    resume = ["train", "--resume", str(again.folder)]
    said = launch(QUICKEST, 2, [faulty_rank.__file__, *resume], tmp_path).communicate(timeout=CEILING)
    wait_for(lambda: are_gone(str(again.folder)))
    assert (again.manifest["status"], again.manifest["outcome"]["reason"]) == ("stopped", "interrupted"), said
    assert len(Trained(broken.killed["answer-300"]).lines(2)) < len(again.lines(2)) < len(broken.lines(2))

    def by_ask(number: int, name: str, trained: Trained) -> dict[Any, Any]:
        return {(row["id"], row["sample"]): {**row, "seconds": 0} for row in trained.lines(number, name)}

    shared = by_ask(2, "records", again)
    assert cli.main(resume) == 0
    for each in ((1, "records"), (2, "records"), (1, "selected"), (2, "selected")):
        assert by_ask(*each, again) == by_ask(*each, broken)
    assert shared.items() <= by_ask(2, "records", broken).items()
    assert again.manifest["trained"] == broken.manifest["trained"]  # the hash of all rows, and how many are its own
    assert all(np.array_equal(again.weights[name], value) for name, value in broken.weights.items())


def test_a_base_that_is_often_right_learns_from_itself_and_keeps_its_first_answers(
    learned: Trained, data: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*SETTINGS, "--num-epochs", "1", "--save-steps", "0", "--backend", "torch", "--data", str(data)]
    flags += ["--model", str(learned.folder / "model"), "--warm-start", "auto", "--rounds", "1"]
    append, answers, copies = Appender.__call__, [0], [tmp_path / "at-30", tmp_path / "at-100"]

    def appended(self: Appender, rollout: Rollout) -> None:
        append(self, rollout)
        answers[0] += 1
        if answers[0] in (30, 100):
            shutil.copytree(tmp_path / "own", copies[answers[0] == 100])

    with monkeypatch.context() as patch:
        patch.setattr(Appender, "__call__", appended)
        done = run("train", *flags, "--output-dir", tmp_path / "own")
    assert done.returncode == 0, done.stderr
    own = Trained(tmp_path / "own")
    assert own.manifest["rft"]["decisions"]["warm"]["name"] == "off"
    assert own.manifest["trained"]["mix"] == "own-first"
    assert sorted(path.name for path in own.folder.glob("rollouts/*")) == ["round-1"]
    rows = own.lines(1)
    assert {row["id"] for row in rows[:64]} < {row["id"] for row in rows if row["sample"] == 0}
    kept = own.lines(1, "selected")
    human = [each.id for each in carve_dev(read_jsonl(data / "train.jsonl", "train"))[0][:RATIONALES]]
    missing = set(human) - {row["id"] for row in kept}
    assert own.manifest["trained"]["rows"] == len(kept) + len(missing)
    assert own.manifest["rollouts"][0]["seconds"] > 0
    for copy in copies:
        again = Trained(copy)
        assert run("train", "--resume", copy).returncode == 0
        assert [{**row, "seconds": 0} for row in again.lines(1)] == [{**row, "seconds": 0} for row in rows]
        assert again.manifest["trained"] == own.manifest["trained"]
        assert all(np.array_equal(again.weights[name], own.weights[name]) for name in own.weights)


def test_answers_of_other_weights_are_refused(broken: Trained, tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "other"
    shutil.copytree(broken.killed["answer-300"], folder)
    path = folder / "rollouts/round-2/key.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weights": "0" * 64}))
    done = run("train", "--resume", folder)
    assert done.returncode == 4
    assert "holds answers of other weights" in done.stderr


GONE: list[tuple[str, Callable[[Path], object], str]] = [
    ("records.jsonl", Path.unlink, r"records\.jsonl: 0 of \d+ answers are there; bring the file back"),
    ("records.jsonl", lambda path: path.write_bytes(path.read_bytes()[:-9]), r"\d+ of \d+ answers are there; bring"),
    ("key.json", Path.unlink, r"key\.json is gone; bring the file back, or start a new run"),
    ("key.json", lambda path: path.write_text("{}"), r"key\.json: .*; bring the file back, or start a new run"),
    (
        "key.json",
        lambda path: path.write_text(path.read_text().replace('"seed": 0', '"seed": 1')),
        "holds answers of other seed; bring the file back",
    ),
]


@pytest.mark.parametrize(("name", "damage", "said"), GONE)
def test_a_round_that_is_done_and_not_whole_is_refused(
    broken: Trained, tmp_path: Path, run: Run, name: str, damage: Callable[[Path], object], said: str
) -> None:
    """And not taken for a round in which nothing was kept."""
    folder = tmp_path / "short"
    shutil.copytree(broken.killed["round-1-8"], folder)
    damage(folder / "rollouts/round-1" / name)
    done = run("train", "--resume", folder)
    assert done.returncode == 4, done.stderr
    assert re.search(said, done.stderr), done.stderr


# --- what is asked --------------------------------------------------------------------------------------------


def test_a_flag_of_rft_alone_is_refused_with_sft(run: Run, model: Path, data: Path) -> None:
    done = run("train", "--model", model, "--data", data, "--samples", "8")
    assert done.returncode == 2
    assert "--samples is for a model's own answers; add --recipe rft or grpo, or leave it out" in done.stderr


def test_a_run_without_own_answers_is_refused_by_inspect(run: Run, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    done = run("inspect", "--run", tmp_path)
    assert done.returncode == 2
    assert "train --recipe rft" in done.stderr


def test_where_sampling_cannot_pay_the_warm_start_goes_on(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    """Two passes teach a tiny model nothing that is verified."""
    folder = tmp_path / "weak"
    asked = ("--model", model, "--data", data, "--output-dir", folder, "--backend", "torch", "--num-epochs", "1")
    done = run("train", *SETTINGS, *asked)
    assert done.returncode == 0, done.stderr
    assert "rft cannot pay here" in done.stdout
    assert len((folder / "rollouts/round-1/records.jsonl").read_text().splitlines()) == 64  # no more is asked then
    manifest = json.loads((folder / "run.json").read_text())
    assert manifest["rft"]["decisions"]["pays"]["name"] == "no"
    assert (manifest["trained"]["rows"], manifest["trained"]["own"]) == (RATIONALES, 0)
    assert "human answers alone, on from the warm start" in done.stdout
    assert manifest["outcome"]["reason"] == "done"
    assert load_file(folder / "model/model.safetensors")


def test_a_warm_start_without_time_is_passed_over_and_made_up_for_with_more(
    run: Run, model: Path, data: Path, tmp_path: Path
) -> None:
    """Its share of the time holds no update; the last training, which has all that is left, does some."""
    asked = ("--model", model, "--data", data, "--output-dir", tmp_path / "hasty", "--backend", "torch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "end_of", lambda phase, number, warm, now, end: now if phase.kind == "warm" else end)
        done = run("train", *SETTINGS, *asked, "--num-epochs", "1", "--samples", "1")
    assert done.returncode == 0, done.stderr
    assert re.search(r"warm     passed over: no update has time until [0-9][^.]* of the run", done.stdout)
    manifest = json.loads((tmp_path / "hasty/run.json").read_text())
    assert manifest["rft"]["updates"]["warm"] == 0
    assert manifest["rft"]["decisions"]["pays"]["name"] == "open"
    assert manifest["outcome"]["updates"] == 2
    done = run("train", "--resume", tmp_path / "hasty", "--max-time", "17h")  # not twice as much
    assert "nothing is left to do" in done.stdout
    done = run("train", "--resume", tmp_path / "hasty", "--max-time", "18h")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "hasty/run.json").read_text())
    assert manifest["rft"]["updates"]["warm"] == 2
    assert manifest["rft"]["decisions"]["pays"]["name"] == "no"  # which this tiny model now says for itself
    assert manifest["outcome"] | {"updates": 2, "reason": "done"} == manifest["outcome"]


class Spaced(Calculator):
    """The calculator for a tokenizer that has blanks between all words."""

    def __init__(
        self, encode: Callable[[Sequence[str]], Sequence[Sequence[int]]], decode: Callable[[Sequence[int]], str]
    ) -> None:
        self._encode, self._decode = encode, decode

    def __call__(self, tokens: Sequence[int]) -> Sequence[int]:
        found = re.search(r"<< (\d+(?: [-+*] \d+)*) =$", self._decode(tokens))
        return self._encode([f"{value(found[1]):.0f} >>"])[0] if found else ()


def test_the_calculator_writes_results_that_are_read_and_not_trained(run: Run, model: Path, tmp_path: Path) -> None:
    rows = [
        {
            "question": f"Tom has {a} apples and buys {b} more .",
            "answer": f"<< {a} + {b} = {a + b} >> {a + b}\n#### {a + b}",
        }
        for a in range(2, 9)
        for b in range(2, 11 - a)
    ]
    (tmp_path / "marked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trained, own_row = list[Example](), rounds.own_row
    asked = ("--model", model, "--data", tmp_path / "marked.jsonl", "--output-dir", tmp_path / "marked")
    with pytest.MonkeyPatch.context() as patch:

        def made(rollout: Rollout, prompt: Sequence[int]) -> Example:
            trained.append(own_row(rollout, prompt))
            return trained[-1]

        patch.setattr(rounds, "own_row", made)
        patch.setattr(sampler, "Calculator", Spaced)
        flags = ("--backend", "torch", "--num-epochs", "40", "--rounds", "1", "--mix", "own", "--rationales", "12")
        done = run("train", *SETTINGS, *asked, *flags)
    assert done.returncode == 0, done.stderr
    marked = Trained(tmp_path / "marked")
    assert marked.manifest["rft"]["decisions"]["calculator"]["name"] == "on"
    assert marked.manifest["rollouts"][0]["forced_tokens"] > 0
    wrong = 0
    for row in marked.lines(1):
        for expression, stated in re.findall(r"<< (\d+(?: [-+*] \d+)*) = (\d+) >>", row["completion"]):
            wrong += value(expression) != int(stated)
    assert wrong == 0
    forced = [row for row in trained if row.forced]
    assert forced
    for row in forced:
        labels = pad([row]).labels[0]
        assert (labels[list(row.forced)] == IGNORE_INDEX).all()
        assert (labels[row.num_prompt : len(row.tokens)] != IGNORE_INDEX).sum() == row.num_targets
        assert row.tokens[-1] == tiny.END_ID


def test_a_tokenizer_that_cannot_write_results_leaves_the_calculator_off(
    run: Run, model: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "marked.jsonl").write_text(
        (data / "train.jsonl").read_text().replace('"answer": "', '"answer": "<< 2 + 3 = 5 >> ')
    )
    asked = ("--model", model, "--data", "marked.jsonl", "--output-dir", tmp_path / "off", "--backend", "torch")
    done = run("train", *SETTINGS, *asked, "--num-epochs", "1")
    assert done.returncode == 0, done.stderr
    assert "calculator off: this tokenizer cannot write" in done.stdout
    done = run("train", *SETTINGS, *asked[:-3], tmp_path / "on", "--num-epochs", "1", "--calculator", "on")
    assert done.returncode == 2
    assert "--calculator on: this tokenizer cannot write" in done.stderr


@pytest.mark.skipif(not backends.installed("mlx"), reason="float16 is mlx's")
def test_what_one_phase_found_too_narrow_no_later_one_begins_in(
    run: Run,
    model: Path,
    data: Path,
    tmp_path: Path,
    float16_everywhere: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first update of each training has no room in float16; the run is stopped behind the warm start."""
    spoil(monkeypatch, heavy(1))
    folder, again = tmp_path / "run", "in float32, at the same rate"

    def stop(self: Any, number: int) -> None:
        raise rounds.Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(rounds.Rounds, "_sample", stop)
        flags = ("--backend", "mlx", "--dtype", "float16", "--num-epochs", "2", "--save-steps", "0")
        began = run("train", *SETTINGS, *flags, "--model", model, "--data", data, "--output-dir", folder)
    assert (began.returncode, began.stdout.count(again)) == (75, 1), began.stderr
    assert Trained(folder).manifest["choices"]["dtype"]["name"] == "float32"
    done = run("train", "--resume", folder)
    assert (done.returncode, done.stdout.count(again)) == (0, 0), done.stderr


@pytest.mark.skipif(not backends.installed("mlx"), reason="float16 is mlx's")
def test_a_base_whose_answers_float16_has_no_room_for_samples_in_float32(
    run: Run, tmp_path: Path, float16_everywhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, bool]] = []

    def stop(self: Any, number: int) -> None:
        seen.append((self.model.choices["dtype"].name, self.model.plan is not None))
        raise rounds.Interrupted

    monkeypatch.setattr(rounds.Rounds, "_sample", stop)
    files = ("--model", loud(tmp_path / "loud"), "--data", write_problems(tmp_path / "data", 25, 25))
    flags = ("--backend", "mlx", "--dtype", "float16", "--warm-start", "off", "--max-samples", "8")
    done = run("train", *SETTINGS, *flags, *files, "--output-dir", tmp_path / "run")
    assert (done.returncode, done.stdout.count("in float32, at the same rate")) == (75, 1), done.stderr
    assert seen == [("float32", True)]
    assert Trained(tmp_path / "run").manifest["choices"]["dtype"]["name"] == "float32"
