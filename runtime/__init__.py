"""What flies: prompt metrics, bundles, engines, tiles, cube files. Imports no torch.

import runtime

with runtime.load_bundle("build/bundle") as bundle:
    restored = bundle.restore(cube)          # cube [bands, lines, samples]
"""

from .bundle import Bundle, load_bundle
from .restore import Restored

__all__ = ["Bundle", "Restored", "load_bundle"]
