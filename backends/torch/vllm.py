"""vLLM beside the model on one GPU: it samples a rollout by the weights that are trained, and nothing else.

It is asked in the words of Weights.generate. What it cannot do is refused before a run begins: another device than
CUDA, a calculator's forced tokens, DoRA. Its kernels are not torch's, so its texts are not those of the torch backend,
and a run that goes on does not come to the same ones to the last bit. Ratios and entropies are scored by torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from backends.torch.adapter import ADAPTER
from gsm8k_core.backend import ignore_token
from gsm8k_core.config.fields import AUTO
from gsm8k_core.types import Completion, OnToken, PreflightError, Sampling

PACKAGE = "vllm"
DEVICE = "cuda"  # that it runs on
SHARE = 0.3  # of the GPU's memory, for its own weights and its cache; the training has the rest
SEED_BITS = (1 << 63) - 1


INSTEAD = "leave out --rollout-engine: the torch backend then samples itself"


def check(device: str, uses_dora: bool) -> None:
    """Raises PreflightError where vLLM cannot sample for a run. Which device `auto` is, is known with the model."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise PreflightError(f"--rollout-engine vllm: vLLM is not installed; pip install vllm (CUDA), or {INSTEAD}")
    if device not in (DEVICE, AUTO):
        raise PreflightError(f"--rollout-engine vllm runs on --device {DEVICE}, and this is {device}; {INSTEAD}")
    if uses_dora:
        raise PreflightError(f"--rollout-engine vllm is for --method full and lora, not for dora; {INSTEAD}")


def named_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights as they are now, an adapter added to those that it changes, under Hugging Face's names."""
    from peft.tuners.lora import LoraLayer

    adapted = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    for name, parameter in model.named_parameters():
        layer, _, rest = name.rpartition(".base_layer.")
        if layer in adapted:
            added = adapted[layer].get_delta_weight(ADAPTER) if rest == "weight" else 0.0
            yield f"{layer}.{rest}", (parameter + added).detach()
        elif not any(name.startswith(f"{each}.") for each in adapted):
            yield name, parameter.detach()


class VLLMEngine:
    """Samples by the weights of `model`, as they are when `generate` is called."""

    def __init__(self, folder: Path, model: Any, end_ids: Collection[int], longest: int) -> None:
        """`longest`: tokens of a prompt with its answer, at most."""
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # its weights are ours to set only in this process
        self._package, self._model, self._end_ids = importlib.import_module(PACKAGE), model, frozenset(end_ids)
        self._llm = self._package.LLM(
            model=str(folder), dtype="bfloat16", max_model_len=longest, gpu_memory_utilization=SHARE
        )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        on_token: OnToken = ignore_token,
        keys: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, Completion]]:
        """As Weights.generate, all answers at once; `on_token` hears of them when they are there."""
        if sampling.force is not None:
            raise ValueError("vLLM writes nothing that it has not drawn")
        self._take_weights()
        keys = range(len(prompts)) if keys is None else keys
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        found = self._llm.generate(asked, [self._params(sampling, key) for key in keys], use_tqdm=False)
        for index, each in enumerate(found):
            completion = _completion(each.outputs[0], self._end_ids)
            for token in completion.tokens:
                on_token(index, token)
            yield index, completion

    def _params(self, sampling: Sampling, key: int) -> Any:
        return self._package.SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_new_tokens,
            seed=(key ^ (sampling.seed * 0x9E3779B97F4A7C15)) & SEED_BITS,
            stop_token_ids=sorted(self._end_ids),
            detokenize=False,
        )

    def _take_weights(self) -> None:
        runner = self._llm.llm_engine.model_executor.driver_worker.model_runner
        load: Callable[[Any], object] = runner.model.load_weights
        load(named_weights(self._model))
        self._llm.reset_prefix_cache()  # it is of the weights before


def _completion(output: Any, end_ids: frozenset[int]) -> Completion:
    """vLLM counts the end token among an answer's."""
    tokens = tuple(map(int, output.token_ids))
    if tokens and tokens[-1] in end_ids:
        return Completion(tokens[:-1], "stop", tokens[-1])
    return Completion(tokens, "length")
