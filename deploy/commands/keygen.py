"""`deploy keygen`: a pair of keys to sign bundles with."""

from pathlib import Path
from typing import Any

import click

from runtime.errors import InputError

from .. import console
from .options import examples, json_option, password_option, read_password


@click.command(
    epilog=examples(
        "deploy keygen --out ground",
        "deploy keygen --out ground --password-file password",
        "deploy keygen --out device --no-password    # for a computer where nobody types",
    )
)
@click.option("--out", required=True, metavar="NAME", help="Writes NAME.key, which is secret, and NAME.pub.")
@password_option
@click.option("--no-password", is_flag=True, help="Write the secret key as it is: whoever reads the file can sign.")
@json_option
def command(out: str, password_file: Path | None, no_password: bool) -> dict[str, Any]:
    """Make a pair of keys: one signs bundles, the other tells who signed them.

    The files are those of minisign, which can use them, as keys of `minisign -G` can be used here.
    """
    from runtime.durable import write_new
    from runtime.secret_key import SECRET, dump_secret, new_key
    from runtime.signing import dump_public, key_name

    if no_password and password_file is not None:
        raise InputError("there is no password to read", key="--password-file", remedy="give one of the two")
    secret, public = Path(f"{out}.key"), Path(f"{out}.pub")
    for file in (secret, public):
        if file.exists() or file.is_symlink():
            raise InputError(
                "exists already", file=file, key="--out", remedy="give another name; keys are not replaced"
            )
    key = new_key()
    written = dump_secret(key, None if no_password else read_password(password_file, new=True))
    write_new(secret, written, 0o600)
    write_new(public, dump_public(key.public), 0o644)
    console.say(f"secret key   {secret}: {SECRET}, and take a copy of it")
    console.say(f"public key   {public}: into the keyring of the computers that take what it signs")
    console.say(f"key          {key_name(key.id)}", "bold green")
    return {"key": key_name(key.id), "secret": str(secret), "public": str(public), "password": not no_password}
