"""Names of the arrays that go from hand to hand."""

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Bools = NDArray[np.bool_]
