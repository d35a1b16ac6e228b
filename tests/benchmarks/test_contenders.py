"""Who is measured on which machine: faked hardware."""

from __future__ import annotations

import pytest

from benchmarks.contenders import CONTENDERS, GENERATE, TRAIN, Hardware, choose, left_out, pairs
from gsm8k_core.types import PreflightError

EVERYTHING = frozenset({"mlx", "mlx_lm", "torch", "transformers", "accelerate", "trl", "datasets"})
OURS_ALONE = EVERYTHING - {"trl"}
MAC = Hardware("Darwin", "arm64", EVERYTHING, frozenset({"metal", "mps"}))
LINUX = Hardware("Linux", "x86_64", EVERYTHING)
CUDA = Hardware("Linux", "x86_64", EVERYTHING, frozenset({"cuda", "mlx-cuda"}))


def chosen(here: Hardware, asked: str = "auto", mode: str = TRAIN, device: str = "auto", **what: str) -> dict[str, str]:
    settings = {"trainable": "all", "method": "full"} | what
    return {name: choice.name for name, choice in choose(mode, asked, here, device, **settings).items()}


@pytest.mark.parametrize(
    ("here", "device", "expected"),
    [
        (MAC, "auto", {"ours-mlx": "gpu", "ours-torch": "mps"}),
        (MAC, "cpu", {"ours-mlx": "cpu", "ours-torch": "cpu"}),
        (LINUX, "auto", {"ours-mlx": "cpu", "ours-torch": "cpu"}),
        (CUDA, "auto", {"ours-mlx": "gpu", "ours-torch": "cuda"}),
        (
            Hardware("Linux", "x86_64", EVERYTHING, frozenset({"cuda"})),
            "auto",
            {"ours-mlx": "cpu", "ours-torch": "cuda"},
        ),
        (Hardware("Linux", "aarch64", EVERYTHING - {"mlx", "mlx_lm"}), "auto", {"ours-torch": "cpu"}),
        (Hardware("Darwin", "x86_64", OURS_ALONE - {"mlx", "mlx_lm"}), "auto", {"ours-torch": "cpu"}),
    ],
)
def test_auto_compares_our_two_on_the_devices_that_are_there(
    here: Hardware, device: str, expected: dict[str, str]
) -> None:
    assert chosen(here, device=device) == expected


def test_all_takes_every_peer_that_is_installed_and_can_do_it() -> None:
    blocks = list(chosen(LINUX, "all", trainable="blocks"))
    assert blocks == ["ours-mlx", "ours-torch", "mlx-lm", "trl", "trl-best", "hf"]
    # mlx-lm trains the blocks alone: against all weights it would do less work.
    assert list(chosen(LINUX, "all")) == ["ours-mlx", "ours-torch", "trl", "trl-best", "hf"]
    assert "mlx-lm" in chosen(LINUX, "all", method="lora")
    assert list(chosen(Hardware("Linux", "x86_64", OURS_ALONE), "all", trainable="blocks"))[-1] == "hf"
    assert list(chosen(LINUX, "all", GENERATE)) == ["ours-mlx", "ours-torch", "mlx-lm", "hf", "mlx-lm-best", "hf-best"]


def test_who_is_not_there_is_named_with_the_reason() -> None:
    bare = Hardware("Linux", "x86_64", EVERYTHING - {"mlx", "trl"})
    assert left_out(TRAIN, "auto", bare, "all", "full") == {"ours-mlx": "needs mlx, not installed"}
    assert list(left_out(TRAIN, "all", bare, "all", "full")) == ["ours-mlx", "mlx-lm", "trl", "trl-best"]
    assert left_out(TRAIN, "all", LINUX, "all", "full")["mlx-lm"].startswith("cannot train embeddings")
    assert left_out(TRAIN, "all", LINUX, "blocks", "full") == {}
    assert left_out(TRAIN, "ours-torch", bare, "all", "full") == {}


def test_peers_run_on_the_same_device_as_ours() -> None:
    on = chosen(MAC, "all", trainable="blocks")
    assert on["mlx-lm"] == on["ours-mlx"] == "gpu"
    assert on["trl"] == on["hf"] == on["ours-torch"] == "mps"


@pytest.mark.parametrize(
    ("asked", "mode", "here", "says"),
    [
        (
            "trl",
            TRAIN,
            Hardware("Linux", "x86_64", OURS_ALONE),
            r"trl needs trl, not installed here; pip install .*bench",
        ),
        ("ours-mlx", TRAIN, Hardware("Linux", "x86_64", frozenset()), r"ours-mlx needs mlx and mlx_lm.*mlx-cpu"),
        ("trl", GENERATE, LINUX, "trl has no generate .*generate has ours-mlx, ours-torch, mlx-lm, hf"),
        ("mlx-lm", TRAIN, LINUX, "mlx-lm cannot train embeddings .* --trainable blocks, or --method lora"),
        ("auto", TRAIN, Hardware("Linux", "x86_64", frozenset()), "no contender is installed here"),
    ],
)
def test_what_was_named_and_cannot_run_is_refused(asked: str, mode: str, here: Hardware, says: str) -> None:
    with pytest.raises(PreflightError, match=says):
        chosen(here, asked, mode)


def test_ours_are_compared_with_peers_of_their_framework_and_with_each_other() -> None:
    assert pairs(["ours-mlx", "ours-torch", "mlx-lm", "hf"]) == [
        ("ours-mlx", "mlx-lm"),
        ("ours-torch", "hf"),
        ("ours-mlx", "ours-torch"),
    ]
    assert pairs(["mlx-lm", "hf"]) == []


def test_twice_the_rows_is_measured_only_where_it_is_named() -> None:
    assert "mlx-lm-double" not in chosen(LINUX, "all", method="lora")
    assert list(chosen(LINUX, "mlx-lm-double", method="lora")) == ["mlx-lm-double"]
    with pytest.raises(PreflightError, match="mlx-lm-double cannot train embeddings"):
        chosen(LINUX, "mlx-lm-double")


def test_only_ours_put_supervised_rows_alone_through_the_head_everywhere() -> None:
    assert [name for name, each in CONTENDERS.items() if each.step.head == "targets"] == ["ours-mlx", "ours-torch"]
