"""Builds a bundle's engine on the target itself, and proves it there before `made.json` says so."""

import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from export.tensorrt import build as builder
from export.tensorrt import known_bad
from export.tensorrt.build import EngineMade, Request
from runtime.board_names import refuse_other_board
from runtime.bundle_files import Contents, install_engine, replaceable_bundle, verified_bundle
from runtime.engines import ENGINE_FILES, Built, Engine, EngineOptions, open_engine
from runtime.engines.cuda import compute_capability, gpu_model
from runtime.engines.onnx_guard import check_graph
from runtime.errors import BundleError, DeployError, InputError, MachineError
from runtime.golden import golden_difference, golden_feeds
from runtime.made import Choice
from runtime.manifest import Precision
from runtime.parity import told
from runtime.precisions import CLEARLY
from runtime.secret_key import DEVICE_KEY, SecretKey, device_key
from runtime.signature import Signature
from runtime.signing import key_name
from runtime.trust import Trust, trust_here

from .. import console
from ..folders import ours_alone
from .engine import EngineStep, build_with_progress, distrust_timings, engine_of

TIMES = 11
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


THIS_DEVICE = Device(builder.builder_version, compute_capability, build_with_progress, open_engine)


def finalize(
    folder: Path,
    *,
    allow_known_bad: bool = False,
    rebuild: bool = False,
    device: Device = THIS_DEVICE,
    trust: Trust | None = None,
) -> dict[str, Any]:
    """Build, prove and install the engine of the bundle in `folder`; returns what `--json` prints.

    What it made is signed with the key of this computer, where it has one, and must be where there is a keyring.

    Raises:
        BundleError: the bundle is damaged, not signed as it must be, or needs no engine.
        InputError: the keyring or the computer's own key cannot be used.
        MachineError: this computer is not the target, its builder may not be used, or the build failed.
        GateError: the engine does not restore the golden frame; the bundle stays as it was.
    """
    trust = trust_here() if trust is None else trust
    bundle = replaceable_bundle(folder, trust) if rebuild else verified_bundle(folder, trust)
    manifest, target = bundle.manifest, bundle.manifest.target
    refuse_other_board(manifest, folder)
    key = _own_key(trust)
    if target.engine not in ENGINE_FILES:
        problem = "its engine loads the graph, there is nothing to build"
        raise BundleError(problem, file=folder, key="finalize", remedy="use it as it is")
    if bundle.made is not None and not rebuild:
        remedy = "use it as it is, or build it again with --rebuild"
        raise BundleError("its engine is built already", file=folder, key="finalize", remedy=remedy)
    if target.sm is None:
        raise BundleError("its target has no GPU", file=folder, key="target.sm", remedy="build the bundle again")
    request = Request(target.engine, target.sm, target.workspace_mib or 1024, target.tensorrt)
    # First the GPU: elsewhere than on the target no builder is of any use.
    _refuse_other_gpu(target.name, target.sm, device.present())
    version = device.version(request)
    console.say(f"bundle     {manifest.network.checkpoint} for {target.name}, {manifest.precision.chosen}")
    console.say(f"builder    {request.kind} {version}, SM {request.sm}")
    with ours_alone(folder.absolute().with_name(f".{folder.absolute().name}.finalizing")) as work:
        if rebuild:
            distrust_timings(work)
        proved = partial(_proved, folder, bundle, request, version, device, allow_known_bad)
        best, why, timed = _fastest(proved, manifest.precision, work)
        reports = known_bad.matching(known_bad.TABLE, request.kind, version, request.sm, best.precision)
        facts = {
            **best.step.facts,
            "golden_difference": best.difference,
            **({"precision_choice_ms": timed} if timed else {}),
            **({"known_bad_allowed": [report.source for report in reports]} if reports else {}),
            "finalized": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "runs_on": best.described,
        }
        tolerance = manifest.tolerances[best.precision]
        choice = Choice(precision=best.precision, why=why, tolerance=tolerance, engine=best.step.record)
        install_engine(folder, bundle, choice, facts, best.step.files, trust=trust, key=key)
        shutil.rmtree(work, ignore_errors=True)
    console.say(
        f"engine     {facts['bytes'] / 2**20:.1f} MiB, built in {facts['seconds']:.1f} s; golden frame within "
        f"{told(best.difference, manifest.golden.truth is not None, best.precision)} (at most {tolerance:.1e})",
        "bold green",
    )
    return {
        "bundle": str(folder),
        "engine": best.step.record and best.step.record.path,
        "builder": request.kind,
        "version": version,
        "precision": {"chosen": best.precision, "why": why},
        "signed": key and key_name(key.id),
        **facts,
    }


def _own_key(trust: Trust) -> SecretKey | None:
    """What this computer signs with. Raises InputError, before the long work, where nobody would take it."""
    key = device_key()
    if trust.keys and key is None:
        problem = "this computer has no key to sign its engine with, which the keyring asks for"
        raise InputError(problem, file=DEVICE_KEY, remedy=f"deploy keygen --no-password; its .pub into {trust.place}")
    if trust.keys and key is not None and key.public.value not in {known.value for known in trust.keys}:
        problem = "this computer's own key is not in the keyring, so its engine would be refused"
        raise InputError(problem, key=key_name(key.id), remedy=f"put its .pub into {trust.place}")
    return key


@dataclass(frozen=True)
class _Proved:
    """An engine that restores the golden frame, and the median time that it took."""

    precision: str
    step: EngineStep
    difference: float
    milliseconds: float
    described: dict[str, str]


def _proved(
    folder: Path, bundle: Contents, request: Request, version: str, device: Device, allow_known_bad: bool,
    precision: str, work: Path,
) -> _Proved:  # fmt: skip
    """Build the engine of a precision and prove it. Raises DeployError."""
    manifest = bundle.manifest
    if not allow_known_bad:
        known_bad.refuse_known_bad(request.kind, version, request.sm, precision)
    for report in known_bad.matching(known_bad.WATCHED, request.kind, version, request.sm, precision):
        console.warn(f"{request.kind} {version}: {report.what} ({report.source})")
    path = manifest.graphs[precision]
    graph = bundle.files[path]
    check_graph(graph, manifest.cost, file=folder / path)
    made, model = device.build(graph, request, work), device.model()
    options = EngineOptions(manifest.target.threads, precision, Built(request.kind, made.version, request.sm, model))
    try:
        with (
            console.progress(f"proving the {precision} engine"),
            device.open(manifest.target.engine, made.data, manifest.signature, options) as engine,
        ):
            difference = golden_difference(engine, bundle, precision, folder)
            feeds, times = golden_feeds(bundle, manifest.signature, folder), []
            for _ in range(TIMES if manifest.precision.rivals else 1):
                began = time.perf_counter()
                engine.infer(feeds)
                times.append(1000 * (time.perf_counter() - began))
            described = engine.describe()
    except DeployError:
        builder.forget_engine(work)
        distrust_timings(work)
        raise
    step = engine_of(made, request, graph, model)
    return _Proved(precision, step, difference, statistics.median(times), described)


def _fastest(
    proved: Callable[[str, Path], _Proved], told: Precision, work: Path
) -> tuple[_Proved, str, dict[str, float]]:
    """The fastest of the chosen precision and its rivals, why, and their milliseconds; a rival that fails is left."""
    best, why = proved(told.chosen, work), told.why
    timed: dict[str, float] = {}
    for rival in told.rivals:
        timed.setdefault(best.precision, round(best.milliseconds, 3))
        place = work / rival
        place.mkdir(exist_ok=True)
        try:
            other = proved(rival, place)
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


def _refuse_other_gpu(target: str, sm: str, present: str | None) -> None:
    if present == sm:
        return
    problem, remedy = "this computer has no GPU that CUDA can use", f"run it on the target, whose GPU has SM {sm}"
    if present is not None:
        problem = f"this computer's GPU is not the target's: SM {present}, not {sm}"
        remedy = "run it on the target, or build the bundle for this computer"
    raise MachineError(problem, key="target", value=target, remedy=remedy)
