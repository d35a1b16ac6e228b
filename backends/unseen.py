"""What a library does not see of others while it is imported: it would import them too, and nothing here asks for that.

transformers imports torch wherever there is one, for 5 s of CPU; on MLX only its tokenizers are wanted, and they need
none. Nor does any backend train through `datasets` (which brings pandas), or with the losses that need scipy.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

ALWAYS = ("datasets", "scipy")  # what transformers is not to see on any backend
TRACKERS = ("wandb", "swanlab")  # what mlx-lm's training loop imports; ours are in a process of their own
QUIET = "TRANSFORMERS_NO_ADVISORY_WARNINGS"  # it says, else, that there is no torch


class Blind(MetaPathFinder, Loader):
    """Stands in front of every other finder until its module is imported; that one then sees no hidden package."""

    def __init__(self, module: str, hidden: Callable[[], Sequence[str]]) -> None:
        self.module, self.hidden = module, hidden
        self._loader: Any = None

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.module:
            return None
        place = sys.meta_path.index(self)
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(place, self)  # who looks for a module need not import it
        if spec is not None and spec.loader is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)  # type: ignore[no-any-return]

    def exec_module(self, module: ModuleType) -> None:
        sys.meta_path.remove(self)
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self._loader  # as if nobody had stood between
        with hidden(self.hidden()) as names:
            self._loader.exec_module(module)
            _settle(names)


@contextmanager
def hidden(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """Packages that cannot be imported in the block; one that is imported already stays. Yields those that cannot."""
    names = [name for name in names if name not in sys.modules]
    quiet = QUIET not in os.environ
    os.environ.setdefault(QUIET, "1")
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]  # None: Python's own way to say so
    try:
        yield names
    finally:
        for name in names:
            sys.modules.pop(name, None)
        if quiet:
            os.environ.pop(QUIET, None)


def _settle(names: Sequence[str]) -> None:
    """transformers asks each question once in a process: it is asked while the package is hidden."""
    questions = sys.modules.get("transformers.utils.import_utils")
    for name in names if questions is not None else ():
        if (ask := getattr(questions, f"is_{name}_available", None)) is not None:
            ask()


def hide(packages: Callable[[], Sequence[str]]) -> None:
    """From now on; `packages`, asked for when transformers is imported, are hidden from it beside ALWAYS."""
    for blind in (Blind("transformers", lambda: (*ALWAYS, *packages())), Blind("mlx_lm.tuner", lambda: TRACKERS)):
        sys.meta_path.insert(0, blind)
