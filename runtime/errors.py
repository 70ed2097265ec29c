"""The one family of errors a user can cause, each with file, key, value and what to do.

Exit codes of the `deploy` command: 1 a gate failed, 2 the user's input is wrong, 3 this machine cannot do it,
70 a bug of ours.
"""

from collections.abc import Mapping
from typing import Any

SHOWN_CHARACTERS = 120


def plain(value: object) -> str:
    """Text of `value` safe to print on a terminal: control characters escaped, at most 120 characters."""
    text = str(value)
    if len(text) > SHOWN_CHARACTERS:
        text = text[: SHOWN_CHARACTERS - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class DeployError(Exception):
    """A failure with a cause the user can act on.

    Args:
        problem: what is wrong, one clause, no full stop.
        file: the file concerned, if any.
        line: 1-based line in that file, if known.
        key: the key, field or parameter concerned.
        value: what was found there.
        remedy: what to do about it, one clause.
    """

    exit_code = 70
    report: Mapping[str, Any] | None = None
    """What was done all the same, which `--json` prints beside the error."""

    def __init__(
        self,
        problem: str,
        *,
        file: object = None,
        line: int | None = None,
        key: str | None = None,
        value: object = None,
        remedy: str = "",
    ) -> None:
        self.problem = problem
        self.file = None if file is None else str(file)
        self.line = line
        self.key = key
        self.value = value
        self.remedy = remedy
        super().__init__(problem)

    def __str__(self) -> str:
        return self.one_line()

    def one_line(self) -> str:
        """The whole error as one printable line."""
        where = [] if self.file is None else [printable(self.file)]
        if self.line is not None:
            where.append(f"line {self.line}")
        if self.key is not None:
            where.append(printable(self.key))
        text = (", ".join(where) + ": " if where else "") + printable(self.problem)
        if self.value is not None:
            text += (
                f" (found {plain(self.value)!r})" if isinstance(self.value, str) else f" (found {plain(self.value)})"
            )
        return text + (f"; {printable(self.remedy)}" if self.remedy else "")

    def as_json(self) -> dict[str, Any]:
        """The error object of `--json`: code (the exit code), kind, message, file, line, key, value, remedy."""
        return {
            "code": self.exit_code,
            "kind": type(self).__name__,
            "message": self.problem,
            "file": self.file,
            "line": self.line,
            "key": self.key,
            "value": None if self.value is None else plain(self.value),
            "remedy": self.remedy,
        }


def printable(text: str) -> str:
    """`text` as one line that no terminal obeys: control characters, newlines among them, are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class GateError(DeployError):
    """An accuracy gate failed. `result` holds the figures, where there are any, for `--json`."""

    exit_code = 1
    result: dict[str, Any] | None = None


class InputError(DeployError):
    """The user's input is wrong: a file, an option, an array."""

    exit_code = 2


class CubeError(InputError):
    """A cube, a metrics vector or a frame that cannot be restored as it is."""


class CubeFileError(InputError):
    """A cube file (ENVI, .npy, .npz, .mat) or a photograph that cannot be read or written."""


class CheckpointError(InputError):
    """A checkpoint that cannot be loaded; `key` is the state-dict or configuration key."""


class BundleError(InputError):
    """A bundle that is damaged, incomplete or not ours; `file` is the file inside it."""


class UntrustedError(BundleError):
    """A bundle that no key of this computer's keyring signed; another keyring may take it."""


class ConfigError(InputError):
    """A configuration (deploy.yaml, target) that is wrong; `line` is the line of `key`."""


class MachineError(DeployError):
    """This machine cannot do what was asked."""

    exit_code = 3
