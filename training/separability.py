"""Do six prompt metrics tell five degradations apart? `python -m training.separability --data DIR --out docs`.

The study of DAMP (arXiv 2512.20251) on other data. Patches of clean scenes are degraded in every way that DAMP is
trained on, and a random forest learns from their metrics (`paper6`) alone which degradation it was. It is tested on
scenes that it never saw. Written are `separability.md`, `separability-confusion.png` and `separability-metrics.png`.
"""

import argparse
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from calibration.degradations import DEGRADATIONS, TRAINING
from runtime.arrays import Float32
from runtime.durable import write_bytes
from runtime.errors import InputError, MachineError
from runtime.files import read_cube
from runtime.metrics import METRIC_SETS, prompt_metrics
from training.console import told

METRIC_SET = "paper6"
HELD_OUT = ("cloth", "superballs", "paints", "thread_spools")
CLEAN = "clean"
TREES = 300
COLOURS = ("#1763c6", "#c2410c", "#0f766e", "#7c3aed", "#b08900", "#8a8f98")


@dataclass(frozen=True)
class Rows:
    """Patches as the forest sees them.

    Attributes:
        metrics: [patches, metrics], in the order of `METRIC_SETS["paper6"]`.
        classes: index of the degradation [patches]; that after the last of `TRAINING` is the clean patch.
        scenes: name of the scene of each patch.
    """

    metrics: Float32
    classes: NDArray[np.intp]
    scenes: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What a forest made of scenes it never saw.

    Attributes:
        names: of the classes.
        confusion: patches [true class, told class].
        importances: share of every metric in the splits of the forest [metrics], sums to 1.
        by_scene: accuracy on each of the held-out scenes, 0 to 1.
    """

    names: tuple[str, ...]
    confusion: NDArray[np.intp]
    importances: NDArray[np.float64]
    by_scene: Mapping[str, float]

    @property
    def accuracy(self) -> float:
        """Share of patches told rightly, 0 to 1."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def recall(self) -> NDArray[np.float64]:
        """Share of each class's patches told rightly [classes]."""
        return np.asarray(np.diag(self.confusion) / self.confusion.sum(axis=1), np.float64)


def load_scaled(folder: Path, scale: float) -> dict[str, Float32]:
    """The .npz cubes of a folder (key `cube`, [lines, samples, bands]) as {name: [bands, lines, samples]} over `scale`.

    Raises:
        InputError: no .npz file there, or one that cannot be read.
    """
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        raise InputError("no scenes", file=folder, remedy="point --data at a folder of .npz cubes")
    return {path.stem: read_cube(path, key="cube").cube.astype(np.float32) / np.float32(scale) for path in paths}


def draw_rows(scenes: Mapping[str, Float32], patches: int, size: int, seed: int) -> Rows:
    """Metrics of `patches` patches [bands, size, size] of every scene, each degraded in every way and clean.

    Places and severities follow from the seed and the scene's place among its fellows.

    Raises:
        InputError: a scene is smaller than a patch.
    """
    metrics: list[Float32] = []
    classes: list[int] = []
    names: list[str] = []
    for place, name in enumerate(track(sorted(scenes), "degrading", console=Console(stderr=True))):
        scene = scenes[name]
        if min(scene.shape[1:]) < size:
            raise InputError("a scene is smaller than a patch", key=name, value=scene.shape, remedy="lower --size")
        rng = np.random.default_rng([seed, place])
        for _ in range(patches):
            line, sample = (int(rng.integers(n - size + 1)) for n in scene.shape[1:])
            patch = scene[:, line : line + size, sample : sample + size]
            degraded = [DEGRADATIONS[task](patch, rng) for task in TRAINING]
            metrics += [prompt_metrics(cube, METRIC_SET) for cube in (*degraded, patch)]
            classes += range(len(TRAINING) + 1)
            names += [name] * (len(TRAINING) + 1)
    return Rows(np.stack(metrics), np.array(classes, np.intp), tuple(names))


def tell_apart(seen: Rows, unseen: Rows, names: Sequence[str], seed: int) -> Outcome:
    """Teach a random forest on the rows of some scenes, and test it on those of others.

    Rows of classes beyond `names` are left out.

    Raises:
        InputError: a scene is on both sides.
        MachineError: scikit-learn is not installed.
    """
    both = set(seen.scenes) & set(unseen.scenes)
    if both:
        raise InputError("a scene is both seen and unseen", key="scenes", value=min(both), remedy="split by scene")
    try:
        from sklearn.ensemble import RandomForestClassifier
    except ImportError as error:
        raise MachineError(
            "scikit-learn is not installed", key="scikit-learn", remedy='pip install "damp-deploy[report]"'
        ) from error
    count = len(names)
    forest = RandomForestClassifier(n_estimators=TREES, random_state=seed, n_jobs=1)
    forest.fit(seen.metrics[seen.classes < count], seen.classes[seen.classes < count])
    kept = unseen.classes < count
    true, told = unseen.classes[kept], forest.predict(unseen.metrics[kept])
    scenes = np.array(unseen.scenes)[kept]
    confusion = np.zeros((count, count), np.intp)
    np.add.at(confusion, (true, told), 1)
    by_scene = {str(name): float((true == told)[scenes == name].mean()) for name in sorted(set(scenes))}
    return Outcome(tuple(names), confusion, np.asarray(forest.feature_importances_, np.float64), by_scene)


def confusion_picture(outcome: Outcome) -> bytes:
    """PNG of the confusion matrix, every row as shares of its true class.

    Raises:
        MachineError: matplotlib is not installed.
    """
    figure = _figure(5.2, 4.4)
    axes = figure.subplots()
    shares = outcome.confusion / outcome.confusion.sum(axis=1, keepdims=True)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share > 0.55 else "#111418"
        axes.text(column, row, f"{share:.1%}" if share else "", ha="center", va="center", color=colour, fontsize=9)
    places = range(len(outcome.names))
    axes.set_xticks(places, outcome.names)
    axes.set_yticks(places, outcome.names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("told")
    axes.set_ylabel("true")
    axes.set_title(f"scenes never seen: {outcome.accuracy:.1%} right", loc="left", fontsize=10)
    return _png(figure)


def metrics_picture(rows: Rows, names: Sequence[str]) -> bytes:
    """PNG of how each metric is distributed for each class: boxes from quartile to quartile, whiskers 5 % to 95 %.

    Raises:
        MachineError: matplotlib is not installed.
    """
    figure = _figure(10.5, 5.4)
    for index, (axes, metric) in enumerate(zip(figure.subplots(2, 3).flat, METRIC_SETS[METRIC_SET], strict=True)):
        values = [rows.metrics[rows.classes == number, index] for number in range(len(names))]
        boxes = axes.boxplot(values, widths=0.6, whis=(5, 95), showfliers=False, patch_artist=True)
        for box, line, colour in zip(boxes["boxes"], boxes["medians"], COLOURS, strict=False):
            box.set(facecolor=colour, alpha=0.55, linewidth=0.8)
            line.set(color="#111418")
        axes.set_xticks(range(1, len(names) + 1), names, fontsize=8)
        axes.tick_params(axis="y", labelsize=8)
        axes.set_title(metric.replace("_", " "), loc="left", fontsize=10)
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def mistake(outcome: Outcome) -> str:
    """The most common mistake, as a sentence."""
    wrong = outcome.confusion - np.diag(np.diag(outcome.confusion))
    true, told = np.unravel_index(int(wrong.argmax()), wrong.shape)
    if not wrong.any():
        return "none."
    of = outcome.confusion[true].sum()
    return f"{outcome.names[true]} told as {outcome.names[told]}, in {wrong[true, told]} of {of} patches."


def page(five: Outcome, six: Outcome, seen: Sequence[str], patches: int, size: int, command: str) -> str:
    """The study in Markdown."""
    order = np.argsort(-five.importances, kind="stable")
    lines = [
        "# Do the prompt metrics tell the degradations apart?",
        "",
        f"    {command}",
        "",
        f"wrote this page. {patches} patches of {size} x {size} pixels from each of {len(seen)} scenes were degraded",
        "by each of the five training degradations, with severities drawn as in training. From the six metrics of",
        f"`{METRIC_SET}` alone a random forest ({TREES} trees) learned which degradation it was. It was tested on",
        f"{patches} patches from each of {len(five.by_scene)} scenes it never saw, so that no scene is on both sides.",
        "",
        "| classes | accuracy | chance |",
        "|---|---|---|",
        f"| five degradations | {five.accuracy:.1%} | {1 / len(five.names):.1%} |",
        f"| the same and the clean cube | {six.accuracy:.1%} | {1 / len(six.names):.1%} |",
        "",
        f"The most common mistake among the five: {mistake(five)}",
        f"With the clean cube: {mistake(six)}",
        "",
        "| | " + " | ".join(six.names) + " |",
        "|---|" + "---|" * len(six.names),
        "| recall, five | " + " | ".join(f"{share:.1%}" for share in five.recall) + " | |",
        "| recall, six | " + " | ".join(f"{share:.1%}" for share in six.recall) + " |",
        "",
        "| scene | " + " | ".join(five.by_scene) + " |",
        "|---|" + "---|" * len(five.by_scene),
        "| accuracy, five | " + " | ".join(f"{share:.1%}" for share in five.by_scene.values()) + " |",
        "",
        "![Confusion matrix of the five degradations](separability-confusion.png)",
        "",
        "| metric | importance, five |",
        "|---|---|",
        *(f"| {METRIC_SETS[METRIC_SET][index].replace('_', ' ')} | {five.importances[index]:.3f} |" for index in order),
        "",
        "An importance is the share of a metric in what the forest's splits gain (mean decrease in impurity); metrics",
        "that say the same share it.",
        "",
        "![Distribution of the six metrics](separability-metrics.png)",
        "",
        "All patches, of seen and unseen scenes. Boxes go from quartile to quartile, whiskers from 5 % to 95 %.",
        "",
    ]
    return "\n".join(lines)


def study(data: Path, out: Path, held: Sequence[str], patches: int, size: int, scale: float, seed: int) -> Outcome:
    """Run the study and write its page and pictures into the folder `out`.

    Args:
        data: folder of clean .npz cubes.
        out: folder to write to.
        held: names of the scenes to test on.
        patches: per scene.
        size: side of a patch in pixels.
        scale: digital number that stands for 1.0.
        seed: of patches, severities and forest.

    Returns:
        The outcome for the five degradations.

    Raises:
        InputError: a scene is missing or too small, or `out` cannot be written.
        MachineError: scikit-learn or matplotlib is not installed.
    """
    scenes = load_scaled(data, scale)
    missing = [name for name in held if name not in scenes]
    taught = [name for name in scenes if name not in held]
    if missing or not taught or not held:
        raise InputError(
            "no scene to teach with, or to test on",
            file=data,
            value=missing[0] if missing else None,
            remedy=f"hold out some, not all, of {', '.join(scenes)}",
        )
    seen = draw_rows({name: scenes[name] for name in taught}, patches, size, seed)
    unseen = draw_rows({name: scenes[name] for name in held}, patches, size, seed + 1)
    five, six = (tell_apart(seen, unseen, names, seed) for names in (TRAINING, (*TRAINING, CLEAN)))
    both = Rows(
        np.concatenate([seen.metrics, unseen.metrics]),
        np.concatenate([seen.classes, unseen.classes]),
        seen.scenes + unseen.scenes,
    )
    command = (
        f"python -m training.separability --data DIR --held {','.join(held)} --patches {patches} --size {size} "
        f"--scale {scale:g} --seed {seed} --out docs"
    )
    write_bytes(out / "separability-confusion.png", confusion_picture(five))
    write_bytes(out / "separability-metrics.png", metrics_picture(both, (*TRAINING, CLEAN)))
    write_bytes(out / "separability.md", page(five, six, taught, patches, size, command).encode())
    return five


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MachineError(
            "matplotlib is not installed", key="matplotlib", remedy='pip install "damp-deploy[report]"'
        ) from error
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of clean .npz scenes")
    parser.add_argument("--out", type=Path, required=True, help="folder to write page and pictures to")
    parser.add_argument("--held", default=",".join(HELD_OUT), help="comma list of scenes to test on")
    parser.add_argument("--patches", type=int, default=20, help="per scene")
    parser.add_argument("--size", type=int, default=64, help="side of a patch in pixels")
    parser.add_argument("--scale", type=float, default=65535.0, help="digital number that stands for 1.0")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with told():
        for key in ("patches", "size", "scale"):
            value = getattr(given, key)
            if not value > 0:
                raise InputError("must be above 0", key=f"--{key}", value=value, remedy="leave it out for the default")
        held = given.held.split(",")
        outcome = study(given.data, given.out, held, given.patches, given.size, given.scale, given.seed)
    print(f"accuracy {outcome.accuracy:.3f} on scenes never seen")
    print(", ".join(f"{name} {share:.3f}" for name, share in zip(outcome.names, outcome.recall, strict=True)))


if __name__ == "__main__":
    main()
