"""Whatever stands in a file that a stranger can have written: it is what we wrote there, or one line with the key."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import SafetensorError

import cli
from gsm8k_core.files import new_folder, write_bytes
from gsm8k_core.models import hub
from gsm8k_core.models.adapter import LoraSpec, base_of, write_adapter
from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.models.merged import read_changes
from gsm8k_core.models.store import cache_folder
from gsm8k_core.rollouts.group import read_sampled
from gsm8k_core.rollouts.progress import PROGRESS, Progress
from gsm8k_core.rollouts.record import as_line, judged, last_seconds, read_records
from gsm8k_core.scoring.evaluate import Request, _read_records, make_record
from gsm8k_core.training.manifest import check_facts
from gsm8k_core.training.runs import known_manifest, reopen
from gsm8k_core.types import Completion, DataError, Problem, StorageError
from tests.e2e.conftest import Run
from tests.faults.conftest import one_error
from tests.faults.test_fuzz import FUZZ, JSON

RESULT = {"loss": 1.5, "num_targets": 9, "num_correct": {"robust": 1}, "num_problems": 2, "num_stopped": 2}
RESULT |= {"seconds": 1.0, "verdicts": [True, False]}
GUARD = {"base": RESULT, "quarter": None, "end": {"update": 3, "result": RESULT}, "reason": "", "passed": False}
MANIFEST: dict[str, Any] = {
    "schema": 1,
    "status": "stopped",
    "pid": 12,
    "started": "2026-01-01T00:00:00+00:00",
    "config": {"seed": 0, "data_config": "main"},
    "choices": {"dtype": {"name": "float32", "reason": "asked for"}},
    "hashes": {"model": "0" * 64},
    "model": {"name": "embedded", "source": "embedded", "hash": "0" * 64},
    "data": {"name": "generated", "source": "generated", "sha256": {"train": "0"}},
    "outcome": {"updates": 3, "seconds": 2.5, "reason": "a signal"},
    "best": {"update": 2},
    "base": {"hash": "0", "made_by": "mlx-lm", "folder": "base"},
    "guard": GUARD,
    "adjustments": [{"what": "rate", "update": 2, "value": 0.5, "why": "loss nan"}],
    "segments": [{"started": "x"}],
    "rft": {
        "done": ["warm"],
        "decisions": {"rounds": {"name": "2", "reason": "asked for"}},
        "phase": {"name": "sample-1", "began": 1.0, "end": 9.5, "budget": 60.0},
        "elapsed": 2.5,
        "together": 32,
        "updates": {"warm": 9},
    },
    "rollouts": [
        {
            **dict.fromkeys(("asked", "answered", "verified", "gold_right", "wrong_step", "kept", "new_chains"), 3),
            "round": 1,
            "tokens": 90,
            "forced_tokens": 4,
            "seconds": 2.5,
            "solved": 1,
            "of": 2,
            "rate": 0.5,
            "interval": [0.1, 0.9],
            "refused": {"wrong number": 2},
        }
    ],
}
FACTS = {"config": {}, "hashes": {"model": "0"}, "best": {"update": 2, "result": RESULT}, "guard": GUARD}
ANSWERED = {"id": "test-0", "token_ids": [1, 2], "forced": []}
FACTS["policy"] = {
    "history": [
        {
            **dict.fromkeys(("reward", "solve_rate", "mixed", "cut", "clipped"), 0.5),
            **dict.fromkeys(("asked", "answers", "tokens"), 8),
            "length": 9.5,
            "entropy": 0.6,
            "sampling_seconds": 2.5,
            "kl": None,
        }
    ],
    "rollout": {
        "number": 0,
        "num_first": 1,
        "seconds": 2.5,
        "entropy": 0.6,
        "then": {"test-0/own-0": [-1.0, -2.0, -0.5], "test-0/own-1": [-1.0, -2.5]},
        "answers": [
            {"id": "test-0", "sample": 0, "token_ids": [1, 2], "end_token": 3, "forced": [], "finish_reason": "stop"},
            {
                "id": "test-0",
                "sample": 1,
                "token_ids": [1, 2],
                "end_token": None,
                "forced": [],
                "finish_reason": "length",
            },
        ],
    },
}
EVENTS = [{"update": 0, "total": 6, "rate_factor": 1.0}]
PROBLEM = Problem("test-0", "how many ?", "so 3 .\n#### 3", "3")
RECORD = make_record(PROBLEM, Completion((1, 2), "stop"), "#### 3")


def places(value: Any, *above: str | int) -> Iterator[tuple[str | int, ...]]:
    """Where a value stands in a JSON value, by keys and indices."""
    yield above
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield from places(each, *above, key)


def changed(value: Any, place: tuple[str | int, ...], new: Any) -> Any:
    if not place:
        return new
    key, *rest = place
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[key] = changed(value[key], tuple(rest), new)
    return copy


HUGE = st.sampled_from([10**400, -1, 2**63, 0.5, 1e300, "x" * 3000, True, None, [], {}])


def own_error(work: Callable[[], object]) -> None:
    """Nothing is raised but a DataError of one line that a person can read."""
    try:
        work()
    except DataError as caught:
        said = str(caught)
    else:
        return
    assert "\n" not in said
    assert len(said) < 2000


@FUZZ
@given(st.sampled_from(sorted(places(MANIFEST), key=str)), JSON | HUGE)
def test_a_manifest_is_typed(place: tuple[str | int, ...], value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "run.json").write_text(json.dumps(changed(MANIFEST, place, value)))
        own_error(lambda: known_manifest(Path(folder)))
        own_error(lambda: Progress.from_json(known_manifest(Path(folder)).get(PROGRESS)))


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("config",), 3, "config must be an object (got 3)"),
        (("choices", "dtype", "name"), 7, "choices.dtype.name must be a text (got 7)"),
        (("outcome", "updates"), 10**400, "outcome.updates"),
        (("adjustments", 0, "what"), "rm", "adjustments.0.what"),
        (("adjustments", 0, "what"), "dtype", "adjustments.0 of the dtype has a value of another kind: 0.5"),
        (("adjustments", 0, "value"), "float32", "adjustments.0 of the rate has a value of another kind"),
        (("guard", "base", "num_problems"), 0, "guard.base.num_problems"),
        (("hashes", "model"), None, "hashes.model must be a text (got nothing)"),
        (("rft", "phase", "name"), "../x", "rft.phase.name"),
        (("rft", "together"), 0, "rft.together"),
        (("rft", "decisions", "rounds", "name"), "x", "rft.decisions rounds cannot be 'x'"),
        (("rollouts", 0, "rate"), 1.5, "rollouts.0.rate"),
    ],
)
def test_a_run_with_another_record_is_refused_with_the_key(place: Any, value: Any, says: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(MANIFEST))
    reopen(tmp_path).release()
    (tmp_path / "run.json").write_text(json.dumps(changed(MANIFEST, place, value)))
    with pytest.raises(DataError) as caught:
        reopen(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'run.json'}: {says}")


def test_a_setting_of_a_run_that_is_none_names_the_file(run: Run, tmp_path: Path) -> None:
    config = {"model": "embedded", "data": "generated", "max_samples": "many"}
    choices = {"dtype": {"name": "float32", "reason": "x"}}
    (tmp_path / "run.json").write_text(json.dumps({**MANIFEST, "config": config, "choices": choices}))
    done = run("train", "--resume", tmp_path)
    assert (done.returncode, "run.json: config: " in one_error(done)) == (4, True), done.stderr


@FUZZ
@given(st.sampled_from(sorted(places([FACTS, EVENTS]), key=str)), JSON | HUGE)
def test_a_checkpoints_facts_are_typed(place: tuple[str | int, ...], value: Any) -> None:
    made = changed([FACTS, EVENTS], place, value)
    check_facts(Path("checkpoint.json"), FACTS, EVENTS)
    facts, events = made if isinstance(made, list) and len(made) == 2 else (None, None)
    # The reader of the file makes sure of this much.
    if isinstance(facts, dict) and isinstance(events, list) and all(isinstance(event, dict) for event in events):
        own_error(lambda: check_facts(Path("checkpoint.json"), facts, events))


KEPT: Any = FACTS["policy"]["rollout"]  # type: ignore[index]


@FUZZ
@given(st.sampled_from(sorted(places(KEPT), key=str)), JSON | HUGE)
@example(("answers", 0, "token_ids", 0), 99)
@example(("then",), {})
def test_a_rollout_in_a_checkpoint_is_typed(place: tuple[str | int, ...], value: Any) -> None:
    own_error(lambda: read_sampled(changed(KEPT, place, value), {"test-0": PROBLEM}, str, 99, lambda answer: 0.0))


@pytest.mark.parametrize("key", ["a\nb", "x" * 5000])
def test_a_strangers_key_stays_in_one_short_line(key: str) -> None:
    with pytest.raises(DataError) as caught:
        check_facts(Path("checkpoint.json"), {"config": {}, "hashes": {key: 3}}, [])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800


WANTED = {("test-0", 0): Request(Problem("test-0", "How many?", "#### 1", "1"), 0)}  # what else it says is not believed


@FUZZ
@given(st.sampled_from(sorted(places(RECORD), key=str)), JSON | HUGE)
def test_a_record_is_typed(place: tuple[str | int, ...], value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.jsonl"
        path.write_text(json.dumps(changed(RECORD, place, value)) + "\n")
        own_error(lambda: _read_records(path, WANTED, str, print))


ROLLOUT = json.loads(as_line(judged(PROBLEM, 1, Completion((1, 2), "stop", 3, (1,)), str, 2.5), "steps"))


@FUZZ
@given(st.sampled_from(sorted(places(ROLLOUT), key=str)), JSON | HUGE)
@example(("id",), "x" * 5_000)
@example(("id",), "\n")
@example(("token_ids", 0), 10**4_000)
def test_a_sampled_answer_is_typed(place: tuple[str | int, ...], value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.jsonl"
        path.write_text(json.dumps(changed(ROLLOUT, place, value)) + "\n")
        own_error(lambda: read_records(path, {"test-0": PROBLEM}, str, vocabulary=99))
        assert last_seconds(path) >= 0


@pytest.mark.parametrize(
    ("key", "value"), [("token_ids", "x"), ("finish_reason", 3), ("id", ["test-0"]), ("sample", None)]
)
def test_a_record_with_another_value_is_refused_with_its_line(key: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(RECORD) + "\n" + json.dumps({**RECORD, key: value}) + "\n")
    with pytest.raises(DataError, match=rf"records\.jsonl:2: {key}"):
        _read_records(path, WANTED, str, print)


# --- adapters ---


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("typed") / "adapter"
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    values = {
        f"{stem}.lora_A.weight": np.ones((2, 8), np.float32),
        f"{stem}.lora_B.weight": np.ones((4, 2), np.float32),
    }
    write_adapter(folder, values, LoraSpec(2, 4.0, 0.0, (), False, 0), "base")
    return folder


ADAPTER_KEYS = ("r", "lora_alpha", "use_rslora", "rank_pattern", "modules_to_save", "base_model_name_or_path", "model")


@FUZZ
@given(st.dictionaries(st.sampled_from([*ADAPTER_KEYS, "lora_parameters"]), JSON | HUGE, max_size=3))
def test_an_adapters_settings_are_typed(adapter: Path, values: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(adapter, Path(folder) / "a"))
        path = copy / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
        own_error(lambda: base_of(copy))
        own_error(lambda: read_changes(copy))


@pytest.mark.parametrize("missing", [".lora_B.weight", None])
def test_an_adapters_tensors_have_to_fit(missing: str | None, adapter: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    copy = Path(shutil.copytree(adapter, tmp_path / "a"))
    tensors = load_file(copy / "adapter_model.safetensors")
    tensors = {
        name: value if missing else np.ones((3, 3, 3), np.float32)
        for name, value in tensors.items()
        if not missing or not name.endswith(missing)
    }
    save_file(tensors, copy / "adapter_model.safetensors")
    with pytest.raises(DataError, match=r"adapter_model\.safetensors (lacks|holds for)"):
        read_changes(copy)


# --- config.json ---


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "x"),
        ("num_hidden_layers", 10**9),
        ("hidden_size", 0),
        ("head_dim", 1.5),
        ("head_dim", -1),
    ],
)
def test_a_models_sizes_are_typed(key: str, value: object, model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    ModelFolder(folder).check()
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(DataError, match=rf"config\.json: {key} must be"):
        ModelFolder(folder).check()


# --- the Hub ---


@pytest.mark.parametrize(
    "answer",
    [
        b"[" * 100_000,
        b'{"siblings": [{"rfilename": 3}]}',
        b'{"siblings": [{"rfilename": "a", "size": -1}]}',
        b'{"siblings": [{"rfilename": "a", "size": 1e999}]}',
        b'{"siblings": [{"rfilename": "a", "size": ' + b"9" * 5000 + b"}]}",
        b'{"siblings": 3}',
        b"[]",
    ],
)
def test_an_answer_that_is_no_listing_is_no_hub(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in hub.OFFLINE_KEYS:
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(hub, "_ask", lambda path, timeout: json.loads(answer))
    with pytest.raises(hub.Unavailable, match="does not answer as a Hub does"):
        hub.look_up("a/b", "model")


# --- the system ---


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (MemoryError(), 6, "no memory left"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 6, "no memory left"),
        (OSError(errno.EIO, "Input/output error", "/x/.model.12-0123abcd.tmp/a"), 7, "/x/model/a cannot be read or"),
        (OSError(errno.EIO, "Input/output error"), 7, "(Input/output error); check the disk"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/home/ann/.cache"),
            7,
            "/home/ann/.cache cannot be read or written",
        ),
        (OSError(errno.ENAMETOOLONG, "File name too long", "y" * 9000), 2, "is longer than a path may be"),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"), 7, "set TMPDIR"),
    ],
)
def test_an_error_of_the_system_anywhere_has_its_exit_code(
    error: Exception, code: int, says: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_dispatch", raising(error))
    done = run("runs", ".")
    assert (done.returncode, says in one_error(done), "unexpected" in done.stderr) == (code, True, False), done.stderr


@pytest.mark.parametrize("verb", ["train", "eval", "generate", "runs", "plot", "grade", "inspect", "compare"])
def test_a_path_that_is_too_long_is_one_line(verb: str, run: Run) -> None:
    long = "/".join(["y" * 200] * 40)
    flags = {"train": "--output-dir", "compare": "--trained-model", "eval": "--model", "inspect": "--model"}
    question = ("how many ?", "--model") if verb == "generate" else ()
    done = run(verb, *question, *([flags[verb]] if verb in flags else []), long)
    assert done.returncode in (2, 4, 7)
    assert "unexpected" not in one_error(done)


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE", "GSM8K_CACHE", "XDG_CACHE_HOME"])
def test_a_home_that_nobody_has_is_named(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "GSM8K_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "~nouser/cache")
    with pytest.raises(StorageError, match="there is no home folder for ~nouser/cache"):
        (hub.hub_cache if variable.startswith("HF") else cache_folder)()


@pytest.mark.parametrize("place", ["fsync", "rename", "safetensors"])
def test_an_io_error_in_a_save_names_the_folder_that_is_known(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save() -> None:
        with new_folder(tmp_path / "model") as folder:
            (folder / "a").write_text("x")
            if place == "safetensors":
                raise SafetensorError("I/O error: Input/output error (os error 5)")

    if place != "safetensors":
        monkeypatch.setattr(os, place, raising(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(StorageError) as caught:
        save()
    assert str(caught.value).startswith(f"{tmp_path / 'model'} was not written: Input/output error")
    assert ".tmp" not in str(caught.value)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


def test_an_io_error_in_a_file_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", raising(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(StorageError, match=r"a\.json was not written: Input/output error"):
        write_bytes(tmp_path / "a.json", b"{}")
