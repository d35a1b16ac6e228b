"""`serve`: a model for OpenAI's clients and on a page, on this machine alone unless a key is given."""

from __future__ import annotations

import errno
import importlib.util
import ipaddress
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import backends
from gsm8k_core.config.fields import AUTO, parse_duration
from gsm8k_core.config.talk import ServeConfig
from gsm8k_core.config.train import TrainConfig
from gsm8k_core.doing import quiet
from gsm8k_core.files import advice, read_plain
from gsm8k_core.models.find import Source
from gsm8k_core.models.hub import human_size
from gsm8k_core.serving.scheduler import Scheduler, Served
from gsm8k_core.tracking.terminal import Terminal
from gsm8k_core.training.memory import HALF, MARGIN, model_of, sampling_bytes
from gsm8k_core.training.runs import run_of_model
from gsm8k_core.types import EXIT_OK, Choice, PreflightError, UsageError, counted
from verbs import Context, say_choices
from verbs.talk import (
    BASE,
    BATCH,
    TRAINED,
    Opener,
    adapter_base,
    choose_base,
    choose_model,
    choose_together,
    limits_of,
    sampling_of,
    system_turn,
)

if TYPE_CHECKING:
    from gsm8k_core.serving.app import Offer

NEEDED = ("starlette", "uvicorn")
KEY_VARIABLE = "GSM8K_API_KEY"
SHORTEST_KEY = 8


def run(config: ServeConfig, context: Context) -> int:
    """The verb: until SIGINT or SIGTERM, which is how it is ended and no error."""
    terminal = context.terminal
    key = read_key(config)
    _check_packages()
    from gsm8k_core.serving.app import make_app
    from gsm8k_core.serving.guard import Rules
    from gsm8k_core.serving.server import run_server

    opener = Opener.of(config)
    with listen(config, key) as sock:  # before a model is read: a taken port shows at once
        source = choose_model(config.model, terminal, adapter_base(config))
        base = choose_base(config.base_model, source, terminal)
        sources = {_name(source): source} | ({_other_name(base, source): base} if base is not None else {})
        offers = {
            name: _offer(name, each, config, TRAINED if each is source else BASE) for name, each in sources.items()
        }
        scheduler = _scheduler(config, opener, sources, offers, terminal)
        scheduler.start()
        say_choices(terminal, {"backend": opener.choice, **next(iter(scheduler.models.values())).choices})
        quiet()
        _say_ready(terminal, offers, sock, key)
        rules = Rules.of(config.host, is_loopback(str(sock.getsockname()[0])), key)
        with _caught():
            run_server(
                make_app(offers, scheduler, rules), scheduler, sock, parse_duration(config.grace), say=terminal.say
            )
            if scheduler.failed is not None:
                raise scheduler.failed
            cut = f", {counted(scheduler.cut, 'answer')} cut" if scheduler.cut else ""
            terminal.say(f"ended    {counted(scheduler.answered, 'answer')} given{cut}")
    return EXIT_OK


# --- what is asked --------------------------------------------------------------------------------------------


def read_key(config: ServeConfig) -> str | None:
    """The key, from one place. Raises UsageError where it cannot be one; its words never show it."""
    given = {"--api-key": config.api_key, "--api-key-file": config.api_key_file and str(config.api_key_file)}
    if all(given.values()):
        raise UsageError("give --api-key or --api-key-file, not both")
    if config.api_key_file is not None:
        place, key = f"--api-key-file {config.api_key_file}", _key_of_file(config.api_key_file)
    elif config.api_key:
        place, key = "--api-key", config.api_key
    elif KEY_VARIABLE in os.environ:
        place, key = KEY_VARIABLE, os.environ[KEY_VARIABLE]
    else:
        return None
    if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(
            f"{place} must hold a key of {SHORTEST_KEY} letters or more, ASCII without spaces; one of your own: "
            "python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    return key


def _key_of_file(path: Path) -> str:
    try:
        return read_plain(path).decode("utf-8").strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        do = advice(error, "give a file whose only line is the key")
        raise UsageError(f"--api-key-file {path} cannot be read ({reason}); {do}") from None


def _check_packages() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise PreflightError(
            f"serve needs {' and '.join(missing)}, not installed here; pip install {' '.join(missing)}"
        )


def listen(config: ServeConfig, key: str | None) -> socket.socket:
    """A socket that listens already: two that start together do not both believe that the port is theirs."""
    host, port = config.host, config.port
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise UsageError(f"--host {host} is no address of this machine; try --host 127.0.0.1") from None
    family, kind, protocol, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    if key is None and not is_loopback(str(address[0])):
        raise UsageError(
            f"--host {host} can be reached from other machines, and there is no key; add --api-key-file FILE, or "
            "leave --host out to serve this machine alone"
        )
    sock = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere it would let two listen on one port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(1024)
    except OSError as error:
        sock.close()
        what = f"port {port} of {host} cannot be had ({error.strerror or error})"
        if error.errno == errno.EADDRNOTAVAIL:
            raise UsageError(f"--host {host} is no address of this machine; try --host 127.0.0.1") from None
        raise PreflightError(f"{what}; end what has it, or give another: --port {port % 65535 + 1}") from None
    return sock


def is_loopback(address: str) -> bool:
    """Whether nobody but this machine reaches what listens there."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


# --- what is offered ------------------------------------------------------------------------------------------


def _name(source: Source) -> str:
    """What a client calls a model: a run's name, a folder's own, else what it was asked for by."""
    if not Path(source.name).is_dir():
        return source.name
    run = run_of_model(source.found)
    folder = run if run is not None and source.found.resolve() == run / "model" else Path(source.name).resolve()
    return folder.name or source.name


def _other_name(base: Source, source: Source) -> str:
    return BASE if _name(base) == _name(source) else _name(base)


def _offer(name: str, source: Source, config: ServeConfig, role: str) -> Offer:
    from gsm8k_core.serving.app import Offer

    model = source.model
    limits = limits_of(model, config.max_new_tokens, config.max_context)
    return Offer(
        name, role, model, limits, system_turn(config.system, model), sampling_of(config, model), int(time.time())
    )


def _scheduler(
    config: ServeConfig,
    opener: Opener,
    sources: Mapping[str, Source],
    offers: Mapping[str, Offer],
    terminal: Terminal,
) -> Scheduler:
    served = {}
    for name, source in sources.items():
        window = offers[name].limits.window
        together = _together(config, opener, source, window)
        served[name] = Served(partial(opener.open, source.model), int(together.name), window)
        if not served.keys() - {name}:
            say_choices(terminal, {BATCH: together} if config.verbose else {})
    return Scheduler(served, config.max_waiting, terminal.say)


def _together(config: ServeConfig, opener: Opener, source: Source, window: int) -> Choice:
    """How many are answered at once: on a CPU as well no more than whose keys fit, if each has the longest context."""
    backend, dtype = opener.choice.name, opener.dtype
    together = choose_together(config.eval_batch_size, source, backend, opener.device, dtype, window)
    model, free = model_of(source.model.config, TrainConfig()), backends.device_memory(backend, opener.device).free
    if config.eval_batch_size != AUTO or model is None:
        return together
    known = "float32" if dtype == AUTO else dtype
    places = int(together.name)
    while places > 1 and MARGIN * sampling_bytes(model.shape, known, places, window) > HALF * free:
        places //= 2
    if places == int(together.name):
        return together
    return Choice(str(places), f"requests at once; of {window} tokens each, more would take half of {human_size(free)}")


def _say_ready(terminal: Terminal, offers: Mapping[str, Offer], sock: socket.socket, key: str | None) -> None:
    host, port = sock.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    for offer in offers.values():
        terminal.say(f"{offer.role:<8} {offer.name}: {offer.limits.window:,} tokens, prompt and answer together")
    terminal.say(f"key      {'wanted of every client' if key else 'none; this machine alone is answered'}")
    terminal.say(f"page     {url}/")
    terminal.say(f"api      {url}/v1 (chat/completions, completions, models); Ctrl-C ends it")
    terminal.result({"url": url, "api": f"{url}/v1", "models": [offer.as_json() for offer in offers.values()]})


@contextmanager
def _caught() -> Iterator[None]:
    """Inside, a signal does nothing more where uvicorn does not have it: it ends already."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *unused: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
