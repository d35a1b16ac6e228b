"""Settings printed and read back, a run repeated by its run.json, and --help in groups."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

import cli
from gsm8k_core.config.groups import regrouped
from gsm8k_core.config.train import GROUPS, TrainConfig, with_profile
from gsm8k_core.tracking.terminal import Terminal
from gsm8k_core.types import UsageError
from verbs import Context, process_clock
from verbs.train.start import refuse_idle

RECIPES = get_args(TrainConfig.model_fields["recipe"].annotation)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main([*arguments, "--print-config"]) == 0
    return capsys.readouterr().out


def test_what_is_printed_is_read_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    given = ["train", "--method", "LoRA", "--system-prompt", "#one: 'two'\nthree", "--max-time", "1h30m", "--seed", "3"]
    text = printed(capsys, *given)
    path = tmp_path / "c.yaml"
    path.write_text(text)
    asked, explicit = cli.parse(given)
    again, same = cli.parse(["train", "--config", str(path)])
    assert same - {"config"} == explicit  # so the profile chooses the same defaults
    assert again.model_copy(update={"config": None}) == asked
    assert "# max_samples: 1500\n" in text
    assert printed(capsys, "train", "--config", str(path)) == text


@pytest.mark.parametrize("verb", ["eval", "generate", "runs"])
def test_every_verb_prints_its_settings(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, verb).splitlines()
    assert all(line.startswith("# ") for line in lines)


def record(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "run.json"
    path.write_text(json.dumps({"schema": 1, "config": config, "versions": {"gsm8k-finetune": "0.9"}, "hashes": {}}))
    return path


def test_a_run_of_grpo_keeps_the_answers_a_problem_that_are_another_recipes_default(tmp_path: Path) -> None:
    asked = TrainConfig(model="m", data="d", recipe="grpo", samples=4)
    first = with_profile(asked, demo=True, explicit={"samples"})
    path = record(tmp_path / "run", first.model_dump(mode="json"))
    config, explicit = cli.parse(["train", "--config", str(path)])
    assert isinstance(config, TrainConfig)
    again = with_profile(config, demo=True, explicit=explicit)
    assert (again.samples, again.sample_temperature, again.learning_rate) == (4, 1.0, first.learning_rate)


@pytest.mark.parametrize("demo", [True, False])
def test_a_run_is_repeated_by_its_record_and_a_flag_wins(demo: bool, tmp_path: Path) -> None:
    asked = TrainConfig(model="m", data="d", output_dir=tmp_path, num_epochs=3, max_samples=1500, verbose=True)
    first = with_profile(asked, demo=demo, explicit={"max_samples"})
    path = record(tmp_path / "run", first.model_dump(mode="json"))
    config, explicit = cli.parse(["train", "--config", str(path), "--seed", "7"])
    assert isinstance(config, TrainConfig)
    again = with_profile(config, demo=not demo, explicit=explicit)
    own = {"config": None, "output_dir": None, "verbose": False, "seed": 7}
    assert again.model_copy(update={"config": None}) == first.model_copy(update=own)
    assert "lora_rank" not in explicit  # which would be refused beside --method full
    by_folder, _ = cli.parse(["train", "--config", str(path.parent)])
    assert isinstance(by_folder, TrainConfig)
    assert by_folder.learning_rate == first.learning_rate


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_of_each_recipe_is_taken_again(recipe: str, tmp_path: Path) -> None:
    asked = TrainConfig.model_validate({"model": "m", "data": "d", "recipe": recipe})
    first = with_profile(asked, demo=False, explicit={"recipe"})
    path = record(tmp_path / "run", first.model_dump(mode="json"))
    config, explicit = cli.parse(["train", "--config", str(path)])
    assert isinstance(config, TrainConfig)
    refuse_idle(config, Context(Terminal(json_only=False), explicit, process_clock()))
    assert with_profile(config, demo=False, explicit=explicit).model_copy(update={"config": None}) == first


@pytest.mark.parametrize(("own", "recipe"), [(own, recipe) for own in RECIPES for recipe in RECIPES if own != recipe])
def test_a_run_is_taken_for_another_recipe_with_what_the_two_have_in_common(
    own: str, recipe: str, tmp_path: Path
) -> None:
    of = {
        "sft": {"gradient_accumulation_steps": 2, "rationales": 9, "schedule": "constant", "lora_dropout": 0.1},
        "rft": {"rounds": "3", "samples": 1, "sample_temperature": 1.2, "mix": "own"},
        "grpo": {"kl": 0.1, "samples": 16, "clip": "0.1,0.1", "prompts_per_update": 8},
    }
    common = {"model": "m", "data": "d", "max_samples": 77, "seed": 3, "method": "lora"}
    asked = TrainConfig.model_validate({**common, **of[own], "recipe": own})
    first = with_profile(asked, demo=False, explicit={*common, *of[own]})
    path = record(tmp_path / "run", first.model_dump(mode="json"))
    config, explicit = cli.parse(["train", "--config", str(path), "--recipe", own, "--recipe", recipe])
    assert isinstance(config, TrainConfig)
    refuse_idle(config, Context(Terminal(json_only=False), explicit, process_clock()))
    again = with_profile(config, demo=True, explicit=explicit)
    assert {name: getattr(again, name) for name in common} == common
    assert again.lora_dropout == (first.lora_dropout if recipe != "grpo" else 0)
    plain = with_profile(TrainConfig.model_validate({"recipe": recipe, "method": "lora"}), demo=False, explicit=())
    assert (again.recipe, again.learning_rate, again.samples) == (recipe, plain.learning_rate, plain.samples)


@pytest.mark.parametrize(
    ("given", "shown", "hidden"),
    [
        ("", ("max_samples: 1500", "learning_rate: 3.0e-05"), ("samples", "keep", "kl")),
        ("--recipe rft", ("samples: 4", "rounds: auto"), ("kl", "prompts_per_update")),
        ("--recipe grpo", ("samples: 8", "learning_rate: 1.0e-06"), ("keep", "schedule", "rationales", "drop_long")),
        ("--method lora", ("learning_rate: 0.0003",), ()),
        ("--model embedded", ("max_samples: 400", "max_time: 10m"), ()),
        ("--profile demo", ("num_epochs: 1",), ()),
    ],
)
def test_the_defaults_that_are_printed_are_those_of_the_run(
    given: str, shown: tuple[str, ...], hidden: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed(capsys, "train", *given.split()).splitlines()
    assert {f"# {line}" for line in shown} <= set(lines)
    assert not [line for line in lines if line.startswith(tuple(f"# {name}:" for name in hidden))]


def test_a_secret_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert "sesame" not in printed(capsys, "serve", "--api-key", "sesame")


def test_what_cannot_be_repeated_is_refused_in_one_line(tmp_path: Path) -> None:
    older = record(tmp_path / "older", {"model": "m", "ngram": 2})
    bad = record(tmp_path / "bad", {"num_epochs": 0})
    empty = tmp_path / "run.json"
    empty.write_text("{}")
    for verb, path, says in (
        ("train", older, "is of another version (0.9): there is no setting 'ngram' here"),
        ("train", bad, "num_epochs must be greater than"),
        ("train", empty, "holds no settings of a run"),
        ("train", tmp_path / "gone" / "run.json", "has no run.json"),
        ("eval", older, "a run's settings are train's"),
    ):
        with pytest.raises(UsageError) as caught:
            cli.parse([verb, "--config", str(path)])
        assert says in str(caught.value).replace("should be", "must be"), str(caught.value)
        assert "\n" not in str(caught.value)


# --- --help ---------------------------------------------------------------------------------------------------


BOX = "╭─ options ──────────────────╮"
FRAMES = {
    "box": [BOX, "│ -h, --help   this          │", "│ --model X                  │", "│              which one     │"],
    "plain": [" options                      ", " -----", "  -h, --help   this", "  --model X", "               which"],
}


@pytest.mark.parametrize("frame", FRAMES)
def test_a_box_is_cut_into_one_a_group(frame: str) -> None:
    below = ["╰────────────────────────────╯", "more"] if frame == "box" else [""]
    text = "\n".join(["usage", *FRAMES[frame], *below])
    lines = regrouped(text, [("a heading that is longer", ["--model"]), ("x", ["--gone"])]).splitlines()
    at = [
        next(n for n, line in enumerate(lines) if word in line)
        for word in ("heading", "--model", "which", "other", "-h")
    ]
    assert at == sorted(at)
    assert lines[0] == "usage"
    assert (lines[-1] == "more") == (frame == "box")  # what stands behind the box stays there
    assert len({len(line) for line in lines if line.startswith(("╭", "╰"))}) <= 1


def test_help_is_in_groups_the_five_that_matter_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.strip() for line in lines if line.strip() in dict(GROUPS)] == [heading for heading, _ in GROUPS]
    flags = [line.split()[0].rstrip(",") for line in lines if line.startswith("  -")]
    assert flags[:5] == ["--model", "--data", "--max-time", "--method", "--output-dir"]
    known = {"--" + name.rstrip("_").replace("_", "-") for name in TrainConfig.model_fields}
    assert sorted(flags) == sorted(known - {"--verbose"} | {"-h", "-v"})  # each once, none lost


def test_the_groups_name_settings_that_there_are() -> None:
    named = [name for _, names in GROUPS for name in names]
    assert len(named) == len(set(named))
    assert set(named) == set(TrainConfig.model_fields)


def test_a_text_in_another_frame_stays_as_it_is() -> None:
    assert regrouped("usage\n- options ----\n  --model X\n", GROUPS) == "usage\n- options ----\n  --model X\n"
