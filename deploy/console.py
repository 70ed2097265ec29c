"""Where words for people go: standard output, or standard error when a machine reads the output."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import IO, TYPE_CHECKING, Any

from runtime.errors import plain, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


def discard(stream: IO[str]) -> None:
    """Let what is still written to a stream whose reader has gone go nowhere, also when Python ends and flushes it."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


for_machines = False
"""Whether standard output is left to one JSON object."""
warnings: list[str] = []
"""What this run warned of; `--json` repeats it."""


def speak_to(machines: bool) -> None:
    """Where words for people go from now on: standard error where output is left to one JSON object, or output."""
    global for_machines
    for_machines = machines
    _console.cache_clear()


def people() -> Console:
    """Where words for people go."""
    return _console(for_machines)


def errors() -> Console:
    """Standard error."""
    return _console(True)


@cache
def _console(stderr: bool) -> Console:
    # What shows its help, or only prints JSON, needs no rich.
    from rich.console import Console

    class Lasting(Console):
        """Falls silent when its reader has gone: what is being done matters more than who listens."""

        def print(self, *objects: Any, **options: Any) -> None:
            try:
                super().print(*objects, **options)
            except OSError:
                # A terminal that hung up (EIO), a full disk behind a redirection.
                self.on_broken_pipe()

        def on_broken_pipe(self) -> None:
            # rich would end the process with the exit code of a failed gate.
            self.quiet = True
            discard(self.file)

    return Lasting(stderr=stderr, highlight=False)


def _text(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(text, style=style)


def say(text: str, style: str = "") -> None:
    """One line for people; text from files is safe in it, markup is not interpreted. Leading newlines are kept."""
    line = text.lstrip("\n")
    people().print(_text(text[: len(text) - len(line)] + printable(line), style=style), soft_wrap=True)


def say_verbatim(text: str) -> None:
    """Lines of our own, as they are: never text from files."""
    people().print(_text(text), soft_wrap=True)


def complain(text: str) -> None:
    """One line on standard error."""
    errors().print(_text(printable(text)), soft_wrap=True)


def warn(text: str) -> None:
    """One line on standard error that a person should read before trusting the result."""
    warnings.append(text)
    errors().print(_text(f"warning: {printable(text)}", style="yellow"), soft_wrap=True)


def table(
    title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, folded: Collection[int] = ()
) -> None:
    """A table for people. Where some columns are to be `folded`, at any character, no others are."""
    from rich.table import Table

    grid = Table(title=_text(title), title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        grid.add_column(
            _text(column),
            justify="right" if index and index not in folded else "left",
            no_wrap=index not in folded if folded else not index,
            overflow="fold" if folded else "ellipsis",
        )
    for row in rows:
        grid.add_row(*[_text(plain(cell)) for cell in row])
    people().print(grid)


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar on standard error; yields a function (done, all if known). Time alone where no number is told."""
    # Where nobody watches, a bar would leave empty lines behind.
    if not errors().is_terminal:
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=errors(), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
