"""`deploy check`: does the bundle restore as PyTorch does, in every precision that it holds?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from runtime.errors import GateError, InputError
from runtime.precisions import VARIANTS

from .. import console
from .options import (
    comma_list,
    config_option,
    engine_option,
    examples,
    json_option,
    network_flags,
    network_option,
    read_config,
    reading_flags,
    reading_options,
    trust_option,
    with_flags,
)

if TYPE_CHECKING:
    # The ground's: imported where they are used, so that a flight computer can show this command's help.

    from ..checking.comparison import Comparison, TaskResult, Variant
    from ..checking.gates import GateResult


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
@reading_options
@click.option("--variants", help="Comma list of fp32, fp16, int8 to compare besides what flies; all by default.")
@engine_option
@click.option("--report", type=click.Path(path_type=Path), help="Write a page with pictures and tables there.")
@config_option
@trust_option
@json_option
def command(
    bundle: Path,
    checkpoint: str | None,
    top_k: int | None,
    options: tuple[str, ...],
    data: Path | None,
    scenes: str | None,
    scale: float | None,
    layout: str | None,
    key: str | None,
    marks: tuple[float, ...] | None,
    variants: str | None,
    engine: str | None,
    report: Path | None,
    config_file: Path | None,
) -> dict[str, Any]:
    """Compare a bundle with PyTorch; exit 1 when the variant that flies fails a gate of the configuration.

    Every variant that the bundle holds is compared: fp32, fp16 (rewritten from the float32 graph where the bundle has
    none, and computed in FP16's arithmetic) and int8.
    """
    from runtime.bundle import load_bundle
    from runtime.bundle_files import verified_bundle

    from ..building.int8_told import PICTURE
    from ..checking.check import check, judged

    config = read_config(config_file, checkpoint_given=checkpoint is not None)
    config = with_flags(
        config, {**network_flags(checkpoint, options, top_k), **reading_flags(layout, key, scale, marks)}
    )
    wanted = _wanted(variants)
    if report is not None and not report.absolute().parent.is_dir():
        raise InputError("no such folder", file=report, key="--report", remedy="make the folder first")
    if scenes is not None and data is None:
        raise InputError("there is no --data to take them from", key="--scenes", value=scenes, remedy="give --data")
    with load_bundle(bundle, engine=engine) as loaded:
        found = check(
            loaded,
            config,
            data=data,
            scenes=comma_list(scenes),
            wanted=wanted,
            pictured=report is not None,
        )
        gates = judged(found, config)
        show(found, gates)
        if report is not None:
            from ..reporting.check_report import check_report
            from ..reporting.page import PNG_SIGNATURE, write_report

            drawn = verified_bundle(bundle).files.get(PICTURE, b"")
            pareto = drawn if drawn.startswith(PNG_SIGNATURE) else None
            cubes = "" if data is None else f"--data {quote(str(data))} "
            cubes += "" if scenes is None else f"--scenes {quote(scenes)} "
            made = check_report(loaded, found, gates[found.chosen], str(config.model.checkpoint), cubes, pareto)
            write_report(report, made)
            console.say(f"report     {report}")
        why = loaded.choice.why
    return conclude(found, gates, bundle, why)


def _wanted(text: str | None) -> tuple[str, ...]:
    names = comma_list(text)
    for name in names or ():
        if name not in VARIANTS:
            raise InputError(
                "unknown variant", key="--variants", value=name, remedy=f"choose from {', '.join(VARIANTS)}"
            )
    return VARIANTS if names is None else names


def show(found: Comparison, gates: Mapping[str, list[GateResult]]) -> None:
    """The tables for people: one screen. `gates` are those of every variant."""
    from calibration.figures import columns
    from runtime.prompts import TOLERANCES, beyond

    from ..checking.comparison import CLOSE_GAP
    from ..checking.gates import failed

    variants = found.variants
    tasks = variants[found.chosen].tasks
    told = tasks.values()
    comes, tiled = any(r.input for r in told), any(r.tiled for r in told)
    cells = {
        "degradation": list(tasks),
        "input dB": ["-" if r.input is None else f"{r.input.psnr:.2f}" for r in told if comes],
        "engine dB": [f"{r.engine.psnr:.2f}" for r in told],
        "PyTorch dB": [f"{r.pytorch.psnr:.2f}" for r in told],
        "SSIM": [f"{r.engine.ssim:.4f}" for r in told],
        "SAM deg": [f"{r.engine.sam:.3f}" for r in told],
        "ERGAS": [f"{r.engine.ergas:.2f}" for r in told],
        "tiling costs dB": [f"{r.tiling_drop_db:+.3f}" for r in told if tiled],
    }
    shown = {head: column for head, column in cells.items() if column}
    console.table(
        f"{found.chosen} against the truth, {len(found.cubes)} cube{'s' * (len(found.cubes) > 1)}",
        tuple(shown),
        list(zip(*shown.values(), strict=True)),
    )
    if len(variants) > 1:
        cells = {
            "variant": [name + " (flies)" * (name == found.chosen) for name in variants],
            **columns(variants.values()),
            "int8": [f"{v.int8_mac_share:.0%}" for v in variants.values()],
            "its gates": [
                f"FAILED: {_keys(missed)}" if (missed := failed(gates[name])) else "passed" for name in variants
            ],
        }
        console.table("variants against PyTorch", tuple(cells), list(zip(*cells.values(), strict=True)))
    if found.metrics_apart:
        console.table(
            "the metrics' graph against NumPy, on whole frames",
            ("metric", "differs by at most", "usual"),
            [(name, f"{value:.1e}", f"{TOLERANCES[name]:.0e}") for name, value in found.metrics_apart.items()],
        )
        for name, value in beyond(found.metrics_apart).items():
            console.warn(f"{name} of the metrics' graph differs from NumPy's by {value:.1e}, more than is usual")
    if found.gaps:
        near = ", ".join(f"{task} {gap:.1e}" for task, gap in found.gaps.items())
        console.say(f"gaps       between scores that stay and go: {near}")
        close = [task for task, gap in found.gaps.items() if gap < CLOSE_GAP]
        if close:
            console.say(
                f"           of {', '.join(close)} a difference may be scores that rounding swapped, and no error"
            )
    verdicts = {True: "passed", False: "FAILED", None: "not judged"}
    rows = [(g.figure.key, f"{g.measured:.3g}", g.allowed, verdicts[g.passed]) for g in gates[found.chosen]]
    console.table(f"{found.chosen} against PyTorch", ("gate", "measured", "limit", "verdict"), rows)


def _keys(gates: Sequence[GateResult]) -> str:
    return ", ".join(g.figure.key for g in gates)


def _gates_json(gates: Sequence[GateResult]) -> dict[str, Any]:
    return {g.figure.key: g.as_json() for g in gates}


def conclude(found: Comparison, gates: Mapping[str, list[GateResult]], bundle: Path, why: str) -> dict[str, Any]:
    """What `--json` prints; raises GateError where a gate of what flies failed."""
    from ..checking.gates import failed

    tasks, missed = found.variants[found.chosen].tasks, failed(gates[found.chosen])
    summary = {
        "bundle": str(bundle),
        "cubes": list(found.cubes),
        "doubts": list(found.doubts),
        "tasks": {task: _as_json(r) for task, r in tasks.items()},
        "gates": _gates_json(gates[found.chosen]),
        "tiling_drop_db": max(r.tiling_drop_db for r in tasks.values()),
        "metrics_apart": dict(found.metrics_apart),
        "gaps": dict(found.gaps),
        "variants": {
            name: {**_variant_json(v), "gates": _gates_json(gates[name]), "passed": not failed(gates[name])}
            for name, v in found.variants.items()
        },
        "chosen": found.chosen,
        "why": why,
        "passed": not missed,
    }
    if missed:
        error = GateError(
            "the engine does not restore as PyTorch does",
            file=bundle,
            key=f"gates.{missed[0].figure.key}",
            value=float(f"{missed[0].measured:.6g}"),
            remedy=f"{missed[0].allowed} is asked for" + (f"; {_keys(missed[1:])} failed too" if missed[1:] else ""),
        )
        error.result = summary
        raise error
    return summary


def _variant_json(variant: Variant) -> dict[str, Any]:
    from calibration.figures import figures

    parted, of_tasks = variant.parting, ("psnr_drop_db", "sam_rise_deg")
    return {
        "runs_in": variant.runs_in,
        "tasks": {task: _as_json(r) for task, r in variant.tasks.items()},
        **{f"worst_{key}" if key in of_tasks else key: value for key, value in figures(variant).items()},
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
        **({"routing_agreement": result.routing.agreement} if result.routing else {}),
        "tiling_drop_db": result.tiling_drop_db,
    }
