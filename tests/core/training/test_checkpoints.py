"""A checkpoint comes back to the last bit; the newest one is found; pruning never takes the last whole one."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gsm8k_core.training.checkpoints import prune
from gsm8k_core.types import DataError, StorageError, TrainState
from tests.fake_checkpoints import FakeLive, cut_short, find, flip, found, same, same_state, save

# --- there and back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [("model.safetensors",), ("a.safetensors", "b.safetensors")])
def test_weights_and_moments_come_back_to_the_last_bit(files: tuple[str, ...], tmp_path: Path) -> None:
    live = FakeLive(3, files)
    save(tmp_path, 10, live)
    assert same_state(found(tmp_path).state(), live.now)


def test_another_bit_would_be_noticed(tmp_path: Path) -> None:
    save(tmp_path, 10, FakeLive(3))
    assert not same_state(found(tmp_path).state(), FakeLive(4).now)
    assert not same({"a": np.zeros(1, np.float32)}, {"a": -np.zeros(1, np.float32)})


def test_an_adapter_is_a_checkpoint_too(tmp_path: Path) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    part = {name: np.arange(6, dtype=np.float32).reshape(2, 3)}
    live = FakeLive(0, ("adapter_model.safetensors",)).change(parameters=part, first_moments=part, second_moments=part)
    live.frozen = {}
    save(tmp_path, 10, live)
    assert found(tmp_path).parameters == (name,)
    assert same_state(found(tmp_path).state(), live.now)


def test_where_the_run_stood_comes_back(tmp_path: Path) -> None:
    said = {"events": [{"update": 3, "total": 9}], "losses": [0.1, 1e-5, 3.0], "facts": {"config": {"seed": 3}, "é": 1}}
    folder = save(tmp_path, 10, elapsed=0.1 + 0.2, **said)
    assert folder == tmp_path / "update-000010"
    checkpoint = found(tmp_path)
    assert (checkpoint.folder, checkpoint.model, checkpoint.update) == (folder, folder / "model", 10)
    assert (checkpoint.step, checkpoint.elapsed) == (17, 0.1 + 0.2)
    assert checkpoint.events == ({"update": 3, "total": 9},)
    assert (checkpoint.losses, checkpoint.facts) == ((0.1, 1e-5, 3.0), {"config": {"seed": 3}, "é": 1})


def test_only_what_is_trained_comes_back(tmp_path: Path) -> None:
    save(tmp_path, 10)
    assert "embed" in load_file(tmp_path / "update-000010/model/model-1.safetensors")
    assert set(found(tmp_path).state().parameters) == {"layers.0.w", "norm", "gate"}


def test_a_transposed_view_is_saved_as_the_matrix_that_it_is(tmp_path: Path) -> None:
    live = FakeLive()
    view = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert not view.flags.c_contiguous
    save(tmp_path, 10, live.change(first_moments={**live.now.first_moments, "layers.0.w": view}))
    assert (found(tmp_path).state().first_moments["layers.0.w"] == view).all()


def test_the_arrays_may_be_written_to(tmp_path: Path) -> None:
    save(tmp_path, 10)
    assert all(array.flags.writeable for array in found(tmp_path).state().parameters.values())


def test_only_the_checkpoint_is_left(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoints", 10)
    assert os.listdir(tmp_path / "checkpoints") == ["update-000010"]
    assert sorted(os.listdir(folder)) == ["checkpoint.json", "model", "moments.safetensors"]


# --- which one ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir])
def test_none_is_none(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "checkpoints")
    assert find(tmp_path / "checkpoints") == (None, [])


def test_the_newest_goes_by_number_not_by_time(tmp_path: Path) -> None:
    for update in (1_000_000, 30, 4):
        save(tmp_path, update)
    os.utime(tmp_path / "update-000004", (9e9, 9e9))
    assert found(tmp_path).update == 1_000_000


def test_a_second_one_of_an_update_leaves_the_first_and_is_newer(tmp_path: Path) -> None:
    first = save(tmp_path, 10, FakeLive(0))
    for seed in range(1, 11):
        folder = save(tmp_path, 10, FakeLive(seed))
    assert folder == tmp_path / "update-000010-11"
    assert (found(tmp_path).folder, found(tmp_path).step) == (folder, 17)
    shutil.rmtree(folder)
    assert found(tmp_path).folder.name == "update-000010-10"
    assert first.is_dir()


def test_strangers_are_passed_over_without_a_word(tmp_path: Path) -> None:
    save(tmp_path / "checkpoints", 10)
    elsewhere = save(tmp_path / "elsewhere", 99)
    folder = tmp_path / "checkpoints"
    (folder / "update-000099").symlink_to(elsewhere)
    shutil.copytree(elsewhere, folder / ".update-000099.123-0123abcd.tmp")
    shutil.copytree(elsewhere, folder / "update-000099.old")
    shutil.copytree(elsewhere, folder / "update-99")
    shutil.copytree(elsewhere, folder / "update-٠٠٠٠٩٩")
    (folder / "update-000098").write_text("a file")
    assert found(folder).update == 10


def test_a_checkpoint_under_another_number_is_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20).rename(tmp_path / "update-000030")
    checkpoint, said = find(tmp_path)
    assert checkpoint is not None
    assert checkpoint.update == 10
    assert "checkpoint.json is of update 20, not of this folder's" in said[0]


def test_a_folder_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("mine")
    with pytest.raises(StorageError, match=r"checkpoints cannot be read \(Not a directory\); check the folder"):
        find(tmp_path / "checkpoints")


# --- what does not fit one another ----------------------------------------------------------------------------------

OTHER = np.zeros((2, 3), np.float32)
MISFITS: dict[str, tuple[Callable[[TrainState], dict[str, Any]], str]] = {
    "a parameter that is not saved": (
        lambda now: (
            {part: {**getattr(now, part), "new": OTHER} for part in ("first_moments", "second_moments")}
            | {"parameters": {**now.parameters, "new": OTHER}}
        ),
        "model lacks new, which is trained",
    ),
    "no first moment": (lambda now: {"first_moments": {}}, "lacks first/gate"),
    "another moment": (
        lambda now: {"second_moments": {**now.second_moments, "more": OTHER}},
        "also holds second/more",
    ),
    "another shape": (
        lambda now: {"first_moments": {**now.first_moments, "layers.0.w": OTHER}},
        "holds first/layers.0.w as ",
    ),
    "another dtype": (
        lambda now: {"first_moments": {**now.first_moments, "gate": np.zeros((), np.float64)}},
        "holds first/gate as ",
    ),
}


class SavesAll(FakeLive):
    """Saves what it was made with, whatever its state says."""

    def save(self, directory: Path) -> None:
        FakeLive(0).save(directory)


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_not_written(case: str, tmp_path: Path) -> None:
    change, words = MISFITS[case]
    live = SavesAll(0)
    with pytest.raises(StorageError, match=words) as caught:
        save(tmp_path, 10, live.change(**change(live.now)))
    assert f"{tmp_path}/update-000010/" in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_weights_in_another_dtype_are_not_written(tmp_path: Path) -> None:
    live = FakeLive(0)
    live.change(parameters={**live.now.parameters, "gate": np.zeros((), np.float16)})
    with pytest.raises(StorageError, match="holds gate in F16, not in float32"):
        save(tmp_path, 10, live)


def test_state_says_what_does_not_fit(tmp_path: Path) -> None:
    folder = save(tmp_path, 10)
    checkpoint = found(tmp_path)
    save_file({"first/gate": np.zeros((), np.float32)}, str(folder / "moments.safetensors"))
    with pytest.raises(DataError, match=r"update-000010/moments\.safetensors lacks first/layers\.0\.w"):
        checkpoint.state()


@pytest.mark.parametrize("damage", [Path.unlink, cut_short])
def test_state_names_a_file_that_was_lost_meanwhile(damage: Callable[[Path], None], tmp_path: Path) -> None:
    folder = save(tmp_path, 10)
    checkpoint = found(tmp_path)
    damage(folder / "model" / "model-1.safetensors")
    with pytest.raises(DataError, match=r"model/model-1\.safetensors cannot be read \("):
        checkpoint.state()


# --- pruning --------------------------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("keep", "left"), [(0, 1), (1, 1), (2, 2), (3, 3), (9, 3)])
def test_the_newest_are_kept(keep: int, left: int, tmp_path: Path) -> None:
    folders = [save(tmp_path, update) for update in (10, 20, 100)]
    assert prune(tmp_path, keep) == folders[: 3 - left]
    assert names(tmp_path) == [folder.name for folder in folders[3 - left :]]


def test_nothing_to_prune(tmp_path: Path) -> None:
    assert prune(tmp_path / "checkpoints", 1) == []
    assert not (tmp_path / "checkpoints").exists()


def test_damaged_ones_do_not_count_and_stay(tmp_path: Path) -> None:
    for update in (10, 20, 30):
        save(tmp_path, update)
    cut_short(tmp_path / "update-000030" / "moments.safetensors")
    assert prune(tmp_path, 1) == [tmp_path / "update-000010"]
    assert names(tmp_path) == ["update-000020", "update-000030"]
    assert prune(tmp_path, 1) == []


def test_the_newest_whole_one_stays_where_newer_ones_have_a_flipped_bit(tmp_path: Path) -> None:
    for update in (10, 20, 30):
        save(tmp_path, update)
    flip(tmp_path / "update-000030" / "moments.safetensors")
    assert prune(tmp_path, 1) == [tmp_path / "update-000010"]
    checkpoint, _ = find(tmp_path)
    assert checkpoint is not None
    assert checkpoint.update == 20


def test_nothing_is_removed_where_none_is_whole(tmp_path: Path) -> None:
    for update in (10, 20):
        flip(save(tmp_path, update) / "moments.safetensors")
    assert prune(tmp_path, 1) == []
    assert names(tmp_path) == ["update-000010", "update-000020"]


def test_what_killed_processes_left_is_removed_and_strangers_stay(tmp_path: Path) -> None:
    save(tmp_path / "c", 10)
    strangers = [".update-000020.tmp", ".other.123-0123abcd.tmp", "update-000020.old", "notes"]
    for name in (".update-000020.123-0123abcd.tmp", ".update-000010-2.9-ffffffff.tmp", *strangers):
        (tmp_path / "c" / name).mkdir()
    elsewhere = save(tmp_path / "elsewhere", 5)
    (tmp_path / "c" / ".update-000005.123-0123abcd.tmp").symlink_to(elsewhere)
    (tmp_path / "c" / "update-000005").symlink_to(elsewhere)
    prune(tmp_path / "c", 1)
    links = [".update-000005.123-0123abcd.tmp", "update-000005"]
    assert names(tmp_path / "c") == sorted([*strangers, *links, "update-000010"])
    assert found(tmp_path / "elsewhere").update == 5


def test_what_cannot_be_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for update in (10, 20):
        save(tmp_path, update)
    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(StorageError, match=r"update-000010 was not removed: Read-only file system; check the folder"):
        prune(tmp_path, 1)
    assert names(tmp_path) == ["update-000010", "update-000020"]
