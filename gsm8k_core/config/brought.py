"""Names and values that people bring from other programs, and what they are called here.

A name is answered with ours and never taken: what is the same in name may differ in meaning. A value that means one
thing (bf16, LoRA) is taken as it is.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Literal, get_args, get_origin

# Ours -> theirs; behind a blank stands the value that the name asks for. The first of ours that a verb has is said.
_NAMES = {
    "learning_rate": "lr peak_lr base_lr learning_rates",
    "num_epochs": "epochs epoch num_train_epochs n_epochs max_epochs iters iterations num_iters steps max_steps "
    "num_steps max_train_steps",
    "method lora": "lora use_lora peft use_peft enable_lora",
    "method qlora": "qlora use_qlora load_in_4bit",
    "method dora": "dora use_dora",
    "method": "fine_tune_type finetune_type finetuning_type train_type tuner_type",
    "max_samples": "limit num_samples max_train_samples max_problems num_problems n_samples subset",
    "limit": "limit num_samples max_samples",
    "gradient_accumulation_steps": "grad_accum grad_accumulation gradient_accumulation grad_accumulation_steps "
    "grad_accum_steps accumulate_grad_batches accumulation_steps",
    "batch_size": "bs batch per_device_train_batch_size per_device_batch_size train_batch_size micro_batch_size "
    "per_gpu_train_batch_size",
    "eval_batch_size": "bs batch batch_size per_device_eval_batch_size val_batch_size",
    "lora_rank": "rank r lora_r lora_dim",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "lora_target lora_target_modules lora_modules",
    "max_length": "max_seq_length max_seq_len seq_len seq_length max_len cutoff_len block_size model_max_length",
    "output_dir": "output out save_path save_dir out_dir adapter_path",
    "model": "model_name model_name_or_path model_path model_id checkpoint adapter_path base_model",
    "trained_model": "model model_name adapter_path adapter",
    "data": "dataset dataset_name data_path data_dir train_file dataset_path",
    "dtype bfloat16": "bf16",
    "dtype float16": "fp16 half",
    "dtype float32": "fp32",
    "dtype": "precision torch_dtype mixed_precision",
    "gradient_checkpointing": "grad_checkpoint gradient_checkpoint grad_checkpointing",
    "warmup_ratio": "warmup warmup_steps",
    "schedule": "lr_scheduler_type lr_scheduler lr_schedule scheduler",
    "weight_decay": "wd decay",
    "max_grad_norm": "grad_clip gradient_clip_val clip_grad_norm",
    "save_steps": "save_every checkpoint_every",
    "eval_steps": "steps_per_eval eval_every",
    "resume": "resume_from_checkpoint resume_adapter_file",
    "report_to": "logger wandb",
    "max_time": "time timeout budget time_limit",
    "temperature": "temp",
    "max_new_tokens": "max_tokens max_gen_toks max_gen_tokens",
    "samples": "num_return_sequences num_generations",
    "clip": "epsilon clip_range clip_ratio eps_clip",
    "kl": "beta kl_coef kl_beta",
    "updates_per_rollout": "mu ppo_epochs updates_per_batch",
    "loss": "loss_type",
    "shots": "fewshot num_fewshot n_shot n_shots",
    "repeat": "repeats num_repeats",
}
_VALUES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "f16": "float16",
    "fp32": "float32",
    "f32": "float32",
}


def meant(name: str, names: Collection[str]) -> str | None:
    """Which of a verb's `names`, and maybe a value behind it, a name it has not may mean; all with underscores."""
    plain = name.lower().replace("-", "_")
    for ours, theirs in _NAMES.items():
        if plain in theirs.split() and ours.split()[0] in names:
            return ours
    near = difflib.get_close_matches(plain, names, n=1, cutoff=0.75)
    return near[0] if near else None


def truth(value: bool, annotation: object) -> str | None:
    """The choice that true and false stand for, `on` and `off`: in a YAML file these are words for them. None: none."""
    words = get_args(annotation) if get_origin(annotation) is Literal else ()
    word = "on" if value else "off"
    return word if word in words else None


def spelled(value: str, annotation: object) -> str:
    """The choice that a value means: bf16 is bfloat16, LoRA is lora; the value itself where it means none."""
    if get_origin(annotation) is not Literal:
        return value
    plain = value.strip().lower()
    return next((each for each in (plain, _VALUES.get(plain, plain)) if each in get_args(annotation)), value)
