"""`deploy schema`: the JSON schema of deploy.yaml."""

import json
from typing import Any

import click

from .. import console
from .options import examples, json_option


@click.command(epilog=examples("deploy schema > deploy.schema.json"))
@json_option
def command() -> dict[str, Any]:
    """Print the JSON schema of deploy.yaml, for editors."""
    from ..config import config_schema

    schema = config_schema()
    console.say_verbatim(json.dumps(schema, indent=2))
    return schema
