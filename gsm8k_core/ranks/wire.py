"""A line of messages between rank 0 and another rank: JSON with arrays behind it, and nothing that is run when read.

A line is watched from both ends. When the process at the other end is gone, or has been silent for SILENT seconds, this
process ends: it may be waiting for a sum that never comes, where no exception can reach it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gsm8k_core.types import RankLostError

# A launcher gives what it stops up to 30 s more, and all of it is to be over within a minute.
BEAT, SILENT = 2.0, 25.0  # seconds from one sign of life to the next, and without one until a rank counts as lost
MOST_HEADER = 2**28  # bytes
DTYPES = ("int32", "float32")
GRACE = 10.0  # for this process to hear what its line was told, before it is ended
ALIVE, CANCEL, END, FAILED = "alive", "cancel", "end", "failed"
_LENGTH = struct.Struct(">I")


class SilentError(RankLostError):
    """The other end is there, and has not said what it was asked."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What one end says to the other."""

    kind: str
    values: dict[str, Any] = field(default_factory=dict)
    arrays: Sequence[np.ndarray[Any, Any]] = ()


def pack(message: Frame) -> bytes:
    """As it goes over the line."""
    arrays = [np.ascontiguousarray(array) for array in message.arrays]
    shapes = [[array.dtype.name, list(array.shape)] for array in arrays]
    header = json.dumps({"kind": message.kind, "values": message.values, "arrays": shapes}).encode()
    return b"".join([_LENGTH.pack(len(header)), header, *(array.tobytes() for array in arrays)])


def unpack(read: Callable[[int], bytearray]) -> Frame:
    """The next message; `read` gives so many bytes. Raises ValueError for what is none."""
    (length,) = _LENGTH.unpack(read(_LENGTH.size))
    if length > MOST_HEADER:
        raise ValueError("no message of ours is as long")
    header = json.loads(read(length))
    arrays = []
    for name, shape in header["arrays"]:
        if name not in DTYPES:
            raise ValueError(f"no message of ours has {name}")
        dtype = np.dtype(name)
        arrays.append(np.frombuffer(read(dtype.itemsize * int(np.prod(shape))), dtype).reshape(shape))
    return Frame(str(header["kind"]), dict(header["values"]), arrays)


def end_process(line: str, code: int) -> None:
    """End this process now, whatever it waits for, with a line on stderr unless that is empty."""
    if line:
        with contextlib.suppress(OSError):
            os.write(2, f"error: {line}\n".encode())
    os._exit(code)


class Wire:
    """One end. `lost` is called, from a thread of the line, with what became of the other end."""

    def __init__(self, connection: socket.socket, peer: str, host: str, lost: Callable[[str], None]) -> None:
        self.peer, self.host = peer, host
        self.facts: Mapping[str, str] = {}  # of the other end, as it came
        self.process: int | None = None  # of the other end, where that is on this host
        self.cancelled = -1  # the highest number of work that the other end no longer wants
        self._socket, self._lost = connection, lost
        self._come: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._seen, self._sending = time.monotonic(), threading.Lock()
        self._closing, self._heard = threading.Event(), threading.Event()
        self._last: Frame | None = None  # nothing follows it
        if connection.family != getattr(socket, "AF_UNIX", None):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def watch(self) -> None:
        """From now on both ends have to be there, and may be silent as long as they show life."""
        self._socket.settimeout(None)
        self._seen = time.monotonic()  # the others may have come late
        for work in (self._read, self._beat):
            threading.Thread(target=work, name=f"line to {self.peer}", daemon=True).start()

    def send(self, kind: str, arrays: Sequence[np.ndarray[Any, Any]] = (), **values: Any) -> None:
        """Say something. What cannot be said is no error here: the line's own threads find out why."""
        content = pack(Frame(kind, values, arrays))
        with self._sending, contextlib.suppress(OSError):
            self._socket.sendall(content)

    def receive(self, timeout: float | None = None) -> Frame:
        """What the other end says next, its last words for ever. Raises SilentError after `timeout` seconds."""
        if self._last is not None:
            return self._last
        try:
            message = self._come.get(timeout=timeout)
        except queue.Empty:
            raise SilentError(f"{self.peer} has not answered for {timeout:.0f} s") from None
        if message.kind in (END, FAILED):
            self._last = message
            self._heard.set()
        return message

    def read_now(self) -> Frame:
        """The next message, before the line is watched, in the connection's own time. Raises OSError and ValueError."""
        return unpack(self._exactly)

    def close(self, code: int = 0) -> None:
        """The orderly end: the other end is told with which exit code this process goes."""
        self._closing.set()  # first: the other end's answer may come before the next line is through
        self.send(END, code=code)

    def _exactly(self, length: int) -> bytearray:
        parts = bytearray()
        while len(parts) < length:
            part = self._socket.recv(min(length - len(parts), 2**20))
            if not part:
                raise OSError("the other end is gone")
            parts += part
        return parts

    def _read(self) -> None:
        try:
            while True:
                message = unpack(self._exactly)
                self._seen = time.monotonic()
                if message.kind == CANCEL:
                    self.cancelled = max(self.cancelled, int(message.values["job"]))
                elif message.kind in (END, FAILED):
                    ended_first = self._closing.is_set()  # then nobody here waits for the other end any more
                    self._closing.set()
                    self._come.put(message)
                    if not ended_first:
                        self._insist(message)
                    return
                elif message.kind != ALIVE:
                    self._come.put(message)
        except (OSError, ValueError, KeyError, TypeError):
            if not self._closing.is_set():
                self._lost(f"{self.peer} is gone")

    def _insist(self, message: Frame) -> None:
        """The other end has ended: this process hears it, or waits for a sum and is ended."""
        if not self._heard.wait(GRACE):
            error = message.values.get("error")
            self._lost(f"{self.peer}: {error['text']}" if error else "")

    def _end_other(self) -> None:
        """A process that is stopped is deaf to its launcher's SIGTERM, for which mlx.launch waits without an end.

        It is still the one that came: of one that has ended, the line would be closed.
        """
        if self.process is not None:
            with contextlib.suppress(OSError):
                os.kill(self.process, getattr(signal, "SIGKILL", signal.SIGTERM))

    def _beat(self) -> None:
        alive = pack(Frame(ALIVE))
        while not self._closing.wait(BEAT):
            silent = time.monotonic() - self._seen
            if silent > SILENT:
                self._end_other()
                self._lost(f"{self.peer} has been silent for {silent:.0f} s")
            if self._sending.acquire(timeout=1):  # else something large is on its way, which shows life as well
                try:
                    self._socket.sendall(alive)
                except OSError:
                    pass  # the reading thread says why
                finally:
                    self._sending.release()
