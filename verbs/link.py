"""The training process's side of its supervisor (verbs/train/parent.py): what it is told, and what it tells.

They share one socket. The child says in a line of JSON where its run is; it reads nothing but the end, which comes
when the parent is gone: then it finishes its update, saves and stops, as after a signal.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from dataclasses import dataclass, field

LOOK = 1.0  # seconds between two looks for a launcher
VARIABLE = "GSM8K_TRAINING_CHILD"


@dataclass(slots=True)
class Link:
    """What the parent said. A process without one has a link that nothing comes from and nothing goes to."""

    before: float = 0.0  # seconds that the parent had lived when it started this process
    seconds: float | None = None  # that the run had taken before the parent; None: as the checkpoint says
    killed_by: str = ""  # why the process before this one died; its micro-batches were too large
    socket: socket.socket | None = None
    _alone: threading.Event = field(default_factory=threading.Event)

    @property
    def has_parent(self) -> bool:
        """Whether a process was there that starts another one after this."""
        return self.socket is not None

    def tell(self, **values: object) -> None:
        """One message to the parent."""
        if self.socket is not None:
            try:
                self.socket.sendall(json.dumps(values).encode() + b"\n")
            except OSError:
                self._alone.set()

    def parent_is_gone(self) -> bool:
        return self._alone.is_set()

    def watch_launcher(self) -> None:
        """The launcher that started this process is its parent, too: mlx.launch ends without a word to it."""
        launcher = os.getppid()

        def wait() -> None:
            while os.getppid() == launcher:
                time.sleep(LOOK)
            self._alone.set()

        threading.Thread(target=wait, name="launcher", daemon=True).start()

    def _listen(self) -> None:
        try:
            while self.socket is not None and self.socket.recv(1):
                pass
        except OSError:
            pass  # as good as the end
        self._alone.set()


def take_link() -> Link:
    """The link of this process. What it starts itself inherits none."""
    text = os.environ.pop(VARIABLE, "")
    if not text:
        return Link()
    values = json.loads(text)
    descriptor = values.pop("descriptor")
    os.set_inheritable(descriptor, False)
    link = Link(**values, socket=socket.socket(fileno=descriptor))
    threading.Thread(target=link._listen, name="supervisor", daemon=True).start()
    return link
