"""Settings: defaults, checks, profiles, flags and files."""

from __future__ import annotations

from pathlib import Path

import pytest

import cli
from gsm8k_core.config import DEMO_PROFILE, TrainConfig, parse_duration, with_profile
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
    assert (config.output_dir, config.save_steps, config.no_wandb) == (Path("out"), 50, True)
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
        ("train --max-samples x", "Error parsing --max-samples"),
        ("train --max-samples -2", "--max-samples must be greater than zero, or -1 for all (got -2)"),
        ("train --dtype float16", "invalid choice 'float16'"),
        ("train --max-time soon", "--max-time"),
        ("train --learning-rate nan", "--learning-rate"),
        ("trian", "there is no verb 'trian' (there are train"),
        ("eval --max-samples", "Missing value for argument '--max-samples'"),
        ("train surplus", "surplus"),
    ],
)
def test_a_bad_line_is_one_clear_line(line: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max_sampels: 3", "there is no setting 'max_sampels'; did you mean max_samples?"),
        ("max_samples: many", "--max-samples"),
        ("- 1", "must hold keys and values"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_bad_file_is_one_clear_line(text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert cli.main(["train", "--config", str(tmp_path / "c.yaml")]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(("text", "seconds"), [("7200", 7200), ("90s", 90), ("1.5h", 5400), ("10m", 600)])
def test_a_time_is_seconds_or_has_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "-1", "1e3", "9" * 20, "2 h 5"])
def test_another_text_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="a number of seconds"):
        parse_duration(text)


def test_settings_cannot_be_changed_or_made_up() -> None:
    with pytest.raises(UsageError, match="there is no setting 'learning_rat'"):
        TrainConfig(learning_rat=1)
