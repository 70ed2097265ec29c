"""The figures by which a variant is held against its network: what each means, its limits, how tables show it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from runtime.parity import QUALITY_DB

from .agreement import Cost

QUALITY = "quality"


@dataclass(frozen=True)
class Figure:
    """A figure, and the gate of the same name.

    Attributes:
        key: in `--json`, manifests and the section `gates` of deploy.yaml.
        title, meaning: on a page.
        direction: which way its limit goes.
        auto: precision -> limit where the configuration says `auto`; None where there is none. `QUALITY` stands for all
            precisions of a network whose parity is quality alone.
        of: how it is taken from a cost.
        column: head of its column in tables of variants; empty where it has none.
        form: format of a cell there.
        needs_routing: a network without experts has no such figure.
    """

    key: str
    title: str
    meaning: str
    direction: Literal["at most", "at least"]
    auto: Mapping[str, float | None]
    of: Callable[[Cost], float]
    column: str = ""
    form: str = ".4f"
    needs_routing: bool = False


FIGURES = (
    Figure(
        "max_difference", "Largest difference", "Share of the output's range, at the worst value of all cubes.",
        # One value in int8 may be far off where none is in FP16: what counts there is the quality of the whole.
        "at most", {"fp32": 1e-3, "fp16": 2e-2, "bf16": 5e-2, "int8": None}, lambda c: c.max_difference,
    ),
    Figure(
        "psnr_drop_db", "Loss of PSNR, dB", "How much further from the truth the engine is than PyTorch.",
        "at most", {"fp32": 0.01, "fp16": 0.05, "bf16": 0.1, "int8": 0.4, QUALITY: QUALITY_DB},
        lambda c: c.worst_psnr_drop_db, "worst dB",
    ),
    Figure(
        "mean_psnr_drop_db", "Loss of PSNR, mean over tasks, dB", "The same, where one task may make up for another.",
        "at most", {"fp32": 0.01, "fp16": 0.01, "bf16": 0.1, "int8": 0.15, QUALITY: QUALITY_DB},
        lambda c: c.mean_psnr_drop_db, "loses dB",
    ),
    Figure(
        "sam_rise_deg", "Rise of spectral angle, degrees", "How much more the engine bends spectra than PyTorch.",
        "at most", {"fp32": 0.005, "fp16": 0.02, "bf16": 0.05, "int8": 5.0}, lambda c: c.worst_sam_rise_deg,
        "worst SAM",
    ),
    Figure(
        "mean_sam_rise_deg", "Rise of spectral angle, mean, degrees", "The same, mean over tasks.",
        "at most", {"fp32": 0.005, "fp16": 0.005, "bf16": 0.05, "int8": 1.0}, lambda c: c.mean_sam_rise_deg, "SAM deg",
    ),
    Figure(
        "routing_agreement", "Same experts chosen", "Share of tiles and layers in which both chose the same experts.",
        "at least", {"fp32": 1.0, "fp16": 1.0, "bf16": 1.0, "int8": 0.995}, lambda c: c.routing.agreement,
        "same experts", ".2%", needs_routing=True,
    ),
)  # fmt: skip


def figures(cost: Cost) -> dict[str, float]:
    """{key: figure} of all that the network has."""
    return {figure.key: figure.of(cost) for figure in FIGURES if cost.routing or not figure.needs_routing}


def columns(costs: Iterable[Cost]) -> dict[str, list[str]]:
    """{head of a column: a cell for each variant of a network}."""
    told = list(costs)
    shown = (f for f in FIGURES if f.column and (any(c.routing for c in told) or not f.needs_routing))
    return {figure.column: [format(figure.of(cost), figure.form) for cost in told] for figure in shown}
