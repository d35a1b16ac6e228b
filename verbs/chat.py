"""`chat`: a conversation with a model, and the same question to its base beside it."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from gsm8k_core.backend import Backend
from gsm8k_core.config.talk import ChatConfig
from gsm8k_core.doing import quiet
from gsm8k_core.models.find import Source
from gsm8k_core.problems.lines import MAX_LINE_BYTES, is_text
from gsm8k_core.serving.conversation import ASSISTANT, SYSTEM, USER, ContextLimits, Turn, fit
from gsm8k_core.serving.detokenizer import Detokenizer
from gsm8k_core.tracking.terminal import Terminal, printable
from gsm8k_core.types import EXIT_OK, Completion, DataError, PreflightError, Sampling, UsageError
from verbs import Context, say_choices
from verbs.talk import (
    BASE,
    TRAINED,
    Opener,
    adapter_base,
    choose_base,
    choose_model,
    limits_of,
    sampling_of,
    system_turn,
    whole_context,
)

HELP = """\
  /base [QUESTION]  base and trained answer side by side, after the conversation
                    so far; without a question, the last one again
  /system [TEXT]    another system turn; none: without one; auto: the one it was
                    trained with; alone: shows it
  /temp [NUMBER]    the temperature, 0: the likeliest token; alone: shows it
  /reset            a new conversation
  /help             this
  /exit             leaves, as Ctrl-D does, and Ctrl-C at the prompt; while it
                    answers, Ctrl-C stops the answer"""
PROMPT = "> "
NARROWEST = 60  # columns that two answers side by side need


class LeaveError(Exception):
    """The person is done."""


def run(config: ChatConfig, context: Context) -> int:
    """The verb. Answers go to stdout and all else to stderr, as generate's do."""
    beside = Terminal(json_only=True)
    opener = Opener.of(config)
    source = choose_model(config.model, beside, adapter_base(config))
    limits = limits_of(source.model, config.max_new_tokens, whole_context(source.model))
    base = choose_base(config.base_model, source, beside)
    backend = opener.open(source.model)
    if config.verbose:
        say_choices(beside, {"backend": opener.choice, **backend.choices})
    typed = sys.stdin is not None and sys.stdin.isatty()
    write = (lambda text: None) if config.json_ else _to_stdout
    speakers = {TRAINED: Speaker(source, limits, lambda: backend)}
    if base is not None:
        speakers[BASE] = Speaker(
            base, limits_of(base.model, 1, whole_context(base.model)), lambda: opener.open(base.model)
        )
    chat = Chat(config, speakers, context.terminal, beside, write, typed)
    if typed:
        beside.verbatim(f"You talk to {source.name}.")  # a sentence, and no label with what is said under it
        beside.say("/help lists the commands, /exit leaves.")
    failed = False
    for line in _lines(typed, beside):
        try:
            chat.take(line)
        except LeaveError:
            break
        except (DataError, PreflightError, UsageError) as error:  # this line has no answer; the next one may have
            beside.say(f"error: {error}")
            failed = True
    context.terminal.result({"model": source.name, "turns": chat.turns})
    return DataError.exit_code if failed and not typed else EXIT_OK


def _lines(typed: bool, beside: Terminal) -> Iterator[str]:
    """What is typed or piped, a line at a time, until its end."""
    while True:
        quiet()  # the first /base opens a model, and names its steps
        try:
            line = input(PROMPT) if typed else _piped()
        except (EOFError, KeyboardInterrupt):
            if typed:
                _to_stdout("\n")
            return
        yield line


def _piped() -> str:
    raw = sys.stdin.buffer.readline(MAX_LINE_BYTES + 1) if sys.stdin is not None else b""
    if not raw:
        raise EOFError
    rest = raw
    while rest and not rest.endswith(b"\n"):  # of a line that is too long, and is refused as such
        rest = sys.stdin.buffer.readline(MAX_LINE_BYTES)
    return raw.decode("utf-8", errors="surrogateescape")  # which is no text, and refused as such


def _to_stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@dataclass(slots=True)
class Speaker:
    """One of the models; the base is opened when it is first asked."""

    source: Source
    limits: ContextLimits
    open: Callable[[], Backend]
    backend: Backend | None = None

    def answer(self, prompt: Sequence[int], sampling: Sampling, key: int, heard: Callable[[str], object]) -> Said:
        """What it says; `heard` gets it as it comes. Ctrl-C ends it where it is."""
        if self.backend is None:
            self.backend = self.open()
            quiet()
        text = Detokenizer(self.source.model.tokenizer)
        with stoppable() as stopped:
            sampling = replace(sampling, complete=lambda written: bool(stopped))
            told = self.backend.generate([prompt], sampling, lambda _, token: heard(text.add(token)), [key])
            ((_, done),) = told
        heard(text.end())
        return Said(text.given, done)


@dataclass(frozen=True, slots=True)
class Said:
    """An answer, and how it ended."""

    text: str
    done: Completion

    def ending(self, longest: int) -> str:
        """In brackets; nothing where it ended by itself."""
        return {"length": f"(cut at {longest:,} tokens)", "complete": "(stopped)"}.get(self.done.finish_reason, "")


def shortened(path: str, width: int) -> str:
    """A name or a path in so many columns: whole, else its last part, else the end of that."""
    last = path if cell_len(path) <= width else path.rstrip("/").rpartition("/")[2]
    return last if cell_len(last) <= width else f"...{last[-(width - 3) :]}"


@contextmanager
def stoppable() -> Iterator[list[int]]:
    """Gets a member when Ctrl-C is pressed; pressed once more, it is an interrupt as ever."""
    pressed: list[int] = []

    def press(number: int, frame: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return
    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass(slots=True)
class Chat:
    """The conversation so far, and what each line does to it."""

    config: ChatConfig
    speakers: dict[str, Speaker]
    terminal: Terminal
    beside: Terminal
    write: Callable[[str], object]
    typed: bool
    turns: list[Turn] = field(default_factory=list)
    system: str = ""
    temperature: float = 0.0
    asked: int = 0

    def __post_init__(self) -> None:
        self.system = system_turn(self.config.system, self.trained.source.model)
        self.temperature = self.config.temperature

    @property
    def trained(self) -> Speaker:
        return self.speakers[TRAINED]

    def take(self, line: str) -> None:
        """A question, or a command. Raises LeaveError at the end, and what a question or command is refused with."""
        if len(line.removesuffix("\n").encode(errors="replace")) > MAX_LINE_BYTES:
            raise DataError(f"this line is longer than {MAX_LINE_BYTES:,} bytes, and was left out")
        line = line.strip()
        if not line:
            return
        if not is_text(line):
            raise DataError("this line is not UTF-8 text, and was left out")
        if not line.startswith("/"):
            self.ask(line)
            return
        name, _, rest = line.partition(" ")
        commands = {
            "/base": self.compare,
            "/system": self.set_system,
            "/temp": self.set_temperature,
            "/reset": self.reset,
            "/help": lambda rest: self.beside.verbatim(HELP),
            "/exit": self.leave,
            "/quit": self.leave,
        }
        if name not in commands:
            raise UsageError(
                f"there is no command {name} (there are {', '.join(list(commands)[:-1])}); /help explains them"
            )
        commands[name](rest.strip())

    def leave(self, rest: str) -> None:
        raise LeaveError

    def reset(self, rest: str) -> None:
        self.turns = []
        self.beside.say("(a new conversation)")

    def set_system(self, text: str) -> None:
        if text:
            self.system = system_turn(text, self.trained.source.model)
        self.beside.say(f"(system turn: {self.system or 'none'})")

    def set_temperature(self, text: str) -> None:
        if text:
            try:
                self.temperature = ChatConfig(temperature=float(text)).temperature
            except (ValueError, UsageError):
                raise UsageError(f"/temp takes a number from 0 on, as in /temp 0.7 (got {text})") from None
        self.beside.say(f"(temperature {self.temperature:g}{': greedy' if self.temperature == 0 else ''})")

    # --- questions ------------------------------------------------------------------------------------------------

    def ask(self, question: str) -> None:
        """The trained model's answer, as it comes."""
        said = self._ask(self.trained, [*self.turns, {"role": USER, "content": question}], self._show)
        self.write("\n" if self.typed else "\n\n")
        self._say_ending(said)
        self._keep(question, said)

    def compare(self, question: str) -> None:
        """Base and trained side by side. What the trained one says goes into the conversation."""
        if BASE not in self.speakers:
            raise UsageError("there is no base beside this model; start chat with --base-model MODEL")
        again = not question
        if again:
            if not self.turns:
                raise UsageError("/base needs a question, as in /base How many apples?")
            question = self.turns[-2]["content"]
        before = self.turns[:-2] if again else self.turns
        turns = [*before, {"role": USER, "content": question}]
        found = {}
        for name in (BASE, TRAINED):
            if self.typed:
                self.beside.say(f"({name} answers)")
            found[name] = self._ask(self.speakers[name], turns, lambda piece: None)
        self.turns = list(before)
        self._keep(question, found[TRAINED])
        self._show_both(found)

    def _ask(self, speaker: Speaker, turns: Sequence[Turn], heard: Callable[[str], object]) -> Said:
        config = self.config
        first = [{"role": SYSTEM, "content": self.system}] if self.system else []
        limits = ContextLimits(speaker.limits.window, config.max_new_tokens)
        fitted = fit(speaker.source.model, [*first, *turns], limits)
        if fitted.dropped:
            many = fitted.dropped > 1
            what = f"the {fitted.dropped} oldest questions are" if many else "the oldest question is"
            self.beside.say(f"({what} left out: the model reads {limits.window:,} tokens)")
        if speaker is self.trained:
            self.turns = [turn for turn in fitted.turns[:-1] if turn["role"] != SYSTEM]
        self.asked += 1
        sampling = replace(
            sampling_of(config, speaker.source.model, config.seed),
            max_new_tokens=limits.room(len(fitted.prompt)),
            temperature=self.temperature,
        )
        return speaker.answer(fitted.prompt, sampling, self.asked, heard)

    def _keep(self, question: str, said: Said) -> None:
        """Both turns; a question that got no word is asked as if it had never been."""
        if said.text:
            self.turns += [{"role": USER, "content": question}, {"role": ASSISTANT, "content": said.text}]

    def _show(self, piece: str) -> None:
        if piece:
            self.write(printable(piece))

    def _say_ending(self, said: Said) -> None:
        if ending := said.ending(len(said.done.tokens)):
            self.beside.say(ending)

    def _show_both(self, found: dict[str, Said]) -> None:
        """In two columns where there is room for them, else one below the other."""
        if self.config.json_:
            return
        titles = {name: f"{name}: {self.speakers[name].source.name}" for name in found}
        texts = {name: printable(said.text).strip() for name, said in found.items()}
        texts = {
            name: "\n".join(filter(None, (text, found[name].ending(len(found[name].done.tokens)))))
            for name, text in texts.items()
        }
        console = self.terminal.console
        if not self.typed or console.width < NARROWEST:
            for name, text in texts.items():
                self.write(f"{titles[name]}\n{text}\n\n")
            return
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), width=console.width)
        for name in found:
            short = shortened(self.speakers[name].source.name, console.width // 2 - len(name) - 4)
            table.add_column(Text(printable(f"{name}: {short}")), ratio=1, overflow="fold")
        table.add_row(*(Text(text) for text in texts.values()))
        quiet()
        console.print(table)
        self.write("\n")
