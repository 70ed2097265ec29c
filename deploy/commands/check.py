"""`deploy check`: does the bundle restore as PyTorch does, in every precision that it holds?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runtime.bundle import load_bundle, verified_bundle
from runtime.errors import GateError, InputError
from runtime.prompts import TOLERANCES, beyond

from .. import console
from ..checking.gates import DIRECTIONS, GateResult, failed, judge
from ..config import Config, with_overrides
from .options import (
    config_option,
    engine_option,
    examples,
    json_option,
    network_option,
    network_options,
    read_config,
)

if TYPE_CHECKING:
    # The ground's: imported where they are used, so that a flight computer can show this command's help.

    from ..checking.comparison import Comparison, TaskResult, Variant


@click.command(
    epilog=examples(
        "deploy check build/bundle --checkpoint damp-tiny",
        "deploy check build/bundle --checkpoint model.pth --data cubes/ --report check.html --json",
    )
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--checkpoint", help="The checkpoint that the bundle was built from.")
@click.option("--top-k", type=int, help="Where the checkpoint does not tell it; the bundle's own by default.")
@network_option
@click.option("--data", type=click.Path(path_type=Path), help="Folder of clean cubes, instead of a simulated scene.")
@click.option("--scenes", help="Comma list of the cubes of --data to take, by name without suffix; all by default.")
@click.option("--scale", type=float, help="Number that stands for 1.0 in cubes of integers; beats file's and bundle's.")
@click.option("--variants", help="Comma list of fp32, fp16, int8 to compare besides what flies; all by default.")
@engine_option
@click.option("--report", type=click.Path(path_type=Path), help="Write a page with pictures and tables there.")
@config_option
@json_option
def command(
    bundle: Path,
    checkpoint: str | None,
    top_k: int | None,
    options: tuple[str, ...],
    data: Path | None,
    scenes: str | None,
    scale: float | None,
    variants: str | None,
    engine: str | None,
    report: Path | None,
    config_file: Path | None,
) -> dict[str, Any]:
    """Compare a bundle with PyTorch; exit 1 when the variant that flies fails a gate of the configuration.

    Every variant that the bundle holds is compared: fp32, fp16 (rewritten from the float32 graph where the bundle has
    none, and computed in FP16's arithmetic) and int8.
    """
    from ..building.int8 import PICTURE
    from ..checking.check import check, judge_chosen

    config = read_config(config_file, checkpoint_given=checkpoint is not None)
    told = network_options(options, top_k)
    flags = {"model.checkpoint": checkpoint, "model.top_k": told.get("top_k"), "model.options": told}
    config = with_overrides(config, {**flags, "input.scale": scale})
    wanted = _wanted(variants)
    if report is not None and not report.absolute().parent.is_dir():
        raise InputError("no such folder", file=report, key="--report", remedy="make the folder first")
    if scenes is not None and data is None:
        raise InputError("there is no --data to take them from", key="--scenes", value=scenes, remedy="give --data")
    with load_bundle(bundle, engine=engine) as loaded:
        found = check(loaded, config, data=data, scenes=_names(scenes), wanted=wanted, pictured=report is not None)
        gates = judge_chosen(found, config)
        show(found, gates, config)
        if report is not None:
            from ..reporting.check_report import check_report
            from ..reporting.page import PNG_SIGNATURE, write_report

            drawn = verified_bundle(bundle).files.get(PICTURE, b"")
            pareto = drawn if drawn.startswith(PNG_SIGNATURE) else None
            write_report(report, check_report(loaded, found, gates, str(config.model.checkpoint), pareto))
            console.say(f"report     {report}")
        why = loaded.choice.why
    return conclude(found, gates, bundle, why, config)


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(dict.fromkeys(part.strip() for part in text.split(",")))


def _wanted(text: str | None) -> tuple[str, ...]:
    from ..checking.comparison import VARIANTS

    names = _names(text)
    for name in names or ():
        if name not in VARIANTS:
            raise InputError(
                "unknown variant", key="--variants", value=name, remedy=f"choose from {', '.join(VARIANTS)}"
            )
    return VARIANTS if names is None else names


def show(found: Comparison, gates: list[GateResult], config: Config) -> None:
    """The tables for people: one screen."""
    chosen = found.variants[found.chosen]
    console.table(
        f"{found.chosen} against the truth, {len(found.cubes)} cube{'s' * (len(found.cubes) > 1)}",
        ("degradation", "input dB", "engine dB", "PyTorch dB", "SSIM", "SAM deg", "ERGAS", "tiling costs dB"),
        [
            (
                r.task,
                "-" if r.input is None else f"{r.input.psnr:.2f}",
                f"{r.engine.psnr:.2f}",
                f"{r.pytorch.psnr:.2f}",
                f"{r.engine.ssim:.4f}",
                f"{r.engine.sam:.3f}",
                f"{r.engine.ergas:.2f}",
                f"{r.tiling_drop_db:+.3f}",
            )
            for r in chosen.results
        ],
    )
    if len(found.variants) > 1:
        console.table(
            "variants against PyTorch",
            ("variant", "loses dB", "worst dB", "SAM deg", "worst SAM", "same experts", "int8", "its gates"),
            [_variant_row(v, found.chosen, config) for v in found.variants.values()],
        )
    if found.metrics_apart:
        console.table(
            "the metrics' graph against NumPy, on whole frames",
            ("metric", "differs by at most", "usual"),
            [(name, f"{value:.1e}", f"{TOLERANCES[name]:.0e}") for name, value in found.metrics_apart.items()],
        )
        for name, value in beyond(found.metrics_apart).items():
            console.warn(f"{name} of the metrics' graph differs from NumPy's by {value:.1e}, more than is usual")
    rows = []
    for gate in gates:
        limit = "off" if gate.limit is None else f"{DIRECTIONS[gate.key]} {gate.limit:g}"
        verdict = {True: "passed", False: "FAILED", None: "not judged"}[gate.passed]
        rows.append((gate.key, f"{gate.measured:.3g}", limit, verdict))
    console.table(f"{found.chosen} against PyTorch", ("gate", "measured", "limit", "verdict"), rows)


def _variant_row(variant: Variant, chosen: str, config: Config) -> tuple[str, ...]:
    figures = variant.figures()
    return (
        variant.precision + " (flies)" * (variant.precision == chosen),
        f"{figures['mean_psnr_drop_db']:.4f}",
        f"{figures['psnr_drop_db']:.4f}",
        f"{figures['mean_sam_rise_deg']:+.4f}",
        f"{figures['sam_rise_deg']:+.3f}",
        f"{100 * figures['routing_agreement']:.2f} %",
        f"{100 * variant.int8_mac_share:.0f} %",
        "FAILED" if failed(judge(figures, config.gates, variant.precision)) else "passed",
    )


def conclude(found: Comparison, gates: list[GateResult], bundle: Path, why: str, config: Config) -> dict[str, Any]:
    """What `--json` prints; raises GateError where a gate failed."""
    chosen = found.variants[found.chosen]
    summary = {
        "bundle": str(bundle),
        "cubes": list(found.cubes),
        "tasks": {r.task: _as_json(r) for r in chosen.results},
        "gates": {g.key: {"measured": g.measured, "limit": g.limit, "passed": g.passed} for g in gates},
        "tiling_drop_db": max(r.tiling_drop_db for r in chosen.results),
        "metrics_apart": dict(found.metrics_apart),
        "variants": {
            name: {**_variant_json(v), "passed": not failed(judge(v.figures(), config.gates, name))}
            for name, v in found.variants.items()
        },
        "chosen": found.chosen,
        "why": why,
        "passed": not failed(gates),
    }
    missed = failed(gates)
    if missed:
        error = GateError(
            "the engine does not restore as PyTorch does",
            file=bundle,
            key=f"gates.{missed[0].key}",
            value=float(f"{missed[0].measured:.6g}"),
            remedy=f"{DIRECTIONS[missed[0].key]} {missed[0].limit:g} is asked for",
        )
        error.result = summary
        raise error
    return summary


def _variant_json(variant: Variant) -> dict[str, Any]:
    parted = variant.parting
    return {
        "runs_in": variant.runs_in,
        "tasks": {r.task: _as_json(r) for r in variant.results},
        **{key: value for key, value in variant.figures().items() if key not in ("psnr_drop_db", "sam_rise_deg")},
        "worst_psnr_drop_db": variant.figures()["psnr_drop_db"],
        "worst_sam_rise_deg": variant.figures()["sam_rise_deg"],
        "routing_pairs": variant.routing.pairs,
        "routing_close": variant.routing.close,
        "routing_close_same": variant.routing.close_same,
        "routing_layers": [same / pairs if pairs else 1.0 for pairs, same in variant.routing.layers],
        "int8_mac_share": variant.int8_mac_share,
        "worst_tiles": [asdict(tile) for tile in variant.worst],
        "parts_first_in": parted.first.name if parted and parted.first else None,
        "distance_by_block": {step.name: step.distance for step in parted.blocks} if parted else {},
    }


def _as_json(result: TaskResult) -> dict[str, Any]:
    return {
        "input": None if result.input is None else asdict(result.input),
        "engine": asdict(result.engine),
        "pytorch": asdict(result.pytorch),
        "psnr_drop_db": result.psnr_drop_db,
        "sam_rise_deg": result.sam_rise_deg,
        "max_difference": result.max_difference,
        "routing_agreement": result.routing_agreement,
        "tiling_drop_db": result.tiling_drop_db,
    }
