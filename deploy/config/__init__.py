"""The schema of deploy.yaml: what to build, for which target, and how good it must be.

`load_config` reads a file, `Config()` is every default, `with_overrides` lays flags over a file over a target's
defaults, `config_schema` describes it all as JSON Schema. A mistake is one `ConfigError` with file, line, key, value
and remedy.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loading import SIMULATED, config_schema, load_config, with_overrides
    from .sections import Config

__all__ = ["SEARCHED_SIDE", "SIMULATED", "Config", "config_schema", "load_config", "with_overrides"]
SEARCHED_SIDE = 128
"""Frames of the search have sides of at most this: what a product costs in int8 does not depend on the frame's size."""


def __getattr__(name: str) -> Any:
    """Imported when it is asked for: a command that shows its help reads no deploy.yaml."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "Config":
        from .sections import Config

        return Config
    from . import loading

    return getattr(loading, name)
