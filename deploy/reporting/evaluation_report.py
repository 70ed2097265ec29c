"""What `deploy evaluate` found, as pictures and as a page."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibration.evaluation import Row, choices, means
from calibration.quality import Quality
from runtime.errors import printable

from ..checking.evaluation import Evaluated, Model
from .page import Case, ColourScale, Command, Picture, Plot, Report, Table, Verdict, figure_text, write_report
from .plots import choices_plot, gains_plot, spectra_plot
from .quicklooks import error_map, fitted, pixels_shown, png_bytes, rgb, save_bytes, side_by_side, stretch_limits

STRIP_SIDE = 256
CONTENDERS = ("input", "baseline", "model")
COLUMNS = ("task", "scene", *(f"{who} {what}" for what in ("PSNR", "SSIM", "SAM") for who in CONTENDERS), "gain")


@dataclass(frozen=True)
class Pictures:
    """PNG files by name, and the page's rows of single pictures."""

    files: Mapping[str, bytes]
    cases: tuple[Case, ...]


def pictures_of(model: Model, found: Evaluated) -> Pictures:
    """Gains, experts and spectra as plots, and a strip of every task: degraded, baseline, restored, truth, error.

    Raises:
        MachineError: matplotlib is not installed.
    """
    rows = found.rows
    gains = {
        task: {"baseline": b.psnr - a.psnr, "model": c.psnr - a.psnr}
        for task, (a, b, c) in means(rows).items()
        if a is not None and b is not None
    }
    files = {"gains.png": gains_plot(gains)} if gains else {}
    if rows[0].routing.size:
        files["experts.png"] = choices_plot(choices(rows), model.balances)
    cases = []
    for task, (scene, (cubes,)) in found.pictured.items():
        wavelengths = found.centres[scene]
        stretch = stretch_limits(cubes.truth, wavelengths)
        row = next(r for r in rows if r.task == task and r.scene == scene)
        made = {} if cubes.baseline is None else {model.baselines[task]: cubes.baseline}
        made |= {"restored": cubes.restored, "truth": cubes.truth}
        shown = {label: rgb(cube, wavelengths, stretch) for label, cube in made.items()}
        before = (
            {"degraded": rgb(cubes.degraded, wavelengths, stretch)} if row.input else {"measured": rgb(cubes.degraded)}
        )
        images = {label: fitted(image, shortest=STRIP_SIDE) for label, image in {**before, **shown}.items()}
        error, limit = error_map(cubes.restored, cubes.truth)
        images["error"] = fitted(error, shortest=STRIP_SIDE)
        files[f"{task}.png"] = png_bytes(side_by_side(list(images.values()), gap=4))
        scale = ColourScale("0", f"{figure_text(limit, 2)} or more")
        figures = {"input": row.input, "baseline": row.baseline, "model": row.model}
        note = ", ".join(f"{who} {q.psnr:.1f} dB" for who, q in figures.items() if q is not None)
        described = tuple(
            Picture(label, png_bytes(image), f"{label}, {task} of {scene}", scale if label == "error" else None)
            for label, image in images.items()
        )
        cases.append(Case(f"{task}: {scene}", described, note))
    task, (scene, (cubes,)) = next(iter(found.pictured.items()))
    series = {"degraded": cubes.degraded} if cubes.degraded.shape == cubes.truth.shape else {}
    series |= {"restored": cubes.restored, "truth": cubes.truth}
    files["spectra.png"] = spectra_plot(
        series, pixels_shown(cubes.truth.shape), found.centres[scene], scale=f"share of full scale, {task}"
    )
    return Pictures(files, tuple(cases))


def evaluation_page(
    model: Model,
    rows: Sequence[Row],
    scenes: Sequence[tuple[str, ...]],
    mean: Sequence[tuple[str, ...]],
    pictures: Pictures,
    words: Sequence[str],
    line: str,
) -> Report:
    """The page of `deploy evaluate`.

    Args:
        scenes, mean: rows of `COLUMNS`, one for every task and scene, and one for every task.
        words: what it comes to, sentences.
        line: the command that wrote it.
    """
    found = means(rows)
    scene_count = len({r.scene for r in rows})
    gains = [c.psnr - a.psnr for a, _, c in found.values() if a is not None]
    rivals = [b for _, b, _ in found.values() if b is not None]
    best = float(np.mean(gains)) if gains else float(np.mean([c.psnr for _, _, c in found.values()]))
    text = f"{best:{'+' if gains else ''}.1f} dB on average over {len(found)} tasks and {scene_count} scenes."
    detail = "Ahead of the classical method on all." if rivals else "No classical method is known for its tasks."
    means_table = Table(
        "Means over scenes",
        (COLUMNS[0], *COLUMNS[2:], "baseline"),
        tuple((row[0], *row[2:], model.baselines.get(row[0], "-")) for row in mean),
        "PSNR from the mean squared error over all elements, in dB; SAM in degrees; bandloss over the lost bands only.",
    )
    plots = []
    if "gains.png" in pictures.files:
        about = "PSNR gain of baseline and model."
        plots.append(Plot("Gain over the degraded input", pictures.files["gains.png"], about))
    if "experts.png" in pictures.files:
        note = "" if model.balances is None else "Below an expert's number: the share of its spatial branch."
        alt = "Share of scenes in which every expert was chosen, per layer and degradation."
        plots.append(Plot("Experts that the network chose", pictures.files["experts.png"], alt, note))
    plots.append(Plot("Spectra", pictures.files["spectra.png"], "Spectra of three pixels: degraded, restored, truth."))
    return Report(
        title=f"{model.name} on clean cubes",
        subtitle=model.about,
        verdict=Verdict("unjudged", text, " ".join(words) or detail),
        cases=pictures.cases,
        plots=tuple(plots),
        tables=(means_table, Table("Every scene", COLUMNS, tuple(scenes))),
        routing=bool(rows[0].routing.size),
        commands=(Command(line, "measures it and writes this page"),),
        footnotes=("Scores of cubes that the model was trained on flatter it.", f"Judged are {model.part}."),
    )


def cells(name: tuple[str, str], figures: Sequence[Quality | None]) -> tuple[str, ...]:
    before, _, after = figures
    return (
        *name,
        *(figure_of(q, "psnr", 2) for q in figures),
        *(figure_of(q, "ssim", 3) for q in figures),
        *(figure_of(q, "sam", 2) for q in figures),
        gain_of(before, after),
    )


def figure_of(q: Quality | None, figure: str, digits: int) -> str:
    return "-" if q is None else f"{getattr(q, figure):.{digits}f}"


def gain_of(before: Quality | None, after: Quality | None) -> str:
    return "-" if before is None or after is None else f"{after.psnr - before.psnr:+.2f}"


def write_evaluation(folder: Path, model: Model, found: Evaluated, words: Sequence[str], line: str) -> None:
    """Write evaluation.csv, .md, .html and the pictures of one model.

    Args:
        words: what it comes to, sentences.
        line: the command that wrote it.
    """
    rows = found.rows
    scenes = [cells((row.task, row.scene), (row.input, row.baseline, row.model)) for row in rows]
    mean = [cells((task, "mean"), figures) for task, figures in means(rows).items()]
    by_task = [row for last in mean for row in (*(r for r in scenes if r[0] == last[0]), last)]
    save_csv(folder, [COLUMNS, *by_task])
    pictures = pictures_of(model, found)
    page = evaluation_page(model, rows, scenes, mean, pictures, words, line)
    tables = {
        "Means over scenes": ((COLUMNS[0], *COLUMNS[2:]), [(row[0], *row[2:]) for row in mean]),
        "Every scene": (COLUMNS, scenes),
    }
    head = model.about or "Nothing is said of its training."
    write_all(folder, pictures, page, markdown(model.name, (head, *words), line, model.part, tables, pictures))


def save_csv(folder: Path, rows: Sequence[Sequence[str]]) -> None:
    """Write evaluation.csv."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    save_bytes(folder / "evaluation.csv", stream.getvalue().encode())


def write_all(folder: Path, pictures: Pictures, page: Report, text: str) -> None:
    """Write the pictures, evaluation.md and the page."""
    for name, png in pictures.files.items():
        save_bytes(folder / name, png)
    save_bytes(folder / "evaluation.md", text.encode())
    write_report(folder / "evaluation.html", page)


def markdown(
    title: str,
    paragraphs: Sequence[str],
    line: str,
    part: str,
    tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[str]]]],
    pictures: Pictures,
) -> str:
    """The Markdown beside the page: `tables` are {caption: (columns, rows)}."""

    def lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
        def row_of(cells: Sequence[str]) -> str:
            return "| " + " | ".join(printable(cell).replace("|", "\\|") for cell in cells) + " |"

        return [row_of(columns), "|" + "---|" * len(columns), *map(row_of, rows)]

    head, *words = map(printable, paragraphs)
    return "\n".join(
        [
            f"# {printable(title)}",
            "",
            head,
            "",
            f"    {printable(line)}",
            "",
            "PSNR in dB from the mean squared error over all elements, SAM in degrees; for bandloss over the lost "
            f"bands. Judged are {part}.",
            "",
            *(piece for text in words for piece in (text, "")),
            *(text for caption, table in tables.items() for text in (f"## {caption}", "", *lines(*table), "")),
            *(f"![{Path(name).stem}]({name})" for name in pictures.files),
            "",
        ]
    )
