"""`deploy verify`: who signed a bundle, and whether every byte of it is the one that was signed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import console
from .options import examples, json_option, signed_text, trust_option, warn_if_nobody_asked

if TYPE_CHECKING:
    from runtime.bundle_files import Head


@click.command(epilog=examples("deploy verify build/bundle --trust ground.pub", "deploy verify nano.damp --json"))
@click.argument("bundle", metavar="BUNDLE|ARCHIVE", type=click.Path(path_type=Path))
@trust_option
@json_option
def command(bundle: Path) -> dict[str, Any]:
    """Check the signature of a bundle, or of one in an archive, and the hash of every file; no engine is loaded.

    Exit 2 where something is not as it must be. Without a keyring nothing needs a signature, and you are told so.
    """
    from runtime.archive import check

    with console.progress("checking every byte"):
        head = check(bundle)
    tell(head)
    return {"bundle": str(bundle), "intact": True, **facts(head)}


def tell(head: Head) -> None:
    """What was checked, for people."""
    manifest = head.manifest
    console.say(f"signature    {signed_text(head.signed)}")
    if head.made is not None:
        console.say(f"engine       {signed_text(head.made_signed)}")
    console.say(
        f"network      {manifest.network.architecture}, {manifest.network.checkpoint}, serial {manifest.serial}"
    )
    console.say(f"files        {len(head.records)}, all intact", "bold green")
    warn_if_nobody_asked(head.signed)


def facts(head: Head) -> dict[str, Any]:
    """The same for `--json`."""
    return {
        "signed": head.signed and asdict(head.signed),
        "made_signed": head.made_signed and asdict(head.made_signed),
        "trusted": head.signed is not None and head.signed.trusted,
        "serial": head.manifest.serial,
        "network": head.manifest.network.architecture,
        "files": {name: record.sha256 for name, record in sorted(head.records.items())},
    }
