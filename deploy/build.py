"""`deploy build`: a trained network in, a bundle out."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from glob import escape
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import click
import numpy as np

from runtime.bundle import MANIFEST, array_bytes, install_bundle, write_bundle
from runtime.durable import write_bytes
from runtime.errors import CheckpointError, DeployError, InputError, MachineError
from runtime.manifest import SCHEMA_VERSION, FrameSize, Golden, Manifest, Network, Precision, TargetMade

from . import __version__, console
from .config import Config, with_overrides
from .options import config_option, examples, ground, json_option, parse_size, read_config, refuse_existing
from .targets import known_targets

GOLDEN_SLACK = 5.0
"""The golden frame may differ by this many times the export's limit: other processors round differently."""
GOLDEN_ARRAYS = ("frame", "metrics", "restored", "gates")
PROBE_DEGRADATIONS = ("noise", "blur", "inpaint", "bandloss")
TOOLS = ("numpy", "scipy", "torch", "onnx", "onnxscript", "onnxruntime")
EXPORTED = ("fp32",)
"""Precisions that a graph can be written in."""


@dataclass(frozen=True)
class Plan:
    """All that fixes a bundle: same plan, same bundle (but for time and rounding)."""

    checkpoint_sha256: str
    top_k: int
    lines: int
    samples: int
    overlap: int
    target: str
    engine: str
    threads: int | None
    precision: str
    scale: float | None
    wavelengths: tuple[float, ...]
    tools: dict[str, str]

    def recipe(self) -> str:
        """Short hash of the plan."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


@click.command(
    epilog=examples(
        "deploy build --target cpu --checkpoint damp-tiny --out build/bundle",
        "deploy build --target cpu --checkpoint model.pth --top-k 1 --size 256x320 --scale 4095",
        "deploy build --config deploy.yaml --replace",
    )
)
@click.option("--target", help="What to build for.  [default: cpu]")
@click.option("--checkpoint", help="A .pth or .safetensors, or the name of a packaged model.")
@click.option("--top-k", type=int, help="Experts that run for a frame; asked for where the checkpoint does not tell.")
@click.option("--size", help="Lines x samples of a frame.  [default: 256x256]")
@click.option("--overlap", type=int, help="Lines and samples that neighbouring tiles share.  [default: 32]")
@click.option("--precision", help="fp32, fp16, bf16, int8 or auto.  [default: the target's own]")
@click.option("--scale", type=float, help="Digital number that stands for 1.0 in cubes of integers.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the bundle.  [default: build/bundle]")
@click.option("--replace", is_flag=True, help="Replace what is at --out.")
@config_option
@json_option
def command(
    target: str | None,
    checkpoint: str | None,
    top_k: int | None,
    size: str | None,
    overlap: int | None,
    precision: str | None,
    scale: float | None,
    out: Path | None,
    replace: bool,
    config_file: Path | None,
) -> dict[str, Any]:
    """Build a bundle: export the network, prove the graph against PyTorch, write everything that flies.

    Flags win over --config. A build that was stopped goes on when it is started again with the same recipe.
    """
    config = read_config(config_file, checkpoint_given=checkpoint is not None)
    flags = {
        "target": target,
        "model.checkpoint": checkpoint,
        "model.top_k": top_k,
        "input.frame": parse_size(size),
        "input.overlap": overlap,
        "precision": precision,
        "input.scale": scale,
    }
    return build(with_overrides(config, flags), out, replace=replace, scale_flag=scale is not None)


def build(config: Config, out: Path | None, *, replace: bool = False, scale_flag: bool = False) -> dict[str, Any]:
    """Build what `config` says into the folder `out`; returns what `--json` prints. Raises DeployError."""
    if config.model.checkpoint is None:
        raise InputError(
            "no checkpoint is given",
            key="model.checkpoint",
            remedy="give --checkpoint, or a deploy.yaml that names one",
        )
    out = (out or Path(config.output.dir or "build/bundle")).absolute()
    refuse_existing(out, replace)
    _refuse_foreign(out)
    targets = ground("export.targets")
    target = targets.find_target(config.target, known_targets(config))
    precision, why = targets.choose_precision(target, config.precision)
    if precision not in EXPORTED:
        raise MachineError(
            f"graphs are written in {', '.join(EXPORTED)} only",
            key="precision",
            value=precision,
            remedy=f"build with --precision {EXPORTED[0]}",
        )
    with console.progress("loading the checkpoint"):
        networks = ground("export.networks")
        net = networks.load_checkpoint(config.model.checkpoint, config.model.top_k)
    frame = config.input.frame
    onnx = ground("export.onnx")
    onnx.check_size(net, frame.lines, frame.samples)
    _check_bands(config, net)
    scale, scale_from = _scale(config, net, scale_flag)
    wavelengths = tuple(config.input.wavelengths or net.facts.wavelengths)
    plan = Plan(
        net.facts.sha256,
        net.config.top_k,
        frame.lines,
        frame.samples,
        config.input.overlap,
        target.name,
        target.engine,
        target.threads,
        precision,
        scale,
        wavelengths,
        _tools(),
    )
    console.say(f"network    {_described(net)}")
    console.say(f"frame      {net.config.bands} bands x {frame.lines} lines x {frame.samples} samples")
    console.say(f"precision  {precision} ({why})")
    console.say(f"scale      {_scale_text(scale, scale_from)}")
    work = _workplace(out, plan)
    try:
        graph, seconds = _exported(net, plan, work)
        with console.progress("comparing the graph with PyTorch") as moved:
            probes = onnx.diverse_probes(net, *probe_frames(net.config.bands, plan, net.config.metric_set))
            agreement = onnx.compare(net, graph, probes, moved)
        finished = work / "bundle"
        shutil.rmtree(finished, ignore_errors=True)
        manifest = _manifest(net, plan, why, scale_from, agreement)
        write_bundle(finished, {_graph_path(plan): graph.data, **_golden_files(net, probes[0])}, manifest)
        install_bundle(finished, out, replace=replace)
    except DeployError:
        # A graph that failed is not worth going on with; one that was interrupted is.
        shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work, ignore_errors=True)
    console.say(
        f"graph      {graph.nodes} nodes, opset {graph.opset}; differs from PyTorch by at most "
        f"{agreement.difference:.1e} of the range (limit {agreement.limit:.1e}), "
        f"{agreement.choices} sets of experts exercised"
    )
    if agreement.limit > onnx.LIMIT:
        console.warn(
            f"PyTorch itself is {agreement.rounding:.1e} of the range off float64 with these weights, so the limit is "
            f"{agreement.limit:.1e} instead of {onnx.LIMIT:.1e}"
        )
    console.say(f"bundle     {_shown(out)}", "bold green")
    return {
        "bundle": str(out),
        "target": target.name,
        "precision": {"chosen": precision, "why": why},
        "scale": scale,
        "scale_from": scale_from,
        "export_seconds": round(seconds, 2),
        "engine": None,
        "deferred": None,
        "onnx": {precision: {"path": _graph_path(plan), "nodes": graph.nodes, "opset": graph.opset}},
        "agreement": asdict(agreement),
    }


def _manifest(net: Any, plan: Plan, why: str, scale_from: str | None, agreement: Any) -> Manifest:
    return Manifest(
        schema_version=SCHEMA_VERSION,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        tools=plan.tools,
        network=Network(
            architecture=ground("export.networks").architecture_of(net).ARCHITECTURE,
            configuration=json.loads(json.dumps(net.config.as_dict())),
            parameters=sum(p.numel() for p in net.parameters()),
            checkpoint=net.facts.file.name,
            checkpoint_sha256=net.facts.sha256,
            about=net.facts.about,
        ),
        bands=net.config.bands,
        wavelengths=list(plan.wavelengths) or None,
        metric_set=net.config.metric_set,
        metrics=net.config.metrics,
        layers=net.config.layers,
        experts=net.config.experts,
        frame=FrameSize(lines=plan.lines, samples=plan.samples, overlap=plan.overlap),
        scale=plan.scale,
        scale_from=scale_from,
        target=TargetMade(name=plan.target, engine=plan.engine, threads=plan.threads),
        precision=Precision(chosen=plan.precision, why=why),
        graphs={plan.precision: _graph_path(plan)},
        golden=Golden(
            **{name: f"golden/{name}.npy" for name in GOLDEN_ARRAYS},
            tolerance=min(1.0, GOLDEN_SLACK * agreement.limit),
        ),
        evidence={"export": asdict(agreement)},
        files={},
    )


def probe_frames(bands: int, plan: Plan, metric_set: str) -> tuple[list[Any], list[Any]]:
    """Degraded frames [1, bands, lines, samples] of a simulated scene, and their metrics [1, M]."""
    from calibration.degradations import DEGRADATIONS
    from runtime.metrics import prompt_metrics
    from runtime.sources.simulator import simulate_scene

    wavelengths = plan.wavelengths if len(plan.wavelengths) == bands else None
    scene = simulate_scene(0, bands, plan.lines, plan.samples, wavelengths).truth
    frames, metrics = [], []
    for index, name in enumerate(PROBE_DEGRADATIONS):
        degraded = DEGRADATIONS[name](scene, np.random.default_rng([0, index]))
        frames.append(np.ascontiguousarray(degraded[None]))
        metrics.append(prompt_metrics(degraded, metric_set)[None])
    return frames, metrics


def _graph_path(plan: Plan) -> str:
    return f"graphs/{plan.precision}.onnx"


def _exported(net: Any, plan: Plan, work: Path) -> tuple[Any, float]:
    """The graph, from an unfinished build of the same plan where there is one, and the seconds its export took."""
    onnx = ground("export.onnx")
    graph_file, facts_file = work / "graph.onnx", work / "graph.json"
    try:
        facts, data = json.loads(facts_file.read_bytes()), graph_file.read_bytes()
        if hashlib.sha256(data).hexdigest() == facts["sha256"]:
            found = onnx.Graph(data, int(facts["nodes"]), int(facts["opset"]))
            console.say("going on with an unfinished build: its graph is used again")
            return found, float(facts["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        # No unfinished build, or a damaged one: the graph is exported anew.
        facts_file.unlink(missing_ok=True)
    began = time.monotonic()
    with console.progress("exporting the graph"):
        graph = onnx.export_graph(net, plan.lines, plan.samples)
    seconds = time.monotonic() - began
    write_bytes(graph_file, graph.data)
    facts = {
        "sha256": hashlib.sha256(graph.data).hexdigest(),
        "nodes": graph.nodes,
        "opset": graph.opset,
        "seconds": seconds,
    }
    write_bytes(facts_file, json.dumps(facts).encode())
    return graph, seconds


def _refuse_foreign(out: Path) -> None:
    """Raise InputError where what `--replace` would remove is neither a bundle nor an empty folder."""
    ours = not out.is_symlink() and out.is_dir() and ((out / MANIFEST).is_file() or not any(out.iterdir()))
    if os.path.lexists(out) and not ours:
        raise InputError(
            "is not a bundle and is not replaced", file=out, key="--out", remedy="give another --out, or move it away"
        )


def _workplace(out: Path, plan: Plan) -> Path:
    """A hidden folder beside `out` for this plan; those of other plans for the same `out` are removed."""
    work = out.with_name(f".{out.name}.building-{plan.recipe()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for other in out.parent.glob(f".{escape(out.name)}.building-*"):
            if other != work:
                shutil.rmtree(other, ignore_errors=True)
        work.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot be written: {error.strerror or error}", file=out, key="--out", remedy="give a folder you may write"
        ) from error
    return work


def _golden_files(net: Any, probe: tuple[Any, Any]) -> dict[str, bytes]:
    frame, metrics = probe
    engine = ground("export.torch_engine").TorchEngine(net, *frame.shape[2:])
    restored, gates = engine.infer(frame, metrics)
    arrays = zip(GOLDEN_ARRAYS, (frame, metrics, restored, gates), strict=True)
    return {f"golden/{name}.npy": array_bytes(array) for name, array in arrays}


def _check_bands(config: Config, net: Any) -> None:
    bands, told = net.config.bands, config.input
    if told.bands is not None and told.bands != bands:
        raise CheckpointError(
            f"the configuration says {told.bands} bands, the checkpoint restores {bands}",
            file=net.facts.file,
            key="input.bands",
            remedy="correct input.bands or give the checkpoint of this sensor",
        )
    if told.wavelengths is not None and len(told.wavelengths) != bands:
        raise CheckpointError(
            f"{len(told.wavelengths)} wavelengths are given, the checkpoint restores {bands} bands",
            file=net.facts.file,
            key="input.wavelengths",
            remedy="give one wavelength per band",
        )


def _scale(config: Config, net: Any, flag: bool) -> tuple[float | None, str | None]:
    if config.input.scale is not None:
        return config.input.scale, "flag" if flag else "config"
    if net.facts.scale is not None:
        return net.facts.scale, "model"
    return None, None


def _scale_text(scale: float | None, origin: str | None) -> str:
    if scale is None:
        return "none: cubes of integers will need --scale, cubes of floats pass as they are"
    return f"{scale:g} stands for 1.0 in cubes of integers (from the {origin})"


def _described(net: Any) -> str:
    parameters = sum(p.numel() for p in net.parameters())
    return (
        f"{net.facts.file.name}: {parameters / 1e6:.2f} M parameters, {net.config.metric_set}, {net.config.gate} gate, "
        f"top-{net.config.top_k} of {net.config.experts}"
    )


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _tools() -> dict[str, str]:
    tools = {"damp-deploy": __version__, "python": platform.python_version()}
    installed = {d.metadata["Name"]: d.version for d in distributions()}
    return tools | {name: installed[name] for name in TOOLS if name in installed}
