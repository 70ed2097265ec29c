"""`deploy unpack`: the bundle of an archive in its place, after every byte of it was checked."""

from pathlib import Path
from typing import Any

import click

from runtime.errors import DeployError

from .. import console
from .options import examples, json_option, trust_option


@click.command(epilog=examples("deploy unpack nano.damp --out bundle", "deploy unpack b.damp --out b --replace --json"))
@click.argument("archive", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the bundle.")
@click.option("--replace", is_flag=True, help="Replace what is at --out, as a whole and at once.")
@trust_option
@json_option
def command(archive: Path, out: Path, replace: bool) -> dict[str, Any]:
    """Unpack a bundle: whole and checked, or not at all.

    An archive is taken to be a stranger's: it holds exactly the files that its manifest lists, as `deploy pack` writes
    them, and they are signed where there is a keyring.
    """
    from runtime.archive import unpack

    from ..folders import refuse_folder, refuse_foreign
    from .verify import facts, tell

    refuse_folder(out, replace)
    refuse_foreign(out)
    before = _serial(out)
    with console.progress("unpacking"):
        head = unpack(archive, out, replace=replace)
    tell(head)
    if before is not None and head.manifest.serial < before:
        console.warn(f"the bundle that was here had serial {before}, this one is older: {head.manifest.serial}")
    return {"archive": str(archive), "bundle": str(out), **facts(head), "replaced_serial": before}


def _serial(out: Path) -> int | None:
    from runtime.bundle_files import read_manifest
    from runtime.trust import NO_KEYRING

    try:
        return read_manifest(out, NO_KEYRING).serial
    except DeployError:
        return None
