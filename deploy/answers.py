"""How a command line ends: words for people, one object for machines, an exit code."""

import errno
import json
import os
import sys
import tempfile
import traceback
from contextlib import suppress
from typing import Any, NoReturn

import click

from runtime.errors import DeployError, GateError, MachineError

from . import console

BUG, INTERRUPTED = 70, 130
COMPLETE = "_DEPLOY_COMPLETE"
"""What the shell sets when it asks for completion."""


def leave(outcome: dict[str, Any] | DeployError) -> NoReturn:
    """End the process at once, with the words and the exit code of `run`: some thread will never end by itself.

    Nothing is unwound: a library that hangs may hang again when it is closed.
    """
    as_json = console.for_machines
    code = failed(outcome, as_json) if isinstance(outcome, DeployError) else done(outcome, as_json)
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def done(result: dict[str, Any], as_json: bool) -> int:
    return _print_json({**result, "warnings": list(console.warnings)}, 0) if as_json else 0


def failed(error: DeployError, as_json: bool) -> int:
    console.complain(f"deploy: error: {error.one_line()}")
    if as_json:
        figures = error.result if isinstance(error, GateError) else None
        done = {**error.report, "warnings": list(console.warnings)} if error.report else {}
        told = {**done, "error": error.as_json(), **({"result": figures} if figures else {})}
        return _print_json(told, error.exit_code)
    return error.exit_code


def ended(code: int, text: str, as_json: bool) -> int:
    console.complain(f"deploy: {text}")
    if as_json:
        empty = {"file": None, "line": None, "key": None, "value": None, "remedy": ""}
        kind = "Interrupted" if code == INTERRUPTED else "Bug"
        return _print_json({"error": {"code": code, "kind": kind, "message": text, **empty}}, code)
    return code


def _print_json(content: dict[str, Any], code: int) -> int:
    """Print it; returns the exit code, which still says how it went where the reader has gone."""
    try:
        click.echo(json.dumps(content, allow_nan=False))
    except OSError as error:
        console.discard(sys.stdout)
        if error.errno not in (errno.EPIPE, errno.EIO):
            console.complain(f"deploy: error: the result cannot be written: {error.strerror or error}")
            return code or MachineError.exit_code
    return code


def of_bug(error: Exception) -> str:
    """What to say of an error that nobody expected; its traceback goes to a file that this names."""
    descriptor, name = tempfile.mkstemp(prefix="deploy-", suffix=".log")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write("".join(traceback.format_exception(error)))
    return f"a bug of ours: {type(error).__name__}; please report it with {name}"


EXTRAS = {
    "torch": "export", "jinja2": "export", "onnx": "export", "onnxscript": "export", "safetensors": "export",
    "skimage": "report", "sklearn": "report", "pywt": "report", "matplotlib": "report",
    "pyvips": "photographs", "av": "video",
    "cryptography": "signing",
    "dask": "archive", "distributed": "archive",
    "rasterio": "products", "zarr": "zarr", "numcodecs": "zarr", "google_crc32c": "zarr",
    "zmq": "stream", "spacepackets": "stream", "prometheus_client": "stream",
}  # fmt: skip
"""Package -> the extra that brings it."""
BUILDER = ("export.tensorrt", "export.targets", "deploy.finalizing")
"""What builds engines is used on targets too, and needs no PyTorch there."""


def missing_package(error: ModuleNotFoundError) -> MachineError | None:
    """What to install for a package that is not there; None where it is none of ours to bring."""
    name = (error.name or "").partition(".")[0]
    if name not in EXTRAS:
        return None
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    if name == "onnx" and any(frame.startswith(BUILDER) for frame in frames):
        remedy = 'it is needed to build engines: pip install "damp-deploy[tensorrt]", or [rtx] for an RTX card'
        return MachineError(f"{name} is not installed on this machine", key="tensorrt", remedy=remedy)
    extra = EXTRAS[name]
    where = "it is needed on the ground only: " if extra == "export" else ""
    return MachineError(
        f"{name} is not installed on this machine", key=extra, remedy=f'{where}pip install "damp-deploy[{extra}]"'
    )
