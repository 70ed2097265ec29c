"""What the commands of training have in common: where they speak, and how they end."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from runtime.errors import DeployError

console = Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def told() -> Iterator[None]:
    """Errors that a user can cause end the process with one line and their exit code, Ctrl-C with 130."""
    try:
        yield
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on")
        sys.exit(130)
    except DeployError as error:
        console.print(f"error: {error.one_line()}", markup=False)
        sys.exit(error.exit_code)
