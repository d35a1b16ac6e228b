"""What a process knows of itself."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ASK = "import time; time.sleep(0.3); from gsm8k_core.processes import seconds_since_start as asked; print(asked())"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is as exact as psutil")
def test_the_seconds_since_the_start_are_no_more_than_went_by() -> None:
    """psutil's would be up to a second more: the time of day of the boot is kept in whole seconds."""
    before = time.monotonic()
    said = subprocess.run([sys.executable, "-c", ASK], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert 0.3 <= float(said) <= time.monotonic() - before + 0.02  # starttime is in hundredths
