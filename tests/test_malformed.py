"""Whatever a file, a folder or an argument holds: it is understood, or refused in one line."""

from __future__ import annotations

from pathlib import Path

from malformed import cases, fault


def test_malformed_input_is_refused_in_one_line(tmp_path: Path) -> None:
    """500 cases; ``python tests/malformed.py 10000`` tries more."""
    assert {case.what: wrong for case in cases(tmp_path, range(500)) if (wrong := fault(case))} == {}
