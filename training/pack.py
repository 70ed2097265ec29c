"""Pack scenes for a machine that is lent for minutes: `python -m training.pack --data DIR --out DIR --mebibytes 48`.

Every scene is cut to its middle, all by the same share of their sides, until the files together are small enough;
numbers, names and bands stay as they are. `--bits 8` first codes the square root of each scene in so many bits: a
quarter of the size for noise 55 to 64 dB below 1.0. The packed folder is given to `training.train` in place of the
whole one: that is another run, with other patches, and where a recipe's scale is `max`, with the largest value of what
is left.
"""

import argparse
import io
import lzma
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from export.networks.damp.config import SIZE_MULTIPLE
from runtime.durable import write_bytes
from runtime.errors import CubeFileError, InputError
from runtime.files import read_cube
from training.console import told

MEBIBYTE = 2**20
CODED = ".scene"
"""Ending of a coded scene."""
BITS = range(2, 17)
SHARES = tuple(np.sqrt(np.arange(1, 0, -0.05)))
"""Shares of a scene's sides, in twentieths of its area, largest first."""


def middle(cube: NDArray[np.generic], share: float) -> NDArray[np.generic]:
    """The middle of a cube [lines, samples, bands]; sides of one frame at least, or the whole of a smaller one."""
    sides = [min(n, max(SIZE_MULTIPLE, int(n * share))) for n in cube.shape[:2]]
    first = [(n - side) // 2 for n, side in zip(cube.shape[:2], sides, strict=True)]
    return cube[first[0] : first[0] + sides[0], first[1] : first[1] + sides[1]]


def pack(folders: Sequence[Path], out: Path, limit: int, bits: int | None = None) -> dict[str, int]:
    """Write every scene of `folders` to `out`, together at most `limit` bytes; {name: bytes}.

    Args:
        folders: of .npz scenes.
        out: an empty or new folder.
        limit: bytes.
        bits: 2 to 16 of the square root of every value; None keeps the values.

    Raises:
        InputError: no scenes, two of one name, no room for a single frame of each, or `out` holds scenes already.
    """
    files = [file for folder in folders for file in sorted(folder.glob("*.npz"))]
    for folder in folders:
        if files and not any(file.parent == folder for file in files):
            raise InputError("no .npz scenes", file=folder, key="--data", remedy="photographs travel as they are")
    names = [file.name for file in files]
    if not files:
        raise InputError(
            "no scenes", file=", ".join(map(str, folders)), key="--data", remedy="give folders of .npz cubes"
        )
    if len(set(names)) < len(names):
        raise InputError("two scenes of one name", key="--data", remedy="rename one")
    if any(path.suffix in (".npz", CODED) for path in out.glob("*")):
        raise InputError("holds scenes already", file=out, key="--out", remedy="give an empty folder")
    for share in SHARES:
        packed: dict[str, bytes] = {}
        for file in track(files, f"sides at {share:.0%}", console=Console(stderr=True), transient=True):
            name = file.name if bits is None else f"{file.stem}{CODED}"
            packed[name] = _packed(file, share, bits)
            if sum(map(len, packed.values())) > limit:
                break
        else:
            out.mkdir(parents=True, exist_ok=True)
            for name, content in packed.items():
                write_bytes(out / name, content)
            return {name: len(content) for name, content in packed.items()}
    raise InputError("not even a frame of every scene fits", key="--mebibytes", remedy="give more, or fewer scenes")


def coded(cube: NDArray[np.generic], bits: int) -> bytes:
    """A scene [bands, lines, samples], values below 0 as 0, as an .npz of the square roots' differences along bands."""
    values = np.maximum(cube.astype(np.float64), 0)
    largest = float(values.max())
    kind = np.uint8 if bits <= 8 else np.uint16
    codes = np.rint(np.sqrt(values / (largest or 1.0)) * (2**bits - 1)).astype(kind)
    # They wrap around, which adding them up undoes.
    differences = np.diff(codes, axis=0, prepend=kind(0))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in (("differences", differences), ("largest", np.array(largest)), ("bits", np.array(bits))):
            with archive.open(f"{name}.npy", "w") as part:
                np.lib.format.write_array(part, array, allow_pickle=False)
    return stream.getvalue()


def read_coded(file: Path) -> NDArray[np.float32]:
    """The scene [bands, lines, samples] of `coded`, in the numbers that it had. Raises CubeFileError."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            differences, largest, bits = (archive[name] for name in ("differences", "largest", "bits"))
        if differences.ndim != 3 or differences.dtype not in (np.uint8, np.uint16) or int(bits) not in BITS:
            raise ValueError(f"{differences.dtype} {differences.shape}, {bits} bits")
        codes = np.cumsum(differences, axis=0, dtype=differences.dtype)
        return np.asarray(np.square(codes / np.float32(2 ** int(bits) - 1)) * np.float32(largest), np.float32)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, lzma.LZMAError) as error:
        raise CubeFileError("is no coded scene", file=file, remedy="pack it again with training.pack") from error


def _packed(file: Path, share: float, bits: int | None) -> bytes:
    try:
        source = read_cube(file)
    except CubeFileError as error:
        raise InputError(
            f"is no scene: {error.problem}", file=file, key=error.key, value=error.value, remedy=error.remedy
        ) from error
    cube = middle(source.cube.transpose(1, 2, 0), share)
    if bits is not None:
        return coded(cube.transpose(2, 0, 1), bits)
    content = {"cube": cube}
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
    parser.add_argument("--bits", type=int, choices=BITS, metavar="2-16", help="code values in so many bits")
    arguments = parser.parse_args()
    with told():
        if not 0 < arguments.mebibytes < math.inf:
            raise InputError("not a size", key="--mebibytes", value=arguments.mebibytes, remedy="give more than 0")
        sizes = pack(arguments.data, arguments.out, int(arguments.mebibytes * MEBIBYTE), arguments.bits)
    print(f"{len(sizes)} scenes, {sum(sizes.values()) / MEBIBYTE:.1f} MiB in {arguments.out}")


if __name__ == "__main__":
    main()
