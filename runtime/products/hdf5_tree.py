"""HDF5 products opened strictly: what is in the file and nothing else."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CubePart:
    """A data set that holds bands of a cube.

    Attributes:
        path: of the data set, such as `/HDFEOS/SWATHS/PRS_L1_HCO/Data Fields/VNIR_Cube`.
        axes: `bands`, `lines` and `samples` in the order of the data set.
        bands: indices along its bands of those that the description has, in the description's order.
    """

    path: str
    axes: tuple[str, ...]
    bands: tuple[int, ...]
