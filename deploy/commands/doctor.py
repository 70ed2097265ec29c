"""`deploy doctor`: what this machine can do, and what is wrong with its installation."""

from __future__ import annotations

import ctypes
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

import deploy
from runtime.errors import InputError, MachineError

from .. import __version__, console
from .options import examples, json_option

if TYPE_CHECKING:
    from runtime.board_jetpack import JetPack

Outcome = Literal["ok", "absent", "wrong"]
ARAVIS = "libaravis-0.8.so.0"
ENOUGH_SOCKET = 16 << 20
"""Some fifty lines of 640 x 224 in 16 bits: what comes while everything else has its turn."""
MARKS: dict[Outcome, tuple[str, str]] = {"ok": ("✓", "green"), "absent": ("-", "yellow"), "wrong": ("✗", "bold red")}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    outcome: Outcome
    text: str


@click.command(epilog=examples("deploy doctor", "deploy doctor --json"))
@json_option
def command() -> dict[str, Any]:
    """Tell what this machine can do; exit 3 when the installation is broken or no engine is installed."""
    from runtime.board_jetpack import read_jetpack

    trusted, trust = _trust()
    jetpack = read_jetpack()
    findings = [*_machine(), *jetpack_findings(jetpack), _installation(), *_engines(), *trusted, *_stream()]
    findings += [_archives(), *_ground()]
    for finding in findings:
        mark, style = MARKS[finding.outcome]
        console.say(f"{mark} {finding.name:<27} {finding.text}", style)
    wrong = [f for f in findings if f.outcome == "wrong"]
    if wrong:
        raise MachineError(f"{wrong[0].name}: {wrong[0].text}", key=wrong[0].name, remedy="mend it and run again")
    return {
        "ok": True, "findings": [asdict(f) for f in findings], "trust": trust, "jetpack": jetpack and asdict(jetpack),
    }  # fmt: skip


def _machine() -> list[Finding]:
    from runtime.files.disk import available_memory
    from runtime.machine import available_cores

    cores = available_cores()
    return [
        Finding("damp-deploy", "ok", f"{__version__}, Python {platform.python_version()}"),
        Finding("machine", "ok", f"{platform.machine()}, {cores} cores, {available_memory() / 2**30:.1f} GiB free"),
    ]


def jetpack_findings(jetpack: JetPack | None, python: str | None = None) -> list[Finding]:
    """What a Jetson stands on; nothing on other machines.

    Args:
        jetpack: as it was read.
        python: `3.10` or the like, this one where it is left out: JetPack's TensorRT loads in its own Python alone.
    """
    if jetpack is None:
        return []
    running = python or ".".join(platform.python_version_tuple()[:2])
    name = f"JetPack {jetpack.version}" if jetpack.version else "a JetPack that is not known here"
    facts = [f"L4T {jetpack.l4t}" if jetpack.l4t else "", f"nvidia-jetpack {jetpack.package or 'is not installed'}"]
    facts += [f"its TensorRT is {jetpack.tensorrt}"] if jetpack.tensorrt else []
    told = f"{name}: {', '.join(filter(None, facts))}"
    if jetpack.python and jetpack.python != running:
        return [Finding("jetpack", "absent", f"{told}, for Python {jetpack.python} alone: this is {running}")]
    return [Finding("jetpack", "ok", told)]


def _installation() -> Finding:
    # `runtime` is a common name: another package of that name must not fly in our place.
    import runtime

    here = Path(runtime.__file__ or "").resolve().parent
    ours = Path(deploy.__file__).resolve().parent.parent / "runtime"
    if here != ours:
        return Finding("installation", "wrong", f"`runtime` is {here}, not this distribution's {ours}")
    try:
        distribution("damp-deploy")
    except PackageNotFoundError:
        return Finding("installation", "absent", f"used from {ours.parent}, not installed")
    return Finding("installation", "ok", f"runtime is {here}")


def _engines() -> list[Finding]:
    from runtime.engines import available_engines, extra_of
    from runtime.engines.cuda import compute_capability

    found = available_engines()
    findings = [
        Finding(f"engine {name}", "ok" if v else "absent", v or _remedy(name, extra_of(name)))
        for name, v in found.items()
    ]
    gpu = compute_capability()
    findings.append(Finding("gpu", "ok" if gpu else "absent", f"SM {gpu}" if gpu else "none that CUDA can use"))
    if not any(found.values()):
        findings.append(Finding("engines", "wrong", 'none is installed; pip install "damp-deploy[cpu]"'))
    return findings


def _remedy(engine: str, extra: str) -> str:
    from runtime.engines.tensorrt_libraries import REMEDIES

    remedy = REMEDIES.get(engine) or (f'pip install "damp-deploy[{extra}]"' if extra else "")
    return f"not installed: {remedy}" if remedy else "not installed"


def _trust() -> tuple[list[Finding], dict[str, Any]]:
    """Whose bundles are opened here and what signs engines, for people and for `--json`."""
    from runtime.secret_key import device_key
    from runtime.signing import key_name
    from runtime.trust import NO_KEYRING, trust_here

    library, ring, key = find_spec("cryptography") is not None, NO_KEYRING, None
    try:
        ring = trust_here()
        many = "1 key, which" if len(ring.keys) == 1 else f"{len(ring.keys)} keys, one of which"
        told = f"{ring.place}: {many} must have signed a bundle" if ring.keys else "none: bundles need no signature"
        keyring = Finding("keyring", "ok" if ring.keys else "absent", told)
    except InputError as error:
        keyring = Finding("keyring", "wrong", error.one_line())
    if library:
        signatures = Finding("signatures", "ok", f"cryptography {version('cryptography')}")
    else:
        told = 'not installed: pip install "damp-deploy[signing]"'
        signatures = Finding("signatures", "wrong" if ring.keys else "absent", told)
    try:
        key = device_key()
        own = Finding("device key", "absent", "none: engines that are built here are not signed")
        if key is not None:
            foreign = bool(ring.keys) and key.public.value not in {known.value for known in ring.keys}
            told = ", which is not in the keyring: engines that it signs are refused here" if foreign else ""
            own = Finding("device key", "absent" if foreign else "ok", key_name(key.id) + told)
    except ModuleNotFoundError:
        own = Finding("device key", "absent", f"cannot be read: {signatures.text}")
    except InputError as error:
        # It is root's, as it should be, and who asks is not.
        unread = isinstance(error.__cause__, PermissionError)
        own = Finding("device key", "absent" if unread else "wrong", error.one_line())
    return [keyring, signatures, own], {
        "keyring": ring.place or None, "keys": len(ring.keys), "signature_needed": bool(ring.keys),
        "device_key": key and key_name(key.id), "cryptography": library,
    }  # fmt: skip


def _stream() -> list[Finding]:
    """What `deploy stream` can use: cameras, and who else may be told."""
    try:
        ctypes.CDLL(ARAVIS)
    except OSError:
        cameras = Finding("cameras", "absent", "Aravis is not installed: apt install libaravis-0.8-0")
    else:
        limit = socket_limit()
        told = "" if limit is None else f"; a socket may buffer {limit / 2**20:.1f} MiB"
        small = limit is not None and limit < ENOUGH_SOCKET
        advice = ", little for a fast GigE camera: raise net.core.rmem_max" if small else ""
        cameras = Finding("cameras", "ok", f"Aravis{told}{advice}")
    missing = [name for name in ("prometheus_client", "zmq", "spacepackets") if find_spec(name) is None]
    if missing:
        return [cameras, Finding("publishing", "absent", 'not installed: pip install "damp-deploy[stream]"')]
    return [cameras, Finding("publishing", "ok", "Prometheus, ZeroMQ, CCSDS packets")]


def _archives() -> Finding:
    """What `deploy archive` needs."""
    if find_spec("distributed") is None:
        return Finding("archives", "absent", 'Dask is not installed: pip install "damp-deploy[archive]"')
    links = "TLS" if find_spec("cryptography") else 'no TLS: pip install "damp-deploy[signing]"'
    return Finding("archives", "ok", f"Dask distributed {version('distributed')}, {links}")


def socket_limit(root: Path = Path("/")) -> int | None:
    """The most bytes that a socket may ask to buffer (net.core.rmem_max, socket(7)); None where it is not told."""
    try:
        return int((root / "proc/sys/net/core/rmem_max").read_text())
    except (OSError, ValueError):
        return None


def _ground() -> list[Finding]:
    findings = []
    for name, extra in (("torch", "export"), ("onnx", "export"), ("safetensors", "export"), ("matplotlib", "report")):
        if find_spec(name) is None:
            findings.append(Finding(name, "absent", f'not installed: pip install "damp-deploy[{extra}]"'))
        else:
            findings.append(Finding(name, "ok", version(name)))
    if all(find_spec(name) for name in ("torch", "safetensors")):
        from export.networks import packaged_models

        findings.append(Finding("models", "ok", ", ".join(packaged_models()) or "none"))
    return findings
