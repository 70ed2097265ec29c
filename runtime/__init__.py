"""What flies: prompt metrics, bundles, engines, tiles, cube files, streams of lines. Imports no torch.

import runtime

with runtime.load_bundle("build/bundle") as bundle:
    restored = bundle.restore(cube)          # cube [bands, lines, samples]
"""

from typing import TYPE_CHECKING, Any

from .bundle import Bundle, load_bundle
from .restore import Restored

if TYPE_CHECKING:
    from .stream.opening import StreamOptions, open_source, open_stream

__all__ = ["Bundle", "Restored", "StreamOptions", "load_bundle", "open_source", "open_stream"]


def __getattr__(name: str) -> Any:
    """What a stream needs is imported when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .stream import opening

    return getattr(opening, name)
