"""One generation run of one contender, in a process of its own: python benchmarks/eval_throughput.py JOB.json

Everyone gets the same token ids, is greedy, and stops at the same end tokens or after the same number of new ones.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # a script's own folder is on the path, the checkout is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import psutil

from benchmarks.job import GenerateJob, GenerateSample
from benchmarks.measure import gemm_gflops, open_device
from gsm8k_core.files import write_bytes
from gsm8k_core.training.memory import peak_rss

os.environ.setdefault("HF_HUB_OFFLINE", "1")
WARM_UP_TOKENS = 8
# (prompts, new tokens, batch size) -> the completions, end tokens left in or out
Answer = Callable[[Sequence[Sequence[int]], int, int], list[list[int]]]


def main(path: Path) -> None:
    job = GenerateJob.model_validate_json(path.read_bytes())
    device = open_device(job.framework, job.device, job.dtype)
    gemm = gemm_gflops(device)
    answer = CONTENDERS[job.contender](job)
    load_seconds = time.time() - psutil.Process(os.getpid()).create_time()

    def timed(new_tokens: int, size: int) -> tuple[float, list[list[int]]]:
        device.synchronise()
        start = time.perf_counter()
        answers = answer(job.prompts, new_tokens, size)
        device.synchronise()
        return time.perf_counter() - start, [_before_end(tokens, job.end_ids) for tokens in answers]

    sizes = job.candidates or [job.batch_size or _as_eval(job)]
    warm_up, _ = timed(WARM_UP_TOKENS, sizes[0])
    # Whole runs: a short one would mostly read prompts. The fastest is the sample, which is kind to the peer.
    runs = {size: timed(job.max_new_tokens, size) for size in sizes}
    tried = {size: sum(map(len, answers)) / seconds for size, (seconds, answers) in runs.items()}
    best = max(tried, key=lambda size: tried[size])
    seconds, cut = runs[best]
    memory = {"peak_rss": peak_rss(), "peak_framework": device.peak_bytes()}  # before more products are run
    # Ours and batch_generate leave the end token out: a shorter answer can only have ended by itself.
    stopped = [len(tokens) < job.max_new_tokens for tokens in cut]
    sample = GenerateSample(
        seconds=seconds,
        warm_up_seconds=warm_up,
        batch_size=best,
        tried=tried if job.candidates else {},
        completions=cut,
        stopped=stopped,
        load_seconds=load_seconds,
        gemm_gflops=gemm,
        gemm_after=gemm_gflops(device),
        **memory,
        notes=device.notes(),
    )
    write_bytes(job.out, sample.model_dump_json().encode())


def _as_eval(job: GenerateJob) -> int:
    """How many prompts `eval` would answer at once here."""
    import backends
    from gsm8k_core.config.fields import AUTO
    from gsm8k_core.models.folder import ModelFolder
    from gsm8k_core.training.memory import evaluated_at_once

    tokens = max(map(len, job.prompts)) + job.max_new_tokens
    memory = backends.device_memory(job.framework, job.device)
    return int(evaluated_at_once(AUTO, ModelFolder(job.model).config, memory, job.dtype, tokens).name)


def _before_end(tokens: Sequence[int], end_ids: Sequence[int]) -> list[int]:
    at = next((place for place, token in enumerate(tokens) if token in end_ids), len(tokens))
    return list(tokens[:at])


def ours(job: GenerateJob) -> Answer:
    """This project, through the interface that `eval` uses."""
    import backends
    from gsm8k_core.models.folder import ModelFolder
    from gsm8k_core.types import Sampling

    backend = backends.open(job.framework, job.model, job.device, job.dtype, ModelFolder(job.model).rendering)

    def answer(prompts: Sequence[Sequence[int]], new_tokens: int, size: int) -> list[list[int]]:
        found = dict(backend.generate(prompts, Sampling(new_tokens, size)))
        return [list(found[place].tokens) for place in range(len(prompts))]

    return answer


def mlx_lm_batch(job: GenerateJob) -> Answer:
    """mlx-lm's batch_generate; prompts are read by eights, as it ships."""
    import mlx.core as mx
    from mlx.utils import tree_map
    from mlx_lm import batch_generate
    from mlx_lm.utils import load

    model, tokenizer = load(str(job.model))
    model.update(tree_map(lambda value: value.astype(getattr(mx, job.dtype)), model.parameters()))
    tokenizer.eos_token_ids = set(job.end_ids)

    def answer(prompts: Sequence[Sequence[int]], new_tokens: int, size: int) -> list[list[int]]:
        made = batch_generate(
            model,
            tokenizer,
            [list(prompt) for prompt in prompts],
            max_tokens=new_tokens,
            return_token_ids=True,
            completion_batch_size=size,
        )
        return [list(tokens) for tokens in made.token_ids]

    return answer


def hf_generate(job: GenerateJob) -> Answer:
    return _hf(job, sort=False)


def hf_generate_sorted(job: GenerateJob) -> Answer:
    return _hf(job, sort=True)


def _hf(job: GenerateJob, sort: bool) -> Answer:
    """transformers' generate over left-padded batches, in the given order or with prompts of like length together."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    model: Any = AutoModelForCausalLM.from_pretrained(str(job.model), dtype=getattr(torch, job.dtype))
    model.to(job.device).eval()
    model.generation_config = GenerationConfig()  # Qwen2.5 ships a repetition penalty of 1.1: other texts, other work

    def batch(prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=job.device)
        mask = torch.tensor(
            [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=job.device
        )
        with torch.no_grad():
            made = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=new_tokens,
                do_sample=False,
                eos_token_id=job.end_ids,
                pad_token_id=job.end_ids[0],
            )
        return [_before_end(row, job.end_ids) for row in made[:, longest:].tolist()]

    def answer(prompts: Sequence[Sequence[int]], new_tokens: int, size: int) -> list[list[int]]:
        order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]) if sort else place)
        found: dict[int, list[int]] = {}
        for start in range(0, len(order), size):
            places = order[start : start + size]
            found |= dict(zip(places, batch([prompts[place] for place in places], new_tokens), strict=True))
        return [found[place] for place in range(len(prompts))]

    return answer


CONTENDERS: dict[str, Callable[[GenerateJob], Answer]] = {
    "ours-mlx": ours,
    "ours-torch": ours,
    "mlx-lm": mlx_lm_batch,
    "mlx-lm-best": mlx_lm_batch,
    "hf": hf_generate,
    "hf-best": hf_generate_sorted,
}

if __name__ == "__main__":
    main(Path(sys.argv[1]))
