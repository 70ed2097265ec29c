"""`deploy evaluate`: how well models restore real cubes, beside the degraded input and classical methods."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
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
    from calibration.choosing import Choice, Standing
    from calibration.evaluation import Row
    from calibration.quality import Quality


@click.command(
    epilog=examples(
        "deploy evaluate damp-small --data cubes/",
        "deploy evaluate model.pth --top-k 1 --data cubes/ --scenes cloth,paints --tasks noise,blur",
        "deploy evaluate build/bundle --data cubes/ --out evaluation --json",
        "deploy evaluate damp-tiny damp-small model.pth --data cubes/",
    )
)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder of clean cubes.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for tables and pictures [evaluation/MODEL; of several evaluation/comparison].",
)
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
    models: tuple[str, ...],
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
    """Measure models on clean cubes: degrade, restore, compare.

    MODEL is a packaged model, a checkpoint or a bundle; several are given the same degraded cubes and stand in one
    table. For every degradation and cube: PSNR, SSIM and spectral angle of the degraded input, of a classical method
    and of the model; and in words where the classical method does as well. Cubes are ENVI, .npy, .mat or .npz; those
    with missing pixels are refused. Scores of cubes that a model was trained on flatter it: name the others with
    --scenes.
    """
    from calibration import cubes as cube_files
    from calibration.choosing import best_texts, choice_of, classical_text

    from ..checking.evaluation import evaluated, named, opened, refuse_unlike, shared_scale, shared_tasks
    from ..reporting.evaluation_report import write_evaluation
    from ..reporting.models_report import write_comparison
    from ..reporting.plots import require_plots

    require_plots()
    files = cube_files.find_cubes(data, comma_list(scenes))
    with ExitStack() as undo:
        measured = [undo.enter_context(opened(m, network_options(options, top_k), parse_size(size))) for m in models]
        refuse_unlike(measured)
        measured = named(measured)
        first = measured[0]
        chosen = shared_tasks(measured, comma_list(tasks))
        folder = out or _folder(models)
        _refuse_file(folder)
        signature = first.measuring.signature
        centres = next((model.wavelengths for model in measured if model.wavelengths), None)
        model_scale = shared_scale(measured, scale)
        wanted = cube_files.Wanted(
            signature.restored.bands, scale, model_scale, centres, layout, key, marks, signature.is_area
        )
        console.say(f"judges     {first.part}")
        found = evaluated(measured, files, wanted, chosen, seed)
    choice = choice_of(found.rows, first.baselines)
    words = [*(best_texts(choice) if len(models) > 1 else ()), *filter(None, [classical_text(choice.classical)])]
    if len(models) == 1:
        _show(found.rows)
    else:
        _show_several(choice, len(files))
    _say_baselines(choice, first.baselines)
    for text in words:
        console.say(text)
    told = [("--scenes", scenes), ("--tasks", tasks), ("--scale", scale), ("--key", key), ("--layout", layout)]
    told += [("--size", size), ("--top-k", top_k), *(("--option", option) for option in options), ("--seed", seed)]
    told += [("--ignore-value", mark) for mark in (marks or ("none",) if marks is not None else ())]
    again = " ".join(f"{name} {shlex.quote(str(value))}" for name, value in told if value is not None)
    line = f"deploy evaluate {shlex.join(models)} --data DIR {again}"
    if len(models) == 1:
        write_evaluation(folder, first, found, words, line)
        report = summary(found.rows, first.name, folder, seed)
    else:
        write_comparison(folder, measured, found, choice, words, line)
        report = compared(found.rows, choice, folder, seed)
    console.say(f"wrote      {folder}/evaluation.html, .md, .csv and pictures", "bold green")
    return {**report, "classical": dict(choice.classical), "doubts": list(found.doubts)}


def _folder(models: Sequence[str]) -> Path:
    given = Path(models[0])
    name = given.resolve().name if given.is_dir() else given.stem
    return Path("evaluation") / (name if len(models) == 1 else "comparison")


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


def compared(rows: Sequence[Row], choice: Choice, out: Path, seed: int) -> dict[str, Any]:
    """What `--json` prints of several models."""

    def entry(of_models: Mapping[str, Sequence[Quality | None]]) -> dict[str, Any]:
        before, beside, _ = next(iter(of_models.values()))
        made = {name: _figures(model) for name, (_, _, model) in of_models.items()}
        return {"input": _figures(before), "baseline": _figures(beside), "models": made}

    def standing(of: Standing) -> dict[str, Any]:
        return {"mean": _figures(of.quality), "gain": of.gain, "cpu_seconds": of.seconds}

    scenes: dict[str, dict[str, dict[str, Sequence[Quality | None]]]] = {}
    for r in rows:
        scenes.setdefault(r.task, {}).setdefault(r.scene, {})[r.name] = (r.input, r.baseline, r.model)
    return {
        "models": {name: standing(of) for name, of in choice.models.items()},
        "baseline": standing(choice.baseline),
        "out": str(out),
        "seed": seed,
        "best": {"mean": choice.overall, "tasks": dict(choice.best)},
        "tasks": {task: entry(found) for task, found in choice.tasks.items()},
        "scenes": {task: {scene: entry(found) for scene, found in own.items()} for task, own in scenes.items()},
    }


def _figures(q: Quality | None) -> dict[str, float] | None:
    return None if q is None else {key: getattr(q, key) for key in ("psnr", "ssim", "sam", "band_psnr", "ergas")}


def _refuse_file(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError("is a file", file=folder, key="--out", remedy="give a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot be made: {error.strerror}", file=folder, key="--out", remedy="give a folder that can be written"
        ) from error


def _show(rows: Sequence[Row]) -> None:
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


def _show_several(choice: Choice, scenes: int) -> None:
    from ..reporting.models_report import MEAN_COLUMNS, mean_rows, psnr_rows

    columns = ("task", "input", "baseline", *choice.models)
    console.table(f"PSNR in dB, mean over {scenes} scene{'s' * (scenes > 1)}", columns, psnr_rows(choice))
    console.table("Mean over tasks", MEAN_COLUMNS, mean_rows(choice))


def _say_baselines(choice: Choice, baselines: Mapping[str, str]) -> None:
    label = "baseline"
    for name in dict.fromkeys(baselines[task] for task in choice.tasks if task in baselines):
        console.say(f"{label:<10} {name}: {', '.join(task for task in choice.tasks if baselines.get(task) == name)}")
        label = ""
