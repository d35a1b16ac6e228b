"""MLX's kernels built in a quarter of the time: the header of all of them is compiled once.

On a CPU mx.compile has g++ build each fused kernel, some 40 for a training: 1.5 s each for twenty lines, of which all
but 0.3 is MLX's header. A script of that name, first on this process's PATH, offers the real g++ that header compiled;
it takes it where its own flags are the same, and what it builds is the same. MLX calls g++ by name, and gives its own
folder of headers first: there is no other way in.
"""

from __future__ import annotations

import os
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

from gsm8k_core.files import make_folder, write_bytes
from gsm8k_core.models.store import cache_folder, short_hash
from gsm8k_core.types import StorageError

HEADER = Path("mlx/backend/cpu/compiled_preamble.h")
FLAGS = "-std=c++17 -O3 -fPIC"  # MLX's own: with others the compiled header would be passed over
# The header is compiled when the first kernel is, in 4 s; two processes that do so at once write the same.
SCRIPT = """#!/bin/sh
case " $* " in *" -shared "*"/mlx/"*)
    if [ ! -f {compiled} ] && {compiler} {flags} -w -I {include} -x c++-header {header} -o {compiled}.$$ 2>/dev/null
    then mv -f {compiled}.$$ {compiled}; fi;;
esac
exec {compiler} -I {folder} "$@"
"""


def build_quickly() -> None:
    """From now on, in this process and in those that it starts. Where the cache cannot be written, nothing changes."""
    compiler, package = shutil.which("g++"), find_spec("mlx")
    headers = [Path(place, "include") for place in (package.submodule_search_locations or () if package else ())]
    include = next((folder for folder in headers if (folder / HEADER).is_file()), None)
    if compiler is None or include is None or (Path(compiler).parent / HEADER.parent).is_dir():  # that one is ours
        return
    parts = [(str(path), path.stat().st_mtime_ns) for path in (include / HEADER, Path(compiler).resolve())]
    folder = cache_folder() / "mlx-kernels" / short_hash(f"{SCRIPT}{compiler}{parts}")
    compiled = folder / f"{HEADER}.gch"
    places = {"compiled": compiled, "compiler": compiler, "include": include, "header": include / HEADER}
    words = {name: shlex.quote(str(place)) for name, place in {**places, "folder": folder}.items()}
    try:
        if not os.access(folder / "g++", os.X_OK):
            make_folder(compiled.parent, parents=True)
            write_bytes(folder / "g++", SCRIPT.format(flags=FLAGS, **words).encode())
            (folder / "g++").chmod(0o700)
    except (OSError, StorageError):
        return
    os.environ["PATH"] = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PATH")])])
