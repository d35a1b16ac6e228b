"""A model folder's tokenizer: the files that it is made of, its end token, and the thing itself, loaded when asked for.

How a problem becomes tokens is said in problems/prompts.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from gsm8k_core.doing import doing
from gsm8k_core.files import MAX_JSON_BYTES, advice, check_strangers, make_folder, matching, names_hash, read_json
from gsm8k_core.models.trial import CPU_SECONDS
from gsm8k_core.types import DataError, StorageError, UsageError, first_line

TOKENIZER_SETS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
TOKENIZER_FILES = (
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
    "vocab.*",
    "merges.txt",
)
TEMPLATES = "additional_chat_templates"  # a folder of them, which transformers reads as well
VERSIONED = re.compile(r"tokenizer(\.[0-9]+){1,4}\.json")  # a tokenizer.json for transformers from this version on
# What a copy of the model gets, by name: a pattern would take along whatever else a stranger's folder holds.
COPIED_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "prompt.json",
)
# No turns, only a document: what stands before the question, and the answers, each a paragraph; its end after the last.
PLAIN = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'Question: ' + message['content'] + '\\nAnswer:' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] }}"
    "{% if loop.last %}{{ eos_token }}{% else %}{{ '\\n\\n' }}{% endif %}"
    "{% else %}{{ message['content'] + '\\n\\n' }}{% endif %}"
    "{% endfor %}"
)
TRIAL = Path(__file__).with_name("trial.py")
_TRIED: set[str] = set()  # hashes of the tokenizers' files that passed in this process


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    chat_template: Any
    eos_token: Any
    eos_token_id: Any
    bos_token_id: Any
    unk_token_id: Any
    added_tokens_decoder: Any  # number -> tokenizers.AddedToken
    backend_tokenizer: Any  # the library's own, of one that is written in Rust

    def get_chat_template(self, chat_template: Any = None, tools: Any = None) -> str: ...
    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...
    def __call__(self, text: Any, **options: Any) -> Any: ...
    def decode(self, token_ids: Any, **options: Any) -> str: ...


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder, with a plain chat template where it has none. DataError: it cannot be read."""
    check_strangers(folder, TEMPLATES)
    _refuse_large(folder)
    with _trial(folder):
        if "transformers" not in sys.modules:
            doing("importing transformers")
        from transformers import AutoTokenizer  # here, not above: it takes seconds, and `--help` must not

        doing("loading the tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the Rust library raises plain Exception; the files belong to the model, not to us
        reason = f"{type(error).__name__}: {first_line(error)[:300]}"
        do = advice(error, "download or save it again")
        raise DataError(f"the tokenizer in {folder} cannot be read ({reason}); {do}") from error
    if not tokenizer.chat_template:
        tokenizer.chat_template = plain_template(tokenizer)
    return tokenizer  # type: ignore[no-any-return]


def plain_template(tokenizer: Tokenizer) -> str:
    """What a base model is asked with, which has no template: PLAIN, begun as its documents begin."""
    begin = tokenizer.bos_token_id
    begun = begin is not None and list(tokenizer("x")["input_ids"])[:1] == [begin]
    return ("{{ bos_token }}" if begun else "") + PLAIN


@contextmanager
def _trial(folder: Path) -> Iterator[None]:
    """Tries template and tokenizer in a process with limits, beside what is done in the block: once for each content.

    That it passed is kept, so that a start need not take a second of another core for it: a file without content in
    our cache, by the hashes of the model's files, of what tries them and of the libraries that do.

    Raises DataError where they take time or memory without end, or make a prompt of any size.
    """
    content = names_hash(folder, TOKENIZER_FILES)
    passed = _passed(content)
    if content in _TRIED or (passed is not None and passed.is_file()):
        yield
        return
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", str(TRIAL), os.path.abspath(folder)]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C is ours to hear
    ) as child:
        try:
            yield
            said, complaint = child.communicate()
        finally:
            child.kill()
    if reason := _verdict(child.returncode, said, complaint):
        raise DataError(f"the model in {folder} is refused: {reason}; give another model")
    _TRIED.add(content)
    if passed is not None:
        with suppress(StorageError, OSError):  # then it is tried again next time
            make_folder(passed.parent, parents=True)
            passed.touch()


def _passed(content: str) -> Path | None:
    """The file that says of such a content that it passed; None where there is no place for it."""
    from gsm8k_core.models.store import cache_folder  # here, not above: it stands on this file

    libraries = [f"{name} {version(name)}" for name in ("tokenizers", "jinja2")]
    how = hashlib.sha256("\n".join([content, TRIAL.read_text(encoding="utf-8"), *libraries]).encode()).hexdigest()
    try:
        return cache_folder() / "tried" / how
    except UsageError:  # GSM8K_CACHE is no path; whoever needs the cache says so
        return None


def try_template(folder: Path, template: str, name: str) -> None:
    """A template that is not the folder's own: what it makes of one short problem with the folder's special tokens."""
    with tempfile.TemporaryDirectory() as scratch:
        settings = folder / "tokenizer_config.json"
        known = read_json(settings) if settings.is_file() else {}
        words = {key: value for key, value in known.items() if key.endswith("_token")}
        Path(scratch, "tokenizer_config.json").write_text(json.dumps(words), encoding="utf-8")
        Path(scratch, "chat_template.jinja").write_text(template, encoding="utf-8")
        try:
            with _trial(Path(scratch)):
                pass
        except DataError as error:
            _, _, reason = str(error).removesuffix("; give another model").partition(" is refused: ")
            raise DataError(f"the chat template {name} is refused: {reason}; mend it") from None


def _verdict(code: int, said: str, complaint: str) -> str:
    """Why a model is refused, or nothing."""
    lines = said.splitlines()
    if code == 0 and lines:
        return str(json.loads(lines[-1]).get("reason", ""))
    what = "tokenizer" if lines and "passed" in lines[0] else "chat template"  # it may be killed behind its last word
    if code < 0:
        how = signal.Signals(-code).name
        return f"its {what} takes more than {CPU_SECONDS} s, or too much memory, for one short problem ({how})"
    last = (complaint.strip().splitlines() or ["it said nothing"])[-1][:300]
    return f"its {what} could not be tried ({last})"


def copied_files(folder: Path) -> list[str]:
    """The names of the tokenizer's files that a copy of the model gets."""
    return [*COPIED_FILES, *sorted(name for name in os.listdir(folder) if VERSIONED.fullmatch(name))]


def _refuse_large(folder: Path) -> None:
    """transformers would read such a file whole, whatever its size."""
    for path in sorted(matching(folder, (*TOKENIZER_FILES, f"{TEMPLATES}/*"))):
        if (size := path.stat().st_size) > MAX_JSON_BYTES:
            raise DataError(f"{path} has {size >> 20} MiB, and no tokenizer's file more than {MAX_JSON_BYTES >> 20}")


def has_tokenizer(folder: Path) -> bool:
    """Whether the files of one of the known kinds are all there. Opens none."""
    return any(all((folder / name).is_file() for name in names) for names in TOKENIZER_SETS)


def check_tokenizer(folder: Path) -> None:
    """A cheap look at the end of tokenizer.json: parsing it would take a quarter of a second each time."""
    path = folder / "tokenizer.json"
    if path.is_file():
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 64))
            if not file.read().rstrip().endswith(b"}"):
                raise DataError(f"{path} is cut short; copy or download it again")


def tokenizer_end(folder: Path) -> Iterator[int]:
    """The number of the token that the tokenizer's own files call the end, where they name one."""
    token = None
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            token = read_json(folder / name).get("eos_token") or token
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str) or not (folder / "tokenizer.json").is_file():
        return
    tokenizer = read_json(folder / "tokenizer.json")
    try:
        vocabulary = dict((tokenizer.get("model") or {}).get("vocab") or {})
        numbers = {added["content"]: added["id"] for added in tokenizer.get("added_tokens") or []}
        if text in (every := {**vocabulary, **numbers}):
            yield int(every[text])
    except (AttributeError, KeyError, TypeError, ValueError):
        raise DataError(f"{folder / 'tokenizer.json'} is damaged; copy or download it again") from None
