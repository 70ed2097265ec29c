"""Write the scenes that a recipe never trains on as cubes for `deploy evaluate`, with 1.0 for what the recipe says:
`python -m training.held --recipe training/recipes/damp-base-rs.yaml --data DIR --out DIR`.
"""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from runtime.durable import write_bytes
from runtime.errors import InputError
from runtime.meaning.bands import bad_bands
from training.console import console, told
from training.data import held_out, load_scenes
from training.recipe import Recipe, load_recipe


def write_held(recipe: Recipe, data: Sequence[Path], out: Path) -> list[Path]:
    """Each as `cube`, float32 [lines, samples, good bands], in an .npz of its name.

    Bands of one value, dead or saturated, are left out: there is no truth in them.

    Raises:
        DeployError: as training does; `out` holds something, or cannot be made.
    """
    photographs = {"photographs": None}
    found = load_scenes(data, recipe.data.model_copy(update=photographs)).cubes
    held = held_out(dict(found), recipe.data.validation)
    try:
        out.mkdir(parents=True, exist_ok=True)
        full = any(out.iterdir())
    except OSError as error:
        raise InputError(f"cannot be made: {error.strerror}", file=out, remedy="give another --out") from error
    if full:
        # A folder of scenes may be the very one that they are read from.
        raise InputError("holds something already", file=out, remedy="give a new folder")
    files = [out / f"{name}.npz" for name in held]
    for file, cube in zip(files, held.values(), strict=True):
        good = sorted(set(range(len(cube))) - set(bad_bands(cube, (), (), constant=True)))
        stream = io.BytesIO()
        np.savez_compressed(stream, cube=cube[good].transpose(1, 2, 0))
        write_bytes(file, stream.getvalue())
    return files


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.held", description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, nargs="+", help="folders of .npz scenes")
    parser.add_argument("--out", type=Path, required=True, help="a folder for them alone")
    given = parser.parse_args()
    with told():
        files = write_held(load_recipe(given.recipe), given.data, given.out)
        console.print(f"wrote {len(files)} scenes to {given.out}", markup=False)


if __name__ == "__main__":
    main()
