"""The `deploy` command: which subcommands there are, how errors become one line and an exit code."""

import os
import signal
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from io import TextIOWrapper

import click

from runtime.errors import DeployError, InputError, MachineError

from . import __version__, console
from .answers import BUG, COMPLETE, INTERRUPTED, done, ended, failed, missing_package, of_bug

COMMANDS: Mapping[str, str] = {
    "build": "deploy.commands.build",
    "finalize": "deploy.commands.finalize",
    "targets": "deploy.commands.targets",
    "run": "deploy.commands.run",
    "archive": "deploy.commands.archive",
    "stream": "deploy.commands.stream",
    "check": "deploy.commands.check",
    "evaluate": "deploy.commands.evaluate",
    "sensitivity": "deploy.commands.sensitivity",
    "bench": "deploy.commands.bench",
    "inspect": "deploy.commands.inspect",
    "keygen": "deploy.commands.keygen",
    "sign": "deploy.commands.sign",
    "verify": "deploy.commands.verify",
    "pack": "deploy.commands.pack",
    "unpack": "deploy.commands.unpack",
    "slots": "deploy.commands.slots",
    "export-triton": "deploy.commands.export_triton",
    "simulate": "deploy.commands.simulate",
    "demo": "deploy.commands.demo",
    "doctor": "deploy.commands.doctor",
    "schema": "deploy.commands.schema",
    "completion": "deploy.commands.completion",
}
"""Subcommand -> module whose `command` it is; imported when it is used."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(COMMANDS[cmd_name]).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        near = get_close_matches(args[0], COMMANDS, 1)
        if near and args[0] not in COMMANDS:
            ctx.fail(f"No such command {args[0]!r}, did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)


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
    console.speak_to(machines=as_json)
    try:
        result = app.main(arguments or ["--help"], prog_name="deploy", standalone_mode=False)
        if not isinstance(result, dict):
            return int(result or 0)
        return done(result, as_json)
    except DeployError as error:
        return failed(error, as_json)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "deploy"
        return failed(
            InputError(" ".join(error.format_message().split()).rstrip("."), remedy=f"see `{command} --help`"), as_json
        )
    except click.ClickException as error:
        return failed(InputError(error.format_message().rstrip(".")), as_json)
    except (KeyboardInterrupt, click.Abort):
        return ended(INTERRUPTED, "interrupted", as_json)
    except ModuleNotFoundError as error:
        missing = missing_package(error)
        return failed(missing, as_json) if missing else ended(BUG, of_bug(error), as_json)
    except MemoryError:
        return failed(MachineError("there is not enough memory", remedy="use smaller frames, or free memory"), as_json)
    except (BrokenPipeError, SystemExit) as gone:
        # click itself ends a process after it completed a word, and with 1 when the reader of its help has gone.
        if isinstance(gone, SystemExit) and COMPLETE in os.environ:
            raise
        # The reader of our help has gone; there is nobody to tell, and nothing is left to write when Python ends.
        console.discard(sys.stdout)
        return 0
    except Exception as error:
        return ended(BUG, of_bug(error), as_json)
