"""`generate`: answers to a question, a file of questions, or a prompt typed in; streamed where a person watches."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import backends
from gsm8k_core.backend import Backend, ignore_token
from gsm8k_core.config.score import GenerateConfig
from gsm8k_core.doing import quiet
from gsm8k_core.models.find import prompted
from gsm8k_core.models.folder import ModelFolder
from gsm8k_core.models.tokenizer import Tokenizer
from gsm8k_core.problems.data import strip_annotations
from gsm8k_core.problems.lines import STDIN, fields, is_text, parse, read_lines
from gsm8k_core.problems.prompts import decode, prompt_tokens
from gsm8k_core.problems.rows import check_context, check_token_ids
from gsm8k_core.scoring.calculator import Calculator
from gsm8k_core.tracking.terminal import Terminal, printable
from gsm8k_core.types import EXIT_OK, Completion, DataError, Problem, Sampling, UsageError
from verbs import Context, say_choices
from verbs.talk import BATCH, asked_prompts, choose_model, choose_together

OPEN_MARK = re.compile(r"<<[0-9 .,+*/()=$%-]*>?\Z")  # `<<48/2=` at an answer's end, or all of it but a `>`
HELD = re.compile(r"<<[^<>\n]*>?\Z")  # what may still become a mark that `strip_annotations` takes out


def run(config: GenerateConfig, context: Context) -> int:
    """The verb. Answers go to stdout, and all else to stderr: `generate ... > answers.txt` keeps nothing but them."""
    beside = Terminal(json_only=True)
    if config.question and config.file:
        raise UsageError("give a question or --file, not both")
    choice = backends.resolve(config.backend)
    questions = _questions(config)
    source = choose_model(config.model, beside, config.base_model)
    source = prompted(source, asked_prompts(config))
    prompts = _prompts(source.model, questions or [], config)  # refused before the weights are loaded
    longest = max(map(len, prompts), default=0) + config.max_new_tokens
    together = choose_together(config.eval_batch_size, source, choice.name, config.device, config.dtype, longest)
    backend = backends.open(choice.name, source.folder, config.device, config.dtype, source.model.rendering)
    for note in source.model.rendering.notes():
        beside.say(note)
    if config.verbose:
        say_choices(beside, {"backend": choice, **backend.choices, BATCH: together})
    writer = Answers(config, backend, source.model.tokenizer, context.terminal, beside, int(together.name))
    if questions is not None:
        context.terminal.result({"model": source.name, "answers": writer.answer(questions, prompts)})
        return EXIT_OK
    for question in _typed(context.terminal):
        try:
            writer.answer([question], _prompts(source.model, [question], config))
        except (DataError, UsageError) as error:  # this question cannot be answered; the next one may be
            beside.say(f"error: {error}")
    return EXIT_OK


def _questions(config: GenerateConfig) -> list[str] | None:
    """What to answer, or None for a prompt on the terminal."""
    if config.question and config.question != str(STDIN):
        return [_checked(config.question)]
    piped = config.question == str(STDIN) or (not config.file and (sys.stdin is None or not sys.stdin.isatty()))
    if piped or config.file:
        return _read(STDIN if piped else config.file or STDIN)
    if config.json_:
        raise UsageError("--json needs a question or --file")
    return None


def _checked(question: str) -> str:
    if not question.strip():
        raise UsageError("the question is blank; type one after generate, or use --file QUESTIONS")
    if not is_text(question):
        raise UsageError("the question is not UTF-8 text; type it again, or save it as UTF-8 and use --file")
    return question


def _read(path: Path) -> list[str]:
    """Questions of a file or of stdin: one a line, or JSONL with `question`."""
    give = 'give a question on each line, or {"question": "..."} in a .jsonl file'
    name, questions = ("stdin" if path == STDIN else str(path)), []
    is_jsonl = path.suffix.lower() == ".jsonl"
    for where, line in read_lines(path, give):
        # stdin has no name to go by, and no word problem begins with a brace.
        if is_jsonl or (path == STDIN and line.lstrip().startswith("{")):
            questions.append(_of_row(line, where, give))
        else:
            questions.append(line.strip())
    if not questions:
        kind = UsageError if path == STDIN else DataError
        raise kind(f"{name} holds no question; {give}")
    return questions


def _of_row(line: str, where: str, give: str) -> str:
    question = fields(parse(line, where, give), ("question",), where).get("question")
    if type(question) is not str or not question.strip():
        raise DataError(f'{where}: needs an object with a "question" that is a text; {give}')
    if not is_text(question):
        raise DataError(f"{where}: the question has a NUL or half a surrogate pair, which is not text; remove it")
    return question


def _prompts(model: ModelFolder, questions: Sequence[str], config: GenerateConfig) -> list[tuple[int, ...]]:
    problems = [Problem(str(number), _checked(question), "", "") for number, question in enumerate(questions)]
    prompts = prompt_tokens(model.rendering, problems)
    check_token_ids(prompts, model.vocabulary)
    check_context(prompts, model.context, config.max_new_tokens)
    return prompts


def _typed(terminal: Terminal) -> Iterator[str]:
    terminal.say("Type a question and press Enter; an empty line or Ctrl-D ends.")
    while True:
        try:
            quiet()
            question = input("? ").strip()
        except (EOFError, KeyboardInterrupt):  # both leave
            _to_stdout("\n")
            return
        if not question:
            return
        yield question


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers questions: one as it is written, several each as soon as it and all before it are done."""

    config: GenerateConfig
    backend: Backend
    tokenizer: Tokenizer
    terminal: Terminal
    beside: Terminal
    together: int  # questions answered at once

    def answer(self, questions: Sequence[str], prompts: Sequence[Sequence[int]]) -> list[dict[str, object]]:
        """The answers as JSON, in the questions' order; shown on the way."""
        config = self.config
        sampling = Sampling(
            config.max_new_tokens,
            self.together,
            config.temperature,
            config.top_p,
            config.top_k,
            config.seed,
            force=Calculator.of(self.tokenizer) if config.calculator else None,
        )
        stream = len(questions) == 1 and not config.json_
        writer = _Writer(self.tokenizer, config.annotations == "hide")
        finished: dict[int, Completion] = {}
        quiet()
        results: list[dict[str, object]] = []
        for index, completion in self.backend.generate(prompts, sampling, writer.token if stream else ignore_token):
            finished[index] = completion
            while len(results) in finished:
                results.append(self._result(questions[len(results)], finished.pop(len(results))))
                if len(questions) > 1:
                    self._show(results[-1])
        if stream:
            writer.end()
            if results[0]["finish_reason"] == "length":
                self.beside.say(self._cut())
        return results

    def _result(self, question: str, completion: Completion) -> dict[str, object]:
        text = decode(self.tokenizer, completion.tokens)
        if self.config.annotations == "hide":
            text = hidden(text)
        return {
            "question": question,
            "completion": text,
            "finish_reason": completion.finish_reason,
            "tokens": len(completion.tokens),
        } | ({"calculated": completion.num_forced_runs} if self.config.calculator else {})

    def _show(self, result: Mapping[str, object]) -> None:
        cut = f"\n{self._cut()}" if result["finish_reason"] == "length" else ""
        self.terminal.verbatim(f"? {result['question']}\n{result['completion']}{cut}\n")

    def _cut(self) -> str:
        return f"(cut at --max-new-tokens {self.config.max_new_tokens})"


def hidden(text: str) -> str:
    """An answer without its calculator marks; one that is still open, or was cut, goes with all behind it."""
    text = strip_annotations(text)
    return text[: text.rfind("<<")] if OPEN_MARK.search(text) else text


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
        held = HELD.search(text) if self._hide else None
        self._show(text[: max(0, min(held.start() if held else len(text), len(text) - 2))])

    def _text(self) -> str:
        text = decode(self._tokenizer, self._tokens)
        return hidden(text) if self._hide else text

    def _show(self, text: str, whole: bool = False) -> None:
        # A replacement character at the end is half of one that is still being written, until nothing follows.
        if len(text) > self._shown and (whole or not text.endswith("\N{REPLACEMENT CHARACTER}")):
            self._write(printable(text[self._shown :]))
            self._shown = len(text)

    def end(self) -> None:
        self._show(self._text(), whole=True)
        self._write("\n")
