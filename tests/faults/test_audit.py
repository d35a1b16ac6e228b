"""`make audit` never passes where it could not look."""

from __future__ import annotations

from tests.faults.audit import report

CLEAN = {"name": "numpy", "version": "2.0", "vulns": []}
BAD = {"name": "jinja2", "version": "3.1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3.1.5"]}]}
SKIPPED = {"name": "torch", "skip_reason": "Dependency not found on PyPI"}


def test_nothing_known_is_0_and_counts_what_was_looked_up() -> None:
    assert report({"dependencies": [CLEAN]}, "") == (
        0,
        ["audit: 1 of 1 pinned packages were looked up; no known vulnerability"],
    )


def test_a_known_one_is_1_and_named() -> None:
    code, lines = report({"dependencies": [CLEAN, BAD]}, "")
    assert (code, lines[0]) == (1, "jinja2 3.1.0: PYSEC-1, mended in 3.1.5")


def test_a_package_that_was_not_looked_up_is_no_pass() -> None:
    code, lines = report({"dependencies": [CLEAN, SKIPPED]}, "")
    assert (code, lines[0]) == (1, "torch: not audited (Dependency not found on PyPI)")


def test_where_nothing_could_be_looked_up_one_line_says_so() -> None:
    for found in ({"dependencies": [SKIPPED]}, {"dependencies": []}, None):
        code, (line,) = report(found, "Failed to resolve 'api.osv.dev'")
        assert code == 3
        assert line.startswith("audit: NOTHING was audited")
