"""`make audit`: pip-audit over every version in constraints.txt, and a plain word where it could not look.

    python tests/faults/audit.py PIP-AUDIT CONSTRAINTS

pip-audit itself ends with 0 where it found no package at all in the database, as behind a mirror that has none.
Exit codes: 0 nothing known, 1 something known or some packages not looked up, 3 nothing could be looked up.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def report(found: dict[str, Any] | None, why: str) -> tuple[int, list[str]]:
    """(exit code, lines) of pip-audit's JSON; `found` is None where it gave none, `why` is its last line then."""
    packages = found["dependencies"] if found else []
    skipped = [package for package in packages if "skip_reason" in package]
    if len(skipped) == len(packages):
        reason = skipped[0]["skip_reason"] if skipped else why
        return 3, [f"audit: NOTHING was audited, the vulnerability database could not be asked from here ({reason})"]
    lines = [
        f"{package['name']} {package['version']}: {bug['id']}, mended in {', '.join(bug['fix_versions']) or 'none'}"
        for package in packages
        for bug in package.get("vulns", ())
    ]
    lines += [f"{package['name']}: not audited ({package['skip_reason']})" for package in skipped]
    looked = f"audit: {len(packages) - len(skipped)} of {len(packages)} pinned packages were looked up"
    return (1 if lines else 0), [*lines, f"{looked}; {'see above' if lines else 'no known vulnerability'}"]


def main(program: str, constraints: str) -> int:
    command = [program, "-r", constraints, "--no-deps", "--disable-pip", "--progress-spinner", "off", "-f", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout)
    except ValueError:
        found = None
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1][-200:]
    code, lines = report(found, last)
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
