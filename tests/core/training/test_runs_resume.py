"""Which settings may change on the way, and what is taken from metrics.jsonl before a run goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gsm8k_core.config.train import TrainConfig
from gsm8k_core.training import runs
from gsm8k_core.training.metrics import cut_metrics
from gsm8k_core.training.runs import FIXED, FREE, HARMLESS, check
from gsm8k_core.types import StorageError, UsageError

CLASSES = {"free": FREE, "harmless": HARMLESS, "fixed": FIXED}
BEGAN = TrainConfig()
HASHES = {"model": "a" * 64, "data": "b" * 64, "rows": "c" * 64, "tokenizer": "d" * 64, "prompt": "e" * 64}
# One other value for each setting; a new setting has to be added here and to one class.
OTHER: dict[str, object] = {
    "config": Path("a.yaml"),
    "print_config": True,
    "json_": True,
    "verbose": True,
    "output_dir": Path("b"),
    "resume": "b",
    "force": True,
    "dry_run": True,
    "profile": "demo",
    "backend": "torch",
    "device": "cpu",
    "max_time": "9m",
    "save_steps": 7,
    "save_dtype": "bfloat16",
    "save_total_limit": 9,
    "probe_steps": 3,
    "report_to": "wandb",
    "no_wandb": True,
    "wandb_project": "p",
    "wandb_key_file": Path("k"),
    "dtype": "bfloat16",
    "gradient_checkpointing": True,
    "micro_batch_tokens": "640",
    "batch_size": 8,
    "gradient_accumulation_steps": 4,
    "eval_steps": 5,
    "eval_problems": 5,
    "eval_max_new_tokens": 5,
    "guard_problems": 5,
    "model": "m",
    "data": "d.jsonl",
    "data_config": "socratic",
    "question_column": "query",
    "answer_column": "response",
    "skip_bad_rows": True,
    "seed": 1,
    "max_samples": 9,
    "max_length": 99,
    "annotations": "strip",
    "drop_long": True,
    "num_epochs": 9,
    "learning_rate": 1e-4,
    "warmup_ratio": 0.1,
    "schedule": "constant",
    "weight_decay": 0.1,
    "adam_beta1": 0.8,
    "adam_beta2": 0.8,
    "adam_epsilon": 1e-6,
    "max_grad_norm": 2.0,
    "trainable": "blocks",
    "method": "lora",
    "lora_rank": 8,
    "lora_alpha": 8.0,
    "lora_dropout": 0.1,
    "target_modules": "q_proj",
    "recipe": "rft",
    "samples": 9,
    "sample_temperature": 0.5,
    "sample_max_new_tokens": 99,
    "rounds": "2",
    "keep": 9,
    "mix": "own",
    "warm_start": "on",
    "prompts_per_update": 9,
    "updates_per_rollout": 2,
    "loss": "grpo",
    "clip": "0.1,0.1",
    "kl": 0.1,
    "overlong": "punish",
    "rollout_engine": "vllm",
    "calculator": "off",
    "verify": "gold",
    "rationales": 9,
    "base_model": "base",
    "thinking": "on",
    "chat_template": Path("t.jinja"),
    "system_prompt": "add",
}


def ask(name: str, value: object = None) -> TrainConfig:
    """The config that the run began with, and one other value."""
    return TrainConfig(**{**dict(BEGAN), name: OTHER[name] if value is None else value})


def go_on(asked: TrainConfig, force: bool = False, **now: str) -> tuple[str, ...]:
    return check(BEGAN, asked, HASHES, {**HASHES, **now}, force)


def refusal(asked: TrainConfig, force: bool = False, **now: str) -> str:
    with pytest.raises(UsageError) as caught:
        go_on(asked, force, **now)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", TrainConfig.model_fields)
def test_every_setting_is_in_exactly_one_class(name: str) -> None:
    assert len([kind for kind, names in CLASSES.items() if name in names]) == 1


def test_no_class_names_what_is_no_setting() -> None:
    assert FREE | HARMLESS | FIXED == set(TrainConfig.model_fields) == set(OTHER)


def test_the_same_settings_go_on_without_a_word() -> None:
    assert go_on(BEGAN) == ()


@pytest.mark.parametrize("name", sorted(FREE))
def test_a_free_setting_may_change(name: str) -> None:
    assert ask(name) != BEGAN
    assert go_on(ask(name)) == ()


@pytest.mark.parametrize("name", sorted(HARMLESS - set(runs.SPLIT)))
def test_a_harmless_setting_needs_force(name: str) -> None:
    said = refusal(ask(name))
    assert f"{name}: {BEGAN.model_dump(mode='json')[name]} -> {OTHER[name]}" in said
    assert said.endswith(f"drop --{name.replace('_', '-')}, or add --force to go on with what is asked now")
    assert go_on(ask(name), force=True) == (f"{name}: {getattr(BEGAN, name)} -> {OTHER[name]}",)


@pytest.mark.parametrize("name", sorted(FIXED - set(runs.NAMES)))
def test_a_fixed_setting_is_refused_even_with_force(name: str) -> None:
    for force in (False, True):
        said = refusal(ask(name), force)
        assert f"{name}: {BEGAN.model_dump(mode='json')[name]} -> {OTHER[name]}" in said
        assert f"drop --{name.replace('_', '-')}, or start a new run: without --resume" in said
        assert "--force" not in said


def test_rows_may_be_split_otherwise_while_an_update_holds_as_many() -> None:
    asked = TrainConfig(batch_size=8, gradient_accumulation_steps=4)
    assert asked.update_size == BEGAN.update_size
    assert "add --force" in refusal(asked)
    assert go_on(asked, force=True) == ("batch_size: 4 -> 8", "gradient_accumulation_steps: 8 -> 4")


@pytest.mark.parametrize("name", runs.SPLIT)
def test_another_number_of_rows_in_an_update_is_refused(name: str) -> None:
    said = refusal(ask(name), force=True)
    assert f"drop --{name.replace('_', '-')}, or start a new run" in said


@pytest.mark.parametrize("fact", HASHES)
def test_other_contents_are_refused(fact: str) -> None:
    said = refusal(BEGAN, force=True, **{fact: "f" * 64})
    assert f"{fact} (sha256): {HASHES[fact][:12]} -> ffffffffffff; bring back the {fact}" in said


def test_a_hash_that_nobody_knows_is_a_difference() -> None:
    with pytest.raises(UsageError, match=r"rows \(sha256\): unknown -> cccccccccccc"):
        check(BEGAN, BEGAN, {}, {"rows": HASHES["rows"]}, force=True)
    with pytest.raises(UsageError, match=r"rows \(sha256\): cccccccccccc -> unknown"):
        check(BEGAN, BEGAN, {"rows": HASHES["rows"]}, {}, force=True)


@pytest.mark.parametrize("name", runs.NAMES)
def test_the_same_content_may_have_another_name(name: str) -> None:
    assert go_on(ask(name)) == ()


@pytest.mark.parametrize("name", runs.NAMES)
def test_another_name_with_other_content_is_refused(name: str) -> None:
    assert f"{name}: auto -> {OTHER[name]}" in refusal(ask(name), **{name: "f" * 64})


@pytest.mark.parametrize("name", runs.NAMES)
def test_another_name_is_refused_where_no_hash_was_kept(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}: auto -> "):
        check(BEGAN, ask(name), {}, {}, force=True)


def test_every_difference_is_named() -> None:
    asked = TrainConfig(seed=1, learning_rate=1e-4, dtype="float32", backend="torch")
    said = refusal(asked, rows="f" * 64)
    for words in ("seed: 0 -> 1", "learning_rate: 3e-05 -> 0.0001", "dtype: auto -> float32", "rows (sha256): "):
        assert words in said
    assert "backend" not in said
    assert "drop --dtype, --seed, --learning-rate, or start" in said
    assert "drop --seed, --learning-rate, or start" in refusal(asked, force=True)


def test_a_switch_that_was_turned_off_is_named_as_it_was_typed() -> None:
    with pytest.raises(UsageError, match="drop --no-gradient-checkpointing, or add --force"):
        check(TrainConfig(gradient_checkpointing=True), BEGAN, {}, {}, force=False)


# --- metrics.jsonl --------------------------------------------------------------------------------------------------


def line(name: str, **values: object) -> bytes:
    return json.dumps({"event": name, **values}).encode() + b"\n"


START, ONE, TWO, THREE = line("start", updates=9), *(line("update", update=n, loss=1.5) for n in (1, 2, 3))


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def cut(path: Path, content: bytes, update: int = 2) -> tuple[int, bytes]:
    path.write_bytes(content)
    return cut_metrics(path, update), path.read_bytes()


def test_no_metrics_are_nothing_to_cut(metrics: Path) -> None:
    assert cut_metrics(metrics, 2) == 0
    assert not metrics.exists()


def test_an_empty_file_stays(metrics: Path) -> None:
    assert cut(metrics, b"") == (0, b"")


@pytest.mark.parametrize("name", ["update", "dev", "save", "best", "dev_skipped"])
def test_events_after_the_update_go(name: str, metrics: Path) -> None:
    kept = START + ONE + line(name, update=2)
    assert cut(metrics, kept + line(name, update=3)) == (1, kept)


@pytest.mark.parametrize("update", [1, 3])
def test_the_end_goes_wherever_it_stands_and_is_none_of_what_is_done_again(update: int, metrics: Path) -> None:
    assert cut(metrics, START + ONE + line("end", update=update, reason="interrupted") + TWO) == (0, START + ONE + TWO)


@pytest.mark.parametrize("end", range(1, len(THREE) - 1))
def test_a_torn_last_line_goes(end: int, metrics: Path) -> None:
    assert cut(metrics, ONE + THREE[:end], update=9) == (0, ONE)


def test_a_last_line_that_lacks_only_its_end_gets_it(metrics: Path) -> None:
    assert cut(metrics, ONE + TWO[:-1]) == (0, ONE + TWO)


GARBAGE = {
    "zeros, as a crash leaves them": bytes(64),
    "bad UTF-8": b'{"event": "\xff"}',
    "no object": b"[1]",
    "no event": b'{"update": 1}',
    "an event that is no name": b'{"event": 1}',
    "nothing": b"",
    "deep": b"[" * 100_000,
    "long": b"9" * 5000,
}


@pytest.mark.parametrize("case", GARBAGE)
def test_garbage_goes(case: str, metrics: Path) -> None:
    assert cut(metrics, ONE + GARBAGE[case] + b"\n" + TWO) == (0, ONE + TWO)


@pytest.mark.parametrize("number", ["3", None, "nan", [3]])
def test_an_event_without_a_number_stays(number: object, metrics: Path) -> None:
    content = line("note", update=number)
    assert cut(metrics, content) == (0, content)


def test_a_whole_file_is_not_written_again(metrics: Path) -> None:
    metrics.write_bytes(START + ONE)
    before = metrics.stat().st_ino
    assert cut_metrics(metrics, 1) == 0
    assert metrics.stat().st_ino == before


def test_cutting_twice_is_cutting_once(metrics: Path) -> None:
    dropped, content = cut(metrics, START + ONE + THREE + b"half")
    assert (dropped, cut_metrics(metrics, 2), metrics.read_bytes()) == (1, 0, content)


@pytest.mark.parametrize("point", ["fsync", "replace"])
def test_a_kill_while_cutting_leaves_all_of_the_old_file(
    point: str, metrics: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    metrics.write_bytes(ONE + THREE)
    monkeypatch.setattr(os, point, kill)
    with pytest.raises(KeyboardInterrupt):
        cut_metrics(metrics, 2)
    assert metrics.read_bytes() == ONE + THREE
    assert os.listdir(metrics.parent) == ["metrics.jsonl"]


def test_metrics_that_cannot_be_read_are_named(metrics: Path) -> None:
    metrics.mkdir()
    with pytest.raises(StorageError, match=r"metrics\.jsonl cannot be read \(Is a directory\); check the run's folder"):
        cut_metrics(metrics, 2)
