"""JSON of strangers: bounded in bytes and depth, each key once, numbers that are finite."""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from runtime.errors import CubeFileError
from runtime.files.disk import reason
from runtime.untrusted import TooLargeError, read_untrusted

MOST_BYTES = 16 << 20
_DIGITS = 40
_REMEDY = "get the file again from who made it"


def read_object(path: Path, *, limit: int = MOST_BYTES, links: bool = True, nan: bool = False) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        limit: bytes that are accepted.
        links: follow a symbolic link.
        nan: accept the words NaN and Infinity, which Python's programs write.

    Raises:
        CubeFileError: it cannot be read, is too large, nested too deeply, no JSON, no object; says a key twice, or a
            number that is not finite.
    """
    try:
        data = read_untrusted(path, limit, links=links)
    except TooLargeError as error:
        problem = f"more than {limit} bytes of JSON"
        raise CubeFileError(problem, file=path, value=error.size, remedy="check that this is the file") from error
    except (OSError, ValueError) as error:
        raise CubeFileError(f"cannot be read: {reason(error)}", file=path, remedy="check the path") from error
    try:
        content = json.loads(
            data.decode("utf-8-sig"),
            object_pairs_hook=_once,
            parse_float=_finite,
            parse_int=_whole,
            parse_constant=None if nan else _refused,
        )
    except RecursionError as error:
        raise CubeFileError("is nested too deeply", file=path, remedy=_REMEDY) from error
    except ValueError as error:
        raise CubeFileError(f"is no JSON that is accepted: {reason(error)}", file=path, remedy=_REMEDY) from error
    if not isinstance(content, dict):
        raise CubeFileError("holds no JSON object", file=path, remedy=_REMEDY)
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it says {next(name for name in names if names.count(name) > 1)[:60]!r} twice")
    return found


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"the number {text[:20]} is too large")
    return number


def _whole(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _refused(text: str) -> NoReturn:
    raise ValueError(f"it says {text}")


def number_in(value: object) -> float | None:
    """A finite number as a float; None of anything else, truth values among them."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
