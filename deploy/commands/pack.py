"""`deploy pack`: a bundle as one file."""

from pathlib import Path
from typing import Any

import click

from runtime.errors import InputError

from .. import console
from .options import examples, json_option, signed_text, trust_option


@click.command(epilog=examples("deploy pack build/bundle --out nano.damp", "deploy pack bundle --out b.damp --json"))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The archive, such as NAME.damp.")
@click.option("--replace", is_flag=True, help="Replace what is at --out.")
@trust_option
@json_option
def command(bundle: Path, out: Path, replace: bool) -> dict[str, Any]:
    """Write a bundle as one file: what it lists, its signatures and its engine, every byte of which is checked.

    The same bundle always gives the same bytes. It is a plain tar: `tar -xf` reads it, `deploy unpack` checks it too.
    """
    from runtime.archive import pack

    from ..folders import refuse_existing
    from .verify import facts

    refuse_existing(out, replace)
    if out.is_dir():
        raise InputError("is a folder", file=out, key="--out", remedy="give the name of a file")
    with console.progress("packing"):
        head = pack(bundle, out)
    size = out.stat().st_size
    console.say(f"archive      {out}: {size:,} bytes, {signed_text(head.signed)}", "bold green")
    return {"bundle": str(bundle), "archive": str(out), "bytes": size, **facts(head)}
