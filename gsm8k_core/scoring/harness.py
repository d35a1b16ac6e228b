"""What lm-eval asks of a model, in terms of `Backend.generate` and `Backend.score`: texts until a stop string, and
log-likelihoods of continuations. lm-eval itself is not imported here.

Axes: B rows, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gsm8k_core.problems.batching import pad
from gsm8k_core.types import Complete, Completion, DataError, Example, Sampling, UsageError

if TYPE_CHECKING:
    from gsm8k_core.backend import Weights
    from gsm8k_core.types import FloatArray

Tokens = tuple[int, ...]
Done = Callable[[int], None]  # called with how many more are done

LENGTH_KEYS = ("n_positions", "max_position_embeddings", "n_ctx")  # lm-eval's names, in its order
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # its names of one thing
NO_LENGTH = 2048  # lm-eval's, where neither config nor tokenizer names one
# What a task may ask for without changing anything here.
NEUTRAL: Mapping[str, object] = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "use_cache": True,
    "min_p": 0.0,
}
EVEN = math.log(0.5)


@dataclass(frozen=True, slots=True)
class Engine:
    """One open model, and how much it takes at once."""

    model: Weights
    decode: Callable[[Sequence[int]], str]  # special tokens kept: a stop string may be one
    end_ids: frozenset[int]
    vocabulary: int
    max_length: int  # tokens of prompt and answer together
    batch_size: int


def max_length(config: Mapping[str, Any], of_tokenizer: int) -> int:
    """The model's context as lm-eval's hf backend finds it, in its config.json or by its tokenizer."""
    found = next((config[key] for key in LENGTH_KEYS if isinstance(config.get(key), int)), None)
    return int(found) if found else of_tokenizer if of_tokenizer < 10**9 else NO_LENGTH


def check_settings(asked: Mapping[str, Any]) -> None:
    """Raises UsageError for a value of lm-eval's generation settings that is none of its kind."""
    for key, value in asked.items():
        if value is not None and (words := _wrong(key, value)):
            raise UsageError(f"lm-eval's setting {key}={value} must be {words}; give another: --gen-kwargs {key}=VALUE")


def _wrong(key: str, value: Any) -> str:
    """What a value must be; nothing where it is that."""
    number = _number(value)
    if key in LENGTHS:
        return "" if number is not None and number.is_integer() and number > 0 else "a whole number above 0"
    if key in ("temperature", "top_p"):
        return "a number" if number is None else ""
    if key == "top_k":
        return "" if number is not None and number.is_integer() else "a whole number"
    if key == "do_sample":
        return "" if isinstance(value, bool) else "true or false"
    texts = value if isinstance(value, list) else [value]
    return "a text, or a list of texts" if key == "until" and not all(isinstance(each, str) for each in texts) else ""


def _number(value: Any) -> float | None:
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def sampling_of(asked: Mapping[str, Any], batch_size: int, seed: int) -> Sampling:
    """lm-eval's generation settings, normalised by it, without `until`. Raises UsageError for what is not offered."""
    check_settings(asked)
    settings = dict(asked)
    longest, temperature = int(settings.pop("max_gen_toks")), float(settings.pop("temperature", 0.0))
    top_p, top_k = settings.pop("top_p", None), settings.pop("top_k", None)
    if not settings.pop("do_sample", temperature > 0):
        temperature, top_p, top_k = 0.0, None, None
    elif temperature <= 0:
        raise UsageError("the task samples without a temperature; add one: --gen-kwargs temperature=0.7")
    strange = [key for key, value in settings.items() if value is not None and NEUTRAL.get(key, value) != value]
    strange += [key for key, value in settings.items() if value is not None and key not in NEUTRAL]
    if strange:
        raise UsageError(
            f"the task asks for {', '.join(f'{key}={settings[key]}' for key in strange)}, which no backend offers "
            "(there are max_gen_toks, until, do_sample, temperature, top_p, top_k)"
        )
    nucleus, kept = float(1.0 if top_p is None else top_p), int(top_k or 0)
    if not 0 < nucleus <= 1 or kept < 0:
        raise UsageError(
            f"the task asks for top_p={nucleus:g} and top_k={kept}; top_p is above 0 and 1 at most, top_k from 0 on: "
            "give them with --gen-kwargs top_p=0.95,top_k=0"
        )
    return Sampling(longest, batch_size, temperature, nucleus, kept, seed)


# --- texts ---------------------------------------------------------------------------------------------------------


def until_shown(until: Sequence[str], decode: Callable[[Sequence[int]], str]) -> Complete | None:
    """Sampling.complete: whether a stop string has just become whole. None without one."""
    stops = [stop for stop in until if stop]
    # A token is a byte at least; two more, because a tokenizer may drop a space at the start.
    window = 2 + max((len(stop.encode()) for stop in stops), default=0)

    def shown(tokens: Sequence[int]) -> bool:
        tail = decode(tokens[-window:])
        return any(stop in tail for stop in stops)

    return shown if stops else None


def complete(
    engine: Engine, prompts: Sequence[Tokens], until: Sequence[str], sampling: Sampling, keys: Sequence[int], done: Done
) -> list[Tokens]:
    """The tokens of each completion up to where a stop string was complete. Cutting the text is lm-eval's part."""
    found: dict[int, Tokens] = {}
    sampling = replace(sampling, complete=until_shown(until, engine.decode))
    for index, completion in engine.model.generate(prompts, sampling, keys=keys):
        found[index] = completion.tokens
        done(1)
    return [found[index] for index in range(len(prompts))]


# --- log-likelihoods -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Continuation:
    """What comes before, and what is scored."""

    context: Tokens
    tokens: Tokens


def clipped(pair: Continuation, limit: int) -> Continuation:
    """The pair with what does not fit taken from the start of its context. Raises DataError when nothing is left.

    A row may be one longer than the model reads: its last token is only predicted.
    """
    if not pair.context or not pair.tokens:
        raise DataError("a context or a continuation of the task makes no token; use the model's own tokenizer")
    room = limit + 1 - len(pair.tokens)
    if room < 1:
        raise DataError(f"a continuation of {len(pair.tokens):,} tokens is too long: the model reads {limit:,}")
    return replace(pair, context=pair.context[-room:])


def log_likelihoods(engine: Engine, pairs: Sequence[Continuation], done: Done) -> list[FloatArray]:
    """log p of each token of each continuation, in nats."""
    order = sorted(range(len(pairs)), key=lambda index: -len(pairs[index].context + pairs[index].tokens))
    found: dict[int, FloatArray] = {}
    for start in range(0, len(order), engine.batch_size):
        chunk = order[start : start + engine.batch_size]
        rows = [
            Example(str(index), pairs[index].context + pairs[index].tokens, len(pairs[index].context))
            for index in chunk
        ]
        scored_BT = engine.model.score(pad(rows))
        for row, index, scores_T in zip(rows, chunk, scored_BT, strict=True):
            found[index] = scores_T[row.num_prompt - 1 : len(row.tokens) - 1]
        done(len(chunk))
    return [found[index] for index in range(len(pairs))]


def are_greedy(engine: Engine, pairs: Sequence[Continuation], scores: Sequence[FloatArray]) -> list[bool]:
    """Whether greedy decoding would write each continuation.

    `Backend.score` does not say which token was the likeliest. One above 1/2 is it, and one below 1/V is not; only
    where that leaves a doubt is the context really continued, once for all its continuations.
    """
    verdicts: list[bool | None] = [_obvious(row, engine.vocabulary) for row in scores]
    doubtful = [index for index, verdict in enumerate(verdicts) if verdict is None]
    longest: dict[Tokens, int] = {}
    for index in doubtful:
        pair = pairs[index]
        longest[pair.context] = max(longest.get(pair.context, 0), len(pair.tokens))
    continued: dict[Tokens, Completion] = {}
    for length in sorted(set(longest.values())):
        contexts = [context for context, needed in longest.items() if needed == length]
        sampling = Sampling(length, engine.batch_size)
        for index, completion in engine.model.generate(contexts, sampling):
            continued[contexts[index]] = completion
    for index in doubtful:
        verdicts[index] = _begins(continued[pairs[index].context], pairs[index].tokens, engine.end_ids)
    return [bool(verdict) for verdict in verdicts]


def _obvious(scores_T: FloatArray, vocabulary: int) -> bool | None:
    if scores_T.min() < -math.log(vocabulary) - 1e-3:
        return False
    return True if scores_T.min() > EVEN + 1e-3 else None


def _begins(completion: Completion, wanted: Tokens, end_ids: frozenset[int]) -> bool:
    """Whether the completion starts with `wanted`, whose last token may be the end token that is not written."""
    count = len(completion.tokens)
    if count >= len(wanted):
        return completion.tokens[: len(wanted)] == wanted
    return completion.tokens == wanted[:count] and len(wanted) == count + 1 and wanted[count] in end_ids
