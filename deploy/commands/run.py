"""`deploy run`: a bundle and a cube, a folder of photographs or a video in; the same restored out."""

from pathlib import Path
from typing import Any

import click

from runtime.errors import InputError
from runtime.products import WRITERS

from .options import (
    constant_bands_option,
    engine_option,
    examples,
    json_option,
    missing_chunks_option,
    prompt_option,
    reading_options,
    trust_option,
)


def _places(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 7 for part in parts):
        raise InputError("not a list of bands", key="--bands", value=text, remedy="give places from 0, as 24,17,10")
    return tuple(map(int, parts))


@click.command(
    epilog=examples(
        "deploy run build/bundle scene.hdr --out restored.hdr",
        "deploy run build/bundle EMIT_L2A_RFL_001.nc --out restored.nc",
        "deploy run build/bundle ENMAP01-L2A-FOLDER --out restored.tif --format cog",
        "deploy run build/bundle photo.jpg --out restored.png",
        "deploy run build/bundle photos/ --out restored/",
        "deploy run build/bundle film.mp4 --out restored.mkv",
        "deploy run build/rgb scene.hdr --bands 24,17,10 --out restored.hdr",
        "deploy run build/bundle scene.npy --layout bands,lines,samples --out restored.npy",
        "deploy run build/bundle raw.hdr --scale 4095 --output-type float32 --out restored.hdr --json",
    )
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("cube", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="ENVI (.hdr, .bil, ...), .npy, .nc, .zarr, .tif, .png, or like the input; a folder for a folder; .mkv, .mp4 "
    "or - for a video.",
)
@reading_options
@constant_bands_option
@click.option(
    "--bands", callback=_places, metavar="N,N,...", help="Restore and write these bands alone, places from 0."
)
@click.option(
    "--output-type",
    type=click.Choice(["input", "float32"]),
    help="The input's type and scale, or float32 in the unit range.  [default: input, where the network keeps shapes]",
)
@click.option(
    "--metrics",
    type=click.Choice(["frame", "scene"]),
    help="What the network is told is measured: each row of frames, in little memory, or the whole cube.  "
    "[default: scene of ENVI, .npy, .npz and .mat that fit into memory, frame of all else]",
)
@click.option(
    "--format",
    type=click.Choice(["like", *WRITERS]),
    help="Of what is written, where the suffix of --out does not say: like the input, or another.",
)
@click.option(
    "--ortho", is_flag=True, help="Put the restored cube on the map grid of the product's lookup table (GLT)."
)
@missing_chunks_option
@click.option("--dry-run", is_flag=True, help="Say what would be restored and how much memory that takes.")
@click.option("--clip", is_flag=True, help="Clip the restored cube to [0, 1] (in the unit range).")
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads of the engine.")
@engine_option
@prompt_option
@click.option("--self-test/--no-self-test", default=True, show_default=True, help="Restore the golden frame first.")
@click.option("--replace", is_flag=True, help="Replace what is at --out.")
@trust_option
@json_option
def command(bundle: Path, cube: Path, out: Path, **options: Any) -> dict[str, Any]:
    """Restore a cube, a product, a photograph, a folder of photographs or a video with a bundle.

    Products of agencies (EMIT, EnMAP, PRISMA, DESIS, AVIRIS, HYPSO, Hyperion, NetCDF, GeoTIFF, Zarr) come back as they
    are delivered, or as --format says: docs/products.md.

    Integer cubes come back in their own type and scale, with wavelengths and georeferencing; pixels that the file marks
    with `data ignore value` stay as they are. Photographs (PNG, JPEG, TIFF) come back as they were turned, with their
    transparency, colour profile and EXIF. Of a folder each becomes a .png, or .tif of a TIFF, in the folder --out;
    what is there already is left, so that a run which was interrupted goes on. Of a video, or `-` for one through a
    pipe, every frame is restored and the sound is kept.
    """
    from .run_cube import How, run_cube
    from .run_folder import run_folder
    from .run_product import is_product, run_product
    from .run_video import is_video, run_video

    how = How(**options)
    if is_product(bundle, cube, out, how):
        return run_product(bundle, cube, out, how)
    if cube.is_dir():
        return run_folder(bundle, cube, out, how)
    return (run_video if is_video(cube) else run_cube)(bundle, cube, out, how)
