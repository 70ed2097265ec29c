"""`deploy targets`: what a bundle can be built for."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import console
from .options import config_option, examples, json_option, read_config

if TYPE_CHECKING:
    # The ground's: imported where they are used, so that a flight computer can show this command's help.
    from export.targets import Target


@click.command(epilog=examples("deploy targets", "deploy targets --config deploy.yaml --json"))
@config_option
@json_option
def command(config_file: Path | None) -> dict[str, Any]:
    """List the targets of `deploy build`: the built-in ones and those of a deploy.yaml."""
    from ..finalizing.targets import known_targets

    config = read_config(config_file, checkpoint_given=False)
    targets = known_targets(config)
    for target in targets.values():
        precisions = " ".join(p + "*" * (p == target.default_precision) for p in target.precisions)
        engine = f"{target.engine} {target.tensorrt or ''}"
        console.say(f"{target.name:<17} {precisions:<15} {engine:<26} {_what(target)}")
    console.say("* used where no precision is asked for; there: the engine is built on the target by `deploy finalize`")
    return {"targets": {name: asdict(target) for name, target in targets.items()}}


def _what(target: Target) -> str:
    there, measured = "there" if target.made_there else "", "metrics in a graph" if target.metrics == "graph" else ""
    facts = (target.title, target.sm and f"SM {target.sm}", there, measured)
    return ", ".join(filter(None, facts))
