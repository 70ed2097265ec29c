"""Builds a bundle's engine on the target itself, and proves it there before the bundle changes."""

from __future__ import annotations

import hashlib
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from export.tensorrt import build as builder
from export.tensorrt import known_bad
from export.tensorrt.build import EngineMade, Request
from runtime.bundle import MANIFEST, golden_difference, verified_bundle
from runtime.durable import write_bytes
from runtime.engines import Built, Engine, EngineOptions, open_engine
from runtime.engines.cuda import compute_capability, gpu_model
from runtime.errors import BundleError, DeployError, InputError, MachineError
from runtime.manifest import EngineFile, FileRecord, Golden, Manifest, Precision, dump
from runtime.signature import Signature

from .. import console
from ..checking.gates import CLEARLY
from .engine import build_with_progress, distrust_timings, engine_files, engine_record

PROOFS = 12
"""Times that the golden frame is restored where precisions are compared; engines are not open side by side, since a
board may have no memory for two."""


@dataclass(frozen=True)
class Device:
    """What finalising asks of the computer it runs on; the real one is `THIS_DEVICE`.

    Attributes:
        version: version of the builder for a request; raises MachineError where it may not be used.
        present: compute capability of the GPU, or None.
        build: (graph, request, work folder) -> engine.
        open: (name, engine file, spec, options) -> engine.
        model: model of the GPU, more than its compute capability tells; or None.
    """

    version: Callable[[Request], str]
    present: Callable[[], str | None]
    build: Callable[[bytes, Request, Path], EngineMade]
    open: Callable[[str, bytes, Signature, EngineOptions], Engine]
    model: Callable[[], str | None] = gpu_model


def _version(request: Request) -> str:
    return str(builder.builder_version(request))


THIS_DEVICE = Device(_version, compute_capability, build_with_progress, open_engine)


def finalize(
    folder: Path, *, allow_known_bad: bool = False, rebuild: bool = False, device: Device = THIS_DEVICE
) -> dict[str, Any]:
    """Build, prove and install the engine of the bundle in `folder`; returns what `--json` prints.

    Raises:
        BundleError: the bundle is damaged, or needs no engine.
        MachineError: this computer is not the target, its builder may not be used, or the build failed.
        GateError: the engine does not restore the golden frame; the bundle stays as it was.
    """
    manifest, files = verified_bundle(folder)
    if manifest.deferred is None and not (rebuild and manifest.engine is not None):
        if manifest.engine is None:
            raise BundleError(
                "its engine loads the graph, there is nothing to build",
                file=folder,
                key="finalize",
                remedy="use it as it is",
            )
        remedy = "use it as it is, or build it again with --rebuild"
        raise BundleError("its engine is built already", file=folder, key="finalize", remedy=remedy)
    target = manifest.target
    if target.sm is None:
        raise BundleError("its target has no GPU", file=folder, key="target.sm", remedy="build the bundle again")
    request: Request = builder.Request(target.engine, target.sm, target.workspace_mib or 1024, target.tensorrt)
    version = device.version(request)
    _refuse_other_gpu(target.name, target.sm, device.present())
    precision = manifest.precision.chosen
    console.say(f"bundle     {manifest.network.checkpoint} for {target.name}, {precision}")
    console.say(f"builder    {request.kind} {version}, SM {request.sm}")
    work = _workplace(folder)
    if rebuild:
        distrust_timings(work)
    made = _Making(folder, manifest, files, request, version, device, allow_known_bad)
    best = made.proved(precision, work)
    best, why, timed = _faster(made, best, work)
    reports = known_bad.matching(known_bad.TABLE, request.kind, version, request.sm, best.precision)
    facts = {
        "seconds": best.made.seconds,
        "peak_mib": best.made.peak_mib,
        "bytes": len(best.made.data),
        "golden_difference": best.difference,
        **({"precision_choice_ms": timed} if timed else {}),
        **({"known_bad_allowed": [report.source for report in reports]} if reports else {}),
        "finalized": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    complete = manifest.model_copy(
        update={
            "engine": best.record,
            "deferred": None,
            "precision": Precision(chosen=best.precision, why=why),
            "golden": _golden(manifest, best.precision),
            "evidence": {**manifest.evidence, "engine": facts},
        }
    )
    install(folder, complete, engine_files(best.record, best.made))
    shutil.rmtree(work, ignore_errors=True)
    console.say(
        f"engine     {len(best.made.data) / 2**20:.1f} MiB, built in {best.made.seconds:.1f} s; golden frame within "
        f"{best.difference:.1e} of the range (at most {complete.golden.tolerance:.1e})",
        "bold green",
    )
    return {
        "bundle": str(folder),
        "engine": best.record.path,
        "builder": request.kind,
        "version": version,
        "precision": {"chosen": best.precision, "why": why},
        **facts,
        "runs_on": best.described,
    }


@dataclass(frozen=True)
class _Proved:
    """An engine that restores the golden frame, and the median time that it took."""

    precision: str
    made: EngineMade
    record: EngineFile
    difference: float
    milliseconds: float
    described: dict[str, str]


@dataclass(frozen=True)
class _Making:
    """What an engine of this bundle is built from, whatever its precision."""

    folder: Path
    manifest: Manifest
    files: dict[str, bytes]
    request: Request
    version: str
    device: Device
    allow_known_bad: bool

    def proved(self, precision: str, work: Path) -> _Proved:
        """Build the engine of a precision and prove it. Raises DeployError."""
        manifest, request, device, version = self.manifest, self.request, self.device, self.version
        if not self.allow_known_bad:
            known_bad.refuse_known_bad(request.kind, version, request.sm, precision)
        for report in known_bad.matching(known_bad.WATCHED, request.kind, version, request.sm, precision):
            console.warn(f"{request.kind} {version}: {report.what} ({report.source})")
        graph = self.files[manifest.graphs[precision]]
        made = device.build(graph, request, work)
        model = device.model()
        record = engine_record(made, request, hashlib.sha256(graph).hexdigest()).model_copy(update={"gpu": model})
        threads = manifest.target.threads
        options = EngineOptions(threads, precision, Built(record.builder, record.version, record.sm, model))
        held = manifest.model_copy(update={"golden": _golden(manifest, precision)})
        try:
            with (
                console.progress(f"proving the {precision} engine"),
                device.open(manifest.target.engine, made.data, manifest.signature, options) as engine,
            ):
                times = []
                for _ in range(PROOFS if manifest.precision.rivals else 1):
                    began = time.perf_counter()
                    difference = golden_difference(engine, held, self.files, self.folder)
                    times.append(1000 * (time.perf_counter() - began))
                described = engine.describe()
        except DeployError:
            builder.forget_engine(work)
            distrust_timings(work)
            raise
        # The first frame also makes what an engine makes once.
        return _Proved(precision, made, record, difference, statistics.median(times[1:] or times), described)


def _faster(made: _Making, best: _Proved, work: Path) -> tuple[_Proved, str, dict[str, float]]:
    """The fastest of the chosen precision and its rivals, why, and their milliseconds; a rival that fails is left."""
    why = made.manifest.precision.why
    timed: dict[str, float] = {}
    for rival in made.manifest.precision.rivals:
        timed.setdefault(best.precision, round(best.milliseconds, 3))
        place = work / rival
        place.mkdir(exist_ok=True)
        try:
            other = made.proved(rival, place)
        except DeployError as error:
            console.warn(f"{rival} is left out: {error.one_line()}")
            why += f"; on the target {rival} failed: {error.problem}"
            continue
        timed[rival] = round(other.milliseconds, 3)
        ratio = best.milliseconds / other.milliseconds
        faster = other.milliseconds <= CLEARLY * best.milliseconds
        why += f"; on the target {rival} runs at {ratio:.2f} times the speed of {best.precision}"
        why += "" if faster else f", which is not faster: {best.precision} is kept"
        best = other if faster else best
    return best, why, timed


def _golden(manifest: Manifest, precision: str) -> Golden:
    """The golden frame with the tolerance of a precision; raises BundleError where the manifest does not tell it."""
    if precision == manifest.precision.chosen:
        return manifest.golden
    told = manifest.evidence.get(precision)
    tolerance = told.get("golden_tolerance") if isinstance(told, dict) else None
    if not isinstance(tolerance, float) or not 0 < tolerance <= 1 or precision not in manifest.graphs:
        raise BundleError(
            "does not tell how exact this precision must be", key=f"evidence.{precision}", remedy="build it again"
        )
    return manifest.golden.model_copy(update={"tolerance": tolerance})


def install(folder: Path, manifest: Manifest, files: dict[str, bytes]) -> Manifest:
    """Give a bundle that is in use another engine: its files first, the manifest that lists them last and at once.

    Files of the engine before, which have other names, go after the manifest that listed them.
    """
    before = verified_bundle(folder)[0].engine
    old = {before.path, before.layers, before.log} - {None, *files} if before else set()
    records = {n: FileRecord(sha256=hashlib.sha256(d).hexdigest(), bytes=len(d)) for n, d in files.items()}
    kept = {n: r for n, r in manifest.files.items() if n not in old}
    complete = manifest.model_copy(update={"files": {**kept, **records}})
    try:
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(folder / name, data)
        write_bytes(folder / MANIFEST, dump(complete))
        for name in filter(None, old):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot be written: {error.strerror or error}", file=folder, remedy="free space, or give write permission"
        ) from error
    return complete


def _refuse_other_gpu(target: str, sm: str, present: str | None) -> None:
    if present is None:
        raise MachineError(
            "this computer has no GPU that CUDA can use",
            key="target",
            value=target,
            remedy=f"run it on the target, whose GPU has SM {sm}",
        )
    if present != sm:
        raise MachineError(
            f"this computer's GPU is not the target's: SM {present}, not {sm}",
            key="target",
            value=target,
            remedy="run it on the target, or build the bundle for this computer",
        )


def _workplace(folder: Path) -> Path:
    """A hidden folder beside the bundle, where a build that was stopped waits to go on."""
    absolute = folder.absolute()
    work = absolute.with_name(f".{absolute.name}.finalizing")
    try:
        work.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot be written: {error.strerror or error}", file=work, remedy="give write permission beside the bundle"
        ) from error
    return work
