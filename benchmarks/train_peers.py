"""The peers: mlx_lm.lora, TRL's SFTTrainer and transformers' Trainer on the rows, order and step of the job.

Axes: B rows, T tokens.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.job import Row, TrainJob
from benchmarks.measure import Tape, check_tokens, ended
from gsm8k_core.models.adapter import PEFT_WEIGHTS, mlx_name, peft_name

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
IGNORED = -100
Outcome = tuple[float, Callable[[], Mapping[str, Any]]]


# --- mlx_lm.lora ---------------------------------------------------------------------------------------------------


def mlx_lm_lora(job: TrainJob, tape: Tape) -> Outcome:
    """mlx_lm.lora's own train_model, its loss and its padding; only the order of the rows is ours."""
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_map
    from mlx_lm import lora
    from mlx_lm.tuner import trainer
    from mlx_lm.tuner.callbacks import TrainingCallback
    from mlx_lm.tuner.datasets import ChatDataset
    from mlx_lm.utils import load

    model, tokenizer = load(str(job.model))
    model.update(tree_map(lambda value: value.astype(getattr(mx, job.dtype)), model.parameters()))
    size, per_update = job.config.batch_size, job.config.gradient_accumulation_steps
    batches = _mlx_batches(job, tokenizer)
    first_loss = 0.0

    def ordered(*unused: Any, **options: Any) -> Iterator[Any]:
        """mlx_lm's own batches, one after another in the job's order instead of a random one."""
        for _ in range(job.passes):
            for rows in batches:
                ((batch, lengths),) = trainer.iterate_batches(rows, size, options["max_seq_length"])
                tape.ran(batch.shape[0], batch.shape[1] - 1)  # the last column is a target only
                yield batch, lengths

    class Reports(TrainingCallback):
        def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
            tape.losses.append(float(train_info["train_loss"]))
            tape.update_done()

    def train(model: Any, **options: Any) -> None:
        nonlocal first_loss
        with tape.aside():
            first = [next(trainer.iterate_batches(rows, size, 1 << 20)) for rows in batches[:per_update]]
            first_loss = _true_loss(model, first)
        tape.start()
        trainer.train(model=model, iterate_batches=ordered, **options)

    nothing = ChatDataset([], tokenizer)

    def save(*unused: Any) -> None:
        """main() writes the weights, once, as for everyone."""

    unsaved = mock.patch.object(mx, "save_safetensors", save)
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(lora, "train", train), unsaved:
        settings = _mlx_settings(job, Path(folder), len(model.layers), len(batches) * job.passes)
        lora.train_model(SimpleNamespace(**lora.CONFIG_DEFAULTS | settings), model, nothing, nothing, Reports())

    def trained() -> Mapping[str, Any]:
        values = dict(tree_flatten(model.trainable_parameters()))
        arrays = {name: np.array(value.astype(mx.float32)) for name, value in values.items()}
        if job.config.method == "full":
            return arrays
        return {peft_name(name): np.ascontiguousarray(value.T) for name, value in arrays.items()}

    return first_loss, trained


def _mlx_batches(job: TrainJob, tokenizer: Any) -> list[Any]:
    """mlx_lm's own datasets, one for each micro-batch, tokenised and checked."""
    from mlx_lm.tuner.datasets import CacheDataset, ChatDataset

    class Ended(ChatDataset):
        def process(self, item: dict[str, Any]) -> tuple[list[int], int]:
            tokens, num_masked = super().process(item)
            return ended(item["row"], tokens), num_masked

    rows, size = [row for update in job.updates for row in update], job.config.batch_size
    batches = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        told = [{"messages": row.messages, "row": row} for row in part]
        batches.append(CacheDataset(Ended(told, tokenizer, mask_prompt=True)))
        for place, row in enumerate(part):
            check_tokens("mlx_lm", row, *batches[-1][place])
    return batches


def _mlx_settings(job: TrainJob, folder: Path, num_layers: int, iterations: int) -> dict[str, Any]:
    """What is not as shipped: the method, the step, the order of the job, and that no row of it is cut."""
    from mlx_lm.lora import CONFIG_DEFAULTS

    config = job.config
    return {
        "model": str(job.model),
        "train": True,
        "mask_prompt": True,
        "optimizer": "adamw",
        "fine_tune_type": config.method,
        "num_layers": num_layers,
        "batch_size": config.batch_size,
        "iters": iterations,
        "learning_rate": config.learning_rate,
        "optimizer_config": {"adamw": _adamw(job)},
        "steps_per_report": config.gradient_accumulation_steps,
        "save_every": 10**9,
        "adapter_path": str(folder),
        "grad_accumulation_steps": config.gradient_accumulation_steps,
        "lora_parameters": {"rank": config.lora_rank, "dropout": 0.0, "scale": config.lora_alpha / config.lora_rank},
        "resume_adapter_file": _mlx_adapter(job, folder),
        "max_seq_length": max(job.max_length, CONFIG_DEFAULTS["max_seq_length"]),
    }


def _adamw(job: TrainJob) -> dict[str, Any]:
    config = job.config
    return {
        "betas": [config.adam_beta1, config.adam_beta2],
        "eps": config.adam_epsilon,
        "weight_decay": config.weight_decay,
        "bias_correction": True,
    }


def _mlx_adapter(job: TrainJob, folder: Path) -> str | None:
    if job.adapter is None:
        return None
    from safetensors.numpy import load_file, save_file

    values = load_file(str(job.adapter / PEFT_WEIGHTS))
    path = folder / "first.safetensors"
    save_file({mlx_name(name): np.ascontiguousarray(value.T) for name, value in values.items()}, str(path))
    return str(path)


def _true_loss(model: Any, batches: Sequence[Any]) -> float:
    """Nats per target with mlx_lm's own loss and lengths one shorter: without the pad that it also trains."""
    import mlx.core as mx
    from mlx_lm.tuner.trainer import default_loss

    pairs = [default_loss(model, batch, lengths - mx.array([0, 1])) for batch, lengths in batches]
    total = sum(loss.item() * count.item() for loss, count in pairs)
    return float(total / sum(count.item() for _, count in pairs))


# --- TRL and transformers -------------------------------------------------------------------------------------------


def trl_shipped(job: TrainJob, tape: Tape) -> Outcome:
    return _sft(job, tape, sort=False)


def trl_best(job: TrainJob, tape: Tape) -> Outcome:
    """Without gradient checkpointing; micro-batches of like lengths. padding_free needs FlashAttention: CUDA only."""
    return _sft(job, tape, sort=True, gradient_checkpointing=False)


def _sft(job: TrainJob, tape: Tape, sort: bool, **changes: Any) -> Outcome:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rows = _rows(job, sort)
    model = _model(job)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(**_arguments(job, folder), max_length=job.max_length, **changes),
            train_dataset=Dataset.from_list(
                [{"prompt": row.messages[:-1], "completion": row.messages[-1:]} for row in rows]
            ),
            processing_class=AutoTokenizer.from_pretrained(str(job.model)),
        )
        trainer.train_dataset = trainer.train_dataset.map(
            lambda made, place: _ended(rows[place], made), with_indices=True
        )
        for row, made in zip(rows, trainer.train_dataset, strict=True):
            masked = sum(label == IGNORED for label in made["labels"])
            check_tokens("TRL", row, made["input_ids"], masked)
        return _run(trainer, job, tape)


def _ended(row: Row, made: Mapping[str, Any]) -> dict[str, Any]:
    """What TRL made of a row, each of its lists as long as the tokens that are left."""
    size, left = len(made["input_ids"]), len(ended(row, made["input_ids"]))
    return {
        name: value[:left] if isinstance(value, list) and len(value) == size else value for name, value in made.items()
    }


def hf_trainer(job: TrainJob, tape: Tape) -> Outcome:
    """transformers' Trainer with the collator that its own examples use for labelled rows."""
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(str(job.model))
    tokenizer.padding_side = "right"
    rows = [
        {
            "input_ids": row.tokens,
            "attention_mask": [1] * len(row.tokens),
            "labels": [IGNORED] * row.num_prompt + row.tokens[row.num_prompt :],
        }
        for row in _rows(job, sort=False)
    ]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=_model(job),
            args=TrainingArguments(**_arguments(job, folder)),
            train_dataset=rows,
            data_collator=DataCollatorForSeq2Seq(tokenizer),
        )
        return _run(trainer, job, tape)


def _rows(job: TrainJob, sort: bool) -> list[Row]:
    updates = [sorted(rows, key=lambda row: -len(row.tokens)) if sort else rows for rows in job.updates]
    return [row for rows in updates for row in rows]


def _model(job: TrainJob) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(job.model), dtype=torch.float32, attn_implementation="sdpa")
    if job.adapter is not None:
        from peft import PeftModel

        return PeftModel.from_pretrained(model, str(job.adapter), is_trainable=True)
    if job.config.trainable == "blocks":
        model.requires_grad_(False)
        model.get_decoder().layers.requires_grad_(True)
    return model


def _arguments(job: TrainJob, folder: str) -> dict[str, Any]:
    """The same step for everyone; what is not named is as shipped."""
    config = job.config
    return {
        "output_dir": folder,
        "num_train_epochs": job.passes,
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": config.weight_decay,
        "adam_beta1": config.adam_beta1,
        "adam_beta2": config.adam_beta2,
        "adam_epsilon": config.adam_epsilon,
        "max_grad_norm": config.max_grad_norm,
        "bf16": job.dtype == "bfloat16",
        "use_cpu": job.device == "cpu",
        "seed": config.seed,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
    }


def _run(trainer: Any, job: TrainJob, tape: Tape) -> Outcome:
    import torch
    from transformers import TrainerCallback

    class Reports(TrainerCallback):
        def on_train_begin(self, *unused: Any, **more: Any) -> None:
            tape.start()

        def on_step_end(self, *unused: Any, **more: Any) -> None:
            tape.update_done()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
            if "loss" in logs:
                tape.losses.append(float(logs["loss"]))

    def note_shape(module: Any, args: Any, kwargs: Any) -> None:
        tape.ran(*kwargs["input_ids"].shape)

    trainer.add_callback(Reports())
    trainer.model.register_forward_pre_hook(note_shape, with_kwargs=True)
    with tape.aside():
        first_loss = _first_loss(trainer.model, job, torch)
    trainer.train()
    return first_loss, lambda: _trained(trainer.model, job)


def _first_loss(model: Any, job: TrainJob, torch: Any) -> float:
    """Nats per target of the first update in the model's own forward pass, before any step; row by row, unpadded."""
    device, total, count = next(model.parameters()).device, 0.0, 0
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=job.dtype == "bfloat16"):
        for row in job.updates[0]:
            tokens = torch.tensor([row.tokens], device=device)
            logits = model(input_ids=tokens).logits[0, row.num_prompt - 1 : -1].float()
            total += torch.nn.functional.cross_entropy(logits, tokens[0, row.num_prompt :], reduction="sum").item()
            count += len(row.tokens) - row.num_prompt
    return total / count


def _trained(model: Any, job: TrainJob) -> Mapping[str, Any]:
    if job.adapter is not None:
        from peft import get_peft_model_state_dict

        values = get_peft_model_state_dict(model)
    else:
        values = {name: value for name, value in model.named_parameters() if value.requires_grad}
    return {name: value.detach().float().cpu().contiguous().numpy() for name, value in values.items()}
