"""A small folder of problems, in words that the tiny models' tokenizer has."""

from __future__ import annotations

import json
from pathlib import Path


def write_problems(folder: Path, num_first: int = 8, num_second: int = 5) -> Path:
    """train.jsonl and test.jsonl, the same rows in both: every sum of so many first numbers and so many second ones."""
    rows = [
        {"question": f"Tom buys {a} apples and {b} more .", "answer": f"he has {a} + {b} = {a + b} .\n#### {a + b}"}
        for a in range(2, 2 + num_first)
        for b in range(2, 2 + num_second)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
