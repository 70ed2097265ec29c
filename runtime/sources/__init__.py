"""Sources of lines by the first word of `--source`; one file per source, imported only when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from runtime.errors import InputError

if TYPE_CHECKING:
    from runtime.sources.contract import Source, SourceOptions

SOURCES: dict[str, str] = {
    "sim": "runtime.sources.sim",
    "file": "runtime.sources.file",
    "envi": "runtime.sources.envi_file",
    "envi-live": "runtime.sources.envi_live",
    "watch": "runtime.sources.watch",
    "watch-photos": "runtime.sources.watch_photos",
    "genicam": "runtime.sources.camera.genicam",
}
"""Scheme -> module with `open_source(address, options)`."""
FORMS = f"SCHEME:ADDRESS with one of {', '.join(SOURCES)}"
"""What `--source` takes, for people."""

__all__ = ["FORMS", "SOURCES", "Source", "SourceOptions", "find_source", "open_source"]


def __getattr__(name: str) -> Any:
    """The contract is imported when it is asked for: what tells the names of sources needs none of it."""
    if name not in ("Source", "SourceOptions"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from runtime.sources import contract

    return getattr(contract, name)


def open_source(spec: str, options: SourceOptions | None = None) -> Source:
    """Open what `--source` names, SCHEME:ADDRESS: `sim:`, `file:PATH`, `watch:DIR`.

    Raises:
        InputError: no such scheme, or the file is not what it should be.
        MachineError: there is no such camera, or what it needs is not installed.
    """
    from runtime.sources.contract import SourceOptions

    module, address = find_source(spec)
    source: Source = import_module(module).open_source(address, options or SourceOptions())
    return source


def find_source(spec: str) -> tuple[str, str]:
    """Module and address of SCHEME:ADDRESS, before anything is opened. Raises InputError."""
    scheme, colon, address = spec.partition(":")
    if not colon or scheme not in SOURCES:
        raise InputError("not a source", key="--source", value=spec, remedy=f"give {FORMS}")
    return SOURCES[scheme], address
