"""Where lines go: the record, restored cubes, quicklooks, publishers. One file per sink.

Those that a name of `--sink` opens are imported only when they are asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from runtime.errors import InputError

if TYPE_CHECKING:
    from runtime.sinks.contract import Sink, SinkOptions, StreamFacts

SINKS: dict[str, str] = {
    "quicklook": "runtime.sinks.quicklook",
    "publish": "runtime.sinks.zeromq",
    "packets": "runtime.sinks.ccsds",
    "pictures": "runtime.sinks.pictures",
}
"""Name -> module with `open_sink(target, facts, options)`."""

__all__ = ["SINKS", "Sink", "SinkOptions", "StreamFacts", "find_sink", "open_sink"]


def __getattr__(name: str) -> Any:
    """The contract is imported when it is asked for: what tells the names of sinks needs none of it."""
    if name not in ("Sink", "SinkOptions", "StreamFacts"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from runtime.sinks import contract

    return getattr(contract, name)


def open_sink(spec: str, facts: StreamFacts, options: SinkOptions | None = None) -> Sink:
    """Open what `--sink` names: `quicklook:PATH`, `publish:PORT`, `packets:FILE`, `packets:HOST:PORT`,
    `pictures:FOLDER`.

    Raises:
        InputError: no such name, or the target is none of this sink's.
        MachineError: the target cannot be had, or what the sink needs is not installed.
    """
    from runtime.sinks.contract import SinkOptions

    module, target = find_sink(spec)
    sink: Sink = import_module(module).open_sink(target, facts, options or SinkOptions())
    return sink


def find_sink(spec: str) -> tuple[str, str]:
    """Module and target of NAME:TARGET, before anything is opened. Raises InputError."""
    name, colon, target = spec.partition(":")
    if not colon or name not in SINKS:
        forms = ", ".join(f"{known}:TARGET" for known in SINKS)
        raise InputError("not a sink", key="--sink", value=spec, remedy=f"give one of {forms}")
    return SINKS[name], target
