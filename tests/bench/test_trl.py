"""TRL's own GRPO loss on the same answers, advantages and log-probabilities: the same gradient, tensor by tensor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

import backends
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.parity.bench import worst
from gsm8k_core.parity.rungs import UNCLIPPED, Gradient
from gsm8k_core.rollouts.group import name_of, num_drawn
from gsm8k_core.rollouts.objective import LossName, Objective
from gsm8k_core.rollouts.policy import Policy, PolicySettings
from gsm8k_core.types import Completion, Problem
from tests import tiny
from tests.backends.conftest import FakePilot

LONGEST = 12
CLIP = {"low": 0.2, "high": 0.28}
PROBLEMS = {name: Problem(name, "", "1 + 1 = 2\n#### 2", "2") for name in ("train-0", "train-1", "train-2")}
PROMPTS = {"train-0": (2, 9, 5), "train-1": (2, 7, 8, 30, 6), "train-2": (2, 11)}
SETTINGS = PolicySettings(3, 4, 2, "punish", Objective(longest=LONGEST), 64, 0)
SAME = 1e-5  # of a tensor's rms; measured: 1.9e-6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("trl") / "qwen2", "qwen2")


def drawn() -> dict[str, list[Completion]]:
    """Four answers to each problem, of uneven lengths; some tokens of one were forced."""
    rng, found = np.random.default_rng(0), dict[str, list[Completion]]()
    for name in PROBLEMS:
        lengths = rng.integers(3, LONGEST - 1, 4)
        found[name] = [
            Completion(tuple(int(t) for t in rng.integers(4, 40, length)), "stop", tiny.END_ID, forced)
            for length, forced in zip(lengths, ((), (1, 2), (), ()), strict=True)
        ]
    return found


REWARDS = {"train-0": (1.0, 0.0, 0.0, 0.0), "train-1": (1.0, 1.0, 0.0, 1.0), "train-2": (0.0, 1.0, 1.0, 0.0)}


class Rollout:
    """One update of ours: its rows with their weights by a backend's own scores, and what TRL is given for it."""

    def __init__(self, backend: Any, objective: Objective, first: Any = None) -> None:
        completions = drawn()
        asked = {name: iter(answers) for name, answers in completions.items()}
        order = [(name, place) for name in PROBLEMS for place in range(4)]
        rewards = {id(completions[name][place]): REWARDS[name][place] for name, place in order}
        self.policy = Policy(
            replace(SETTINGS, objective=objective),
            PROBLEMS,
            PROMPTS,
            lambda block, on_token: [next(asked[ask.id]) for ask in block],
            backend.score,
            lambda tokens: "",
            lambda answer: rewards[id(answer.completion)],
            first=first.score if first else None,
        )
        self.stream = self.policy.updates(2)
        next(self.stream)
        sampled = self.policy.sampled
        assert sampled is not None
        rng = np.random.default_rng(1)
        self.then = {
            name: tuple(np.float32(value + rng.normal(0, 0.3)).item() for value in values)
            for name, values in sampled.then.items()
        }
        self.policy.sampled = replace(sampled, then=self.then)
        self.first = replace(self.policy, score=first.score)._then(sampled) if first else None
        self.answers = sampled.answers
        self.advantages = [value for group in sampled.groups for value in group.advantages]

    def inputs(self) -> dict[str, Any]:
        """For TRL: prompts padded on the left, answers on the right; what was forced is its tool mask."""
        rows = [(PROMPTS[answer.problem.id], answer) for answer in self.answers]
        longest = max(len(prompt) for prompt, _ in rows)
        width = max(len(answer.completion.tokens) for answer in self.answers) + 1
        ids = torch.zeros(len(rows), longest + width, dtype=torch.long)
        mask, tool = torch.zeros_like(ids), torch.ones(len(rows), width)
        then, first = torch.zeros(len(rows), width), torch.zeros(len(rows), width)
        for row, (prompt, answer) in enumerate(rows):
            tokens = (*answer.completion.tokens, tiny.END_ID)
            ids[row, longest - len(prompt) : longest + len(tokens)] = torch.tensor([*prompt, *tokens])
            mask[row, longest - len(prompt) : longest + len(tokens)] = 1
            tool[row, list(answer.completion.forced)] = 0
            places = [place for place in range(len(tokens)) if place not in answer.completion.forced]
            then[row, places] = torch.tensor(self.then[name_of(answer)])
            if self.first:
                first[row, places] = torch.tensor(self.first[name_of(answer)])
        return {
            "prompt_ids": ids[:, :longest],
            "prompt_mask": mask[:, :longest],
            "completion_ids": ids[:, longest:],
            "completion_mask": mask[:, longest:],
            "tool_mask": tool,
            "advantages": torch.tensor(self.advantages),
            "old_per_token_logps": then,
            "ref_per_token_logps": first,
            "num_items_in_batch": torch.tensor(float(sum(map(num_drawn, self.answers)))),
        }


def trl_gradients(folder: Path, inputs: dict[str, Any], loss: LossName, kl: float, scratch: Path) -> dict[str, Any]:
    """The gradient of every parameter, by TRL's trainer."""
    arguments = GRPOConfig(
        output_dir=str(scratch),
        loss_type=loss,
        epsilon=CLIP["low"],
        epsilon_high=CLIP["high"],
        beta=kl,
        use_bias_correction_kl=False,
        max_completion_length=LONGEST,
        num_generations=4,
        per_device_train_batch_size=12,
        gradient_accumulation_steps=1,
        steps_per_generation=1,
        use_cpu=True,
        report_to="none",
        gradient_checkpointing=False,
        bf16=False,
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        reward_funcs=lambda completions, **unused: [0.0] * len(completions),
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": "how many"}] * 12),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    trainer.current_gradient_accumulation_steps = 1
    trained = trainer.model.train()
    trainer._compute_loss(trained, inputs).backward()
    return {name: each.grad.numpy() for name, each in trained.named_parameters() if each.grad is not None}


def our_gradients(backend: Any, rollout: Rollout) -> dict[str, Any]:
    """The gradient of the rollout's second update."""
    config = TrainConfig(max_grad_norm=UNCLIPPED)
    update = replace(next(rollout.stream), number=1)
    backend.train([update], config, FakePilot(rate=0.0))
    return Gradient(config)(backend)


@pytest.mark.parametrize("loss", ["dapo", "dr_grpo", "grpo"])
def test_the_gradient_is_trls(backend_name: str, model: Path, loss: LossName, tmp_path: Path) -> None:
    objective = Objective(loss=loss, longest=LONGEST, **CLIP)
    backend = backends.open(backend_name, model, "cpu", "float32")
    rollout = Rollout(backend, objective)
    right = trl_gradients(model, rollout.inputs(), loss, 0.0, tmp_path)
    found, name = worst(right, our_gradients(backend, rollout))
    assert found < SAME, name
    assert rollout.policy.history[1].clipped > 0.1


def test_the_gradient_is_trls_near_the_first_weights_too(backend_name: str, model: Path, tmp_path: Path) -> None:
    """Its estimate of the divergence as the paper has it; that corrects it by the ratio unless it is told not to."""
    backend = backends.open(backend_name, model, "cpu", "float32")
    first = backends.open(backend_name, tiny.make(tmp_path / "first", "qwen2", seed=1), "cpu", "float32")
    rollout = Rollout(backend, Objective(kl=0.1, longest=LONGEST, **CLIP), first)
    right = trl_gradients(model, rollout.inputs(), "dapo", 0.1, tmp_path)
    found, name = worst(right, our_gradients(backend, rollout))
    assert found < SAME, name


def test_control_another_loss_is_not_the_same(model: Path, tmp_path: Path) -> None:
    backend = backends.open("torch", model, "cpu", "float32")
    rollout = Rollout(backend, Objective(loss="dapo", longest=LONGEST, **CLIP))
    right = trl_gradients(model, rollout.inputs(), "grpo", 0.0, tmp_path)
    assert worst(right, our_gradients(backend, rollout))[0] > 0.1
