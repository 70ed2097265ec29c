"""The targets that are known: the built-in ones, and a configuration's over them."""

from collections.abc import Mapping
from dataclasses import replace

from export import targets
from export.targets import Target
from runtime.errors import ConfigError

from ..config import Config


def known_targets(config: Config) -> Mapping[str, Target]:
    """The built-in targets with the configuration's laid over them. Raises ConfigError."""
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
