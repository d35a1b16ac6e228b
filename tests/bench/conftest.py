"""Tests against other packages' own code: they need the extra `bench`.

`make test-bench` installs it and gives --require-bench: what is missing is then an error. Elsewhere it is a skip.
"""

from __future__ import annotations

import importlib.util

import pytest

PACKAGES = ("lm_eval", "math_verify", "cyllama", "trl")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-bench",
        action="store_true",
        default=False,
        help="without the extra `bench`, the tests in tests/bench are errors, not skips",
    )


@pytest.fixture(scope="session", autouse=True)
def bench(request: pytest.FixtureRequest) -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        reason = f"the extra `bench` is not installed (no {', '.join(missing)}): make test-bench installs it"
        required = request.config.getoption("--require-bench", default=False)
        (pytest.fail if required else pytest.skip)(reason)
