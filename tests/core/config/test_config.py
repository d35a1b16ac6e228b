"""Settings: defaults, checks, profiles, flags and files."""

from __future__ import annotations

import contextlib
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

import cli
import gsm8k_core
from gsm8k_core.config import brought
from gsm8k_core.config.fields import parse_duration
from gsm8k_core.config.score import EvalConfig
from gsm8k_core.config.train import DEMO_PROFILE, TrainConfig, with_profile
from gsm8k_core.training.runs import versions
from gsm8k_core.types import UsageError


def test_the_original_projects_flags_work_verbatim() -> None:
    line = (
        "train --model m --max-samples 100 --batch-size 2 --gradient-accumulation-steps 16 --num-epochs 1 "
        "--learning-rate 1e-5 --max-length 256 --max-time 3600 --output-dir out --save-steps 50 --no-wandb"
    )
    config, explicit = cli.parse(line.split())
    assert isinstance(config, TrainConfig)
    assert (config.model, config.max_samples, config.update_size, config.num_epochs) == ("m", 100, 32, 1)
    assert (config.learning_rate, config.max_length, config.budget_seconds) == (1e-5, 256, 3600)
    assert (config.output_dir, config.save_every, config.no_wandb) == (Path("out"), 50, True)
    assert len(explicit) == 11


def test_the_defaults_are_the_stated_ones() -> None:
    config = TrainConfig()
    assert (config.max_samples, config.num_epochs, config.learning_rate) == (1500, 3, 3e-5)
    assert (config.update_size, config.max_length, config.budget_seconds) == (32, 512, 7200)
    assert (config.warmup_ratio, config.weight_decay, config.max_grad_norm) == (0.03, 0.0, 1.0)
    assert (config.adam_beta1, config.adam_beta2, config.adam_epsilon) == (0.9, 0.999, 1e-8)


def test_a_flag_wins_over_the_file_and_the_file_over_the_profile(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("max_samples: 7\nnum-epochs: 2\n")
    config, explicit = cli.parse(["train", "--config", str(path), "--num-epochs", "5"])
    assert isinstance(config, TrainConfig)
    assert (config.max_samples, config.num_epochs) == (7, 5)
    demo = with_profile(config, demo=True, explicit=explicit)
    assert (demo.max_samples, demo.num_epochs, demo.learning_rate) == (7, 5, DEMO_PROFILE["learning_rate"])


def test_the_profile_goes_by_the_model_unless_named() -> None:
    assert with_profile(TrainConfig(), demo=True, explicit=()).profile == "demo"
    assert with_profile(TrainConfig(), demo=False, explicit=()).profile == "standard"
    assert with_profile(TrainConfig(profile="standard"), demo=True, explicit=()).max_samples == 1500


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("train --max-sample 3", "no flag --max-sample; did you mean --max-samples?"),
        ("train --lr 1e-4", "no flag --lr; did you mean --learning-rate?"),
        ("train -lr 1e-4", "no flag -lr; did you mean --learning-rate?"),
        ("train --iters 100", "no flag --iters; did you mean --num-epochs?"),
        ("train --epochs 2", "did you mean --num-epochs?"),
        ("train --lora", "did you mean --method lora?"),
        ("train --load_in_4bit", "did you mean --method qlora?"),
        ("train --limit 5", "did you mean --max-samples?"),
        ("eval --limit=5", "did you mean --max-samples?"),
        ("harness --max-samples 5", "did you mean --limit?"),
        ("train --grad-accum 4", "did you mean --gradient-accumulation-steps?"),
        ("train --grad_accum=4", "did you mean --gradient-accumulation-steps?"),
        ("train --per-device-train-batch-size 4", "did you mean --batch-size?"),
        ("train --bs 4", "did you mean --batch-size?"),
        ("eval --bs 4", "did you mean --eval-batch-size?"),
        ("train --bf16", "did you mean --dtype bfloat16?"),
        ("compare --model m", "did you mean --trained-model?"),
        ("train --zebra", "no flag --zebra; python cli.py train --help lists the flags"),
        ("train --max-samples x", "--max-samples must be a whole number (got 'x')"),
        ("train --max-samples -2", "--max-samples must be greater than zero, or -1 for all (got -2)"),
        ("export runs/mine --to onnx", "--to takes 'gguf', 'merged', 'mlx', 'ollama' (got 'onnx')"),
        ("train --dtype float61", "--dtype takes 'auto', 'float32', 'bfloat16', 'float16' (got 'float61')"),
        ("train --max-time soon", "--max-time"),
        ("train --learning-rate nan", "--learning-rate"),
        ("trian", "there is no verb 'trian' (there are train"),
        ("eval --max-samples", "--max-samples needs a value"),
        ("train surplus", "there is no place for surplus"),
        ("train --learning-rate x", "--learning-rate must be a number (got 'x')"),
        ("train --config gone.yaml", "--config gone.yaml cannot be read (No such file or directory)"),
        ("eval --max-samples 3 --all", "give --max-samples or --all, not both"),
        (
            "export runs/mine --to mlx --bits 5",
            "--bits takes '4', '8' (got '5')",
        ),  # wraps at its point
        ("export runs/mine --to gguf --push ''", "--push has nothing as its value; give one, or leave the flag out"),
        ("train --resume=", "--resume has nothing as its value"),
        ("train --output_dir ''", "--output_dir has nothing as its value"),
        ("serve --api-key ''", "--api-key has nothing as its value"),
        ("train --config ''", "--config has nothing as its value"),
    ],
)
def test_a_bad_line_is_one_clear_line(
    line: str, says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(shlex.split(line)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert err.count("\n") == 1


def test_a_files_text_is_taken_back_by_nothing(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("system_prompt: Think hard.\n")
    arguments = ["train", "--config", str(tmp_path / "c.yaml")]
    assert [cli.parse([*arguments, *more])[0].system_prompt for more in ([], ["--system-prompt", ""])] == [
        "Think hard.",
        "",
    ]


def test_a_flag_wins_over_the_trained_models_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("trained_model: [a, b]\n")
    arguments = ["compare", "--config", str(tmp_path / "c.yaml")]
    assert cli.parse(arguments)[0].trained_model == ("a", "b")
    assert cli.parse([*arguments, "--trained-model", "c"])[0].trained_model == ("c",)
    (tmp_path / "c.yaml").write_text("trained_model: a\n")
    assert cli.parse(arguments)[0].trained_model == ("a",)


def test_a_bad_line_is_as_clear_in_the_colours_of_a_terminal() -> None:
    red, off = "\x1b[31m", "\x1b[0m"
    box = f"{red}╭─ {off}Parsing error{red} ─╮{off}\n{red}│{off} --backend: invalid {red}│{off}\n{red}╰──╯{off}"
    assert cli._first_section(box) == "--backend: invalid"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max_sampels: 3", "there is no setting 'max_sampels'; did you mean max_samples?"),
        ("max_samples: many", "c.yaml: max_samples must be a whole number (got 'many')"),
        ("max_samples:", "c.yaml: max_samples must be a whole number (got nothing)"),
        ("max_samples: on", "c.yaml: max_samples must not be true or false (got True)"),
        ("mix: off", "c.yaml: mix must not be true or false (got False)"),
        ("zebra: 1", "there is no setting 'zebra'; python cli.py train --help lists them"),
        ("lr: 1e-4", "there is no setting 'lr'; did you mean learning_rate?"),
        ("use_lora: true", "did you mean method: lora?"),
        ("- 1", "must hold keys and values"),
        ("a: [", "is not YAML (line 1: "),
        ("[" * 3000, "is not YAML"),
    ],
)
def test_a_bad_file_is_one_clear_line(text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert cli.main(["train", "--config", str(tmp_path / "c.yaml")]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_a_file_that_is_not_text_is_said_to_be_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_bytes(b"model: \xff")
    assert cli.main(["train", "--config", str(tmp_path / "c.yaml")]) == 2
    assert "c.yaml is not UTF-8 text; save it as UTF-8" in capsys.readouterr().err


def test_a_flag_stands_against_the_other_way_to_say_it_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("all: true\nseed: 3\n")
    config, _ = cli.parse(["eval", "--config", str(tmp_path / "c.yaml"), "--max-samples", "7"])
    assert isinstance(config, EvalConfig)
    assert (config.num_problems, config.seed) == (7, 3)
    (tmp_path / "c.yaml").write_text("max_samples: 3\n")
    config, _ = cli.parse(["eval", "--config", str(tmp_path / "c.yaml"), "--all"])
    assert isinstance(config, EvalConfig)
    assert config.num_problems is None


@pytest.fixture
def help_of(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], str]:
    """What `help VERB` prints in so many columns."""

    def shown(verb: str, columns: int) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        with contextlib.suppress(SystemExit):
            cli.main(["help", verb] if verb else ["help"])
        return capsys.readouterr().out

    return shown


@pytest.mark.parametrize("verb", ["", *cli.VERBS])
def test_help_fits_in_80_columns_and_names_no_none(verb: str, help_of: Callable[[str, int], str]) -> None:
    out = help_of(verb, 80)
    assert out.startswith(f"usage: python cli.py {verb}")
    assert max(map(len, out.splitlines())) <= 80
    assert "None" not in out
    assert "(default: )" not in out
    assert "''" not in out
    assert not any(line.endswith("-") for line in out.splitlines())  # no word is broken


@pytest.mark.parametrize("verb", ["", "plot"])
def test_help_breaks_no_word_in_40_columns(verb: str, help_of: Callable[[str, int], str]) -> None:
    out = help_of(verb, 40)
    assert [line for line in out.splitlines() if len(line) > 40 and "cli.py" not in line] == []
    assert "loss, rate, gradient norm and dev accuracy of one or many runs." in " ".join(out.split())


def test_help_has_no_colours_where_nobody_wants_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for value, coloured in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", value)
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
        with pytest.raises(SystemExit):
            cli.main(["plot", "--help"])
        assert ("\x1b[" in capsys.readouterr().out) == coloured


@pytest.mark.parametrize("verb", ["eval", "compare", "generate"])
def test_help_says_what_else_the_same_answers_take(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`auto` follows a GPU's free memory, and how many are answered at once can change a text there."""
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "the same seed draws the same answers; on a GPU in half precision only at one --eval-batch-size N" in out


def test_help_names_the_values_of_the_demo_profile(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name, value in DEMO_PROFILE.items():
        assert f"--{name.replace('_', '-')} {value}" in out


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"gsm8k-finetune {gsm8k_core.__version__}\n"


def test_the_version_is_one_everywhere_and_what_it_brought_is_told() -> None:
    root = Path(cli.__file__).parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    (newest, *_) = re.findall(r"^## ([0-9.]+)", (root / "CHANGELOG.md").read_text(), re.M)
    assert project["dynamic"] == ["version"]  # which hatch reads there
    assert newest == gsm8k_core.__version__ == versions()["gsm8k-finetune"]


@pytest.mark.parametrize(("text", "seconds"), [("7200", 7200), ("90s", 90), ("1.5h", 5400), ("10m", 600)])
def test_a_time_is_seconds_or_has_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", " ", "h", "-1", "1e3", "9" * 20, "2 h 5", "30m1h", "1h30", "1d"])
def test_another_text_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="a number of seconds"):
        parse_duration(text)


def test_settings_cannot_be_changed_or_made_up() -> None:
    with pytest.raises(UsageError, match="there is no setting 'learning_rat'"):
        TrainConfig(learning_rat=1)


def test_a_flag_of_train_that_may_stand_alone_has_its_value() -> None:
    for given, name, value in (
        (["--resume"], "resume", "latest"),
        (["--recipe", "rft", "--calculator"], "calculator", "on"),
        (["--recipe", "rft", "--calculator", "off"], "calculator", "off"),
        (["--recipe", "rft", "--calculator", "--seed", "1"], "calculator", "on"),
    ):
        assert getattr(cli.parse(["train", *given])[0], name) == value
    assert cli.parse(["eval", "--model", "embedded", "--calculator"])[0].calculator is True


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("train --dtype bf16", "dtype", "bfloat16"),
        ("train --dtype=FP32", "dtype", "float32"),
        ("eval --dtype fp16", "dtype", "float16"),
        ("train --method LoRA", "method", "lora"),
        ("train --method=QLoRA --backend mlx", "method", "qlora"),
        ("train --max-time 1h30m", "budget_seconds", 5400),
        ("train --max-time 90min", "budget_seconds", 5400),
        ("train --model bf16", "model", "bf16"),  # no choice: a name is left alone
    ],
)
def test_a_value_that_means_one_thing_is_taken_as_people_write_it(line: str, name: str, value: object) -> None:
    assert getattr(cli.parse(line.split())[0], name) == value


def test_a_file_may_spell_its_choices_so_too(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("dtype: bf16\nmethod: LoRA\nmax_time: 1h30m\n")
    config, _ = cli.parse(["train", "--config", str(tmp_path / "c.yaml")])
    assert isinstance(config, TrainConfig)
    assert (config.dtype, config.method, config.budget_seconds) == ("bfloat16", "lora", 5400)


def test_the_words_on_and_off_need_no_quotes_in_a_file(tmp_path: Path) -> None:
    """They are true and false in YAML 1.1."""
    (tmp_path / "c.yaml").write_text("calculator: on\nwarm_start: off\nthinking: On\n")
    config, _ = cli.parse(["train", "--config", str(tmp_path / "c.yaml")])
    assert isinstance(config, TrainConfig)
    assert (config.calculator, config.warm_start, config.thinking) == ("on", "off", "on")


def test_each_name_that_is_offered_is_a_setting_and_each_value_one_of_its_choices() -> None:
    models = [cli._settings(verb) for verb in cli.VERBS]
    for ours in brought._NAMES:
        name, _, value = ours.partition(" ")
        fields = [model.model_fields[name] for model in models if name in model.model_fields]
        assert fields, ours
        assert not value or any(value in get_args(field.annotation) for field in fields), ours
