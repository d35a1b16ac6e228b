"""kill -9 of each of two ranks in an update, an evaluation and a save: the other ends, and the run goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gsm8k_core.processes import end
from tests.faults import ranks_driver
from tests.waiting import CEILING

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


def test_whichever_rank_is_killed_the_other_ends_with_one_line_and_the_run_goes_on(backend_name: str) -> None:
    driver = subprocess.Popen(
        [sys.executable, ranks_driver.__file__, "--backend", backend_name],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, errors = driver.communicate(timeout=CEILING)
    finally:
        end(driver)  # with the ranks that it forked
        driver.wait()
    assert out, errors
    found = json.loads(out)
    assert {name: part["wrong"] for name, part in found.items() if part["wrong"]} == {}
    aimed = [f"rank {rank}, {place}" for rank in (0, 1) for place in ranks_driver.PLACES]
    assert sorted(found) == sorted([*aimed, "alone", "rank 0, eval", "eval alone", "compare"])
