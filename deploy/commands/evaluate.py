"""`deploy evaluate`: how well a model restores real cubes, beside the degraded input and classical methods."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runtime.errors import InputError

from .. import console
from .options import (
    comma_list,
    examples,
    json_option,
    network_option,
    network_options,
    parse_size,
    reading_options,
    trust_option,
)

if TYPE_CHECKING:
    # The ground's: imported where they are used, so that a flight computer can show this command's help.
    from calibration.evaluation import Row
    from calibration.quality import Quality


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
@reading_options
@click.option(
    "--size", help="Lines x samples of a checkpoint's frames [whole scenes, or 256x256 where frames have one place]."
)
@click.option("--top-k", type=int, help="Experts that run for a frame, where the checkpoint does not tell it.")
@network_option
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the degradations.")
@trust_option
@json_option
def command(
    model: str,
    data: Path,
    out: Path | None,
    scenes: str | None,
    tasks: str | None,
    scale: float | None,
    marks: tuple[float, ...] | None,
    layout: str | None,
    key: str | None,
    size: str | None,
    top_k: int | None,
    options: tuple[str, ...],
    seed: int,
) -> dict[str, Any]:
    """Measure a model on clean cubes: degrade, restore, compare.

    MODEL is a packaged model, a checkpoint or a bundle. For every degradation and cube: PSNR, SSIM and spectral angle
    of the degraded input, of a classical method and of the model. Cubes are ENVI, .npy, .mat or .npz; those with
    missing pixels are refused. Scores of cubes that the model was trained on flatter it: name the others with --scenes.
    """
    from calibration import cubes as cube_files

    from ..checking.evaluation import evaluated, opened
    from ..reporting.evaluation_report import write_evaluation
    from ..reporting.plots import require_plots

    require_plots()
    files = cube_files.find_cubes(data, comma_list(scenes))
    with opened(model, network_options(options, top_k), parse_size(size)) as measured:
        chosen = _tasks(tasks, measured.measuring.tasks)
        given = Path(model)
        folder = out or Path("evaluation") / (given.resolve().name if given.is_dir() else given.stem)
        _refuse_file(folder)
        wanted = cube_files.Wanted(
            measured.measuring.signature.restored.bands,
            scale,
            measured.scale,
            measured.wavelengths,
            layout,
            key,
            marks,
            measured.measuring.signature.is_area,
        )
        console.say(f"judges     {measured.part}")
        found = evaluated(measured, files, wanted, chosen, seed)
    _show(found.rows, measured.baselines)
    told = [("--scenes", scenes), ("--tasks", tasks), ("--scale", scale), ("--key", key), ("--layout", layout)]
    told += [("--size", size), ("--top-k", top_k), *(("--option", option) for option in options), ("--seed", seed)]
    told += [("--ignore-value", mark) for mark in (marks or ("none",) if marks is not None else ())]
    again = " ".join(f"{name} {shlex.quote(str(value))}" for name, value in told if value is not None)
    line = f"deploy evaluate {shlex.quote(model)} --data DIR {again}"
    write_evaluation(folder, measured, found, line)
    console.say(f"wrote      {folder}/evaluation.html, .md, .csv and pictures", "bold green")
    return {**summary(found.rows, measured.name, folder, seed), "doubts": list(found.doubts)}


def summary(rows: Sequence[Row], model: str, out: Path, seed: int) -> dict[str, Any]:
    """What `--json` prints: means over scenes, and every scene."""
    from calibration.evaluation import choices, means

    from ..reporting.evaluation_report import CONTENDERS

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


def _tasks(text: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    names = comma_list(text) or known
    for name in names:
        if name not in known:
            raise InputError("unknown task", key="--tasks", value=name, remedy=f"choose from {', '.join(known)}")
    return names


def _refuse_file(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError("is a file", file=folder, key="--out", remedy="give a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot be made: {error.strerror}", file=folder, key="--out", remedy="give a folder that can be written"
        ) from error


def _show(rows: Sequence[Row], baselines: Mapping[str, str]) -> None:
    from calibration.evaluation import means

    from ..reporting.evaluation_report import figure_of, gain_of

    found = means(rows)
    scenes = len({r.scene for r in rows})
    console.table(
        f"PSNR in dB, mean over {scenes} scene{'s' * (scenes > 1)}",
        ("task", "input", "baseline", "model", "gain", "SSIM", "SAM deg"),
        [
            (task, *(figure_of(q, "psnr", 2) for q in (a, b, c)), gain_of(a, c), f"{c.ssim:.3f}", f"{c.sam:.2f}")
            for task, (a, b, c) in found.items()
        ],
    )
    label = "baseline"
    for name in dict.fromkeys(baselines[task] for task in found if task in baselines):
        console.say(f"{label:<10} {name}: {', '.join(task for task in found if baselines.get(task) == name)}")
        label = ""
