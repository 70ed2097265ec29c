"""What `deploy check` and `deploy demo` found, as the content of a report."""

from collections.abc import Mapping, Sequence

import numpy as np

from calibration.figures import columns
from calibration.quality import Quality, psnr_per_band
from runtime.bundle import Bundle
from runtime.signature import plane_text

from ..checking.comparison import Case, Comparison, TaskResult
from ..checking.gates import GateResult, failed
from .page import Case as Row
from .page import ColourScale, Command, Fact, Picture, Plot, Report, Table, Verdict, figure_text
from .plots import band_psnr_plot, experts_plot, spectra_plot
from .precision_plots import band_distance_plot, distance_plot, margins_plot
from .quicklooks import error_map, fitted, marked, pixels_shown, png_bytes, rgb, stretch_limits

Pictured = tuple[Case, Quality | None, Quality]
"""A cube, and its quality before and after."""


def check_report(
    bundle: Bundle,
    found: Comparison,
    gates: list[GateResult],
    checkpoint: str,
    cubes: str = "",
    pareto: bytes | None = None,
) -> Report:
    """The page of `deploy check`.

    Args:
        cubes: the options that name them, where there were any.
        pareto: the picture of the search for int8, as PNG.
    """
    m, precision = bundle.manifest, bundle.choice.precision
    build = f"deploy build --target {m.target.name} --checkpoint {checkpoint} --precision {precision}"
    build += f" --size {m.signature.measured.lines}x{m.signature.measured.samples}"
    build += f" --scale {m.scale:g}" * (m.scale_from == "flag") + " --calibration CUBES" * (precision == "int8")
    commands = (
        Command(build, "builds the bundle"),
        Command(
            f"deploy check BUNDLE --checkpoint {checkpoint} {cubes}--report report.html",
            "measures it and writes this page",
        ),
    )
    return assemble(f"{checkpoint} on {bundle.manifest.target.name}", bundle, found, gates, commands, pareto=pareto)


def assemble(
    title: str,
    bundle: Bundle,
    found: Comparison,
    gates: list[GateResult],
    commands: tuple[Command, ...],
    summary: tuple[Fact, ...] = (),
    lead: str = "",
    shown: Pictured | None = None,
    pareto: bytes | None = None,
) -> Report:
    """A page: verdict, gates, pictures, spectra, tables, what was built, how to repeat it.

    Args:
        shown: pictured first, a cube that was restored beside the checked ones.
    """
    results, cases = found.variants[found.chosen].tasks, found.cases
    pictured: list[Pictured] = [(case, results[case.task].input, results[case.task].engine) for case in cases]
    if shown is not None:
        # Of one task one cube is pictured.
        pictured = [shown, *(each for each in pictured if each[0].task != shown[0].task)]
    first = pictured[0][0]
    missed = failed(gates)
    if missed:
        verdict = Verdict(
            "failed", "The engine does not restore as PyTorch does. Do not fly this bundle.", missed[0].figure.key
        )
    elif any(g.passed for g in gates):
        verdict = Verdict("passed", lead or "The engine restores as PyTorch does.", "Every accuracy gate passed.")
    else:
        verdict = Verdict("unjudged", lead or "Every accuracy gate is switched off.")
    wavelengths = bundle.manifest.wavelengths
    pixels = pixels_shown(first.truth.shape)
    plots = [
        Plot(
            f"Spectra, {first.task}",
            spectra_plot(
                {
                    **({} if first.degraded is None else {"degraded": first.degraded}),
                    "restored": first.restored,
                    "truth": first.truth,
                    **({"PyTorch": first.pytorch} if first.pytorch is not None else {}),
                },
                pixels,
                wavelengths,
                scale="share of full scale",
            ),
            "Spectra of the numbered pixels: degraded, restored, by PyTorch where it was asked, and truth.",
            "The numbered rings in the pictures above show where.",
        ),
        Plot(
            "Quality of every band",
            band_psnr_plot({c.task: _band_psnr(c) for c in cases}, wavelengths),
            "PSNR of the restored cube, band by band, for every degradation.",
        ),
        *_experts_plots(cases),
        *_precision_plots(found, wavelengths, pareto),
    ]
    return Report(
        title=title,
        subtitle=bundle.manifest.network.about,
        verdict=verdict,
        summary=summary,
        gates=tuple(gates),
        cases=tuple(_row(*each, pixels, wavelengths) for each in pictured),
        plots=tuple(plots),
        tables=(_accuracy(results), _against_pytorch(results), *_variant_tables(found)),
        built=_built(bundle),
        routing=bundle.manifest.signature.routing is not None,
        commands=commands,
        footnotes=(
            f"Cubes: {', '.join(found.cubes)}. The truth of a simulated scene is what an ideal sensor would see.",
            "Where bands were lost, PSNR, SSIM and spectral angle are taken over the lost bands only.",
        ),
    )


def _experts_plots(cases: Sequence[Case]) -> list[Plot]:
    chosen = {c.task: c.routing.reshape(-1, *c.routing.shape[-2:]).mean(axis=0) for c in cases if c.routing.size}
    if not chosen:
        return []
    about = "Weights of the experts per layer and degradation, averaged over tiles."
    return [Plot("Experts that the network chose", experts_plot(chosen), about)]


def _precision_plots(found: Comparison, wavelengths: list[float] | None, pareto: bytes | None) -> list[Plot]:
    """How far the variants are from PyTorch, where they part, and how clear the routing was."""
    plots = []
    cubes = [(c, {found.chosen: c.restored, **c.others}) for c in found.cases if c.pytorch is not None]
    if cubes:
        plots.append(
            Plot(
                "Distance from PyTorch, band by band",
                band_distance_plot([(c.pytorch, variants) for c, variants in cubes], wavelengths),
                "Root mean square difference of every variant from PyTorch per band, over all degradations.",
            )
        )
    blocks = {name: v.parting.blocks for name, v in found.variants.items() if v.parting}
    if blocks:
        plots.append(
            Plot(
                "Where the variants part",
                distance_plot({name: {s.name: s.distance for s in steps} for name, steps in blocks.items()}),
                "Distance of the values behind every block of the network from those of the float32 graph.",
                "On the tile that each variant restores least like PyTorch.",
            )
        )
    if any(np.size(m) for m in found.margins.values()):
        plots.append(
            Plot(
                "How clearly PyTorch chose its experts",
                margins_plot(found.margins, 1e-3),
                "Cumulative share of tiles and layers over the lead of the chosen expert.",
                "Left of the dashed line a choice is as good as its neighbour and is counted apart.",
            )
        )
    if pareto is not None:
        plots.append(
            Plot(
                "What int8 costs",
                pareto,
                "Loss of PSNR over the share of multiply-adds in int8, and the dearest groups of layers.",
                "Measured when the bundle was built, on the judged calibration frames.",
            )
        )
    return plots


def _variant_tables(found: Comparison) -> list[Table]:
    variants = list(found.variants.values())
    firsts = [v.parting.first if v.parting else None for v in variants]
    cells = {
        "variant": [v.precision + " (flies)" * (v.precision == found.chosen) for v in variants],
        **columns(variants),
        "unclear, same": [f"{v.routing.close_same} of {v.routing.close}" for v in variants if v.routing],
        "int8": [f"{v.int8_mac_share:.1%}" for v in variants],
        "parts first in": [first.name if first else "nowhere" for first in firsts],
    }
    about = "Unclear choices, where PyTorch's experts are less than 0.001 apart, are counted apart. "
    unclear = about if cells["unclear, same"] else ""
    runs_in = "; ".join(f"{v.precision}: {v.runs_in}" for v in variants)
    losses = [(v.precision, *(f"{r.psnr_drop_db:.4f}" for r in v.tasks.values())) for v in variants]
    tables = [
        _table("Every variant against PyTorch", cells, f"{unclear}Computed here in: {runs_in}."),
        Table("Loss of PSNR by degradation, dB", ("variant", *variants[0].tasks), tuple(losses)),
    ]
    layers = max(len(v.routing.layers) for v in variants)
    if layers:
        shares = tuple(
            (v.precision, *(f"{100 * same / pairs:.2f}" if pairs else "none clear" for pairs, same in v.routing.layers))
            for v in variants
        )
        heads = ("variant", *(f"layer {n + 1}" for n in range(layers)))
        tables.append(Table("Same experts by layer, %", heads, shares))
    worst = [(v.precision, tile) for v in variants for tile in v.worst]
    several = any(tile.line or tile.sample for _, tile in worst)
    cells = {
        "variant": [precision for precision, _ in worst],
        "cube": [tile.cube for _, tile in worst],
        "degradation": [tile.task for _, tile in worst],
        "line": [str(tile.line) for _, tile in worst if several],
        "sample": [str(tile.sample) for _, tile in worst if several],
        "RMS distance, share of range": [f"{tile.distance:.1e}" for _, tile in worst],
    }
    return [*tables, _table("The tiles least like PyTorch", cells)]


def _band_psnr(case: Case) -> list[float]:
    return [float(v) for v in psnr_per_band(case.restored, case.truth)]


def _row(
    case: Case, before: Quality | None, after: Quality, pixels: list[tuple[int, int]], wavelengths: list[float] | None
) -> Row:
    stretch = stretch_limits(case.truth, wavelengths)
    size = case.truth.shape[1:]
    pictures = []
    cubes = [] if case.degraded is None else [("degraded", case.degraded)]
    for label, cube in (*cubes, ("restored", case.restored), ("truth", case.truth)):
        image = marked(fitted(rgb(cube, wavelengths, stretch), shortest=256), pixels, (size[0], size[1]))
        pictures.append(Picture(label, png_bytes(image), f"{label} cube in natural colours, {case.task}"))
    error, limit = error_map(case.restored, case.truth)
    scale = ColourScale("0", f"{figure_text(limit, 2)} or more")
    pictures.append(
        Picture("error", png_bytes(fitted(error, shortest=256)), f"mean error over bands, {case.task}", scale)
    )
    note = f"{after.psnr:.1f} dB out"
    if before is not None:
        note = f"{before.psnr:.1f} dB in, {note} ({after.psnr - before.psnr:+.1f} dB)"
    return Row(case.task, tuple(pictures), note)


def _accuracy(results: Mapping[str, TaskResult]) -> Table:
    told = results.values()
    comes = any(r.input for r in told)
    cells = {
        "degradation": list(results),
        "PSNR in, dB": ["-" if r.input is None else f"{r.input.psnr:.2f}" for r in told if comes],
        "PSNR out, dB": [f"{r.engine.psnr:.2f}" for r in told],
        "PSNR by band, dB": [f"{r.engine.band_psnr:.2f}" for r in told],
        "SSIM": [f"{r.engine.ssim:.4f}" for r in told],
        "SAM, degrees": [f"{r.engine.sam:.3f}" for r in told],
        "ERGAS, %": [f"{r.engine.ergas:.2f}" for r in told],
    }
    return _table("The engine against the truth", cells)


def _against_pytorch(results: Mapping[str, TaskResult]) -> Table:
    told = results.values()
    tiled = any(r.tiled for r in told)
    cells = {
        "degradation": list(results),
        "PyTorch, dB": [f"{r.pytorch.psnr:.3f}" for r in told],
        "engine, dB": [f"{r.engine.psnr:.3f}" for r in told],
        "loss, dB": [f"{r.psnr_drop_db:.5f}" for r in told],
        "SAM rise, degrees": [f"{r.sam_rise_deg:.5f}" for r in told],
        "largest difference": [f"{r.max_difference:.1e}" for r in told],
        "same experts, %": [f"{100 * r.routing.agreement:.1f}" for r in told if r.routing],
        "tiling costs, dB": [f"{r.tiling_drop_db:.3f}" for r in told if tiled],
    }
    note = (
        "Both went through the same tiles, blending and metrics; the last column is what tiling costs PyTorch, below "
        "zero where tiles come out better."
        if tiled
        else ""
    )
    return _table("The engine against PyTorch", cells, note)


def _table(title: str, cells: Mapping[str, Sequence[str]], note: str = "") -> Table:
    """Of {head: column}, without the columns that are empty."""
    shown = {head: column for head, column in cells.items() if column}
    return Table(title, tuple(shown), tuple(zip(*shown.values(), strict=True)), note)


def _built(bundle: Bundle) -> tuple[Fact, ...]:
    m, network = bundle.manifest, bundle.manifest.network
    files = {**m.files, **(bundle.contents.made.files if bundle.contents.made else {})}
    scale = "none" if m.scale is None else f"{m.scale:g} stands for 1.0, from the {m.scale_from}"
    versions = ", ".join(f"{k} {v}" for k, v in m.tools.items())
    return (
        Fact("network", f"{network.architecture}, {network.parameters / 1e6:.2f} M parameters, {network.checkpoint}"),
        Fact("target", m.target.name, f"engine {m.target.engine}"),
        Fact("precision", bundle.choice.precision, bundle.choice.why),
        Fact("frame", plane_text(m.signature.measured), f"overlap {m.overlap}" * (m.signature.tiling == "free")),
        Fact("scale of integer cubes", scale),
        Fact("checkpoint, SHA-256", network.checkpoint_sha256),
        Fact("versions", versions),
        Fact("bytes", f"{np.sum([f.bytes for f in files.values()], dtype=int):,} in {len(files)} files"),
    )
