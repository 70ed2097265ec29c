"""The manifest of a bundle: everything a flight computer must know about it, in one JSON file that is its own canon.

The file holds exactly the bytes `dump` writes for its content; a flipped byte anywhere is found.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from .engines.contract import EngineSpec
from .errors import BundleError, plain
from .metrics import METRIC_SETS
from .prompts import TOLERANCES

SCHEMA_VERSION = 1
SEAL = "seal"
LARGEST = 4 << 20
LARGEST_PART = 2 << 30
"""Bytes of one file, which is also what an ONNX file can hold."""

Count = Annotated[int, Field(ge=1, le=1 << 20)]


def _inside(path: str) -> str:
    parts = path.split("/")
    if not path or path.startswith("/") or "\\" in path or "\0" in path or any(p in ("", ".", "..") for p in parts):
        raise ValueError("must be a relative path inside the bundle")
    return path


InnerPath = Annotated[str, AfterValidator(_inside)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Network(_Part):
    """Which network, and where its weights came from."""

    architecture: str
    configuration: dict[str, Any]
    parameters: Annotated[int, Field(ge=1)]
    checkpoint: str
    checkpoint_sha256: str
    about: str = ""


class FrameSize(_Part):
    """Lines and samples of the engine's frame and what neighbouring frames share."""

    lines: Count
    samples: Count
    overlap: Annotated[int, Field(ge=0, le=1 << 20)]


class TargetMade(_Part):
    """What the bundle was built for."""

    name: str
    engine: str
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    sm: Annotated[str, Field(pattern=r"^[0-9]{1,2}\.[0-9]$")] | None = None
    tensorrt: str | None = None
    workspace_mib: Annotated[int, Field(ge=1, le=1 << 20)] | None = None


class EngineFile(_Part):
    """An engine built for one kind of GPU, and what built it.

    Attributes:
        path: the engine.
        builder: `tensorrt` or `tensorrt-rtx`.
        version: of the builder.
        sm: compute capability that it was built for.
        gpu: model of the GPU that it was built and proved on; None where it was built ahead of time.
        graph_sha256: the graph that it was built from.
        options: what the builder was told.
        layers: list of its layers (JSON), where there is one.
        log: what the builder said.
    """

    path: InnerPath
    builder: str
    version: Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+){1,4}$")]
    sm: Annotated[str, Field(pattern=r"^[0-9]{1,2}\.[0-9]$")]
    gpu: Annotated[str, Field(max_length=300)] | None = None
    graph_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    options: dict[str, Any]
    layers: InnerPath | None = None
    log: InnerPath | None = None


class Precision(_Part):
    """The precision of the graph that runs, and why it is that one.

    Attributes:
        rivals: precisions that passed their gates as well and were not timed yet: the target chooses the fastest when
            it builds its engine.
    """

    chosen: str
    why: str
    rivals: list[str] = []


class Golden(_Part):
    """A recorded frame and what it must become, as .npy files, with the largest difference allowed (share of range)."""

    frame: InnerPath
    metrics: InnerPath
    restored: InnerPath
    gates: InnerPath
    tolerance: Annotated[float, Field(gt=0, le=1)]


class FileRecord(_Part):
    """Size and hash of a file of the bundle."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0, le=LARGEST_PART)]


class Manifest(_Part):
    """Content of `manifest.json`.

    Attributes:
        scale: digital number that stands for 1.0 in integer cubes, or None.
        scale_from: who said so: flag, config, model.
        graphs: precision -> ONNX file.
        evidence: what was measured when the bundle was built.
        files: every other file of the bundle.
        engine: the engine file, where the target's engine needs one and it was built.
        deferred: why it was not built, where it is to be built on the target.
        metrics_graph: ONNX file that computes the metrics of a frame in the target's engine; None where NumPy does.
    """

    schema_version: int
    created: str
    tools: dict[str, str]
    network: Network
    bands: Count
    wavelengths: list[float] | None
    metric_set: str
    metrics: Count
    layers: Count
    experts: Count
    frame: FrameSize
    scale: Annotated[float, Field(gt=0)] | None
    scale_from: str | None
    target: TargetMade
    precision: Precision
    graphs: dict[str, InnerPath]
    golden: Golden
    evidence: dict[str, Any]
    files: dict[InnerPath, FileRecord]
    engine: EngineFile | None = None
    deferred: str | None = None
    metrics_graph: InnerPath | None = None

    @model_validator(mode="after")
    def _agrees(self) -> Manifest:
        names = METRIC_SETS.get(self.metric_set)
        if names is None or len(names) != self.metrics:
            raise ValueError(f"metric set {plain(self.metric_set)!r} does not have {self.metrics} metrics")
        if self.metrics_graph is not None and not TOLERANCES.keys() >= set(names):
            raise ValueError(f"no graph computes the metrics of {self.metric_set}")
        if 2 * self.frame.overlap > min(self.frame.lines, self.frame.samples):
            raise ValueError("frames overlap by more than half of their side")
        if sum(record.bytes for record in self.files.values()) > 2 * LARGEST_PART:
            raise ValueError("the files are larger than a bundle can be")
        if self.wavelengths is not None and len(self.wavelengths) != self.bands:
            raise ValueError(f"{len(self.wavelengths)} wavelengths for {self.bands} bands")
        return self

    def spec(self) -> EngineSpec:
        """Shapes of the engine."""
        return EngineSpec(self.bands, self.frame.lines, self.frame.samples, self.metrics, self.layers, self.experts)


def dump(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`."""
    content = manifest.model_dump(mode="json")
    content[SEAL] = hashlib.sha256(_canonical(content)).hexdigest()
    return _canonical(content)


def parse(data: bytes, *, file: object) -> Manifest:
    """Read `manifest.json`.

    Raises:
        BundleError: it is damaged, altered, or of a version this program does not know.
    """
    if len(data) > LARGEST:
        raise BundleError("the manifest is too large", file=file, value=len(data), remedy="build the bundle again")
    try:
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BundleError("the manifest is not JSON", file=file, value=error, remedy="copy the bundle again") from error
    if not isinstance(content, dict):
        raise BundleError("the manifest is not a mapping", file=file, remedy="copy the bundle again")
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise BundleError(
            "the manifest's version is not known here",
            file=file,
            key="schema_version",
            value=version,
            remedy=f"this program reads version {SCHEMA_VERSION}; update it or build the bundle again",
        )
    seal = content.pop(SEAL, None)
    try:
        sealed = hashlib.sha256(_canonical(content)).hexdigest() == seal
        intact = sealed and _canonical({**content, SEAL: seal}) == data
        # Half a character is legal JSON and no text: nothing can print it.
        json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise BundleError(
            "the manifest was altered or damaged", file=file, key=SEAL, remedy="copy or build the bundle again"
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise BundleError(
            f"the manifest is wrong: {first['msg'].removeprefix('Value error, ')}",
            file=file,
            key=".".join(map(str, first["loc"])) or None,
            remedy="build the bundle again",
        ) from error


def _canonical(content: dict[str, Any]) -> bytes:
    text = json.dumps(content, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False)
    return (text + "\n").encode("ascii")
