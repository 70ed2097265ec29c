"""The `deploy` command and its Python API, of which nothing is imported before it is used: see docs/python.md."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .building.build import build
    from .checking.check import check
    from .config import Config, load_config
    from .finalizing.finalize import finalize

__all__ = ["Config", "build", "check", "finalize", "load_config"]
__version__ = "0.1.0"
_PLACES = {"build": "building.build", "check": "checking.check", "finalize": "finalizing.finalize"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PLACES.get(name, 'config')}", __name__), name)
