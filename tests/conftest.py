"""What every test can use: backends by name, real data, a real tokenizer, and what must not be missing."""

from __future__ import annotations

import gc
import importlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from backends import PROVIDERS, installed
from tests.waiting import CEILING

if installed("mlx"):
    importlib.import_module("backends.mlx")  # before any test imports mlx: it chooses the BLAS

# Not a person's own cache; a test that is about it has another one.
CACHE = tempfile.TemporaryDirectory(prefix="gsm8k-cache-")  # goes when this process ends
os.environ.setdefault("GSM8K_CACHE", CACHE.name)
os.environ.pop("COLUMNS", None)  # xdist sets it; without it, lines stay whole, as in a pipe

# A slow machine is no finding: no example has a deadline, and none is too slow to make.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The product's own time limits are out of the way: a test that is about one sets it."""
    from gsm8k_core import machine
    from gsm8k_core.models import hub

    monkeypatch.setattr(hub.look_up, "__defaults__", (CEILING,))
    monkeypatch.setattr(machine.reach_hub, "__defaults__", (CEILING,))
    monkeypatch.setattr("gsm8k_core.scoring.math_verify.START_LIMIT", CEILING)
    monkeypatch.setattr("backends.mlx._PROBE_SECONDS", CEILING)
    monkeypatch.setattr("verbs.doctor.IMPORT_SECONDS", CEILING)
    monkeypatch.setattr("verbs.doctor.MEASURE_SECONDS", CEILING)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-backends",
        default="",
        metavar="NAMES",
        help="backends that must be installed, with commas between: a missing one is an error, not a skip",
    )


def pytest_configure(config: pytest.Config) -> None:
    for name in filter(None, config.getoption("--require-backends").split(",")):
        if name not in PROVIDERS:
            known = ", ".join(sorted(PROVIDERS))
            raise pytest.UsageError(f"--require-backends: there is no backend {name!r} (there are {known})")
        if not installed(name):
            raise pytest.UsageError(f"--require-backends: {name} is not installed here; {PROVIDERS[name].install}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `backend_name` runs once per provider; one that is not installed is skipped."""
    if "backend_name" in metafunc.fixturenames:
        metafunc.parametrize("backend_name", [_param(name) for name in PROVIDERS])


# The files that take longest, the longest first: no worker is left alone with one at the end.
LONG = (
    "backends/test_ranks.py",
    "e2e/test_grpo.py",
    "faults/test_ranks.py",
    "e2e/test_ranks.py",
    "backends/test_qwen_shape.py",
    "e2e/test_main_job.py",
    "faults/test_kills.py",
    "e2e/test_supervisor.py",
    "e2e/test_resume.py",
    "e2e/test_rft.py",
    "backends/test_methods.py",
    "faults/test_security.py",
    "backends/test_conformance.py",
    "backends/test_parity.py",
    "faults/test_disk.py",
    "e2e/test_sampled.py",
    "e2e/test_budget.py",
    "faults/test_evaluation.py",
    "e2e/test_benchmark.py",
    "benchmarks/test_scaling.py",
)


@contextmanager
def left_alone() -> Iterator[None]:
    """The garbage collector waits, and never looks at what was made in the block: modules, classes and tests stay."""
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """To collect tests is to import the frameworks."""
    with left_alone():
        return (yield)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    places = {here / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(LONG)))


def _param(name: str) -> object:
    missing = pytest.mark.skipif(not installed(name), reason=f"backend {name} is not installed here")
    return pytest.param(name, marks=missing)


@pytest.fixture(scope="session")
def frameworks() -> None:
    """Every backend is imported, and the garbage collector leaves what that made alone.

    Trainer and `Backend.close` collect garbage: 0.4 s each, as long as the frameworks' own objects are looked through.
    """
    with left_alone():
        for name in filter(installed, PROVIDERS):
            importlib.import_module(f"backends.{name}.backend")


def _folder_from(variable: str, holds: str) -> Path:
    """The folder that an environment variable names. Not set is a skip, but a failure in CI."""
    if not os.environ.get(variable):
        leave = pytest.fail if "CI" in os.environ else pytest.skip
        leave(f"{variable} does not name a folder with {holds}")
    folder = Path(os.environ[variable])
    if not (folder / holds).is_file():
        pytest.fail(f"{variable}={folder}: there is no {holds} in it")
    return folder


@pytest.fixture(scope="session")
def gsm8k_data() -> Path:
    """The real GSM8K: a folder with train.jsonl and test.jsonl."""
    return _folder_from("GSM8K_DATA", "test.jsonl")


@pytest.fixture(scope="session")
def qwen_tokenizer() -> Path:
    """Qwen2.5's real tokenizer and its settings: a folder that `make test` fetches."""
    return _folder_from("QWEN_TOKENIZER", "tokenizer.json")
