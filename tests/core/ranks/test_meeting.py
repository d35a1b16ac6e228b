"""How ranks meet and part: who is another program is refused, who is gone or silent ends the others."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from gsm8k_core.processes import began
from gsm8k_core.ranks import meeting, wire
from gsm8k_core.ranks.meeting import meet
from gsm8k_core.ranks.together import together
from gsm8k_core.ranks.wire import FAILED, Frame, Wire, pack
from gsm8k_core.ranks.world import World
from gsm8k_core.types import DataError, DeviceLostError, OutOfMemoryError, PreflightError, RankLostError
from tests.waiting import CEILING, wait_for
from tests.waiting import ends as ended


class Threads:
    """A group whose ranks are threads."""

    engine, sharded = "threads", False

    def __init__(self, rank: int, size: int, place: queue.Queue[bytes], barrier: threading.Barrier, codes: Any) -> None:
        self.rank, self.size = rank, size
        self._place, self._barrier, self._codes = place, barrier, codes

    def first(self, data: bytes) -> bytes:
        if self.rank:
            return self._place.get(timeout=CEILING)
        for _ in range(self.size - 1):
            self._place.put(data)
        return data

    def agree(self, code: int) -> list[int]:
        self._codes[self.rank] = code
        self._barrier.wait(CEILING)
        return list(self._codes)

    def bandwidth(self) -> float:
        return 1e9

    def leave(self) -> None: ...


def ranks_do(size: int, work: Callable[[Threads], Any], kind: type[Threads] = Threads) -> list[Any]:
    """What each rank's `work` returned, or the error that it raised."""
    place: queue.Queue[bytes] = queue.Queue()
    barrier, codes = threading.Barrier(size), [0] * size

    def one(rank: int) -> Any:
        try:
            return work(kind(rank, size, place, barrier, codes))
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


def met(size: int, facts: Callable[[int], dict[str, str]], lost: Callable[[str], None] = print) -> list[Any]:
    def work(group: Threads) -> Any:
        world = World(group.rank, size, "torch", "torchrun", host="127.0.0.1")
        return meet(world, group, facts(group.rank), lost)

    return ranks_do(size, work)


def test_ranks_of_one_program_meet_and_talk() -> None:
    lines, (to_first,), (other,) = met(3, lambda rank: {"torch": "2.13"})
    assert [line.peer.split(" (")[0] for line in lines] == ["rank 1", "rank 2"]
    to_first.send("hello", number=7)
    assert lines[0].receive(CEILING).values == {"number": 7}
    lines[1].close(3)
    assert other.receive(CEILING).values == {"code": 3}


def test_another_version_is_refused_with_the_difference_and_said_once() -> None:
    first, second = met(2, lambda rank: {"torch": "2.13" if rank else "2.12", "python": "3.11"})
    assert isinstance(first, PreflightError)
    assert "has torch 2.13, and rank 0 has 2.12" in str(first)
    assert isinstance(second, PreflightError)
    assert str(second) == ""


def test_where_nothing_is_refused_each_line_has_its_own_facts() -> None:
    def work(group: Threads) -> Any:
        world = World(group.rank, 2, "torch", "torchrun", host="127.0.0.1")
        return meet(world, group, {"torch": f"2.{group.rank}", "python": "3"}, print, strict=False)

    (line,), (other,) = ranks_do(2, work)
    assert [*meeting.differences("rank 1", {"torch": "2.0", "mlx": "1"}, line.facts)] == [
        "rank 1 has mlx none, and rank 0 has 1; install the same on every host",
        "rank 1 has python 3, and rank 0 has none; install the same on every host",
        "rank 1 has torch 2.1, and rank 0 has 2.0; install the same on every host",
    ]
    line.close()
    assert other.receive(CEILING).kind == wire.END


def test_a_rank_that_does_not_come_is_named_by_rank_0_and_by_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def greeted(*rank: Any) -> Iterator[str]:
        now[0] = meeting.JOIN + 1
        return iter(())

    monkeypatch.setattr(meeting, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(meeting, "differences", greeted)

    def work(group: Threads) -> Any:
        return meet(World(group.rank, 3, "torch", "torchrun", host="127.0.0.1"), group, {}, print)

    first, second = ranks_do(2, work)
    assert type(first) is type(second) is PreflightError
    assert "rank 0 of 3 on" in str(first)
    assert "waited up to 40 s for the others; start the same command on every host" in str(first)
    assert str(second) == ""


def test_who_connects_and_says_nothing_keeps_no_rank_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "HELLO", 0.05)
    visitors: list[socket.socket] = []

    class Visited(Threads):
        """Before rank 1 comes, one comes who is silent, and one who only begins to speak."""

        def first(self, data: bytes) -> bytes:
            found = super().first(data)
            if self.rank:
                place = "127.0.0.1", json.loads(found)["port"]
                visitors.extend(socket.create_connection(place) for _ in range(2))
                visitors[1].sendall(b"\0\0")
            return found

    def work(group: Threads) -> Any:
        try:
            return meet(World(group.rank, 2, "torch", "torchrun", host="127.0.0.1"), group, {}, print)
        except Exception:
            for visitor in visitors:  # or rank 0 would wait for one of them
                visitor.close()
            raise

    (line,), (other,) = ranks_do(2, work, Visited)
    line.send("hello", number=7)
    assert other.receive(CEILING).values == {"number": 7}
    for visitor in visitors:
        with visitor:
            visitor.settimeout(CEILING)
            assert visitor.recv(1) == b""
    line.close()


def test_a_line_keeps_its_connections_time_until_it_is_watched() -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(0.01)
    line = Wire(ours, "rank 1", "here", print)
    with theirs:
        assert ours.gettimeout() == 0.01
        with pytest.raises(TimeoutError):
            line.read_now()
        line.watch()
        assert ours.gettimeout() is None
        line.close()


def test_a_rank_that_came_first_is_not_lost_for_having_waited_for_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = [0.0], list[str]()
    monkeypatch.setattr(wire, "BEAT", 0.01)
    monkeypatch.setattr(wire, "time", SimpleNamespace(monotonic=lambda: now[0]))
    ours, theirs = socket.socketpair()
    line = Wire(ours, "rank 1", "here", told.append)
    now[0] = wire.SILENT + 10
    line.watch()
    with theirs:
        assert theirs.recv(1)  # a sign of life, which is sent after a look at the other end's
        line.close()
    assert not told


def ends(lost: Callable[[str], None]) -> tuple[Wire, socket.socket]:
    """A watched line, and the bare other end."""
    ours, theirs = socket.socketpair()
    line = Wire(ours, "rank 1", "here", lost)
    line.watch()
    return line, theirs


def test_a_rank_that_is_gone_is_lost_at_once() -> None:
    told: list[str] = []
    _, theirs = ends(told.append)
    theirs.close()
    wait_for(lambda: told)
    assert told[0] == "rank 1 is gone"


def test_a_silent_rank_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "BEAT", 0.01)
    monkeypatch.setattr(wire, "SILENT", 0.05)
    told: list[str] = []
    line, theirs = ends(told.append)
    with theirs:
        wait_for(lambda: told)
    assert "rank 1 has been silent" in told[0]
    line.close()


@pytest.mark.skipif(os.name != "posix", reason="no process is stopped here")
def test_a_silent_process_of_this_host_is_ended_for_its_launcher_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "BEAT", 0.01)
    monkeypatch.setattr(wire, "SILENT", 0.05)
    told: list[str] = []
    stopped = subprocess.Popen([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"])
    try:
        wait_for(lambda: psutil.Process(stopped.pid).status() == psutil.STATUS_STOPPED)
        ours, theirs = socket.socketpair()
        line = Wire(ours, "rank 1", "here", told.append)
        line.process = stopped.pid
        line.watch()
        with theirs:
            ended(lambda: stopped.wait())
        assert stopped.returncode == -signal.SIGKILL
        wait_for(lambda: told)
        line.close()
    finally:
        stopped.kill()


def test_a_process_is_known_by_its_host_and_by_when_it_began() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        host, who = socket.gethostname(), {"pid": child.pid, "began": began(child.pid)}
        assert meeting._here(host, who) == child.pid
        assert meeting._here("another", who) is None
        assert meeting._here(host, {**who, "began": who["began"] + 60}) is None  # another container's of that number
        assert meeting._here(host, {**who, "began": None}) is None
        assert meeting._here(host, {"pid": os.getpid(), "began": began(os.getpid())}) is None
        child.kill()
    assert began(child.pid) is None


def test_an_orderly_end_is_no_loss() -> None:
    told: list[str] = []
    line, theirs = ends(told.append)
    theirs.sendall(pack(Frame(wire.END, {"code": 0})))
    assert line.receive(CEILING).kind == wire.END
    theirs.close()
    line.close()
    assert not told


@pytest.mark.parametrize("at_once", [True, False])
def test_a_process_that_has_ended_its_line_may_take_its_time(at_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python takes torch apart at the end: seconds beside busy cores, in which the others' words come."""
    monkeypatch.setattr(wire, "GRACE", 0.01)
    told: list[str] = []
    ours, theirs = socket.socketpair()
    line = Wire(ours, "rank 77", "here", told.append)
    line.watch()
    send = line.send

    def answered(kind: str, **values: int) -> None:
        send(kind, **values)
        theirs.sendall(pack(Frame(wire.END, {"code": 0})))
        wait_for(lambda: not at_once or not line._come.empty())

    monkeypatch.setattr(line, "send", answered)
    with theirs:
        line.close(0)
        wait_for(lambda: not any(thread.name == "line to rank 77" for thread in threading.enumerate()))
    assert not told


def test_an_error_of_another_rank_ends_a_process_that_waits_for_a_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "GRACE", 0.01)
    told: list[str] = []
    _, theirs = ends(told.append)
    with theirs:
        theirs.sendall(pack(Frame(FAILED, {"error": {"text": "no disk", "code": 7}})))
        wait_for(lambda: told)
    assert told[0] == "rank 1: no disk"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OutOfMemoryError("x"), OutOfMemoryError),
        (DeviceLostError("x"), DeviceLostError),
        (DataError("x"), RankLostError),
    ],
)
def test_what_fails_on_one_rank_fails_on_all(error: Exception, kind: type[Exception]) -> None:
    def work(group: Threads) -> None:
        with together(group):
            if group.rank == 1:
                raise error

    first, second = ranks_do(2, work)
    assert type(first) is kind
    assert "rank 1" in str(first)
    assert second is error


def test_what_is_no_error_of_ours_is_told_by_the_rank_that_had_it() -> None:
    def work(group: Threads) -> None:
        with together(group):
            if group.rank == 0:
                raise RuntimeError("CUDA error: an illegal memory access")

    first, second = ranks_do(2, work)
    assert type(first) is type(second) is RankLostError  # and so what rank 1 says of it is not taken for the cause
    assert str(first) == "rank 0 failed in this update: unexpected RuntimeError: CUDA error: an illegal memory access"
    assert str(second) == "rank 0 failed in this update; what it wrote above says why"
