"""The process that math_verify.py starts: a row a line on stdin, math-verify's verdict a line on stdout."""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any

SHOWN = 200  # characters of what was read


def judged(completion: str, gold: str) -> dict[str, Any]:
    """What math-verify reads, and whether it calls it equal to the gold number."""
    from math_verify import parse, verify  # type: ignore[import, unused-ignore]

    # The parent holds the time: without an alarm, nothing of it can be lost or come late.
    read = parse(completion, parsing_timeout=None)
    correct = bool(verify(parse(gold, parsing_timeout=None), read, timeout_seconds=None))
    return {"extracted": str(read[0])[:SHOWN] if read else None, "correct": correct}


def main() -> None:
    """Until stdin ends. Whatever the package prints goes to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    logging.disable()
    judged("18", "18")  # the imports and caches of the first row
    out.write("ready\n")
    out.flush()
    for line in sys.stdin:
        row = json.loads(line)
        try:
            answer = judged(row["completion"], row["gold"])
        except Exception:  # whatever SymPy raises is no reading; the parent goes on with the next row
            answer = {"extracted": None, "correct": False}
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
