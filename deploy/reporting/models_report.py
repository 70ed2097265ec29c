"""What `deploy evaluate` found of several models, in one table, as pictures and as a page."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from calibration.choosing import Choice, Standing
from calibration.evaluation import Row
from calibration.quality import Quality

from ..checking.evaluation import Evaluated, Model
from .evaluation_report import STRIP_SIDE, Pictures, figure_of, gain_of, markdown, save_csv, write_all
from .page import Case, Command, Picture, Plot, Report, Table, Verdict
from .plots import gains_plot, spectra_plot
from .quicklooks import fitted, pixels_shown, png_bytes, rgb, side_by_side, stretch_limits

COLUMNS = ("task", "scene", "by", "PSNR", "gain", "SSIM", "SAM", "CPU s")
"""Of the long table, in which the input and the baseline have rows of their own."""
MEAN_COLUMNS = ("model", "PSNR", "gain", "SSIM", "SAM", "CPU s per scene")


def psnr_rows(choice: Choice) -> list[tuple[str, ...]]:
    """(task, input, baseline, every model), mean PSNR over scenes in dB."""
    rows = []
    for task, found in choice.tasks.items():
        before, beside, _ = next(iter(found.values()))
        given = [before, beside, *(made for *_, made in found.values())]
        rows.append((task, *(figure_of(q, "psnr", 2) for q in given)))
    return rows


def mean_rows(choice: Choice) -> list[tuple[str, ...]]:
    """Of `MEAN_COLUMNS`, the baseline first where there is one."""
    standings = {"baseline": choice.baseline} if choice.baseline.quality else {}
    return [_mean_row(name, standing) for name, standing in {**standings, **choice.models}.items()]


def _mean_row(name: str, standing: Standing) -> tuple[str, ...]:
    gain = "-" if standing.gain is None else f"{standing.gain:+.2f}"
    q = standing.quality
    figures = (figure_of(q, "psnr", 2), gain, figure_of(q, "ssim", 3), figure_of(q, "sam", 2))
    return (name, *figures, f"{standing.seconds:.2f}")


def scene_rows(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """Of `COLUMNS`: for every task and scene the input, the baseline and every model."""
    seen = set[tuple[str, str]]()
    for row in rows:
        if (row.task, row.scene) not in seen:
            seen.add((row.task, row.scene))
            if row.input is not None:
                yield _scene_row(row, "input", row.input, "-")
            if row.baseline is not None:
                yield _scene_row(row, "baseline", row.baseline, f"{row.baseline_seconds:.2f}")
        yield _scene_row(row, row.name, row.model, f"{row.seconds:.2f}")


def _scene_row(row: Row, by: str, q: Quality, seconds: str) -> tuple[str, ...]:
    figures = (figure_of(q, "psnr", 2), gain_of(row.input, q), figure_of(q, "ssim", 3), figure_of(q, "sam", 2))
    return (row.task, row.scene, by, *figures, seconds)


def pictures_of(models: Sequence[Model], found: Evaluated, choice: Choice) -> Pictures:
    """Gains and spectra as plots, and a strip of every task: degraded, baseline, every model, truth.

    Raises:
        MachineError: matplotlib is not installed.
    """
    gains = {}
    for task, of_models in choice.tasks.items():
        before, beside, _ = next(iter(of_models.values()))
        if before is not None and beside is not None:
            each = {"baseline": beside, **{name: made for name, (*_, made) in of_models.items()}}
            gains[task] = {name: q.psnr - before.psnr for name, q in each.items()}
    files = {"gains.png": gains_plot(gains)} if gains else {}
    cases = []
    for task, (scene, kept) in found.pictured.items():
        wavelengths = found.centres[scene]
        cubes, mine = kept[0], [row for row in found.rows if (row.task, row.scene) == (task, scene)]
        stretch = stretch_limits(cubes.truth, wavelengths)
        images = (
            {"degraded": rgb(cubes.degraded, wavelengths, stretch)}
            if mine[0].input
            else {"measured": rgb(cubes.degraded)}
        )
        if cubes.baseline is not None:
            images[models[0].baselines[task]] = rgb(cubes.baseline, wavelengths, stretch)
        for model, own in zip(models, kept, strict=True):
            images[model.name] = rgb(own.restored, wavelengths, stretch)
        images["truth"] = rgb(cubes.truth, wavelengths, stretch)
        images = {label: fitted(image, shortest=STRIP_SIDE) for label, image in images.items()}
        files[f"{task}.png"] = png_bytes(side_by_side(list(images.values()), gap=4))
        beside_them = {"input": mine[0].input, "baseline": mine[0].baseline, **{row.name: row.model for row in mine}}
        note = ", ".join(f"{who} {q.psnr:.1f} dB" for who, q in beside_them.items() if q is not None)
        described = tuple(
            Picture(label, png_bytes(image), f"{label}, {task} of {scene}") for label, image in images.items()
        )
        cases.append(Case(f"{task}: {scene}", described, note))
    task, (scene, kept) = next(iter(found.pictured.items()))
    cubes = kept[0]
    series = {"degraded": cubes.degraded} if cubes.degraded.shape == cubes.truth.shape else {}
    series |= {"truth": cubes.truth}
    series |= {model.name: own.restored for model, own in zip(models, kept, strict=True)}
    files["spectra.png"] = spectra_plot(
        series, pixels_shown(cubes.truth.shape), found.centres[scene], scale=f"share of full scale, {task}"
    )
    return Pictures(files, tuple(cases))


def comparison_page(
    models: Sequence[Model], found: Evaluated, choice: Choice, pictures: Pictures, words: Sequence[str], line: str
) -> Report:
    """The page of several models.

    Args:
        words: what it comes to, sentences.
        line: the command that wrote it.
    """
    scenes = len(found.centres)
    plots = []
    if "gains.png" in pictures.files:
        plots.append(Plot("Gain over the degraded input", pictures.files["gains.png"], "PSNR gain of each."))
    plots.append(
        Plot("Spectra", pictures.files["spectra.png"], "Spectra of three pixels: degraded, truth, each model.")
    )
    return Report(
        title=f"{len(models)} models on clean cubes",
        subtitle=", ".join(model.name for model in models),
        verdict=Verdict("unjudged", words[0], " ".join(words[1:])),
        cases=pictures.cases,
        plots=tuple(plots),
        tables=tuple(
            Table(caption, tuple(columns), tuple(rows))
            for caption, (columns, rows) in _tables(models, found, choice).items()
        ),
        commands=(Command(line, "measures them and writes this page"),),
        footnotes=(
            f"{scenes} scene{'s' * (scenes > 1)}, each degraded once for all. CPU s is time of all cores together.",
            "Scores of cubes that a model was trained on flatter it.",
            f"Judged are {models[0].part}.",
        ),
    )


def _tables(
    models: Sequence[Model], found: Evaluated, choice: Choice
) -> dict[str, tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    baselines = models[0].baselines
    means = [
        (*row, choice.best[row[0]], choice.classical.get(row[0], "-"), baselines.get(row[0], "-"))
        for row in psnr_rows(choice)
    ]
    columns = ("task", "input", "baseline", *choice.models, "best model", "as well does", "baseline is")
    return {
        "PSNR in dB, means over scenes": (columns, means),
        "Means over tasks": (MEAN_COLUMNS, mean_rows(choice)),
        "Every scene": (COLUMNS, list(scene_rows(found.rows))),
    }


def write_comparison(
    folder: Path, models: Sequence[Model], found: Evaluated, choice: Choice, words: Sequence[str], line: str
) -> None:
    """Write evaluation.csv, .md, .html and the pictures of several models; `words` and `line` as of the page."""
    tables = _tables(models, found, choice)
    save_csv(folder, [COLUMNS, *tables["Every scene"][1]])
    pictures = pictures_of(models, found, choice)
    page = comparison_page(models, found, choice, pictures, words, line)
    trained = "; ".join(f"{model.name}: {model.about or 'nothing is said of its training'}" for model in models)
    title = f"{len(models)} models on clean cubes"
    write_all(folder, pictures, page, markdown(title, (trained, *words), line, models[0].part, tables, pictures))
