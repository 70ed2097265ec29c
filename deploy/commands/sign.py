"""`deploy sign`: a signature of a bundle, beside its manifest, which lists the hash of everything in it."""

from functools import partial
from pathlib import Path
from typing import Any

import click

from .. import console
from .options import examples, json_option, password_option, read_password


@click.command(
    epilog=examples(
        "deploy sign build/bundle --key ground.key",
        'deploy sign build/bundle --key ground.key --comment "for flight 12" --password-file password --json',
    )
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--key", "file", type=click.Path(path_type=Path), required=True, help="NAME.key of `deploy keygen`.")
@click.option("--comment", default="", help="A line that is signed too, after time, network and serial.")
@password_option
@json_option
def command(bundle: Path, file: Path, comment: str, password_file: Path | None) -> dict[str, Any]:
    """Sign a bundle, whose every byte is checked first; a signature that is there is replaced.

    An engine that was made of it and that no other key signed is signed as well. `minisign -Vm manifest.json -p
    NAME.pub` checks what is written.
    """
    from runtime.bundle_files import MANIFEST_SIGNED, sign_bundle
    from runtime.secret_key import read_secret
    from runtime.signing import key_name

    key = read_secret(file, partial(read_password, password_file))
    head = sign_bundle(bundle, key, comment)
    console.say(f"signed       {bundle / MANIFEST_SIGNED} by {key_name(key.id)}", "bold green")
    return {"bundle": str(bundle), "key": key_name(key.id), "serial": head.manifest.serial, "files": len(head.records)}
