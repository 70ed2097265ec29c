"""What models do to real noisy cubes, without truth: `python -m benchmarks.real --models damp-base-rs`.

Cubes of satellites and aircraft from the folder that DAMP_DATA names are restored by models and by non-local means.
Figures are those of `calibration.no_reference`: SNR of the third of the bands with the least in the input, and of the
third with the most; stripes; the angle by which spectra of the clean half of the bands were bent, where the input's row
has the angle of its own noise; and how much of what was changed in the noisy third is of the scene. A model that tells
no wavelengths restores all bands in groups of neighbours, others the bands that are nearest to theirs; each stands
beside what was given of the same bands. `--out` writes a page for each cube, `real.md` with the table, and `real.png`
of the first cube.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table
from scipy.optimize import linear_sum_assignment

from benchmarks.timing import show
from calibration.baselines import BASELINES
from calibration.no_reference import (
    bend,
    bend_of_noise,
    clean_bands,
    noise_per_band,
    scene_in_change,
    snr_per_band,
    stripes_per_band,
)
from deploy.checking.evaluation import Model, opened
from deploy.reporting import page
from deploy.reporting.plots import band_psnr_plot, drawing, figure_png
from deploy.reporting.quicklooks import fitted, limits_of, png_bytes, rgb, save_bytes, stretch_limits
from runtime.arrays import Float32

Bools = NDArray[np.bool_]
MODELS = ("damp-base-rs", "damp-base")
CLASSICAL = BASELINES["noise"]
COLUMNS = ("cube", "by", "SNR, noisy third", "SNR, clean third", "stripes, %", "bent, degrees", "scene in change", "")
FARTHEST_NM = 20.0
"""From a network's band to the sensor's that stands for it."""
BENDS = 1.5
"""Times the angle of the input's own noise: more than removing that noise can account for."""
NOTABLE_DB = 1.0
SCENE = 0.1
"""Of what was changed in noisy bands; more is no longer noise alone."""
SIDE = 240


@dataclass(frozen=True)
class Real:
    """A file of the data folder, and the number that stands for 1.0 in it."""

    name: str
    file: str
    scale: float


CUBES = (
    Real("AVIRIS, Salton Sea", "noisy/salton_sea_roi.npz", 1.0),
    Real("Hyperion, Paris", "noisy/paris_hyperion.npz", 1.0),
    Real("EnMAP, Potsdam A", "enmap/enmap_potsdam_A.npz", 1e4),
    Real("EnMAP, Potsdam B", "enmap/enmap_potsdam_B.npz", 1e4),
    Real("EnMAP, Potsdam C", "enmap/enmap_potsdam_C.npz", 1e4),
    Real("AVIRIS, demo scene", "redistributable/aviris_vi_demo_90x90.npz", 1e4),
)
"""None of them was trained on; bands that hold nothing or one value are left out."""


@dataclass(frozen=True)
class Figures:
    """Of one cube, restored by something or as it was given.

    Attributes:
        by: what restored it; `input` as it was given.
        cube: float32 [bands, lines, samples].
        snr: in dB [bands].
        noisy, clean: mean SNR in dB over the third of the bands with the least and with the most in the input.
        stripes: in percent, mean over bands.
        scene: share of the change that is of the scene, mean over the noisy third; None of the input.
        bent: angle in the clean half of the bands in degrees; of the input that of its own noise.
    """

    by: str
    cube: Float32
    snr: NDArray[np.float64]
    noisy: float
    clean: float
    stripes: float
    bent: float
    scene: float | None


@dataclass(frozen=True)
class Case:
    """A cube's bands, as given first and then by everything that restored them; wavelengths in nm, None if not told."""

    name: str
    wavelengths: NDArray[np.float64] | None
    found: tuple[Figures, ...]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="MODEL", help="names, checkpoints, bundles")
    parser.add_argument("--cubes", nargs="+", help="those whose names hold one of these words; all by default")
    parser.add_argument("--data", type=Path, default=os.environ.get("DAMP_DATA"), help="folder of the real cubes")
    parser.add_argument("--out", type=Path, help="folder for pages, table and picture")
    asked = parser.parse_args()
    if asked.data is None or not asked.data.is_dir():
        print("no real cubes: set DAMP_DATA to their folder")
        return 0
    chosen = [real for real in CUBES if asked.cubes is None or any(w.lower() in real.name.lower() for w in asked.cubes)]
    with ExitStack() as undo:
        models = [undo.enter_context(opened(name, {})) for name in asked.models]
        for model in models:
            if model.measuring.signature.measured.kind != "cube":
                parser.error(f"{model.name} does not restore cubes")
        cases = [case for real in chosen for case in measured(real, asked.data, models)]
    rows = [row for case in cases for row in rows_of(case)]
    grid = Table(title="real cubes, no truth; SNR in dB")
    for place, column in enumerate(COLUMNS):
        grid.add_column(column, justify="left" if place in (0, 1, 7) else "right")
    for row in rows:
        grid.add_row(*row)
    show(grid)
    if asked.out:
        write(asked.out, cases, rows, f"python -m benchmarks.real --models {' '.join(asked.models)}")
    return 0


def measured(real: Real, data: Path, models: Sequence[Model]) -> Iterator[Case]:
    """All bands with the models that take any, and those nearest to the others' own."""
    cube, wavelengths = read(data / real.file, real.scale)
    places: dict[tuple[int, ...], list[Model]] = {}
    for model in models:
        if (found := bands_for(model, len(cube), wavelengths)) is None:
            print(f"{real.name}: left out for {model.name}, whose bands it does not have")
        else:
            places.setdefault(found, []).append(model)
    for bands, takers in places.items():
        part = np.ascontiguousarray(cube[list(bands)])
        names = f"{real.name}, {len(part)} bands"
        ways: dict[str, Callable[[Float32], Float32]] = {CLASSICAL.name: CLASSICAL.restore}
        for model in takers:
            prompts = model.measuring.prompts.for_task("noise")
            ways[Path(model.name).name] = lambda given, m=model, p=prompts: m.restore(given, p, None)[0]  # type: ignore[misc]
        yield judged(names, part, None if wavelengths is None else wavelengths[list(bands)], ways)


def read(file: Path, scale: float) -> tuple[Float32, NDArray[np.float64] | None]:
    """A cube [bands, lines, samples] in the unit range, without bands that hold nothing, and its wavelengths in nm."""
    with np.load(file, allow_pickle=False) as held:
        cube = (held["cube"].transpose(2, 0, 1) / scale).astype(np.float32)
        told = held["wavelength_nm"].astype(np.float64) if "wavelength_nm" in held.files else None
    good = np.array([bool(np.isfinite(band).all()) and np.ptp(band) > 0 for band in cube])
    return cube[good], None if told is None else told[good]


def bands_for(model: Model, count: int, wavelengths: NDArray[np.float64] | None) -> tuple[int, ...] | None:
    """The bands of a cube that a model restores, None where it has not got them."""
    if model.wavelengths is None:
        return tuple(range(count)) if count >= model.measuring.signature.restored.bands else None
    if wavelengths is None or count < len(model.wavelengths):
        return None
    apart = np.abs(np.asarray(model.wavelengths)[:, None] - wavelengths)
    own, place = linear_sum_assignment(apart**2)
    return None if apart[own, place].max() > FARTHEST_NM else tuple(map(int, place))


def judged(
    name: str, cube: Float32, wavelengths: NDArray[np.float64] | None, ways: Mapping[str, Callable[[Float32], Float32]]
) -> Case:
    """Restore a cube in every way, and measure."""
    snr, noise = snr_per_band(cube), noise_per_band(cube)
    order, third, half = np.argsort(snr), max(1, len(snr) // 3), clean_bands(snr)

    def figures(by: str, made: Float32) -> Figures:
        own = snr_per_band(made)
        bent = bend_of_noise(cube, noise, half) if by == "input" else bend(made, cube, half)
        worst, best = float(own[order[:third]].mean()), float(own[order[-third:]].mean())
        scene = None if by == "input" else float(scene_in_change(made, cube)[order[:third]].mean())
        return Figures(by, made, own, worst, best, float(stripes_per_band(made).mean()), bent, scene)

    return Case(name, wavelengths, (figures("input", cube), *(figures(by, way(cube)) for by, way in ways.items())))


def verdict(given: Figures, made: Figures) -> str:
    """What a restoration did, in words: it helps where noise went and nothing else."""
    gained = made.noisy - given.noisy
    less = "less noise" if gained > NOTABLE_DB else "more noise" if gained < -NOTABLE_DB else "does little"
    bad = ["takes scene away"] if made.scene is not None and made.scene > SCENE else []
    if made.bent > BENDS * given.bent or made.clean < given.clean - NOTABLE_DB:
        bad.append("hurts clean bands")
    return "helps" if gained > NOTABLE_DB and not bad else ", ".join([less, *bad])


def rows_of(case: Case) -> list[tuple[str, ...]]:
    """Of `COLUMNS`."""
    given = case.found[0]
    return [
        (
            case.name if made is given else "",
            made.by,
            f"{made.noisy:.1f}",
            f"{made.clean:.1f}",
            f"{made.stripes:.2f}",
            f"{'noise ' * (made is given)}{made.bent:.2f}",
            "" if made.scene is None else f"{100 * made.scene:.0f} %",
            "" if made is given else verdict(given, made),
        )
        for made in case.found
    ]


def write(out: Path, cases: Sequence[Case], rows: Sequence[tuple[str, ...]], line: str) -> None:
    """A page for each case, the table as Markdown, and the first case as one small picture."""
    out.mkdir(parents=True, exist_ok=True)
    table = ["| " + " | ".join(row) + " |" for row in (COLUMNS, ("---",) * len(COLUMNS), *rows)]
    save_bytes(out / "real.md", "\n".join([f"`{line}`", "", *table, ""]).encode())
    for case in cases:
        file = "".join(c if c.isalnum() else "-" for c in case.name.lower()).replace("--", "-")
        page.write_report(out / f"{file}.html", page_of(case, line))
    small = Image.open(io.BytesIO(overview(cases[0]))).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    stream = io.BytesIO()
    small.save(stream, "PNG", optimize=True)
    save_bytes(out / "real.png", stream.getvalue())


def shown_bands(case: Case) -> dict[str, int]:
    """A noisy and a clean band: of twenty bands one has less SNR in the input, and one more."""
    order = np.argsort(case.found[0].snr)
    return {"a noisy band": int(order[len(order) // 20]), "a clean band": int(order[-1 - len(order) // 20])}


def planes(case: Case, band: int) -> dict[str, NDArray[np.uint8]]:
    """A band by everything, in the input's limits, and what was taken away, in one scale: it should show no scene."""
    given = case.found[0].cube[band]
    low, high = limits_of(given)
    taken = [made.cube[band] - given for made in case.found[1:]]
    reach = max(float(np.quantile(np.abs(each), 0.98)) for each in taken) or 1.0
    pictures = {made.by: grey(made.cube[band], low, high) for made in case.found}
    pictures |= {f"changed by {made.by}": grey(t, -reach, reach) for made, t in zip(case.found[1:], taken, strict=True)}
    return {label: fitted(picture, shortest=SIDE) for label, picture in pictures.items()}


def grey(plane: Float32, low: float, high: float) -> NDArray[np.uint8]:
    share = np.clip((plane - low) / (high - low), 0, 1)
    return np.rint(255 * share[..., None].repeat(3, axis=2)).astype(np.uint8)


def overview(case: Case) -> bytes:
    """The noisy and the clean band by everything, and what was changed, as one PNG."""
    rows = {what: planes(case, band) for what, band in shown_bands(case).items()}
    columns = len(next(iter(rows.values())))
    with drawing(len(rows) * columns, panel=(1.5, 1.6), columns=columns) as (figure, panels):
        for place, (what, pictures) in enumerate(rows.items()):
            for axes, (label, picture) in zip(panels[place * columns :], pictures.items(), strict=False):
                axes.imshow(picture, interpolation="nearest")
                axes.set_title(label.replace(" by ", " by\n") if place == 0 else "", fontsize=8)
                axes.set_xticks([])
                axes.set_yticks([])
                axes.spines[:].set_visible(False)
            panels[place * columns].set_ylabel(what)
        return figure_png(figure)


def page_of(case: Case, line: str) -> page.Report:
    """False colour, a noisy and a clean band, and SNR over the bands."""
    given = case.found[0]
    order = None if case.wavelengths is None else np.argsort(case.wavelengths)
    centres = None if order is None or case.wavelengths is None else tuple(map(float, case.wavelengths[order]))
    sortedly = slice(None) if order is None else order
    stretch = stretch_limits(given.cube[sortedly], centres)
    colour = {made.by: fitted(rgb(made.cube[sortedly], centres, stretch), shortest=SIDE) for made in case.found}
    cases = [pictured("Natural colours, or near them", colour)]
    for what, band in shown_bands(case).items():
        where = f"band {band + 1}" if case.wavelengths is None else f"{case.wavelengths[band]:.0f} nm"
        title = f"{what[:1].upper()}{what[1:]}: {where}, {given.snr[band]:.1f} dB as given"
        cases.append(
            pictured(title, planes(case, band), "What was changed should look like noise, not like the scene.")
        )
    snr = band_psnr_plot({made.by: made.snr[sortedly] for made in case.found}, centres, figure_name="SNR")
    told = [f"{made.by} {verdict(given, made)}" for made in case.found[1:]]
    return page.Report(
        title=f"{case.name}: without truth",
        verdict=page.Verdict("unjudged", "; ".join(told) + "."),
        cases=tuple(cases),
        plots=(page.Plot("SNR of every band", snr, "SNR of every band, as given and restored."),),
        tables=(page.Table("Figures", COLUMNS[1:], tuple(row[1:] for row in rows_of(case))),),
        commands=(page.Command(line, "measures it and writes this page"),),
        footnotes=(
            "SNR: mean of a band over what a regression on all other bands leaves of it. Bands that were copied from "
            "their neighbours have a high one: it says that noise went, not that the signal stayed.",
            "Bent: angle between restored and given spectra in the clean half of the bands; of the input that of its "
            "noise.",
            "Scene in change: how much of what was changed in the noisy third other bands explain; noise they do not.",
        ),
    )


def pictured(title: str, images: Mapping[str, NDArray[np.uint8]], note: str = "") -> page.Case:
    return page.Case(
        title, tuple(page.Picture(by, png_bytes(image), f"{title}: {by}") for by, image in images.items()), note
    )


if __name__ == "__main__":
    sys.exit(main())
