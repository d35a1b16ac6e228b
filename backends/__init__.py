"""Which backends there are, which one this machine gets, and how one is opened. Imports no framework."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from backends import unseen
from gsm8k_core.doing import doing
from gsm8k_core.types import Choice, PreflightError, UsageError

if TYPE_CHECKING:
    from gsm8k_core.backend import Backend, Group
    from gsm8k_core.models.rendering import Rendering
    from gsm8k_core.ranks.world import World
    from gsm8k_core.training.memory import DeviceMemory


@dataclass(frozen=True, slots=True)
class Provider:
    """One backend: the folder of its name here, and what must be importable for it. `install` gets that.

    `launchers` start two processes of it, each behind the program's name; the first is the one to try.
    """

    packages: tuple[str, ...]
    install: str
    launchers: tuple[str, ...]


PROVIDERS = {
    "mlx": Provider(
        ("mlx", "mlx_lm"),
        "pip install -e '.[mlx-cpu]' (Linux; '.[mlx-cuda]' with an NVIDIA GPU), pip install -e . (Apple Silicon)",
        ("mlx.launch -n 2 -- python",),
    ),
    "torch": Provider(
        ("torch", "transformers", "accelerate"),
        "pip install -e .",
        ("torchrun --nproc-per-node 2", "accelerate launch --multi_gpu --num_processes 2"),
    ),
}

_resolved: set[str] = set()  # the backends that this process asked for
_shared: Callable[..., Backend] | None = None  # how a model is opened on several ranks
_here = 1  # and how many of them are on this host
_spread = 1  # and over how many of them a model's weights are spread
_reason = ""  # for the backend, where a launcher starts it
QUANTIZER = "mlx"  # whose adapter.py writes 4-bit weights: their layout is mlx-lm's
MINIMUM_MACOS = (14, 0)  # the oldest macOS that MLX's wheels are built for


@dataclass(frozen=True, slots=True)
class Machine:
    """What `choose` goes by; detected once, faked in tests."""

    system: str  # platform.system(): Linux, Darwin, Windows
    machine: str  # platform.machine(): arm64, x86_64, aarch64, AMD64
    installed: frozenset[str] = field(default_factory=frozenset)  # provider names
    cuda: bool = False
    macos: tuple[int, int] = (0, 0)
    rosetta: bool = False


def installed(name: str) -> bool:
    """Whether the packages of a provider are there. Looked up, not imported."""
    return all(importlib.util.find_spec(package) is not None for package in PROVIDERS[name].packages)


def _is_rosetta() -> bool:
    if platform.system() != "Darwin" or platform.machine() != "x86_64":
        return False
    command = ["/usr/sbin/sysctl", "-in", "sysctl.proc_translated"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() == "1"


def detect() -> Machine:
    """This machine, without importing a framework."""
    version = [int(part) for part in platform.mac_ver()[0].split(".") if part.isdigit()] + [0, 0]
    return Machine(
        system=platform.system(),
        machine=platform.machine(),
        installed=frozenset(name for name in PROVIDERS if installed(name)),
        cuda=Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None,
        macos=(version[0], version[1]),
        rosetta=_is_rosetta(),
    )


def choose(machine: Machine) -> Choice:
    """The backend that `auto` means on this machine, and why. A pure function."""
    if machine.system != "Darwin":
        found = "an NVIDIA GPU was found" if machine.cuda else "no NVIDIA GPU was found, so it runs on the CPU"
        mlx = "; mlx is installed too: --backend mlx" if "mlx" in machine.installed else ""
        return Choice("torch", f"{machine.system} {machine.machine}: mlx is made for Apple Silicon, {found}{mlx}")
    if machine.rosetta:
        return Choice("torch", "this Python runs under Rosetta; install an arm64 Python to get mlx")
    if machine.machine != "arm64":
        return Choice("torch", "this Mac has an Intel processor and mlx needs Apple Silicon")
    if machine.macos < MINIMUM_MACOS:
        version = ".".join(map(str, machine.macos))
        return Choice("torch", f"macOS {version} is too old for mlx, which needs {MINIMUM_MACOS[0]}.{MINIMUM_MACOS[1]}")
    if "mlx" not in machine.installed:
        return Choice("torch", "Apple Silicon, but mlx is not installed: pip install mlx mlx-lm")
    return Choice("mlx", f"Apple Silicon with macOS {machine.macos[0]}.{machine.macos[1]} and mlx installed")


def check_name(name: str, place: str = "--backend") -> None:
    """Raises UsageError for a backend that does not exist; `place` is where it was asked for."""
    if name not in ("auto", *PROVIDERS):
        raise UsageError(f"{place} {name} does not exist (there are auto, {', '.join(sorted(PROVIDERS))}); try auto")


def resolve(name: str) -> Choice:
    """The backend for `--backend name`; what was asked for and is not there is an error, never a fallback.

    Raises UsageError for an unknown name, PreflightError for one whose packages are missing.
    """
    check_name(name)
    choice = choose(detect()) if name == "auto" else Choice(name, _reason or f"--backend {name}")
    if not installed(choice.name):
        provider = PROVIDERS[choice.name]
        missing = [package for package in provider.packages if importlib.util.find_spec(package) is None]
        raise PreflightError(
            f"backend {choice.name} needs {' and '.join(missing)}, not installed here; {provider.install}"
        )
    _resolved.add(choice.name)
    return choice


def keep_to_one() -> None:
    """This process opens the backend that it resolves, and no other: what those need, transformers does not see.

    It would import torch for the tokenizers that MLX asks it for, and take three times as long.
    """
    unseen.hide(lambda: sorted(_packages(PROVIDERS.keys() - _resolved) - _packages(_resolved) - {"transformers"}))


def _packages(names: Iterable[str]) -> set[str]:
    return {package for name in names for package in PROVIDERS[name].packages}


def look(name: str) -> None:
    """All that a process does which `doctor` starts for one backend."""
    from gsm8k_core.machine import report_in_turn  # here, not above: it brings numpy, which `train`'s parent needs not

    _resolved.add(name)
    keep_to_one()
    report_in_turn(_module(name, "doctor").report)


def _module(name: str, file: str) -> Any:
    """A file of a backend, under the same name in each.

    While a framework is imported the garbage collector waits, and what that made it leaves alone ever after: to look
    through a million objects that stay, again and again, was a fifth of a start.
    """
    whole = f"{__name__}.{name}.{file}"
    if whole not in sys.modules:
        doing(f"importing {name}")
    if whole in sys.modules or not gc.isenabled():
        return importlib.import_module(whole)
    gc.disable()
    try:
        module = importlib.import_module(whole)
        gc.freeze()
    finally:
        gc.enable()
    return module


def check(name: str, device: str, dtype: str, method: str) -> None:
    """Refuse what a backend does not have, before data or a model is read. Imports the framework.

    Raises PreflightError for a device, a dtype or a method that is not there.
    """
    _module(name, "backend")  # all of it: a damaged package shows here, too
    module = _module(name, "device")
    methods = module.CAPABILITIES.methods
    if method not in methods:
        raise PreflightError(
            f"--method {method} is not available on {name} (it has {', '.join(methods)}); "
            f"try --method lora{'' if name == 'mlx' else ' or --backend mlx'}"
        )
    module.check(device, dtype)


def check_engine(name: str, engine: str, device: str, uses_dora: bool) -> None:
    """Refuse an engine that a backend does not know, before data or a model is read. Raises PreflightError."""
    known = _module(name, "device").CAPABILITIES.engines
    if engine not in known:
        raise PreflightError(
            f"--rollout-engine {engine} is not available on {name}, which samples itself; leave it out, or "
            "--backend torch on CUDA"
        )
    _module(name, engine).check(device, uses_dora)


def check_rows(name: str, config: Mapping[str, Any], longest: int) -> None:
    """Refuse rows of `longest` tokens that the backend would compute otherwise than transformers does.

    `config` is the model's config.json. Raises PreflightError. Imports the framework.
    """
    _module(name, "architectures").refuse_long_rows(config, longest)


def left_open(own: Mapping[str, str], given: Mapping[str, str]) -> Mapping[str, str]:
    """A backend's own variables where nobody has set one of them, else none: they have to fit one another."""
    return {} if own.keys() & given.keys() else own


def environment(system: str, given: Mapping[str, str]) -> dict[str, str]:
    """What has to be in a process's environment before a framework starts there; nothing that a person has set.

    `system` as in sys.platform, `given` the environment now.
    """
    if system != "darwin":
        return {}
    given = dict(given)  # as it was: a backend's package settles this process's own when it is imported
    every = [left_open(importlib.import_module(f"{__name__}.{name}").DARWIN, given) for name in PROVIDERS]
    return {name: value for own in every for name, value in own.items()}


def device_memory(name: str, device: str) -> DeviceMemory:
    """What training costs on a backend's device, and what that has. Imports the framework."""
    memory = cast("DeviceMemory", _module(name, "memory").device_memory(device))
    memory = replace(memory, costs=replace(memory.costs, ranks=_spread))
    if _here == 1 or memory.device == "cuda":  # each rank has a card of its own
        return memory
    return replace(memory, free=memory.free // _here, reason=f"{memory.reason}, over {_here} ranks")


def opens_quantized(name: str) -> bool:
    """Whether a backend computes with 4-bit weights itself; the others take their de-quantised copy."""
    return "qlora" in _module(name, "device").CAPABILITIES.methods


def quantize(folder: Path, directory: Path) -> None:
    """Write `directory` (new): the model in `folder` with 4-bit weights. Raises DataError where none can be."""
    _module(QUANTIZER, "adapter").quantize_folder(folder, directory)


def convert(folder: Path, directory: Path, bits: int | None, dtype: str) -> None:
    """Write `directory` (new) as mlx-lm's own conversion of the model in `folder`, quantised where `bits` says so."""
    _module(QUANTIZER, "adapter").convert_folder(folder, directory, bits, dtype)


def open(
    name: str, folder: Path, device: str = "auto", dtype: str = "auto", rendering: Rendering | None = None
) -> Backend:
    """Load the model in `folder` on a backend. Raises PreflightError for a device or dtype it does not have.

    An answer ends at the tokens that the `rendering` names, and what is saved can be rendered as it says; without one,
    at those that the model's files name.
    """
    module = _module(name, "backend")
    doing("opening the model")
    load = partial(module.open_backend, folder, device, dtype, rendering)
    return cast("Backend", _shared(name, folder, device, dtype, rendering, load) if _shared else load())


def one_run(name: str) -> AbstractContextManager[None]:
    """A run that trains on a backend, entered before its folder is claimed. Imports the framework.

    Raises PreflightError where another one is at work in this process, and the backend trains one at a time.
    """
    return cast("AbstractContextManager[None]", _module(name, "train").one_run())


def share(opens: Callable[..., Backend] | None, here: int = 1, spread: int = 1, reason: str = "") -> None:
    """From now on a model is opened on several ranks, by `opens` (gsm8k_core.ranks.leader); None: on this one alone.

    `here` of them are on this host, and share its memory; over `spread` of them its weights are spread. `reason` is
    that of the backend, which their launcher starts: even where a person typed --backend.
    """
    global _shared, _here, _spread, _reason
    _shared, _here, _spread, _reason = opens, here, spread, reason


def is_shared() -> bool:
    """Whether a model is opened on several ranks."""
    return _shared is not None


def is_spread() -> bool:
    """Whether each of several ranks holds a part of a model's weights."""
    return _spread > 1


def join(world: World, device: str, timeout: float) -> Group:
    """Join the ranks by the engine of the world's backend. Imports the framework. Raises RuntimeError."""
    return cast("Group", _module(world.engine, "group").join(world, device, timeout))
