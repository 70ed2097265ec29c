"""The manifest of a bundle: everything a flight computer must know about it, in one JSON file that is its own canon.

The ground writes it once, with the bytes that `dump` makes of its content; a flipped byte anywhere is found.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from .engines.onnx_cost import Cost
from .errors import BundleError, InputError
from .prompts import TOLERANCES
from .signature import InnerPath, Name, Signature
from .stated import increasing

MANIFEST, SEAL = "manifest.json", "seal"
LARGEST = 4 << 20
DEEPEST, MOST_VALUES, LARGEST_NUMBER = 16, 100_000, 1 << 63
"""Of what a sealed file may hold: lists within lists, values in all, and whole numbers, of which this is too large."""
LARGEST_PART = 2 << 30
"""Bytes of one file, which is also what an ONNX file can hold."""

Serial = Annotated[int, Field(ge=0, lt=1 << 63)]
BOARD_NAME, VERSION = r"^[A-Za-z0-9][A-Za-z0-9 ._,:+/-]{0,99}$", r"^[0-9]{1,6}(\.[0-9]{1,6}){0,4}$"
Boards = Annotated[list[Annotated[str, Field(pattern=BOARD_NAME)]], Field(max_length=64)]


class Part(BaseModel):
    """A part of what a bundle says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Sealed(Part):
    """The whole content of a sealed file: what errors call it, and the version that this program writes and reads."""

    called: ClassVar[str]
    version: ClassVar[int]
    schema_version: int


Content = TypeVar("Content", bound=Sealed)


class NetworkMade(Part):
    """Which network, with which options it was loaded, and where its weights came from."""

    architecture: str
    configuration: dict[str, Any]
    options: dict[str, Any] = {}
    parameters: Annotated[int, Field(ge=1)]
    checkpoint: str
    checkpoint_sha256: str
    about: str = ""


class TargetMade(Part):
    """What the bundle was built for."""

    name: str
    engine: str
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    sm: Annotated[str, Field(pattern=r"^[0-9]{1,2}\.[0-9]$")] | None = None
    tensorrt: str | None = None
    workspace_mib: Annotated[int, Field(ge=1, le=1 << 20)] | None = None


class Precision(Part):
    """The precision of the graph that runs, and why it is that one.

    Attributes:
        rivals: precisions that passed their gates as well and were not timed yet, with the golden frame's tolerance in
            each: the target chooses the fastest when it builds its engine.
    """

    chosen: str
    why: str
    rivals: dict[str, Annotated[float, Field(gt=0, le=1)]] = {}


class Golden(Part):
    """A recorded frame and what it must become: a .npy file for each tensor of the signature.

    Attributes:
        arrays: {tensor: file}.
        tolerance: largest difference of the restored frame, as a share of its range.
        truth: file of what the restored frame should be, where the tolerance is of its quality alone, in dB of PSNR.
        others: what goes in to choose other experts, and what that becomes: {tensor: file}, in place of those above.
            The frame is another one only where the truth, which is of the golden one, is not needed.
    """

    arrays: dict[str, InnerPath]
    others: Annotated[list[dict[str, InnerPath]], Field(max_length=64)] = []
    truth: InnerPath | None = None
    tolerance: Annotated[float, Field(gt=0, le=1)]


class NamedPrompt(Part):
    """What the network is told of one purpose.

    Attributes:
        arrays: {prompt: file} of the constant prompts.
        restored: file of what the golden frame becomes with them.
        tasks: it is measured by with them.
        about: where they came from.
    """

    arrays: dict[str, InnerPath]
    restored: InnerPath
    tasks: list[str] = []
    about: dict[str, Any] = {}


class FileRecord(Part):
    """Size and hash of a file of the bundle."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0, le=LARGEST_PART)]


class Manifest(Sealed):
    """Content of `manifest.json`.

    Attributes:
        signature: what goes into the graphs and what comes out.
        wavelengths: band centres of what is restored, in nm.
        overlap: lines and samples that neighbouring frames share.
        scale: digital number that stands for 1.0 in integer cubes, or None.
        scale_from: who said so: flag, config, model.
        graphs: precision -> ONNX file.
        evidence: what was measured when the bundle was built.
        files: every file of the bundle but this one and what `made.json` lists.
        deferred: why no engine was built, where it is to be built on the target.
        metrics_graph: ONNX file that computes the metrics of a frame in the target's engine; None where NumPy does.
        extractor_graph: ONNX file that computes the embedding of a frame, where the network takes one.
        memory: bytes that the graph takes in an engine on a CPU, estimated; None where that is little.
        cost: what the most demanding of the graphs asks for, by which they are judged when they are opened.
        prompts: constant prompts by name, where the bundle holds them for several purposes; the signature's own files
            are those of one of them.
        instrument: {name: file} of arrays of the instrument whose frames are restored, such as its mask.
        serial: number that grows from bundle to bundle, so that an older one can be told.
        compatible: names of boards or targets that it is for; none for all.
        minimum_runtime: oldest version of this program that may open it.
    """

    called: ClassVar[str] = "the manifest"
    version: ClassVar[int] = 3
    created: str
    tools: dict[str, str]
    network: NetworkMade
    signature: Signature
    wavelengths: Annotated[list[float], AfterValidator(increasing)] | None
    overlap: Annotated[int, Field(ge=0, le=1 << 20)]
    scale: Annotated[float, Field(gt=0)] | None
    scale_from: str | None
    target: TargetMade
    precision: Precision
    graphs: dict[str, InnerPath]
    golden: Golden
    evidence: dict[str, Any]
    files: dict[InnerPath, FileRecord]
    deferred: str | None = None
    metrics_graph: InnerPath | None = None
    extractor_graph: InnerPath | None = None
    memory: Annotated[int, Field(ge=0)] | None = None
    cost: Cost | None = None
    prompts: dict[Name, NamedPrompt] = {}
    instrument: dict[Name, InnerPath] = {}
    serial: Serial = 0
    compatible: Boards = []
    minimum_runtime: Annotated[str, Field(pattern=VERSION)] | None = None

    @property
    def tolerances(self) -> dict[str, float]:
        """Precision -> how far the golden frame may be off in it, for those that may fly."""
        return {**self.precision.rivals, self.precision.chosen: self.golden.tolerance}

    @property
    def proofs(self) -> list[dict[str, str]]:
        """{tensor: file} of the golden frame: with each of the prompts by name, or the only; with other metrics."""
        golden, restored = self.golden.arrays, self.signature.restored.name
        first = [{**golden, **p.arrays, restored: p.restored} for p in self.prompts.values()] or [golden]
        return [*first, *({**golden, **other} for other in self.golden.others)]

    @property
    def proving(self) -> list[str]:
        """The files that `proofs` needs, and the truth."""
        told = [] if self.golden.truth is None else [self.golden.truth]
        return [*dict.fromkeys(file for proof in self.proofs for file in proof.values()), *told]

    def constants(self, prompt: str | None) -> dict[str, str]:
        """{prompt: file} of the constant prompts by that name, or of the only ones. Raises InputError."""
        if prompt is None and len(self.prompts) < 2:
            return {p.name: p.of for p in self.signature.constants}
        if prompt not in self.prompts:
            problem = "there is no such prompt" if prompt else "there are prompts for several purposes"
            told = f"say which: {', '.join(self.prompts)}" if self.prompts else "leave it out"
            raise InputError(problem, key="--prompt", value=prompt, remedy=told)
        return dict(self.prompts[prompt].arrays)

    @model_validator(mode="after")
    def _agrees(self) -> Manifest:
        signature = self.signature
        if self.metrics_graph is not None and (
            signature.metrics is None or not TOLERANCES.keys() >= set(signature.metric_names)
        ):
            raise ValueError("no graph computes the metrics of this network")
        if (self.extractor_graph is None) != (signature.embedding is None):
            raise ValueError("a graph computes the embedding where the network takes one, and only there")
        if self.golden.arrays.keys() != signature.ports.shapes.keys():
            raise ValueError("the golden arrays are others than the signature's tensors")
        if any(self.golden.arrays[p.name] != p.of for p in signature.constants):
            raise ValueError("a golden constant is another than the network's own")
        own = {p.name: p.of for p in signature.constants}
        told = [named.arrays.keys() for named in self.prompts.values()]
        if any(names != own.keys() for names in told) or self.golden.arrays not in self.proofs:
            raise ValueError("the prompts by name are others than the signature's")
        own_frame = set() if self.golden.truth is None else {signature.measured.name}
        if any(not signature.ports.shapes.keys() - own_frame >= other.keys() for other in self.golden.others):
            raise ValueError("the golden arrays are others than the signature's tensors")
        if 2 * self.overlap > min(signature.measured.size) or (self.overlap and signature.tiling == "fixed"):
            raise ValueError("frames overlap by more than half of their side, or have one place only and overlap")
        if sum(record.bytes for record in self.files.values()) > 2 * LARGEST_PART:
            raise ValueError("the files are larger than a bundle can be")
        bands = signature.restored.bands
        if self.wavelengths is not None and len(self.wavelengths) != bands:
            raise ValueError(f"{len(self.wavelengths)} wavelengths for {bands} bands")
        return self


def dump(made: Sealed) -> bytes:
    """The bytes of a sealed file."""
    content = made.model_dump(mode="json")
    content[SEAL] = hashlib.sha256(_canonical(content)).hexdigest()
    return _canonical(content)


def parse(data: bytes, kind: type[Content], *, file: object) -> Content:
    """Read a sealed file of that kind.

    Raises:
        BundleError: it is damaged, altered, or of a version this program does not know.
    """

    def wrong(problem: str, remedy: str = "copy or build the bundle again", **found: Any) -> BundleError:
        return BundleError(kind.called + problem, file=file, remedy=remedy, **found)

    if len(data) > LARGEST:
        raise wrong(" is too large", value=len(data))
    try:
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise wrong(" is not JSON", value=error) from error
    if not isinstance(content, dict):
        raise wrong(" is not a mapping")
    version = content.get("schema_version")
    if version != kind.version:
        remedy = f"this program reads version {kind.version}; update it or build the bundle again"
        raise wrong("'s version is not known here", remedy, key="schema_version", value=version)
    if (problem := _beyond(content)) is not None:
        raise wrong(f" holds {problem}")
    seal = content.pop(SEAL, None)
    try:
        sealed = hashlib.sha256(_canonical(content)).hexdigest() == seal
        intact = sealed and _canonical({**content, SEAL: seal}) == data
        # Half a character is legal JSON and no text: nothing can print it.
        json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise wrong(" was altered or damaged", key=SEAL)
    try:
        return kind.model_validate_json(_canonical(content))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or None
        raise wrong(f" is wrong: {first['msg'].removeprefix('Value error, ')}", key=key) from error


def _beyond(content: Any) -> str | None:
    """Why it is not taken: what is free in it could be of any depth, number and size."""
    level, values = [content], 0
    for _ in range(DEEPEST):
        values += len(level)
        if any(isinstance(value, int) and abs(value) >= LARGEST_NUMBER for value in level):
            return "a number that is too large"
        level = [i for v in level for i in (v.values() if isinstance(v, dict) else v if isinstance(v, list) else ())]
    return "too many values" if values > MOST_VALUES else "lists that are nested too deep" if level else None


def _canonical(content: dict[str, Any]) -> bytes:
    text = json.dumps(content, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False)
    return (text + "\n").encode("ascii")
