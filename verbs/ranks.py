"""A verb on several processes that torchrun, accelerate launch or mlx.launch started: rank 0 runs it, the others help.

No launcher of our own: each process is this very command line, and finds its rank in the environment.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any

import backends
from gsm8k_core.backend import Group
from gsm8k_core.machine import Finding
from gsm8k_core.ranks.follower import follow
from gsm8k_core.ranks.leader import Ranks
from gsm8k_core.ranks.meeting import JOIN, differences, late, meet, within
from gsm8k_core.ranks.wire import Wire, end_process
from gsm8k_core.ranks.world import World
from gsm8k_core.training.runs import code_hash, versions
from gsm8k_core.types import Choice, PreflightError, RankLostError, UsageError, first_line
from verbs import Context

SHARED = ("train", "eval", "compare")  # verbs that have something to share
LOOKS = "doctor"  # what looks at the ranks themselves: an answer on one process is no answer there


def run_shared(world: World, verb: str, config: Any, context: Context, run: Callable[[Any, Context], int]) -> int:
    """The exit code of this rank's part of the verb."""
    check(world, verb, config)
    backends.resolve(world.engine)
    if verb == LOOKS:
        return _look(world, config, context)
    # What "auto" means is the launcher's to say here; a run that is gone on with may have been the other's.
    config = config.model_copy(update={"backend": world.engine})
    context = replace(context, explicit=context.explicit | {"backend"})
    group = _join(world, config.device)
    try:
        lines = _meet(world, group, verb)
    except PreflightError as error:
        if not str(error):
            return error.exit_code  # rank 0 says why
        raise
    if not world.leads:
        return _follow(lines[0], group)
    context.link.watch_launcher()
    with _led(Ranks(group, lines, world.launcher), lines, world):
        return run(config, context)


def _look(world: World, config: Any, context: Context) -> int:
    """`doctor` on several ranks: rank 0's report, with what the ranks are to one another; one exit code for all."""
    from verbs.doctor import report  # here, not above: the other verbs need it not

    group = _join(world, "auto")
    lines = _meet(world, group, LOOKS, strict=False)
    if not world.leads:
        return _follow(lines[0], group)
    code = 1
    try:
        choice = Ranks(group, lines, world.launcher).choice
        findings = [Finding("ranks", "ok", f"{choice.name} ranks over {group.engine}: {choice.reason}")]
        ours = _facts(world)
        for told in chain(*[differences(line.peer, ours, line.facts) for line in lines]):
            what, _, mend = told.partition("; ")
            findings.append(Finding("ranks", "problem", what, mend=mend))
        code = report(config, context, findings, Choice(world.engine, world.reason))
    finally:
        for line in lines:
            line.close(code)
    return code


def _meet(world: World, group: Group, verb: str, strict: bool = True) -> list[Wire]:
    if not world.leads:
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGTSTP"):  # they reach rank 0 as well, which says what is done
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
    return meet(world, group, _facts(world), _lost(world, verb), strict)


def _follow(line: Wire, group: Group) -> int:
    code = follow(line, group, backends.open)
    line.close(code)
    return code


def check(world: World, verb: str, config: Any) -> None:
    """Refuse what several ranks do not do. Raises UsageError."""
    if verb == LOOKS:
        return
    if verb not in SHARED:
        raise UsageError(
            f"{verb} uses one process; start it without {world.launcher} ({', '.join([*SHARED, LOOKS])} use several)"
        )
    if config.backend not in ("auto", world.engine):
        raise UsageError(
            f"--backend {config.backend} cannot be started by {world.launcher}, which starts {world.engine}; "
            f"try {backends.PROVIDERS[config.backend].launchers[0]} cli.py {verb}, or --backend {world.engine}"
        )
    if (engine := getattr(config, "rollout_engine", "backend")) != "backend":
        raise UsageError(
            f"--rollout-engine {engine} answers for one process; leave it out, and each rank samples itself, or start "
            f"it without {world.launcher}"
        )
    if world.shards is not None and verb == "train" and not config.resume:  # what is gone on with is read first
        refuse_spread(config)


def refuse_spread(config: Any) -> None:
    """Raises UsageError for a training that needs all of the weights on one rank."""
    if config.method == "dora":
        raise UsageError("--method dora is not available with FSDP; try --method lora, or a launch without it")
    if config.kl and not config.uses_adapter:
        raise UsageError(
            "--kl with --method full holds a second model, which is not available with FSDP; try --method lora, "
            "leave --kl out, or a launch without it"
        )


def _join(world: World, device: str) -> Any:
    with within(JOIN + 5, late(world)):
        try:
            return backends.join(world, device, JOIN)
        except RuntimeError as error:
            why = first_line(error)[:200]
            raise PreflightError(f"{late(world)} ({why})") from error


def _facts(world: World) -> Mapping[str, str]:
    """What has to be the same on every rank."""
    spread = {"FSDP in accelerate's config": world.shards.said} if world.shards else {}
    return {**versions(), "our own code": code_hash()[:12], **spread}


def _lost(world: World, verb: str) -> Callable[[str], None]:
    """What becomes of this process when another one is gone. Of all that see it, one says so."""
    on = "go on from the newest checkpoint with train --resume"
    if verb != "train":
        on = "start it again" if verb == LOOKS else f"{verb} again goes on from there"

    def end(what: str) -> None:
        says = f"{what}, so all ranks have ended; {on}" if what and world.rank <= 1 else ""
        end_process(says, RankLostError.exit_code)

    return end


@contextmanager
def _led(ranks: Ranks, lines: list[Wire], world: World) -> Iterator[None]:
    """The verb runs; however it ends, the other ranks hear of it."""
    spread = world.size if ranks.group.sharded else 1
    backends.share(ranks.open, world.local_size, spread, world.reason)
    code = 1
    try:
        with ranks.causes():
            yield
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
        raise
    except BaseException as error:
        code = getattr(error, "exit_code", 1)
        raise
    finally:
        backends.share(None)
        for line in lines:
            line.close(code)
