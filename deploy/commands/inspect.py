"""`deploy inspect`: what a bundle says of itself, after every byte of it was checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from runtime.errors import MachineError

from .. import console
from .options import (
    constant_bands_option,
    engine_option,
    examples,
    json_option,
    missing_chunks_option,
    network_option,
    network_options,
    reading_options,
    signed_text,
    trust_option,
    warn_if_nobody_asked,
)

if TYPE_CHECKING:
    from runtime.bundle_files import Contents
    from runtime.manifest import Manifest


@click.command(
    epilog=examples(
        "deploy inspect build/bundle",
        "deploy inspect build/bundle --engine onnxruntime-cuda --json",
        "deploy inspect damp-nano",
        "deploy inspect flight/scene.hdr",
    )
)
@click.argument("bundle", metavar="BUNDLE|CHECKPOINT|CUBE|PRODUCT", type=click.Path(path_type=Path))
@engine_option
@reading_options
@constant_bands_option
@click.option("--bundle", "judged_for", type=click.Path(path_type=Path), help="Of a cube: judge it for this bundle.")
@click.option("--top-k", type=int, help="Of a checkpoint that does not tell it.")
@missing_chunks_option
@network_option
@trust_option
@json_option
def command(
    bundle: Path,
    engine: str | None,
    scale: float | None,
    marks: tuple[float, ...] | None,
    constant_bands: Literal["leave", "restore"] | None,
    judged_for: Path | None,
    top_k: int | None,
    options: tuple[str, ...],
    missing_chunks: Literal["refuse", "fill"] | None,
    layout: str | None,
    key: str | None,
) -> dict[str, Any]:
    """Show what a bundle is: network, precision and why, scale, evidence, files; all hashes are checked first.

    Of a checkpoint (.pth, .safetensors, or the name of a packaged model): the architecture that takes it, or its keys.

    Of a product (NetCDF, GeoTIFF, Zarr, folders of agencies): what it says of itself, without a look at its pixels.

    Of a cube file: what its numbers are taken to mean, band by band; exit 1 where something is doubtful.
    """
    from runtime.bundle_files import read_manifest, unlisted_files, verified_bundle
    from runtime.files.foreign import refuse_foreign
    from runtime.meaning import Asked
    from runtime.products import Reading
    from runtime.signature import plane_text

    from .inspect_checkpoint import inspect_checkpoint, is_checkpoint
    from .inspect_cube import inspect_cube, is_cube
    from .inspect_product import inspect_product, is_product

    if is_product(bundle):
        manifest = None if judged_for is None else read_manifest(judged_for)
        reading = Reading(layout, key, missing_chunks or "refuse")
        return inspect_product(bundle, Asked(scale, marks, constant_bands), reading, manifest)
    if is_cube(bundle):
        known = None if judged_for is None else verified_bundle(judged_for).manifest
        return inspect_cube(bundle, Asked(scale, marks, constant_bands), layout, key, known)
    if is_checkpoint(bundle):
        return inspect_checkpoint(bundle, network_options(options, top_k))
    refuse_foreign(bundle)
    contents = verified_bundle(bundle)
    m, made, choice = contents.manifest, contents.made, contents.choice
    here, refusal = _engine_here(bundle, engine)
    network = m.network
    routing = m.signature.routing
    rows = [
        ("network", f"{network.architecture}, {network.parameters / 1e6:.2f} M parameters"),
        ("signature", signed_text(contents.signed)),
        *((("engine's", signed_text(contents.made_signed)),) if made else ()),
        ("serial", f"{m.serial}{_wanted(m)}"),
        ("checkpoint", f"{network.checkpoint} (sha256 {network.checkpoint_sha256[:12]})"),
        ("about", network.about or "-"),
        ("built", f"{m.created} by damp-deploy {m.tools.get('damp-deploy', '?')}"),
        ("target", f"{m.target.name}, engine {m.target.engine}"),
        ("engine file", _engine_file(contents)),
        ("runs here on", f"{here['engine']} {here['version']}, {here['device']}" if here else f"no: {refusal}"),
        ("computes in", here.get("computes in", "-") if here else "-"),
        ("nodes", here.get("placement", "-") if here else "-"),
        ("precision", f"{choice.precision} ({choice.why})"),
        ("int8", _int8(m)),
        ("frame", f"{plane_text(m.signature.measured)}, overlap {m.overlap}"),
        ("restored", plane_text(m.signature.restored)),
        ("wavelengths", f"{m.wavelengths[0]:g} to {m.wavelengths[-1]:g} nm" if m.wavelengths else "not told"),
        ("scale", f"{m.scale:g} (from the {m.scale_from})" if m.scale else "none"),
        ("metrics", _metrics(m)),
        *(("prompt", _prompt(name, m.prompts[name].about)) for name in m.prompts),
        *(("instrument", _array(name, file, contents)) for name, file in m.instrument.items()),
        ("experts", "none" if routing is None else f"{routing.shape[0]} layers of {routing.shape[1]}"),
    ]
    for label, text in rows:
        console.say(f"{label:<13} {text}")
    export = m.evidence.get(choice.precision, m.evidence.get("export", {}))
    if isinstance(export, dict):
        console.table(
            f"evidence: {choice.precision} graph against PyTorch",
            ("measure", "value"),
            [(k, _figure(v)) for k, v in export.items() if v is not None],
        )
    records = {**m.files, **(made.files if made else {})}
    files = [(name, f"{record.bytes:,}", record.sha256[:16]) for name, record in sorted(records.items())]
    console.table("files, all intact", ("file", "bytes", "sha256"), files)
    warn_if_nobody_asked(contents.signed)
    strangers = unlisted_files(bundle, contents)
    if strangers:
        console.warn(f"files here that are not the bundle's are never opened: {len(strangers)}, first {strangers[0]}")
    return {
        "bundle": str(bundle),
        "intact": True,
        "signed": contents.signed and asdict(contents.signed),
        "made_signed": contents.made_signed and asdict(contents.made_signed),
        "unlisted": list(strangers),
        "engine": here,
        "refusal": refusal or None,
        "manifest": m.model_dump(mode="json"),
        "made": made and made.model_dump(mode="json"),
    }


def _wanted(manifest: Manifest) -> str:
    """What it asks of a computer, to follow its serial."""
    boards = f", for {', '.join(manifest.compatible)}" if manifest.compatible else ""
    oldest = manifest.minimum_runtime
    return boards + (f", opened by damp-deploy {oldest} or newer" if oldest else "")


def _array(name: str, file: str, bundle: Contents) -> str:
    from runtime.bundle_files import stored_array

    array = stored_array(bundle.files[file], Path(file), None)
    return f"{name}, {'x'.join(map(str, array.shape))}, {array.min():g} to {array.max():g}, mean {array.mean():.3f}"


def _engine_here(bundle: Path, engine: str | None) -> tuple[dict[str, str] | None, str]:
    """What the bundle's engine says of itself on this machine, or why it does not run here."""
    from runtime.bundle import load_bundle

    try:
        with load_bundle(bundle, engine=engine) as loaded:
            return loaded.engine.describe(), ""
    except MachineError as error:
        return None, error.one_line()


def _engine_file(bundle: Contents) -> str:
    made, deferred = bundle.choice.engine, bundle.manifest.deferred
    if made is not None:
        return f"{made.path}, {made.builder} {made.version} for SM {made.sm}"
    return f"deferred: {deferred}" if deferred else "none: the engine loads the graph"


def _metrics(manifest: Manifest) -> str:
    from runtime.engines import METRICS_ENGINES

    metrics = manifest.signature.metrics
    if metrics is None:
        return "none"
    told = f"{metrics.of}, {metrics.shape[1]} values"
    if manifest.metrics_graph is None:
        return f"{told}, by NumPy on the host"
    engines = " or ".join(METRICS_ENGINES)
    return f"{told}, by {manifest.metrics_graph} of whole frames in {engines}, else by NumPy on the host"


def _prompt(name: str, about: Mapping[str, Any]) -> str:
    """A prompt by name; what the manifest says of it may be a stranger's."""
    told = [f"{key} {about[key]}" for key in sorted(about) if isinstance(about[key], str | int | float)]
    return ", ".join((name, *told))


def _int8(manifest: Manifest) -> str:
    """What the manifest says of calibration; it may be a stranger's, so nothing is taken for granted."""
    told = manifest.evidence.get("quantisation")
    if not isinstance(told, dict):
        return "not calibrated"
    share, cubes, left = told.get("int8_mac_share"), told.get("calibration"), told.get("kept_in_higher_precision")
    if not isinstance(share, float) or not isinstance(cubes, dict) or not isinstance(left, list):
        return "calibrated"
    used, skipped = cubes.get("cubes"), cubes.get("skipped")
    if not isinstance(used, dict) or not isinstance(skipped, dict):
        return "calibrated"
    return (
        f"{100 * share:.1f} % of the multiply-adds, calibrated with {len(used)} cubes "
        f"({len(skipped)} skipped){_judged(told, cubes)}; left out: {', '.join(map(str, left)) or 'nothing'}"
    )


def _judged(told: Mapping[str, Any], cubes: Mapping[str, Any]) -> str:
    """What was lost on the cubes that chose no range; a stranger's manifest may say nothing of it."""
    try:
        names = sorted({str(frame["cube"]) for frame in cubes["judged"]})
        lost = told["on_judged_frames"]
        worst, task = max((float(row["psnr_drop_db"]), name) for name, row in lost["tasks"].items())
        mean, bent = float(lost["mean_psnr_drop_db"]), float(lost["mean_sam_rise_deg"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return ""
    return (
        f", judged by {len(names)} of them alone ({', '.join(names)}): loses {mean:.3f} dB, at most {worst:.3f} "
        f"({task}), {bent:+.2f} degrees"
    )


def _figure(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
