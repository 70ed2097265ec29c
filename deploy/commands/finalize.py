"""`deploy finalize`: a bundle's engine, built and proved on the target itself."""

from pathlib import Path
from typing import Any

import click

from .options import examples, json_option, remote_options, trust_option


@click.command(epilog=examples("deploy finalize bundle", "deploy finalize orin --remote pilot@orin --json"))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--allow-known-bad", is_flag=True, help="Build with a TensorRT that is reported to compute wrongly.")
@click.option("--rebuild", is_flag=True, help="Build the engine again where there is one.")
@remote_options
@trust_option
@json_option
def command(
    bundle: Path,
    allow_known_bad: bool,
    rebuild: bool,
    remote: str | None,
    remote_command: str,
    ssh_config: Path | None,
) -> dict[str, Any]:
    """Build a bundle's engine on this computer, its target, and prove it on the golden frame.

    The bundle changes last and at once: a build that is stopped or fails leaves it as it was, and the same command
    goes on. With --remote all this happens on the target, where this toolkit is installed, and the bundle here gets
    what was built and proved there.
    """
    from ..finalizing.finalize import finalize
    from ..finalizing.remote import finalize_remotely, parse_remote

    if remote is not None:
        flags = [name for name, given in (("--allow-known-bad", allow_known_bad), ("--rebuild", rebuild)) if given]
        return finalize_remotely(bundle, parse_remote(remote, remote_command, ssh_config), flags=tuple(flags))
    return finalize(bundle, allow_known_bad=allow_known_bad, rebuild=rebuild)
