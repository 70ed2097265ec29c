"""Bounds on versions of engines."""

from __future__ import annotations

import pytest

from runtime.versions import numbers, satisfiable, within


@pytest.mark.parametrize(
    ("version", "bounds", "kept"),
    [
        ("10.3.0", ">=10.3,<12", True),
        ("10.3", ">=10.3.0", True),
        ("10.2.9", ">=10.3,<12", False),
        ("12.0", ">=10.3,<12", False),
        ("11.4.0.106", ">=10.3,<12", True),
        ("10.13.3.9", "!=10.13.3", False),
        ("10.13.2", "!=10.13.3", True),
        ("10.13.3.9", "==10.13", True),
        ("9.10", ">9.9", True),
        ("1.7.1.116", " >= 1.7 , < 2 ", True),
    ],
)
def test_versions_are_held_against_bounds(version: str, bounds: str, kept: bool) -> None:
    assert within(version, bounds) is kept


def test_a_version_is_read_up_to_its_first_word() -> None:
    assert numbers("10.3.0rc1.5") == (10, 3, 0) and numbers("10.3.0.26+cuda12") == (10, 3, 0, 26)


@pytest.mark.parametrize("bounds", ["", "10.3", "~=10.3", ">=", ">=10.x", ">=10,"])
def test_bounds_that_cannot_be_read_are_refused(bounds: str) -> None:
    assert not satisfiable(bounds)
    with pytest.raises(ValueError, match="not a bound"):
        within("10.3", bounds)
