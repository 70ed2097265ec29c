"""`deploy finalize`: builds a bundle's engine on the target itself, and proves it there before the bundle changes."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runtime.bundle import MANIFEST, golden_difference, verified_bundle
from runtime.durable import write_bytes
from runtime.engines import Built, Engine, EngineOptions, EngineSpec, open_engine
from runtime.engines.cuda import compute_capability, gpu_model
from runtime.errors import BundleError, DeployError, InputError, MachineError
from runtime.manifest import FileRecord, Manifest, dump

from . import console
from .engine_step import build_with_progress, distrust_timings, engine_files, engine_record
from .options import examples, ground, json_option, remote_options
from .remote import finalize_remotely, parse_remote

if TYPE_CHECKING:
    # The ground's: imported where they are used, so that a flight computer can show this command's help.
    from export.tensorrt.build import EngineMade, Request


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
    open: Callable[[str, bytes, EngineSpec, EngineOptions], Engine]
    model: Callable[[], str | None] = gpu_model


def _version(request: Request) -> str:
    return str(ground("export.tensorrt.build").builder_version(request))


THIS_DEVICE = Device(_version, compute_capability, build_with_progress, open_engine)


@click.command(epilog=examples("deploy finalize bundle", "deploy finalize orin --remote pilot@orin --json"))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--allow-known-bad", is_flag=True, help="Build with a TensorRT that is reported to compute wrongly.")
@click.option("--rebuild", is_flag=True, help="Build the engine again where there is one.")
@remote_options
@json_option
def command(
    bundle: Path,
    allow_known_bad: bool,
    rebuild: bool,
    remote: str | None,
    remote_command: str,
    ssh_config: Path | None,
) -> dict[str, Any]:
    """Build a bundle's engine on this computer, its target, and prove it on the golden frame.

    The bundle changes last and at once: a build that is stopped or fails leaves it as it was, and the same command
    goes on. With --remote all this happens on the target, where this toolkit is installed, and the bundle here is
    replaced by what was built and proved there.
    """
    if remote is not None:
        flags = [name for name, given in (("--allow-known-bad", allow_known_bad), ("--rebuild", rebuild)) if given]
        return finalize_remotely(bundle, parse_remote(remote, remote_command, ssh_config), flags=tuple(flags))
    return finalize(bundle, allow_known_bad=allow_known_bad, rebuild=rebuild)


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
    request: Request = ground("export.tensorrt.build").Request(
        target.engine, target.sm, target.workspace_mib or 1024, target.tensorrt
    )
    version = device.version(request)
    _refuse_other_gpu(target.name, target.sm, device.present())
    bad, precision = ground("export.tensorrt.known_bad"), manifest.precision.chosen
    if not allow_known_bad:
        bad.refuse_known_bad(request.kind, version, request.sm, precision)
    for report in bad.matching(bad.WATCHED, request.kind, version, request.sm, precision):
        console.warn(f"{request.kind} {version}: {report.what} ({report.source})")
    console.say(f"bundle     {manifest.network.checkpoint} for {target.name}, {precision}")
    console.say(f"builder    {request.kind} {version}, SM {request.sm}")
    graph = files[manifest.graphs[precision]]
    work = _workplace(folder)
    building = ground("export.tensorrt.build")
    if rebuild:
        distrust_timings(work)
    made = device.build(graph, request, work)
    model = device.model()
    record = engine_record(made, request, hashlib.sha256(graph).hexdigest()).model_copy(update={"gpu": model})
    options = EngineOptions(target.threads, precision, Built(record.builder, record.version, record.sm, model))
    try:
        with (
            console.progress("proving the engine"),
            device.open(target.engine, made.data, manifest.spec(), options) as engine,
        ):
            difference = golden_difference(engine, manifest, files, folder)
            described = engine.describe()
    except DeployError:
        building.forget_engine(work)
        distrust_timings(work)
        raise
    reports = bad.matching(bad.TABLE, request.kind, version, request.sm, precision)
    facts = {
        "seconds": made.seconds,
        "peak_mib": made.peak_mib,
        "bytes": len(made.data),
        "golden_difference": difference,
        **({"known_bad_allowed": [report.source for report in reports]} if reports else {}),
        "finalized": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    complete = manifest.model_copy(
        update={"engine": record, "deferred": None, "evidence": {**manifest.evidence, "engine": facts}}
    )
    install(folder, complete, engine_files(record, made))
    shutil.rmtree(work, ignore_errors=True)
    console.say(
        f"engine     {len(made.data) / 2**20:.1f} MiB, built in {made.seconds:.1f} s; golden frame within "
        f"{difference:.1e} of the range (at most {manifest.golden.tolerance:.1e})",
        "bold green",
    )
    return {
        "bundle": str(folder),
        "engine": record.path,
        "builder": request.kind,
        "version": version,
        **facts,
        "runs_on": described,
    }


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
