"""What flies: prompt metrics, bundles, engines, tiles, cube files, streams of lines. Imports no torch.

import runtime

with runtime.load_bundle("build/bundle") as bundle:
    restored = bundle.restore(cube)          # cube [bands, lines, samples]
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bundle import Bundle, load_bundle
    from .restore import Restored
    from .stream.opening import StreamOptions, open_source, open_stream

__all__ = ["Bundle", "Restored", "StreamOptions", "load_bundle", "open_source", "open_stream"]


def __getattr__(name: str) -> Any:
    """Imported when it is asked for: a command that shows its help needs none of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("Bundle", "load_bundle"):
        from . import bundle

        return getattr(bundle, name)
    if name == "Restored":
        from . import restore

        return restore.Restored
    from .stream import opening

    return getattr(opening, name)
