"""`deploy evaluate`: how well a model restores real cubes, beside the degraded input and classical methods."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from runtime.bundle import load_bundle
from runtime.errors import InputError, printable
from runtime.files.layout import DEFAULT_LAYOUT
from runtime.restore import Restored, restore_cube

from . import console
from .graphs import measuring
from .options import examples, ground, json_option, network_option, network_options
from .pictures import require_plots

if TYPE_CHECKING:
    # The ground's: imported where it is used, so that a flight computer can show this command's help.
    from calibration.cubes import UnitCube, Wanted
    from calibration.evaluation import Cubes, Restore, Row
    from calibration.measuring import Measuring
    from calibration.quality import Quality
    from export.networks import Network

Float32 = NDArray[np.float32]
Centres = Mapping[str, tuple[float, ...] | None]
"""Scene -> band centres in nm, None if not told."""
CONTENDERS = ("input", "baseline", "model")
LARGEST_FRAME = 512
FRAME_OVERLAP = 64


@dataclass(frozen=True)
class Model:
    """What is evaluated.

    Attributes:
        name: as it was given.
        about: one line on its training.
        restore: cube -> restored cube and experts' weights [layers, experts].
        measuring: how its frames come from clean cubes.
        scale: number that stands for 1.0 in cubes of integers, None if not told.
        wavelengths: band centres in nm, None if not told.
        balances: spatial share of every expert [layers, experts], None where the model does not tell.
    """

    name: str
    about: str
    restore: Restore
    measuring: Measuring
    scale: float | None
    wavelengths: tuple[float, ...] | None
    balances: NDArray[np.float64] | None


@click.command(
    epilog=examples(
        "deploy evaluate damp-small --data cubes/",
        "deploy evaluate model.pth --top-k 1 --data cubes/ --scenes cloth,paints --tasks noise,blur",
        "deploy evaluate build/bundle --data cubes/ --out evaluation --json",
    )
)
@click.argument("model")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder of clean cubes.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for tables and pictures [evaluation/MODEL].")
@click.option("--scenes", help="Comma list of the cubes to take, by name without suffix; all by default.")
@click.option("--tasks", help="Comma list of degradations; all seven by default.")
@click.option("--scale", type=float, help="Number that stands for 1.0 in cubes of integers; beats file's and model's.")
@click.option("--layout", default=DEFAULT_LAYOUT, show_default=True, help="Axes of .npy, .npz and .mat files.")
@click.option("--key", help="Name of the array in .npz and .mat files.")
@click.option("--top-k", type=int, help="Experts that run for a frame, where the checkpoint does not tell it.")
@network_option
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the degradations.")
@json_option
def command(
    model: str,
    data: Path,
    out: Path | None,
    scenes: str | None,
    tasks: str | None,
    scale: float | None,
    layout: str,
    key: str | None,
    top_k: int | None,
    options: tuple[str, ...],
    seed: int,
) -> dict[str, Any]:
    """Measure a model on clean cubes: degrade, restore, compare.

    MODEL is a packaged model, a checkpoint or a bundle. For every degradation and cube: PSNR, SSIM and spectral angle
    of the degraded input, of a classical method and of the model. Cubes are ENVI, .npy, .mat or .npz; those with
    missing pixels are refused. Scores of cubes that the model was trained on flatter it: name the others with --scenes.
    """
    evaluation = ground("calibration.evaluation")
    require_plots()
    wanted_scenes = None if scenes is None else tuple(dict.fromkeys(part.strip() for part in scenes.split(",")))
    files = ground("calibration.cubes").find_cubes(data, wanted_scenes)
    with _opened(model, network_options(options, top_k)) as measured:
        chosen = _tasks(tasks, measured.measuring.tasks)
        folder = out if out is not None else Path("evaluation") / _plain_name(Path(model))
        _refuse_file(folder)
        wanted = ground("calibration.cubes").Wanted(
            measured.measuring.signature.restored.bands, scale, measured.scale, measured.wavelengths, layout, key
        )
        centres = {name: _checked(file, wanted) for name, file in files.items()}
        rows: list[Row] = []
        pictured: dict[str, tuple[str, Cubes]] = {}
        names = list(files)
        with console.progress("evaluating") as moved:
            moved(0, len(files) * len(chosen))
            cubes = ((name, ground("calibration.cubes").unit_cube(file, wanted).cube) for name, file in files.items())
            for row, kept in evaluation.evaluate(cubes, measured.restore, measured.measuring, tasks=chosen, seed=seed):
                rows.append(row)
                # Another scene for every task, so that the page shows several.
                if row.scene == names[chosen.index(row.task) % len(names)]:
                    pictured[row.task] = (row.scene, kept)
                moved(len(rows), len(files) * len(chosen))
    rows.sort(key=lambda r: chosen.index(r.task))
    _show(rows)
    told = [("--scenes", scenes), ("--tasks", tasks), ("--scale", scale), ("--key", key), ("--top-k", top_k)]
    told += [("--option", option) for option in options] + [("--seed", seed)]
    told += [("--layout", layout)] if layout != DEFAULT_LAYOUT else []
    again = " ".join(f"{name} {shlex.quote(str(value))}" for name, value in told if value is not None)
    line = f"deploy evaluate {shlex.quote(model)} --data DIR {again}"
    in_order = {task: pictured[task] for task in chosen}
    _write(folder, measured, rows, in_order, centres, line)
    console.say(f"wrote      {folder}/evaluation.html, .md, .csv and pictures", "bold green")
    return summary(rows, measured.name, folder, seed)


def summary(rows: Sequence[Row], model: str, out: Path, seed: int) -> dict[str, Any]:
    """What `--json` prints: means over scenes, and every scene."""
    from calibration.evaluation import choices, means

    def triple(figures: Sequence[Quality | None]) -> dict[str, dict[str, float] | None]:
        return {who: _figures(q) for who, q in zip(CONTENDERS, figures, strict=True)}

    return {
        "model": model,
        "out": str(out),
        "seed": seed,
        "tasks": {task: triple(figures) for task, figures in means(rows).items()},
        "scenes": {
            task: {r.scene: triple((r.input, r.baseline, r.model)) for r in rows if r.task == task}
            for task in dict.fromkeys(r.task for r in rows)
        },
        "experts": {task: share.tolist() for task, share in choices(rows).items()},
    }


def _figures(q: Quality | None) -> dict[str, float] | None:
    return None if q is None else {key: getattr(q, key) for key in ("psnr", "ssim", "sam", "band_psnr", "ergas")}


@contextmanager
def _opened(model: str, options: Mapping[str, Any]) -> Iterator[Model]:
    """A packaged model, a checkpoint or a bundle, whose engine is closed in the end. Raises DeployError."""
    if not Path(model).is_dir():
        yield _from_checkpoint(model, options)
        return
    for name, value in options.items():
        asked = "--top-k" if name == "top_k" else "--option"
        raise InputError("a bundle's options are fixed", key=asked, value=f"{name}={value}", remedy="leave it out")
    with load_bundle(Path(model)) as bundle:
        m = bundle.manifest
        architecture = ground("export.networks").ARCHITECTURES[m.network.architecture]
        way: Measuring = ground("calibration.measuring").Measuring(
            bundle.prompts, architecture.tasks, architecture.measure
        )

        def restore(cube: Float32) -> tuple[Float32, Float32]:
            return _mean_routing(bundle.restore(cube))

        centres = tuple(m.wavelengths) if m.wavelengths else None
        yield Model(model, m.network.about, restore, way, m.scale, centres, None)


def _from_checkpoint(name: str, options: Mapping[str, Any]) -> Model:
    net: Network = ground("export.networks").load_checkpoint(name, **options)
    architecture, facts = net.architecture, net.facts
    engine = ground("export.torch_engine").TorchEngine
    multiple = architecture.multiple
    way = measuring(net, multiple, multiple)
    prompts = way.prompts

    def restore(cube: Float32) -> tuple[Float32, Float32]:
        lines, samples = (min(LARGEST_FRAME, -(-n // multiple) * multiple) for n in cube.shape[1:])
        opened = engine(net, lines, samples)
        overlap = FRAME_OVERLAP if max(cube.shape[1:]) > LARGEST_FRAME else 0
        return _mean_routing(restore_cube(cube, opened.infer, opened.signature, overlap=overlap, prompts=prompts))

    shares = architecture.routing.balances(net.module) if architecture.routing else None
    return Model(name, facts.about, restore, way, facts.scale, facts.wavelengths or None, shares)


def _mean_routing(restored: Restored) -> tuple[Float32, Float32]:
    """The cube, and the experts' weights averaged over tiles; these are empty without experts."""
    weights = next(iter(restored.side.values()), np.zeros((0, 0), np.float32))
    mean: Float32 = weights.mean(axis=tuple(range(weights.ndim - 2)))
    return np.asarray(restored.cube, np.float32), mean


def _plain_name(model: Path) -> str:
    return model.resolve().name if model.is_dir() else model.stem


def _tasks(text: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    names = known if text is None else tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in known:
            raise InputError("unknown task", key="--tasks", value=name, remedy=f"choose from {', '.join(known)}")
    return names


def _checked(file: Path, wanted: Wanted) -> tuple[float, ...] | None:
    """Refuse what is no clean cube for this model before any is restored, and warn of what is doubtful.

    Returns:
        Its band centres in nm, None where neither file nor model tells them.
    """
    found: UnitCube = ground("calibration.cubes").unit_cube(file, wanted)
    for doubt in found.doubts:
        console.warn(doubt)
    return found.wavelengths


def _refuse_file(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError("is a file", file=folder, key="--out", remedy="give a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot be made: {error.strerror}", file=folder, key="--out", remedy="give a folder that can be written"
        ) from error


COLUMNS = ("task", "scene", *(f"{who} {what}" for what in ("PSNR", "SSIM", "SAM") for who in CONTENDERS), "gain")


def _cells(name: tuple[str, str], figures: Sequence[Quality | None]) -> tuple[str, ...]:
    before, _, after = figures
    return (
        *name,
        *(_text(q, "psnr", 2) for q in figures),
        *(_text(q, "ssim", 3) for q in figures),
        *(_text(q, "sam", 2) for q in figures),
        _gain(before, after),
    )


def _text(q: Quality | None, figure: str, digits: int) -> str:
    return "-" if q is None else f"{getattr(q, figure):.{digits}f}"


def _gain(before: Quality | None, after: Quality | None) -> str:
    return "-" if before is None or after is None else f"{after.psnr - before.psnr:+.2f}"


def _mean_rows(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    from calibration.evaluation import means

    return [_cells((task, "mean"), figures) for task, figures in means(rows).items()]


def _scene_rows(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    return [_cells((row.task, row.scene), (row.input, row.baseline, row.model)) for row in rows]


def _show(rows: Sequence[Row]) -> None:
    from calibration.baselines import BASELINES
    from calibration.evaluation import means

    found = means(rows)
    scenes = len({r.scene for r in rows})
    console.table(
        f"PSNR in dB, mean over {scenes} scene{'s' * (scenes > 1)}",
        ("task", "input", "baseline", "model", "gain", "SSIM", "SAM deg"),
        [
            (task, *(_text(q, "psnr", 2) for q in (a, b, c)), _gain(a, c), f"{c.ssim:.3f}", f"{c.sam:.2f}")
            for task, (a, b, c) in found.items()
        ],
    )
    label, classical = "baseline", [task for task, (_, b, _) in found.items() if b is not None]
    for name in dict.fromkeys(BASELINES[task].name for task in classical):
        console.say(f"{label:<10} {name}: {', '.join(task for task in classical if BASELINES[task].name == name)}")
        label = ""


def _write(
    folder: Path,
    model: Model,
    rows: Sequence[Row],
    pictured: Mapping[str, tuple[str, Cubes]],
    centres: Centres,
    line: str,
) -> None:
    from .evaluation_page import evaluation_page, pictures_of
    from .pictures import save_bytes
    from .report import write_report

    scenes, mean = _scene_rows(rows), _mean_rows(rows)
    by_task = [row for last in mean for row in (*(r for r in scenes if r[0] == last[0]), last)]
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([COLUMNS, *by_task])
    save_bytes(folder / "evaluation.csv", stream.getvalue().encode())
    pictures = pictures_of(model, rows, pictured, centres)
    for name, png in pictures.files.items():
        save_bytes(folder / name, png)
    save_bytes(folder / "evaluation.md", _markdown(model, scenes, mean, list(pictures.files), line).encode())
    write_report(folder / "evaluation.html", evaluation_page(model, rows, COLUMNS, scenes, mean, pictures, line))


def _markdown(
    model: Model, scenes: list[tuple[str, ...]], mean: list[tuple[str, ...]], files: list[str], line: str
) -> str:
    def lines(rows: list[tuple[str, ...]], columns: tuple[str, ...]) -> list[str]:
        def escaped(cell: str) -> str:
            return printable(cell).replace("|", "\\|")

        head = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        return head + ["| " + " | ".join(map(escaped, row)) + " |" for row in rows]

    return "\n".join(
        [
            f"# {printable(model.name)}",
            "",
            f"{printable(model.about) or 'Nothing is said of its training.'}",
            "",
            f"    {printable(line)}",
            "",
            "PSNR in dB from the mean squared error over all elements, SAM in degrees; for bandloss over the lost "
            "bands.",
            "",
            "## Means over scenes",
            "",
            *lines([(row[0], *row[2:]) for row in mean], (COLUMNS[0], *COLUMNS[2:])),
            "",
            "## Every scene",
            "",
            *lines(scenes, COLUMNS),
            "",
            *(f"![{Path(name).stem}]({name})" for name in files),
            "",
        ]
    )
