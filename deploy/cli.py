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

COMMANDS: Mapping[str, tuple[str, str]] = {
    "build": (
        "deploy.commands.build",
        "Build a bundle: export the network, prove the graph against PyTorch, write everything that flies.",
    ),
    "finalize": (
        "deploy.commands.finalize",
        "Build a bundle's engine on this computer, its target, and prove it on the golden frame.",
    ),
    "targets": (
        "deploy.commands.targets",
        "List the targets of `deploy build`: the built-in ones and those of a deploy.yaml.",
    ),
    "run": (
        "deploy.commands.run",
        "Restore a cube, a product, a photograph, a folder of photographs or a video with a bundle.",
    ),
    "archive": ("deploy.commands.archive", "Restore many products, and know what became of each."),
    "stream": ("deploy.commands.stream", "Record a spectrometer without loss, and restore what this computer can."),
    "check": (
        "deploy.commands.check",
        "Compare a bundle with PyTorch; exit 1 when the variant that flies fails a gate of the configuration.",
    ),
    "evaluate": ("deploy.commands.evaluate", "Measure models on clean cubes: degrade, restore, compare."),
    "sensitivity": (
        "deploy.commands.sensitivity",
        "Measure what a lower precision costs, block by block and layer class by layer class.",
    ),
    "bench": (
        "deploy.commands.bench",
        "Time a bundle's engine on this machine, frame by frame, as `deploy run` uses it.",
    ),
    "inspect": (
        "deploy.commands.inspect",
        "Show what a bundle is: network, precision and why, scale, evidence, files; all hashes are checked first.",
    ),
    "keygen": ("deploy.commands.keygen", "Make a pair of keys: one signs bundles, the other tells who signed them."),
    "sign": (
        "deploy.commands.sign",
        "Sign a bundle, whose every byte is checked first; a signature that is there is replaced.",
    ),
    "verify": (
        "deploy.commands.verify",
        "Check the signature of a bundle, or of one in an archive, and the hash of every file; no engine is loaded.",
    ),
    "pack": (
        "deploy.commands.pack",
        "Write a bundle as one file: what it lists, its signatures and its engine, every byte of which is checked.",
    ),
    "unpack": ("deploy.commands.unpack", "Unpack a bundle: whole and checked, or not at all."),
    "slots": (
        "deploy.commands.slots",
        "Keep two bundles: the newest one flies once it has proved itself, the other one where it does not.",
    ),
    "export-triton": (
        "deploy.commands.export_triton",
        "Write a model repository for Triton Inference Server: frame in, restored frame and experts' weights out.",
    ),
    "simulate": ("deploy.commands.simulate", "Simulate a scene, a line-scan sensor and a degradation."),
    "demo": (
        "deploy.commands.demo",
        "Simulate a scene, build a bundle for this CPU, check it against PyTorch, restore the scene, write a report.",
    ),
    "doctor": (
        "deploy.commands.doctor",
        "Tell what this machine can do; exit 3 when the installation is broken or no engine is installed.",
    ),
    "schema": ("deploy.commands.schema", "Print the JSON schema of deploy.yaml, for editors."),
    "completion": (
        "deploy.commands.completion",
        "Print the script that teaches a shell to complete `deploy` commands and options.",
    ),
}
"""Subcommand -> module whose `command` it is, imported when it is used; and what it does, as its help begins."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click does, without importing every command for a line of it."""
        limit = formatter.width - 6 - max(map(len, COMMANDS))
        with formatter.section("Commands"):
            formatter.write_dl(
                [(n, click.Command(n, help=told).get_short_help_str(limit)) for n, (_, told) in COMMANDS.items()]
            )

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
