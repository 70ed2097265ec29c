"""The `deploy` command: which subcommands there are, how errors become one line and an exit code."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

import click

from runtime.errors import DeployError, GateError, InputError, MachineError

from . import __version__, console

COMMANDS: Mapping[str, str] = {
    "build": "deploy.build",
    "finalize": "deploy.finalize",
    "targets": "deploy.targets",
    "run": "deploy.run",
    "stream": "deploy.stream",
    "check": "deploy.check",
    "evaluate": "deploy.evaluate",
    "sensitivity": "deploy.sensitivity",
    "bench": "deploy.bench",
    "inspect": "deploy.inspect",
    "export-triton": "deploy.export_triton",
    "simulate": "deploy.simulate",
    "demo": "deploy.demo",
    "doctor": "deploy.doctor",
    "schema": "deploy.schema",
    "completion": "deploy.completion",
}
"""Subcommand -> module whose `command` it is; imported when it is used."""

BUG, INTERRUPTED = 70, 130
COMPLETE = "_DEPLOY_COMPLETE"
"""What the shell sets when it asks for completion."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(COMMANDS[cmd_name]).command
        return command


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Start with `deploy demo`, or `deploy doctor` to see what this machine can do. "
    "Tab completion: `deploy completion --help`.",
)
@click.version_option(__version__, prog_name="deploy")
def app() -> None:
    """Put a trained hyperspectral restoration network on the computer next to the sensor."""


def main() -> None:
    """Entry point of the command."""
    if isinstance(sys.stdout, TextIOWrapper):
        # A terminal that does not know a character gets its code.
        sys.stdout.reconfigure(errors="backslashreplace")
    # What systemd and schedulers send ends us as Ctrl-C does: cleanly.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line.

    Returns:
        the exit code: 0 done, 1 a gate failed, 2 the input is wrong, 3 this machine cannot do it, 70 a bug of ours,
        130 interrupted. With `--json` the last line of standard output is one JSON object.
    """
    as_json = "--json" in arguments
    console.warnings.clear()
    if as_json:
        console.speak_to_machines()
    else:
        console.speak_to_people()
    try:
        result = app.main(arguments or ["--help"], prog_name="deploy", standalone_mode=False)
        if not isinstance(result, dict):
            return int(result or 0)
        return _done(result, as_json)
    except DeployError as error:
        return _failed(error, as_json)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "deploy"
        return _failed(InputError(error.format_message().rstrip("."), remedy=f"see `{command} --help`"), as_json)
    except click.ClickException as error:
        return _failed(InputError(error.format_message().rstrip(".")), as_json)
    except (KeyboardInterrupt, click.Abort):
        return _ended(INTERRUPTED, "interrupted", as_json)
    except MemoryError:
        return _failed(MachineError("there is not enough memory", remedy="use smaller frames, or free memory"), as_json)
    except (BrokenPipeError, SystemExit) as gone:
        # click itself ends a process after it completed a word, and with 1 when the reader of its help has gone.
        if isinstance(gone, SystemExit) and COMPLETE in os.environ:
            raise
        # The reader of our help has gone; there is nobody to tell, and nothing is left to write when Python ends.
        console.discard(sys.stdout)
        return 0
    except Exception as error:
        log = _log(error)
        return _ended(BUG, f"a bug of ours: {type(error).__name__}; please report it with {log}", as_json)


def leave(outcome: dict[str, Any] | DeployError) -> NoReturn:
    """End the process at once, with the words and the exit code of `run`: some thread will never end by itself.

    Nothing is unwound: a library that hangs may hang again when it is closed.
    """
    as_json = console.for_machines
    code = _failed(outcome, as_json) if isinstance(outcome, DeployError) else _done(outcome, as_json)
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _done(result: dict[str, Any], as_json: bool) -> int:
    if as_json:
        return _print_json({**result, "warnings": list(console.warnings)}, 0)
    return 0


def _failed(error: DeployError, as_json: bool) -> int:
    console.complain(f"deploy: error: {error.one_line()}")
    if as_json:
        figures = error.result if isinstance(error, GateError) else None
        told = {**(error.report or {}), "error": error.as_json(), **({"result": figures} if figures else {})}
        return _print_json(told, error.exit_code)
    return error.exit_code


def _ended(code: int, text: str, as_json: bool) -> int:
    console.complain(f"deploy: {text}")
    if as_json:
        empty = {"file": None, "line": None, "key": None, "value": None, "remedy": ""}
        kind = "Interrupted" if code == INTERRUPTED else "Bug"
        return _print_json({"error": {"code": code, "kind": kind, "message": text, **empty}}, code)
    return code


def _print_json(content: dict[str, Any], code: int) -> int:
    """Print it; returns the exit code, which still says how it went where the reader has gone."""
    try:
        click.echo(json.dumps(content, allow_nan=False))
    except OSError as error:
        console.discard(sys.stdout)
        if error.errno not in (errno.EPIPE, errno.EIO):
            console.complain(f"deploy: error: the result cannot be written: {error.strerror or error}")
            return code or MachineError.exit_code
    return code


def _log(error: BaseException) -> str:
    descriptor, name = tempfile.mkstemp(prefix="deploy-", suffix=".log")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write("".join(traceback.format_exception(error)))
    return str(Path(name))
