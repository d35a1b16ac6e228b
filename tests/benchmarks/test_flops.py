"""Operations by formula, against the arithmetic done by hand."""

from __future__ import annotations

import pytest

from benchmarks.contenders import CONTENDERS, Step
from benchmarks.flops import (
    APPLE_TFLOPS,
    body_forward,
    floors,
    generation_flop,
    head_forward,
    update_flop,
)
from gsm8k_core.models.folder import ModelShape, shape_of

QWEN = shape_of(
    {
        "num_hidden_layers": 24,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
    }
)
SMALL = ModelShape(layers=1, hidden=2, inner=3, heads=1, kv_heads=1, head_dim=2, vocabulary=5)
FULL = {"method": "full", "trainable": "all", "device": "cpu"}


def test_qwen_has_the_known_sizes() -> None:
    assert body_forward(QWEN, 0) / 1e9 == pytest.approx(0.716, abs=5e-4)
    assert head_forward(QWEN) / 1e9 == pytest.approx(0.272, abs=5e-4)


def test_qwen_full_fine_tuning_of_a_mean_row_costs_what_was_reckoned_by_hand() -> None:
    # 212 tokens, 123.8 of them supervised: 641 GFLOP with the head on every token, 569 on supervised ones only.
    everywhere = update_flop(QWEN, [(1, 212)], 124, Step(), **FULL)
    supervised = update_flop(QWEN, [(1, 212)], 124, Step(head="targets"), **FULL)
    assert everywhere / 1e9 == pytest.approx(641, rel=0.005)
    assert supervised / 1e9 == pytest.approx(569, rel=0.005)


def test_each_part_of_a_small_update() -> None:
    # Blocks: 4 projections of 2x2 and 3 of 2x3, 34 parameters; attention 4 x width 10 x 2; head 2 x 5 parameters.
    body, head = 2 * 34 + 4 * 10 * 2, 2 * 10
    assert (body_forward(SMALL, 10), head_forward(SMALL)) == (body, head)
    tokens, targets = 3 * 10, 7

    def flop(step: Step, **what: str) -> int:
        return update_flop(SMALL, [(3, 10)], targets, step, **(FULL | what))

    assert flop(Step()) == tokens * 3 * (body + head)
    assert flop(Step(head="targets")) == 3 * (tokens * body + targets * head)
    assert flop(Step(body_again=True, head_again=True)) == tokens * 4 * (body + head)
    assert flop(Step(), trainable="blocks") == tokens * (3 * body + 2 * head)  # through a frozen head, not into it
    assert flop(Step(), method="lora") == tokens * 2 * (body + head)
    fused = Step(head="targets on cuda")
    assert flop(fused) == flop(Step())
    assert flop(fused, device="cuda") == flop(Step(head="targets"))


def test_gradient_checkpointing_is_counted_for_trl_as_shipped_only() -> None:
    assert [name for name, each in CONTENDERS.items() if each.step.body_again] == ["trl"]


def test_an_answer_pays_for_the_head_once_a_token() -> None:
    no_body = ModelShape(layers=0, hidden=2, inner=3, heads=1, kv_heads=1, head_dim=2, vocabulary=5)
    assert generation_flop(no_body, 10, 4) == (1 + 4) * 20
    assert generation_flop(SMALL, 10, 0) == 10 * (2 * 34 + 4 * 5 * 2) + 20


def test_a_floor_is_work_over_the_stated_peak() -> None:
    assert floors(2600)["M1"] == 1.0
    assert set(floors(1)) == set(APPLE_TFLOPS)
