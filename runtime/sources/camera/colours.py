"""Colours of an area camera: what its filters leave out is made of their neighbours.

Malvar, He and Cutler, "High-quality linear interpolation for demosaicing of Bayer-patterned color images" (ICASSP
2004): a colour's neighbours, corrected by how the pixel's own colour curves there. All in whole numbers, sixteenths of
a value.
"""

import numpy as np
from numpy.typing import NDArray

Whole = NDArray[np.signedinteger]
REACH = 2
"""Pixels that a filter of 5 x 5 reaches."""


class Demosaic:
    """Makes images [3, rows, columns] of images of a Bayer pattern [rows, columns].

    Args:
        pattern: colours of the first two pixels of the first row: RG, GR, GB or BG.
        rows, columns: of the image, at least 3 each.
        largest: value of a pixel.
    """

    def __init__(self, pattern: str, rows: int, columns: int, largest: int) -> None:
        self._red = {"RG": (0, 0), "GR": (0, 1), "GB": (1, 0), "BG": (1, 1)}[pattern]
        self._size, self._largest = (rows, columns), largest
        # Every second pixel of every second row lies beside the next: with steps it takes twice as long.
        places = (2, 2, rows // 2 + REACH + 1, columns // 2 + REACH + 1)
        # No sum is larger than 28 times the largest value.
        self._places = np.zeros(places, np.int16 if 28 * largest < 1 << 15 else np.int32)

    def colours(self, image: NDArray[np.unsignedinteger], out: NDArray[np.unsignedinteger]) -> None:
        """Fill `out`, [3, rows, columns] of red, green and blue of the image's type."""
        # Reflected about the pixel at the edge: the colours of the pattern go on.
        padded = np.pad(image, REACH, "reflect")
        for line, column in np.ndindex(2, 2):
            seen = padded[line::2, column::2]
            self._places[line, column, : seen.shape[0], : seen.shape[1]] = seen
        line, column = self._red
        for at in ((line, column), (1 - line, 1 - column)):
            own, other = (0, 2) if at == self._red else (2, 0)
            value, beside, corners, far = self._at(at, 0), self._cross(at, 1), self._corners(at), self._cross(at, 2)
            self._put(out, own, at, 16 * value)
            self._put(out, 1, at, 8 * value + 4 * beside - 2 * far)
            self._put(out, other, at, 12 * value + 4 * corners - 3 * far)
        for at in ((line, 1 - column), (1 - line, column)):
            value, corners = self._at(at, 0), self._corners(at)
            along, across = (self._pair(at, 0, 1), self._pair(at, 1, 0))
            far_along, far_across = (self._pair(at, 0, 2), self._pair(at, 2, 0))
            # In its row are the reds of a row that has red, the blues of one that has blue.
            in_row, in_column = (0, 2) if at[0] == line else (2, 0)
            self._put(out, 1, at, 16 * value)
            self._put(out, in_row, at, 10 * value + 8 * along - 2 * corners - 2 * far_along + far_across)
            self._put(out, in_column, at, 10 * value + 8 * across - 2 * corners - 2 * far_across + far_along)

    def _at(self, at: tuple[int, int], line: int, column: int = 0) -> Whole:
        """Of every second pixel from `at` on, the one so many lines and columns further: [about half, about half]."""
        first, left = REACH + at[0] + line, REACH + at[1] + column
        rows, columns = ((size - start + 1) // 2 for size, start in zip(self._size, at, strict=True))
        return self._places[first % 2, left % 2, first // 2 : first // 2 + rows, left // 2 : left // 2 + columns]

    def _pair(self, at: tuple[int, int], line: int, column: int) -> Whole:
        return self._at(at, line, column) + self._at(at, -line, -column)

    def _cross(self, at: tuple[int, int], far: int) -> Whole:
        return self._pair(at, 0, far) + self._pair(at, far, 0)

    def _corners(self, at: tuple[int, int]) -> Whole:
        return self._pair(at, 1, 1) + self._pair(at, 1, -1)

    def _put(self, out: NDArray[np.unsignedinteger], band: int, at: tuple[int, int], sixteenths: Whole) -> None:
        sixteenths += 8
        sixteenths >>= 4
        out[band, at[0] :: 2, at[1] :: 2] = np.clip(sixteenths, 0, self._largest, out=sixteenths)
