"""What `deploy check` and `deploy demo` found, as the content of a report."""

from __future__ import annotations

import numpy as np

from runtime.manifest import Manifest

from .check import GATES, Case, GateResult, TaskResult
from .pictures import (
    band_psnr_plot,
    error_map,
    experts_plot,
    fitted,
    marked,
    png_bytes,
    rgb,
    spectra_plot,
    stretch_limits,
)
from .report import Case as Row
from .report import ColourScale, Command, Fact, Gate, Picture, Plot, Report, Table, Verdict, figure_text

MEANINGS = {
    "max_difference": ("Largest difference", "Share of the output's range, at the worst value of all cubes."),
    "psnr_drop_db": ("Loss of PSNR, dB", "How much further from the truth the engine is than PyTorch."),
    "sam_rise_deg": ("Rise of spectral angle, degrees", "How much more the engine bends spectra than PyTorch."),
    "routing_agreement": ("Same experts chosen", "Share of tiles and layers in which both chose the same experts."),
}
SHOWN_PIXELS = ((0.25, 0.3), (0.5, 0.62), (0.75, 0.4))


def check_report(
    manifest: Manifest, results: list[TaskResult], gates: list[GateResult], cases: list[Case], checkpoint: str
) -> Report:
    """The page of `deploy check`."""
    commands = (
        Command(f"deploy build --target {manifest.target.name} --checkpoint {checkpoint}", "builds the bundle"),
        Command(
            f"deploy check BUNDLE --checkpoint {checkpoint} --report report.html", "measures it and writes this page"
        ),
    )
    return assemble(f"{checkpoint} on {manifest.target.name}", manifest, results, gates, cases, commands)


def assemble(
    title: str,
    manifest: Manifest,
    results: list[TaskResult],
    gates: list[GateResult],
    cases: list[Case],
    commands: tuple[Command, ...],
    summary: tuple[Fact, ...] = (),
    lead: str = "",
    shown: tuple[Case, TaskResult] | None = None,
) -> Report:
    """A page: verdict, gates, pictures, spectra, tables, what was built, how to repeat it.

    Args:
        shown: a cube that was restored beside the checked ones, pictured first.
    """
    pictured = [*([shown] if shown else []), *zip(cases, results, strict=True)]
    first = pictured[0][0]
    failed = [g for g in gates if g.passed is False]
    judged = [g for g in gates if g.passed is not None]
    if failed:
        verdict = Verdict(
            "failed", "The engine does not restore as PyTorch does. Do not fly this bundle.", failed[0].key
        )
    elif judged:
        verdict = Verdict("passed", lead or "The engine restores as PyTorch does.", "Every accuracy gate passed.")
    else:
        verdict = Verdict("unjudged", lead or "Every accuracy gate is switched off.")
    wavelengths = manifest.wavelengths
    pixels = [(int(a * first.truth.shape[1]), int(b * first.truth.shape[2])) for a, b in SHOWN_PIXELS]
    plots = [
        Plot(
            f"Spectra, {first.task}",
            spectra_plot(
                {"degraded": first.degraded, "restored": first.restored, "truth": first.truth},
                pixels,
                wavelengths,
                scale="share of full scale",
            ),
            "Spectra of the numbered pixels: degraded, restored and truth.",
            "The numbered rings in the pictures above show where.",
        ),
        Plot(
            "Quality of every band",
            band_psnr_plot({r.task: _band_psnr(r, cases) for r in results}, wavelengths),
            "PSNR of the restored cube, band by band, for every degradation.",
        ),
        Plot(
            "Experts that the network chose",
            experts_plot({c.task: c.gates.reshape(-1, *c.gates.shape[-2:]).mean(axis=0) for c in cases}),
            "Gates of the experts per layer and degradation, averaged over tiles.",
        ),
    ]
    return Report(
        title=title,
        subtitle=manifest.network.about,
        verdict=verdict,
        summary=summary,
        gates=tuple(_gate(g) for g in gates),
        cases=tuple(_row(case, result, pixels, wavelengths) for case, result in pictured),
        plots=tuple(plots),
        tables=(_accuracy(results), _against_pytorch(results)),
        built=_built(manifest),
        commands=commands,
        footnotes=(
            "The scenes are simulated; the truth is what an ideal sensor without optics, noise or faults would see.",
            "Where bands were lost, PSNR, SSIM and spectral angle are taken over the lost bands only.",
        ),
    )


def _band_psnr(result: TaskResult, cases: list[Case]) -> list[float]:
    from calibration.quality import psnr_per_band

    case = next(c for c in cases if c.task == result.task)
    return [float(v) for v in psnr_per_band(case.restored, case.truth)]


def _row(case: Case, result: TaskResult, pixels: list[tuple[int, int]], wavelengths: list[float] | None) -> Row:
    stretch = stretch_limits(case.truth, wavelengths)
    size = case.truth.shape[1:]
    pictures = []
    for label, cube in (("degraded", case.degraded), ("restored", case.restored), ("truth", case.truth)):
        image = marked(fitted(rgb(cube, wavelengths, stretch), shortest=256), pixels, (size[0], size[1]))
        pictures.append(Picture(label, png_bytes(image), f"{label} cube in natural colours, {case.task}"))
    error, limit = error_map(case.restored, case.truth)
    scale = ColourScale("0", f"{figure_text(limit, 2)} or more")
    pictures.append(
        Picture("error", png_bytes(fitted(error, shortest=256)), f"mean error over bands, {case.task}", scale)
    )
    gain = result.engine.psnr - result.input.psnr
    note = f"{result.input.psnr:.1f} dB in, {result.engine.psnr:.1f} dB out ({gain:+.1f} dB)"
    return Row(case.task, tuple(pictures), note)


def _gate(gate: GateResult) -> Gate:
    name, meaning = MEANINGS[gate.key]
    limit = "off" if gate.limit is None else f"{GATES[gate.key][0]} {gate.limit:g}"
    return Gate(name, figure_text(gate.measured, 3), limit, gate.passed, meaning)


def _accuracy(results: list[TaskResult]) -> Table:
    rows = tuple(
        (
            r.task,
            f"{r.input.psnr:.2f}",
            f"{r.engine.psnr:.2f}",
            f"{r.engine.band_psnr:.2f}",
            f"{r.engine.ssim:.4f}",
            f"{r.engine.sam:.3f}",
            f"{r.engine.ergas:.2f}",
        )
        for r in results
    )
    columns = ("degradation", "PSNR in, dB", "PSNR out, dB", "PSNR by band, dB", "SSIM", "SAM, degrees", "ERGAS, %")
    return Table("The engine against the truth", columns, rows)


def _against_pytorch(results: list[TaskResult]) -> Table:
    rows = tuple(
        (
            r.task,
            f"{r.pytorch.psnr:.3f}",
            f"{r.engine.psnr:.3f}",
            f"{r.psnr_drop_db:.5f}",
            f"{r.sam_rise_deg:.5f}",
            f"{r.max_difference:.1e}",
            f"{100 * r.routing_agreement:.1f}",
            f"{r.tiling_drop_db:.3f}",
        )
        for r in results
    )
    columns = (
        "degradation",
        "PyTorch, dB",
        "engine, dB",
        "loss, dB",
        "SAM rise, degrees",
        "largest difference",
        "same experts, %",
        "tiling costs, dB",
    )
    note = (
        "Both went through the same tiles, blending and metrics; the last column is what tiling costs PyTorch itself."
    )
    return Table("The engine against PyTorch", columns, rows, note)


def _built(m: Manifest) -> tuple[Fact, ...]:
    network = m.network
    scale = "none" if m.scale is None else f"{m.scale:g} stands for 1.0, from the {m.scale_from}"
    versions = ", ".join(f"{k} {v}" for k, v in m.tools.items())
    return (
        Fact("network", f"{network.architecture}, {network.parameters / 1e6:.2f} M parameters, {network.checkpoint}"),
        Fact("target", m.target.name, f"engine {m.target.engine}"),
        Fact("precision", m.precision.chosen, m.precision.why),
        Fact(
            "frame",
            f"{m.bands} bands x {m.frame.lines} lines x {m.frame.samples} samples",
            f"overlap {m.frame.overlap}",
        ),
        Fact("scale of integer cubes", scale),
        Fact("checkpoint, SHA-256", network.checkpoint_sha256),
        Fact("versions", versions),
        Fact("bytes", f"{np.sum([f.bytes for f in m.files.values()], dtype=int):,} in {len(m.files)} files"),
    )
