"""The order of the rooms, and what else keeps the house one house. Each check is shown a small one that breaks it."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# From the ground. A room imports itself and the rooms below it, never one beside it. A room of core is a folder or a
# file; `auto` says what "auto" means, so it stands above models and problems; `machine` asks it, and training.
ORDER = (
    ("gsm8k_core", "gsm8k_core.types"),
    ("gsm8k_core.files", "gsm8k_core.clock", "gsm8k_core.processes", "gsm8k_core.command", "gsm8k_core.doing"),
    ("gsm8k_core.config",),
    ("gsm8k_core.backend",),
    ("gsm8k_core.models",),
    ("gsm8k_core.problems", "gsm8k_core.exports"),
    ("gsm8k_core.scoring", "gsm8k_core.auto"),
    ("gsm8k_core.rollouts",),
    ("gsm8k_core.training",),
    ("gsm8k_core.tracking", "gsm8k_core.parity", "gsm8k_core.machine", "gsm8k_core.ranks"),
    ("gsm8k_core.report", "gsm8k_core.serving"),
    ("backends",),
    ("verbs",),
    ("cli", "gsm8k_finetune"),
)
LEVELS = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
OUTSIDE = {"benchmarks", "tests"}  # no part of the product
FRAMEWORKS = {
    "backends/torch": {"torch", "accelerate", "peft", "safetensors.torch"},
    "backends/mlx": {"mlx", "mlx_lm", "safetensors.mlx"},
}
STRANGERS = {
    "backends/mlx/body.py",
    "backends/mlx/fast_exp.py",
    "backends/mlx/kernels.py",
    "backends/torch/seats.py",
    "backends/torch/shards.py",
    "backends/torch/vllm.py",
}  # what only one framework needs
TABLES = {"gsm8k_core/problems/stories.py"}  # data: as long as it is
MOST_LINES, MOST_FUNCTION_LINES = 600, 60
# No words of the field: what stands in such a file is found only by who put it there.
HALF_NOUNS = {
    "adjust",
    "floors",
    "headline",
    "lean",
    "opening",
    "partings",
    "seats",
    "sides",
    "sinks",
    "slots",
    "story",
}
HALF_NOUNS |= {"common", "helpers", "misc", "tools", "util", "utils"}

House = Mapping[str, str]  # path -> source
parse = cache(ast.parse)


@pytest.fixture(scope="module")
def house() -> House:
    """The product."""
    files = [
        ROOT / "cli.py",
        *(
            path
            for name in ("gsm8k_core", "backends", "verbs", "gsm8k_finetune")
            for path in (ROOT / name).rglob("*.py")
        ),
    ]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(files)}


# --- reading --------------------------------------------------------------------------------------------------


def module_of(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def room_of(module: str) -> str:
    """gsm8k_core.scoring of gsm8k_core.scoring.answers, verbs of verbs.train.start."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "gsm8k_core" else parts[0]


def imports(source: str, *, in_functions: bool = True) -> Iterator[tuple[str, str]]:
    """(module, name, or nothing for a whole module) of each import; those under TYPE_CHECKING are among them."""
    left: list[ast.AST] = [parse(source)]
    while left:
        node = left.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not read here; name the whole module"
            yield from ((str(node.module), alias.name) for alias in node.names)
        if in_functions or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            left += ast.iter_child_nodes(node)


def modules_imported(source: str, modules: frozenset[str] = frozenset(), *, in_functions: bool = True) -> set[str]:
    """Whole names of the modules: `from verbs import evaluate` is verbs.evaluate where `modules` has such a one."""
    found = imports(source, in_functions=in_functions)
    return {whole if (whole := f"{module}.{name}") in modules else module for module, name in found}


def modules_of(house: House) -> frozenset[str]:
    return frozenset(map(module_of, house))


# --- the checks: each gives its complaints --------------------------------------------------------------------


def upward_imports(house: House) -> list[str]:
    """Imports of a room that does not stand below, wherever in a file they stand."""
    modules, found = modules_of(house), []
    for path, source in house.items():
        room = room_of(module_of(path))
        if room not in LEVELS:
            found.append(f"{path} stands in no room")
            continue
        for name in sorted(modules_imported(source, modules) & modules):
            other = room_of(name)
            if other != room and LEVELS.get(other, len(ORDER)) >= LEVELS[room]:
                found.append(f"{path} imports {name}")
    return found


def outside_imports(house: House) -> list[str]:
    """Imports of what is no part of the product."""
    return [
        f"{path} imports {name}"
        for path, source in house.items()
        for name in sorted(modules_imported(source))
        if name.split(".")[0] in OUTSIDE
    ]


def framework_leaks(house: House) -> list[str]:
    """Imports of a framework outside its own folder, by statement or by name, and of that folder by its twin."""
    return [
        f"{path} imports {name}"
        for path, source in house.items()
        for name in sorted(modules_imported(source) | modules_named(source))
        for folder, packages in FRAMEWORKS.items()
        if not path.startswith(f"{folder}/")
        and (packages & {name, *parents(name)} or (is_backend(path) and is_inside(name, folder.replace("/", "."))))
    ]


def modules_named(source: str) -> set[str]:
    """What is imported by a call of import_module with a text."""
    calls = [node for node in ast.walk(parse(source)) if isinstance(node, ast.Call) and node.args]
    named = [call.args[0] for call in calls if ast.unparse(call.func).rpartition(".")[2] == "import_module"]
    return {node.value for node in named if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def is_backend(path: str) -> bool:
    return any(path.startswith(f"{folder}/") for folder in FRAMEWORKS)


def is_inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def circles(house: House) -> list[str]:
    """Modules that need each other to be imported. What a function imports when it is called does not count."""
    return [" <-> ".join(sorted(part)) for part in components(import_graph(house)) if len(part) > 1]


def import_graph(house: House) -> dict[str, set[str]]:
    """Module -> the modules that importing it runs, packages on the way included; its own packages run before it."""
    modules = modules_of(house)
    graph: dict[str, set[str]] = {}
    for path, source in house.items():
        module = module_of(path)
        names = modules_imported(source, modules, in_functions=False)
        names |= {parent for name in names for parent in parents(name) - parents(module)}
        graph[module] = (names & modules) - {module}
    return graph


def parents(module: str) -> set[str]:
    parts = module.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts))}


def components(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """The strongly connected parts: within one, each module leads to each other."""
    leads = {start: reachable(graph, start) for start in graph}
    parts = {frozenset({start, *(other for other in leads[start] if start in leads[other])}) for start in graph}
    return sorted(map(set, parts), key=sorted)


def reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    left = list(graph[start])
    while left:
        if (module := left.pop()) not in found:
            found.add(module)
            left += graph[module]
    return found


def missing_twins(house: House) -> list[str]:
    """Files of one backend that the other lacks, STRANGERS apart."""
    names = {
        folder: {path.removeprefix(f"{folder}/") for path in house if path.startswith(f"{folder}/")}
        for folder in FRAMEWORKS
    }
    return [
        f"{path} has no twin"
        for folder, other in (tuple(FRAMEWORKS), tuple(FRAMEWORKS)[::-1])
        for name in sorted(names[folder] - names[other])
        if (path := f"{folder}/{name}") not in STRANGERS
    ]


def too_long(house: House) -> list[str]:
    """Files of more than MOST_LINES lines, tables of data apart, and functions of more than MOST_FUNCTION_LINES."""
    found = []
    for path, source in house.items():
        if path not in TABLES and (count := len(source.splitlines())) > MOST_LINES:
            found.append(f"{path} has {count} lines")
        for node in ast.walk(parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                count = (node.end_lineno or node.lineno) - node.lineno + 1
                if count > MOST_FUNCTION_LINES:
                    found.append(f"{path}: {node.name} has {count} lines")
    return found


def without_docstring(house: House) -> list[str]:
    """Files that do not say what they are."""
    return [f"{path} has no docstring" for path, source in house.items() if not ast.get_docstring(parse(source))]


def half_nouns(house: House) -> list[str]:
    """Files whose names say too little; the strangers are known by theirs."""
    return [
        path for path in house if path.rpartition("/")[2].removesuffix(".py") in HALF_NOUNS and path not in STRANGERS
    ]


def doubled_class_names(house: House) -> list[str]:
    """Two public classes of one name. Twins may have it; so may what a file keeps to itself."""
    places = [
        (node.name, path)
        for path, source in house.items()
        for node in parse(source).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    return [
        f"{name} is a class of {one} and of {other}"
        for (name, one), (same, other) in combinations(places, 2)
        if name == same and not are_twins(one, other)
    ]


def are_twins(one: str, other: str) -> bool:
    folders = [path.rpartition("/")[0] for path in (one, other)]
    return sorted(folders) == sorted(FRAMEWORKS) and one.rpartition("/")[2] == other.rpartition("/")[2]


# --- the house, and the small ones that must not pass ---------------------------------------------------------

CHECKS = (
    upward_imports,
    outside_imports,
    framework_leaks,
    circles,
    missing_twins,
    too_long,
    without_docstring,
    half_nouns,
    doubled_class_names,
)
ONE, TWO = "gsm8k_core/scoring/one.py", "gsm8k_core/scoring/two.py"
CONTROLS: list[tuple[Callable[[House], list[str]], House, list[str]]] = [
    (
        upward_imports,
        {ONE: "", "gsm8k_core/problems/data.py": "from gsm8k_core.scoring.one import N"},
        ["gsm8k_core/problems/data.py imports gsm8k_core.scoring.one"],
    ),
    (
        upward_imports,
        {ONE: "", "gsm8k_core/auto.py": "def f():\n    from gsm8k_core.scoring import one"},
        ["gsm8k_core/auto.py imports gsm8k_core.scoring.one"],
    ),
    (
        upward_imports,
        {"verbs/plot.py": "", ONE: "if TYPE_CHECKING:\n    import verbs.plot"},
        [f"{ONE} imports verbs.plot"],
    ),
    (
        upward_imports,
        {"backends/__init__.py": "", "gsm8k_core/backend.py": "import backends"},
        ["gsm8k_core/backend.py imports backends"],
    ),
    (upward_imports, {"gsm8k_core/attic/one.py": ""}, ["gsm8k_core/attic/one.py stands in no room"]),
    (outside_imports, {ONE: "def f():\n    from benchmarks.flops import N"}, [f"{ONE} imports benchmarks.flops"]),
    (outside_imports, {"cli.py": "import tests.tiny"}, ["cli.py imports tests.tiny"]),
    (framework_leaks, {ONE: "def f():\n    import torch.nn as nn"}, [f"{ONE} imports torch.nn"]),
    (framework_leaks, {"backends/torch/loss.py": "from mlx import core"}, ["backends/torch/loss.py imports mlx"]),
    (framework_leaks, {"backends/__init__.py": "import mlx_lm"}, ["backends/__init__.py imports mlx_lm"]),
    (framework_leaks, {ONE: "from safetensors.torch import save_file"}, [f"{ONE} imports safetensors.torch"]),
    (framework_leaks, {ONE: "importlib.import_module('torch')"}, [f"{ONE} imports torch"]),
    (
        framework_leaks,
        {"backends/mlx/loss.py": "from backends.torch.cache import N"},
        ["backends/mlx/loss.py imports backends.torch.cache"],
    ),
    (
        circles,
        {ONE: "from gsm8k_core.scoring import two", TWO: "if TYPE_CHECKING:\n    from gsm8k_core.scoring.one import N"},
        ["gsm8k_core.scoring.one <-> gsm8k_core.scoring.two"],
    ),
    (
        circles,
        {
            "verbs/__init__.py": "from verbs.train.link import N",
            "verbs/train/__init__.py": "from verbs import M",
            "verbs/train/link.py": "",
        },
        ["verbs <-> verbs.train"],
    ),
    (
        circles,
        {
            ONE: "from gsm8k_core.scoring.two import N",
            TWO: "from gsm8k_core.scoring.three import N",
            "gsm8k_core/scoring/three.py": "class A:\n    import gsm8k_core.scoring.one",
        },
        ["gsm8k_core.scoring.one <-> gsm8k_core.scoring.three <-> gsm8k_core.scoring.two"],
    ),
    (
        missing_twins,
        {"backends/mlx/loss.py": "", "backends/torch/train.py": "", "backends/torch/seats.py": ""},
        ["backends/torch/train.py has no twin", "backends/mlx/loss.py has no twin"],
    ),
    (too_long, {ONE: "N = 1\n" * 601}, [f"{ONE} has 601 lines"]),
    (too_long, {ONE: "class A:\n    def f(self):\n" + "        pass\n" * 60}, [f"{ONE}: f has 61 lines"]),
    (without_docstring, {ONE: "", TWO: "N = 1"}, [f"{ONE} has no docstring", f"{TWO} has no docstring"]),
    (
        half_nouns,
        {"gsm8k_core/report/headline.py": "", "backends/torch/seats.py": ""},
        ["gsm8k_core/report/headline.py"],
    ),
    (
        doubled_class_names,
        {ONE: "class Place: ...", "verbs/evaluate.py": "class Place: ..."},
        [f"Place is a class of {ONE} and of verbs/evaluate.py"],
    ),
]
FINE: list[tuple[Callable[[House], list[str]], House]] = [
    (
        upward_imports,
        {
            ONE: "",
            TWO: "from gsm8k_core.scoring.one import N",
            "gsm8k_core/training/one.py": "import gsm8k_core.scoring.two",
        },
    ),
    (framework_leaks, {"backends/torch/loss.py": "import torch\nfrom mlxish import core", ONE: "import torchish"}),
    (circles, {ONE: "from gsm8k_core.scoring import two", TWO: "def f():\n    import gsm8k_core.scoring.one"}),
    (circles, {"verbs/__init__.py": "from verbs.plot import N", "verbs/plot.py": "N = 1"}),
    (missing_twins, {"backends/torch/loss.py": "", "backends/mlx/loss.py": "", "backends/mlx/fast_exp.py": ""}),
    (too_long, {"gsm8k_core/problems/stories.py": "N = 1\n" * 601, ONE: "def f():\n" + "    pass\n" * 59}),
    (doubled_class_names, {"backends/mlx/loss.py": "class A: ...", "backends/torch/loss.py": "class A: ..."}),
]


@pytest.mark.parametrize("check", CHECKS)
def test_the_house_holds(check: Callable[[House], list[str]], house: House) -> None:
    assert check(house) == []


@pytest.mark.parametrize(("check", "small", "found"), CONTROLS)
def test_each_check_finds_what_it_is_for(check: Callable[[House], list[str]], small: House, found: list[str]) -> None:
    assert check(small) == found


@pytest.mark.parametrize(("check", "small"), FINE)
def test_each_check_lets_pass_what_is_right(check: Callable[[House], list[str]], small: House) -> None:
    assert check(small) == []


def test_every_check_has_a_control() -> None:
    assert {check for check, *_ in CONTROLS} == set(CHECKS)


def test_every_room_and_every_exception_is_there(house: House) -> None:
    assert {room_of(module) for module in modules_of(house)} == set(LEVELS)
    assert house.keys() >= STRANGERS | TABLES
