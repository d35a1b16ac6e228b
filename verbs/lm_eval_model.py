"""lm-eval's `LM` over a backend of ours. Imported only where lm-eval is installed (the extra `bench`)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from gsm8k_core.models.control_tokens import PlainTexts, Rendered
from gsm8k_core.models.rendering import Rendering
from gsm8k_core.models.trial import arranged
from gsm8k_core.scoring.harness import (
    Continuation,
    Done,
    Engine,
    are_greedy,
    check_settings,
    clipped,
    complete,
    log_likelihoods,
    sampling_of,
)
from gsm8k_core.scoring.sampling import noise_key
from gsm8k_core.scoring.thinking import split
from gsm8k_core.types import UsageError

DEFAULT_MAX_GEN_TOKS = 256  # of lm-eval's hf backend, where a task names none
Encoded = tuple[Any, list[int], list[int]]  # the texts, context and continuation


class BackendLM(TemplateLM):
    """One open model. Prompts, stop strings and cuts are made as lm-eval's hf backend makes them."""

    def __init__(
        self,
        engine: Engine,
        rendering: Rendering,
        name: str,
        say: Callable[[str], None],
        done: Callable[[str, int], Done],
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.tokenizer: Any = rendering.tokenizer
        self._rendering, self._engine, self._name, self._seed = rendering, engine, name, seed
        self._texts_seen = PlainTexts(rendering.control, self.tokenizer.decode([self.prefix_token_id]))
        self._say, self._done = say, done

    # --- words -----------------------------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    @property
    def tokenizer_name(self) -> str:
        return self._name.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        if add_special_tokens is None:
            # The template's own first token must not come twice.
            add_special_tokens = not has_bos_prefix(string, self.tokenizer.decode([self.prefix_token_id]))
        if (tokens := self._texts_seen.encode(string)) is None:
            return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))
        begin = self.tokenizer.encode("", add_special_tokens=True) if add_special_tokens else []
        return [*begin, *tokens]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        def render(turns: list[dict[str, str]]) -> str:
            hidden: list[str] = []
            safe = [{**turn, "content": self._rendering.control.hide(turn["content"], hidden)} for turn in turns]
            text = str(
                self.tokenizer.apply_chat_template(
                    arranged(safe, "system", self._rendering.parts),
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                    **self._rendering.options,
                )
            )
            shown = self._rendering.closed(text) if add_generation_prompt else text
            return self._texts_seen.give(Rendered(shown, tuple(hidden)))

        try:
            return render(chat_history)
        except jinja2.exceptions.TemplateError:
            # As lm-eval's hf backend does for templates that know no system turn.
            return render([turn for turn in chat_history if turn["role"] != "system"])

    # --- texts -----------------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(index)
        found: dict[int, str] = {}
        done = self._done("answer", len(requests))
        for places in groups.values():
            contexts = [requests[place].args[0] for place in places]
            found |= zip(places, self._texts(contexts, requests[places[0]].args[1], done), strict=True)
        for index, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, found[index])
        return [found[index] for index in range(len(requests))]

    def _texts(self, contexts: Sequence[str], asked: Mapping[str, Any], done: Done) -> list[str]:
        check_settings(asked)
        settings = dict(normalize_gen_kwargs(dict(asked), DEFAULT_MAX_GEN_TOKS))
        until = handle_stop_sequences(settings.pop("until", None), eos=self.tokenizer.decode([self.eot_token_id]))
        sampling = sampling_of(settings, self._engine.batch_size, self._seed)
        room = self._engine.max_length - sampling.max_new_tokens
        if room < 1:
            raise UsageError(
                f"max_gen_toks={sampling.max_new_tokens} leaves no room for a prompt: this model reads "
                f"{self._engine.max_length:,} tokens; add --gen-kwargs max_gen_toks={self._engine.max_length // 2}"
            )
        prompts = [tuple(self.tok_encode(context)) or (self.prefix_token_id,) for context in contexts]
        if too_long := sum(len(prompt) > room for prompt in prompts):
            self._say(f"{too_long} of {len(prompts)} prompts lost their start: longer than {room:,} tokens")
        # Repeats of one request come with one context; what is drawn depends on nothing else in the run.
        before: Counter[str] = Counter()
        keys = []
        for context in contexts:
            keys.append(noise_key(context, before[context]))
            before[context] += 1
        rows = complete(self._engine, [prompt[-room:] for prompt in prompts], until, sampling, keys, done)
        texts = [self.tokenizer.decode(list(tokens), skip_special_tokens=True) for tokens in rows]
        if self._rendering.thinking:  # as lm-eval's hf backend does where it is told the token that ends a thought
            texts = [split(self._rendering.text(tokens)).answer for tokens in rows]
        return [postprocess_generated_text(text, until, None) for text in texts]

    # --- log-likelihoods -------------------------------------------------------------------------------------------

    def _loglikelihood_tokens(self, requests: list[Encoded], **options: Any) -> list[tuple[float, bool]]:
        pairs = [clipped(Continuation(tuple(a), tuple(b)), self._engine.max_length) for _, a, b in requests]
        scores = log_likelihoods(self._engine, pairs, self._done("log-likelihood", len(pairs)))
        found = [
            (float(row.sum(dtype="float64")), greedy)
            for row, greedy in zip(scores, are_greedy(self._engine, pairs, scores), strict=True)
        ]
        for (texts, _, _), answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        pairs, owners = [], []
        for index, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._engine.max_length,
                context_len=1,
            )
            for context, tokens in map(make_disjoint_window, windows):
                pairs.append(clipped(Continuation(tuple(context), tuple(tokens)), self._engine.max_length))
                owners.append(index)
        totals = [0.0] * len(requests)
        scores = log_likelihoods(self._engine, pairs, self._done("window", len(pairs)))
        for owner, row in zip(owners, scores, strict=True):
            totals[owner] += float(row.sum(dtype="float64"))
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals
