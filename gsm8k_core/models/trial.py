"""A stranger's chat template and tokenizer tried once, in a process of its own: python trial.py FOLDER.

It has a limit of CPU time and one of memory, and prints one JSON object: {"reason": "..."} where the model is to be
refused, else {}. What fails here in another way fails again where it is used, and is said there. Nothing of ours and
no transformers is imported: an honest model's trial costs as little as its tokenizer's loading.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

CPU_SECONDS = 5
BYTES_A_SECOND = 4 << 20  # more time for a large tokenizer.json: 0.1 s a MiB here
MEMORY_BYTES = 3 << 30
MOST_CHARACTERS = 1_000_000  # a prompt of ours has some hundreds
CHAT = [
    {"role": "system", "content": "Solve step by step. The last line must be: #### <number>"},
    {"role": "user", "content": "Tom has 2 apples and buys 3. How many?"},
    {"role": "assistant", "content": "He has 2 + 3 = <<2+3=5>>5.\n#### 5"},
]
# How templates want their turns: which roles' content as a list of parts, and whether there is a system turn. The first
# that keeps all words is taken (rendering.py), so all up to that one are tried here.
ROLES = ("system", "user", "assistant")
PARTS: tuple[tuple[str, ...], ...] = ((), ROLES, ROLES[1:], ROLES[1:2])
FORMS = tuple(
    (place, parts) for place in ("system", "question") for parts in PARTS if place == "system" or parts != ROLES
)
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


def arranged(turns: list[dict[str, str]], place: str, parts: tuple[str, ...]) -> list[dict[str, Any]]:
    """The turns in one of these forms: without a system turn, its words go before the first question."""
    if place == "question" and turns[0]["role"] == "system" and len(turns) > 1:
        at = next((number for number, turn in enumerate(turns) if turn["role"] == "user"), 1)
        first = {**turns[at], "content": f"{turns[0]['content']}\n\n{turns[at]['content']}"}
        turns = [*turns[1:at], first, *turns[at + 1 :]]
    return [
        {**turn, "content": [{"type": "text", "text": turn["content"]}]} if turn["role"] in parts else dict(turn)
        for turn in turns
    ]


class TooLarge(Exception):
    """What came out has no end in sight."""


def limit(seconds: int) -> None:
    """So many seconds of CPU from now on; the system kills what goes on."""
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    end = int(used.ru_utime + used.ru_stime) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (end, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    for kind, most in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def read(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is none: whoever opens the model says what is wrong with it."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def templates(folder: Path) -> list[str]:
    """Those that transformers could take for a chat."""
    found = [read(folder / name).get("chat_template") for name in ("tokenizer_config.json", "chat_template.json")]
    path = folder / "chat_template.jinja"
    if path.is_file():
        found.append(path.read_text(encoding="utf-8", errors="replace"))
    named = [each for value in found for each in (value if isinstance(value, list) else [value])]
    texts = [each.get("template") if isinstance(each, dict) else each for each in named]
    return [text for text in texts if isinstance(text, str)]


def render(template: str, settings: dict[str, Any]) -> str:
    """The chat with and without its answer, as transformers renders it, in each form up to one that keeps every word.

    Raises TooLarge, and whatever jinja2 raises where none does.
    """
    import datetime

    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """transformers' own tag, which marks the answer and shows what it holds."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(["name:endgeneration"], drop_needle=True), lineno=line)

    def refuse(message: str) -> None:
        raise ValueError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    tokens = {name: settings.get(name) for name in SPECIAL}
    words = {name: value["content"] if isinstance(value, dict) else value for name, value in tokens.items()}
    compiled, texts, complaint = environment.from_string(template), [], None
    switches = [{"enable_thinking": on} for on in (False, True)] if "enable_thinking" in template else [{}]
    for place, parts in FORMS:
        text, whole = "", True
        try:
            for switch, (chat, prompt) in product(switches, ((CHAT[:2], True), (CHAT, False))):
                given = {"messages": arranged(chat, place, parts), "add_generation_prompt": prompt, **words, **switch}
                text = _short(compiled.generate(tools=None, documents=None, **given))
                whole = whole and all(turn["content"] in text for turn in chat)
            texts.append(text)
            if whole:  # no other form is asked for
                return text
        except (MemoryError, TooLarge):
            raise
        except Exception as error:  # jinja2 raises many kinds; another form may work
            complaint = complaint or error
    if not texts and complaint is not None:
        raise complaint
    return texts[0]


def _short(parts: Iterator[str]) -> str:
    text = ""
    for part in parts:
        text += part
        if len(text) > MOST_CHARACTERS:
            raise TooLarge
    return text


def try_template(folder: Path) -> str:
    """What the templates make of the chat; the last one that works."""
    limit(CPU_SECONDS)
    text = " ".join(turn["content"] for turn in CHAT)
    for template in templates(folder):
        try:
            text = render(template, read(folder / "tokenizer_config.json"))
        except (MemoryError, TooLarge):
            raise
        except Exception:  # jinja2 raises many kinds; transformers' own rendering, which follows, says what is wrong
            continue
    return text


def try_tokenizer(folder: Path, text: str) -> None:
    """To tokens and back."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    limit(CPU_SECONDS + path.stat().st_size // BYTES_A_SECOND)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except MemoryError:
        raise
    except Exception:  # the library's only kind; transformers' reader says what is wrong
        return
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if len(ids) > MOST_CHARACTERS or len(tokenizer.decode(ids)) > MOST_CHARACTERS:
        raise TooLarge


def main(folder: Path) -> dict[str, str]:
    """The verdict."""
    what = "chat template"
    try:
        text = try_template(folder)
        print(json.dumps({"passed": what}), flush=True)
        what = "tokenizer"
        try_tokenizer(folder, text)
    except MemoryError:
        return {"reason": f"its {what} needs more than {MEMORY_BYTES >> 30} GiB of memory for one short problem"}
    except TooLarge:
        return {"reason": f"its {what} makes more than a million of one short problem"}
    return {}


if __name__ == "__main__":
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    print(json.dumps(main(Path(sys.argv[1]))), flush=True)
