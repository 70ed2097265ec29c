"""A build from its order to a bundle in its place."""

import dataclasses
import json
import shutil
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from export import networks, targets
from export import onnx as exporting
from export.metrics import PromptMetrics
from export.networks import Network
from export.tensorrt import build as builder
from runtime.bundle_files import TOP, install_bundle, install_engine, verified_bundle, write_bundle
from runtime.engines import ENGINE_FILES, GPU_ENGINES, PORTABLE
from runtime.engines.onnx_cost import Cost, cost_of
from runtime.errors import CheckpointError, GateError, InputError, MachineError
from runtime.files.disk import available_memory
from runtime.made import Choice
from runtime.manifest import Golden, Manifest, NamedPrompt, NetworkMade, Precision, TargetMade
from runtime.parity import told
from runtime.precisions import PRECISIONS
from runtime.signature import Signature
from runtime.trust import NO_KEYRING

from .. import console
from ..config import Config, with_overrides
from ..config.sections import OutputSection
from ..finalizing.engine import BUILT_NEXT, EngineStep, engine_step, request_of
from ..finalizing.finalize import THIS_DEVICE, Device, finalize
from ..finalizing.targets import known_targets
from ..folders import refuse_existing, refuse_foreign
from .calibration_frames import open_calibration
from .engines import check_engine, check_metrics
from .golden import (
    TRUTH,
    golden_arrays,
    golden_files,
    golden_of,
    golden_tolerance,
    instrument_files,
    instrument_paths,
    prompt_files,
    prompt_paths,
    prompts_digest,
)
from .graphs import Graphs, extractor_graph, make_graphs, measure, metrics_graph, probe_frames
from .plan import Plan, used_tools, workplace
from .precision import Decision
from .variants import decide, make_variants

METRICS_GRAPH, EXTRACTOR_GRAPH = "graphs/metrics.onnx", "graphs/extractor.onnx"
OWN = (*TOP, "graphs", "golden", "instrument", "engine", "report")
"""What a bundle keeps for its own files."""
ARITHMETIC = {"fp16": {"arithmetic": "every FP16 tensor rounded, sums in float32, on the CPU"}}
"""What a manifest says of figures that were not measured in the engine that flies."""


def build(
    config: Config,
    out: Path | None,
    *,
    replace: bool = False,
    scale_flag: bool = False,
    engine: str | None = None,
    metrics: str | None = None,
    device: Device = THIS_DEVICE,
) -> dict[str, Any]:
    """Build what `config` says into the folder `out`; returns what `--json` prints. Raises DeployError.

    Args:
        config: what to build.
        out: where to; `output.dir` of the configuration where it is None.
        replace: replace a bundle that is there.
        scale_flag: the scale was given on the command line.
        engine: another engine than the target's own, or `auto`.
        metrics: `host` or `graph`, what computes the metrics of a frame, instead of the target's own.
        device: this computer, where it is the target itself; the engine is then proved as `deploy finalize` does.
    """
    if config.model.checkpoint is None:
        raise InputError(
            "no checkpoint is given",
            key="model.checkpoint",
            remedy="give --checkpoint, or a deploy.yaml that names one",
        )
    out = (out or Path(config.output.dir or "build/bundle")).absolute()
    refuse_existing(out, replace)
    refuse_foreign(out)
    target = targets.find_target(config.target, known_targets(config))
    precision, why = targets.choose_precision(target, config.precision)
    engine = check_engine(engine, target.engine, precision)
    target = dataclasses.replace(target, metrics=metrics or target.metrics)
    check_metrics(target.metrics, engine)
    gpu, is_built = engine in GPU_ENGINES, engine in ENGINE_FILES
    if gpu and not is_built:
        # What loads the graph itself is locked to no GPU and to no TensorRT, and nothing is left to do there.
        target = dataclasses.replace(target, sm=None, tensorrt=None, made_there=False)
    with console.progress("loading the checkpoint"):
        net: Network = networks.load_checkpoint(config.model.checkpoint, **config.model.said)
    if reason := net.architecture.float32_only(net.module):
        precision, why = targets.only_float32(target, config.precision, reason)
    if precision == "int8" and config.calibration.dir is None:
        raise InputError(
            "int8 needs cubes to choose its ranges from",
            key="--calibration",
            remedy="give a folder of clean cubes of your camera, or `simulated` for simulated scenes",
        )
    config = _framed(config, net)
    frame = config.input.frame
    exporting.check_size(net, frame.lines, frame.samples)
    _check_memory(net, frame.lines, frame.samples)
    _check_bands(config, net)
    signature = net.signature(frame.lines, frame.samples)
    _check_constants(signature)
    # Before the long work: not every set of metrics has a graph.
    module = _metrics_module(signature) if target.metrics == "graph" else None
    scale, scale_from = _scale(config, net, scale_flag)
    uses_int8 = precision == "int8" or (precision == "auto" and "int8" in target.precisions)
    frames = open_calibration(config, net, scale) if uses_int8 else None
    if uses_int8 and frames is None:
        console.warn("without --calibration int8 is left out, and simulated scenes judge the other precisions")
    plan = Plan(
        net.facts.sha256,
        net.configuration,
        net.options,
        frame.lines,
        frame.samples,
        _overlap(config, signature),
        target,
        engine,
        precision,
        scale,
        tuple(config.input.wavelengths or net.wavelengths),
        gpu,
        frames.digest() if frames else None,
        json.dumps([config.gates.model_dump(), config.calibration.max_drop.model_dump()], sort_keys=True),
        used_tools(),
        prompts_digest(net),
    )
    if is_built and not target.made_there:
        # Before the long work: without its builder this machine cannot make the bundle.
        builder.builder_version(request_of(target))
    for doubt in net.facts.doubts:
        console.warn(doubt)
    console.say(f"network    {_described(net)}")
    console.say(f"frame      {signature.measured.bands} bands x {frame.lines} lines x {frame.samples} samples")
    console.say(f"precision  {precision} ({why})")
    console.say(f"scale      {_scale_text(scale, scale_from, signature)}")
    with workplace(out, plan) as work:
        try:
            graphs = make_graphs(net, plan, work)
            variants = make_variants(net, plan, graphs, frames, config, work)
            graphs = variants.graphs
            probes = probe_frames(net, plan)
            decision = decide(net, plan, variants, config, signature, probes[0], work)
            chosen, precision = decision.engine, decision.precision
            if precision == "int8" and variants.judged is not None:
                cubes = len({origin.cube for origin in variants.judged.judge})
                console.say(f"judged     by {cubes} cubes alone: run `deploy check` on others before it flies")
            why = decision.why or why
            plan = dataclasses.replace(plan, precision=precision)
            graphs = graphs.only({precision, *(c.precision for c in decision.candidates if c.passed)})
            # What needs a GPU is held against the golden frame where it runs; its graph is held against PyTorch here.
            agreements, diverse = measure(net, plan, graphs, PORTABLE if gpu else chosen)
            of_metrics, apart = metrics_graph(module, signature, probes, work) if module else (None, None)
            program = graphs.chosen(precision).data
            step = engine_step(plan.target, plan.engine, precision, program, work)
            finished = work / "bundle"
            shutil.rmtree(finished, ignore_errors=True)
            facts = {**variants.facts, "metrics_apart": apart, "engine_choice_ms": decision.milliseconds}
            facts["candidates"] = {c.precision: c.as_json() for c in decision.candidates}
            paths = graphs.paths()
            files = {paths[name]: graph.data for name, graph in graphs.variants.items()}
            files |= {METRICS_GRAPH: of_metrics} if of_metrics else {}
            if signature.embedding is not None:
                files[EXTRACTOR_GRAPH] = extractor_graph(net, signature, probes, work)
            costs = [cost_of(data) for data in files.values()]
            cost = Cost(max(c.peak_bytes for c in costs), max(c.multiply_adds for c in costs))
            tolerances = {name: golden_tolerance(agreement, name) for name, agreement in agreements.items()}
            manifest = _manifest(
                net, plan, why, scale_from, graphs, agreements, decision, facts, step.deferred, config.output, cost
            )
            files |= variants.files | instrument_files(net)
            golden, others = golden_files(net, plan, graphs, diverse, probes, tolerances)
            files |= golden | prompt_files(net, signature)
            manifest = manifest.model_copy(update={"golden": manifest.golden.model_copy(update={"others": others})})
            write_bundle(finished, files, manifest)
            if step.record is not None:
                choice = Choice(precision=precision, why=why, tolerance=manifest.golden.tolerance, engine=step.record)
                begun = verified_bundle(finished, NO_KEYRING)
                install_engine(finished, begun, choice, step.facts, step.files, trust=NO_KEYRING)
        except (GateError, InputError):
            # A graph that failed is not worth going on with; what was interrupted is, and the builder's log is named.
            shutil.rmtree(work, ignore_errors=True)
            raise
        _say_what_was_built(graphs, agreements, step, chosen, decision.milliseconds)
        proved = finalize(finished, device=device, trust=NO_KEYRING) if step.deferred == BUILT_NEXT else None
        install_bundle(finished, out, replace=replace)
        shutil.rmtree(work, ignore_errors=True)
    shown = out.relative_to(Path.cwd()) if out.is_relative_to(Path.cwd()) else out
    console.say(f"bundle     {shown}", "bold green")
    return {
        "bundle": str(out),
        "target": target.name,
        "precision": {"chosen": precision, "why": why},
        "scale": scale,
        "scale_from": scale_from,
        "export_seconds": round(graphs.seconds, 2),
        "engine": proved["engine"] if proved else step.record.path if step.record else None,
        "deferred": None if proved else step.deferred,
        "proved": proved,
        "runs_in": chosen,
        "engine_choice_ms": decision.milliseconds or None,
        "candidates": {c.precision: c.as_json() for c in decision.candidates},
        "calibration": variants.facts.get("quantisation"),
        "onnx": {n: {"path": paths[n], "nodes": g.nodes, "opset": g.opset} for n, g in graphs.variants.items()},
        "agreement": asdict(agreements[precision]),
        "metrics_by": target.metrics,
        "metrics_apart": apart,
    }


def _say_what_was_built(graphs: Graphs, agreements: dict[str, Any], step: EngineStep, chosen: str, times: Any) -> None:
    for name, agreement in agreements.items():
        graph = graphs.chosen(name)
        console.say(
            f"graph      {name}: {graph.nodes} nodes, opset {graph.opset}; differs from PyTorch by at most "
            f"{told(agreement.difference, agreement.parity == 'quality', name)} (limit {agreement.limit:.1e})"
            + (f", {agreement.choices} sets of experts exercised" if agreement.choices else "")
        )
        if agreement.parity == "elements" and agreement.limit > PRECISIONS[name].limit:
            console.warn(
                f"PyTorch itself is {agreement.rounding:.1e} of the range off float64 with these weights, so the limit "
                f"is {agreement.limit:.1e} instead of {PRECISIONS[name].limit:.1e}"
            )
    if times:
        console.say(f"engine     {chosen}: " + ", ".join(f"{name} {ms:.1f} ms" for name, ms in times.items()))
    if step.record is not None:
        console.say(
            f"engine     {step.record.builder} {step.record.version} for SM {step.record.sm}: "
            f"{step.facts['bytes'] / 2**20:.1f} MiB, built in {step.facts['seconds']:.1f} s; it has not run here"
        )
    if step.deferred not in (None, BUILT_NEXT):
        console.say(f"engine     deferred: {step.deferred}")
        console.say("           copy the bundle there and run `deploy finalize BUNDLE`, or build with --remote", "bold")


def _manifest(
    net: Network, plan: Plan, why: str, scale_from: str | None, graphs: Graphs, agreements: dict[str, Any],
    decision: Decision, facts: dict[str, Any], deferred: str | None, output: OutputSection, cost: Cost,
) -> Manifest:  # fmt: skip
    now = datetime.now(timezone.utc)
    agreement, paths = agreements[plan.precision], graphs.paths()
    signature = net.signature(plan.lines, plan.samples)
    target = plan.target
    return Manifest(
        schema_version=Manifest.version,
        created=now.isoformat(timespec="seconds"),
        tools=plan.tools,
        network=NetworkMade(
            architecture=net.architecture.id,
            configuration=json.loads(json.dumps(net.configuration)),
            options={k: v for k, v in net.options.items() if k not in net.architecture.kept},
            parameters=net.parameters,
            checkpoint=net.facts.name,
            checkpoint_sha256=net.facts.sha256,
            about=net.facts.about,
        ),
        signature=signature,
        wavelengths=list(plan.wavelengths) or None,
        overlap=plan.overlap,
        scale=plan.scale,
        scale_from=scale_from,
        target=TargetMade(
            name=target.name,
            engine=decision.engine,
            threads=target.threads,
            sm=target.sm,
            tensorrt=target.tensorrt,
            workspace_mib=target.workspace_mib if target.sm else None,
        ),
        precision=Precision(
            chosen=plan.precision, why=why, rivals={n: golden_tolerance(agreements[n], n) for n in decision.rivals}
        ),
        graphs={**paths, plan.precision: paths[PRECISIONS[plan.precision].graph]},
        golden=Golden(
            arrays=golden_arrays(signature),
            tolerance=golden_tolerance(agreement, plan.precision),
            truth=TRUTH if net.parity == "quality" else None,
        ),
        evidence={
            "export": asdict(agreements["fp32"]),
            **{n: {**asdict(a), **ARITHMETIC.get(n, {})} for n, a in agreements.items() if n != "fp32"},
            **{name: fact for name, fact in facts.items() if fact},
        },
        files={},
        deferred=deferred,
        metrics_graph=METRICS_GRAPH if facts["metrics_apart"] else None,
        extractor_graph=None if signature.embedding is None else EXTRACTOR_GRAPH,
        memory=net.architecture.memory and net.architecture.memory(net.module, plan.lines, plan.samples),
        cost=cost,
        prompts={
            name: NamedPrompt(
                arrays=paths, restored=golden_of(name, net, signature), tasks=list(told.tasks), about=dict(told.about)
            )
            for (name, paths), told in zip(prompt_paths(net, signature).items(), net.conditions.values(), strict=True)
        },
        instrument=instrument_paths(net),
        serial=int(now.timestamp()) if output.serial is None else output.serial,
        compatible=list(output.compatible),
        minimum_runtime=output.minimum_runtime,
    )


def _metrics_module(signature: Signature) -> PromptMetrics:
    metrics = signature.metrics
    if metrics is None:
        raise InputError("the network takes no metrics", key="--metrics", value="graph", remedy="leave it out")
    return PromptMetrics(metrics.of, *signature.measured.shape[1:])


def _framed(config: Config, net: Network) -> Config:
    """With the only frame that a network takes, as one with a mask does, where nobody said a size."""
    only = net.architecture.size(net.module)
    if only is None or "frame" in config.input.model_fields_set:
        return config
    return with_overrides(config, {"input.frame": {"lines": only[0], "samples": only[1]}})


def _overlap(config: Config, signature: Signature) -> int:
    """What frames share; nothing where they have one place only. Raises InputError where it was asked for."""
    told = config.input
    if signature.tiling == "free":
        return min(told.overlap, min(signature.measured.size) // 2)
    if told.overlap and "overlap" in told.model_fields_set:
        raise InputError(
            "frames of this network have one place only and share nothing",
            key="input.overlap",
            value=told.overlap,
            remedy="leave it out",
        )
    return 0


def _check_bands(config: Config, net: Network) -> None:
    signature, told = net.smallest, config.input
    bands, measured = signature.restored.bands, signature.measured.bands
    if told.bands is not None and told.bands != measured:
        raise CheckpointError(
            f"the configuration says {told.bands} bands, the checkpoint restores {measured}",
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


def _check_memory(net: Network, lines: int, samples: int) -> None:
    """Say what the graph will take where that is much, and refuse what is not there. Raises MachineError."""
    if net.architecture.memory is None:
        return
    needed, there = net.architecture.memory(net.module, lines, samples), available_memory()
    told = f"its graph takes about {needed / 2**30:.1f} GiB at {lines}x{samples}"
    if needed > there:
        raise MachineError(
            f"{told}, {there / 2**30:.1f} GiB are free here", key="--size", value=f"{lines}x{samples}",
            remedy="choose a smaller --size: larger pictures are restored in tiles",
        )  # fmt: skip
    if needed > 2**28:
        console.say(f"memory     {told}, in ONNX Runtime on a CPU")


def _check_constants(signature: Signature) -> None:
    for prompt in signature.constants:
        if prompt.of.partition("/")[0] in OWN:
            raise InputError(
                f"the constant {prompt.name} has a path that the bundle keeps for its own files",
                key="signature",
                value=prompt.of,
                remedy=f"give it another one, such as prompts/{prompt.name}.npy",
            )


def _scale(config: Config, net: Network, flag: bool) -> tuple[float | None, str | None]:
    if config.input.scale is not None:
        return config.input.scale, "flag" if flag else "config"
    if net.facts.scale is not None:
        return net.facts.scale, "model"
    return None, None


def _scale_text(scale: float | None, origin: str | None, signature: Signature) -> str:
    if scale is None and signature.measured.kind == "rgb":
        return "of photographs what their type can hold, 255 or 65535; cubes of integers will need --scale"
    if scale is None:
        return "none: cubes of integers will need --scale, cubes of floats pass as they are"
    return f"{scale:g} stands for 1.0 in cubes of integers (from the {origin})"


def _described(net: Network) -> str:
    told = (f"{net.parameters / 1e6:.2f} M parameters", net.architecture.about(net.module), net.facts.place)
    return f"{net.facts.name}: {', '.join(filter(None, told))}"
