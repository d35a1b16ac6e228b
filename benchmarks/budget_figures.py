"""How well runs kept to their time budgets: `python benchmarks/budget_figures.py RUN [RUN ...]`.

Reads run.json and metrics.jsonl. `used` is the run's own last reading of its clock, before the process ends; `over`
what it is beyond the budget. The error of the time to go is that of the first update line from a quarter (a half) of
the used time on, in per cent of the time that really was left.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HEAD = ("run", "budget", "used", "over", "updates", "of", "plans", "eta at 25 %", "at 50 %", "base", "end", "verdict")


def figures(run: Path) -> dict[str, Any]:
    """One run's figures. Seconds; errors as fractions, positive where the run ended earlier than was said."""
    manifest = json.loads((run / "run.json").read_text(encoding="utf-8"))
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    updates = [event for event in map(json.loads, lines) if event["event"] == "update"]
    outcome, plan = manifest["outcome"], manifest["plan"]
    guard = outcome.get("guard") or {}
    used = outcome["seconds"]
    return {
        "run": run.name,
        "budget": plan["budget_seconds"],
        "used": used,
        "over": used - plan["budget_seconds"],
        "updates": outcome["updates"],
        "of": plan["asked"],
        "plans": len(plan["events"]) - 1,
        "longest": max(event["seconds"] for event in updates),
        "eta": {share: eta_error(updates, used, share) for share in (0.25, 0.5)},
        "base": (guard.get("base") or {}).get("correct"),
        "end": (guard.get("end") or {}).get("correct"),
        "verdict": guard.get("verdict", "off"),
    }


def eta_error(updates: Sequence[dict[str, Any]], used: float, share: float) -> float | None:
    """(said - was) / was, of the time to go; None where no update line is that late, or nothing was left."""
    late = next((event for event in updates if event["elapsed"] >= share * used), None)
    left = used - late["elapsed"] if late else 0.0
    return (late["eta"] - left) / left if late and left > 0 else None


def _row(found: dict[str, Any]) -> list[str]:
    errors = ["-" if value is None else f"{100 * value:+.1f} %" for value in found["eta"].values()]
    return [
        found["run"],
        f"{found['budget']:.0f}",
        f"{found['used']:.1f}",
        f"{found['over']:+.1f}",
        str(found["updates"]),
        str(found["of"]),
        str(found["plans"]),
        *errors,
        str(found["base"]),
        str(found["end"]),
        found["verdict"],
    ]


def main(folders: Sequence[str]) -> int:
    if not folders:
        print(__doc__, file=sys.stderr)
        return 2
    rows = [list(HEAD), *(_row(figures(Path(folder))) for folder in folders)]
    print("\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(HEAD), *rows[1:]]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
