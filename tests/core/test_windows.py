"""What Windows' os, signal and subprocess lack is asked for before it is used; no Windows is needed to see that."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from gsm8k_core import processes
from gsm8k_core.scoring import math_verify
from verbs.train import parent
from verbs.train.signals import wanted

ROOT = Path(__file__).parents[2]
# By Python's own documentation ("Availability: Unix", and no more).
OS = """
    chown chroot ctermid fchdir fchmod fchown fdatasync fork forkpty fpathconf fstatvfs getegid geteuid getgid
    getgrouplist getgroups getloadavg getpgid getpgrp getpriority getresgid getresuid getsid getuid initgroups
    killpg lchown lockf login_tty major makedev memfd_create minor mkfifo mknod nice openpty pathconf pipe2
    posix_fadvise posix_fallocate posix_spawn posix_spawnp pread preadv pwrite pwritev readv register_at_fork
    sched_getaffinity sched_setaffinity sched_yield sendfile setegid seteuid setgid setgroups setpgid
    setpriority setregid setresgid setresuid setreuid setsid setuid statvfs sync sysconf tcgetpgrp tcsetpgrp
    ttyname uname wait wait3 wait4 waitid writev WCOREDUMP WEXITSTATUS WIFEXITED WIFSIGNALED WIFSTOPPED WNOHANG
    WSTOPSIG WTERMSIG O_ASYNC O_CLOEXEC O_DIRECT O_DIRECTORY O_DSYNC O_NDELAY O_NOATIME O_NOCTTY O_NOFOLLOW
    O_NONBLOCK O_PATH O_RSYNC O_SYNC set_blocking get_blocking
"""
SIGNAL = """
    SIGALRM SIGBUS SIGCHLD SIGCONT SIGHUP SIGIO SIGKILL SIGPIPE SIGPROF SIGPWR SIGQUIT SIGSTOP SIGSYS SIGTRAP
    SIGTSTP SIGTTIN SIGTTOU SIGURG SIGUSR1 SIGUSR2 SIGVTALRM SIGWINCH SIGXCPU SIGXFSZ SIG_BLOCK SIG_SETMASK
    SIG_UNBLOCK alarm getitimer pause pidfd_send_signal pthread_kill pthread_sigmask setitimer siginterrupt
    sigpending sigtimedwait sigwait sigwaitinfo
"""
LACKING = {"os": OS.split(), "signal": SIGNAL.split()}
MODULES = {"curses", "fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}
ARGUMENTS = {"pass_fds", "preexec_fn", "process_group"}  # Windows' Popen takes none of them
# A parent is for POSIX alone: supervises() says so, and the test below holds it to that.
POSIX_ALONE = {"verbs/train/parent.py"}
POSIX = ("os.name == 'posix'", "sys.platform == 'darwin'", "sys.platform == 'linux'", "sys.platform != 'win32'")
NOT_POSIX = ("os.name != 'posix'", "os.name == 'nt'", "sys.platform == 'win32'")
ASKED = tuple(f"hasattr({module}, '{name}')" for module, names in LACKING.items() for name in names)


def unguarded(source: str) -> list[str]:
    """Names that Windows lacks, where nothing asked for them, or for the system, on the way to them."""
    return list(_in(ast.parse(source).body))


def _in(block: Sequence[ast.stmt]) -> Iterator[str]:
    for statement in block:
        if isinstance(statement, ast.If) and ast.unparse(statement.test) in (*POSIX, *ASKED):
            yield from _in(statement.orelse)
        elif isinstance(statement, ast.If) and ast.unparse(statement.test) in NOT_POSIX:
            yield from _in(statement.body)
            if isinstance(statement.body[-1], ast.Return | ast.Raise):
                return  # what stands below is POSIX's
        elif isinstance(statement, ast.Try) and any("ImportError" in ast.unparse(each) for each in statement.handlers):
            yield from (name for name in _in(statement.body) if name not in MODULES)
            for part in (*(each.body for each in statement.handlers), statement.orelse, statement.finalbody):
                yield from _in(part)
        else:
            yield from _of(statement)


def _of(node: ast.AST) -> Iterator[str]:
    """In this statement or expression; a block in it is a block of its own."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        named = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        yield from (name for name in named if name in MODULES)
    if isinstance(node, ast.Attribute) and node.attr in LACKING.get(ast.unparse(node.value), ()):
        yield ast.unparse(node)
    if isinstance(node, ast.keyword) and node.arg in ARGUMENTS:
        yield str(node.arg)
    for _, value in ast.iter_fields(node):
        children = value if isinstance(value, list) else [value]
        if children and all(isinstance(child, ast.stmt) for child in children):
            yield from _in(children)
        else:
            yield from (name for child in children if isinstance(child, ast.AST) for name in _of(child))


def test_what_windows_lacks_is_asked_for_first() -> None:
    folders = ("gsm8k_core", "backends", "verbs", "benchmarks")
    files = [ROOT / "cli.py", ROOT / "lock.py", *(path for name in folders for path in (ROOT / name).rglob("*.py"))]
    assert len(files) > 100
    named = {path.relative_to(ROOT).as_posix(): unguarded(path.read_text(encoding="utf-8")) for path in files}
    assert {path: names for path, names in named.items() if names}.keys() == POSIX_ALONE, named


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("os.killpg(1, 9)", ["os.killpg"]),
        ("def f():\n    with g():\n        h(signal.SIGKILL)", ["signal.SIGKILL"]),
        ("class A:\n    def f(self):\n        return [os.getuid() for _ in x]", ["os.getuid"]),
        ("import fcntl", ["fcntl"]),
        ("def f():\n    from resource import getrusage", ["resource"]),
        ("subprocess.Popen(command, preexec_fn=f)", ["preexec_fn"]),
        ("if hasattr(os, 'killpg'):\n    pass\nelse:\n    os.killpg(1, 9)", ["os.killpg"]),
        ("if sys.platform == 'win32':\n    print()\nos.fork()", ["os.fork"]),
        ("try:\n    os.fork()\nexcept OSError:\n    pass", ["os.fork"]),
        ("if hasattr(os, 'killpg'):\n    os.killpg(1, signal.SIGKILL)", []),
        ("if sys.platform == 'win32':\n    return\nos.fork()", []),
        ("if sys.platform == 'darwin':\n    import fcntl", []),
        ("try:\n    import resource\nexcept ImportError:\n    pass", []),
        ("getattr(os, 'O_NONBLOCK', 0); os.kill(1, signal.SIGTERM)", []),
    ],
)
def test_the_walk_sees_what_is_not_asked_for(source: str, found: list[str]) -> None:
    assert unguarded(source) == found


def test_training_has_no_parent_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*parent.LAUNCHERS, parent.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    assert parent.supervises(["train"])
    with monkeypatch.context() as there:
        there.setattr(os, "name", "nt")
        supervised = parent.supervises(["train"])
    assert not supervised


def test_the_signals_that_stop_a_run_are_those_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "SIGHUP")
    assert {signal.SIGTERM} <= set(wanted()) <= {signal.SIGINT, signal.SIGTERM}


CHILD = """
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("how", [processes.end, processes.end_in_order])
@pytest.mark.parametrize("groups", [True, False], ids=["posix", "windows"])
def test_a_program_is_ended_with_all_that_it_started(
    groups: bool, how: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not groups:
        monkeypatch.delattr(os, "killpg")
    command = [sys.executable, "-c", CHILD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as child:
        assert child.stdout is not None
        grandchild = psutil.Process(int(child.stdout.readline()))
        try:
            how(child)
            child.wait()
            while grandchild.is_running() and grandchild.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.02)
            how(child)  # again: there is nothing left to end, and that is no error
        finally:
            child.kill()


def test_a_trackers_process_asks_whether_its_parent_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = os.getppid(), os.getpid()
    assert processes.is_child_of(mine)
    assert not processes.is_child_of(other)  # it is there, and is not its parent
    with monkeypatch.context() as there:
        there.setattr(os, "name", "nt")
        there.delattr(os, "getppid")  # a virtual environment's launcher, there
        found = processes.is_child_of(other), processes.is_child_of(2**22 + 1)
    assert found == (True, False)


def test_a_way_to_end_has_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.ending(3) == "exit code 3"
    assert processes.ending(-11) == "killed by SIGSEGV"
    assert processes.ending(-50) == "killed by signal 50"


def test_math_verify_is_refused_where_no_pipe_can_be_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_verify.sys, "platform", "win32")
    assert "Windows" in str(math_verify.missing())
