"""python patient_rank.py PROGRAM ...: the program as one of several ranks, with limits that no busy machine reaches.

The limits have tests of their own (core/ranks/test_meeting.py, backends/test_ranks.py).
"""

from __future__ import annotations

import runpy
import sys


def wait_long() -> None:
    """For ranks that come late, say nothing for long, or take their time to end."""
    import verbs.ranks
    from gsm8k_core.ranks import leader, meeting, wire
    from tests.waiting import CEILING

    for module in (meeting, wire, leader, verbs.ranks):
        for name in ("JOIN", "SILENT", "ANSWER"):
            if hasattr(module, name):
                setattr(module, name, CEILING)


if __name__ == "__main__":
    wait_long()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
