"""Versions of engines and of this program: dotted numbers, and bounds on them such as `>=10.3,<12`."""

import operator
import re
from collections.abc import Callable

PROGRAM = "0.1.0"
"""Of this program."""
_BOUND = re.compile(r"\s*(>=|<=|==|!=|>|<)\s*([0-9]+(?:\.[0-9]+){0,4})\s*")
_COMPARE: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": operator.ge, "<=": operator.le, "==": operator.eq, "!=": operator.ne, ">": operator.gt, "<": operator.lt,
}  # fmt: skip


def numbers(version: str) -> tuple[int, ...]:
    """`10.3.0.26` as (10, 3, 0, 26); what follows the first part that is no number is left out."""
    parts = []
    for part in version.split("."):
        match = re.match(r"[0-9]+", part)
        if match is None:
            break
        parts.append(int(match[0]))
        if match[0] != part:
            break
    return tuple(parts)


def satisfiable(bounds: str) -> bool:
    """Whether `bounds` can be read at all."""
    return all(_BOUND.fullmatch(part) for part in bounds.split(","))


def within(version: str, bounds: str) -> bool:
    """Whether `version` keeps all of `bounds`; `==10.3` and `!=10.3` speak of every 10.3.x.

    Raises:
        ValueError: the bounds cannot be read.
    """
    found = numbers(version)
    for part in bounds.split(","):
        match = _BOUND.fullmatch(part)
        if match is None:
            raise ValueError(f"not a bound on versions: {part!r}")
        limit = numbers(match[2])
        if match[1] in ("==", "!="):
            if (found[: len(limit)] == limit) != (match[1] == "=="):
                return False
            continue
        width = max(len(found), len(limit))
        if not _COMPARE[match[1]](found + (0,) * (width - len(found)), limit + (0,) * (width - len(limit))):
            return False
    return True
