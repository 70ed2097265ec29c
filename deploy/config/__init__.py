"""The schema of deploy.yaml: what to build, for which target, and how good it must be.

`load_config` reads a file, `Config()` is every default, `with_overrides` lays flags over a file over a target's
defaults, `config_schema` describes it all as JSON Schema. A mistake is one `ConfigError` with file, line, key, value
and remedy.
"""

from .loading import SIMULATED, config_schema, load_config, with_overrides
from .sections import Config

__all__ = ["SIMULATED", "Config", "config_schema", "load_config", "with_overrides"]
