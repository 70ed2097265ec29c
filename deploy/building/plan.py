"""What fixes a bundle, and the folder in which an unfinished build of it waits to go on."""

import hashlib
import json
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from glob import escape
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from export.targets import Target
from runtime.errors import InputError

from .. import __version__
from ..folders import ours_alone

TOOLS = (
    "numpy", "scipy", "torch", "onnx", "onnxscript", "onnxruntime", "openvino", "polygraphy", "tensorrt",
    "tensorrt-rtx-cu13-bindings", "nvidia-modelopt",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """All that fixes a bundle: same plan, same bundle (but for time, rounding and what a builder measures).

    Attributes:
        configuration: of the network, with what its options made of it.
        engine: the engine that runs on the target, or `auto` for the fastest of those that run the graph here.
        precision: of the graph that runs.
        options: that the network was loaded with.
        lines, samples, overlap: size of a frame and what neighbours share.
        scale: digital number that stands for 1.0 in integer cubes, or None.
        wavelengths: of the bands in nm, or empty.
        half: what is neither int8 nor a float32 island is FP16: on targets with a GPU.
        calibration: hash of the calibration frames, or None.
        limits: of gates and search, as JSON.
        tools: versions of what the build used.
        prompts: hash of the constant prompts.
    """

    checkpoint_sha256: str
    configuration: dict[str, Any]
    options: dict[str, Any]
    lines: int
    samples: int
    overlap: int
    target: Target
    engine: str
    precision: str
    scale: float | None
    wavelengths: tuple[float, ...]
    half: bool
    calibration: str | None
    limits: str
    tools: dict[str, str]
    prompts: str

    def recipe(self) -> str:
        """Short hash of the plan."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def used_tools() -> dict[str, str]:
    """{tool: version} of what is installed here and used by a build."""
    tools = {"damp-deploy": __version__, "python": platform.python_version()}
    installed = {(d.metadata["Name"] or "").lower().replace("_", "-"): d.version for d in distributions()}
    return tools | {name: installed[name] for name in TOOLS if name in installed}


@contextmanager
def workplace(out: Path, plan: Plan) -> Iterator[Path]:
    """A hidden folder beside `out` for this plan; those that other plans for the same `out` left are removed."""
    work = out.with_name(f".{out.name}.building-{plan.recipe()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot be written: {error.strerror or error}", file=out, key="--out", remedy="give a folder you may write"
        ) from error
    for other in out.parent.glob(f".{escape(out.name)}.building-*"):
        if other != work:
            with suppress(InputError), ours_alone(other):
                shutil.rmtree(other, ignore_errors=True)
    with ours_alone(work):
        yield work
