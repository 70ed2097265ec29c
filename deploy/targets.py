"""`deploy targets`: what a bundle can be built for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runtime.errors import ConfigError

from . import console
from .config import Config
from .options import config_option, examples, ground, json_option, read_config

if TYPE_CHECKING:
    # The ground's: imported where it is used, so that a flight computer can show this command's help.
    from export.targets import Target


@click.command(epilog=examples("deploy targets", "deploy targets --config deploy.yaml --json"))
@config_option
@json_option
def command(config_file: Path | None) -> dict[str, Any]:
    """List the targets of `deploy build`: the built-in ones and those of a deploy.yaml."""
    config = read_config(config_file, checkpoint_given=False)
    targets = known_targets(config)
    for target in targets.values():
        precisions = " ".join(p + "*" * (p == target.default_precision) for p in target.precisions)
        engine = f"{target.engine} {target.tensorrt or ''}"
        console.say(f"{target.name:<17} {precisions:<11} {engine:<26} {_what(target)}")
    console.say("* used where no precision is asked for; there: the engine is built on the target by `deploy finalize`")
    return {"targets": {name: target.as_json() for name, target in targets.items()}}


def _what(target: Target) -> str:
    there, measured = "there" if target.made_there else "", "metrics in a graph" if target.metrics == "graph" else ""
    facts = (target.title, target.sm and f"SM {target.sm}", there, measured)
    return ", ".join(filter(None, facts))


def known_targets(config: Config) -> Mapping[str, Target]:
    """The built-in targets with the configuration's laid over them. Raises ConfigError."""
    targets = ground("export.targets")
    found: dict[str, Target] = dict(targets.BUILT_IN)
    for name, section in config.targets.items():
        base = targets.BUILT_IN.get(name, targets.Target(name))
        found[name] = target = replace(base, **section.model_dump(exclude_unset=True))
        if target.default_precision not in target.precisions:
            raise ConfigError(
                "is not among the target's precisions",
                key=f"targets.{name}.default_precision",
                value=target.default_precision,
                remedy=f"choose one of: {', '.join(target.precisions)}",
            )
    return found
