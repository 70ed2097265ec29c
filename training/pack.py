"""Pack scenes for a machine that is lent for minutes: `python -m training.pack --data DIR --out DIR --mebibytes 48`.

Every scene is cut to its middle, all by the same share of their sides, until the files together are small enough;
numbers, names and bands stay as they are. The packed folder is given to `training.train` in place of the whole one:
that is another run, with other patches, and where a recipe's scale is `max`, with the largest value of what is left.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from export.networks.damp.config import SIZE_MULTIPLE
from runtime.durable import write_bytes
from runtime.errors import CubeFileError, DeployError, InputError
from runtime.files import read_cube

MEBIBYTE = 2**20
SHARES = tuple(np.sqrt(np.arange(1, 0, -0.05)))
"""Shares of a scene's sides, in twentieths of its area, largest first."""


def middle(cube: NDArray[np.generic], share: float) -> NDArray[np.generic]:
    """The middle of a cube [lines, samples, bands]; sides of one frame at least, or the whole of a smaller one."""
    sides = [min(n, max(SIZE_MULTIPLE, int(n * share))) for n in cube.shape[:2]]
    first = [(n - side) // 2 for n, side in zip(cube.shape[:2], sides, strict=True)]
    return cube[first[0] : first[0] + sides[0], first[1] : first[1] + sides[1]]


def pack(folders: Sequence[Path], out: Path, limit: int) -> dict[str, int]:
    """Write every scene of `folders` to `out`, together at most `limit` bytes; {name: bytes}.

    Raises:
        InputError: no scenes, two of one name, no room for a single frame of each, or `out` holds scenes already.
    """
    files = [file for folder in folders for file in sorted(folder.glob("*.npz"))]
    names = [file.name for file in files]
    if not files:
        raise InputError(
            "no scenes", file=", ".join(map(str, folders)), key="--data", remedy="give folders of .npz cubes"
        )
    if len(set(names)) < len(names):
        raise InputError("two scenes of one name", key="--data", remedy="rename one")
    if any(out.glob("*.npz")):
        raise InputError("holds scenes already", file=out, key="--out", remedy="give an empty folder")
    for share in SHARES:
        packed: dict[str, bytes] = {}
        for file in track(files, f"sides at {share:.0%}", console=Console(stderr=True), transient=True):
            packed[file.name] = _packed(file, share)
            if sum(map(len, packed.values())) > limit:
                break
        else:
            out.mkdir(parents=True, exist_ok=True)
            for name, content in packed.items():
                write_bytes(out / name, content)
            return {name: len(content) for name, content in packed.items()}
    raise InputError("not even a frame of every scene fits", key="--mebibytes", remedy="give more, or fewer scenes")


def _packed(file: Path, share: float) -> bytes:
    try:
        source = read_cube(file)
    except CubeFileError as error:
        raise InputError(
            f"is no scene: {error.problem}", file=file, key=error.key, value=error.value, remedy=error.remedy
        ) from error
    content = {"cube": middle(source.cube.transpose(1, 2, 0), share)}
    if source.wavelengths is not None:
        content["wavelength_nm"] = np.array(source.wavelengths)
    stream = io.BytesIO()
    np.savez_compressed(stream, **content)
    return stream.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.pack", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, nargs="+", help="folders of .npz scenes")
    parser.add_argument("--out", type=Path, required=True, help="an empty or new folder")
    parser.add_argument("--mebibytes", type=float, default=48, help="largest size of the packed scenes together [48]")
    arguments = parser.parse_args()
    try:
        if not 0 < arguments.mebibytes < math.inf:
            raise InputError("not a size", key="--mebibytes", value=arguments.mebibytes, remedy="give more than 0")
        sizes = pack(arguments.data, arguments.out, int(arguments.mebibytes * MEBIBYTE))
    except DeployError as error:
        print(f"error: {error.one_line()}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(f"{len(sizes)} scenes, {sum(sizes.values()) / MEBIBYTE:.1f} MiB in {arguments.out}")


if __name__ == "__main__":
    main()
