"""How the ranks of a run meet: each tells rank 0 who it is, and what differs between them is refused at the start."""

from __future__ import annotations

import json
import os
import secrets
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import Any

from gsm8k_core.backend import Group
from gsm8k_core.processes import began
from gsm8k_core.ranks.wire import Wire
from gsm8k_core.ranks.world import World
from gsm8k_core.types import PreflightError, RankLostError

JOIN = 40.0  # seconds for all ranks to come: nothing waits longer than a minute
HELLO = 5.0  # and for one that has begun to speak to say the next word of who it is
SAME = 2.0  # seconds by which two of one host may differ about when a process began: a clock is set
LOOPBACK = ("127.0.0.1", "localhost", "::1")


# Of a program beside this one: MLX waits for a rank without an end, and lets no other thread of this process run.
WATCH = """
import os, sys, time
parent, end = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    if os.getppid() != parent:
        sys.exit()
    time.sleep(0.1)
os.write(2, sys.argv[3].encode())
os.kill(parent, 9)
"""


@contextmanager
def within(seconds: float, what: str) -> Iterator[None]:
    """When the block takes longer, end this process with `what` on stderr."""
    command = [sys.executable, "-I", "-S", "-c", WATCH, str(os.getpid()), str(seconds), f"error: {what}\n"]
    watch = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        watch.kill()
        watch.wait()


def late(world: World) -> str:
    """What a rank says that waited for the others in vain."""
    return (
        f"rank {world.rank} of {world.size} on {socket.gethostname()} waited up to {JOIN:.0f} s for the others; "
        f"start the same command on every host, with {world.launcher}'s right number of processes, and let the hosts "
        "reach one another on every port"
    )


def meet(
    world: World, group: Group, facts: Mapping[str, str], lost: Callable[[str], None], strict: bool = True
) -> list[Wire]:
    """The lines of rank 0, by rank, or the one to rank 0. Raises PreflightError where one is another program.

    `facts` are what has to be the same on every rank, by name; where it is not `strict`, each line has its own and
    nothing is refused. Rank 0 raises it for one that does not come, too.
    """
    return _host(world, group, facts, lost, strict) if world.leads else [_visit(world, group, facts, lost)]


def _host(
    world: World, group: Group, facts: Mapping[str, str], lost: Callable[[str], None], strict: bool
) -> list[Wire]:
    token = secrets.token_hex(16)
    with socket.create_server(("127.0.0.1" if world.host in LOOPBACK else "", 0)) as server:
        place = {"port": server.getsockname()[1], "host": world.host or socket.gethostname(), "token": token}
        place |= {"name": socket.gethostname(), "pid": os.getpid(), "began": began(os.getpid())}
        group.first(json.dumps(place).encode())
        lines: dict[int, Wire] = {}
        refused = ""
        with closing(_speakers(server, time.monotonic() + JOIN)) as speakers:
            for connection in speakers:
                if (met := _greeted(connection, token, lost)) is not None:
                    rank, line = met
                    lines[rank] = line
                    if strict:
                        refused = refused or next(differences(line.peer, facts, line.facts), "")
                if len(lines) == world.size - 1:
                    break
            else:
                refused = refused or late(world)
    found = [lines[rank] for rank in sorted(lines)]
    for line in found:
        line.send("refused" if refused else "welcome")
    if refused:
        raise PreflightError(refused)
    for line in found:
        line.watch()
    return found


def _speakers(server: socket.socket, ends: float) -> Generator[socket.socket, None, None]:
    """Who connects and says something, one after the other, until `ends`. Who says nothing keeps nobody waiting."""
    server.setblocking(False)
    silent: set[socket.socket] = set()
    with selectors.DefaultSelector() as ready:
        ready.register(server, selectors.EVENT_READ)
        try:
            while (left := ends - time.monotonic()) > 0:
                for connection in [key.fileobj for key, _ in ready.select(left)]:
                    if connection is server:
                        with suppress(OSError):  # gone again
                            came, _ = server.accept()
                            silent.add(came)
                            ready.register(came, selectors.EVENT_READ)
                    elif isinstance(connection, socket.socket):
                        ready.unregister(connection)
                        silent.remove(connection)
                        yield connection
        finally:
            for each in silent:
                each.close()


def _greeted(connection: socket.socket, token: str, lost: Callable[[str], None]) -> tuple[int, Wire] | None:
    """The rank that has spoken, and its line; None for somebody else who found the port."""
    connection.settimeout(HELLO)
    try:
        line = Wire(connection, "", "", lost)
        hello = line.read_now().values
        if not secrets.compare_digest(str(hello["token"]), token):
            raise ValueError("a stranger")
        rank, line.host = int(hello["rank"]), str(hello["host"])
        line.peer = f"rank {rank} ({line.host}, process {hello['pid']})"
        line.facts, line.process = dict(hello["facts"]), _here(line.host, hello)
        return rank, line
    except (OSError, ValueError, KeyError, TypeError):
        connection.close()
        return None


def _visit(world: World, group: Group, facts: Mapping[str, str], lost: Callable[[str], None]) -> Wire:
    place = json.loads(group.first(b""))
    try:
        connection = socket.create_connection((world.host or place["host"], place["port"]), timeout=JOIN)
    except OSError as error:
        where = f"{world.host or place['host']} port {place['port']}"
        raise PreflightError(
            f"rank {world.rank} on {socket.gethostname()} cannot reach rank 0 at {where} ({error.strerror or error}); "
            "let the hosts reach one another on every port"
        ) from None
    connection.settimeout(JOIN + HELLO)  # rank 0 waits for the others so long, and then says so
    line = Wire(connection, f"rank 0 ({place['host']})", place["host"], lost)
    host = socket.gethostname()
    line.process = _here(str(place["name"]), place)
    who: dict[str, Any] = {"rank": world.rank, "host": host, "pid": os.getpid(), "began": began(os.getpid())}
    line.send("hello", token=place["token"], facts=dict(facts), **who)
    try:
        answer = line.read_now()
    except (OSError, ValueError) as error:
        raise RankLostError(f"{line.peer} is gone") from error
    if answer.kind != "welcome":
        raise PreflightError("")  # rank 0 says why
    line.watch()
    return line


def _here(host: str, who: Mapping[str, Any]) -> int | None:
    """The number of the process that says so, where it is one of this host; another host, or container, has others."""
    process, then = int(who["pid"]), who["began"]
    if host != socket.gethostname() or process == os.getpid() or not isinstance(then, float):
        return None
    now = began(process)
    return process if now is not None and abs(now - then) < SAME else None


def differences(peer: str, ours: Mapping[str, str], theirs: Mapping[str, str]) -> Iterator[str]:
    """The facts in which a rank is another program than rank 0, in words."""
    for name in sorted(ours.keys() | theirs.keys()):
        mine, other = ours.get(name, "none"), theirs.get(name, "none")
        if mine != other:
            mend = "give every host the same config file" if "config" in name else "install the same on every host"
            yield f"{peer} has {name} {other}, and rank 0 has {mine}; {mend}"
