"""`generate`: answers to a question, a file of questions, or a prompt typed in; streamed where a person watches."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import backends
from backends.base import Backend, ignore_token
from gsm8k_core.config import EMBEDDED_MODEL, GenerateConfig
from gsm8k_core.data import strip_annotations
from gsm8k_core.model_folder import vocabulary_size
from gsm8k_core.models import resolve_model
from gsm8k_core.preflight import check_token_ids
from gsm8k_core.prompts import Tokenizer, decode, load_tokenizer, prompt_tokens
from gsm8k_core.sources import AUTO, choose_pair
from gsm8k_core.tracking import Terminal, printable
from gsm8k_core.types import EXIT_OK, Completion, DataError, Problem, Sampling, UsageError
from verbs import Context, say_choices
from verbs.demo import banner


def run(config: GenerateConfig, context: Context) -> int:
    """The verb."""
    terminal = context.terminal
    if config.question and config.file:
        raise UsageError("give a question or --file, not both")
    choice = backends.resolve(config.backend)
    questions = _questions(config)
    chosen = choose_pair(AUTO, AUTO, "main", lambda asked: None) if config.model == AUTO else None
    source = resolve_model(chosen.model if chosen else config.model, terminal.say)
    if source.choice.name == EMBEDDED_MODEL:
        banner(terminal, chosen.model_choice.reason if chosen else "given with --model")
    tokenizer = load_tokenizer(source.folder)
    backend = backends.open(choice.name, source.folder, config.device, config.dtype)
    if config.verbose:
        say_choices(terminal, {"backend": choice, **backend.choices})
    sampling = Sampling(
        config.max_new_tokens, config.eval_batch_size, config.temperature, config.top_p, config.top_k, config.seed
    )
    vocabulary = vocabulary_size(source.folder)
    if questions is not None:
        results = _answer(backend, tokenizer, questions, sampling, vocabulary, config, terminal)
        terminal.result({"model": source.name, "answers": results})
        return EXIT_OK
    for question in _typed(terminal):
        _answer(backend, tokenizer, [question], sampling, vocabulary, config, terminal)
    return EXIT_OK


def _questions(config: GenerateConfig) -> list[str] | None:
    """What to answer, or None for a prompt on the terminal."""
    if config.question:
        return [config.question]
    if config.file:
        return _read(config.file)
    if not sys.stdin.isatty():
        text = sys.stdin.read().strip()
        if not text:
            raise UsageError("no question was given; type one after generate, or use --file QUESTIONS")
        return [text]
    if config.json_:
        raise UsageError("--json needs a question or --file")
    return None


def _read(path: Path) -> list[str]:
    """Questions of a file: one a line, or JSONL with `question`."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); give a text file with a question on each line") from error
    questions = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if path.suffix != ".jsonl":
            questions.append(line.strip())
            continue
        try:
            question = json.loads(line)["question"]
        except (ValueError, KeyError, TypeError):
            question = None
        if not isinstance(question, str) or not question.strip():
            raise DataError(f'{path}:{number}: needs an object with a "question"')
        questions.append(question)
    if not questions:
        raise DataError(f"{path} holds no question")
    return questions


def _typed(terminal: Terminal) -> Iterator[str]:
    terminal.say("Type a question and press Enter; an empty line or Ctrl-D ends.")
    while True:
        try:
            question = input("? ").strip()
        except EOFError:
            return
        if not question:
            return
        yield question


def _answer(
    backend: Backend,
    tokenizer: Tokenizer,
    questions: Sequence[str],
    sampling: Sampling,
    vocabulary: int,
    config: GenerateConfig,
    terminal: Terminal,
) -> list[dict[str, object]]:
    problems = [Problem(str(number), question, "", "") for number, question in enumerate(questions)]
    prompts = prompt_tokens(tokenizer, problems)
    check_token_ids(prompts, vocabulary)
    stream = len(questions) == 1 and not config.json_
    writer = _Writer(tokenizer, config.annotations == "hide")
    finished: dict[int, Completion] = {}
    for index, completion in backend.generate(prompts, sampling, writer.token if stream else ignore_token):
        finished[index] = completion
    if stream:
        writer.end()
    show = strip_annotations if config.annotations == "hide" else _as_it_is
    results: list[dict[str, object]] = []
    for index, question in enumerate(questions):
        text = show(decode(tokenizer, finished[index].tokens))
        if len(questions) > 1:
            terminal.say(f"? {question}\n{text}\n")
        results.append({"question": question, "completion": text, "finish_reason": finished[index].finish_reason,
                        "tokens": len(finished[index].tokens)})  # fmt: skip
        if finished[index].finish_reason == "length":
            terminal.say(f"(cut at --max-new-tokens {config.max_new_tokens})")
    return results


def _as_it_is(text: str) -> str:
    return text


def _to_stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


class _Writer:
    """Writes an answer as it comes, a little behind: a character or a mark may still be half written."""

    def __init__(self, tokenizer: Tokenizer, hide: bool, write: Callable[[str], object] = _to_stdout) -> None:
        self._tokenizer, self._hide, self._write = tokenizer, hide, write
        self._tokens: list[int] = []
        self._shown = 0

    def token(self, index: int, token: int) -> None:
        self._tokens.append(token)
        text = self._text()
        # What follows an open `<<` waits for its `>>`.
        safe = text.rfind("<<") if self._hide and "<<" in text[self._shown :] else len(text)
        self._show(text[: max(0, min(safe, len(text) - 2))])

    def _text(self) -> str:
        text = decode(self._tokenizer, self._tokens)
        return strip_annotations(text) if self._hide else text

    def _show(self, text: str) -> None:
        if len(text) > self._shown and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._write(printable(text[self._shown :]))
            self._shown = len(text)

    def end(self) -> None:
        self._show(self._text())
        self._write("\n")
